//! Decoded spans in memory: bounded by bytes, and decoded once however many readers wait for one.
//!
//! Lock order: a shard's lock, then a flight's. Neither is held while a span is being decoded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// Which span: a layer's slot in the store and the span's number in that layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanKey {
    /// The layer's slot.
    pub layer: u32,
    /// The span's number within the layer.
    pub span: u32,
}

/// A span's bytes, shared between the cache and whoever is answering from them.
pub type SpanBytes = Arc<Vec<u8>>;

/// Why a span's bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SpanFault<E> {
    /// This caller decoded it, and that went wrong.
    #[error(transparent)]
    Decode(E),
    /// Another reader was decoding it and that went wrong; the reason is with that reader, who reports it.
    #[error("another reader's decode of this span went wrong")]
    Shared,
    /// Another reader was still decoding it when the deadline passed.
    #[error("no answer within {0:?} from the reader that decodes this span")]
    Deadline(Duration),
}

/// What the cache has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheCounters {
    /// Requests answered from memory.
    pub hits: u64,
    /// Requests for a span that was not in memory.
    pub misses: u64,
    /// Of the misses, those that waited for another reader's decode.
    pub waits: u64,
    /// Decodes begun.
    pub decodes: u64,
    /// Decodes that went wrong.
    pub failures: u64,
    /// Spans dropped to make room.
    pub evictions: u64,
    /// Spans in memory now.
    pub spans: u64,
    /// Bytes in memory now.
    pub bytes: u64,
    /// Bytes that may be in memory.
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
    flights: HashMap<SpanKey, Arc<PendingDecode>>,
}

/// One decode under way, and those who wait for it.
#[derive(Debug, Default)]
struct PendingDecode {
    outcome: Mutex<Option<Option<SpanBytes>>>,
    landed: Condvar,
}

impl SpanCache {
    /// Shards of a large cache: more than the threads that serve, so that they seldom meet on one lock.
    const SHARDS: usize = 16;
    /// A shard below this many bytes would evict what it has just taken in.
    const MIN_SHARD: u64 = 8 << 20;

