//! Inode numbers: pure functions of what they name, and what a number from the kernel stands for.
//!
//! ```text
//! 1                                       the mount's root
//! layer slot << 32 | entry + 1            a node whose answers depend on its layer alone: one inode in every image
//! 1 << 59 | image slot << 32 | node + 1   a node whose answers depend on the image: directories, implied parents, and
//!                                         files whose link count in the image is not that in their layer
//! 1 << 60 | hash                          a name, tag or alias in the mount's namespace
//! ```
//!
//! Slots are the store's and never given to anything else, so a number means the same after a restart, and a program
//! that kept it (an overlay on top, an open file) is not misled. Slots count from 1, so that none of these numbers is 1.

use std::fmt;

/// An inode number of this mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(u64);

/// What an inode number stands for. That the slot, entry or node exists is for the caller to check: numbers come from
/// the kernel, and from file handles that any privileged program can make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedIno {
    /// The root of the mount or something else of its namespace.
    Namespace(Ino),
    /// An entry of a layer.
    Layer {
        /// The layer's slot.
        slot: u32,
        /// The entry's number.
        entry: u32,
    },
    /// A node of an image's tree.
    Image {
        /// The image's slot.
        slot: u32,
        /// The node's number.
        node: u32,
    },
}

impl Ino {
    /// The mount's root.
    pub const ROOT: Self = Self(1);
    /// Slots are from 1 to below this: they have 26 bits.
    pub const SLOT_LIMIT: u32 = 1 << 26;
    /// Entries and nodes are below this.
    pub const NODE_LIMIT: u32 = u32::MAX;
    /// Bits of a namespace number that say which it is.
    pub const NAMESPACE_MASK: u64 = (1 << 59) - 1;

    const IMAGE: u64 = 1 << 59;
    const NAMESPACE: u64 = 1 << 60;

    /// Number of a node that is the same in every image with its layer; `None` where slot or entry is out of range.
    #[must_use]
    pub fn of_layer(slot: u32, entry: u32) -> Option<Self> {
        Self::pack(slot, entry).map(Self)
    }

    /// Number of a node of one image; `None` where slot or node is out of range.
    #[must_use]
    pub fn of_image(slot: u32, node: u32) -> Option<Self> {
        Self::pack(slot, node).map(|number| Self(Self::IMAGE | number))
    }

    /// Number of a namespace node; of `hash`, the bits in [`Ino::NAMESPACE_MASK`] count.
    #[must_use]
    pub const fn of_namespace(hash: u64) -> Self {
        Self(Self::NAMESPACE | hash & Self::NAMESPACE_MASK)
    }

    /// A number as the kernel gives it; nothing is checked before [`Ino::place`].
    #[must_use]
    pub const fn from_kernel(number: u64) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What the number stands for; `None` where it is not one that the functions above make.
    #[must_use]
    pub fn place(self) -> Option<DecodedIno> {
        if self == Self::ROOT || self.0 & !Self::NAMESPACE_MASK == Self::NAMESPACE {
            return Some(DecodedIno::Namespace(self));
        }
        let low = u32::try_from(self.0 & u64::from(u32::MAX)).expect("masked to 32 bits");
        let low = low.checked_sub(1)?;
        let high = u32::try_from(self.0 >> 32).expect("shifted to 32 bits");
        let image = u32::try_from(Self::IMAGE >> 32).expect("bit 59 shifted to bit 27");
        match high {
            slot if Self::is_slot(slot) => Some(DecodedIno::Layer { slot, entry: low }),
            high if high & image != 0 && Self::is_slot(high & !image) => {
                Some(DecodedIno::Image { slot: high & !image, node: low })
            }
            _ => None,
        }
    }

    fn pack(slot: u32, low: u32) -> Option<u64> {
        let fits = Self::is_slot(slot) && low < Self::NODE_LIMIT;
        fits.then(|| u64::from(slot) << 32 | u64::from(low + 1))
    }

    fn is_slot(slot: u32) -> bool {
        (1..Self::SLOT_LIMIT).contains(&slot)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_says_what_it_stands_for() {
        let last_slot = Ino::SLOT_LIMIT - 1;
        let last_node = Ino::NODE_LIMIT - 1;
        for (slot, number) in [(1, 0), (1, last_node), (last_slot, 0), (last_slot, last_node), (5, 77)] {
            let layer = Ino::of_layer(slot, number).unwrap();
            assert_eq!(layer.place(), Some(DecodedIno::Layer { slot, entry: number }));
            let image = Ino::of_image(slot, number).unwrap();
            assert_eq!(image.place(), Some(DecodedIno::Image { slot, node: number }));
            assert_ne!(layer, image);
        }
        for hash in [0, 1, u64::MAX, 1 << 58] {
            let ino = Ino::of_namespace(hash);
            assert_eq!(ino.place(), Some(DecodedIno::Namespace(ino)));
        }
        assert_eq!(Ino::ROOT.place(), Some(DecodedIno::Namespace(Ino::ROOT)));
    }

    #[test]
    fn numbers_that_nothing_has_stand_for_nothing() {
        for number in
            [0, 2, 1 << 32, 1 << 58, (1 << 59) | 1, 1 << 59, 1 << 61, u64::MAX, (1 << 60) | (1 << 59)]
        {
            assert_eq!(Ino::from_kernel(number).place(), None, "{number:#x}");
        }
    }

    #[test]
    fn out_of_range_has_no_number() {
        assert_eq!(Ino::of_layer(Ino::SLOT_LIMIT, 0), None);
        assert_eq!(Ino::of_layer(0, 0), None, "it would be the root's number");
        assert_eq!(Ino::of_image(1, Ino::NODE_LIMIT), None);
    }
}
