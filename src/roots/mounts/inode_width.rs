//! The inode numbers of a root: one numbering for all layers, or numbers that fit into 32 bits.

use std::fmt;
use std::str::FromStr;

use crate::roots::RootsError;

/// How wide the inode numbers of a root may be.
///
/// With `xino=on`, overlayfs gives all files of a root one device number, and marks the layer of a file in the highest bits of
/// its inode number. Without it, files of the image have a device number of their own, and directories get new numbers when
/// the kernel drops them from its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InodeWidth {
    /// One device number and stable inode numbers for the whole root.
    #[default]
    Bits64,
    /// For programs of 32 bits without large-file support, which get EOVERFLOW for larger numbers. Helps only if the
    /// filesystems of the image and the upper have such numbers; those of FUSE are larger.
    Bits32,
}

impl FromStr for InodeWidth {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "64bit" => Ok(Self::Bits64),
            "32bit" => Ok(Self::Bits32),
            _ => Err(RootsError::InodeWidth(text.to_owned())),
        }
    }
}

impl fmt::Display for InodeWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits64 => f.write_str("64bit"),
            Self::Bits32 => f.write_str("32bit"),
        }
    }
}