    /// Makes a cache that holds up to `capacity` bytes. No caller of [`SpanCache::get_or_decode`] waits longer than
    /// `deadline` for another's decode.
    #[must_use]
    pub fn new(capacity: u64, deadline: Duration) -> Self {
        let shards =
            usize::try_from(capacity / Self::MIN_SHARD).unwrap_or(Self::SHARDS).clamp(1, Self::SHARDS);
        let shard =
            || Mutex::new(CacheShard { spans: LruCache::unbounded(), bytes: 0, flights: HashMap::new() });
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

    /// The span's bytes: from memory, from the reader that is decoding it now, or from `decode`, which then runs in
    /// this thread. A decode that fails or panics is not remembered: the next caller tries again.
    ///
    /// # Errors
    ///
    /// What `decode` returns, if it ran here; else that another's decode failed or took too long.
    pub fn get_or_decode<E>(
        &self,
        key: SpanKey,
        decode: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<SpanBytes, SpanFault<E>> {
        let shard = self.shard(key);
        let mut locked = lock(shard);
        if let Some(bytes) = locked.spans.get(&key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(bytes));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        if let Some(flight) = locked.flights.get(&key).map(Arc::clone) {
            drop(locked);
            self.waits.fetch_add(1, Ordering::Relaxed);
            return match flight.wait(self.deadline) {
                Some(Some(bytes)) => Ok(bytes),
                Some(None) => Err(SpanFault::Shared),
                None => Err(SpanFault::Deadline(self.deadline)),
            };
        }
        let flight = Arc::new(PendingDecode::default());
        locked.flights.insert(key, Arc::clone(&flight));
        drop(locked);

        self.decodes.fetch_add(1, Ordering::Relaxed);
        // Lands the flight as failed where `decode` panics or errs, so that nobody waits for it.
        let mut landing = DecodeGuard { cache: self, shard, key, flight, bytes: None };
        let bytes = Arc::new(decode().map_err(SpanFault::Decode)?);
        landing.bytes = Some(Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Whether the span is in memory or being decoded. Does not count as a use of it.
    #[must_use]
    pub fn holds(&self, key: SpanKey) -> bool {
        let locked = lock(self.shard(key));
        locked.spans.contains(&key) || locked.flights.contains_key(&key)
    }

    /// Forgets every span that is not being decoded.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.spans.clear();
            shard.bytes = 0;
        }
    }

    /// What the cache holds and has done.
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
            let shard = lock(shard);
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
        let size = weight(&bytes);
        if size > self.shard_capacity {
            return;
        }
        shard.bytes += size;
        if let Some(former) = shard.spans.put(key, bytes) {
            shard.bytes -= weight(&former);
        }
        while shard.bytes > self.shard_capacity {
            let (_, evicted) = shard.spans.pop_lru().expect("bytes are counted only for spans that are in");
            shard.bytes -= weight(&evicted);
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl PendingDecode {
    /// What the decode came to; `None` when the deadline passes first.
    fn wait(&self, deadline: Duration) -> Option<Option<SpanBytes>> {
        let end = Instant::now() + deadline;
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = &*outcome {
                return Some(outcome.clone());
            }
            let left = end.checked_duration_since(Instant::now())?;
            (outcome, _) = self.landed.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends a flight when dropped, on every way out of the decode.
struct DecodeGuard<'a> {
    cache: &'a SpanCache,
    shard: &'a Mutex<CacheShard>,
    key: SpanKey,
    flight: Arc<PendingDecode>,
    bytes: Option<SpanBytes>,
}

impl Drop for DecodeGuard<'_> {
    fn drop(&mut self) {
        let bytes = self.bytes.take();
        let mut shard = lock(self.shard);
        shard.flights.remove(&self.key);
        match &bytes {
            Some(bytes) => self.cache.insert(&mut shard, self.key, Arc::clone(bytes)),
            None => {
                self.cache.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        *lock(&self.flight.outcome) = Some(bytes);
        drop(shard);
        self.flight.landed.notify_all();
    }
}

/// Bytes of memory that a span counts for.
fn weight(bytes: &SpanBytes) -> u64 {
    bytes.capacity() as u64
}

/// Locks, also where a thread panicked with the lock: every change under these locks is complete before anything that
/// can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        SpanKey { layer: 7, span }
    }

    fn bytes(len: usize) -> Result<Vec<u8>, Infallible> {
        Ok(vec![1; len])
    }

    /// Waits until `readers` callers wait for a decode.
    fn until_waiting(cache: &SpanCache, readers: u64) {
        let end = Instant::now() + LONG;
        while cache.counters().waits < readers {
            assert!(Instant::now() < end, "{:?}", cache.counters());
            thread::yield_now();
        }
    }

    #[test]
    fn two_hundred_readers_of_one_cold_span_cause_one_decode() {
        let cache = SpanCache::new(1 << 20, LONG);
        let decodes = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..200 {
                scope.spawn(|| {
                    let got = cache.get_or_decode(key(0), || {
                        decodes.fetch_add(1, Ordering::SeqCst);
                        until_waiting(&cache, 199);
                        Ok::<_, Infallible>(vec![42; 10])
                    });
                    assert_eq!(*got.unwrap(), [42; 10]);
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
    fn failed_decode_wakes_every_waiter_and_is_tried_again() {
        let cache = SpanCache::new(1 << 20, LONG);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                cache.get_or_decode(key(0), || {
                    until_waiting(&cache, 3);
                    Err("bad crc")
                })
            });
            // Waiters must not become the leader.
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
    fn panicking_decode_wakes_its_waiter_and_is_not_remembered() {
        let cache = SpanCache::new(1 << 20, LONG);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    let _ = cache.get_or_decode(key(0), || -> Result<Vec<u8>, Infallible> {
                        until_waiting(&cache, 1);
                        panic!("a decoder's bug")
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
    fn waiter_gives_up_at_its_deadline() {
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
    fn least_recently_used_span_goes_first_and_the_bound_holds() {
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
    fn span_larger_than_the_cache_is_answered_and_not_kept() {
        let cache = SpanCache::new(100, LONG);
        assert_eq!(cache.get_or_decode(key(0), || bytes(101)).unwrap().len(), 101);
        assert_eq!((cache.counters().bytes, cache.counters().spans), (0, 0));
    }
}
