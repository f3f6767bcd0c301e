//! Extended attributes, statfs, statx, locks, inotify, file handles and descriptor flags.

use std::ffi::CString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, IFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags, inotify,
};
use rustix::io::Errno;

use super::{BIG_LENGTH, MountedImage, USER, as_user, open_path};

fn get(path: &Path, name: &str, capacity: usize) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; capacity];
    let length = rustix::fs::getxattr(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn names(path: &Path, capacity: usize) -> rustix::io::Result<Vec<String>> {
    let mut list = vec![0; capacity];
    let length = rustix::fs::listxattr(path, &mut list)?;
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    Ok(names)
}

#[test]
fn extended_attributes_report_their_length_and_erange_for_small_buffers() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        let file = root.join("file");
        for (name, value) in [("user.one", "1"), ("user.two", "22"), ("trusted.three", "333")] {
            assert_eq!(rustix::fs::getxattr_query(&file, name), Ok(value.len()));
            assert_eq!(get(&file, name, value.len()).unwrap(), value.as_bytes());
            assert_eq!(get(&file, name, 100).unwrap(), value.as_bytes());
            // A buffer of length 0 asks for the length. A shorter buffer is an error.
            if value.len() > 1 {
                assert_eq!(get(&file, name, value.len() - 1), Err(Errno::RANGE));
            }
            assert_eq!(get(&root.join("link"), name, 100).unwrap(), value.as_bytes(), "through a link");
        }
        let all = ["trusted.three", "user.one", "user.two"];
        let length = all.iter().map(|name| name.len() + 1).sum();
        assert_eq!(rustix::fs::listxattr_query(&file), Ok(length), "{}", root.display());
        assert_eq!(names(&file, length).unwrap(), all);
        assert_eq!(names(&file, length - 1), Err(Errno::RANGE));
        assert_eq!(names(&root.join("link"), 100).unwrap(), all, "through a link");
        for (path, name, errno) in [
            ("file", "user.none", Errno::NODATA),
            ("file", "trusted.none", Errno::NODATA),
            ("file", "security.capability", Errno::NODATA),
            ("empty", "user.one", Errno::NODATA),
            ("dir", "user.one", Errno::NODATA),
            ("missing", "user.one", Errno::NOENT),
            ("file/x", "user.one", Errno::NOTDIR),
            ("loop", "user.one", Errno::LOOP),
        ] {
            assert_eq!(
                get(&root.join(path), name, 100),
                Err(errno),
                "{name} of {path} in {}",
                root.display()
            );
        }
        assert_eq!(get(&file, &format!("user.{}", "x".repeat(251)), 100), Err(Errno::RANGE));
        assert_eq!(rustix::fs::listxattr_query(root.join("empty")), Ok(0));
        assert_eq!(rustix::fs::llistxattr_query(root.join("link")), Ok(0));
        assert_eq!(rustix::fs::lgetxattr_query(root.join("link"), "trusted.none"), Err(Errno::NODATA));
    }
    image.mount.stop();
}

#[test]
fn trusted_attributes_are_hidden_from_unprivileged_users() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        let file = root.join("file");
        as_user(USER, &[], || {
            assert_eq!(get(&file, "trusted.three", 100), Err(Errno::NODATA), "{}", root.display());
            assert_eq!(get(&file, "user.one", 100).unwrap(), b"1");
            assert_eq!(names(&file, 100).unwrap(), ["user.one", "user.two"], "{}", root.display());
            assert_eq!(rustix::fs::listxattr_query(&file), Ok(18), "{}", root.display());
            assert_eq!(get(&root.join("private"), "user.one", 100), Err(Errno::ACCESS));
        });
        assert_eq!(names(&file, 100).unwrap().len(), 3);
    }
    image.mount.stop();
}

