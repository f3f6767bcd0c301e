//! Writes the members of a tar, in the format of GNU tar with PAX records for what its headers cannot hold.
//!
//! The bytes depend on the members alone, so that the same files give the same digest.

use std::io::{self, Read, Write};
use std::ops::Range;

use tar::{Builder, EntryType, Header};

use super::Timestamp;

/// Length of the fields for names and link targets in a header.
const NAME_BYTES: usize = 100;
/// Length of a block of a tar.
const BLOCK: usize = 512;
/// The name in the header of a sparse file, for readers that know no sparse files. Its own name is in a record.
const SPARSE_NAME: &[u8] = b"GNUSparseFile.0/file";

/// The metadata of a member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewMember<'a> {
    pub(crate) kind: EntryType,
    /// The name. That of a directory ends with `/`.
    pub(crate) path: &'a [u8],
    /// The target of a link; empty for other members.
    pub(crate) target: &'a [u8],
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Major and minor number.
    pub(crate) device: Option<(u32, u32)>,
}

/// The data of a sparse file: the ranges outside of its holes, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataRanges {
    pub(crate) size: u64,
    pub(crate) data: Vec<Range<u64>>,
}

/// Writes members to a tar.
pub(crate) struct MemberWriter<W: Write> {
    tar: Builder<W>,
}

impl<W: Write> MemberWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { tar: Builder::new(out) }
    }

    /// Appends a member with `size` bytes of content.
    pub(crate) fn append<'x>(
        &mut self,
        member: &NewMember<'_>,
        xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        let mut records = Records::of_member(member, xattrs);
        records.add_long(b"path", member.path);
        self.records(&records)?;
        let mut header = header(member, member.path);
        header.set_size(size);
        header.set_cksum();
        self.tar.append(&header, content)
    }

    /// Appends a regular file with holes (version 1.0 of the sparse format of GNU tar). `content` is the data without the holes.
    pub(crate) fn append_sparse<'x>(
        &mut self,
        member: &NewMember<'_>,
        xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>,
        map: &DataRanges,
        content: impl Read,
    ) -> io::Result<()> {
        let mut records = Records::of_member(member, xattrs);
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", member.path);
        records.add(b"GNU.sparse.realsize", map.size.to_string().as_bytes());
        self.records(&records)?;
        let mut list = format!("{}\n", map.data.len());
        let mut bytes = 0;
        for data in &map.data {
            let length = data.end - data.start;
            list.push_str(&format!("{}\n{length}\n", data.start));
            bytes += length;
        }
        let mut list = list.into_bytes();
        list.resize(list.len().next_multiple_of(BLOCK), 0);
        let mut header = header(member, SPARSE_NAME);
        header.set_size(list.len() as u64 + bytes);
        header.set_cksum();
        self.tar.append(&header, list.chain(content))
    }

    /// Writes the end of the tar.
    pub(crate) fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    fn records(&mut self, records: &Records) -> io::Result<()> {
        if records.0.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.0.len() as u64);
        header.set_cksum();
        self.tar.append(&header, &*records.0)
    }
}

/// Returns a header without its size and checksum.
fn header(member: &NewMember<'_>, name: &[u8]) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(member.kind);
    let fields = header.as_old_mut();
    for (value, field) in [(name, &mut fields.name), (member.target, &mut fields.linkname)] {
        let fitting = value.len().min(NAME_BYTES);
        field[..fitting].copy_from_slice(&value[..fitting]);
    }
    header.set_mode(member.mode.into());
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    header.set_mtime(u64::try_from(member.mtime.sec).unwrap_or(0));
    if let (Some((major, minor)), Some(fields)) = (member.device, header.as_gnu_mut()) {
        fields.set_device_major(major);
        fields.set_device_minor(minor);
    }
    header
}

/// PAX records (pax(1)): `LENGTH KEY=VALUE\n`. Keys and values are bytes, as names of files and of extended attributes are.
#[derive(Debug, Default)]
struct Records(Vec<u8>);

impl Records {
    /// The records that a member needs whatever its name.
    fn of_member<'x>(member: &NewMember<'_>, xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>) -> Self {
        let mut records = Self::default();
        records.add_long(b"linkpath", member.target);
        let Timestamp { sec, nsec } = member.mtime;
        if sec < 0 || nsec > 0 {
            records.add(b"mtime", decimal(sec, nsec).as_bytes());
        }
        for (name, value) in xattrs {
            records.add(&[b"SCHILY.xattr.", name].concat(), value);
        }
        records
    }

    fn add_long(&mut self, key: &[u8], value: &[u8]) {
        if value.len() > NAME_BYTES {
            self.add(key, value);
        }
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        // A space, `=` and a newline.
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(&[key, b"=", value, b"\n"].concat());
    }
}

/// Formats a time as PAX does: a decimal number, whose fraction has the sign of the whole.
fn decimal(sec: i64, nsec: u32) -> String {
    match (sec, nsec) {
        (sec, nsec) if sec >= 0 || nsec == 0 => format!("{sec}.{nsec:09}"),
        // `sec` is rounded down.
        (sec, nsec) => format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_decimal_numbers() {
        for (sec, nsec, text) in [
            (1, 5, "1.000000005"),
            (-1, 0, "-1.000000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 999_999_999, "-0.000000001"),
        ] {
            assert_eq!(decimal(sec, nsec), text);
        }
    }

    #[test]
    fn length_of_a_record_counts_its_own_digits() {
        for (length, expected) in [(0, "5 k=\n"), (3, "8 k=vvv\n"), (4, "9 k=vvvv\n"), (5, "11 k=vvvvv\n")] {
            let mut records = Records::default();
            records.add(b"k", &vec![b'v'; length]);
            assert_eq!(String::from_utf8(records.0).unwrap(), expected);
        }
        let mut records = Records::default();
        records.add(b"k", &[b'v'; 93]);
        assert!(records.0.starts_with(b"99 k="), "{}", records.0.len());
        assert_eq!(records.0.len(), 99);
        records.0.clear();
        records.add(b"k", &[b'v'; 94]);
        assert!(records.0.starts_with(b"101 k="));
        assert_eq!(records.0.len(), 101);
    }
}
