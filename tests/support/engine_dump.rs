//! Dumps the tree that each engine shows of an image on the real kernel. Needs root.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd as _;

use rcx_imagefs::image::{Digest, ManifestDigest};
use rcx_imagefs::roots::LayerDirectories;
use rcx_imagefs::store::Store;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disk;
use crate::program::{Program, TestMount};

/// Later than the modification time of any file.
const NEVER: i64 = i64::MAX;

/// Dumps an image in the mount.
pub fn in_mount(mount: &TestMount, name: &str) -> String {
    disk::dump(&mount.path(name), NEVER).unwrap_or_else(|error| error.to_string())
}

/// Dumps what overlayfs makes of the layer directories of an image, without the skeleton and the upper directory of a root.
/// The caller must be in a private mount namespace.
pub fn overlay2(program: &Program, image: Digest) -> String {
    let store = Store::open(program.store()).unwrap();
    let directories = LayerDirectories::open(&store.layers_path().unwrap()).unwrap();
    let lower = match directories.lower(&store, ManifestDigest::new(image), "test", &|_, _| ()) {
        Ok(lower) => lower,
        Err(error) => return format!("{error:?}"),
    };
    let (at, empty) = (program.dir().join("overlay"), program.dir().join("empty"));
    for dir in [&at, &empty] {
        fs::create_dir_all(dir).unwrap();
    }
    let mut stack: Vec<_> = lower
        .descriptors()
        .iter()
        .map(|fd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().join("tree"))
        .collect();
    // overlayfs needs at least two lower directories. An empty one at the bottom changes nothing.
    stack.push(empty);
    let stack: Vec<&str> = stack.iter().map(|path| path.to_str().unwrap()).collect();
    let options = format!("lowerdir={},index=off,xino=off,metacopy=off", stack.join(":"));
    mount("test", &at, "overlay", MountFlags::RDONLY, CString::new(options).unwrap().as_c_str()).unwrap();
    let dumped = disk::dump(&at, NEVER);
    unmount(&at, UnmountFlags::empty()).unwrap();
    dumped.unwrap()
}

/// Unpacks an image and dumps the copy.
pub fn unpacked(program: &Program, reference: &str) -> String {
    let at = program.dir().join("unpacked");
    let output = program.run(&["unpack", "--preserve-setuid", reference, at.to_str().unwrap()]);
    if !output.status.success() {
        return String::from_utf8_lossy(&output.stderr).into_owned();
    }
    let dumped = disk::dump(&at, NEVER).unwrap_or_else(|error| error.to_string());
    fs::remove_dir_all(&at).unwrap();
    dumped
}
