//! The log of the queue: a line of JSON for each change, never changed afterwards.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::EnvironmentsError;
use super::id::{EnvironmentId, RevisionNumber};
use super::records::Attribution;
use crate::os::{AtPath as _, PathError};

/// What a change of the queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueChange {
    /// A new revision.
    Submitted,
    /// A revision may be built.
    Approved,
    /// A revision is refused.
    Rejected,
    /// A revision was taken back.
    Withdrawn,
    /// A build has started.
    Building,
    /// A build has published an image.
    Published,
    /// A build has failed.
    Failed,
    /// Workers no longer offer an environment.
    Retired,
    /// Workers offer another published revision.
    RolledBack,
}

impl QueueChange {
    /// The change as it is printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
            Self::Building => "building",
            Self::Published => "published",
            Self::Failed => "failed",
            Self::Retired => "retired",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Who, when, and why.
    #[serde(flatten)]
    pub by: Attribution,
    /// What.
    pub what: QueueChange,
    /// The environment.
    pub environment: EnvironmentId,
    /// The revision; for `retired`, the one that workers offered.
    pub revision: RevisionNumber,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The file of the log.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// All lines, oldest first. A line that is being written is left out.
    pub(super) fn read(&self) -> Result<Vec<LogEntry>, EnvironmentsError> {
        let text = self.text()?;
        let parse = |(line, number): (&str, usize)| {
            serde_json::from_str(line).map_err(|error| EnvironmentsError::Damaged {
                path: self.path.clone(),
                reason: format!("line {number}: {error}"),
            })
        };
        complete(&text).lines().zip(1..).map(parse).collect()
    }

    fn text(&self) -> Result<String, EnvironmentsError> {
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(mut file) => drop(file.read_to_end(&mut text).at("read", &self.path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(EnvironmentsError::Io(PathError::new("open", &self.path, error))),
        }
        String::from_utf8(text).map_err(|_| EnvironmentsError::Damaged {
            path: self.path.clone(),
            reason: "it is not UTF-8".to_owned(),
        })
    }

    /// Appends a line, and returns when it is on disk. The caller holds the lock of the queue.
    pub(super) fn append(&self, entry: &LogEntry) -> Result<(), EnvironmentsError> {
        self.cut_incomplete_line()?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .at("open", &self.path)?;
        let mut line = serde_json::to_vec(entry).map_err(io::Error::from).at("write", &self.path)?;
        line.push(b'\n');
        (&file).write_all(&line).at("write", &self.path)?;
        file.sync_all().at("sync", &self.path)?;
        Ok(sync_directory(self.path.parent().unwrap_or(Path::new(".")))?)
    }

    /// Whether the last complete line is `entry`.
    pub(super) fn ends_with(&self, entry: &LogEntry) -> Result<bool, EnvironmentsError> {
        let text = self.text()?;
        let last = complete(&text).lines().next_back();
        Ok(last.and_then(|line| serde_json::from_str::<LogEntry>(line).ok()).as_ref() == Some(entry))
    }

    /// Removes the line of a process that died while it wrote.
    fn cut_incomplete_line(&self) -> Result<(), EnvironmentsError> {
        let text = self.text()?;
        let complete = complete(&text).len();
        if complete < text.len() {
            let file = OpenOptions::new().write(true).open(&self.path).at("open", &self.path)?;
            file.set_len(complete as u64).and_then(|()| file.sync_all()).at("truncate", &self.path)?;
        }
        Ok(())
    }
}

/// A text without a last line that has no end.
fn complete(text: &str) -> &str {
    &text[..text.rfind('\n').map_or(0, |end| end + 1)]
}

/// Returns when the names in a directory are on disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), PathError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}
