//! The daemon closes images that nobody uses, according to the references of the kernel.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use support::child::wait_until;
use support::program::Program;
use support::stored::TestStore;

/// The most images that stay open although nobody uses them.
const UNUSED_MAX: usize = 32;
const IMAGES: usize = UNUSED_MAX + 8;

fn store() -> (TestStore, Program) {
    let stored = TestStore::new();
    for image in 0..IMAGES {
        let layers =
            format!("d etc\nf etc/hosts x\nh etc/alias etc/hosts\n---\nf own {image}\nf etc/alias {image}");
        stored.add_text(&format!("lab/{image}:1"), &layers);
    }
    let program = Program::with_store(stored.store.path());
    (stored, program)
}

fn open(program: &Program) -> Vec<String> {
    let status = program.json(&["status"]);
    let paths = status["filesystem"]["open"].as_array().unwrap();
    paths.iter().map(|path| path.as_str().unwrap_or_default().to_owned()).collect()
}

/// All files below a directory, with their inode numbers.
fn walk(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = vec![(dir.to_owned(), fs::metadata(dir)?.ino())];
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        match metadata.is_dir() {
            true => found.extend(walk(&path)?),
            false => found.push((path, metadata.ino())),
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn images_that_the_kernel_forgets_are_closed_and_keep_their_inode_numbers() {
    let (_stored, program) = store();
    let mount = program.mount();
    let walk_all = || -> Vec<_> {
        (0..IMAGES).map(|image| walk(&mount.path(&format!("lab/{image}:1"))).unwrap()).collect()
    };
    let before = walk_all();
    assert_eq!(open(&program).len(), IMAGES, "all were used in the last minute");
    wait_until("the kernel forgets all names, and the daemon closes images", || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        open(&program).len() <= UNUSED_MAX
    });
    assert_eq!(walk_all(), before);
    mount.stop();
}

#[test]
fn removed_image_in_use_stays_readable_although_it_was_closed() {
    let (_stored, program) = store();
    let mount = program.mount();
    let image = fs::File::open(mount.path("lab/0:1")).unwrap();
    let is_open = || open(&program).iter().any(|path| path.starts_with("lab/0@"));
    let look_up_others = || {
        for image in 1..IMAGES {
            fs::metadata(mount.path(&format!("lab/{image}:1"))).unwrap();
        }
    };
    look_up_others();
    assert!(!is_open(), "only its root is in use, and others were looked up since");
    program.ok(&["rm", "lab/0:1"]);
    program.ok(&["gc"]);
    let inside = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
    assert_eq!(fs::read_to_string(inside.join("own")).unwrap(), "0");
    look_up_others();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(fs::read_to_string(inside.join("etc/alias")).unwrap(), "0");
    drop(image);
    mount.stop();
}
