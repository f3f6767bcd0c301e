//! Requests to the filesystem with any inode number, name and offset, as the kernel or a program with forged file handles may
//! send them.
//!
//! Properties: no request panics; an inode always has the same attributes, by number and by name; a listing resumes at any
//! offset that it returned and agrees with lookups; a read returns the file's bytes at any offset and never more; every error
//! has an errno.

use std::cell::LazyCell;

use rcx_imagefs::fs::{FileKind, FsError, ImageFs, Ino, InodeAttr, Lookup};

use crate::input::Input;
use support::layers::parse;
use support::stored::{Packing, TestStore, lookup, names, resolve};

/// Content longer than one span.
fn long_content() -> String {
    (0..4000_u32).map(|n| format!("{}\\x20", n * n % 1009)).collect()
}

/// A filesystem with a few images, and all of its inodes.
struct Fixture {
    fs: ImageFs,
    inodes: Vec<InodeAttr>,
    /// Keeps the store's directory until the fixture is dropped.
    _store: TestStore,
}

thread_local! {
    /// Thread-local rather than static: a static is never dropped, which would leave the store's directory behind.
    static FIXTURE: LazyCell<Fixture> = LazyCell::new(Fixture::new);
}

impl Fixture {
    fn new() -> Self {
        let store = TestStore::new();
        let base = format!(
            "d etc mode=700\nf etc/hosts 127.0.0.1 xattr.user.a=b xattr.user.empty=\nf etc/long {}\nh etc/alias etc/hosts\n\
             l etc/link /etc/hosts\nc dev/null 1:3\np run/pipe\nf deep/er/file x\nf empty\nl up ..",
            long_content()
        );
        let upper =
            format!("{base}\n---\nw etc/alias\nf etc/new 1\no dev\nd deep mode=711\nh second etc/long");
        store.add("lab/a:1", &parse(&base), Packing::Gzip);
        store.add("lab/b:2", &parse(&upper), Packing::Members(3000));
        store.add("python:3", &parse(&upper), Packing::Zstd);
        store.add("python:4", &parse("d / mode=1777"), Packing::Tar);
        let fs = store.fs();
        let mut inodes = Vec::new();
        for name in ["lab", "lab/a:1", "lab/b:2", "python:3", "python:4"] {
            let attr = resolve(&fs, name);
            inodes.push(attr);
            collect(&fs, attr.ino, &mut inodes);
        }
        Self { fs, inodes, _store: store }
    }
}

fn collect(fs: &ImageFs, directory: Ino, inodes: &mut Vec<InodeAttr>) {
    for name in names(fs, directory) {
        let attr = lookup(fs, directory, &name);
        inodes.push(attr);
        // The caller collects each image by name.
        if attr.kind == FileKind::Directory && attr.mode != 0o555 && inodes.len() < 500 {
            collect(fs, attr.ino, inodes);
        }
    }
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    FIXTURE.with(|fixture| send_requests(fixture, Input::new(data)));
}

fn send_requests(fixture: &Fixture, mut input: Input<'_>) {
    let fs = &fixture.fs;
    while !input.is_empty() {
        let ino = ino(fixture, &mut input);
        match input.below(10) {
            0 => check_lookup(fs, ino, &name(&mut input)),
            1 => check_attr(fs, ino),
            2 | 3 => check_listing(fs, ino, &mut input),
            4 | 5 => check_read(fs, ino, &mut input),
            6 => check_seek(fs, ino, &mut input),
            7 => check_xattrs(fs, ino, input.chunk()),
            8 => {
                let kind = fs.getattr(ino).map(|attr| attr.kind);
                match checked(fs.readlink(ino)) {
                    Ok(target) => {
                        assert_eq!((kind.ok(), target.is_empty()), (Some(FileKind::Symlink), false))
                    }
                    Err(_) => assert!(!matches!(kind, Ok(FileKind::Symlink))),
                }
            }
            _ => {
                if input.one_in(8) {
                    fs.drop_caches();
                }
                let status = fs.status();
                assert!(status.failed.is_empty(), "{status:?}");
            }
        }
    }
}

/// Returns a known inode number, one close to it, or any number.
fn ino(fixture: &Fixture, input: &mut Input<'_>) -> Ino {
    let known = fixture.inodes[input.below(fixture.inodes.len())].ino.get();
    Ino::from_kernel(match input.below(10) {
        0 => input.u64(),
        1 => input.number(),
        2 => known.wrapping_add_signed(i64::from(input.byte()) - 128),
        3 => known ^ 1 << (input.byte() % 64),
        4 => known.wrapping_add(u64::from(input.byte()) << 32),
        5 => Ino::ROOT.get(),
        _ => known,
    })
}

