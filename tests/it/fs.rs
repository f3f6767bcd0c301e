//! The filesystem without a kernel: names, inode numbers, listings, reads, and damage.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rcx_imagefs::fs::{FileKind, FsError, ImageFs, Ino, Lookup};
use rcx_imagefs::image::{LayerDigest, Name};

use support::layers::{merge_text, parse};
use support::stored::{Packing, TestStore, content, image_lines, lookup, names, resolve};

const BASE: &str = "\
    d etc mode=700 uid=3 mtime=1500000000.000000001
    f etc/hosts 127.0.0.1 mode=600 gid=7 mtime=-1.500000000 xattr.user.a=b xattr.security.other=\\x01\\x00
    h etc/alias etc/hosts
    f etc/plain same
    l etc/link /etc/hosts
    c dev/null 1:3 mode=666
    b dev/disk 8:300
    p run/pipe
    f deep/er/file x mode=4755
    h a etc/plain
    ";

#[test]
fn image_shows_the_merged_tree_of_its_layers() {
    let layers = [BASE, "w etc/alias\nf top 1\n", "o dev\nc dev/zero 1:5\nd deep mode=711\n"].join("---\n");
    for packing in [Packing::Tar, Packing::Gzip, Packing::Members(1000), Packing::Frames(1000), Packing::Zstd]
    {
        let stored = TestStore::new();
        stored.add("lab/a:1", &parse(&layers), packing);
        let fs = stored.fs();
        let root = resolve(&fs, "lab/a:1");
        let expected = parse(&merge_text(&layers).unwrap().dump()).remove(0);
        assert_eq!(image_lines(&fs, &root), expected, "{packing:?}");
    }
}

#[test]
fn root_of_an_image_has_the_attributes_of_its_entry() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", "d / mode=1777 uid=5 mtime=77\nf x");
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1");
    assert_eq!((root.mode, root.uid, root.mtime.sec, root.nlink), (0o1777, 5, 77, 2));
}

#[test]
fn negative_lookups_are_cacheable_within_an_image_only() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", "d d\nf f");
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1").ino;
    let directory = lookup(&fs, root, b"d").ino;
    for (parent, cacheable) in
        [(Ino::ROOT, false), (resolve(&fs, "lab").ino, false), (root, true), (directory, true)]
    {
        assert_eq!(fs.lookup(parent, b"nothing").unwrap(), Lookup::Absent { cacheable });
        assert!(matches!(fs.lookup(parent, &[b'x'; 256]), Err(FsError::NameTooLong)));
    }
    let file = lookup(&fs, root, b"f").ino;
    assert!(matches!(fs.lookup(file, b"x"), Err(FsError::NotADirectory(_))));
    assert!(matches!(fs.readdir(file, 0, |_| false), Err(FsError::NotADirectory(_))));
    assert!(matches!(fs.read(directory, 0, 1), Err(FsError::IsADirectory(_))));
    assert!(matches!(fs.readlink(file), Err(FsError::WrongKind(_))));
    assert!(matches!(fs.getxattr(file, b"user.none"), Err(FsError::NoAttribute)));
}

#[test]
fn file_of_a_shared_layer_is_one_inode_in_every_image() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", BASE);
    stored.add_text("lab/b:1", &format!("{BASE}\n---\nw etc/alias\nf etc/new"));
    let fs = stored.fs();
    let ino = |image: &str, directory: &[u8], name: &[u8]| {
        lookup(&fs, lookup(&fs, resolve(&fs, image).ino, directory).ino, name)
    };
    for name in [&b"plain"[..], b"link"] {
        assert_eq!(ino("lab/a:1", b"etc", name), ino("lab/b:1", b"etc", name));
    }
    // In the second image the file has one name only. Its link count differs, so it must be another inode.
    let (two, one) = (ino("lab/a:1", b"etc", b"hosts"), ino("lab/b:1", b"etc", b"hosts"));
    assert_eq!((two.nlink, one.nlink), (2, 1));
    assert_ne!(two.ino, one.ino);
    assert_eq!(*fs.read(two.ino, 0, 99).unwrap(), *fs.read(one.ino, 0, 99).unwrap());
    // Every image has its own directories.
    let etc = |image| lookup(&fs, resolve(&fs, image).ino, b"etc").ino;
    assert_ne!(etc("lab/a:1"), etc("lab/b:1"));
    assert_eq!(lookup(&fs, etc("lab/b:1"), b"..").ino, resolve(&fs, "lab/b:1").ino);
    assert_eq!(lookup(&fs, resolve(&fs, "lab/b:1").ino, b"..").ino, resolve(&fs, "lab").ino);
}

/// Collects the attributes of every file below a directory.
fn inodes(fs: &ImageFs, directory: Ino, into: &mut Vec<rcx_imagefs::fs::InodeAttr>) {
    for name in names(fs, directory) {
        let attr = lookup(fs, directory, &name);
        into.push(attr);
        if attr.kind == FileKind::Directory {
            inodes(fs, attr.ino, into);
        }
    }
}

