//! Copy-up: files of an image that are changed in a root keep all other attributes and content, with every engine.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use memmap2::Mmap;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};

use super::over::{OK, Roots, Step, assert_content, write};
use support::blob::Blob;
use support::layers::{EntryKind, Line, tar};
use support::text;

const LARGE: usize = 64 << 20;
const PAGE: usize = 4096;

/// Content that differs from page to page and compresses well.
fn large_content() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LARGE);
    for page in 1..=LARGE / PAGE {
        bytes.resize(page * PAGE, u8::try_from(page % 251).unwrap());
    }
    bytes
}

/// A layer with a file of 64 MiB, and a layer with a sparse file of the same length and three pages of data.
fn large_files() -> Vec<Blob> {
    let large = Line::new(b"large", EntryKind::File(large_content()));
    let tar = tar(&[large]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).unwrap();
    let large = text::blob(gzip.finish().unwrap(), Some(&tar), "application/vnd.oci.image.layer.v1.tar+gzip");
    let data = "x".repeat(3 * 4096);
    let map = "map=4096:4096,33554432:4096,67104768:4096 realsize=67108864";
    let sparse = text::layers(&format!("m S sparse format=gnu {map} data={data}"));
    [vec![large], sparse].concat()
}

fn io<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

/// Asserts the mode, owner, group and mtime of a file.
fn assert_attributes(path: &Path, mode: u32, uid: u32, gid: u32, mtime: i64) -> Result<()> {
    let meta = io(fs::symlink_metadata(path))?;
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()),
        (mode, uid, gid, mtime),
        "{}",
        path.display()
    );
    Ok(())
}

const ATTRIBUTES: &[Step] = &[
    ("chmod", OK, |r| {
        rustix::fs::chmod(r.join("file"), Mode::from_raw_mode(0o600)).and(assert_attributes(
            &r.join("file"),
            0o600,
            0,
            0,
            0,
        ))
    }),
    ("chmod keeps the content", OK, |r| assert_content(&r.join("file"), "hello")),
    ("chmod keeps the extended attributes", OK, |r| {
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(r.join("file"), "user.one", &mut value)?, 1);
        assert_eq!(rustix::fs::getxattr(r.join("file"), "trusted.two", &mut value)?, 1);
        Ok(())
    }),
    ("chown", OK, |r| {
        rustix::fs::chown(r.join("replaced"), Some(Uid::from_raw(9)), Some(Gid::from_raw(8)))?;
        assert_attributes(&r.join("replaced"), 0o640, 9, 8, 0)
    }),
    ("chown of a set-uid program clears the bit", OK, |r| {
        rustix::fs::chown(r.join("program"), Some(Uid::from_raw(9)), None)?;
        assert_attributes(&r.join("program"), 0o755, 9, 0, 0)
    }),
    ("lchown", OK, |r| {
        rustix::fs::chownat(CWD, r.join("link"), Some(Uid::from_raw(9)), None, AtFlags::SYMLINK_NOFOLLOW)?;
        assert_attributes(&r.join("link"), 0o777, 9, 0, 0).and(assert_attributes(
            &r.join("file"),
            0o600,
            0,
            0,
            0,
        ))
    }),
    ("chmod of a directory merged from two layers", OK, |r| {
        rustix::fs::chmod(r.join("dir"), Mode::from_raw_mode(0o1770))?;
        assert_attributes(&r.join("dir"), 0o1770, 0, 0, 7).and(assert_content(&r.join("dir/a"), "a"))
    }),
    ("chmod of the root", OK, |r| rustix::fs::chmod(r, Mode::from_raw_mode(0o711))),
    ("chmod of a device and a pipe", OK, |r| {
        rustix::fs::chmod(r.join("null"), Mode::from_raw_mode(0o600))?;
        rustix::fs::chmod(r.join("pipe"), Mode::from_raw_mode(0o600))
    }),
    ("utimensat of the mtime only", OK, |r| {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: omit, last_modification: Timespec { tv_sec: -5, tv_nsec: 7 } };
        rustix::fs::utimensat(CWD, r.join("other"), &times, AtFlags::empty())?;
        assert_attributes(&r.join("other"), 0o644, 0, 0, -5)
    }),
    ("setxattr", OK, |r| rustix::fs::setxattr(r.join("again"), "user.new", b"new", XattrFlags::CREATE)),
    ("setxattr with CREATE of an attribute of the image", Err(Errno::EXIST), |r| {
        rustix::fs::setxattr(r.join("file"), "user.one", b"new", XattrFlags::CREATE)
    }),
    ("setxattr with REPLACE of an attribute of the image", OK, |r| {
        rustix::fs::setxattr(r.join("file"), "user.one", b"new", XattrFlags::REPLACE)
    }),
    ("removexattr of an attribute of the image", OK, |r| {
        rustix::fs::removexattr(r.join("file"), "trusted.two")
    }),
    ("removexattr of a missing attribute", Err(Errno::NODATA), |r| {
        rustix::fs::removexattr(r.join("removed"), "user.none")
    }),
    ("setxattr of a directory and a link", OK, |r| {
        rustix::fs::setxattr(r.join("single"), "user.new", b"new", XattrFlags::empty())?;
        rustix::fs::lsetxattr(r.join("link"), "trusted.new", b"new", XattrFlags::empty())
    }),
    ("user attributes on links are refused", Err(Errno::PERM), |r| {
        rustix::fs::lsetxattr(r.join("link"), "user.new", b"new", XattrFlags::empty())
    }),
];