fn name(input: &mut Input<'_>) -> Vec<u8> {
    const NAMES: [&[u8]; 16] = [
        b".",
        b"..",
        b"",
        b"etc",
        b"hosts",
        b"lab",
        b"a:1",
        b"a-1",
        b"b:2",
        b"python:3",
        b"python-3",
        b"\0",
        b"a/b",
        b"deep",
        b"alias",
        b"new",
    ];
    match input.below(4) {
        0 => input.chunk().to_vec(),
        1 => vec![b'x'; 200 + input.below(200)],
        _ => input.pick(&NAMES).to_vec(),
    }
}

/// Checks that an error has an errno, a message, and no internal cause.
fn checked<T>(answer: Result<T, FsError>) -> Result<T, FsError> {
    answer.inspect_err(|error| {
        assert!(error.errno().raw_os_error() > 0 && !error.to_string().is_empty());
        assert!(!matches!(error, FsError::Image(_) | FsError::Content(_) | FsError::Layer { .. }), "{error}");
    })
}

fn check_attr(fs: &ImageFs, ino: Ino) {
    if let Ok(attr) = checked(fs.getattr(ino)) {
        assert_eq!(attr.ino, ino, "the attributes have another inode number");
        assert!(attr.mode <= 0o7777 && attr.nlink > 0 && attr.mtime.nsec < 1_000_000_000);
        assert_eq!(fs.getattr(ino).unwrap(), attr, "the attributes of an inode changed");
    }
}

fn check_lookup(fs: &ImageFs, parent: Ino, name: &[u8]) {
    if let Ok(Lookup::Found(attr)) = checked(fs.lookup(parent, name)) {
        assert!(matches!(name, b"." | b"..") || fs.getattr(parent).unwrap().kind == FileKind::Directory);
        assert_eq!(fs.getattr(attr.ino).unwrap(), attr, "lookup and getattr disagree");
        assert!(!name.contains(&0) && !name.contains(&b'/') && !name.is_empty());
    }
}

fn check_listing(fs: &ImageFs, directory: Ino, input: &mut Input<'_>) {
    let list = |offset: u64, max_entries: usize| {
        let mut listed = Vec::new();
        let done = fs.readdir(directory, offset, |entry| {
            let full = listed.len() == max_entries;
            if !full {
                listed.push((entry.name.to_vec(), entry.next, entry.attr.ino, entry.attr.kind));
            }
            full
        });
        checked(done).map(|()| listed)
    };
    let Ok(all) = list(0, usize::MAX) else {
        assert!(list(input.number(), usize::MAX).is_err(), "a directory can be listed from one offset only");
        return;
    };
    let at = input.below(all.len());
    assert_eq!(list(all[at].1, usize::MAX).unwrap(), all[at + 1..], "a listing does not resume");
    let count = input.below(3);
    assert!(list(all[at].1, count).unwrap() == all[at + 1..].iter().take(count).cloned().collect::<Vec<_>>());
    let (name, _, ino, kind) = &all[at];
    let attr = lookup(fs, directory, name);
    assert_eq!((attr.ino, attr.kind), (*ino, *kind), "readdir and lookup disagree");
    for (name, ..) in list(input.number(), usize::MAX).unwrap() {
        assert!(
            all.iter().any(|(other, ..)| *other == name),
            "a listing has a name that the full listing lacks"
        );
    }
}

fn check_read(fs: &ImageFs, ino: Ino, input: &mut Input<'_>) {
    let offset = if input.one_in(3) { input.number() } else { input.below(20_000) as u64 };
    let length = if input.one_in(6) { input.u32() } else { u32::from(input.u16()) };
    let Ok(bytes) = checked(fs.read(ino, offset, length)) else { return };
    let size = fs.getattr(ino).unwrap().size;
    let expected = size.saturating_sub(offset).min(length.into());
    assert_eq!(bytes.len() as u64, expected, "read of {length} bytes at offset {offset} of {size}");
    let whole = fs.read(ino, 0, u32::MAX).unwrap();
    let start = usize::try_from(offset.min(size)).unwrap();
    assert!(whole[start..start + bytes.len()] == *bytes, "wrong bytes at offset {offset}");
    if size > 1000 {
        assert_eq!(whole.escape_ascii().to_string().replace(' ', "\\x20"), long_content());
    }
}

fn check_seek(fs: &ImageFs, ino: Ino, input: &mut Input<'_>) {
    let (offset, hole) = (input.number(), input.one_in(2));
    if let Ok(at) = checked(fs.seek(ino, offset, hole)) {
        let size = fs.getattr(ino).unwrap().size;
        assert!(
            offset <= at && (at < size || (hole && at == size)),
            "seek from {offset} returned {at} of {size}"
        );
    }
}

fn check_xattrs(fs: &ImageFs, ino: Ino, name: &[u8]) {
    let Ok(list) = checked(fs.listxattr(ino)) else { return };
    let known: Vec<&[u8]> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    known.iter().for_each(|name| drop(fs.getxattr(ino, name).unwrap()));
    assert_eq!(checked(fs.getxattr(ino, name)).is_ok(), known.contains(&name));
}
