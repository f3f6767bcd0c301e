//! Semantics of layer application, case by case.

use rcx_imagefs::tree::NodeId;

use support::layers::merge_text;

/// Expands a case from its one-line form: `; ` separates lines, ` --- ` separates layers.
fn lines(compact: &str) -> String {
    compact.replace(" --- ", "\n---\n").replace("; ", "\n")
}

fn merged(layers: &str) -> String {
    match merge_text(&lines(layers)) {
        Ok(merged) => merged.dump().trim_end().replace('\n', "; "),
        // The digest of the layer is irrelevant here.
        Err(error) => format!("error: {}", error.split(" (in sha256:").next().unwrap()),
    }
}

fn check(cases: &[(&str, &str, &str)]) {
    for (name, layers, expected) in cases {
        assert_eq!(&merged(layers), expected, "{name}: {layers}");
    }
}

#[test]
#[rustfmt::skip]
fn single_layer_is_shown_unchanged() {
    check(&[
        ("nothing", "", ""),
        ("no layer has entries", " --- ", ""),
        ("every kind", "d d; f d/f hello; l d/l ../x; c d/c 1:3; b d/b 8:0; p d/p; h d/h d/f", "d d; b d/b 8:0; c d/c 1:3; f d/f hello; h d/h d/f; l d/l ../x; p d/p"),
        ("attributes", "d a mode=1777 uid=1 gid=2 mtime=3; f a/b x mode=4755 mtime=-1.500000000 xattr.user.a=1 xattr.user.b=; l a/c t uid=4294967294", "d a mode=1777 uid=1 gid=2 mtime=3; f a/b x mode=4755 mtime=-1.500000000 xattr.user.a=1 xattr.user.b=; l a/c t uid=4294967294"),
        ("the root's attributes", "d / mode=700 uid=5", "d / mode=700 uid=5"),
        ("missing parents are implied", "f a/b/c x", "d a; d a/b; f a/b/c x"),
        ("an implied directory takes the attributes of its entry", "f a/b x; d a mode=700 uid=3", "d a mode=700 uid=3; f a/b x"),
        ("odd names", r"f a\x20b x; f \xff\x01\n y; f a\x3db z; f \\ \x00\xff", r"f \\ \x00\xff; f a\x20b x; f a\x3db z; f \xff\x01\n y"),
        ("names are sorted by bytes", r"f b; f B; f a-b; d a; f a/x; f a.; f \xc3\xa9; f \x80", r"f B; d a; f a/x; f a-b; f a.; f b; f \x80; f é"),
        ("names are normalised", "f ./a//b x; f /c y; f d/../e z; f ../../f v; d ./", "d a; f a/b x; f c y; f e z; f f v"),
        ("long names", &format!("f {0}/{0} x; l s {0}/{0}; h h {0}/{0}", "n".repeat(250)), &format!("f h x; d {0}; h {0}/{0} h; l s {0}/{0}", "n".repeat(250))),
        ("a slash behind `..` cannot climb", "d ..; f ../.. ", "error: tar offset 512, entry `../..`: entry for the root is not a directory"),
    ]);
}

#[test]
#[rustfmt::skip]
fn whiteouts_hide_lower_layers_only() {
    check(&[
        ("file", "f a 1; f b 2 --- w a", "f b 2"),
        ("directory with all in it", "d a; f a/b; d a/c; f a/c/d --- w a", ""),
        ("in a directory", "d a; f a/b; f a/c --- w a/b", "d a; f a/c"),
        ("of nothing", "f a --- w b; w c/d/e", "f a"),
        ("in the lowest layer", "w a; f b", "f b"),
        ("makes no parents", "f a --- w x/y/z", "f a"),
        ("below a file", "f a 1 --- w a/b", "f a 1"),
        ("before the entry of the same name", "f a 1 --- w a; f a 2", "f a 2"),
        ("behind the entry of the same name", "f a 1 --- f a 2; w a", "f a 2"),
        ("of a directory that comes back", "d a mode=700; f a/old --- w a; f a/new x", "d a; f a/new x"),
        ("behind what comes back", "d a mode=700; f a/old --- f a/new x; w a", "d a; f a/new x"),
        ("does not act on its own layer", "f a --- f b; w b", "f a; f b"),
        ("reaches through all layers", "f a 1 --- f a 2 --- w a", ""),
        ("is undone by a later layer", "f a 1 --- w a --- f a 3", "f a 3"),
        ("of a symlink leaves its target", "d t; f t/x; l s t --- w s", "d t; f t/x"),
        ("of one name of a file", "f a 1; h b a --- w a", "f b 1"),
        ("twice", "f a; f b --- w a; w a", "f b"),
        ("of a directory and of what is in it", "d a; f a/b; f c --- w a; w a/b", "f c"),
        ("of what is in a directory and of that", "d a; f a/b; f c --- w a/b; w a", "f c"),
        ("of a name with odd bytes", r"f \xff\x20; f b --- w \xff\x20", "f b"),
        ("of a name like a marker's end", "f wh.; f .wh --- w .wh", "f wh."),
    ]);
}

