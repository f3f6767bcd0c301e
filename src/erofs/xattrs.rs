//! The xattrs of a tree: which are stored once for all nodes that have them, and which beside their inode.

use std::collections::HashMap;

use super::error::Inexpressible;
use super::format::{SHARED_XATTRS_MAX, XATTR_AREA_MAX, XATTR_FILTER_SEED, XATTR_HEADER_LEN};
use crate::layer::Printable;

/// Attributes longer than this are stored in the shared area even if only one node has them, so that few inodes grow long.
const INLINE_MAX: usize = 1024;
/// The alignment of an attribute (`EROFS_XATTR_ALIGN`); also the unit of the numbers of shared attributes.
const ALIGN: usize = 4;
/// The length of an attribute without name and value (`struct erofs_xattr_entry`).
const ENTRY_LEN: usize = 4;

/// The namespaces that have a number (`EROFS_XATTR_INDEX_*`). The name of an ACL is its namespace alone.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An attribute as the format stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StoredXattr<'a> {
    namespace: u8,
    /// The name without its namespace.
    suffix: &'a [u8],
    value: &'a [u8],
}

impl<'a> StoredXattr<'a> {
    fn new(name: &'a [u8], value: &'a [u8]) -> Result<Self, Inexpressible> {
        let unknown = || Inexpressible::XattrName(Printable(name).to_string());
        let (namespace, suffix) = NAMESPACES
            .iter()
            .find_map(|(prefix, number)| Some((*number, name.strip_prefix(*prefix)?)))
            .ok_or_else(unknown)?;
        if suffix.len() > usize::from(u8::MAX) {
            return Err(unknown());
        }
        if value.len() > usize::from(u16::MAX) {
            let name = Printable(name).to_string();
            return Err(Inexpressible::XattrValue { name, bytes: value.len() });
        }
        Ok(Self { namespace, suffix, value })
    }

    /// The length with its padding.
    fn len(&self) -> usize {
        (ENTRY_LEN + self.suffix.len() + self.value.len()).next_multiple_of(ALIGN)
    }

    /// The bit of the name filter that this attribute clears: a set bit means that no attribute has such a name
    /// (fs/erofs/xattr.c, `erofs_getxattr`).
    fn filter_bit(&self) -> u32 {
        let seed = XATTR_FILTER_SEED + u32::from(self.namespace);
        1 << (twox_hash::XxHash32::oneshot(seed, self.suffix) & 31)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.len();
        out.push(u8::try_from(self.suffix.len()).expect("`new` limits the length of names"));
        out.push(self.namespace);
        let value_len = u16::try_from(self.value.len()).expect("`new` limits the length of values");
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(self.suffix);
        out.extend_from_slice(self.value);
        out.resize(end, 0);
    }
}

/// The attributes of all nodes.
#[derive(Debug)]
pub(super) struct XattrTable<'a> {
    /// The number of each attribute that is stored in the shared area: its offset there, in units of [`ALIGN`].
    shared: HashMap<StoredXattr<'a>, u32>,
    /// The shared area.
    area: Vec<u8>,
}

impl<'a> XattrTable<'a> {
    /// Collects the attributes of all nodes, in the order of the nodes.
    pub(super) fn collect<S, I>(nodes: S) -> Result<Self, Inexpressible>
    where
        S: Iterator<Item = I>,
        I: Iterator<Item = (&'a [u8], &'a [u8])>,
    {
        let mut uses: HashMap<StoredXattr<'a>, (u32, u32)> = HashMap::new();
        for xattrs in nodes {
            for (name, value) in xattrs {
                let order = u32::try_from(uses.len()).map_err(|_| Inexpressible::Metadata)?;
                let (_, count) = uses.entry(StoredXattr::new(name, value)?).or_insert((order, 0));
                *count = count.saturating_add(1);
            }
        }
        let is_shared = |xattr: &StoredXattr<'_>, count| count > 1 || xattr.len() > INLINE_MAX;
        let mut list: Vec<(u32, StoredXattr<'a>)> = uses
            .into_iter()
            .filter(|(xattr, (_, count))| is_shared(xattr, *count))
            .map(|(xattr, (order, _))| (order, xattr))
            .collect();
        list.sort_unstable_by_key(|(order, _)| *order);
        let (mut shared, mut area) = (HashMap::new(), Vec::new());
        for (_, xattr) in list {
            let number = u32::try_from(area.len() / ALIGN).map_err(|_| Inexpressible::Metadata)?;
            xattr.write(&mut area);
            shared.insert(xattr, number);
        }
        Ok(Self { shared, area })
    }

    /// The shared area.
    pub(super) fn area(&self) -> &[u8] {
        &self.area
    }

    /// Appends the xattr area of an inode to `out`, nothing for an inode without attributes.
    pub(super) fn write_area(
        &self,
        xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        out: &mut Vec<u8>,
    ) -> Result<(), Inexpressible> {
        let start = out.len();
        let (mut numbers, mut inline, mut filter) = (Vec::new(), Vec::new(), u32::MAX);
        for (name, value) in xattrs {
            let xattr = StoredXattr::new(name, value)?;
            filter &= !xattr.filter_bit();
            match self.shared.get(&xattr) {
                Some(number) if numbers.len() < SHARED_XATTRS_MAX => numbers.push(*number),
                _ => xattr.write(&mut inline),
            }
        }
        if numbers.is_empty() && inline.is_empty() {
            return Ok(());
        }
        let bytes = XATTR_HEADER_LEN + ALIGN * numbers.len() + inline.len();
        if bytes > XATTR_AREA_MAX {
            return Err(Inexpressible::Xattrs { bytes, max: XATTR_AREA_MAX });
        }
        out.extend_from_slice(&filter.to_le_bytes());
        out.push(u8::try_from(numbers.len()).expect("the number of shared attributes was limited"));
        out.resize(start + XATTR_HEADER_LEN, 0);
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&inline);
        Ok(())
    }
}