#[test]
fn statfs_reports_a_full_read_only_filesystem() {
    let image = MountedImage::new();
    // statfs counts only images that have been opened.
    fs::metadata(image.path("file")).unwrap();
    let stats = rustix::fs::statvfs(&image.root).unwrap();
    assert_eq!((stats.f_bfree, stats.f_bavail, stats.f_ffree, stats.f_favail), (0, 0, 0, 0));
    assert!(stats.f_blocks * stats.f_frsize >= BIG_LENGTH as u64);
    assert!(stats.f_files > 50);
    assert_eq!((stats.f_namemax, stats.f_bsize, stats.f_frsize), (255, 4096, 4096));
    let flags = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    assert!(stats.f_flag.contains(flags), "{:?}", stats.f_flag);
    // FUSE_SUPER_MAGIC (linux/magic.h).
    assert_eq!(rustix::fs::statfs(&image.root).unwrap().f_type, 0x6573_5546);
    for path in ["file", "dir", "link", "null", "pipe", "closed/known"] {
        let other = rustix::fs::statvfs(image.path(path)).unwrap();
        assert_eq!(
            (other.f_blocks, other.f_files, other.f_fsid),
            (stats.f_blocks, stats.f_files, stats.f_fsid),
            "{path}"
        );
    }
    image.mount.stop();
}

#[test]
fn statx_reports_size_mode_times_and_device_numbers() {
    let image = MountedImage::new();
    let file = rustix::fs::statx(CWD, image.path("file"), AtFlags::empty(), StatxFlags::BASIC_STATS).unwrap();
    assert!(StatxFlags::from_bits_retain(file.stx_mask).contains(StatxFlags::BASIC_STATS));
    assert_eq!((file.stx_size, file.stx_nlink, file.stx_blksize, file.stx_mode), (5, 1, 4096, 0o100_644));
    assert_eq!((file.stx_mtime.tv_sec, file.stx_mtime.tv_nsec), (1_234_567_890, 123_456_789));
    let directory = fs::metadata(image.path("dir")).unwrap();
    assert_eq!((directory.size(), directory.mtime(), directory.mtime_nsec()), (4096, 5, 6));
    assert_eq!(fs::symlink_metadata(image.path("link")).unwrap().size(), 4);
    let device = fs::symlink_metadata(image.path("null")).unwrap();
    assert_eq!(
        (rustix::fs::major(device.rdev()), rustix::fs::minor(device.rdev()), device.size()),
        (1, 3, 0)
    );
    // Holes occupy no blocks.
    assert!(fs::metadata(image.path("holes")).unwrap().blocks() <= 16);
    // A read does not change the atime.
    let before = fs::metadata(image.path("file")).unwrap();
    fs::read(image.path("file")).unwrap();
    let after = fs::metadata(image.path("file")).unwrap();
    assert_eq!((before.atime(), before.atime_nsec()), (after.atime(), after.atime_nsec()));
    // The `chattr` flags are not supported, as on many filesystems.
    let flags = rustix::fs::ioctl_getflags(File::open(image.path("file")).unwrap());
    assert!(matches!(flags, Err(Errno::NOTTY)) || flags == Ok(IFlags::empty()), "{flags:?}");
    image.mount.stop();
}