#[test]
#[rustfmt::skip]
fn opaque_directories_hide_what_is_in_them_below() {
    check(&[
        ("with an entry", "d a mode=700; f a/b --- d a mode=711; o a; f a/c", "d a mode=711; f a/c"),
        ("without an entry", "d a mode=700; f a/b --- o a", "d a mode=700"),
        ("marker behind the entries", "d a; f a/b 1 --- f a/b 2; f a/c 3; o a", "d a; f a/b 2; f a/c 3"),
        ("subdirectories go too", "d a; d a/b; f a/b/c --- o a", "d a"),
        ("a subdirectory that comes back has new attributes", "d a; d a/b mode=700; f a/b/c --- o a; f a/b/d x", "d a; d a/b; f a/b/d x"),
        ("the root", "d / mode=700; f a; d b; f b/c --- o .; f d x", "d / mode=700; f d x"),
        ("of nothing", "f a --- o b; o c/d", "f a"),
        ("of a file", "f a 1 --- o a", "f a 1"),
        ("twice", "d a; f a/b --- o a; o a; f a/c", "d a; f a/c"),
        ("within one another", "d a; d a/b; f a/b/c; f x --- o a; o a/b; f a/b/d", "d a; d a/b; f a/b/d; f x"),
        ("with a whiteout in it", "d a; f a/b; f a/c --- w a/b; o a", "d a"),
        ("all layers below", "d a; f a/1 --- f a/2 --- o a; f a/3 --- f a/4", "d a; f a/3; f a/4"),
        ("in the lowest layer", "d a; o a; f a/b", "d a; f a/b"),
        ("where a file was", "f a 1 --- d a; o a; f a/b x", "d a; f a/b x"),
        ("leaves other names of a file", "d a; f a/b 1; h c a/b --- o a", "d a; f c 1"),
    ]);
}

#[test]
#[rustfmt::skip]
fn later_entries_replace_earlier_ones() {
    check(&[
        ("file over file", "f a 1 mode=600 uid=3 --- f a 2", "f a 2"),
        ("file over directory", "d a; d a/b; f a/b/c --- f a 2", "f a 2"),
        ("directory over file", "f a 1 --- d a; f a/b x", "d a; f a/b x"),
        ("directory over directory", "d a mode=700 mtime=5 xattr.user.x=1; f a/b 1 --- d a mode=711", "d a mode=711; f a/b 1"),
        ("a child changes nothing of its directory", "d a mode=700 mtime=5 --- f a/b x", "d a mode=700 mtime=5; f a/b x"),
        ("symlink over directory", "d a; f a/b --- l a x", "l a x"),
        ("symlink over file", "f a --- l a x", "l a x"),
        ("device over file", "f a --- c a 1:3", "c a 1:3"),
        ("fifo over directory", "d a; f a/b --- p a", "p a"),
        ("the same path twice", "f a 1; f a 2", "f a 2"),
        ("the same directory twice", "d a mode=700; f a/b x; d a mode=711", "d a mode=711; f a/b x"),
        ("three kinds in one layer", "d a; f a/b; f a 1; d a; f a/c", "d a; f a/c"),
        ("the root of the last layer that has one", "d / mode=700 --- f a --- d / mode=711 uid=1 --- f b", "d / mode=711 uid=1; f a; f b"),
        ("a directory that was a file stays empty below", "d a; f a/old --- f a 1 --- d a; f a/new", "d a; f a/new"),
        ("one name of a file", "f a 1; h b a --- f a 2", "f a 2; f b 1"),
        ("one name of a file, in its layer", "f a 1; h b a; f a 2", "f a 2; f b 1"),
        ("an entry below a file", "f a 1 --- f a/b 2", "error: layer 2: entry `a/b`: its parent is not a directory"),
        ("an entry below a file of its layer", "f a; f a/b/c", "error: layer 1: entry `a/b/c`: its parent is not a directory"),
        ("an entry below a link to a file", "f f; l a f --- f a/b", "error: layer 2: entry `a/b`: its parent is not a directory"),
        ("a file that is removed makes room", "f a 1 --- w a; f a/b 2", "d a; f a/b 2"),
    ]);
}

