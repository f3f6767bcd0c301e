//! A cache of decoded spans. Its size is bounded, and concurrent readers of one span share one decode.
//!
//! Lock order: a shard, then a pending decode. Neither lock is held while a span is decoded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::error::ErrorCode;
use crate::index::ReadError;
use crate::os::ignore_poison;

/// The key of a span in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanKey {
    /// The layer's slot in the store.
    pub layer: u32,
    /// The version of the layer's index: a layer that is opened again can have another, with other spans.
    pub version: u32,
    /// The span's number within the layer.
    pub span: u32,
}

/// The bytes of a span, shared between the cache and its readers.
pub type SpanBytes = Arc<Vec<u8>>;

/// The error of reading a span through the cache.
#[derive(Debug, thiserror::Error)]
pub enum SpanFault<E> {
    /// The decode failed in this thread.
    #[error(transparent)]
    Decode(E),
    /// The decode failed in another thread, which reports the reason.
    #[error("another reader failed to decode this span")]
    Shared,
    /// Another thread did not finish its decode in time.
    #[error("another reader did not finish decoding this span within {0:?}")]
    Deadline(Duration),
}

impl SpanFault<ReadError> {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Decode(error) => error.code(),
            Self::Shared => ErrorCode::Damaged,
            Self::Deadline(_) => ErrorCode::Timeout,
        }
    }
}

/// The current content of the cache, and its activity since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct CacheCounters {
    /// Requests for a span that was in memory.
    pub hits: u64,
    /// Requests for a span that was not in memory.
    pub misses: u64,
    /// Misses that waited for another reader's decode.
    pub waits: u64,
    /// Decodes started.
    pub decodes: u64,
    /// Decodes that failed.
    pub failures: u64,
    /// Spans dropped to make room.
    pub evictions: u64,
    /// Spans in memory now.
    pub spans: u64,
    /// Bytes in memory now.
    pub bytes: u64,
    /// Maximum number of bytes in memory.
    pub capacity: u64,
}

/// A bounded cache of decoded spans.
#[derive(Debug)]
pub struct SpanCache {
    shards: Box<[Mutex<CacheShard>]>,
    shard_capacity: u64,
    hasher: RandomState,
    deadline: Duration,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
    decodes: AtomicU64,
    failures: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Debug)]
struct CacheShard {
    spans: LruCache<SpanKey, SpanBytes>,
    bytes: u64,
    pending: HashMap<SpanKey, Arc<PendingDecode>>,
}

/// A decode in progress, and the readers that wait for it.
#[derive(Debug, Default)]
struct PendingDecode {
    state: Mutex<DecodeState>,
    finished: Condvar,
}

#[derive(Debug, Default)]
enum DecodeState {
    #[default]
    Running,
    Done(SpanBytes),
    Failed,
}

impl SpanCache {
    /// Number of shards of a large cache, so that threads seldom compete for one lock.
    const SHARDS: usize = 16;
    /// Minimum capacity of a shard, in bytes. A smaller shard would evict each span soon after its insertion.
    const MIN_SHARD: u64 = 8 << 20;

