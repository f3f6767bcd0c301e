//! The read-only side of a root: the directories of an image.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{HeldTree, OPEN_DIRECTORY, OPEN_LAYER};
use crate::fs::{DecodedIno, Ino};
use crate::os::{AtPath as _, PathError, retry_again};
use crate::pipeline::OpenImage;
use crate::roots::{Engine, RootsError};
use crate::tree::NodeId;
use crate::unpack::{self, UnpackOptions, UnpackPlan};

/// The directory of a home that holds the copy of an image.
const COPY: &str = "image";
/// The type of every FUSE filesystem (fstatfs(2), linux/magic.h).
const FUSE_MAGIC: u32 = 0x6573_5546;

/// An image as the lower layers of an overlay.
#[derive(Debug)]
pub struct Lower {
    /// `NAME@DIGEST`.
    name: String,
    /// Topmost first; empty until the image is copied, and for a tree image.
    directories: Vec<LowerDir>,
    /// The mount of the image's tree image.
    tree: Option<HeldTree>,
    /// The image to copy into the home of each root.
    to_copy: Option<Arc<OpenImage>>,
    /// The locked layer directories. They are removed only by a process that can lock them exclusively.
    locks: Vec<OwnedFd>,
}

#[derive(Debug)]
struct LowerDir {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
}

impl Lower {
    /// Finds an image in the mount. `name` is a path below the mountpoint: `NAME@DIGEST`, or a symlink to it, such as a tag or
    /// an alias.
    ///
    /// Sends one request to the daemon, which detects a dead mount, and more if the kernel has not cached the image.
    ///
    /// The mountpoint is trusted. Detects a wrong FUSE mount, but not one that deliberately imitates ours.
    ///
    /// # Errors
    ///
    /// The mountpoint shows another filesystem, the daemon is gone, or the mount does not contain the image.
    pub fn in_mount(mountpoint: &Path, name: &Path) -> Result<Self, RootsError> {
        let mount = open_mount(mountpoint)?;
        let not_an_image =
            || RootsError::NotAnImage { name: name.to_owned(), mountpoint: mountpoint.to_owned() };
        let unreadable = |errno: Errno| RootsError::Image {
            name: name.to_owned(),
            mountpoint: mountpoint.to_owned(),
            source: errno.into(),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let open = || rustix::fs::openat2(&mount, name, OPEN_LAYER, Mode::empty(), resolve);
        let fd = retry_again(open).map_err(|errno| match errno {
            Errno::NOENT => RootsError::NoImage { name: name.to_owned(), mountpoint: mountpoint.to_owned() },
            Errno::NOTCONN | Errno::CONNABORTED => dead_mount(mountpoint, errno),
            Errno::NOTDIR | Errno::XDEV | Errno::LOOP => not_an_image(),
            _ => unreadable(errno),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(unreadable)?;
        let path = path_of(fd.as_fd()).at("resolve", name)?;
        let mount_path = path_of(mount.as_fd()).at("resolve", mountpoint)?;
        let resolved_name = path.strip_prefix(&mount_path).ok().and_then(Path::to_str);
        match (Ino::from_kernel(stat.st_ino).decode(), resolved_name) {
            (Some(DecodedIno::Image { node, .. }), Some(resolved_name)) if node == NodeId::ROOT.get() => {
                let name = resolved_name.to_owned();
                let directories = vec![LowerDir { fd, path, stat }];
                Ok(Self { name, directories, tree: None, to_copy: None, locks: Vec::new() })
            }
            _ => Err(not_an_image()),
        }
    }

    /// Returns an image that is copied into each root.
    #[must_use]
    pub fn copy_of(image: OpenImage, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            directories: Vec::new(),
            tree: None,
            to_copy: Some(Arc::new(image)),
            locks: Vec::new(),
        }
    }

    /// Returns the image in `directories`, topmost first, each with a descriptor that holds its lock.
    pub(crate) fn from_directories(
        directories: Vec<(PathBuf, OwnedFd)>,
        name: &str,
    ) -> Result<Self, RootsError> {
        let (mut opened, mut locks) = (Vec::new(), Vec::new());
        for (path, lock) in directories {
            let fd =
                rustix::fs::open(&path, OPEN_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", &path)?;
            let stat = rustix::fs::fstat(&fd).at("stat", &path)?;
            opened.push(LowerDir { fd, path, stat });
            locks.push(lock);
        }
        Ok(Self { name: name.to_owned(), directories: opened, tree: None, to_copy: None, locks })
    }

    /// Returns the image in a mount of its tree image.
    #[must_use]
    pub fn in_tree(tree: HeldTree, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            directories: Vec::new(),
            tree: Some(tree),
            to_copy: None,
            locks: Vec::new(),
        }
    }

    /// Returns the engine that shows the image.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self { tree: Some(_), .. } => Engine::Erofs,
            Self { to_copy: Some(_), .. } => Engine::Unpack,
            Self { locks, .. } if !locks.is_empty() => Engine::Overlay2,
            _ => Engine::Fuse,
        }
    }

    /// Returns the device of the filesystem in which a daemon serves layers of the image; `None` if no daemon does, or it serves the
    /// image as a directory.
    pub(crate) fn layers_device(&self) -> Option<u64> {
        self.tree.as_ref().and_then(HeldTree::layers)
    }