#[test]
#[rustfmt::skip]
fn parents_are_found_through_symlinks() {
    check(&[
        ("relative", "d usr/lib; l lib usr/lib --- f lib/x 1", "l lib usr/lib; d usr; d usr/lib; f usr/lib/x 1"),
        ("absolute", "d usr/lib; l lib /usr/lib --- f lib/x 1", "l lib /usr/lib; d usr; d usr/lib; f usr/lib/x 1"),
        ("in the same layer", "l a b; d b; f a/x 1", "l a b; d b; f b/x 1"),
        ("up and down", "d a/b; l a/b/c ../../d; d d --- f a/b/c/x 1", "d a; d a/b; l a/b/c ../../d; d d; f d/x 1"),
        ("chain", "l a b; l b c/d; l c e; d e/d --- f a/x 1", "l a b; l b c/d; l c e; d e; d e/d; f e/d/x 1"),
        ("not above the root", "l a ../../../etc; d etc --- f a/x 1", "l a ../../../etc; d etc; f etc/x 1"),
        ("a missing target is made", "l a b/c --- f a/x 1", "l a b/c; d b; d b/c; f b/c/x 1"),
        ("a missing absolute target is made inside", "l a /../b --- f a/x 1", "l a /../b; d b; f b/x 1"),
        ("`..` takes a missing component back", "l a m/../b --- f a/x 1", "l a m/../b; d b; f b/x 1"),
        ("`..` takes one missing component back", "l a m/n/../b --- f a/x 1", "l a m/n/../b; d m; d m/b; f m/b/x 1"),
        ("`..` through a directory link", "d x/y; l s x/y; l t s/../z --- f t/f 1", "l s x/y; l t s/../z; d x; d x/y; d x/z; f x/z/f 1"),
        ("a target with odd slashes", "l a ./b//./c/ ; d b/c --- f a/x 1", "l a ./b//./c/; d b; d b/c; f b/c/x 1"),
        ("a path that is a link on every host is an ordinary name in the image", "l a /proc/self; l b ../dev/fd --- f a/x 1; f b/y 2", "l a /proc/self; l b ../dev/fd; d dev; d dev/fd; f dev/fd/y 2; d proc; d proc/self; f proc/self/x 1"),
        ("to the root", "l a / --- f a/x 1; l b . --- f b/y 2", "l a /; l b .; f x 1; f y 2"),
        ("a directory below a link", "l lib usr/lib; d usr/lib mode=700 --- d lib/x mode=711", "l lib usr/lib; d usr; d usr/lib mode=700; d usr/lib/x mode=711"),
        ("a directory over the link replaces it", "d usr/lib; f usr/lib/x; l lib usr/lib --- d lib; f lib/y", "d lib; f lib/y; d usr; d usr/lib; f usr/lib/x"),
        ("entries before the directory go to the target", "d t; l s t --- f s/x 1; d s; f s/y 2", "d s; f s/y 2; d t; f t/x 1"),
        ("a file over the link replaces it", "d t; f t/x; l s t --- f s 1", "f s 1; d t; f t/x"),
        ("a link over the link", "d t; d u; l s t --- l s u; f s/x 1", "l s u; d t; d u; f u/x 1"),
        ("a directory that becomes a link", "f d/x 1; l d t; f d/y 2", "l d t; d t; f t/y 2"),
        ("a link that becomes another", "l a t; f a/x 1; l a u; f a/y 2; d a; f a/z 3", "d a; f a/z 3; d t; f t/x 1; d u; f u/y 2"),
        ("circle", "l a b; l b a --- f a/x", "error: layer 2: entry `a/x`: too many symbolic links in its path"),
        ("circle with itself", "l a a; f a/x", "error: layer 1: entry `a/x`: too many symbolic links in its path"),
        ("growing circle", "l a a/a; f a/x", "error: layer 1: entry `a/x`: too many symbolic links in its path"),
        ("a target's component that is too long", &format!("l a {}; f a/x", "n".repeat(256)), "error: layer 1: entry `a/x`: a symbolic link in its path has a component of 256 bytes (at most 255)"),
        ("a loop nobody goes through", "l a a; f b", "l a a; f b"),
    ]);
    let chain = |links: usize| {
        let chain: Vec<_> = (0..links).map(|n| format!("l s{n:02} s{:02}", n + 1)).collect();
        merged(&format!("{}; d s{links:02} --- f s00/x 1", chain.join("; ")))
    };
    assert!(chain(40).ends_with("d s40; f s40/x 1"));
    assert_eq!(chain(41), "error: layer 2: entry `s00/x`: too many symbolic links in its path");
}

