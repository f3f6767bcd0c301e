//! Records failed reads, each with the process that sent the request and the content that it could not read.
//!
//! A sandbox asks for the failures that happened during a run, to distinguish faults of the image from faults of the program.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::family::family;
use super::readers::{LazyReads, ReaderQuery, Readers};
use crate::error::chain_text;
use crate::fs::{FileBytes, FsError};
use crate::os::{self, ignore_poison};

/// Number of failures that are kept.
const KEPT: usize = 1024;

/// A point in the accounts of a daemon: everything up to `sequence` happened before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountMark {
    /// Identifies the daemon's process. A different value means that the daemon has been replaced since, so that failures in
    /// between are unknown.
    pub instance: u64,
    /// Number of the last failure; 0 if there was none.
    pub sequence: u64,
    /// Identifies the PID namespace of the daemon; 0 if it is unknown. Process IDs are those of this namespace.
    pub pid_namespace: u64,
    /// Number of the last thread that was seen to read.
    pub reader: u64,
}

/// A read, an open or a lookup that failed because an image cannot be served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadFailure {
    /// The number of the failure, counted from 1. A failure that the same process repeats receives a new number.
    pub sequence: u64,
    /// The process that sent the request; 0 if it is unknown. For readahead, the process that caused the readahead.
    pub pid: u32,
    /// The ancestors of that process at the time of the request, nearest first.
    pub ancestors: Vec<u32>,
    /// The image, as its path in the mount; `None` for a file that several images share.
    pub image: Option<String>,
    /// The digest of the layer.
    pub layer: Option<String>,
    /// The digest of the blob that is missing or damaged.
    pub blob: Option<String>,
    /// The path in the image.
    pub path: Option<String>,
    /// The stable code of the error.
    pub code: String,
    /// The error message.
    pub reason: String,
}

/// The failures since a mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadFailureReport {
    /// The mark of this report.
    pub mark: AccountMark,
    /// Number of failures since the mark that are no longer known, because too many followed.
    pub lost: u64,
    /// The known failures, oldest first.
    pub failures: Vec<ReadFailure>,
    /// The reads that were asked for; `None` if they are not known.
    pub reads: Option<LazyReads>,
}

/// The accounts of a daemon: failed reads, and what each thread has read.
#[derive(Debug)]
pub struct ReadAccounts {
    instance: u64,
    pid_namespace: u64,
    log: Mutex<FailureLog>,
    readers: Readers,
}

#[derive(Debug, Default)]
struct FailureLog {
    kept: VecDeque<ReadFailure>,
    /// Number of the last failure.
    last: u64,
    /// Number of the last failure that was dropped to make room.
    dropped: u64,
}

impl Default for ReadAccounts {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let (log, readers) = (Mutex::default(), Readers::default());
        Self { instance: nanoseconds, pid_namespace: os::pid_namespace(), log, readers }
    }
}

impl ReadAccounts {
    /// Records that a request of the thread `tid` failed. Ignores errors that say nothing about the image, such as ENOENT.
    ///
    /// Must be called before the request is answered: its process waits until then, so that `/proc` still shows its parents. For
    /// what the kernel reads ahead no process waits; then the thread may be known from a request that it waited for.
    pub(super) fn record(&self, tid: u32, error: &FsError) {
        let Some(subject) = error.failed_content() else { return };
        let (pid, ancestors) = family(tid).or_else(|| self.readers.family(tid)).unwrap_or((tid, Vec::new()));
        self.add(ReadFailure {
            sequence: 0,
            pid,
            ancestors,
            image: subject.image,
            layer: subject.layer.map(|layer| layer.to_string()),
            blob: subject.blob.map(|blob| blob.to_string()),
            path: subject.path,
            code: error.code().as_str().to_owned(),
            reason: chain_text(error),
        });
    }

    /// Counts what `read` returns as a READ of the thread `tid`.
    pub(super) fn count_read<E>(
        &self,
        tid: u32,
        read: impl FnOnce() -> Result<FileBytes, E>,
    ) -> Result<FileBytes, E> {
        let mut reading = self.readers.begin(tid);
        let bytes = read()?;
        reading.read(bytes.len());
        Ok(bytes)
    }

    /// Returns what all threads have read.
    #[must_use]
    pub fn total_reads(&self) -> LazyReads {
        self.readers.total()
    }

    fn add(&self, failure: ReadFailure) {
        let mut log = ignore_poison(self.log.lock());
        // A process that keeps retrying must not displace the failures of other processes.
        log.kept.retain(|known| ReadFailure { sequence: 0, ..known.clone() } != failure);
        if log.kept.len() == KEPT {
            log.dropped = log.kept.pop_front().map_or(log.dropped, |oldest| oldest.sequence);
        }
        log.last += 1;
        let sequence = log.last;
        log.kept.push_back(ReadFailure { sequence, ..failure });
    }

    /// Returns the current mark.
    #[must_use]
    pub fn mark(&self) -> AccountMark {
        self.mark_at(ignore_poison(self.log.lock()).last)
    }

    fn mark_at(&self, sequence: u64) -> AccountMark {
        AccountMark {
            instance: self.instance,
            sequence,
            pid_namespace: self.pid_namespace,
            reader: self.readers.last(),
        }
    }

    /// Returns the failures with a number above `since`, and the reads of a process.
    #[must_use]
    pub fn failures_since(&self, since: u64, readers: Option<ReaderQuery>) -> ReadFailureReport {
        let log = ignore_poison(self.log.lock());
        ReadFailureReport {
            mark: self.mark_at(log.last),
            lost: log.dropped.saturating_sub(since),
            failures: log.kept.iter().filter(|failure| failure.sequence > since).cloned().collect(),
            reads: readers.and_then(|query| self.readers.of(query)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(pid: u32, path: &str) -> ReadFailure {
        ReadFailure { pid, path: Some(path.to_owned()), ..ReadFailure::default() }
    }

    fn sequences(report: &ReadFailureReport) -> Vec<u64> {
        report.failures.iter().map(|failure| failure.sequence).collect()
    }

    #[test]
    fn failures_since_a_mark_are_reported_with_the_new_mark() {
        let accounts = ReadAccounts::default();
        assert_eq!(accounts.failures_since(0, None).failures, []);
        accounts.add(failure(1, "a"));
        let mark = accounts.mark();
        accounts.add(failure(2, "a"));
        accounts.add(failure(1, "b"));
        let report = accounts.failures_since(mark.sequence, None);
        assert_eq!((sequences(&report), report.lost), (vec![2, 3], 0));
        assert_eq!(report.mark, AccountMark { sequence: 3, ..mark });
    }

    #[test]
    fn repeated_failure_takes_no_more_space_and_counts_as_new() {
        let accounts = ReadAccounts::default();
        accounts.add(failure(1, "a"));
        for _ in 0..KEPT * 2 {
            accounts.add(failure(2, "b"));
        }
        let report = accounts.failures_since(0, None);
        assert_eq!((report.failures.len(), report.lost), (2, 0));
        assert_eq!(accounts.failures_since(KEPT as u64, None).failures.len(), 1);
    }

    #[test]
    fn number_of_failures_is_bounded_and_lost_ones_are_counted() {
        let accounts = ReadAccounts::default();
        for number in 0..KEPT + 10 {
            accounts.add(failure(1, &number.to_string()));
        }
        let report = accounts.failures_since(4, None);
        assert_eq!((report.failures.len(), report.lost), (KEPT, 6));
        assert_eq!(accounts.failures_since(10, None).lost, 0);
    }
}
