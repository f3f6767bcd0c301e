//! The fields of a header block: v7, ustar, star and GNU.

use super::BLOCK;

/// A header block with a valid checksum.
#[derive(Debug)]
pub(super) struct TarHeader<'a>(&'a [u8; BLOCK]);

/// The format of a header: which fields follow the common ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFormat {
    /// No further fields.
    V7,
    /// A name prefix and device numbers. PAX archives use this format.
    Ustar,
    /// Like ustar, with a shorter prefix.
    Star,
    /// Device numbers, and a sparse map in the place of the prefix.
    Gnu,
}

impl<'a> TarHeader<'a> {
    /// Verifies the checksum, the sum of unsigned or (by some historic writers) signed bytes. `None` if it does not match.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (position, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&position) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(i8::from_ne_bytes([byte]));
        }
        (stored == unsigned || stored == signed).then_some(Self(block))
    }

    pub(super) fn format(&self) -> HeaderFormat {
        match (&self.0[257..263], &self.0[263..265]) {
            (b"ustar\0", _) if &self.0[508..512] == b"tar\0" => HeaderFormat::Star,
            (b"ustar\0", _) => HeaderFormat::Ustar,
            (b"ustar ", b" \0") => HeaderFormat::Gnu,
            _ => HeaderFormat::V7,
        }
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix if the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let prefix = match self.format() {
            HeaderFormat::Ustar => text(&self.0[345..500]),
            HeaderFormat::Star => text(&self.0[345..476]),
            HeaderFormat::V7 | HeaderFormat::Gnu => &[],
        };
        let name = text(&self.0[..100]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor number of a device; zero in a v7 header, which has none. `None` if malformed.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        match self.format() {
            HeaderFormat::V7 => Some((0, 0)),
            HeaderFormat::Ustar | HeaderFormat::Star | HeaderFormat::Gnu => {
                Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
            }
        }
    }

    /// The start of an old GNU sparse map: its entries, whether further blocks follow, and the file's size.
    pub(super) fn gnu_sparse(&self) -> (&[u8], bool, Option<i64>) {
        (&self.0[386..482], self.0[482] != 0, number(&self.0[483..495]))
    }
}

/// Returns a field's text: the bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.iter().position(|&byte| byte == 0).map_or(field, |end| &field[..end])
}

/// Parses a field's number: octal digits surrounded by spaces or NULs (no digits mean 0), or, if the top bit is set, two's
/// complement in base 256 (GNU). `None` if malformed or out of range.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, ..] if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let flip = if negative { 0xff } else { 0 };
            let mut value = u64::from((first ^ flip) & 0x7f);
            for byte in &field[1..] {
                if value >> 56 != 0 {
                    return None;
                }
                value = value << 8 | u64::from(byte ^ flip);
            }
            let value = i64::try_from(value).ok()?;
            Some(if negative { !value } else { value })
        }
        _ => {
            let padding = |byte: &u8| matches!(byte, b' ' | 0);
            let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
            let digits = text(&field[start..]);
            let digits = &digits[..digits.iter().rposition(|byte| !padding(byte)).map_or(0, |last| last + 1)];
            digits.iter().try_fold(0i64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_numbers_are_octal_or_base_256() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0 644\0 ", Some(0o644)),
            (b"00000644", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"6 4\0", None),
            (b"648\0", None),
            (b"-1\0", None),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\0\x02\0\0\0\0\0\0", Some(2 << 48)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), *expected, "{}", field.escape_ascii());
        }
    }
}
