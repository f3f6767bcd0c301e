//! The user and group that a program runs as.

use std::fmt;
use std::str::FromStr;

use rustix::fs::{Gid, Uid};

/// The user and group that a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// The user.
    #[must_use]
    pub fn uid(self) -> Uid {
        Uid::from_raw(self.uid)
    }

    /// The group.
    #[must_use]
    pub fn gid(self) -> Gid {
        Gid::from_raw(self.gid)
    }
}

impl Default for User {
    /// Returns an ID that Debian leaves unassigned: above the range for human users and below `nobody`.
    fn default() -> Self {
        Self { uid: 60_999, gid: 60_999 }
    }
}

impl FromStr for User {
    type Err = &'static str;

    /// Parses `UID[:GID]`, in numbers. Without `GID`, the group ID equals the user ID.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(0), _) | (_, Ok(0)) => Err("programs do not run as root"),
            (Ok(u32::MAX), _) | (_, Ok(u32::MAX)) => Err("4294967295 is not a valid ID"),
            (Ok(uid), Ok(gid)) => Ok(Self { uid, gid }),
            _ => Err("expected UID[:GID], in numbers"),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_never_root() {
        let parse = |text: &str| text.parse::<User>();
        assert_eq!(parse("1000"), Ok(User { uid: 1000, gid: 1000 }));
        assert_eq!(parse("1000:5").unwrap().to_string(), "1000:5");
        for text in ["", "www-data", "1000:staff", "-1", "1:2:3", "0", "0:5", "5:0", "4294967295"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
