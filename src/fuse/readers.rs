//! Counts the bytes that each thread has read, and how long it waited for them, so that a run can say what it waited for.
//!
//! A thread waits while at least one of its READ requests is being answered. The kernel also reads ahead in its name; if it then finds
//! the bytes in the page cache, it waited less than is counted here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::family::family;
use crate::os::ignore_poison;

/// Number of readers that are kept. Each has some hundred bytes.
const KEPT: usize = 8192;
/// How long the process of a thread is taken to be the same without asking again: thread IDs are reused.
const SAME_THREAD: Duration = Duration::from_secs(1);

/// What was read from the daemon. What the kernel had in its page cache does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LazyReads {
    /// Number of bytes.
    pub bytes: u64,
    /// Number of milliseconds for which threads waited, added up.
    pub wait_ms: u64,
}

/// Asks for the reads of a process and its descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderQuery {
    /// The process.
    pub process: u32,
    /// The number of the last reader before the process began: its number may have belonged to another process before.
    pub since: u64,
}

/// The reads of all threads.
#[derive(Debug, Default)]
pub(super) struct Readers {
    table: Mutex<ReaderTable>,
}

#[derive(Debug, Default)]
struct ReaderTable {
    /// By number.
    kept: BTreeMap<u64, Reader>,
    /// The current number of each thread in `kept`.
    numbers: HashMap<u32, u64>,
    /// The number of the last reader.
    last: u64,
    /// The number of the last reader that was dropped to make room.
    dropped: u64,
    bytes: u64,
    waited: Duration,
}

/// A thread that reads.
#[derive(Debug)]
struct Reader {
    tid: u32,
    pid: u32,
    ancestors: Box<[u32]>,
    bytes: u64,
    waited: Duration,
    /// Number of requests that are being answered.
    pending: u32,
    /// When the first of them began.
    since: Instant,
    /// When the process was last asked for.
    asked: Instant,
}

/// A READ request that is being answered. Must be dropped before the answer is sent: a run may ask for its reads right afterwards.
#[derive(Debug)]
pub(super) struct PendingRead<'a> {
    readers: &'a Readers,
    number: u64,
    bytes: u64,
}

impl Readers {
    /// Begins to answer a request of the thread `tid`.
    pub(super) fn begin(&self, tid: u32) -> PendingRead<'_> {
        let now = Instant::now();
        let known = |table: &ReaderTable| {
            let number = *table.numbers.get(&tid)?;
            (now.saturating_duration_since(table.kept.get(&number)?.asked) < SAME_THREAD).then_some(number)
        };
        let mut table = ignore_poison(self.table.lock());
        let number = match known(&table) {
            Some(number) => number,
            None => {
                drop(table);
                // Takes some ten microseconds.
                let family = family(tid);
                table = ignore_poison(self.table.lock());
                table.reader(tid, family, now)
            }
        };
        if let Some(reader) = table.kept.get_mut(&number) {
            if reader.pending == 0 {
                reader.since = now;
            }
            reader.pending += 1;
        }
        PendingRead { readers: self, number, bytes: 0 }
    }

    /// The number of the last reader.
    pub(super) fn last(&self) -> u64 {
        ignore_poison(self.table.lock()).last
    }

    /// Returns the process of a thread, and the ancestors of that process, as they were at its last READ request.
    pub(super) fn family(&self, tid: u32) -> Option<(u32, Vec<u32>)> {
        let table = ignore_poison(self.table.lock());
        let reader = table.kept.get(table.numbers.get(&tid)?)?;
        Some((reader.pid, reader.ancestors.to_vec()))
    }

    /// Returns the reads of all threads.
    pub(super) fn total(&self) -> LazyReads {
        let table = ignore_poison(self.table.lock());
        LazyReads::new(table.bytes, table.waited)
    }

    /// Returns the reads of a process and its descendants; `None` if some are no longer known.
    pub(super) fn of(&self, query: ReaderQuery) -> Option<LazyReads> {
        let table = ignore_poison(self.table.lock());
        if table.dropped > query.since {
            return None;
        }
        let (mut bytes, mut waited) = (0, Duration::ZERO);
        for reader in table.kept.range(query.since.saturating_add(1)..).map(|(_, reader)| reader) {
            if reader.pid == query.process || reader.ancestors.contains(&query.process) {
                bytes += reader.bytes;
                waited += reader.waited;
            }
        }
        Some(LazyReads::new(bytes, waited))
    }
}

impl LazyReads {
    fn new(bytes: u64, waited: Duration) -> Self {
        // A wait is never shown as none.
        Self { bytes, wait_ms: u64::try_from(waited.as_micros().div_ceil(1000)).unwrap_or(u64::MAX) }
    }
}