#[test]
#[rustfmt::skip]
fn markers_are_found_through_symlinks() {
    check(&[
        ("whiteout in a linked directory", "d usr/lib; f usr/lib/x; f usr/lib/y; l lib usr/lib --- w lib/x", "l lib usr/lib; d usr; d usr/lib; f usr/lib/y"),
        ("the last component is not followed", "d t; f t/x; l d/s ../t; l e d --- w e/s", "d d; l e d; d t; f t/x"),
        ("opaque through the last component", "d t; f t/x; l s t --- o s; f t/y", "l s t; d t; f t/y"),
        ("opaque through a link to the root", "f a; d d; l d/s / --- o d/s; f b", "f b"),
        ("whiteout through a missing target", "l s m; f a --- w s/x; o s", "f a; l s m"),
        ("whiteout through a path that is a link on every host", "f proc/self/x; f proc/self/y; l s /proc/self --- w s/x", "d proc; d proc/self; f proc/self/y; l s /proc/self"),
        ("whiteout through a circle", "l s s; f a --- w s/x", "error: layer 2: marker for `s/x`: too many symbolic links in its path"),
        ("a directory in place of the link takes the opaque marker", "d usr/lib; f usr/lib/x; l lib usr/lib --- d lib; o lib; f lib/y", "d lib; f lib/y; d usr; d usr/lib; f usr/lib/x"),
        ("wherever that directory's entry stands", "d usr/lib; f usr/lib/x; l lib usr/lib --- o lib; w lib/x; d lib", "d lib; d usr; d usr/lib; f usr/lib/x"),
        ("a directory deeper down takes no marker of the target", "d t/u; f t/u/x; l s t; l t/v u --- d s; w s/v/x; w s/u", "d s; d t; d t/u; f t/u/x; l t/v u"),
        ("a directory reached through another link", "d t; l t/v w; d t/w; f t/w/x; l s t --- d s/v; w s/v/x", "l s t; d t; d t/v; d t/w; f t/w/x"),
        ("a hidden link leads nowhere", "d t; f t/x; l s t --- w s; w s/x; o s; f s/y", "d s; f s/y; d t; f t/x"),
        ("a link in an opaque directory leads nowhere", "d t; f t/x; d d; l d/s ../t --- o d; w d/s/x", "d d; d t; f t/x"),
        ("a link that is made anew still leads there", "d t; f t/x; d u; f u/x; l s t --- l s u; w s/x", "l s u; d t; d u; f u/x"),
    ]);
}