#[test]
fn inode_numbers_survive_a_restart_and_need_no_lookup_first() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", &format!("{BASE}\n---\nw etc/alias"));
    let fs = stored.fs();
    let mut before = vec![resolve(&fs, "lab"), resolve(&fs, "lab/a:1")];
    inodes(&fs, before[1].ino, &mut before);
    drop(fs);
    stored.add_text("lab/another:1", BASE);
    let fs = stored.fs();
    for attr in &before[1..] {
        assert_eq!(fs.getattr(attr.ino).unwrap(), *attr);
    }
    let mut after = vec![resolve(&fs, "lab"), resolve(&fs, "lab/a:1")];
    inodes(&fs, after[1].ino, &mut after);
    assert_eq!(after[1..], before[1..]);
    assert_eq!(after[0].ino, before[0].ino);
}

#[test]
fn unknown_inode_numbers_are_stale_in_every_call() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", BASE);
    let fs = stored.fs();
    resolve(&fs, "lab/a:1");
    let slot = 1 << 32;
    let near = [0, 2, slot, slot | 0xffff_ffff, slot | 50, (5 * slot) | 1];
    let image = (1 << 59) | slot;
    let far = [image, image | 0xffff, (1 << 59) | (9 * slot) | 1, 1 << 60, (1 << 60) | 5, 1 << 61, u64::MAX];
    for number in near.into_iter().chain(far) {
        let ino = Ino::from_kernel(number);
        let answers = [
            fs.getattr(ino).err(),
            fs.lookup(ino, b"x").err(),
            fs.lookup(ino, b"..").err(),
            fs.readdir(ino, 0, |_| false).err(),
            fs.readlink(ino).err(),
            fs.read(ino, 0, 1).err(),
            fs.seek(ino, 0, true).err(),
            fs.getxattr(ino, b"user.a").err(),
            fs.listxattr(ino).err(),
        ];
        for error in answers {
            let error = error.unwrap_or_else(|| panic!("a call for {number:#x} succeeds"));
            // Inodes of layers are never directories, so a lookup in one fails without opening the layer.
            let expected = matches!(error, FsError::Stale(_) | FsError::NotADirectory(_));
            assert!(expected, "{number:#x}: {error}");
        }
    }
}

#[test]
fn inode_numbers_that_were_never_returned_are_stale_even_if_they_name_a_file() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", "d d\nf f content\nh g f\n");
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1").ino;
    let (directory, file) = (lookup(&fs, root, b"d").ino.get(), lookup(&fs, root, b"f").ino.get());
    let image = root.get() & !u64::from(u32::MAX);
    let layer = file & !u64::from(u32::MAX);
    // The file is the third node of the image, after the root and the directory, and the second entry of its layer.
    assert_eq!((root.get(), directory, file), (image + 1, image + 2, layer + 2));
    for made_up in [image + 3, layer + 1, layer + 3] {
        let ino = Ino::from_kernel(made_up);
        assert!(matches!(fs.getattr(ino), Err(FsError::Stale(_))), "{made_up:#x}");
        assert!(matches!(fs.read(ino, 0, 9), Err(FsError::Stale(_))), "{made_up:#x}");
    }
}

#[test]
fn listing_can_continue_at_every_offset() {
    let stored = TestStore::new();
    stored.add_text("lab/a:1", BASE);
    stored.add_text("lab/b:1", BASE);
    let fs = stored.fs();
    for directory in [resolve(&fs, "lab").ino, resolve(&fs, "lab/a:1").ino] {
        let list = |offset: u64, most: usize| {
            let mut listed = Vec::new();
            fs.readdir(directory, offset, |entry| {
                let full = listed.len() == most;
                if !full {
                    listed.push((entry.name.to_vec(), entry.next, entry.attr.ino));
                }
                full
            })
            .unwrap();
            listed
        };
        let all = list(0, usize::MAX);
        assert!(all.len() > 4);
        for (at, (_, next, _)) in all.iter().enumerate() {
            assert_eq!(list(*next, usize::MAX), all[at + 1..]);
            assert_eq!(list(*next, 1), all[at + 1..].iter().take(1).cloned().collect::<Vec<_>>());
        }
    }
}

#[test]
fn listing_opens_no_image_and_returns_the_inode_number_of_a_lookup() {
    let stored = TestStore::new();
    let (digest, _) = stored.add_text("lab/a:1", BASE);
    let fs = stored.fs();
    let lab = resolve(&fs, "lab").ino;
    let listed = |fs: &ImageFs| {
        let mut image = None;
        fs.readdir(lab, 0, |entry| {
            if entry.attr.kind == FileKind::Directory && entry.name.starts_with(b"a@") {
                image = Some((entry.attr.ino, entry.attr_complete));
            }
            false
        })
        .unwrap();
        image.unwrap()
    };
    let (ino, complete) = listed(&fs);
    assert!(!complete);
    assert_eq!(fs.status().open, []);
    assert_eq!(resolve(&fs, &format!("lab/a@{digest}")).ino, ino);
    assert_eq!(fs.status().open, [Some(format!("lab/a@{digest}"))]);
    assert_eq!(listed(&fs), (ino, true));
}