    /// Creates a cache of up to `capacity` bytes. Callers of [`SpanCache::get_or_decode`] wait at most `deadline` for
    /// another thread's decode.
    #[must_use]
    pub fn new(capacity: u64, deadline: Duration) -> Self {
        let shards =
            usize::try_from(capacity / Self::MIN_SHARD).unwrap_or(Self::SHARDS).clamp(1, Self::SHARDS);
        let shard =
            || Mutex::new(CacheShard { spans: LruCache::unbounded(), bytes: 0, pending: HashMap::new() });
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            shard_capacity: capacity / u64::try_from(shards).expect("at most 16 shards"),
            hasher: RandomState::new(),
            deadline,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            decodes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// Returns the bytes of a span: from memory, from the thread that is decoding it, or from `decode`, which then runs
    /// in this thread.
    ///
    /// A failure or panic of `decode` is not cached: the next caller tries again.
    ///
    /// # Errors
    ///
    /// `decode` failed, or another thread's decode failed or took longer than the deadline.
    pub fn get_or_decode<E>(
        &self,
        key: SpanKey,
        decode: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<SpanBytes, SpanFault<E>> {
        let shard = self.shard(key);
        let mut locked = ignore_poison(shard.lock());
        if let Some(bytes) = locked.spans.get(&key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(bytes));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        if let Some(pending) = locked.pending.get(&key).map(Arc::clone) {
            drop(locked);
            self.waits.fetch_add(1, Ordering::Relaxed);
            return pending.wait(self.deadline);
        }
        let pending = Arc::new(PendingDecode::default());
        locked.pending.insert(key, Arc::clone(&pending));
        drop(locked);

        self.decodes.fetch_add(1, Ordering::Relaxed);
        // Wakes the waiting readers even when `decode` fails or panics.
        let mut guard = DecodeGuard { cache: self, shard, key, pending, bytes: None };
        let bytes = Arc::new(decode().map_err(SpanFault::Decode)?);
        guard.bytes = Some(Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Returns whether the span is in memory or being decoded. Does not count as a use of the span.
    #[must_use]
    pub fn holds(&self, key: SpanKey) -> bool {
        let locked = ignore_poison(self.shard(key).lock());
        locked.spans.contains(&key) || locked.pending.contains_key(&key)
    }

    /// Drops all spans, except those being decoded now.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = ignore_poison(shard.lock());
            shard.spans.clear();
            shard.bytes = 0;
        }
    }

    /// Returns the current counters.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        let mut counters = CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            decodes: self.decodes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            capacity: self.shard_capacity * self.shards.len() as u64,
            ..CacheCounters::default()
        };
        for shard in &self.shards {
            let shard = ignore_poison(shard.lock());
            counters.spans += shard.spans.len() as u64;
            counters.bytes += shard.bytes;
        }
        counters
    }

    fn shard(&self, key: SpanKey) -> &Mutex<CacheShard> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % self.shards.len() as u64).expect("less than the number of shards");
        &self.shards[index]
    }

    fn insert(&self, shard: &mut CacheShard, key: SpanKey, bytes: SpanBytes) {
        let size = memory_size(&bytes);
        if size > self.shard_capacity {
            return;
        }
        shard.bytes += size;
        if let Some(replaced) = shard.spans.put(key, bytes) {
            shard.bytes -= memory_size(&replaced);
        }
        while shard.bytes > self.shard_capacity {
            let (_, evicted) = shard.spans.pop_lru().expect("`bytes` counts only cached spans");
            shard.bytes -= memory_size(&evicted);
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl PendingDecode {
    fn wait<E>(&self, deadline: Duration) -> Result<SpanBytes, SpanFault<E>> {
        let end = Instant::now() + deadline;
        let mut state = ignore_poison(self.state.lock());
        loop {
            match &*state {
                DecodeState::Running => {}
                DecodeState::Done(bytes) => return Ok(Arc::clone(bytes)),
                DecodeState::Failed => return Err(SpanFault::Shared),
            }
            let remaining =
                end.checked_duration_since(Instant::now()).ok_or(SpanFault::Deadline(deadline))?;
            (state, _) = ignore_poison(self.finished.wait_timeout(state, remaining));
        }
    }
}

/// Ends a pending decode when dropped: on success, on failure, and on a panic.
struct DecodeGuard<'a> {
    cache: &'a SpanCache,
    shard: &'a Mutex<CacheShard>,
    key: SpanKey,
    pending: Arc<PendingDecode>,
    bytes: Option<SpanBytes>,
}

impl Drop for DecodeGuard<'_> {
    fn drop(&mut self) {
        let mut shard = ignore_poison(self.shard.lock());
        shard.pending.remove(&self.key);
        let state = match self.bytes.take() {
            Some(bytes) => {
                self.cache.insert(&mut shard, self.key, Arc::clone(&bytes));
                DecodeState::Done(bytes)
            }
            None => {
                self.cache.failures.fetch_add(1, Ordering::Relaxed);
                DecodeState::Failed
            }
        };
        *ignore_poison(self.pending.state.lock()) = state;
        drop(shard);
        self.pending.finished.notify_all();
    }
}

