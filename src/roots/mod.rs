//! Writable roots: directories that sandboxes use as `/`.
//!
//! A root is an overlay, so that runs never change the image. Its lower layers are the image and, above it, a skeleton: the
//! directories that a sandbox mounts on. Its upper layer receives the writes of one run.
//!
//! ```text
//!  upper      new for each root: in a home on disk, on a tmpfs, or none            <homes>/<id>/{upper,work}
//!  skeleton   box dev proc sys tmp: real directories, even if the image has links;       a tmpfs of the root
//!             files of etc that name the user and hosts
//!  image      shown by an engine; with fuse, a directory of the mount              /images/<name>@<digest>
//! ```
//!
//! There are two kinds of roots. A *leased* root is mounted in a private mount namespace, always at `<run-dir>/root`, and
//! disappears with that namespace; the holder of the lease then removes its files. A *named* root is mounted for all
//! processes at `<run-dir>/roots/<id>` until it is removed.
//!
//! The files of a root may be removed when three conditions hold: no process holds the lock of its home (flock(2), which the
//! kernel releases when the holder dies), the root is not mounted at its path, and the kernel does not use its upper. The
//! kernel itself must answer the last question, because open descriptors and other mount namespaces keep an overlay alive
//! without appearing in any list of processes. So [`Roots::sweep`] finds all files that a crash leaves behind, and no files in
//! use are ever removed.
//!
//! | folder | contents |
//! |---|---|
//! | `mounts` | the filesystems of one root: mount options, system calls, quotas, the image below |
//! | `homes` | directories and locks on disk: leased and named roots, listing, sweeping |
//! | `layers` | the unpacked layers of the overlay2 engine |
//! | `trees` | the mounts of the erofs engine, shared by all roots of an image |

mod error;
mod homes;
mod layers;
mod mounts;
mod trees;
mod trusted;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use error::RootsError;
pub use homes::{
    HomesLocation, NamedRoot, RootDirectories, RootInfo, RootLease, RootRemoval, RootState, Roots,
    SweepReport, processes_with_mount,
};
pub use layers::LayerDirectories;
pub(crate) use mounts::SKELETON;
pub use mounts::{
    HeldTree, Injection, InodeWidth, Lower, OverlayCalls, PrivateRoot, RootWatch, Upper,
    enter_private_namespace, loaded_filesystems, mount_terminals, mount_tree_image, parse_size,
    try_erofs_file, try_filesystem, try_overlay,
};
pub use trees::TreeMounts;
pub(crate) use trusted::open_trusted;

/// The name of a root: 1 to 64 characters of `a-z`, `0-9`, `.`, `_` and `-`, the first a letter or digit.
///
/// So it contains no character at which paths, overlay options or isolate's rules are split.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(String);

/// Longest name of a root, in bytes.
const ID_MAX: usize = 64;

impl RootId {
    /// Returns a random name: 16 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// getrandom(2) fails.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(format!("{:016x}", u64::from_ne_bytes(bytes))))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The source of the root's overlay in the mount table.
    #[must_use]
    pub fn source(&self) -> String {
        format!("rcx-root-{}", self.0)
    }
}

/// The way in which a root accesses its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// A directory of the FUSE mount. Needs the daemon, and no disk space besides the blobs.
    Fuse,
    /// An EROFS of the image's tree image, which all roots of the image share. The kernel reads the bytes of files from the decoded
    /// layers: files in the store, or served by the daemon. Needs Linux 6.12.
    Erofs,
    /// The image's layers, unpacked once into directories that images share, and merged by the kernel's overlayfs. Needs no
    /// daemon.
    Overlay2,
    /// A full copy of the image for each root, removed together with it.
    ///
    /// Do not use it where many roots are made: a copy takes 31 to 161 times as long as mounting a root
    /// (benches/RESULTS.md), and as much disk space as the image. It is for hosts whose kernel can stack neither FUSE nor
    /// layer directories, and for comparison with the other engines.
    Unpack,
}

impl FromStr for Engine {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fuse" => Ok(Self::Fuse),
            "erofs" => Ok(Self::Erofs),
            "overlay2" => Ok(Self::Overlay2),
            "unpack" => Ok(Self::Unpack),
            _ => Err(RootsError::Engine(text.to_owned())),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fuse => f.write_str("fuse"),
            Self::Erofs => f.write_str("erofs"),
            Self::Overlay2 => f.write_str("overlay2"),
            Self::Unpack => f.write_str("unpack"),
        }
    }
}

impl FromStr for RootId {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_valid = text.len() <= ID_MAX
            && text.bytes().next().is_some_and(is_alphanumeric)
            && text.bytes().all(|byte| is_alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if is_valid { Ok(Self(text.to_owned())) } else { Err(RootsError::Id(text.to_owned())) }
    }
}

impl TryFrom<String> for RootId {
    type Error = RootsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RootId> for String {
    fn from(id: RootId) -> Self {
        id.0
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_names_contain_no_separators() {
        for good in ["a", "0", "box-1", "a.b_c", &"x".repeat(64)] {
            assert_eq!(good.parse::<RootId>().unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", ".a", "-a", "_a", "A", "a:b", "a,b", "a/b", "a b", "ä", "a\n", &"x".repeat(65)]
        {
            let error = bad.parse::<RootId>().unwrap_err();
            assert!(matches!(&error, RootsError::Id(text) if text == bad), "{error}");
        }
    }

    #[test]
    fn random_root_names_are_valid_and_differ() {
        let (first, second) = (RootId::random().unwrap(), RootId::random().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.as_str().parse::<RootId>().unwrap(), first);
        assert_eq!(first.source(), format!("rcx-root-{first}"));
    }
}
