//! Writable roots: the directory that a sandbox gets as its `/`.
//!
//! The image's tree stays what the image says. A root is an overlay whose lower layers are a skeleton with the
//! directories that a sandbox mounts upon, above the image, and whose upper layer takes the writes of one run.
//!
//! ```text
//!  upper      new for each root: in a home on disk, on a tmpfs, or none      <homes>/<id>/{upper,work}
//!  skeleton   box dev proc sys tmp, real directories whatever the image has   <run-dir>/skeleton
//!  image      what an engine shows of it; fuse: one directory of the mount    /images/<name>@<digest>
//! ```
//!
//! There are two kinds. A *leased* root lives in a private mount namespace, always at `<run-dir>/root`, and dies with
//! that namespace; who holds the lease removes its files. A *named* root is mounted for everybody at
//! `<run-dir>/roots/<id>` until it is removed.
//!
//! What is on disk can be removed once three things hold: nobody has the home's lock (flock(2), so it ends with its holder),
//! the root is not mounted under its name, and the kernel does not have the upper in use. The last is asked of the kernel
//! itself, since no list of processes shows an overlay that a descriptor or another namespace keeps alive. So a
//! crash at any moment leaves nothing that [`Roots::sweep`] does not find, and nothing in use is ever touched.

mod error;
mod homes;
mod layers;
mod mounts;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use error::RootsError;
pub use homes::Roots;
pub use homes::lease::{PrivateRoot, RootLease};
pub use homes::named::RootRemoval;
pub use homes::processes::holders;
pub use homes::sweep::{RootInfo, RootState, SweepReport};
pub use layers::overlay2::LayerDirectories;
pub use mounts::lower::Lower;
pub use mounts::mount::enter_private_namespace;
pub use mounts::upper::Upper;
pub use mounts::watch::RootWatch;

/// Name of a root: lower-case letters, digits, `.`, `_` and `-`, at most 64, the first a letter or digit. So it is free of
/// what paths, overlay options and isolate's rules split on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(String);

/// Longest name of a root, in bytes.
const ID_MAX: usize = 64;

impl RootId {
    /// A name that no other root has.
    ///
    /// # Errors
    ///
    /// The kernel has no random numbers (yet).
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(format!("{:016x}", u64::from_ne_bytes(bytes))))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the mount table shows as the source of the root's overlay.
    #[must_use]
    pub fn source(&self) -> String {
        format!("rcx-root-{}", self.0)
    }
}

/// How an image is shown to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// As a directory of the mount.
    #[default]
    Fuse,
    /// As its layers, unpacked once into directories that images share, for the kernel's overlayfs to merge.
    Overlay2,
    /// As a plain copy, made for each root and removed with it.
    Unpack,
}

impl FromStr for Engine {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fuse" => Ok(Self::Fuse),
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
            Self::Overlay2 => f.write_str("overlay2"),
            Self::Unpack => f.write_str("unpack"),
        }
    }
}

impl FromStr for RootId {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.len() <= ID_MAX
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(RootsError::Id(text.to_owned())) }
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
    fn names_hold_nothing_that_anything_splits_on() {
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
    fn random_names_are_names_and_differ() {
        let (one, two) = (RootId::random().unwrap(), RootId::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<RootId>().unwrap(), one);
        assert_eq!(one.source(), format!("rcx-root-{one}"));
    }
}
