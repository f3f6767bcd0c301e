//! Every change fails with EROFS, unless an earlier check fails.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, IFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    UTIME_NOW, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};

use super::{MountedImage, USER, as_user, open_path};

/// An attempted change below the root of a tree.
type Attempt = fn(&Path) -> Result<()>;
/// The description, expected result and attempt of a change.
type Row = (&'static str, std::result::Result<(), Errno>, Attempt);

const EROFS: std::result::Result<(), Errno> = Err(Errno::ROFS);
const EEXIST: std::result::Result<(), Errno> = Err(Errno::EXIST);
const ENOENT: std::result::Result<(), Errno> = Err(Errno::NOENT);
const ENOTDIR: std::result::Result<(), Errno> = Err(Errno::NOTDIR);
const ELOOP: std::result::Result<(), Errno> = Err(Errno::LOOP);
const ENAMETOOLONG: std::result::Result<(), Errno> = Err(Errno::NAMETOOLONG);
const EISDIR: std::result::Result<(), Errno> = Err(Errno::ISDIR);
const EINVAL: std::result::Result<(), Errno> = Err(Errno::INVAL);
const EBADF: std::result::Result<(), Errno> = Err(Errno::BADF);
const EXDEV: std::result::Result<(), Errno> = Err(Errno::XDEV);
const ERANGE: std::result::Result<(), Errno> = Err(Errno::RANGE);

const MODE: Mode = Mode::RWXU;
const TIME: Timespec = Timespec { tv_sec: 7, tv_nsec: 7 };
const TIMES: Timestamps = Timestamps { last_access: TIME, last_modification: TIME };

fn open(path: impl AsRef<Path>, flags: OFlags) -> Result<()> {
    rustix::fs::open(path.as_ref(), flags | OFlags::CLOEXEC, MODE).map(drop)
}

fn read_only(path: impl AsRef<Path>) -> rustix::fd::OwnedFd {
    rustix::fs::open(path.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn set_xattr(path: impl AsRef<Path>, name: &str, flags: XattrFlags) -> Result<()> {
    rustix::fs::setxattr(path.as_ref(), name, b"1", flags)
}

fn long_name(length: usize) -> String {
    "x".repeat(length)
}

/// Changes of existing and of missing files.
const CHANGES: &[Row] = &[
    ("mkdir", EROFS, |r| rustix::fs::mkdir(r.join("new"), MODE)),
    ("mkdir in a subdirectory", EROFS, |r| rustix::fs::mkdir(r.join("dir/sub/new"), MODE)),
    ("mkdir with a trailing slash", EROFS, |r| rustix::fs::mkdir(r.join("new/"), MODE)),
    ("mkdir through a link", EROFS, |r| rustix::fs::mkdir(r.join("link-to-dir/new"), MODE)),
    ("mknod of a file", EROFS, |r| rustix::fs::mknodat(CWD, r.join("new"), FileType::RegularFile, MODE, 0)),
    ("mknod of a pipe", EROFS, |r| rustix::fs::mknodat(CWD, r.join("new"), FileType::Fifo, MODE, 0)),
    ("mknod of a socket", EROFS, |r| rustix::fs::mknodat(CWD, r.join("new"), FileType::Socket, MODE, 0)),
    ("mknod of a device", EROFS, |r| {
        rustix::fs::mknodat(CWD, r.join("new"), FileType::CharacterDevice, MODE, 0x103)
    }),
    ("symlink", EROFS, |r| rustix::fs::symlink("target", r.join("new"))),
    ("link", EROFS, |r| rustix::fs::link(r.join("file"), r.join("new"))),
    ("link of a directory", EROFS, |r| rustix::fs::link(r.join("dir"), r.join("new"))),
    ("link of an O_PATH descriptor", EROFS, |r| {
        rustix::fs::linkat(open_path(&r.join("file")), "", CWD, r.join("new"), AtFlags::EMPTY_PATH)
    }),
    ("rename", EROFS, |r| rustix::fs::rename(r.join("file"), r.join("new"))),
    ("rename over a file", EROFS, |r| rustix::fs::rename(r.join("file"), r.join("empty"))),
    ("rename over itself", EROFS, |r| rustix::fs::rename(r.join("file"), r.join("file"))),
    ("rename over a name of the same file", EROFS, |r| {
        rustix::fs::rename(r.join("linked"), r.join("other-name"))
    }),
    ("rename of a directory", EROFS, |r| rustix::fs::rename(r.join("dir"), r.join("new"))),
    ("rename of a directory into itself", EROFS, |r| {
        rustix::fs::rename(r.join("dir"), r.join("dir/sub/new"))
    }),
    ("rename of a missing file", EROFS, |r| rustix::fs::rename(r.join("missing"), r.join("new"))),
    ("rename with NOREPLACE", EROFS, |r| {
        rustix::fs::renameat_with(CWD, r.join("file"), CWD, r.join("new"), RenameFlags::NOREPLACE)
    }),
    ("exchange", EROFS, |r| {
        rustix::fs::renameat_with(CWD, r.join("file"), CWD, r.join("empty"), RenameFlags::EXCHANGE)
    }),
    ("rename with WHITEOUT", EROFS, |r| {
        rustix::fs::renameat_with(CWD, r.join("file"), CWD, r.join("new"), RenameFlags::WHITEOUT)
    }),
    ("unlink", EROFS, |r| rustix::fs::unlink(r.join("file"))),
    ("unlink of a link", EROFS, |r| rustix::fs::unlink(r.join("link"))),
    ("unlink of a device", EROFS, |r| rustix::fs::unlink(r.join("null"))),
    ("unlink of a directory", EROFS, |r| rustix::fs::unlink(r.join("dir"))),
    ("unlink of a missing file", EROFS, |r| rustix::fs::unlink(r.join("missing"))),
    ("rmdir", EROFS, |r| rustix::fs::rmdir(r.join("empty-dir"))),
    ("rmdir of a non-empty directory", EROFS, |r| rustix::fs::rmdir(r.join("dir"))),
    ("rmdir of a file", EROFS, |r| rustix::fs::rmdir(r.join("file"))),
    ("open for writing", EROFS, |r| open(r.join("file"), OFlags::WRONLY)),
    ("open for reading and writing", EROFS, |r| open(r.join("file"), OFlags::RDWR)),
    ("open for appending", EROFS, |r| open(r.join("file"), OFlags::WRONLY | OFlags::APPEND)),
    ("open with truncation", EROFS, |r| open(r.join("file"), OFlags::WRONLY | OFlags::TRUNC)),
    ("open for reading with truncation", EROFS, |r| open(r.join("file"), OFlags::RDONLY | OFlags::TRUNC)),
    ("open through a link for writing", EROFS, |r| open(r.join("link"), OFlags::WRONLY)),
    ("creat", EROFS, |r| open(r.join("new"), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)),
    ("creat of an existing file", EROFS, |r| {
        open(r.join("file"), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
    }),
    ("creat for reading", EROFS, |r| open(r.join("new"), OFlags::RDONLY | OFlags::CREATE)),
    ("creat with EXCL", EROFS, |r| open(r.join("new"), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
    ("creat through a dangling link", EROFS, |r| open(r.join("dangling"), OFlags::WRONLY | OFlags::CREATE)),
    ("unnamed file (O_TMPFILE)", EROFS, |r| open(r.join("dir"), OFlags::WRONLY | OFlags::TMPFILE)),
    ("chmod", EROFS, |r| rustix::fs::chmod(r.join("file"), MODE)),
    ("chmod of a directory", EROFS, |r| rustix::fs::chmod(r.join("dir"), MODE)),
    ("chmod of the root", EROFS, |r| rustix::fs::chmod(r, MODE)),
    ("chmod of a device", EROFS, |r| rustix::fs::chmod(r.join("null"), MODE)),
    ("fchmod", EROFS, |r| rustix::fs::fchmod(read_only(r.join("file")), MODE)),
    ("chown", EROFS, |r| rustix::fs::chown(r.join("file"), Some(Uid::from_raw(1)), None)),
    ("chown without IDs", EROFS, |r| rustix::fs::chown(r.join("file"), None, None)),
    ("lchown", EROFS, |r| {
        rustix::fs::chownat(CWD, r.join("link"), None, Some(Gid::from_raw(1)), AtFlags::SYMLINK_NOFOLLOW)
    }),
    ("fchown", EROFS, |r| rustix::fs::fchown(read_only(r.join("dir")), None, Some(Gid::from_raw(1)))),
    ("utimensat", EROFS, |r| rustix::fs::utimensat(CWD, r.join("file"), &TIMES, AtFlags::empty())),
    ("utimensat of a link", EROFS, |r| {
        rustix::fs::utimensat(CWD, r.join("link"), &TIMES, AtFlags::SYMLINK_NOFOLLOW)
    }),
    ("utimensat to now", EROFS, |r| {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(CWD, r.join("file"), &now, AtFlags::empty())
    }),
    ("futimens", EROFS, |r| rustix::fs::futimens(read_only(r.join("file")), &TIMES)),
    ("setxattr", EROFS, |r| set_xattr(r.join("file"), "user.new", XattrFlags::empty())),
    ("setxattr of an existing attribute", EROFS, |r| {
        set_xattr(r.join("file"), "user.one", XattrFlags::REPLACE)
    }),
    ("setxattr with CREATE of an existing attribute", EROFS, |r| {
        set_xattr(r.join("file"), "user.one", XattrFlags::CREATE)
    }),
    ("setxattr without a namespace", EROFS, |r| set_xattr(r.join("file"), "new", XattrFlags::empty())),
    ("setxattr of an ACL", EROFS, |r| {
        rustix::fs::setxattr(r.join("file"), "system.posix_acl_access", b"\x02\0\0\0", XattrFlags::empty())
    }),
    ("setxattr of a capability", EROFS, |r| {
        set_xattr(r.join("program"), "security.capability", XattrFlags::empty())
    }),
    ("lsetxattr", EROFS, |r| rustix::fs::lsetxattr(r.join("link"), "trusted.new", b"1", XattrFlags::empty())),
    ("fsetxattr", EROFS, |r| {
        rustix::fs::fsetxattr(read_only(r.join("dir")), "user.new", b"1", XattrFlags::empty())
    }),
    ("removexattr", EROFS, |r| rustix::fs::removexattr(r.join("file"), "user.one")),
    ("removexattr of a missing attribute", EROFS, |r| rustix::fs::removexattr(r.join("file"), "user.none")),
    ("lremovexattr", EROFS, |r| rustix::fs::lremovexattr(r.join("link"), "trusted.none")),
    ("fremovexattr", EROFS, |r| rustix::fs::fremovexattr(read_only(r.join("file")), "user.one")),
    ("flags of a file", EROFS, |r| rustix::fs::ioctl_setflags(read_only(r.join("file")), IFlags::IMMUTABLE)),
    ("flags of a directory", EROFS, |r| {
        rustix::fs::ioctl_setflags(read_only(r.join("dir")), IFlags::NOATIME)
    }),
];

/// Errors that come before EROFS, and calls that change nothing.
const EARLIER_ERRORS: &[Row] = &[
    ("mkdir of a directory", EEXIST, |r| rustix::fs::mkdir(r.join("dir"), MODE)),
    ("mkdir of a file", EEXIST, |r| rustix::fs::mkdir(r.join("file"), MODE)),
    ("mkdir of a dangling link", EEXIST, |r| rustix::fs::mkdir(r.join("dangling"), MODE)),
    ("mkdir of `.`", EEXIST, |r| rustix::fs::mkdir(r.join("dir/."), MODE)),
    ("mkdir of `..`", EEXIST, |r| rustix::fs::mkdir(r.join("dir/.."), MODE)),
    ("mkdir in a missing directory", ENOENT, |r| rustix::fs::mkdir(r.join("missing/new"), MODE)),
    ("mkdir through a dangling link", ENOENT, |r| rustix::fs::mkdir(r.join("dangling/new"), MODE)),
    ("mkdir in a file", ENOTDIR, |r| rustix::fs::mkdir(r.join("file/new"), MODE)),
    ("mkdir in a device", ENOTDIR, |r| rustix::fs::mkdir(r.join("null/new"), MODE)),
    ("mkdir in a loop", ELOOP, |r| rustix::fs::mkdir(r.join("loop/new"), MODE)),
    ("mkdir in a circle", ELOOP, |r| rustix::fs::mkdir(r.join("circle-a/new"), MODE)),
    ("mkdir of a long name", ENAMETOOLONG, |r| rustix::fs::mkdir(r.join(long_name(256)), MODE)),
    ("mkdir in a long name", ENAMETOOLONG, |r| rustix::fs::mkdir(r.join(long_name(256)).join("new"), MODE)),
    ("mknod of an existing name", EEXIST, |r| {
        rustix::fs::mknodat(CWD, r.join("pipe"), FileType::Fifo, MODE, 0)
    }),
    ("symlink of an existing name", EEXIST, |r| rustix::fs::symlink("target", r.join("link"))),
    ("symlink with an empty target", ENOENT, |r| rustix::fs::symlink("", r.join("new"))),
    ("symlink in a file", ENOTDIR, |r| rustix::fs::symlink("target", r.join("file/new"))),
    ("link of a missing file", ENOENT, |r| rustix::fs::link(r.join("missing"), r.join("new"))),
    ("link to an existing name", EEXIST, |r| rustix::fs::link(r.join("file"), r.join("empty"))),
    ("link to another filesystem", EXDEV, |r| rustix::fs::link(r.join("file"), "/tmp/rcx-never-made")),
    ("link from another filesystem", EROFS, |r| rustix::fs::link("/etc/passwd", r.join("new"))),
    ("rename in a missing directory", ENOENT, |r| rustix::fs::rename(r.join("missing/file"), r.join("new"))),
    ("rename into a missing directory", ENOENT, |r| {
        rustix::fs::rename(r.join("file"), r.join("missing/new"))
    }),
    ("rename into a file", ENOTDIR, |r| rustix::fs::rename(r.join("file"), r.join("empty/new"))),
    ("rename in a loop", ELOOP, |r| rustix::fs::rename(r.join("loop/file"), r.join("new"))),
    ("rename of `.`", Err(Errno::BUSY), |r| rustix::fs::rename(r.join("dir/."), r.join("new"))),
    ("rename to another filesystem", EXDEV, |r| rustix::fs::rename(r.join("file"), "/tmp/rcx-never-made")),
    ("rename with NOREPLACE and EXCHANGE", EINVAL, |r| {
        let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(CWD, r.join("file"), CWD, r.join("new"), both)
    }),
    ("unlink in a missing directory", ENOENT, |r| rustix::fs::unlink(r.join("missing/file"))),
    ("unlink in a file", ENOTDIR, |r| rustix::fs::unlink(r.join("file/file"))),
    ("unlink of `..`", EISDIR, |r| rustix::fs::unlink(r.join("dir/.."))),
    ("unlink in a loop", ELOOP, |r| rustix::fs::unlink(r.join("loop/file"))),
    ("rmdir of `.`", EINVAL, |r| rustix::fs::rmdir(r.join("empty-dir/."))),
    ("rmdir of `..`", Err(Errno::NOTEMPTY), |r| rustix::fs::rmdir(r.join("empty-dir/.."))),
    ("rmdir in a missing directory", ENOENT, |r| rustix::fs::rmdir(r.join("missing/dir"))),
    ("open of a missing file for writing", ENOENT, |r| open(r.join("missing"), OFlags::WRONLY)),
    ("open of a directory for writing", EISDIR, |r| open(r.join("dir"), OFlags::WRONLY)),
    ("creat of a directory", EISDIR, |r| open(r.join("dir"), OFlags::RDONLY | OFlags::CREATE)),
    ("creat with a trailing slash", EISDIR, |r| open(r.join("new/"), OFlags::WRONLY | OFlags::CREATE)),
    ("creat with EXCL of an existing file", EEXIST, |r| {
        open(r.join("file"), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }),
    ("creat with EXCL of a dangling link", EEXIST, |r| {
        open(r.join("dangling"), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }),
    ("creat of an existing file for reading", Ok(()), |r| {
        open(r.join("file"), OFlags::RDONLY | OFlags::CREATE)
    }),
    ("creat in a file", ENOTDIR, |r| open(r.join("file/new"), OFlags::WRONLY | OFlags::CREATE)),
    ("creat of a long name", ENAMETOOLONG, |r| open(r.join(long_name(256)), OFlags::WRONLY | OFlags::CREATE)),
    ("open of a link with NOFOLLOW", ELOOP, |r| open(r.join("link"), OFlags::WRONLY | OFlags::NOFOLLOW)),
    ("open of a loop", ELOOP, |r| open(r.join("loop"), OFlags::WRONLY | OFlags::CREATE)),
    ("open of a file as a directory", ENOTDIR, |r| open(r.join("file"), OFlags::RDONLY | OFlags::DIRECTORY)),
    ("open with a trailing slash", ENOTDIR, |r| open(r.join("file/"), OFlags::RDONLY)),
    ("unnamed file (O_TMPFILE) for reading", EINVAL, |r| {
        open(r.join("dir"), OFlags::RDONLY | OFlags::TMPFILE)
    }),
    ("unnamed file (O_TMPFILE) in a file", ENOTDIR, |r| {
        open(r.join("file"), OFlags::WRONLY | OFlags::TMPFILE)
    }),
    ("chmod of a missing file", ENOENT, |r| rustix::fs::chmod(r.join("missing"), MODE)),
    ("chmod of a dangling link", ENOENT, |r| rustix::fs::chmod(r.join("dangling"), MODE)),
    ("chmod of a loop", ELOOP, |r| rustix::fs::chmod(r.join("loop"), MODE)),
    ("chmod with a trailing slash", ENOTDIR, |r| rustix::fs::chmod(r.join("file/"), MODE)),
    ("fchmod of an O_PATH descriptor", EBADF, |r| rustix::fs::fchmod(open_path(&r.join("file")), MODE)),
    ("chown in a file", ENOTDIR, |r| rustix::fs::chown(r.join("file/x"), None, None)),
    ("utimensat of a missing file", ENOENT, |r| {
        rustix::fs::utimensat(CWD, r.join("missing"), &TIMES, AtFlags::empty())
    }),
    ("utimensat of an invalid time", EINVAL, |r| {
        let time = Timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, r.join("file"), &times, AtFlags::empty())
    }),
    ("setxattr of a missing file", ENOENT, |r| set_xattr(r.join("missing"), "user.new", XattrFlags::empty())),
    ("setxattr of a long name", ERANGE, |r| {
        set_xattr(r.join("file"), &format!("user.{}", long_name(256)), XattrFlags::empty())
    }),
    ("setxattr without a name", ERANGE, |r| set_xattr(r.join("file"), "", XattrFlags::empty())),
    ("setxattr of a long value", Err(Errno::TOOBIG), |r| {
        rustix::fs::setxattr(r.join("file"), "user.new", &[0; (64 << 10) + 1], XattrFlags::empty())
    }),
    ("removexattr of a long name", ERANGE, |r| {
        rustix::fs::removexattr(r.join("file"), &*format!("user.{}", long_name(256)))
    }),
    ("removexattr of a missing file", ENOENT, |r| rustix::fs::removexattr(r.join("missing"), "user.one")),
    // Writes to a descriptor that is open for reading only.
    ("write", EBADF, |r| rustix::io::write(read_only(r.join("file")), b"x").map(drop)),
    ("pwrite", EBADF, |r| rustix::io::pwrite(read_only(r.join("file")), b"x", 0).map(drop)),
    ("ftruncate", EINVAL, |r| rustix::fs::ftruncate(read_only(r.join("file")), 0)),
    ("fallocate", EBADF, |r| rustix::fs::fallocate(read_only(r.join("file")), FallocateFlags::empty(), 0, 1)),
    ("fallocate of a hole", EBADF, |r| {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(read_only(r.join("file")), hole, 0, 1)
    }),
    ("copy_file_range", EBADF, |r| {
        rustix::fs::copy_file_range(read_only(r.join("file")), None, read_only(r.join("empty")), None, 5)
            .map(drop)
    }),
    ("ficlone", EBADF, |r| rustix::fs::ioctl_ficlone(read_only(r.join("empty")), read_only(r.join("file")))),
    ("write to a directory", EBADF, |r| rustix::io::write(read_only(r.join("dir")), b"x").map(drop)),
    // Calls that change nothing succeed.
    ("fsync", Ok(()), |r| rustix::fs::fsync(read_only(r.join("file")))),
    ("fsync of a directory", Ok(()), |r| rustix::fs::fsync(read_only(r.join("dir")))),
    ("fdatasync", Ok(()), |r| rustix::fs::fdatasync(read_only(r.join("file")))),
    ("syncfs", Ok(()), |r| rustix::fs::syncfs(read_only(r.join("file")))),
];

#[track_caller]
fn check_rows(rows: &[Row], ours: &Path, theirs: &Path, user: &str) {
    let mut wrong = Vec::new();
    for (what, expected, attempt) in rows {
        for (filesystem, root) in [("the mount", ours), ("tmpfs", theirs)] {
            let found = attempt(root);
            if found != *expected {
                wrong.push(format!("{what} by {user} on {filesystem}: {found:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_change_fails_with_erofs_unless_an_earlier_check_fails() {
    let image = MountedImage::new();
    let before = support::trees::snapshot(&image.root);
    let disk = image.on_tmpfs();
    check_rows(CHANGES, &image.root, disk.path(), "root");
    check_rows(EARLIER_ERRORS, &image.root, disk.path(), "root");
    assert_eq!(support::trees::snapshot(&image.root), before);
    assert!(!Path::new("/tmp/rcx-never-made").exists());
    image.mount.stop();
}

/// Changes by an unprivileged user: EROFS comes before permission errors.
const BY_USER: &[Row] = &[
    ("mkdir", EROFS, |r| rustix::fs::mkdir(r.join("new"), MODE)),
    ("mkdir in a world-writable directory", EROFS, |r| rustix::fs::mkdir(r.join("sticky/new"), MODE)),
    ("chmod of another user's file", EROFS, |r| rustix::fs::chmod(r.join("file"), MODE)),
    ("chmod of an own file", EROFS, |r| rustix::fs::chmod(r.join("own"), MODE)),
    ("chown", EROFS, |r| rustix::fs::chown(r.join("file"), Some(Uid::from_raw(USER)), None)),
    ("open of another user's file for writing", EROFS, |r| open(r.join("file"), OFlags::WRONLY)),
    ("open of an unreadable file for writing", EROFS, |r| open(r.join("private"), OFlags::WRONLY)),
    ("unlink of another user's file in a sticky directory", EROFS, |r| {
        rustix::fs::unlink(r.join("sticky/file"))
    }),
    ("rename of another user's file in a sticky directory", EROFS, |r| {
        rustix::fs::rename(r.join("sticky/file"), r.join("sticky/new"))
    }),
    ("setxattr", EROFS, |r| set_xattr(r.join("own"), "user.new", XattrFlags::empty())),
    ("utimensat", EROFS, |r| rustix::fs::utimensat(CWD, r.join("own"), &TIMES, AtFlags::empty())),
    // Permission errors on the path come first.
    ("mkdir in a closed directory", Err(Errno::ACCESS), |r| rustix::fs::mkdir(r.join("closed/new"), MODE)),
    ("unlink in a closed directory", Err(Errno::ACCESS), |r| rustix::fs::unlink(r.join("closed/sub/known"))),
    ("chmod in a closed directory", Err(Errno::ACCESS), |r| rustix::fs::chmod(r.join("closed/known"), MODE)),
    ("open in a closed directory for writing", Err(Errno::ACCESS), |r| {
        open(r.join("closed/known"), OFlags::WRONLY)
    }),
];

#[test]
fn path_errors_come_before_erofs_and_erofs_before_permission_errors() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    let (ours, theirs) = (&image.root, disk.path());
    as_user(USER, &[], || check_rows(BY_USER, ours, theirs, "a user"));
    image.mount.stop();
}

#[test]
fn directories_above_the_images_are_read_only_too() {
    let image = MountedImage::new();
    let names = image.mount.path("lab");
    for directory in [image.mount.dir(), &names] {
        for (what, changed) in [
            ("mkdir", rustix::fs::mkdir(directory.join("new"), MODE)),
            ("creat", open(directory.join("new"), OFlags::WRONLY | OFlags::CREATE)),
            ("chmod", rustix::fs::chmod(directory, MODE)),
            ("setxattr", set_xattr(directory, "user.new", XattrFlags::empty())),
            ("unlink of a tag", rustix::fs::unlink(names.join("text:posix"))),
            ("rename of a tag", rustix::fs::rename(names.join("text:posix"), names.join("text:other"))),
            ("rename of an image", rustix::fs::rename(&image.root, names.join("new"))),
            ("rmdir of an image", rustix::fs::rmdir(&image.root)),
        ] {
            assert_eq!(changed, EROFS, "{what} in {}", directory.display());
        }
    }
    image.mount.stop();
}

#[test]
fn bind_mount_without_the_read_only_flag_is_still_read_only() {
    let image = MountedImage::new();
    let root = image.root.to_str().unwrap();
    let script = "mount --make-rprivate / && mount --bind \"$0\" /mnt && mount -o remount,bind,rw /mnt || exit 9
        touch /mnt/new; echo x >/mnt/file; rm /mnt/file; chmod 0 /mnt/file; ln /mnt/file /mnt/new; mkdir /mnt/new
        setfattr -n user.new -v x /mnt/file; cat /mnt/file";
    let output = Command::new("unshare").args(["--mount", "sh", "-c", script, root]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((&*out, output.status.code()), ("hello", Some(0)), "{err}");
    assert_eq!(err.matches("Read-only file system").count(), 7, "{err}");
    assert_eq!(io::read_to_string(File::open(image.path("file")).unwrap()).unwrap(), "hello");
    image.mount.stop();
}

#[test]
fn remounting_read_write_fails_or_still_refuses_writes() {
    let image = MountedImage::new();
    let before = support::trees::snapshot(&image.root);
    let remounted = Command::new("mount").args(["-o", "remount,rw"]).arg(image.mount.dir()).output().unwrap();
    let (mut wrong, mut opened) = (Vec::new(), 0);
    for (what, _, attempt) in CHANGES {
        // An open for writing may succeed, because the kernel does not ask the daemon. The write below must fail.
        match attempt(&image.root) {
            Ok(()) if what.starts_with("open") => opened += 1,
            // POSIX: these renames do nothing.
            Ok(()) if ["rename over itself", "rename over a name of the same file"].contains(what) => {}
            Ok(()) => wrong.push(*what),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} succeeded after {remounted:?}");
    if opened > 0 {
        let file = File::options().write(true).open(image.path("file")).unwrap();
        let refused = rustix::io::write(&file, b"other").and_then(|_| rustix::fs::fsync(&file));
        assert_eq!(refused, EROFS);
    }
    assert_eq!(support::trees::snapshot(&image.root), before);
}
