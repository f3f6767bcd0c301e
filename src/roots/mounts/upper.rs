//! The kinds of upper layers, and their text form: `dir`, `dir:SIZE`, `tmpfs:SIZE`, `none`.

use std::fmt;
use std::str::FromStr;

use crate::roots::RootsError;

/// Where the writes of a root go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// A directory on disk.
    Dir {
        /// Limit in bytes; requires a filesystem with project quotas.
        limit: Option<u64>,
    },
    /// Memory. A page counts towards the memory limit of the program that writes it.
    Tmpfs {
        /// Limit in bytes.
        size: u64,
    },
    /// Nowhere: the root is read-only, and several sandboxes may share it.
    None,
}

/// The units of sizes, largest first.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];
/// A limit allows one inode for each group of this many bytes.
const BYTES_PER_INODE: u64 = 4096;
/// Number of inodes that every limit allows, so that a small limit is reached by bytes first.
const INODES_MIN: u64 = 1024;

impl Default for Upper {
    fn default() -> Self {
        Self::Dir { limit: None }
    }
}

/// Returns the inode limit of an upper of `size` bytes.
///
/// Empty files do not count towards the limit in bytes, but use kernel memory or inodes of the disk.
pub(super) fn inodes_for(size: u64) -> u64 {
    (size / BYTES_PER_INODE).max(INODES_MIN)
}

impl FromStr for Upper {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why| RootsError::Upper { text: text.to_owned(), why };
        let (kind, size) = match text.split_once(':') {
            Some((kind, size)) => (kind, Some(parse_size(size).map_err(invalid)?)),
            None => (text, None),
        };
        match (kind, size) {
            ("dir", limit) => Ok(Self::Dir { limit }),
            ("tmpfs", Some(size)) => Ok(Self::Tmpfs { size }),
            ("tmpfs", None) => Err(invalid("a tmpfs needs a size, for example `tmpfs:64M`")),
            ("none", None) => Ok(Self::None),
            ("none", Some(_)) => Err(invalid("`none` has no size")),
            _ => Err(invalid("expected `dir`, `dir:SIZE`, `tmpfs:SIZE` or `none`")),
        }
    }
}

/// Parses a size as uppers have it: a number of bytes, or a number followed by K, M, G or T.
///
/// # Errors
///
/// The text has another form, or the size is 0 or too large; the error says which.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "a size is a number of bytes, or a number followed by K, M, G or T";
    const TOO_LARGE: &str = "the size must be less than 2^63 bytes";
    let unit =
        text.chars().last().and_then(|last| UNITS.iter().find(|(unit, _)| last.eq_ignore_ascii_case(unit)));
    let (digits, factor) = match unit {
        Some((_, factor)) => (&text[..text.len() - 1], *factor),
        None => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FORM);
    }
    let number: u64 = digits.parse().map_err(|_| TOO_LARGE)?;
    match number.checked_mul(factor) {
        Some(0) => Err("the size must not be 0"),
        // The kernel uses signed numbers.
        Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(TOO_LARGE),
    }
}

impl fmt::Display for Upper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, size) = match *self {
            Self::Dir { limit: None } => return f.write_str("dir"),
            Self::None => return f.write_str("none"),
            Self::Dir { limit: Some(limit) } => ("dir", limit),
            Self::Tmpfs { size } => ("tmpfs", size),
        };
        match UNITS.iter().find(|(_, factor)| size.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{kind}:{}{unit}", size / factor),
            None => write!(f, "{kind}:{size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_upper_parses_to_the_same_upper() {
        for (text, upper, displayed) in [
            ("dir", Upper::Dir { limit: None }, "dir"),
            ("dir:1G", Upper::Dir { limit: Some(1 << 30) }, "dir:1G"),
            ("dir:1000", Upper::Dir { limit: Some(1000) }, "dir:1000"),
            ("tmpfs:64m", Upper::Tmpfs { size: 64 << 20 }, "tmpfs:64M"),
            ("tmpfs:1536K", Upper::Tmpfs { size: 1536 << 10 }, "tmpfs:1536K"),
            ("tmpfs:2048k", Upper::Tmpfs { size: 2 << 20 }, "tmpfs:2M"),
            ("none", Upper::None, "none"),
        ] {
            let parsed: Upper = text.parse().unwrap();
            assert_eq!((parsed, parsed.to_string().as_str()), (upper, displayed));
            assert_eq!(displayed.parse::<Upper>().unwrap(), upper);
        }
    }

    #[test]
    fn invalid_uppers_are_refused_with_the_reason() {
        for (text, expected) in [
            ("", "expected `dir`"),
            ("disk", "expected `dir`"),
            ("tmpfs", "needs a size"),
            ("tmpfs:", "a size is"),
            ("tmpfs:M", "a size is"),
            ("tmpfs:-1", "a size is"),
            ("tmpfs:+1", "a size is"),
            ("tmpfs:1X", "a size is"),
            ("tmpfs:1MM", "a size is"),
            ("tmpfs:1é", "a size is"),
            ("tmpfs:0", "must not be 0"),
            ("dir:0K", "must not be 0"),
            ("none:1", "no size"),
            ("dir:9223372036854775808", "less than 2^63"),
            ("dir:99999999999999999999", "less than 2^63"),
            ("dir:8388608T", "less than 2^63"),
        ] {
            let error = text.parse::<Upper>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("upper `{text}` is invalid: ")) && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn inode_limit_follows_the_byte_limit() {
        assert_eq!(inodes_for(1), 1024);
        assert_eq!(inodes_for(1 << 30), 262_144);
    }
}