#[test]
fn locks_exclude_other_open_file_descriptions() {
    let image = MountedImage::new();
    let open = || File::open(image.path("file")).unwrap();
    let (one, other) = (open(), open());
    let lock = |file: &File, operation| rustix::fs::flock(file, operation);
    lock(&one, FlockOperation::NonBlockingLockShared).unwrap();
    lock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(lock(&one, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    lock(&other, FlockOperation::Unlock).unwrap();
    lock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(lock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    drop(one);
    lock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    // A directory can be locked too.
    lock(&File::open(image.path("dir")).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
    // A POSIX lock on a read-only descriptor can only be shared.
    rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::BADF));
    rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingUnlock).unwrap();
}

#[test]
fn inotify_reports_opens_and_reads_of_files_and_directories() {
    let image = MountedImage::new();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    let mask = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
    let file = inotify::add_watch(&watch, image.path("file"), mask).unwrap();
    inotify::add_watch(&watch, image.path("dir"), mask).unwrap();
    assert_eq!(inotify::add_watch(&watch, image.path("missing"), mask), Err(Errno::NOENT));
    fs::read(image.path("file")).unwrap();
    fs::read(image.path("dir/inner")).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let (mut of_file, mut of_inner) = (Vec::new(), Vec::new());
    while let Ok(event) = events.next() {
        match event.file_name() {
            Some(name) => of_inner.push((name.to_str().unwrap().to_owned(), event.events())),
            None if event.wd() == file => of_file.push(event.events()),
            None => {}
        }
    }
    assert!(
        of_file.contains(&inotify::ReadFlags::OPEN) && of_file.contains(&inotify::ReadFlags::ACCESS),
        "{of_file:?}"
    );
    assert!(of_inner.contains(&("inner".to_owned(), inotify::ReadFlags::ACCESS)), "{of_inner:?}");
    image.mount.stop();
}

/// A file handle in the layout of the kernel (name_to_handle_at(2)).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; 128],
}

#[expect(unsafe_code, reason = "rustix has no handles")]
fn handle_of(path: &Path) -> std::io::Result<()> {
    let mut handle = Handle { bytes: 128, kind: 0, id: [0; 128] };
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut mount = 0;
    // SAFETY: `handle` has the layout of `struct file_handle` and space for `bytes` bytes; the path ends with a NUL.
    let done = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &raw mut mount, 0)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// With file handles, overlayfs would use them for the files of a root, which fails when its caches are dropped.
#[test]
fn files_have_no_handles() {
    let image = MountedImage::new();
    for path in ["file", "dir", "dir/inner"] {
        let refused = handle_of(&image.path(path)).unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::OPNOTSUPP), "{path}");
    }
    image.mount.stop();
}

#[test]
fn o_path_descriptors_refuse_reads_and_noatime_needs_ownership() {
    let image = MountedImage::new();
    let root = &image.root;
    let open = |path: &str, flags| rustix::fs::open(root.join(path), flags | OFlags::CLOEXEC, Mode::empty());
    for path in ["file", "link", "dir", "null", "pipe", "closed"] {
        let path_only = open(path, OFlags::PATH | OFlags::NOFOLLOW).unwrap();
        assert_eq!(
            rustix::fs::fstat(&path_only).unwrap().st_ino,
            fs::symlink_metadata(image.path(path)).unwrap().ino()
        );
        assert_eq!(rustix::io::read(&path_only, &mut [0; 1]).err(), Some(Errno::BADF), "{path}");
        assert_eq!(rustix::fs::flock(&path_only, FlockOperation::LockShared), Err(Errno::BADF), "{path}");
    }
    let link = open("link", OFlags::PATH | OFlags::NOFOLLOW).unwrap();
    assert_eq!(rustix::fs::readlinkat(&link, "", []).unwrap().to_str().unwrap(), "file");
    // A reopen through `/proc/self/fd` opens the file for reading, unless the descriptor is closed.
    let again = format!("/proc/self/fd/{}", open_path(&image.path("file")).as_raw_fd());
    assert_eq!(
        rustix::fs::open(&again, OFlags::RDONLY, Mode::empty()).err(),
        Some(Errno::NOENT),
        "the descriptor is closed"
    );
    let path_only = open_path(&image.path("file"));
    assert_eq!(fs::read_to_string(format!("/proc/self/fd/{}", path_only.as_raw_fd())).unwrap(), "hello");
    // `O_NOATIME` is allowed only for the owner and root.
    assert!(open("file", OFlags::RDONLY | OFlags::NOATIME).is_ok());
    as_user(USER, &[], || {
        assert_eq!(open("file", OFlags::RDONLY | OFlags::NOATIME).err(), Some(Errno::PERM));
        assert!(open("own", OFlags::RDONLY | OFlags::NOATIME).is_ok());
    });
}
