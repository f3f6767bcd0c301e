//! Removing trees as programs leave them, on the disk and in memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rcx_imagefs::os::remove_tree;
use rustix::fs::{CWD, IFlags, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::{CapabilitySet, CapabilitySets};
use tempfile::TempDir;

use support::images::run;
use support::tmpfs::Tmpfs;

/// Directories on the disk and in memory.
fn places() -> [TempDir; 2] {
    ["/var/tmp", "/dev/shm"].map(|place| tempfile::tempdir_in(place).unwrap())
}

fn remove(dir: &Path) -> io::Result<()> {
    remove_tree(File::open(dir).unwrap().as_fd(), "tree".as_ref())
}

/// Makes a directory with something that a link could lead to.
fn keep(dir: &Path) {
    fs::create_dir(dir.join("kept")).unwrap();
    fs::write(dir.join("kept/file"), "kept").unwrap();
}

/// The tree is gone, and what [`keep`] made is not.
#[track_caller]
fn is_gone(dir: &Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
    assert_eq!(fs::read_to_string(dir.join("kept/file")).unwrap(), "kept");
}

#[test]
fn removal_deletes_the_whole_tree_but_no_link_target() {
    for place in places() {
        let dir = place.path();
        keep(dir);
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        symlink(dir.join("kept"), tree.join("link")).unwrap();
        symlink("../../kept", tree.join("a/link")).unwrap();
        fs::hard_link(dir.join("kept/file"), tree.join("hard")).unwrap();
        rustix::fs::mkfifoat(CWD, tree.join("fifo"), Mode::RWXU).unwrap();
        remove(dir).unwrap();
        is_gone(dir);
        remove(dir).unwrap();
        // The tree itself may be anything.
        symlink("kept", &tree).unwrap();
        remove(dir).unwrap();
        is_gone(dir);
    }
}

#[test]
fn immutable_and_append_only_files_are_removed() {
    // In memory, only newer kernels have them.
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = place.path();
    keep(dir);
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("immutable/append")).unwrap();
    fs::write(tree.join("immutable/append/file"), "x").unwrap();
    for (path, flags) in [
        ("immutable/append/file", IFlags::IMMUTABLE),
        ("immutable/append", IFlags::APPEND),
        ("immutable", IFlags::IMMUTABLE),
        ("", IFlags::IMMUTABLE | IFlags::APPEND),
    ] {
        rustix::fs::ioctl_setflags(File::open(tree.join(path)).unwrap(), flags).unwrap();
    }
    fs::remove_file(tree.join("immutable/append/file")).unwrap_err();
    remove(dir).unwrap();
    is_gone(dir);
}

#[test]
fn owner_without_privileges_removes_directories_it_cannot_read() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    keep(dir);
    fs::create_dir_all(dir.join("tree/a/b/c")).unwrap();
    for path in ["tree/a/b/c", "tree/a/b", "tree/a", "tree"] {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    // Capabilities are the thread's.
    thread::scope(|scope| {
        scope.spawn(|| {
            let had = rustix::thread::capabilities(None).unwrap();
            let all_ways = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            let less = CapabilitySets { effective: had.effective - all_ways, ..had };
            rustix::thread::set_capabilities(None, less).unwrap();
            remove(dir).unwrap();
        });
    });
    is_gone(dir);
}

#[test]
fn directory_chain_longer_than_path_max_is_removed() {
    for place in places() {
        let dir = place.path();
        keep(dir);
        fs::create_dir(dir.join("tree")).unwrap();
        let mut deepest: OwnedFd = File::open(dir.join("tree")).unwrap().into();
        for level in 0..5_000 {
            if level % 100 == 0 {
                // As a removal leaves it that was killed: in the way of the names that the next one gives.
                rustix::fs::mkdirat(&deepest, ".deep-0", Mode::RWXU).unwrap();
                rustix::fs::mkdirat(&deepest, ".deep-0/full", Mode::RWXU).unwrap();
                rustix::fs::symlinkat("/nowhere", &deepest, ".deep-1").unwrap();
            }
            rustix::fs::mkdirat(&deepest, "sub", Mode::RWXU).unwrap();
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            deepest = rustix::fs::openat(&deepest, "sub", flags, Mode::empty()).unwrap();
        }
        drop(deepest);
        remove(dir).unwrap();
        is_gone(dir);
    }
}

#[test]
fn directory_with_many_files_is_removed() {
    for place in places() {
        let dir = place.path();
        keep(dir);
        fs::create_dir(dir.join("tree")).unwrap();
        for number in 0..20_000 {
            File::create(dir.join(format!("tree/{number}"))).unwrap();
        }
        remove(dir).unwrap();
        is_gone(dir);
    }
}

/// Removes a tree into which four threads write until that ends, and have written a lot before: enough for them to be faster.
fn remove_while_written(dir: &Path, write: impl Fn(u64) + Sync) {
    fs::create_dir_all(dir.join("tree")).unwrap();
    (0..4_000).for_each(&write);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (end, write) = (&end, &write);
            scope.spawn(move || {
                let mut number = 4_000 + thread;
                while !end.load(Ordering::Relaxed) {
                    write(number);
                    number += 4;
                }
            });
        }
        // Whether the writers or the removal were faster is left open; that it ends is not.
        let _ = remove(dir);
        end.store(true, Ordering::Relaxed);
    });
    remove(dir).unwrap();
}

/// An ext4 of its own on a small disk.
struct Ext4(Tmpfs);

impl Ext4 {
    fn new() -> Self {
        let disk = Tmpfs::new("300M");
        let (image, dir) = (disk.path().join("image"), disk.path().join("dir"));
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        let (image, dir) = (image.to_str().unwrap(), dir.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-E", "root_owner=0:0", image]);
        run("mount", &["-o", "loop", image, dir]);
        fs::remove_dir(Path::new(dir).join("lost+found")).unwrap();
        Self(disk)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("dir")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn removal_terminates_while_programs_keep_writing() {
    // How long it may take goes by how many files there are, so these are small.
    let (memory, disk) = (Tmpfs::new("256M"), Ext4::new());
    for dir in [memory.path(), &disk.path()] {
        keep(dir);
        remove_while_written(dir, |number| {
            let _ = File::create(dir.join(format!("tree/{number}")));
        });
        remove_while_written(dir, |number| {
            let _ = fs::create_dir_all(dir.join(format!("tree/{}/a/b/{number}", number % 50)));
        });
        is_gone(dir);
    }
}

#[test]
fn removal_does_not_enter_a_mount_and_removes_the_rest() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    keep(dir);
    fs::create_dir_all(dir.join("tree/a/mount")).unwrap();
    fs::create_dir_all(dir.join("tree/b/c")).unwrap();
    let mounted = dir.join("tree/a/mount");
    rustix::mount::mount_bind(dir.join("kept"), &mounted).unwrap();
    let error = remove(dir).unwrap_err();
    let left = fs::read_dir(dir.join("tree")).unwrap().count();
    rustix::mount::unmount(&mounted, UnmountFlags::empty()).unwrap();
    assert_eq!((error.kind(), left), (io::ErrorKind::ResourceBusy, 1));
    remove(dir).unwrap();
    is_gone(dir);
}