#[test]
fn changing_one_attribute_in_a_root_keeps_all_others() {
    let roots = Roots::new(Vec::new());
    roots.apply(ATTRIBUTES);
    roots.assert_equal();
}

const CONTENT: &[Step] = &[
    ("append", OK, |r| {
        io(File::options()
            .append(true)
            .open(r.join("file"))
            .and_then(|mut file| file.write_all(b", world")))?;
        assert_content(&r.join("file"), "hello, world")
    }),
    ("truncate", OK, |r| {
        rustix::fs::ftruncate(open(&r.join("other"), OFlags::WRONLY)?, 2)?;
        assert_content(&r.join("other"), "ot")
    }),
    ("open with truncation", OK, |r| {
        open(&r.join("replaced"), OFlags::WRONLY | OFlags::TRUNC)
            .map(drop)
            .and(assert_content(&r.join("replaced"), ""))
    }),
    ("mode and owner are kept", OK, |r| {
        let meta = io(fs::metadata(r.join("replaced")))?;
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o640, 5));
        Ok(())
    }),
    ("write through a link", OK, |r| {
        write(&r.join("link"), "by the link").and(assert_content(&r.join("file"), "by the link"))
    }),
    ("fallocate", OK, |r| {
        rustix::fs::fallocate(open(&r.join("again"), OFlags::WRONLY)?, FallocateFlags::empty(), 0, 10)?;
        assert_content(&r.join("again"), "first\0\0\0\0\0")
    }),
    ("open for writing without a write keeps the content", OK, |r| {
        open(&r.join("removed"), OFlags::RDWR).map(drop).and(assert_content(&r.join("removed"), "removed"))
    }),
    ("a rewritten program runs", OK, |r| {
        io(fs::write(r.join("program"), "#!/bin/sh\necho other\n"))?;
        io(fs::set_permissions(r.join("program"), fs::Permissions::from_mode(0o755)))?;
        assert_eq!(io(Command::new(r.join("program")).output())?.stdout, b"other\n");
        Ok(())
    }),
    ("a descriptor opened before the write reads the new content", OK, |r| {
        let before = open(&r.join("dir/a"), OFlags::RDONLY)?;
        write(&r.join("dir/a"), "new")?;
        let mut bytes = [0; 8];
        let length = io(before.read_at(&mut bytes, 0))?;
        assert_eq!(&bytes[..length], b"new");
        assert_content(&r.join("dir/a"), "new")
    }),
    ("a mapping made before the write shows the old content", OK, |r| {
        let before = open(&r.join("dir/c"), OFlags::RDONLY)?;
        #[expect(unsafe_code, reason = "mapping a file")]
        // overlayfs: a mapping keeps showing the lower file (kernel documentation, "Non-standard behavior").
        // SAFETY: the mapped file is that of the image, which cannot change. The test checks this.
        let mapped = unsafe { io(Mmap::map(&before))? };
        assert_eq!(&mapped[..], b"c");
        write(&r.join("dir/c"), "C")?;
        assert_eq!(&mapped[..], b"c");
        assert_content(&r.join("dir/c"), "C")
    }),
    ("a write to one of several hard links changes only that name", OK, |r| {
        io(File::options()
            .append(true)
            .open(r.join("linked"))
            .and_then(|mut file| file.write_all(b" and two")))?;
        // overlayfs without an index breaks hard links of lower files (the same section).
        assert_content(&r.join("linked"), "one and two").and(assert_content(&r.join("linked-2"), "one"))
    }),
    ("a new hard link to one of several hard links", OK, |r| {
        rustix::fs::link(r.join("linked-3"), r.join("linked-4"))?;
        let (three, four) = (io(fs::metadata(r.join("linked-3")))?, io(fs::metadata(r.join("linked-4")))?);
        assert_eq!((three.ino(), three.nlink()), (four.ino(), four.nlink()));
        assert_content(&r.join("linked-4"), "one")
    }),
    ("a write through one name is visible through the other", OK, |r| {
        write(&r.join("linked-4"), "four").and(assert_content(&r.join("linked-3"), "four"))
    }),
    ("a new hard link to a file with one name", OK, |r| {
        rustix::fs::link(r.join("single/a"), r.join("single/b"))?;
        assert_eq!(io(fs::metadata(r.join("single/a")))?.nlink(), 2);
        write(&r.join("single/b"), "both").and(assert_content(&r.join("single/a"), "both"))
    }),
    ("a link is replaced by another link", OK, |r| {
        io(symlink("other", r.join("spare"))).and(rustix::fs::rename(r.join("spare"), r.join("link")))
    }),
    ("the new link resolves to its target", OK, |r| assert_content(&r.join("link"), "ot")),
];

