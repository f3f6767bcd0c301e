//! Plain copies equal those of `umoci unpack`, are complete or absent, and write nowhere else.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::child::wait_until;
use support::fixture::Fixture;
use support::images::{Images, run};
use support::program::Program;
use support::tmpfs::Tmpfs;
use support::trees;

fn unpack(program: &Program, image: &str, to: &Path) {
    let printed = program.ok(&["unpack", "--preserve-setuid", image, to.to_str().unwrap()]);
    assert_eq!(Path::new(&printed), to);
}

/// The partial copies beside `path`.
fn partial_copies(path: &Path) -> Vec<PathBuf> {
    let siblings = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    siblings.filter(|path| path.to_string_lossy().contains("rcx-imagefs-partial")).collect()
}

#[track_caller]
fn assert_copy_equals_umoci(image: &str) {
    let fixture = Fixture::new(&[image]);
    let (program, name) = (&fixture.program, fixture.pull(image));
    let copy = program.dir().join("copy");
    unpack(program, &name, &copy);
    trees::assert_equal(&copy, &Images::make(&["unpacked-app"]).unpacked("app"), 8_000);
    assert_eq!(partial_copies(&copy), Vec::<PathBuf>::new());
}

#[test]
fn unpacked_gzip_image_equals_umoci_unpack() {
    assert_copy_equals_umoci("app");
}

#[test]
fn unpacked_image_of_many_members_and_frames_equals_umoci_unpack() {
    assert_copy_equals_umoci("app-members");
}

#[test]
fn unpacked_sparse_files_stay_sparse() {
    let fixture = Fixture::new(&["sparse"]);
    let (program, name) = (&fixture.program, fixture.pull("sparse"));
    let copy = program.dir().join("copy");
    unpack(program, &name, &copy);
    for form in ["gnu", "0.0", "0.1", "1.0"] {
        trees::assert_same_content(&copy.join(form), &copy.join("plain"));
        let (sparse, plain) = (copy.join(form).join("many"), copy.join("plain/many"));
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
        assert!(blocks(&sparse) * 2 < blocks(&plain), "{form}: {} blocks", blocks(&sparse));
    }
}

#[test]
fn unpack_accepts_an_empty_directory_and_refuses_any_other_existing_target() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    let at = |name: &str| program.dir().join(name);
    fs::create_dir(at("empty")).unwrap();
    unpack(program, &name, &at("empty"));
    assert_eq!(fs::read_to_string(at("empty/etc/motd")).unwrap(), "a small image\n");

    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/mine"), "mine").unwrap();
    fs::write(at("file"), "mine").unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    for (target, reason) in [
        ("empty", "is not empty"),
        ("full", "is not empty"),
        ("file", "is not a directory"),
        ("file/below", "is not a directory"),
        ("no/such/place", "does not exist"),
        ("dangling", "is not a directory"),
    ] {
        let error = program.fails(&["unpack", &name, at(target).to_str().unwrap()]);
        assert!(error.contains(reason) && error.contains(at("").to_str().unwrap()), "{target}: {error}");
    }
    assert_eq!(fs::read_dir(at("full")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "mine");
    assert!(!at("nowhere").exists());
    assert_eq!(partial_copies(&at("full")), Vec::<PathBuf>::new());
}

#[test]
fn unpack_into_a_mountpoint_happens_in_place_and_is_marked_until_complete() {
    let fixture = Fixture::new(&["python"]);
    let (program, name) = (&fixture.program, fixture.pull("python"));
    let small = Tmpfs::new("20m");
    let error = program.fails(&["unpack", &name, small.path().to_str().unwrap()]);
    assert!(error.contains("no space"), "{error}");
    let error = program.fails(&["unpack", &name, small.path().to_str().unwrap()]);
    assert!(error.contains("incomplete copy"), "{error}");

    let large = Tmpfs::new("600m");
    let plain = program.dir().join("plain");
    unpack(program, &name, large.path());
    unpack(program, &name, &plain);
    trees::assert_equal(large.path(), &plain, 5_000);
}

#[test]
fn unpack_to_a_full_disk_leaves_nothing() {
    let fixture = Fixture::new(&["python"]);
    let (program, name) = (&fixture.program, fixture.pull("python"));
    for options in ["size=20m", "size=600m,nr_inodes=500"] {
        let disk = Tmpfs::with_options(options);
        let to = disk.path().join("copy");
        let error = program.fails(&["unpack", &name, to.to_str().unwrap()]);
        assert!(error.contains("no space, inodes or quota left"), "{options}: {error}");
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "{options}");
    }
}

/// Counts the regular files below a directory that other processes change.
fn count_files(root: &Path) -> usize {
    let mut count = 0;
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) => count += usize::from(kind.is_file()),
                Err(_) => {}
            }
        }
    }
    count
}

#[test]
fn killed_unpack_never_appears_at_the_target_and_the_next_unpack_cleans_up() {
    let fixture = Fixture::new(&["python"]);
    let (program, name) = (&fixture.program, fixture.pull("python"));
    let to = program.dir().join("copy");
    let arguments = ["unpack", &name, to.to_str().unwrap()];
    // The kills come later each time: from the first directory to the last attributes.
    for files in [0, 1_000, 3_000] {
        let mut child =
            program.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the copy has enough files", || {
            let partial = partial_copies(&to);
            child.try_wait().unwrap().is_some()
                || partial.first().is_some_and(|copy| count_files(copy) > files)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if to.exists() {
            // The unpack finished before the kill, so its copy is complete.
            fs::remove_dir_all(&to).unwrap();
        } else {
            assert_eq!(partial_copies(&to).len(), 1);
        }
    }
    unpack(program, &name, &to);
    assert_eq!(partial_copies(&to), Vec::<PathBuf>::new());
    assert!(trees::paths(&to).len() > 5_000);
}

/// A ramfs, which does not support extended attributes. Dropping it unmounts it.
struct Ramfs(PathBuf);

impl Ramfs {
    fn new(mountpoint: PathBuf) -> Self {
        fs::create_dir(&mountpoint).unwrap();
        run("mount", &["-t", "ramfs", "ramfs", mountpoint.to_str().unwrap()]);
        Self(mountpoint)
    }
}

impl Drop for Ramfs {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

#[test]
fn unpack_to_a_filesystem_without_extended_attributes_is_refused_with_a_clear_error() {
    let fixture = Fixture::new(&["app"]);
    let (program, name) = (&fixture.program, fixture.pull("app"));
    let disk = Ramfs::new(program.dir().join("disk"));
    let to = disk.0.join("copy");
    let error = program.fails(&["unpack", &name, to.to_str().unwrap()]);
    assert!(error.contains("the filesystem does not accept it"), "{error}");
    assert!(error.contains(to.to_str().unwrap()), "{error}");
    assert!(!to.exists() && partial_copies(&to).is_empty());
}
