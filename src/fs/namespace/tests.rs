//! Tests of the names that references receive, and of the changes between two namespaces.

use super::*;
use crate::image::Digest;

fn digest(seed: &str) -> ManifestDigest {
    ManifestDigest::new(Digest::of(seed.as_bytes()))
}

fn image(slot: u32) -> PublishedImage {
    PublishedImage { manifest: digest(&slot.to_string()), slot }
}

fn at(sec: i64) -> Timestamp {
    Timestamp { sec, nsec: 0 }
}

/// Publishes `name[:tag]` as the image with slot `slot`.
fn publish(reference: &str, slot: u32) -> PublishedReference {
    let (name, tag) = match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (reference, None),
    };
    PublishedReference { name: name.to_owned(), tag, index: None, image: image(slot) }
}

fn publish_index(name: &str, index: &str, slot: u32) -> PublishedReference {
    PublishedReference { index: Some(digest(index)), ..publish(name, slot) }
}

fn namespace(published: &[PublishedReference]) -> Namespace {
    Namespace::new(published, at(1), None)
}

fn directory(namespace: &Namespace, ino: Ino) -> &NamespaceDirectory {
    match namespace.node(ino) {
        Some(NamespaceNode::Directory(directory)) => directory,
        other => panic!("{ino}: {other:?}"),
    }
}

/// Returns what a path of the mount refers to.
fn resolve(namespace: &Namespace, path: &str) -> Option<NameTarget> {
    namespace.resolve(Path::new(path))
}

