//! Parses the values of PAX records.

use super::Timestamp;

/// Parses decimal digits and nothing else, up to `i64::MAX`, the largest file size.
pub(super) fn parse_size(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    (value <= i64::MAX.unsigned_abs()).then_some(value)
}

/// Parses a user or group ID.
pub(super) fn parse_id(text: &[u8]) -> Option<u32> {
    u32::try_from(parse_size(text)?).ok()
}

/// Parses seconds with an optional fraction. Digits after the ninth are ignored.
pub(super) fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let sec = i64::try_from(parse_size(whole)?).ok()?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nsec = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nsec) {
        (false, _) => Timestamp { sec, nsec },
        (true, 0) => Timestamp { sec: -sec, nsec },
        (true, _) => Timestamp { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// Decodes `%XX`, which libarchive writes in xattr names. Anything else after `%` stands for itself, as in libarchive.
pub(super) fn decode_url(mut text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let escaped = match rest {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                text = &rest[2..];
            }
            None => {
                decoded.push(*first);
                text = rest;
            }
        }
    }
    decoded
}

/// Decodes base64 with or without `=` at the end, which libarchive writes in xattr values.
pub(super) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
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

    #[test]
    fn time_keeps_nanoseconds_and_sign() {
        let cases = [
            (&b"0"[..], Some((0, 0))),
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
            assert_eq!(parse_time(text), expected, "{}", text.escape_ascii());
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
}
