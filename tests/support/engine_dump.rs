//! Dumps the tree that each engine shows of an image on the real kernel. Needs root.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};

use rcx_imagefs::erofs::{LayerDevice, PlainFile, TreeImage, write_plain};
use rcx_imagefs::image::{Digest, ManifestDigest};
use rcx_imagefs::index::Layer;
use rcx_imagefs::pipeline::open_image;
use rcx_imagefs::roots::{LayerDirectories, mount_tree_image};
use rcx_imagefs::store::Store;
use rcx_imagefs::tree::Tree;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags, mount, move_mount, unmount};

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
    let directories = LayerDirectories::open(&store).unwrap();
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

/// Dumps what EROFS makes of the tree image of an image, over decoded layers in files. The caller must be in a private mount
/// namespace.
pub fn erofs(program: &Program, image: Digest) -> String {
    let store = Store::open(program.store()).unwrap();
    let image = match open_image(&store, ManifestDigest::new(image), |_| None) {
        Ok(image) => image,
        Err(error) => return format!("{error:?}"),
    };
    let dir = tempfile::tempdir_in(program.dir()).unwrap();
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let mounted = TreeMount::new(&image.tree, &layers, dir.path());
    disk::dump(mounted.path(), NEVER).unwrap_or_else(|error| error.to_string())
}

/// An image mounted as EROFS, without an overlay. Unmounts on drop.
#[derive(Debug)]
pub struct TreeMount(PathBuf);

impl TreeMount {
    /// Writes the tree image and the decoded layers of an image to `dir`, and mounts them there.
    pub fn new<D: AsRef<[u8]>>(tree: &Tree, layers: &[&Layer<D>], dir: &Path) -> Self {
        let mut number = 0;
        Self::over(tree, layers, dir, |layer, device| {
            let path = dir.join(number.to_string());
            let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
            number += 1;
            write_plain(layer, device, &file).unwrap();
            let plain = PlainFile::open(file, layer.index().layer()).unwrap();
            plain.verify().unwrap();
            assert_eq!(plain.device_size(), device.size());
            plain.into_file()
        })
    }

    /// Writes the tree image to `dir`, and mounts it there over the files of the layers that a daemon serves in `files`.
    pub fn over_layer_files<D: AsRef<[u8]>>(
        tree: &Tree,
        layers: &[&Layer<D>],
        dir: &Path,
        files: &Path,
    ) -> Self {
        Self::over(tree, layers, dir, |layer, device| {
            let file = File::open(files.join(layer.index().layer().digest().hex())).unwrap();
            assert_eq!(file.metadata().unwrap().len(), device.size());
            file
        })
    }

    fn over<D: AsRef<[u8]>>(
        tree: &Tree,
        layers: &[&Layer<D>],
        dir: &Path,
        mut open: impl FnMut(&Layer<D>, &LayerDevice) -> File,
    ) -> Self {
        let indexes: Vec<_> = layers.iter().map(|layer| layer.index()).collect();
        let tree = TreeImage::plan(tree, &indexes).unwrap();
        let devices: Vec<File> =
            tree.devices().map(|(layer, device)| open(layers[layer.index()], device)).collect();
        let file = File::options().read(true).write(true).create_new(true).open(dir.join("tree")).unwrap();
        tree.write([7; 16], &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), tree.size());
        let fds: Vec<_> = devices.iter().map(AsFd::as_fd).collect();
        let mounted = mount_tree_image("test", file.as_fd(), &fds).unwrap();
        let at = dir.join("mounted");
        fs::create_dir(&at).unwrap();
        move_mount(&mounted, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        Self(at)
    }

    /// The root directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TreeMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