#[test]
#[rustfmt::skip]
fn hard_links_bind_when_they_are_read() {
    check(&[
        ("in one layer", "f a 1; h b a; h c b", "f a 1; h b a; h c a"),
        ("to a layer below", "f a 1 mode=600 --- h b a", "f a 1 mode=600; h b a"),
        ("then the target is replaced", "f a 1 --- h b a; f a 2", "f a 2; f b 1"),
        ("then the target is removed", "f a 1 --- h b a --- w a", "f b 1"),
        ("to a symlink", "l a x; h b a", "l a x; h b a"),
        ("to a device and a fifo", "c a 1:3; h b a; p c; h d c", "c a 1:3; h b a; p c; h d c"),
        ("through a linked directory", "d d; f d/a 1; l s d; h b s/a", "f b 1; d d; h d/a b; l s d"),
        ("below a linked directory", "d d; f a 1; l s d; h s/b a", "f a 1; d d; h d/b a; l s d"),
        ("target is normalised", "d d; f d/a 1; h b /d/../d/./a", "f b 1; d d; h d/a b"),
        ("over another file", "f a 1; f b 2; h b a", "f a 1; h b a"),
        ("over a directory", "f a 1; d b; f b/c; h b a", "f a 1; h b a"),
        ("over a name of the same node", "f a 1; h b a; h b a", "f a 1; h b a"),
        ("in a missing directory", "f a 1; h d/e/b a", "f a 1; d d; d d/e; h d/e/b a"),
        ("to the file above of two layers", "f a 1 --- f a 2 --- h b a", "f a 2; h b a"),
        ("to a file below its later entry", "f a 1 --- h b a; f a 2 --- h c b", "f a 2; f b 1; h c b"),
        ("to what the layer removes", "f a --- w a; h b a", "error: layer 2: entry `b`: hard link to `a`, which does not exist"),
        ("to what an opaque marker removes", "f d/a --- h b d/a; o d", "error: layer 2: entry `b`: hard link to `d/a`, which does not exist"),
        ("to a later entry", "h b a; f a", "error: layer 1: entry `b`: hard link to `a`, which does not exist"),
        ("to itself", "f a --- h a a", "error: layer 2: entry `a`: hard link to `a`, which does not exist"),
        ("to itself through a link", "d d; f d/a; l s d; h d/a s/a", "error: layer 1: entry `d/a`: hard link to `s/a`, which does not exist"),
        ("to what it replaces", "d a; f a/b; h a a/b", "error: layer 1: entry `a`: hard link to `a/b`, which does not exist"),
        ("to a directory", "d a --- h b a", "error: layer 2: entry `b`: hard link to `a`, which is a directory"),
        ("to an implied directory", "f a/x; h b a", "error: layer 1: entry `b`: hard link to `a`, which is a directory"),
        ("to the root", "h b /", "error: layer 1: entry `b`: hard link to `/`, which is a directory"),
        ("to the root, spelled out", "h b ..", "error: layer 1: entry `b`: hard link to `/`, which is a directory"),
        ("to nothing", "h b x/y", "error: layer 1: entry `b`: hard link to `x/y`, which does not exist"),
        ("below a file", "f a; h b a/c", "error: layer 1: entry `b`: hard link to `a/c`, which does not exist"),
        ("to a marker's name", "f a --- w a; h b .wh.a", "error: layer 2: entry `b`: hard link to `.wh.a`, which does not exist"),
    ]);
}

#[test]
#[rustfmt::skip]
fn entries_that_overlayfs_would_interpret_are_dropped_or_refused() {
    check(&[("xattrs", "d a xattr.trusted.overlay.opaque=y xattr.user.overlay.opaque=y xattr.user.x=1; f a/b x xattr.trusted.overlay.redirect=/", "d a xattr.user.x=1; f a/b x"), ("device 0:0", "f a --- c a 0:0", "error: tar offset 0, entry `a`: character device 0:0 is not allowed: overlayfs treats it as a whiteout"), ("block device 0:0", "b a 0:0", "b a 0:0"), ("names of AUFS", "d .wh..wh.plnk; f .wh..wh.plnk/1.2 x; f a", "f a"), ("a bare marker", "f a --- f .wh. x", "error: tar offset 0, entry `.wh.`: whiteout marker `.wh.` names nothing")]);
}