fn listing(namespace: &Namespace, path: &str) -> Vec<String> {
    let Some(NameTarget::Directory(ino)) = resolve(namespace, path) else {
        panic!("{path} is not a directory")
    };
    let mut names: Vec<_> =
        directory(namespace, ino).listed_after(0).map(|(_, name, _)| name.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn names_with_slashes_and_ports_are_directories_and_tags_are_links() {
    let namespace = namespace(&[
        publish("python:3.12", 1),
        publish("host:5000/lab/python:3.12", 2),
        publish_index("host:5000/lab/gcc", "an index", 3),
    ]);
    let of = |slot| Some(NameTarget::Image(image(slot)));
    let python = format!("python@{}", digest("1"));
    assert_eq!(listing(&namespace, ""), ["host:5000", "python:3.12", &python]);
    assert_eq!(listing(&namespace, "host:5000"), ["lab"]);
    assert_eq!(listing(&namespace, "host:5000/lab").len(), 4);
    assert_eq!(resolve(&namespace, &python), of(1));
    assert_eq!(resolve(&namespace, "python:3.12"), of(1));
    assert_eq!(resolve(&namespace, "host:5000/lab/python:3.12"), of(2));
    assert_eq!(resolve(&namespace, &format!("host:5000/lab/gcc@{}", digest("an index"))), of(3));
    assert_eq!(resolve(&namespace, "host:5000/lab/gcc"), None);
    assert_eq!(resolve(&namespace, "unknown"), None);
    assert_eq!(namespace.image_count(), 3);
}

#[test]
fn names_with_a_colon_have_unlisted_aliases_with_a_dash() {
    let namespace = namespace(&[publish("host:5000/python:3.12", 1)]);
    let of = Some(NameTarget::Image(image(1)));
    assert_eq!(resolve(&namespace, "host-5000/python-3.12"), of);
    assert_eq!(resolve(&namespace, "host:5000/python-3.12"), of);
    assert_eq!(resolve(&namespace, &format!("host-5000/python@sha256-{}", digest("1").hex())), of);
    assert_eq!(listing(&namespace, ""), ["host:5000"]);
    assert_eq!(listing(&namespace, "host:5000").len(), 2);
}

#[test]
fn name_wins_over_an_alias_of_the_same_spelling() {
    let namespace = namespace(&[publish("host:5000/python:1", 1), publish("host-5000/python:1", 2)]);
    assert_eq!(resolve(&namespace, "host-5000/python:1"), Some(NameTarget::Image(image(2))));
    assert_eq!(resolve(&namespace, "host:5000/python:1"), Some(NameTarget::Image(image(1))));
}

#[test]
fn directory_of_names_wins_over_a_tag_of_the_same_spelling() {
    let namespace = namespace(&[publish("host:5000", 1), publish("host:5000/python:1", 2)]);
    assert_eq!(resolve(&namespace, "host:5000/python:1"), Some(NameTarget::Image(image(2))));
    assert_eq!(resolve(&namespace, &format!("host@{}", digest("1"))), Some(NameTarget::Image(image(1))));
}

#[test]
fn image_with_two_names_is_a_directory_under_one_and_stays_there() {
    let digest = digest("1");
    let zoo = publish("zoo/python:1", 1);
    let lab = publish("lab/sub/python:1", 1);
    let first = namespace(std::slice::from_ref(&zoo));
    let both = Namespace::new(&[lab.clone(), zoo], at(2), Some(&first));
    assert_eq!(both.path_of(1), Some(format!("zoo/python@{digest}")));
    for path in [format!("lab/sub/python@{digest}"), "lab/sub/python:1".to_owned(), "zoo/python:1".to_owned()]
    {
        assert_eq!(resolve(&both, &path), Some(NameTarget::Image(image(1))), "{path}");
    }
    assert!(both.changes_since(&first).names.is_empty());
    let last = Namespace::new(&[lab], at(3), Some(&both));
    assert_eq!(last.path_of(1), Some(format!("lab/sub/python@{digest}")));
    assert_eq!(resolve(&last, "zoo/python:1"), None);
}

#[test]
fn inode_numbers_depend_only_on_the_names() {
    let python = publish("host:5000/python:1", 1);
    let alone = namespace(std::slice::from_ref(&python));
    let others = Namespace::new(&[publish("a/b:2", 2), python, publish("host:5000/z:3", 3)], at(9), None);
    for path in ["host:5000", "host-5000"] {
        let of = |namespace: &Namespace| directory(namespace, Ino::ROOT).lookup(path.as_bytes()).unwrap();
        assert_eq!(of(&alone), of(&others), "{path}");
    }
}

#[test]
fn names_with_colliding_hashes_have_different_numbers() {
    let published = [publish("a/b:1", 1), publish("c:2", 2)];
    let namespace = Namespace::with_hash(&published, at(1), None, |_| 7);
    assert_eq!(resolve(&namespace, "a/b:1"), Some(NameTarget::Image(image(1))));
    assert_eq!(resolve(&namespace, "c-2"), Some(NameTarget::Image(image(2))));
    assert_eq!(listing(&namespace, "").len(), 3);
}

#[test]
fn kernel_must_forget_only_the_moved_tag() {
    let before = namespace(&[publish("python:3", 1), publish("python", 2), publish("gcc:1", 3)]);
    let now = [publish("python", 1), publish("python:3", 2), publish("gcc:1", 3)];
    let after = Namespace::new(&now, at(2), Some(&before));
    let changes = after.changes_since(&before);
    let mut names: Vec<_> = changes.names.iter().map(|(ino, name)| (*ino, &**name)).collect();
    names.sort();
    // The alias still refers to the tag.
    assert_eq!(names, [(Ino::ROOT, "python:3")]);
    assert_eq!(changes.directories, [Ino::ROOT]);
    assert_eq!(resolve(&after, "python-3"), Some(NameTarget::Image(image(2))));
}

#[test]
fn names_of_a_removed_image_are_forgotten_deepest_first() {
    let before = namespace(&[publish("a/b/c:1", 1), publish("d:1", 2)]);
    let after = Namespace::new(&[publish("d:1", 2)], at(2), Some(&before));
    let changes = after.changes_since(&before);
    let names: Vec<_> = changes.names.iter().map(|(_, name)| &**name).collect();
    assert_eq!(names.len(), 2 + 4);
    assert_eq!(names[4..], ["b", "a"]);
    assert_eq!(changes.directories, [Ino::ROOT]);
}

#[test]
fn kernel_must_forget_only_the_directory_of_a_new_name() {
    let before = namespace(&[publish("a/b:1", 1)]);
    let after = Namespace::new(&[publish("a/b:1", 1), publish("c:1", 2)], at(2), Some(&before));
    assert_eq!(
        after.changes_since(&before),
        NamespaceChanges { names: Vec::new(), directories: vec![Ino::ROOT] }
    );
    assert_eq!(after.changes_since(&after), NamespaceChanges::default());
}

#[test]
fn only_changed_directories_get_a_new_time() {
    let before = namespace(&[publish("a/b:1", 1)]);
    let after = Namespace::new(&[publish("a/b:1", 1), publish("c:1", 2)], at(2), Some(&before));
    let Some(NameTarget::Directory(a)) = resolve(&after, "a") else { panic!() };
    assert_eq!(directory(&after, a).mtime(), at(1));
    assert_eq!(directory(&after, Ino::ROOT).mtime(), at(2));
    // A second change within one tick of the clock, or after the clock was set back.
    let third = Namespace::new(&[publish("c:1", 2)], at(2), Some(&after));
    assert_eq!(directory(&third, Ino::ROOT).mtime(), Timestamp { sec: 2, nsec: 1 });
}

#[test]
fn listing_continues_at_its_cookie_when_names_are_added_and_removed() {
    let published: Vec<_> = (0..20).map(|n| publish(&format!("image{n}"), n)).collect();
    let before = namespace(&published);
    let half: Vec<_> = directory(&before, Ino::ROOT).listed_after(0).take(10).collect();
    let cookie = half[9].0;
    // Removes every second listed name and adds others.
    let mut now: Vec<_> = published
        .iter()
        .filter(|p| half.iter().step_by(2).all(|(_, name, _)| !name.starts_with(&format!("{}@", p.name))))
        .cloned()
        .collect();
    now.extend((20..30).map(|n| publish(&format!("image{n}"), n)));
    let after = Namespace::new(&now, at(2), Some(&before));
    let rest: Vec<_> = directory(&after, Ino::ROOT).listed_after(cookie).map(|(_, name, _)| name).collect();
    for (_, name, _) in directory(&before, Ino::ROOT).listed_after(cookie) {
        assert_eq!(rest.iter().filter(|seen| **seen == name).count(), 1, "{name}");
    }
    for (_, name, _) in &half {
        assert!(!rest.contains(name), "{name} is listed twice");
    }
}

#[test]
fn link_count_includes_the_directories_in_a_directory() {
    let namespace = namespace(&[publish("a/b:1", 1), publish("c:1", 2)]);
    // `a` and `c@sha256:...` are directories, `c:1` is not.
    assert_eq!(directory(&namespace, Ino::ROOT).nlink(), 2 + 2);
    assert_eq!(Namespace::default().image_count(), 0);
}
