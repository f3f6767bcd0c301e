//! A counting allocator.
#![expect(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait; this implementation forwards every call")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Bytes allocated at the moment.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
/// The maximum of `CURRENT` since the start of the measurement.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Held during a measurement, because the counters are global.
static MEASURING: Mutex<()> = Mutex::new(());

fn grow(bytes: usize) {
    let current = CURRENT.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(current, Ordering::Relaxed);
}

// SAFETY: each call is forwarded unchanged to the system allocator. The counters do not affect it.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Counts the old and the new block at once, because the allocator copies small blocks.
        grow(size);
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs a function. Returns its result and the most bytes that were allocated at once.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let _guard = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = CURRENT.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

/// Runs a function. Panics if it allocates more than `bytes` at once.
#[track_caller]
pub(crate) fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let (result, peak) = peak_of(work);
    assert!(peak <= bytes, "{peak} bytes were allocated at once; the limit is {bytes}");
    result
}

#[test]
fn memory_that_is_freed_at_once_counts_towards_the_peak() {
    let (_, peak) = peak_of(|| drop(vec![1_u8; 10 << 20]));
    assert!((10 << 20..11 << 20).contains(&peak), "{peak}");
}
