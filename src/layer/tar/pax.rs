//! PAX extension headers (POSIX pax, "pax Extended Header"), with the records of star, GNU and libarchive.

use super::xattr::{self, has_place};
use super::{EntryKind, MAX_XATTR_LIST, MAX_XATTR_NAME, MAX_XATTR_VALUE, TarFault, Timestamp, Xattrs};

/// What the records of one extension header say.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Setting<u32>,
    pub(super) gid: Setting<u32>,
    pub(super) mtime: Setting<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// A value that an entry's own header, its PAX header and the global one may all have.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum Setting<T> {
    /// There is no record.
    #[default]
    Unset,
    /// A record without a value: what the global header says does not hold for this entry.
    Header,
    Value(T),
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    /// Any of them was there.
    pub(super) any: bool,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The file's name; `path` then is a made-up one.
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) segments: Option<u64>,
    /// Offset and length by turns, from `map` (0.1) or from `offset` and `numbytes` (0.0).
    pub(super) map: Vec<u64>,
}

impl<T: Copy> Setting<T> {
    /// The value where there is one, else the global one unless that is switched off, else the header's.
    pub(super) fn or(self, global: Self, header: T) -> T {
        match (self, global) {
            (Self::Value(value), _) | (Self::Unset, Self::Value(value)) => value,
            (Self::Header, _) | (Self::Unset, _) => header,
        }
    }

    fn update(&mut self, newer: Self) {
        if !matches!(newer, Self::Unset) {
            *self = newer;
        }
    }
}

impl Pax {
    /// Reads the records of a header for one entry.
    pub(super) fn parse(data: &[u8]) -> Result<Self, TarFault> {
        let mut pax = Self::default();
        for record in Records(data) {
            let (key, value) = record?;
            pax.apply(key, value)?;
        }
        Ok(pax)
    }

    /// Reads the records of a global header and has them override those of the ones before it.
    pub(super) fn update_global(&mut self, data: &[u8]) -> Result<(), TarFault> {
        let own = [b"path".as_slice(), b"linkpath", b"size"];
        let families = [b"GNU.sparse.".as_slice(), b"SCHILY.xattr.", b"LIBARCHIVE.xattr."];
        for record in Records(data) {
            let (key, _) = record?;
            if own.contains(&key) || families.iter().any(|family| key.starts_with(family)) {
                return Err(TarFault::GlobalRecord(key.into()));
            }
        }
        let newer = Self::parse(data)?;
        self.uid.update(newer.uid);
        self.gid.update(newer.gid);
        self.mtime.update(newer.mtime);
        Ok(())
    }

    /// The last record of a key wins. An empty value leaves the field to the entry's own header, but an xattr may be empty.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarFault> {
        let malformed = || TarFault::PaxRecord(key.into());
        match key {
            b"path" => self.path = name(value, key)?,
            b"linkpath" => self.link_path = name(value, key)?,
            b"size" => self.size = optional(value, size).ok_or_else(malformed)?,
            b"uid" => self.uid = setting(value, id).ok_or(TarFault::Range("uid"))?,
            b"gid" => self.gid = setting(value, id).ok_or(TarFault::Range("gid"))?,
            b"mtime" => self.mtime = setting(value, time).ok_or_else(malformed)?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.apply(key, value).ok_or_else(malformed)?;
                } else if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(key.to_vec(), value.to_vec())?;
                } else if let Some(encoded) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = decode_url(encoded).ok_or_else(malformed)?;
                    self.set_xattr(name, decode_base64(value).ok_or_else(malformed)?)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), TarFault> {
        if name.is_empty()
            || name.len() > MAX_XATTR_NAME
            || name.contains(&0)
            || value.len() > MAX_XATTR_VALUE
        {
            return Err(TarFault::Xattr(name.into()));
        }
        // An overlay on top of the image would act on them, no matter which of its layers they come from.
        if !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") {
            self.xattrs.push((name, value));
        }
        Ok(())
    }

    /// The xattrs that a file of this kind can have, in the order of their names; of several with one name the last. Beside
    /// them the permission bits, where an ACL tells them.
    pub(super) fn take_xattrs(&mut self, kind: &EntryKind) -> Result<(Xattrs, Option<u16>), TarFault> {
        let mut xattrs = std::mem::take(&mut self.xattrs);
        xattrs.retain(|(name, _)| has_place(name, kind));
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
            let effect =
                xattr::set(&name, value).ok_or_else(|| TarFault::XattrValue(name.as_slice().into()))?;
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
            b"major" => self.major = Some(size(value)?),
            b"minor" => self.minor = Some(size(value)?),
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"size" | b"realsize" => self.size = Some(size(value)?),
            b"numblocks" => self.segments = Some(size(value)?),
            b"map" if value.is_empty() => self.map.clear(),
            b"map" => {
                self.map = value.split(|&byte| byte == b',').map(size).collect::<Option<_>>()?;
            }
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(size(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(size(value)?),
            b"offset" | b"numbytes" => return None,
            _ => {}
        }
        Some(())
    }
}

/// The records of an extension header: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
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

fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Nothing that fits in an extension header has a length of more digits.
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(size(&data[..space])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn name(value: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, TarFault> {
    if value.contains(&0) {
        return Err(TarFault::PaxRecord(key.into()));
    }
    Ok(Some(value.to_vec()).filter(|value| !value.is_empty()))
}

/// `None` where the value is malformed.
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn setting<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Setting<T>> {
    if value.is_empty() { Some(Setting::Header) } else { parse(value).map(Setting::Value) }
}

/// Decimal digits and nothing else, up to `i64::MAX`: the most that a file can have.
pub(super) fn size(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    (value <= i64::MAX.unsigned_abs()).then_some(value)
}

fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(size(text)?).ok()
}

/// Seconds with a fraction, of which digits behind the ninth are cut off.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let sec = i64::try_from(size(whole)?).ok()?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nsec = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nsec) {
        (false, _) => Timestamp { sec, nsec },
        (true, 0) => Timestamp { sec: -sec, nsec },
        (true, _) => Timestamp { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// `%XX` becomes the byte, as libarchive writes xattr names.
fn decode_url(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            _ => byte,
        });
    }
    Some(decoded)
}

/// Base 64 with or without `=` at the end, as libarchive writes xattr values.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = &text[..text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1)];
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for position in 0..4 {
            let value = match group.get(position) {
                None => 0,
                Some(byte @ b'A'..=b'Z') => byte - b'A',
                Some(byte @ b'a'..=b'z') => byte - b'a' + 26,
                Some(byte @ b'0'..=b'9') => byte - b'0' + 52,
                Some(b'+') => 62,
                Some(b'/') => 63,
                Some(_) => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        match group.len() {
            1 => return None,
            digits => decoded.extend_from_slice(&bits.to_be_bytes()[1..digits]),
        }
    }
    Some(decoded)
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
    fn times_keep_nanoseconds_and_sign() {
        type Case<'a> = (&'a [u8], Option<(i64, u32)>);
        let cases: &[Case<'_>] = &[
            (b"0", Some((0, 0))),
            (b"1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            (b"1.", Some((1, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.1234567899", Some((1, 123_456_789))),
            (b"-1", Some((-1, 0))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-0.000000001", Some((-1, 999_999_999))),
            (b"-9223372036854775807.5", Some((i64::MIN, 500_000_000))),
            (b"9223372036854775808", None),
            (b"", None),
            (b".5", None),
            (b"-", None),
            (b"+1", None),
            (b"1e3", None),
            (b"1.5.5", None),
            (b"1.-5", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(sec, nsec)| Timestamp { sec, nsec });
            assert_eq!(time(text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn base64_is_decoded_with_and_without_padding() {
        let cases: &[(&[u8], Option<&[u8]>)] = &[
            (b"", Some(b"")),
            (b"Zg==", Some(b"f")),
            (b"Zg", Some(b"f")),
            (b"Zm8=", Some(b"fo")),
            (b"Zm8", Some(b"fo")),
            (b"Zm9v", Some(b"foo")),
            (b"Zm9vYg", Some(b"foob")),
            (b"//79+w", Some(b"\xff\xfe\xfd\xfb")),
            (b"Z", None),
            (b"Zm9v!", None),
            (b"Zg=v", None),
        ];
        for (text, expected) in cases {
            assert_eq!(decode_base64(text).as_deref(), *expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn malformed_records_are_errors() {
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
            assert!(matches!(Pax::parse(case), Err(TarFault::PaxRecord(_))), "{}", case.escape_ascii());
        }
        assert!(Pax::parse(b"6 a=b\n07 a=b\n5 a=\n").is_ok());
    }

    #[test]
    fn ids_have_32_bits() {
        let parse = |value: &str| Pax::parse(&record("uid", value.as_bytes())).map(|pax| pax.uid);
        assert!(matches!(parse("4294967295"), Ok(Setting::Value(u32::MAX))));
        for wrong in ["4294967296", "-1", "x"] {
            assert!(matches!(parse(wrong), Err(TarFault::Range("uid"))), "{wrong}");
        }
    }

    #[test]
    fn the_last_record_of_a_key_wins() {
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
        let mut pax = Pax::parse(&data).unwrap();
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
    fn xattrs_that_linux_cannot_hold_are_errors() {
        let long = format!("SCHILY.xattr.user.{}", "x".repeat(251));
        for data in [
            record("SCHILY.xattr.", b"x"),
            record(&long, b"x"),
            record("LIBARCHIVE.xattr.user%00", b""),
            record("SCHILY.xattr.user.a", &[0; MAX_XATTR_VALUE + 1]),
        ] {
            assert!(matches!(Pax::parse(&data), Err(TarFault::Xattr(_))));
        }
        let many: Vec<u8> =
            (0..600).flat_map(|n| record(&format!("SCHILY.xattr.user.{n:0>120}"), b"")).collect();
        assert!(matches!(
            Pax::parse(&many).unwrap().take_xattrs(&EntryKind::Directory),
            Err(TarFault::Xattr(_))
        ));
    }

    #[test]
    fn a_global_header_sets_times_and_owners_only() {
        let mut global = Pax::default();
        global.update_global(&record("uid", b"7")).unwrap();
        global.update_global(&[record("comment", b"x"), record("mtime", b"1.5")].concat()).unwrap();
        assert_eq!(Setting::Unset.or(global.uid, 1), 7);
        assert_eq!(Setting::Value(9).or(global.uid, 1), 9);
        assert_eq!(Setting::Header.or(global.uid, 1), 1);
        assert_eq!(Setting::Unset.or(global.gid, 1), 1);
        for key in
            ["path", "linkpath", "size", "GNU.sparse.major", "SCHILY.xattr.user.a", "LIBARCHIVE.xattr.a"]
        {
            let wrong = global.update_global(&record(key, b"1"));
            assert!(matches!(wrong, Err(TarFault::GlobalRecord(_))), "{key}");
        }
    }
}
