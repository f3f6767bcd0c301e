//! The read-only side of a root: an image, as the mount shows it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::fs::{DecodedIno, Ino};
use crate::pipeline::OpenImage;
use crate::roots::error::{At as _, RootsError};
use crate::tree::NodeId;
use crate::unpack::{self, UnpackPlan};

/// The directories of one image, the topmost first.
#[derive(Debug)]
pub struct Lower {
    /// None before the copy is made.
    directories: Vec<Directory>,
    /// An image that is to be copied into the root's home.
    copy: Option<Arc<OpenImage>>,
    /// Of layer directories: they are removed only by who has none of these against it.
    locks: Vec<OwnedFd>,
    name: String,
}

#[derive(Debug)]
struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
}

/// Of a home: the copy of an image.
const COPY: &str = "image";
/// What fstatfs(2) says of every FUSE (linux/magic.h).
const FUSE: u32 = 0x6573_5546;
/// How often a name is looked up that others' renames disturb.
const TRIES: usize = 1000;
/// For opening a directory as a layer.
pub(crate) const AS_LAYER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Lower {
    /// Finds an image in the mount: `name` is what stands behind the mountpoint, `NAME@DIGEST` or a symlink to that, as a tag
    /// or an alias is. Takes one request to the daemon, which tells whether it lives, and more when the image is new to it.
    ///
    /// The mountpoint is trusted: of another FUSE, only one that means to be taken for this program's is not found out.
    ///
    /// # Errors
    ///
    /// There is no mount, or a dead one, or it does not have the image.
    pub fn in_mount(mountpoint: &Path, name: &Path) -> Result<Self, RootsError> {
        let (named, mounted) = (|| name.to_owned(), || mountpoint.to_owned());
        let dead = |errno: Errno| RootsError::DeadMount { mountpoint: mounted(), source: errno.into() };
        let mount = match rustix::fs::open(mountpoint, AS_LAYER, Mode::empty()) {
            Ok(mount) => mount,
            Err(errno @ Errno::NOTCONN) => return Err(dead(errno)),
            Err(errno) => return Err(RootsError::io("open", mountpoint, errno)),
        };
        // Asks the daemon, while attributes would be those that the kernel remembers.
        match rustix::fs::fstatfs(&mount) {
            Ok(stat) if i128::from(stat.f_type) == i128::from(FUSE) => {}
            Ok(_) => return Err(RootsError::NotTheMount(mounted())),
            Err(errno @ (Errno::NOTCONN | Errno::CONNABORTED)) => return Err(dead(errno)),
            Err(errno) => return Err(RootsError::io("statfs", mountpoint, errno)),
        }
        match rustix::fs::fstat(&mount) {
            Ok(stat) if stat.st_ino == Ino::ROOT.get() => {}
            Ok(_) => return Err(RootsError::NotTheMount(mounted())),
            Err(errno) => return Err(RootsError::io("stat", mountpoint, errno)),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let open = || rustix::fs::openat2(&mount, name, AS_LAYER, Mode::empty(), resolve);
        let fd = match undisturbed(open) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(RootsError::NoImage { name: named(), mountpoint: mounted() }),
            Err(errno @ (Errno::NOTCONN | Errno::CONNABORTED)) => return Err(dead(errno)),
            Err(Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => {
                return Err(RootsError::NotAnImage { name: named(), mountpoint: mounted() });
            }
            Err(errno) => {
                return Err(RootsError::Image { name: named(), mountpoint: mounted(), source: errno.into() });
            }
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| RootsError::Image {
            name: named(),
            mountpoint: mounted(),
            source: errno.into(),
        })?;
        let (path, top) =
            (path_of(fd.as_fd()).at("find", name)?, path_of(mount.as_fd()).at("find", mountpoint)?);
        let canonical = path.strip_prefix(&top).ok().and_then(Path::to_str);
        match (Ino::from_kernel(stat.st_ino).decode(), canonical) {
            (Some(DecodedIno::Image { node, .. }), Some(canonical)) if node == NodeId::ROOT.get() => {
                let name = canonical.to_owned();
                Ok(Self {
                    name,
                    directories: vec![Directory { fd, path, stat }],
                    copy: None,
                    locks: Vec::new(),
                })
            }
            _ => Err(RootsError::NotAnImage { name: named(), mountpoint: mounted() }),
        }
    }

    /// An image that each root has a copy of.
    #[must_use]
    pub fn to_copy(image: OpenImage, name: &str) -> Self {
        Self {
            directories: Vec::new(),
            copy: Some(Arc::new(image)),
            locks: Vec::new(),
            name: name.to_owned(),
        }
    }

    /// Whether the image is to be copied, and so needs a home on disk.
    pub(crate) fn is_to_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// The image with its copy in a home, which is made now, where there is to be one.
    pub(crate) fn copied(&self, home: BorrowedFd<'_>, path: &Path) -> Result<Option<Self>, RootsError> {
        let Some(image) = &self.copy else { return Ok(None) };
        let path = path.join(COPY);
        rustix::fs::mkdirat(home, COPY, Mode::RWXU).at("make", &path)?;
        let fd = rustix::fs::openat(home, COPY, crate::roots::homes::home::DIRECTORY, Mode::empty())
            .at("open", &path)?;
        let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
        unpack::write(
            &UnpackPlan::whole(&image.tree),
            &layers,
            fd.as_fd(),
            &path,
            &unpack::UnpackOptions::default(),
        )
        .map_err(|source| RootsError::Copy { image: self.name.clone(), source })?;
        Self::of_directories(vec![(path, fd)], &self.name).map(Some)
    }

    /// The directories of an image that is unpacked, each with the lock that keeps it; the topmost first.
    pub(crate) fn of_directories(stack: Vec<(PathBuf, OwnedFd)>, name: &str) -> Result<Self, RootsError> {
        let (mut directories, mut locks) = (Vec::new(), Vec::new());
        for (path, lock) in stack {
            let fd = rustix::fs::open(&path, AS_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", &path)?;
            let stat = rustix::fs::fstat(&fd).at("stat", &path)?;
            directories.push(Directory { fd, path, stat });
            locks.push(lock);
        }
        Ok(Self { name: name.to_owned(), directories, copy: None, locks })
    }

    /// What has to stay open for as long as a root is made of the image.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.locks.iter().map(OwnedFd::as_fd).collect()
    }

    /// The canonical `NAME@DIGEST` that the name led to.
    #[must_use]
    pub fn resolved_name(&self) -> &str {
        &self.name
    }

    /// Names of the layer directories among them.
    pub(crate) fn layer_directories(&self) -> Vec<String> {
        let names = self
            .directories
            .iter()
            .filter(|_| !self.locks.is_empty())
            .filter_map(|one| Some(one.path.parent()?.file_name()?.to_string_lossy().into_owned()));
        names.collect()
    }

    /// Attributes of the image's root.
    pub(crate) fn stat(&self) -> &Stat {
        &self.directories[0].stat
    }

    /// The directories once more, as the calling thread's mount namespace has them: older kernels refuse layers of another
    /// namespace, as those are that were opened before this one was made.
    pub(crate) fn reopen(&self) -> Result<Vec<OwnedFd>, RootsError> {
        self.directories.iter().map(|one| reopen(&one.path, one.fd.as_fd())).collect()
    }
}

/// Looks a path up by openat2(2) that may have `..` in it. Where something is renamed or mounted meanwhile, anywhere, the kernel
/// cannot tell whether such a path climbed, and gives up. Who renames all the time does not hold this up for ever.
pub(crate) fn undisturbed(open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let mut tries = (0..TRIES).map(|_| open()).skip_while(|opened| matches!(opened, Err(Errno::AGAIN)));
    tries.next().unwrap_or(Err(Errno::AGAIN))
}

/// Opens a directory by its path, which has to be the same directory still.
pub(crate) fn reopen(path: &Path, former: BorrowedFd<'_>) -> Result<OwnedFd, RootsError> {
    let fd = rustix::fs::open(path, AS_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", path)?;
    let (new, old) = (rustix::fs::fstat(&fd).at("stat", path)?, rustix::fs::fstat(former).at("stat", path)?);
    if (new.st_dev, new.st_ino) == (old.st_dev, old.st_ino) {
        Ok(fd)
    } else {
        Err(RootsError::io("open", path, io::Error::other("something else is in its place")))
    }
}

/// The path that the kernel knows a descriptor by, from the process's root.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