#[test]
fn removed_image_loses_its_names_and_keeps_serving_open_files() {
    let stored = TestStore::new();
    let (digest, _) = stored.add_text("lab/a:1", BASE);
    stored.add_text("lab/b:1", "f other");
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1").ino;
    let file = lookup(&fs, lookup(&fs, root, b"etc").ino, b"plain").ino;
    stored.store.remove_image(&Name::from_archive("lab/a").unwrap(), digest).unwrap();
    let changes = fs.refresh().unwrap();
    let gone: Vec<_> = changes.names.iter().map(|(_, name)| &**name).collect();
    assert!(gone.contains(&"a:1") && gone.contains(&&*format!("a@{digest}")), "{gone:?}");
    assert_eq!(changes.directories, [resolve(&fs, "lab").ino]);
    assert_eq!(fs.lookup(resolve(&fs, "lab").ino, b"a:1").unwrap(), Lookup::Absent { cacheable: false });
    assert_eq!(*fs.read(file, 0, 99).unwrap(), *b"same");
    assert_eq!(lookup(&fs, root, b"..").ino, Ino::ROOT);
    assert_eq!(fs.refresh().unwrap(), rcx_imagefs::fs::NamespaceChanges::default());
}

fn blob(stored: &TestStore, layer: &LayerDigest) -> std::path::PathBuf {
    stored.store.blob_path(&layer.digest())
}

#[test]
fn image_with_a_missing_blob_fails_until_the_blob_is_back_and_other_images_work() {
    let stored = TestStore::new();
    let (digest, layers) = stored.add_text("lab/a:1", BASE);
    stored.add_text("lab/b:1", "f other fine");
    let (path, away) = (blob(&stored, &layers[0]), stored.store.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    let fs = stored.fs();
    let lab = resolve(&fs, "lab").ino;
    let name = format!("a@{digest}");
    for _ in 0..2 {
        let error = fs.lookup(lab, name.as_bytes()).unwrap_err();
        assert!(matches!(error, FsError::Image(_)), "{error}");
        assert_eq!(error.errno(), rustix::io::Errno::IO);
    }
    let failed = fs.status().failed;
    assert!(failed[0].contains(&layers[0].hex()), "{failed:?}");
    let other = lookup(&fs, resolve(&fs, "lab/b:1").ino, b"other").ino;
    assert_eq!(*fs.read(other, 0, 99).unwrap(), *b"fine");

    std::fs::rename(&away, &path).unwrap();
    fs.refresh().unwrap();
    assert_eq!(lookup(&fs, lab, name.as_bytes()).kind, FileKind::Directory);
    assert_eq!(fs.status().failed, Vec::<String>::new());
}

#[test]
fn flipped_bit_fails_reads_of_its_span_and_never_returns_wrong_bytes() {
    let text: String = (0..40_u8)
        .map(|n| format!("f f{n:02} {}\n", char::from(b'a' + n % 26).to_string().repeat(3000)))
        .collect();
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", &text);
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1").ino;
    let file = File::options().read(true).write(true).open(blob(&stored, &layers[0])).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    let mut errors = 0;
    for name in names(&fs, root) {
        match fs.read(lookup(&fs, root, &name).ino, 0, 1 << 20) {
            Ok(bytes) => assert!(bytes.len() == 3000 && bytes.iter().all(|byte| *byte == bytes[0])),
            Err(error) => {
                assert!(matches!(error, FsError::Content(_)), "{error}");
                errors += 1;
            }
        }
    }
    assert!((1..=4).contains(&errors), "{errors} of 40 files of one span");
    file.write_all_at(&byte, middle).unwrap();
    let repaired =
        names(&fs, root).iter().all(|name| content(&fs, lookup(&fs, root, name).ino, 777).len() == 3000);
    assert!(repaired, "the failure is remembered");
}

#[test]
fn blob_that_is_fetched_again_is_used_by_layers_that_are_already_open() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a right\nf b b\n---\nh c b");
    let fs = stored.fs();
    let root = resolve(&fs, "lab/a:1").ino;
    // One inode of the layer and one of the image.
    let inodes = [lookup(&fs, root, b"a").ino, lookup(&fs, root, b"c").ino];
    let path = blob(&stored, &layers[0]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, vec![b'?'; bytes.len()]).unwrap();
    assert!(inodes.iter().all(|ino| fs.read(*ino, 0, 9).is_err()));
    std::fs::remove_file(&path).unwrap();
    assert!(fs.read(inodes[0], 0, 9).is_err());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(*fs.read(inodes[0], 0, 9).unwrap(), *b"right");
    fs.drop_caches();
    assert_eq!(*fs.read(inodes[1], 0, 9).unwrap(), *b"b");
}