#[test]
fn content_changes_affect_only_the_root() {
    let roots = Roots::new(Vec::new());
    roots.apply(CONTENT);
    roots.assert_equal();
}

/// Changes one byte in the middle of the 64 MiB file and checks all of them.
fn change_large(root: &Path) -> Result<()> {
    let file = open(&root.join("large"), OFlags::RDWR)?;
    io(file.write_all_at(b"!", (LARGE / 2) as u64 + 5))?;
    let bytes = io(fs::read(root.join("large")))?;
    let mut expected = large_content();
    expected[LARGE / 2 + 5] = b'!';
    assert!(bytes == expected, "{} bytes, the first difference at {:?}", bytes.len(), {
        (0..LARGE.min(bytes.len())).find(|at| bytes[*at] != expected[*at])
    });
    Ok(())
}

/// Changes one byte of the sparse file and checks its content and its holes.
fn change_sparse(root: &Path) -> Result<()> {
    let path = root.join("sparse");
    let file = open(&path, OFlags::RDWR)?;
    io(file.write_all_at(b"!", 20 << 20))?;
    rustix::fs::fsync(&file)?;
    let bytes = io(fs::read(&path))?;
    let mut expected = vec![0; LARGE];
    for at in [PAGE, LARGE / 2, LARGE - PAGE] {
        expected[at..at + PAGE].fill(b'x');
    }
    expected[20 << 20] = b'!';
    assert!(bytes == expected, "the content differs ({} bytes)", bytes.len());
    // The copy-up does not fill the holes.
    let blocks = io(fs::metadata(&path))?.blocks();
    assert!(blocks * 512 < 8 << 20, "{blocks} blocks of {}", path.display());
    Ok(())
}

const LARGE_FILES: &[Step] = &[
    ("one byte of 64 MiB", OK, change_large),
    ("one byte of a sparse file", OK, change_sparse),
    ("a hole punched into a file without holes", OK, |r| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let file = open(&r.join("large"), OFlags::RDWR)?;
        rustix::fs::fallocate(&file, flags, 1 << 20, 1 << 20)?;
        let mut byte = [9];
        assert_eq!((io(file.read_at(&mut byte, (1 << 20) + 5))?, byte), (1, [0]));
        Ok(())
    }),
];

#[test]
fn copy_up_of_large_and_sparse_files_is_complete_and_keeps_holes() {
    let roots = Roots::new(large_files());
    roots.apply(LARGE_FILES);
    roots.assert_equal();
}
