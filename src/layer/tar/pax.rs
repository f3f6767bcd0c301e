//! PAX extension headers (POSIX pax, "pax Extended Header"), with the records of star, GNU and libarchive.

use super::pax_values::{decode_base64, decode_url, parse_id, parse_size, parse_time};
use super::xattr::{effect_of_setting, is_of_linux, is_storable};
use super::{EntryKind, MAX_XATTR_LIST, MAX_XATTR_NAME, MAX_XATTR_VALUE, TarFault, Timestamp, Xattrs};

/// The records of one extension header.
#[derive(Debug, Default)]
pub(super) struct PaxHeader {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: PaxValue<u32>,
    pub(super) gid: PaxValue<u32>,
    pub(super) mtime: PaxValue<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// A value that the entry's own header, its PAX header and the global PAX header may each set.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum PaxValue<T> {
    /// No record sets the value.
    #[default]
    Unset,
    /// A record without a value: the entry's own header applies, even if the global header sets a value.
    Header,
    /// A record with a value.
    Value(T),
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    /// Whether the extension header has any such record.
    pub(super) any: bool,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The file's name. `path` is then a placeholder.
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) segments: Option<u64>,
    /// Offsets and lengths, alternating, from `map` (0.1) or from `offset` and `numbytes` (0.0).
    pub(super) map: Vec<u64>,
}

impl<T: Copy> PaxValue<T> {
    /// Returns the value if it is set; otherwise the global value, unless an empty record cancels it; otherwise the header's
    /// value.
    pub(super) fn or(self, global: Self, header: T) -> T {
        match (self, global) {
            (Self::Value(value), _) | (Self::Unset, Self::Value(value)) => value,
            (Self::Header, _) | (Self::Unset, _) => header,
        }
    }

    /// Replaces the value, unless the newer header has no such record.
    fn update(&mut self, newer: Self) {
        if !matches!(newer, Self::Unset) {
            *self = newer;
        }
    }
}

impl PaxHeader {
    /// Parses the extension header of one entry.
    pub(super) fn parse(data: &[u8]) -> Result<Self, TarFault> {
        let mut pax = Self::default();
        for record in PaxRecords(data) {
            let (key, value) = record?;
            pax.apply(key, value)?;
        }
        Ok(pax)
    }

    /// Parses a global header. Its records override those of earlier ones.
    pub(super) fn update_global(&mut self, data: &[u8]) -> Result<(), TarFault> {
        let names = [b"path".as_slice(), b"linkpath", b"size"];
        let prefixes = [b"GNU.sparse.".as_slice(), b"SCHILY.xattr.", b"LIBARCHIVE.xattr."];
        for record in PaxRecords(data) {
            let (key, _) = record?;
            if names.contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix)) {
                return Err(TarFault::GlobalRecord(key.into()));
            }
        }
        let newer = Self::parse(data)?;
        self.uid.update(newer.uid);
        self.gid.update(newer.gid);
        self.mtime.update(newer.mtime);
        Ok(())
    }

    /// Applies one record. The last record of a key wins. An empty value means that the entry's own header applies, except
    /// that xattrs may be empty.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarFault> {
        let malformed = || TarFault::PaxRecord(key.into());
        match key {
            b"path" => self.path = name(value, key)?,
            b"linkpath" => self.link_path = name(value, key)?,
            b"size" => self.size = optional(value, parse_size).ok_or_else(malformed)?,
            b"uid" => self.uid = pax_value(value, parse_id).ok_or(TarFault::Range("uid"))?,
            b"gid" => self.gid = pax_value(value, parse_id).ok_or(TarFault::Range("gid"))?,
            b"mtime" => self.mtime = pax_value(value, parse_time).ok_or_else(malformed)?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.apply(key, value).ok_or_else(malformed)?;
                } else if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(key.to_vec(), value.to_vec())?;
                } else if let Some(encoded) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = decode_url(encoded);
                    if is_of_linux(&name) {
                        self.set_xattr(name, decode_base64(value).ok_or_else(malformed)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), TarFault> {
        if !is_of_linux(&name) {
            return Ok(());
        }
        if name.len() > MAX_XATTR_NAME || name.contains(&0) || value.len() > MAX_XATTR_VALUE {
            return Err(TarFault::Xattr(name.into()));
        }
        // An overlay on top of the image would interpret these xattrs, in whichever layer they are.
        if !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") {
            self.xattrs.push((name, value));
        }
        Ok(())
    }

    /// Takes the xattrs that a file of this kind can have, sorted by name; the last one wins if a name repeats. Also returns
    /// the permission bits, if an ACL sets them.
    pub(super) fn take_xattrs(&mut self, kind: &EntryKind) -> Result<(Xattrs, Option<u16>), TarFault> {
        let mut xattrs = std::mem::take(&mut self.xattrs);
        xattrs.retain(|(name, _)| is_storable(name, kind));
        xattrs.reverse();
        xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
        xattrs.dedup_by(|later, kept| later.0 == kept.0);
        if let Some((name, _)) = xattrs.last()
            && xattrs.iter().map(|(name, _)| name.len() + 1).sum::<usize>() > MAX_XATTR_LIST
        {
            return Err(TarFault::Xattr(name.as_slice().into()));
        }
        let mut permissions = None;
        let mut taken = Xattrs::new();
        for (name, value) in xattrs {
            let effect = effect_of_setting(&name, value)
                .ok_or_else(|| TarFault::XattrValue(name.as_slice().into()))?;
            permissions = permissions.or(effect.permissions);
            taken.extend(effect.value.map(|value| (name.into(), value.into())));
        }
        Ok((taken, permissions))
    }
}

