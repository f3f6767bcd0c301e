//! What a commit changes about the files that it writes: their owners and times.

use std::str::FromStr;

use super::CommitError;
use super::file::RootFile;
use crate::layer::Timestamp;

/// Changes that apply to all files of the new layer.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Owners that are replaced.
    pub owners: Vec<OwnerMapping>,
    /// No file is newer than this, and the image is of this time (`SOURCE_DATE_EPOCH`, reproducible-builds.org).
    pub epoch: Option<i64>,
}

/// Another owner for the files of a user, and another group for the files of the group with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerMapping {
    from: u32,
    to: u32,
}

impl FromStr for OwnerMapping {
    type Err = CommitError;

    fn from_str(text: &str) -> Result<Self, CommitError> {
        let id = |text: &str| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            // The kernel uses the largest number for "no user".
            text.parse().ok().filter(|id| is_number && *id != u32::MAX)
        };
        let (from, to) = text
            .split_once('=')
            .and_then(|(from, to)| Some((id(from)?, id(to)?)))
            .ok_or_else(|| CommitError::OwnerMapping(text.to_owned()))?;
        Ok(Self { from, to })
    }
}

impl CommitOptions {
    /// Parses the value of `SOURCE_DATE_EPOCH`.
    ///
    /// # Errors
    /// It is not a number of seconds.
    pub fn parse_epoch(text: &str) -> Result<i64, CommitError> {
        // The last second that RFC 3339 can express: 9999-12-31T23:59:59Z.
        let epoch = text.parse().ok().filter(|epoch| (0..=253_402_300_799).contains(epoch));
        epoch.ok_or_else(|| CommitError::Epoch(text.to_owned()))
    }

    /// Returns a file as it is in the new layer.
    pub(super) fn apply(&self, file: &RootFile) -> RootFile {
        let owner = |id: u32| self.owners.iter().find(|owner| owner.from == id).map_or(id, |owner| owner.to);
        RootFile { uid: owner(file.uid), gid: owner(file.gid), mtime: self.clamp(file.mtime), ..file.clone() }
    }

    fn clamp(&self, time: Timestamp) -> Timestamp {
        match self.epoch {
            Some(sec) if (time.sec, time.nsec) > (sec, 0) => Timestamp { sec, nsec: 0 },
            _ => time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_owners_and_epochs_are_refused_by_name() {
        assert_eq!("60007=0".parse::<OwnerMapping>().unwrap(), OwnerMapping { from: 60_007, to: 0 });
        for text in ["", "1", "=", "1=", "=1", "a=1", "1=-1", "+1=1", "1=2=3", "4294967295=0", "0=4294967296"]
        {
            let error = text.parse::<OwnerMapping>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
        assert_eq!(CommitOptions::parse_epoch("1700000000").unwrap(), 1_700_000_000);
        for text in ["", "now", "-1", "1.5", "253402300800", "99999999999999999999"] {
            let error = CommitOptions::parse_epoch(text).unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
