//! Which upper layer a root gets, as users write it.

use std::fmt;
use std::str::FromStr;

use crate::roots::RootsError;

/// Where a root's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// A directory on disk.
    Dir {
        /// At most so many bytes, where the filesystem can hold to that.
        limit: Option<u64>,
    },
    /// Memory. Its pages are charged to the memory limit of the program that writes them.
    Tmpfs {
        /// At most so many bytes.
        size: u64,
    },
    /// Nowhere: the root is read-only, and any number of sandboxes may share it.
    None,
}

/// The units of sizes, the greatest first.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];
/// A limit of bytes comes with one of files: a file for each of this many bytes.
const BYTES_PER_FILE: u64 = 4096;
/// But at least so many files: a small limit is to be reached by its bytes.
const LEAST_FILES: u64 = 1024;

impl Default for Upper {
    fn default() -> Self {
        Self::Dir { limit: None }
    }
}

/// How many files an upper of `size` bytes may hold. Empty files take no bytes that a limit would count, and memory of the
/// kernel or inodes of the disk all the same.
pub(crate) fn files_within(size: u64) -> u64 {
    (size / BYTES_PER_FILE).max(LEAST_FILES)
}

impl FromStr for Upper {
    type Err = RootsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why| RootsError::Upper { text: text.to_owned(), why };
        let (kind, size) = match text.split_once(':') {
            Some((kind, size)) => (kind, Some(parse_size(size).map_err(wrong)?)),
            None => (text, None),
        };
        match (kind, size) {
            ("dir", limit) => Ok(Self::Dir { limit }),
            ("tmpfs", Some(size)) => Ok(Self::Tmpfs { size }),
            ("tmpfs", None) => Err(wrong("a tmpfs needs a size, as in `tmpfs:64M`")),
            ("none", None) => Ok(Self::None),
            ("none", Some(_)) => Err(wrong("`none` has no size")),
            _ => Err(wrong("known are `dir`, `dir:SIZE`, `tmpfs:SIZE` and `none`")),
        }
    }
}

fn parse_size(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "a size is a number of bytes, or one with K, M, G or T behind it";
    let unit =
        text.chars().last().and_then(|last| UNITS.iter().find(|(unit, _)| last.eq_ignore_ascii_case(unit)));
    let (digits, factor) = match unit {
        Some((_, factor)) => (&text[..text.len() - 1], *factor),
        None => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FORM);
    }
    let number: u64 = digits.parse().map_err(|_| "this size is beyond any disk")?;
    match number.checked_mul(factor) {
        Some(0) => Err("a size of nothing leaves no room for any file"),
        // The kernel counts in signed numbers.
        Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err("this size is beyond any disk"),
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
    fn uppers_are_read_as_they_are_written() {
        for (text, upper, shown) in [
            ("dir", Upper::Dir { limit: None }, "dir"),
            ("dir:1G", Upper::Dir { limit: Some(1 << 30) }, "dir:1G"),
            ("dir:1000", Upper::Dir { limit: Some(1000) }, "dir:1000"),
            ("tmpfs:64m", Upper::Tmpfs { size: 64 << 20 }, "tmpfs:64M"),
            ("tmpfs:1536K", Upper::Tmpfs { size: 1536 << 10 }, "tmpfs:1536K"),
            ("tmpfs:2048k", Upper::Tmpfs { size: 2 << 20 }, "tmpfs:2M"),
            ("none", Upper::None, "none"),
        ] {
            let parsed: Upper = text.parse().unwrap();
            assert_eq!((parsed, parsed.to_string().as_str()), (upper, shown));
            assert_eq!(shown.parse::<Upper>().unwrap(), upper);
        }
    }

    #[test]
    fn what_is_wrong_with_an_upper_is_told() {
        for (text, wanted) in [
            ("", "known are"),
            ("disk", "known are"),
            ("tmpfs", "needs a size"),
            ("tmpfs:", "a size is"),
            ("tmpfs:M", "a size is"),
            ("tmpfs:-1", "a size is"),
            ("tmpfs:+1", "a size is"),
            ("tmpfs:1X", "a size is"),
            ("tmpfs:1MM", "a size is"),
            ("tmpfs:1é", "a size is"),
            ("tmpfs:0", "of nothing"),
            ("dir:0K", "of nothing"),
            ("none:1", "no size"),
            ("dir:9223372036854775808", "beyond any disk"),
            ("dir:99999999999999999999", "beyond any disk"),
            ("dir:8388608T", "beyond any disk"),
        ] {
            let error = text.parse::<Upper>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("upper `{text}`: ")) && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn files_are_limited_with_the_bytes() {
        assert_eq!(files_within(1), 1024);
        assert_eq!(files_within(1 << 30), 262_144);
    }
}