    /// Keeps the image mounted as long as a root exists. `root` is the root directory of its overlay.
    pub(crate) fn keep_for(&self, root: BorrowedFd<'_>) {
        if let Some(tree) = &self.tree {
            tree.keep_for(root);
        }
    }

    /// Returns whether the image is copied into each root. A root then needs a home on disk.
    pub(crate) fn needs_copy(&self) -> bool {
        self.to_copy.is_some()
    }

    /// Copies the image into a home and returns the copy; `None` for an image that needs no copy.
    pub(super) fn copy_into(&self, home: BorrowedFd<'_>, path: &Path) -> Result<Option<Self>, RootsError> {
        let Some(image) = &self.to_copy else { return Ok(None) };
        let path = path.join(COPY);
        rustix::fs::mkdirat(home, COPY, Mode::RWXU).at("make directory", &path)?;
        let fd = rustix::fs::openat(home, COPY, OPEN_DIRECTORY, Mode::empty()).at("open", &path)?;
        let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
        let plan = UnpackPlan::whole(&image.tree);
        unpack::write(&plan, &layers, fd.as_fd(), &path, &UnpackOptions::default())
            .map_err(|source| RootsError::Copy { image: self.name.clone(), source })?;
        Self::from_directories(vec![(path, fd)], &self.name).map(Some)
    }

    /// Returns the descriptors that must stay open as long as a root uses the image.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.locks.iter().map(OwnedFd::as_fd).collect()
    }

    /// Returns the name of the image after links are resolved: `NAME@DIGEST`.
    #[must_use]
    pub fn resolved_name(&self) -> &str {
        &self.name
    }

    /// Returns the names of the layer directories that make up the image.
    pub(crate) fn layer_directories(&self) -> Vec<String> {
        if self.locks.is_empty() {
            return Vec::new();
        }
        // A lower directory is the subdirectory `tree` of a layer directory.
        let names = self.directories.iter().filter_map(|directory| directory.path.parent()?.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Returns the attributes of the image's root directory. The image must not need a copy.
    pub(super) fn stat(&self) -> &Stat {
        match &self.tree {
            Some(tree) => tree.stat(),
            None => &self.directories[0].stat,
        }
    }

    /// Returns the filesystem that the kernel, before Linux 6.15, takes as a layer only while it is attached.
    pub(super) fn unattached(&self) -> Result<Option<OwnedFd>, PathError> {
        let tree = self.tree.as_ref().map(|tree| tree.directory().try_clone_to_owned());
        tree.transpose().at("open", Path::new(&self.name))
    }

    /// Opens the directories again in the mount namespace of the calling thread: older kernels refuse layers that
    /// were opened in another namespace.
    pub(super) fn reopen(&self) -> Result<Vec<OwnedFd>, RootsError> {
        if let Some(tree) = self.unattached()? {
            return Ok(vec![tree]);
        }
        let reopen = |directory: &LowerDir| reopen(&directory.path, directory.fd.as_fd());
        Ok(self.directories.iter().map(reopen).collect::<Result<_, _>>()?)
    }
}

/// Opens the mountpoint of the daemon, after checking that this is a live mount of this program.
fn open_mount(mountpoint: &Path) -> Result<OwnedFd, RootsError> {
    let mount = match rustix::fs::open(mountpoint, OPEN_LAYER, Mode::empty()) {
        Ok(mount) => mount,
        Err(errno @ Errno::NOTCONN) => return Err(dead_mount(mountpoint, errno)),
        Err(errno) => return Err(PathError::new("open", mountpoint, errno).into()),
    };
    // fstatfs(2) asks the daemon; fstat(2) may return attributes that the kernel has cached.
    match rustix::fs::fstatfs(&mount) {
        Ok(stat) if i128::from(stat.f_type) == i128::from(FUSE_MAGIC) => {}
        Ok(_) => return Err(RootsError::NotTheMount(mountpoint.to_owned())),
        Err(errno @ (Errno::NOTCONN | Errno::CONNABORTED)) => return Err(dead_mount(mountpoint, errno)),
        Err(errno) => return Err(PathError::new("statfs", mountpoint, errno).into()),
    }
    let stat = rustix::fs::fstat(&mount).at("stat", mountpoint)?;
    if stat.st_ino != Ino::ROOT.get() {
        return Err(RootsError::NotTheMount(mountpoint.to_owned()));
    }
    Ok(mount)
}

fn dead_mount(mountpoint: &Path, errno: Errno) -> RootsError {
    RootsError::DeadMount { mountpoint: mountpoint.to_owned(), source: errno.into() }
}

/// Opens a directory by its path. Fails if another directory has replaced `original`.
pub(crate) fn reopen(path: &Path, original: BorrowedFd<'_>) -> Result<OwnedFd, PathError> {
    let fd = rustix::fs::open(path, OPEN_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", path)?;
    let (new, old) =
        (rustix::fs::fstat(&fd).at("stat", path)?, rustix::fs::fstat(original).at("stat", path)?);
    if (new.st_dev, new.st_ino) == (old.st_dev, old.st_ino) {
        Ok(fd)
    } else {
        Err(PathError::new("open", path, io::Error::other("another directory has replaced it")))
    }
}

/// Returns the kernel's path of a descriptor, relative to the root of this process.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
