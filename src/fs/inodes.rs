//! Encodes slots, entries and nodes as inode numbers, and decodes numbers from the kernel.
//!
//! ```text
//! 1                                       the mount's root
//! layer slot << 32 | entry + 1            a node that is the same in every image that has the layer
//! 1 << 59 | image slot << 32 | node + 1   a node that depends on the image: directories, implied parents, and files
//!                                         whose link count in the image differs from that in their layer
//! 1 << 60 | hash                          a directory, tag or alias in the mount's namespace
//! ```
//!
//! The store never reuses a slot. A number therefore means the same after a restart, even for a program that kept it: an
//! overlay on top of the mount, or an open file. Slots start at 1, so none of these numbers is 1.

use std::fmt;

/// An inode number of this mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(u64);

/// The parts of an inode number.
///
/// The caller must check that the slot, entry or node exists: numbers come from the kernel, and from file handles that any
/// privileged program can forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedIno {
    /// The mount's root, or another node of its namespace.
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
    /// Slots are at least 1 and below this limit: 26 bits.
    pub const SLOT_LIMIT: u32 = 1 << 26;
    /// Entry and node numbers are below this limit.
    pub const NODE_LIMIT: u32 = u32::MAX;
    /// The bits of a namespace number that hold its hash.
    pub const NAMESPACE_MASK: u64 = (1 << 59) - 1;

    const IMAGE: u64 = 1 << 59;
    const NAMESPACE: u64 = 1 << 60;

    /// The number of a layer's entry that is the same in all images; `None` if slot or entry is out of range.
    #[must_use]
    pub fn of_layer(slot: u32, entry: u32) -> Option<Self> {
        Self::pack(slot, entry).map(Self)
    }

    /// The number of a node that belongs to one image; `None` if slot or node is out of range.
    #[must_use]
    pub fn of_image(slot: u32, node: u32) -> Option<Self> {
        Self::pack(slot, node).map(|number| Self(Self::IMAGE | number))
    }

    /// The number of a namespace node. Only the bits of `hash` in [`Ino::NAMESPACE_MASK`] are used.
    #[must_use]
    pub const fn of_namespace(hash: u64) -> Self {
        Self(Self::NAMESPACE | hash & Self::NAMESPACE_MASK)
    }

    /// Wraps a number from the kernel. The number is not checked before [`Ino::decode`].
    #[must_use]
    pub const fn from_kernel(number: u64) -> Self {
        Self(number)
    }

    /// The raw number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Splits the number into its parts; `None` if the functions above cannot make this number.
    #[must_use]
    pub fn decode(self) -> Option<DecodedIno> {
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
    fn numbers_decode_to_the_parts_they_were_made_from() {
        let last_slot = Ino::SLOT_LIMIT - 1;
        let last_node = Ino::NODE_LIMIT - 1;
        for (slot, number) in [(1, 0), (1, last_node), (last_slot, 0), (last_slot, last_node), (5, 77)] {
            let layer = Ino::of_layer(slot, number).unwrap();
            assert_eq!(layer.decode(), Some(DecodedIno::Layer { slot, entry: number }));
            let image = Ino::of_image(slot, number).unwrap();
            assert_eq!(image.decode(), Some(DecodedIno::Image { slot, node: number }));
            assert_ne!(layer, image);
        }
        for hash in [0, 1, u64::MAX, 1 << 58] {
            let ino = Ino::of_namespace(hash);
            assert_eq!(ino.decode(), Some(DecodedIno::Namespace(ino)));
        }
        assert_eq!(Ino::ROOT.decode(), Some(DecodedIno::Namespace(Ino::ROOT)));
    }

    #[test]
    fn three_highest_bits_of_numbers_are_free_for_overlayfs() {
        // With xino=on, an overlay of up to four filesystems marks the layer of a file in three bits
        // (fs/overlayfs/super.c, `xino_mode`).
        let largest = [
            Ino::of_layer(Ino::SLOT_LIMIT - 1, Ino::NODE_LIMIT - 1).unwrap(),
            Ino::of_image(Ino::SLOT_LIMIT - 1, Ino::NODE_LIMIT - 1).unwrap(),
            Ino::of_namespace(u64::MAX),
        ];
        for ino in largest {
            assert_eq!(ino.get() >> 61, 0, "{ino}");
        }
    }

    #[test]
    fn numbers_that_no_inode_has_do_not_decode() {
        for number in
            [0, 2, 1 << 32, 1 << 58, (1 << 59) | 1, 1 << 59, 1 << 61, u64::MAX, (1 << 60) | (1 << 59)]
        {
            assert_eq!(Ino::from_kernel(number).decode(), None, "{number:#x}");
        }
    }

    #[test]
    fn slots_and_nodes_out_of_range_have_no_number() {
        assert_eq!(Ino::of_layer(Ino::SLOT_LIMIT, 0), None);
        assert_eq!(Ino::of_layer(0, 0), None, "would be the number of the root");
        assert_eq!(Ino::of_image(1, Ino::NODE_LIMIT), None);
    }
}