impl ReaderTable {
    /// Returns the number of a reader; a new one if the thread has another process or other ancestors than before. A thread that
    /// has ended since its last request is still the same reader: the kernel reads ahead for it.
    fn reader(&mut self, tid: u32, family: Option<(u32, Vec<u32>)>, now: Instant) -> u64 {
        if let Some(number) = self.numbers.get(&tid)
            && let Some(reader) = self.kept.get_mut(number)
            && family.as_ref().is_none_or(|(pid, of)| reader.pid == *pid && *reader.ancestors == **of)
        {
            reader.asked = now;
            return *number;
        }
        let (pid, ancestors) = family.unwrap_or((tid, Vec::new()));
        while self.kept.len() >= KEPT
            && let Some((number, oldest)) = self.kept.pop_first()
        {
            self.dropped = number;
            if self.numbers.get(&oldest.tid) == Some(&number) {
                self.numbers.remove(&oldest.tid);
            }
        }
        self.last += 1;
        let (ancestors, waited) = (ancestors.into_boxed_slice(), Duration::ZERO);
        let reader = Reader { tid, pid, ancestors, bytes: 0, waited, pending: 0, since: now, asked: now };
        self.kept.insert(self.last, reader);
        self.numbers.insert(tid, self.last);
        self.last
    }
}

impl PendingRead<'_> {
    /// Records the bytes of the answer.
    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes = bytes as u64;
    }
}

impl Drop for PendingRead<'_> {
    fn drop(&mut self) {
        let mut table = ignore_poison(self.readers.table.lock());
        let mut waited = Duration::ZERO;
        if let Some(reader) = table.kept.get_mut(&self.number) {
            reader.pending -= 1;
            if reader.pending == 0 {
                waited = reader.since.elapsed();
            }
            reader.waited += waited;
            reader.bytes += self.bytes;
        }
        table.waited += waited;
        table.bytes += self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(readers: &Readers, tid: u32, bytes: usize) {
        readers.begin(tid).read(bytes);
    }

    fn own_tid() -> u32 {
        u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap()
    }

    #[test]
    fn reads_count_for_the_process_and_all_its_ancestors() {
        let readers = Readers::default();
        let start = readers.last();
        read(&readers, own_tid(), 10);
        std::thread::scope(|scope| {
            scope.spawn(|| read(&readers, own_tid(), 5));
        });
        let of = |process| readers.of(ReaderQuery { process, since: start }).unwrap().bytes;
        assert_eq!(of(std::process::id()), 15);
        assert_eq!(of(std::os::unix::process::parent_id()), 15);
        assert_eq!(of(u32::MAX), 0);
        assert_eq!(readers.total().bytes, 15);
    }

    #[test]
    fn reads_before_the_mark_do_not_count_for_a_process_with_a_reused_number() {
        let readers = Readers::default();
        // A thread that does not exist any more.
        read(&readers, u32::MAX, 10);
        let since = readers.last();
        assert_eq!(readers.of(ReaderQuery { process: u32::MAX, since }), Some(LazyReads::default()));
        assert_eq!(readers.of(ReaderQuery { process: u32::MAX, since: 0 }).unwrap().bytes, 10);
    }

    #[test]
    fn request_of_a_thread_that_has_ended_counts_for_its_process() {
        let readers = Readers::default();
        let tid = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                read(&readers, own_tid(), 1);
                own_tid()
            });
            reader.join().unwrap()
        });
        // Later than the time for which the thread is not looked for again.
        ignore_poison(readers.table.lock()).kept.get_mut(&1).unwrap().asked -= SAME_THREAD;
        read(&readers, tid, 2);
        assert_eq!(readers.of(ReaderQuery { process: std::process::id(), since: 0 }).unwrap().bytes, 3);
        assert_eq!(readers.family(tid).unwrap().0, std::process::id());
        assert_eq!(readers.family(u32::MAX), None);
    }

    #[test]
    fn requests_that_are_answered_at_once_are_waited_for_once() {
        let readers = Readers::default();
        let started = Instant::now();
        let pending: Vec<_> = (0..8).map(|_| readers.begin(1)).collect();
        while started.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        drop(pending);
        let longest = u64::try_from(started.elapsed().as_millis()).unwrap() + 1;
        let waited = readers.total().wait_ms;
        assert!((20..=longest).contains(&waited), "{waited} ms");
        assert_eq!(readers.of(ReaderQuery { process: 1, since: 0 }).unwrap().wait_ms, waited);
    }

    #[test]
    fn number_of_readers_is_bounded_and_incomplete_answers_are_none() {
        let readers = Readers::default();
        let first = readers.begin(u32::MAX);
        let (kept, first_tid) = (u32::try_from(KEPT).unwrap(), u32::MAX - 1);
        for number in 0..kept {
            read(&readers, first_tid - number, 1);
        }
        // Its reader is not known any more.
        drop(first);
        let table = readers.table.lock().unwrap();
        assert_eq!((table.kept.len(), table.numbers.len()), (KEPT, KEPT));
        drop(table);
        let of = |process, since| readers.of(ReaderQuery { process, since });
        assert_eq!(of(first_tid, 0), None);
        assert_eq!(of(first_tid, 1).unwrap().bytes, 1);
        assert_eq!(readers.total().bytes, u64::from(kept));
    }
}
