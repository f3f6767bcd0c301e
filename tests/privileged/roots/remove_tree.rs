//! `os::remove_tree` removes whatever trees programs leave, on disk and on tmpfs.

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

/// Temporary directories on disk and on tmpfs.
fn temp_dirs() -> [TempDir; 2] {
    ["/var/tmp", "/dev/shm"].map(|parent| tempfile::tempdir_in(parent).unwrap())
}

fn remove(dir: &Path) -> io::Result<()> {
    remove_tree(File::open(dir).unwrap().as_fd(), "tree".as_ref())
}

/// Makes the directory `kept`, which links in the tree point to and which must survive.
fn make_link_target(dir: &Path) {
    fs::create_dir(dir.join("kept")).unwrap();
    fs::write(dir.join("kept/file"), "kept").unwrap();
}

/// Asserts that the tree is removed and the target of its links is not.
#[track_caller]
fn assert_removed(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kept"]);
    assert_eq!(fs::read_to_string(dir.join("kept/file")).unwrap(), "kept");
}

#[test]
fn removal_deletes_the_whole_tree_but_no_link_target() {
    for temp_dir in temp_dirs() {
        let dir = temp_dir.path();
        make_link_target(dir);
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        symlink(dir.join("kept"), tree.join("link")).unwrap();
        symlink("../../kept", tree.join("a/link")).unwrap();
        fs::hard_link(dir.join("kept/file"), tree.join("hard")).unwrap();
        rustix::fs::mkfifoat(CWD, tree.join("fifo"), Mode::RWXU).unwrap();
        remove(dir).unwrap();
        assert_removed(dir);
        remove(dir).unwrap();
        // The path to remove may also be a link.
        symlink("kept", &tree).unwrap();
        remove(dir).unwrap();
        assert_removed(dir);
    }
}

#[test]
fn immutable_and_append_only_files_are_removed() {
    // Not on tmpfs: older kernels do not support these flags there.
    let temp_dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = temp_dir.path();
    make_link_target(dir);
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
    assert_removed(dir);
}

#[test]
fn failed_removal_does_not_change_the_directory_above_the_tree() {
    let temp_dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = temp_dir.path();
    fs::create_dir(dir.join("tree")).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o751)).unwrap();
    let above = File::open(dir).unwrap();
    let flags = rustix::fs::ioctl_getflags(&above).unwrap();
    for flag in [IFlags::IMMUTABLE, IFlags::APPEND] {
        rustix::fs::ioctl_setflags(&above, flags | flag).unwrap();
        let error = remove(dir).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(rustix::fs::ioctl_getflags(&above).unwrap(), flags | flag);
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o751);
        assert!(dir.join("tree").exists());
    }
    rustix::fs::ioctl_setflags(&above, flags).unwrap();
    remove(dir).unwrap();
    assert!(!dir.join("tree").exists());
}

#[test]
fn owner_without_privileges_removes_directories_it_cannot_read() {
    let temp_dir = tempfile::tempdir().unwrap();
    let dir = temp_dir.path();
    make_link_target(dir);
    fs::create_dir_all(dir.join("tree/a/b/c")).unwrap();
    for path in ["tree/a/b/c", "tree/a/b", "tree/a", "tree"] {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    // Capabilities belong to the thread.
    thread::scope(|scope| {
        scope.spawn(|| {
            let original = rustix::thread::capabilities(None).unwrap();
            let dac = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            let reduced = CapabilitySets { effective: original.effective - dac, ..original };
            rustix::thread::set_capabilities(None, reduced).unwrap();
            remove(dir).unwrap();
        });
    });
    assert_removed(dir);
}

#[test]
fn directory_chain_longer_than_path_max_is_removed() {
    for temp_dir in temp_dirs() {
        let dir = temp_dir.path();
        make_link_target(dir);
        fs::create_dir(dir.join("tree")).unwrap();
        let mut deepest: OwnedFd = File::open(dir.join("tree")).unwrap().into();
        for level in 0..5_000 {
            if level % 100 == 0 {
                // Leftovers of a killed removal occupy the names that the next removal would use.
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
        assert_removed(dir);
    }
}

#[test]
fn directory_with_many_files_is_removed() {
    for temp_dir in temp_dirs() {
        let dir = temp_dir.path();
        make_link_target(dir);
        fs::create_dir(dir.join("tree")).unwrap();
        for number in 0..20_000 {
            File::create(dir.join(format!("tree/{number}"))).unwrap();
        }
        remove(dir).unwrap();
        assert_removed(dir);
    }
}

/// Removes a tree with 4,000 entries while four threads keep writing into it.
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
        // The removal may fail because of the writers, but it must terminate.
        let _ = remove(dir);
        end.store(true, Ordering::Relaxed);
    });
    remove(dir).unwrap();
}

/// A private ext4 filesystem on a loop device.
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
    // The time limit depends on the number of files, so the filesystems are small.
    let (memory, disk) = (Tmpfs::new("256M"), Ext4::new());
    for dir in [memory.path(), &disk.path()] {
        make_link_target(dir);
        remove_while_written(dir, |number| {
            let _ = File::create(dir.join(format!("tree/{number}")));
        });
        remove_while_written(dir, |number| {
            let _ = fs::create_dir_all(dir.join(format!("tree/{}/a/b/{number}", number % 50)));
        });
        assert_removed(dir);
    }
}

#[test]
fn removal_does_not_enter_a_mount_and_removes_the_rest() {
    let temp_dir = tempfile::tempdir().unwrap();
    let dir = temp_dir.path();
    make_link_target(dir);
    fs::create_dir_all(dir.join("tree/a/mount")).unwrap();
    fs::create_dir_all(dir.join("tree/b/c")).unwrap();
    let mounted = dir.join("tree/a/mount");
    rustix::mount::mount_bind(dir.join("kept"), &mounted).unwrap();
    let error = remove(dir).unwrap_err();
    let remaining = fs::read_dir(dir.join("tree")).unwrap().count();
    rustix::mount::unmount(&mounted, UnmountFlags::empty()).unwrap();
    assert_eq!((error.kind(), remaining), (io::ErrorKind::ResourceBusy, 1));
    remove(dir).unwrap();
    assert_removed(dir);
}