#[test]
fn link_counts_are_those_of_the_merged_tree() {
    let tree = merge_text(&lines("d d; d d/e; f a 1; h b a; h d/c a; f x --- w b; h y x")).unwrap().tree;
    let nlink = |path: &str| {
        let node = path.split('/').fold(NodeId::ROOT, |node, name| {
            tree.lookup(node, name.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"))
        });
        (node, tree.nlink(node))
    };
    assert_eq!(nlink("a"), nlink("d/c"));
    assert_eq!(nlink("x"), nlink("y"));
    assert_eq!((nlink("a").1, nlink("x").1), (2, 2));
    assert_eq!((nlink("d").1, nlink("d/e").1), (3, 2));
    assert_eq!(tree.nlink(NodeId::ROOT), 3);
}

#[test]
fn nodes_are_numbered_by_the_tree_alone() {
    let dump_of = |text: &str| {
        let tree = merge_text(&lines(text)).unwrap().tree;
        let mut found = Vec::new();
        for directory in (0..).map(NodeId::new).take_while(|node| tree.is_directory(*node)) {
            found.extend(tree.children(directory).map(|(name, node)| (directory, name.to_vec(), node)));
        }
        found
    };
    let forwards = dump_of("d a; d b; f a/x 1; f b/y 2; h c a/x; f d 3");
    assert_eq!(forwards, dump_of("f d 3; d b; f b/y 2; d a; f a/x 1; h c a/x"));
    assert_eq!(forwards, dump_of("f gone; d b; f c 1 --- w gone; f b/y 2; f d 3; h a/x c"));
    let nodes: Vec<u32> = forwards.iter().map(|(_, _, node)| node.get()).collect();
    // In the root `a`, `b`, `c`, `d`; then `a/x`, which is `c`, and `b/y`.
    assert_eq!(nodes, [1, 2, 3, 4, 3, 5]);
}

#[test]
fn lookup_and_listing_agree() {
    let many: Vec<_> = (0..300).map(|n| format!("f d/{n} x")).collect();
    let tree = merge_text(&lines(&format!("{}; f e", many.join("; ")))).unwrap().tree;
    let directory = tree.lookup(NodeId::ROOT, b"d").unwrap();
    assert_eq!(tree.children(directory).len(), 300);
    for (position, (name, node)) in tree.children(directory).enumerate() {
        assert_eq!(tree.lookup(directory, name), Some(node));
        assert_eq!(tree.child_at(directory, position), Some((name, node)));
        assert_eq!(tree.children(node).len(), 0, "a file has no children");
        assert_eq!(tree.lookup(node, name), None);
    }
    assert_eq!(tree.child_at(directory, 300), None);
    for missing in [&b""[..], b".", b"..", b"d/1", b"1000"] {
        assert_eq!(tree.lookup(directory, missing), None);
    }
    assert_eq!(tree.parent(directory), NodeId::ROOT);
    assert_eq!(tree.parent(NodeId::ROOT), NodeId::ROOT);
    assert_eq!(tree.lookup(NodeId::new(u32::MAX), b"d"), None);
    assert!(!tree.contains(NodeId::new(u32::MAX)) && tree.contains(directory));
}

#[test]
fn depth_is_not_bounded_by_the_stack() {
    // Each layer goes 2000 levels deeper, through a link to where the one before ended. 40 links are the most that a path has.
    let deep = "d/".repeat(2000);
    let steps: Vec<_> =
        (0..39).map(|step| format!("f s{step}/{deep}x; l s{} s{step}/{deep}", step + 1)).collect();
    let tree = merge_text(&lines(&format!("l s0 .; {}", steps.join(" --- ")))).unwrap().tree;
    let (mut directory, mut depth) = (NodeId::ROOT, 0);
    while let Some(child) = tree.lookup(directory, b"d") {
        assert_eq!(tree.parent(child), directory);
        (directory, depth) = (child, depth + 1);
    }
    assert_eq!(depth, 78_000);
    assert!(tree.lookup(directory, b"x").is_some());
}

/// Found by the reference model.
#[test]
fn other_names_of_a_replaced_symlink_still_lead_on() {
    check(&[
        ("two names of one link", "l a c; h b a; f c/x 1 --- d b; o a", "l a c; d b; d c"),
        (
            "in a circle",
            "l a a; h b a --- d b; o a/b",
            "error: layer 2: marker for `a/b`: too many symbolic links in its path",
        ),
    ]);
}

/// Found by the reference model.
#[test]
fn where_a_symlink_leads_can_change_from_entry_to_entry() {
    check(&[
        (
            "through what was missing",
            "l b c/..; f b/c 1; d b/a",
            "error: layer 1: entry `b/a`: its parent is not a directory",
        ),
        ("through what is a directory now", "l b c/..; d b/c; d b/a", "d a; l b c/..; d c"),
    ]);
}

#[test]
fn an_error_names_layer_entry_and_offset() {
    let error = merge_text(&lines("f a --- d b; h b/c missing")).err().unwrap();
    let (what, place) = error.split_once(" (in sha256:").unwrap();
    assert_eq!(what, "layer 2: entry `b/c`: hard link to `missing`, which does not exist");
    assert!(place.ends_with(", at byte 512 of the tar)"), "{place}");
}

#[test]
fn long_winded_links_are_refused() {
    // Every entry goes through 40 links of 2,000 components each; the directories alternate, so that none can be remembered.
    let chain: Vec<_> = (0..40).map(|n| format!("l s{n} {}s{}", "./".repeat(2000), n + 1)).collect();
    let entries: Vec<_> = (0..300).map(|n| format!("f s0/d{n}/x")).collect();
    let shown = merged(&format!("{}; d s40; {}", chain.join("; "), entries.join("; ")));
    let expected = "error: layer 1: entry `s0/d209/x`: too many components of symbolic links";
    assert_eq!(shown, expected);
}