/// Returns the memory that a span occupies, in bytes.
fn memory_size(bytes: &SpanBytes) -> u64 {
    bytes.capacity() as u64
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn key(span: u32) -> SpanKey {
        SpanKey { layer: 7, version: 3, span }
    }

    fn bytes(len: usize) -> Result<Vec<u8>, Infallible> {
        Ok(vec![1; len])
    }

    fn wait_for_waiters(cache: &SpanCache, readers: u64) {
        let end = Instant::now() + LONG;
        while cache.counters().waits < readers {
            assert!(Instant::now() < end, "{:?}", cache.counters());
            thread::yield_now();
        }
    }

    #[test]
    fn two_hundred_concurrent_readers_of_one_span_cause_one_decode() {
        let cache = SpanCache::new(1 << 20, LONG);
        let decodes = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..200 {
                scope.spawn(|| {
                    let result = cache.get_or_decode(key(0), || {
                        decodes.fetch_add(1, Ordering::SeqCst);
                        wait_for_waiters(&cache, 199);
                        Ok::<_, Infallible>(vec![42; 10])
                    });
                    assert_eq!(*result.unwrap(), [42; 10]);
                });
            }
        });
        assert_eq!(decodes.load(Ordering::SeqCst), 1);
        let counters = cache.counters();
        assert_eq!((counters.decodes, counters.misses, counters.waits), (1, 200, 199));
        cache.get_or_decode(key(0), || -> Result<_, Infallible> { unreachable!() }).unwrap();
        assert_eq!(cache.counters().hits, 1);
    }

    #[test]
    fn failed_decode_wakes_every_waiter_and_is_retried_by_the_next_reader() {
        let cache = SpanCache::new(1 << 20, LONG);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                cache.get_or_decode(key(0), || {
                    wait_for_waiters(&cache, 3);
                    Err("bad crc")
                })
            });
            // The leader must start its decode first.
            while !cache.holds(key(0)) {
                thread::yield_now();
            }
            let waiters: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| cache.get_or_decode(key(0), || Err("not the leader"))))
                .collect();
            assert!(matches!(leader.join().unwrap(), Err(SpanFault::Decode("bad crc"))));
            for waiter in waiters {
                assert!(matches!(waiter.join().unwrap(), Err(SpanFault::Shared)));
            }
        });
        assert!(!cache.holds(key(0)));
        assert_eq!(cache.get_or_decode(key(0), || bytes(3)).unwrap().len(), 3);
        assert_eq!(cache.counters().failures, 1);
    }

    #[test]
    fn panicking_decode_wakes_its_waiter_and_is_retried() {
        let cache = SpanCache::new(1 << 20, LONG);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    let _ = cache.get_or_decode(key(0), || -> Result<Vec<u8>, Infallible> {
                        wait_for_waiters(&cache, 1);
                        panic!("bug in a decoder")
                    });
                }))
                .is_err()
            });
            while !cache.holds(key(0)) {
                thread::yield_now();
            }
            assert!(matches!(cache.get_or_decode(key(0), || bytes(1)), Err(SpanFault::Shared)));
            assert!(leader.join().unwrap());
        });
        assert_eq!(cache.get_or_decode(key(0), || bytes(2)).unwrap().len(), 2);
    }

    #[test]
    fn waiting_reader_gives_up_at_its_deadline() {
        let cache = SpanCache::new(1 << 20, Duration::from_millis(1));
        let (release, released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                cache.get_or_decode(key(0), move || {
                    released.recv().unwrap();
                    bytes(1)
                })
            });
            while !cache.holds(key(0)) {
                thread::yield_now();
            }
            assert!(matches!(cache.get_or_decode(key(0), || bytes(1)), Err(SpanFault::Deadline(_))));
            release.send(()).unwrap();
            assert!(leader.join().unwrap().is_ok());
        });
    }

    #[test]
    fn least_recently_used_span_is_evicted_first_and_the_size_stays_bounded() {
        let cache = SpanCache::new(100, LONG);
        for span in 0..10 {
            cache.get_or_decode(key(span), || bytes(10)).unwrap();
        }
        assert_eq!(cache.counters().bytes, 100);
        cache.get_or_decode(key(0), || -> Result<_, Infallible> { unreachable!() }).unwrap();
        cache.get_or_decode(key(10), || bytes(15)).unwrap();
        assert!(cache.holds(key(0)) && cache.holds(key(10)));
        assert!(!cache.holds(key(1)) && !cache.holds(key(2)) && cache.holds(key(3)));
        assert_eq!((cache.counters().bytes, cache.counters().evictions), (95, 2));
    }

    #[test]
    fn span_larger_than_the_cache_is_returned_and_not_cached() {
        let cache = SpanCache::new(100, LONG);
        assert_eq!(cache.get_or_decode(key(0), || bytes(101)).unwrap().len(), 101);
        assert_eq!((cache.counters().bytes, cache.counters().spans), (0, 0));
    }
}