impl SparseRecords {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        self.any = true;
        match key {
            b"major" => self.major = Some(parse_size(value)?),
            b"minor" => self.minor = Some(parse_size(value)?),
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"size" | b"realsize" => self.size = Some(parse_size(value)?),
            b"numblocks" => self.segments = Some(parse_size(value)?),
            b"map" if value.is_empty() => self.map.clear(),
            b"map" => {
                self.map = value.split(|&byte| byte == b',').map(parse_size).collect::<Option<_>>()?;
            }
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(parse_size(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(parse_size(value)?),
            b"offset" | b"numbytes" => return None,
            _ => {}
        }
        Some(())
    }
}

/// Iterates over the records of an extension header: `LENGTH KEY=VALUE\n`, where the length covers the whole record.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), TarFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.map_or(&[], |(_, _, rest)| rest);
        Some(record.map(|(key, value, _)| (key, value)).ok_or_else(|| TarFault::PaxRecord(Box::default())))
    }
}

/// Returns the keys and values of an extension header's records. A value may be any bytes, and only its length ends it.
pub(crate) fn pax_records(data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), TarFault>> {
    PaxRecords(data)
}

/// Splits off the first record: its key, its value, and the remaining data. `None` if it is malformed.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A valid length has at most 19 digits, as many as `i64::MAX`.
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(parse_size(&data[..space])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// Parses a name; `None` if it is empty.
fn name(value: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, TarFault> {
    if value.contains(&0) {
        return Err(TarFault::PaxRecord(key.into()));
    }
    Ok(Some(value.to_vec()).filter(|value| !value.is_empty()))
}

/// Parses a value that may be empty. The outer `None` means that it is malformed.
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

/// Parses a value for which an empty record has a meaning. `None` if it is malformed.
fn pax_value<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<PaxValue<T>> {
    if value.is_empty() { Some(PaxValue::Header) } else { parse(value).map(PaxValue::Value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ".as_slice(), key.as_bytes(), b"=", value, b"\n"].concat();
        let length = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
        [(rest.len() + length).to_string().as_bytes(), &rest].concat()
    }

    #[test]
    fn malformed_record_is_an_error() {
        let cases: &[&[u8]] = &[
            b"x",
            b"\0",
            b"6 a=b",
            b"6 a=bc",
            b"7 a=b\n",
            b"5 a=b\n",
            b"06 a=b\0",
            b"4 a=\n",
            b"6 aab\n",
            b"5 =b\n",
            b"-6 a=b\n",
            b"7 a\0=b\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551621 a=b\n",
            b"6 a=b\n\0",
            b"0 \n",
            b"1",
            b"2 ",
            b" 6 a=b\n",
            b"13 path=a\0bc\n",
            b"11 size=-1\n",
            b"11 size=1k\n",
            b"28 size=9223372036854775808\n",
            b"11 mtime=x\n",
            b"21 GNU.sparse.map=1,\n",
            b"24 GNU.sparse.numbytes=1\n",
        ];
        for case in cases {
            assert!(matches!(PaxHeader::parse(case), Err(TarFault::PaxRecord(_))), "{}", case.escape_ascii());
        }
        assert!(PaxHeader::parse(b"6 a=b\n07 a=b\n5 a=\n").is_ok());
    }

    #[test]
    fn id_must_fit_into_32_bits() {
        let parse = |value: &str| PaxHeader::parse(&record("uid", value.as_bytes())).map(|pax| pax.uid);
        assert!(matches!(parse("4294967295"), Ok(PaxValue::Value(u32::MAX))));
        for wrong in ["4294967296", "-1", "x"] {
            assert!(matches!(parse(wrong), Err(TarFault::Range("uid"))), "{wrong}");
        }
    }

    #[test]
    fn last_record_of_a_key_wins() {
        let data = [
            record("path", b"a"),
            record("path", b"b"),
            record("SCHILY.xattr.user.b", b"1"),
            record("SCHILY.xattr.user.a", b"\0\n=\xff"),
            record("LIBARCHIVE.xattr.user%2Eb", b"Mg"),
            record("SCHILY.xattr.user.empty", b""),
            record("SCHILY.xattr.user.overlay.opaque", b"y"),
            record("SCHILY.xattr.trusted.overlay.redirect", b"/"),
            record("LIBARCHIVE.xattr.trusted.overlay.opaque", b"eQ"),
            record("SCHILY.xattr.trusted.overlayx", b"kept"),
        ]
        .concat();
        let mut pax = PaxHeader::parse(&data).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        let xattrs: Vec<_> = pax.take_xattrs(&EntryKind::Directory).unwrap().0;
        let xattrs: Vec<(&[u8], &[u8])> = xattrs.iter().map(|(name, value)| (&**name, &**value)).collect();
        let expected: &[(&[u8], &[u8])] = &[
            (b"trusted.overlayx", b"kept"),
            (b"user.a", b"\0\n=\xff"),
            (b"user.b", b"2"),
            (b"user.empty", b""),
        ];
        assert_eq!(xattrs, expected);
    }

    #[test]
    fn xattr_that_linux_cannot_store_is_an_error() {
        let long = format!("SCHILY.xattr.user.{}", "x".repeat(251));
        for data in [
            record(&long, b"x"),
            record("LIBARCHIVE.xattr.user.%00", b""),
            record("SCHILY.xattr.user.a", &[0; MAX_XATTR_VALUE + 1]),
        ] {
            assert!(matches!(PaxHeader::parse(&data), Err(TarFault::Xattr(_))));
        }
        let many: Vec<u8> =
            (0..600).flat_map(|n| record(&format!("SCHILY.xattr.user.{n:0>120}"), b"")).collect();
        assert!(matches!(
            PaxHeader::parse(&many).unwrap().take_xattrs(&EntryKind::Directory),
            Err(TarFault::Xattr(_))
        ));
    }

    #[test]
    fn xattr_of_another_system_is_ignored_whatever_its_form() {
        for (key, value) in [
            ("SCHILY.xattr.", &b"x"[..]),
            ("SCHILY.xattr.com.apple.provenance", b"\x01\0\n=\n\xff"),
            ("SCHILY.xattr.com.apple.ResourceFork", &[7; MAX_XATTR_VALUE + 1]),
            ("LIBARCHIVE.xattr.com.apple.macl", b"not base64!"),
            ("LIBARCHIVE.xattr.com.apple.%", b"AQ"),
            ("LIBARCHIVE.xattr.com.apple.%zz", b"AQ"),
        ] {
            let data = [record(key, value), record("SCHILY.xattr.user.a", b"1")].concat();
            let xattrs = PaxHeader::parse(&data).unwrap().xattrs;
            assert_eq!(xattrs, [(b"user.a".to_vec(), b"1".to_vec())], "{key}");
        }
    }

    #[test]
    fn global_header_sets_only_times_and_owners() {
        let mut global = PaxHeader::default();
        global.update_global(&record("uid", b"7")).unwrap();
        global.update_global(&[record("comment", b"x"), record("mtime", b"1.5")].concat()).unwrap();
        assert_eq!(PaxValue::Unset.or(global.uid, 1), 7);
        assert_eq!(PaxValue::Value(9).or(global.uid, 1), 9);
        assert_eq!(PaxValue::Header.or(global.uid, 1), 1);
        assert_eq!(PaxValue::Unset.or(global.gid, 1), 1);
        for key in
            ["path", "linkpath", "size", "GNU.sparse.major", "SCHILY.xattr.user.a", "LIBARCHIVE.xattr.a"]
        {
            let wrong = global.update_global(&record(key, b"1"));
            assert!(matches!(wrong, Err(TarFault::GlobalRecord(_))), "{key}");
        }
    }
}
