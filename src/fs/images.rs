//! Images that have been looked up. Each image is opened once, however many requests wait for it, and a failure is reported to
//! all of them.
//!
//! Memory must not grow with the images that were looked at, so images that nobody uses are closed again. The next request opens
//! them, with the same inode numbers. An image that has lost its last name stays open as long as the kernel refers to one
//! of its directories: its blobs may be gone. (Whoever uses a file also holds its directory.)

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::{ImageFault, LoadError};
use crate::error::chain_text;
use crate::os::ignore_poison;

/// Time after the last request below an image's root in which the image counts as used.
const USED: Duration = Duration::from_secs(60);
/// The most unused images that stay open.
const UNUSED_MAX: usize = 32;
/// The most memory of unused images that stay open, in bytes.
const UNUSED_BYTES: usize = 8 << 20;
/// The most memory of all images that stay open, in bytes: some 60 large images. Beyond it, those are closed that were not used
/// for the longest time.
const ALL_BYTES: usize = 128 << 20;

/// All images that have been looked up, by slot. `T` is an open image.
#[derive(Debug)]
pub(super) struct ImageTable<T> {
    cells: RwLock<HashMap<u32, Arc<ImageCell<T>>>>,
    deadline: Duration,
    retry_after: Duration,
    /// The times in cells count from here.
    started: Instant,
}

#[derive(Debug)]
struct ImageCell<T> {
    state: Mutex<ImageState<T>>,
    changed: Condvar,
    /// The number of times that the kernel was told of a directory of the image, less those that it has forgotten. May be too
    /// high, if an answer did not reach the kernel.
    references: AtomicU64,
    /// When a name of the image was last looked up, in milliseconds.
    found: AtomicU64,
    /// When a request last used the inside of the image, in milliseconds.
    used: AtomicU64,
}

#[derive(Debug)]
enum ImageState<T> {
    Idle,
    Opening,
    Open(Arc<T>),
    Failed { at: Instant, fault: Arc<ImageFault> },
}

impl<T> ImageTable<T> {
    /// A request waits at most `deadline` for another thread that opens the same image. A failure is repeated without
    /// another attempt until `retry_after` has passed.
    pub(super) fn new(deadline: Duration, retry_after: Duration) -> Self {
        Self { cells: RwLock::new(HashMap::new()), deadline, retry_after, started: Instant::now() }
    }

    /// Returns the image if it is open. Does not count as a use.
    pub(super) fn opened(&self, slot: u32) -> Option<Arc<T>> {
        self.cell(slot)?.open()
    }

    /// Returns the image if it is open, for a request inside of it.
    pub(super) fn opened_for_use(&self, slot: u32) -> Option<Arc<T>> {
        let cell = self.cell(slot)?;
        cell.used.store(self.now(), Ordering::Relaxed);
        cell.open()
    }

    /// Counts references that the kernel gets with an answer. Must be called before the answer is sent: the kernel may forget them
    /// at once.
    pub(super) fn add_references(&self, slot: u32, count: u64) {
        self.cell_or_new(slot).references.fetch_add(count, Ordering::Relaxed);
    }

    /// Subtracts references that the kernel has dropped, and returns whether none are left.
    pub(super) fn remove_references(&self, slot: u32, count: u64) -> bool {
        let Some(cell) = self.cell(slot) else { return false };
        // The kernel may have got references from an earlier process that served the same mount.
        let less = |references: u64| Some(references.saturating_sub(count));
        let before = cell.references.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.is_ok_and(|before| before <= count)
    }

    /// Whether the kernel refers to a directory of the image.
    pub(super) fn is_referenced(&self, slot: u32) -> bool {
        self.cell(slot).is_some_and(|cell| cell.references.load(Ordering::Relaxed) > 0)
    }

    /// Closes images that nobody uses, and returns the bytes that they used. The image `opened` has just been opened, and stays.
    /// `published` tells whether an image has a name, and can be opened again; `memory` the bytes that an open image uses.
    pub(super) fn close_unused(
        &self,
        opened: Option<u32>,
        published: impl Fn(u32) -> bool,
        memory: impl Fn(&T) -> usize,
    ) -> usize {
        let now = self.now();
        let recent = u64::try_from(USED.as_millis()).unwrap_or(u64::MAX);
        let (mut candidates, mut all_bytes) = (Vec::new(), 0);
        for (slot, cell) in &*ignore_poison(self.cells.read()) {
            let Some(open) = cell.open() else { continue };
            let bytes = memory(&open);
            let is_referenced = cell.references.load(Ordering::Relaxed) > 0;
            if is_referenced && !published(*slot) {
                all_bytes += bytes;
                continue;
            }
            let used = cell.used.load(Ordering::Relaxed);
            let is_used = is_referenced && used > 0 && now.saturating_sub(used) < recent;
            let last = used.max(cell.found.load(Ordering::Relaxed));
            candidates.push((is_used, last, *slot, bytes, Arc::clone(cell)));
        }
        // Images in use first, and of each kind those that were used last.
        candidates.sort_by_key(|(is_used, last, slot, ..)| Reverse((*is_used, *last, *slot)));
        let (mut unused_count, mut unused_bytes) = (0, 0);
        let mut closed = 0;
        for (position, (is_used, _, slot, bytes, cell)) in candidates.into_iter().enumerate() {
            // However large it is, an image must not be opened anew for every request.
            let stays = opened == Some(slot) || (is_used && position == 0);
            let fits_unused = unused_count < UNUSED_MAX && unused_bytes + bytes <= UNUSED_BYTES;
            if stays || (all_bytes + bytes <= ALL_BYTES && (is_used || fits_unused)) {
                all_bytes += bytes;
                if !is_used && opened != Some(slot) {
                    (unused_count, unused_bytes) = (unused_count + 1, unused_bytes + bytes);
                }
                continue;
            }
            // Requests that have the image finish with it.
            let mut state = ignore_poison(cell.state.lock());
            if let ImageState::Open(_) = *state {
                *state = ImageState::Idle;
                closed += bytes;
            }
        }
        // A cell that only the table holds cannot be in use by a request, which would have to take the lock first.
        ignore_poison(self.cells.write()).retain(|_, cell| {
            Arc::strong_count(cell) > 1
                || cell.references.load(Ordering::Relaxed) > 0
                || !matches!(*ignore_poison(cell.state.lock()), ImageState::Idle)
        });
        closed
    }

    /// Returns all open images.
    pub(super) fn all_open(&self) -> Vec<Arc<T>> {
        ignore_poison(self.cells.read()).values().filter_map(|cell| cell.open()).collect()
    }

    /// Returns the image. Calls `open` in this thread unless the image is open, has just failed, or another thread is
    /// opening it. `name` is for error messages.
    pub(super) fn get_or_open(
        &self,
        slot: u32,
        name: impl Fn() -> String,
        open: impl FnOnce() -> Result<T, LoadError>,
    ) -> Result<Arc<T>, Arc<ImageFault>> {
        let cell = self.cell_or_new(slot);
        cell.found.store(self.now(), Ordering::Relaxed);
        let end = Instant::now() + self.deadline;
        let mut state = ignore_poison(cell.state.lock());
        loop {
            match &*state {
                ImageState::Open(open) => return Ok(Arc::clone(open)),
                ImageState::Failed { at, fault } if at.elapsed() < self.retry_after => {
                    return Err(Arc::clone(fault));
                }
                ImageState::Failed { .. } | ImageState::Idle => break,
                ImageState::Opening => {}
            }
            let Some(remaining) = end.checked_duration_since(Instant::now()) else {
                return Err(Arc::new(ImageFault::Deadline { image: name(), waited: self.deadline }));
            };
            (state, _) = ignore_poison(cell.changed.wait_timeout(state, remaining));
        }
        *state = ImageState::Opening;
        drop(state);
        // The outcome if `open` panics.
        let mut guard = OpeningGuard { cell: &cell, outcome: Err(Arc::new(ImageFault::Panicked(name()))) };
        guard.outcome = match open() {
            Ok(open) => Ok(Arc::new(open)),
            Err(source) => Err(Arc::new(ImageFault::Open { image: name(), source })),
        };
        guard.outcome.clone()
    }

    /// Makes the next request for each failed image retry at once: the cause may have been fixed.
    pub(super) fn forget_failures(&self) {
        for cell in ignore_poison(self.cells.read()).values() {
            let mut state = ignore_poison(cell.state.lock());
            if let ImageState::Failed { .. } = *state {
                *state = ImageState::Idle;
            }
        }
    }

    /// Returns the slots of the open images, and the slots of the failed images with the reasons.
    pub(super) fn states(&self) -> (Vec<u32>, Vec<(u32, String)>) {
        let (mut open, mut failed) = (Vec::new(), Vec::new());
        for (slot, cell) in &*ignore_poison(self.cells.read()) {
            match &*ignore_poison(cell.state.lock()) {
                ImageState::Open(_) => open.push(*slot),
                ImageState::Failed { fault, .. } => failed.push((*slot, chain_text(&**fault))),
                ImageState::Idle | ImageState::Opening => {}
            }
        }
        open.sort_unstable();
        failed.sort_unstable();
        (open, failed)
    }

    /// Milliseconds since the table was made; never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn cell_or_new(&self, slot: u32) -> Arc<ImageCell<T>> {
        self.cell(slot).unwrap_or_else(|| {
            let mut cells = ignore_poison(self.cells.write());
            Arc::clone(cells.entry(slot).or_insert_with(ImageCell::idle))
        })
    }

    fn cell(&self, slot: u32) -> Option<Arc<ImageCell<T>>> {
        ignore_poison(self.cells.read()).get(&slot).map(Arc::clone)
    }
}

impl<T> ImageCell<T> {
    fn idle() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(ImageState::Idle),
            changed: Condvar::new(),
            references: AtomicU64::new(0),
            found: AtomicU64::new(0),
            used: AtomicU64::new(0),
        })
    }

    fn open(&self) -> Option<Arc<T>> {
        match &*ignore_poison(self.state.lock()) {
            ImageState::Open(open) => Some(Arc::clone(open)),
            ImageState::Idle | ImageState::Opening | ImageState::Failed { .. } => None,
        }
    }
}

/// Records the outcome of opening an image when dropped: success, failure or a panic.
struct OpeningGuard<'a, T> {
    cell: &'a ImageCell<T>,
    outcome: Result<Arc<T>, Arc<ImageFault>>,
}

impl<T> Drop for OpeningGuard<'_, T> {
    fn drop(&mut self) {
        *ignore_poison(self.cell.state.lock()) = match &self.outcome {
            Ok(open) => ImageState::Open(Arc::clone(open)),
            Err(fault) => {
                tracing::error!("{}", chain_text(&**fault));
                ImageState::Failed { at: Instant::now(), fault: Arc::clone(fault) }
            }
        };
        self.cell.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use rustix::io::Errno;

    use super::*;
    use crate::os::PathError;

    const LONG: Duration = Duration::from_secs(60);

    fn name() -> String {
        "lab/python@sha256:12".to_owned()
    }

    fn missing_blob() -> Result<u32, LoadError> {
        Err(PathError::new("open", "blob", Errno::NOENT).into())
    }

    /// Waits until a thread opens the image with slot 1.
    fn wait_until_opening(images: &ImageTable<u32>) {
        let end = Instant::now() + LONG;
        while !images
            .cell(1)
            .is_some_and(|cell| matches!(*ignore_poison(cell.state.lock()), ImageState::Opening))
        {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
    }

    #[test]
    fn image_is_opened_once_for_all_concurrent_requests() {
        let images = ImageTable::new(LONG, LONG);
        let opened = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let open = || {
                        opened.fetch_add(1, Ordering::SeqCst);
                        Ok(7)
                    };
                    assert_eq!(*images.get_or_open(1, name, open).unwrap(), 7);
                });
            }
        });
        assert_eq!(opened.load(Ordering::SeqCst), 1);
        assert_eq!(images.opened(1).as_deref(), Some(&7));
        assert_eq!(images.opened(2), None);
    }

    #[test]
    fn failure_is_repeated_with_its_reason_and_retried_later() {
        let images = ImageTable::<u32>::new(LONG, LONG);
        let failed = images.get_or_open(1, name, missing_blob).unwrap_err();
        let text = chain_text(&*failed);
        assert!(text.starts_with("image lab/python@sha256:12: cannot open blob: "), "{text}");
        let again = images.get_or_open(1, name, || unreachable!("the failure is repeated without a retry"));
        assert_eq!(chain_text(&*again.unwrap_err()), text);
        assert_eq!(images.states(), (vec![], vec![(1, text)]));
        images.forget_failures();
        assert_eq!(*images.get_or_open(1, name, || Ok(3)).unwrap(), 3);
        assert_eq!(images.states(), (vec![1], vec![]));

        let images = ImageTable::new(LONG, Duration::ZERO);
        images.get_or_open(1, name, missing_blob).unwrap_err();
        assert_eq!(*images.get_or_open(1, name, || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn panic_while_opening_an_image_fails_the_waiting_requests() {
        let images = ImageTable::new(LONG, LONG);
        let (release, released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let images = &images;
            let leader = scope.spawn(move || {
                catch_unwind(AssertUnwindSafe(|| {
                    images.get_or_open(1, name, || {
                        released.recv().unwrap();
                        panic!("bug in the merge")
                    })
                }))
                .is_err()
            });
            wait_until_opening(images);
            let waiter = scope.spawn(|| images.get_or_open(1, name, || Ok(1)));
            release.send(()).unwrap();
            assert!(matches!(*waiter.join().unwrap().unwrap_err(), ImageFault::Panicked(_)));
            assert!(leader.join().unwrap());
        });
    }

    #[test]
    fn request_that_waits_for_another_thread_gives_up_at_the_deadline() {
        let images = ImageTable::new(Duration::from_millis(1), LONG);
        let (release, released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let images = &images;
            let leader = scope.spawn(move || {
                images.get_or_open(1, name, || {
                    released.recv().unwrap();
                    Ok(1)
                })
            });
            wait_until_opening(images);
            let late = images.get_or_open(1, name, || Ok(2)).unwrap_err();
            assert!(matches!(*late, ImageFault::Deadline { .. }));
            release.send(()).unwrap();
            assert_eq!(*leader.join().unwrap().unwrap(), 1);
        });
    }

    /// A table of open images that are all in use.
    fn images_in_use(slots: std::ops::RangeInclusive<u32>) -> ImageTable<u32> {
        let images = ImageTable::new(LONG, LONG);
        for slot in slots {
            images.get_or_open(slot, name, || Ok(slot)).unwrap();
            images.add_references(slot, 2);
            images.opened_for_use(slot).unwrap();
        }
        images
    }

    #[test]
    fn images_in_use_are_closed_only_beyond_the_limit_for_all_and_then_the_oldest_first() {
        let images = images_in_use(1..=40);
        assert_eq!(images.close_unused(None, |_| true, |_| ALL_BYTES / 40), 0);
        assert_eq!(images.close_unused(None, |_| true, |_| ALL_BYTES / 37), 3 * (ALL_BYTES / 37));
        assert_eq!(images.states().0, (4..=40).collect::<Vec<u32>>());
        assert_eq!(*images.get_or_open(1, name, || Ok(11)).unwrap(), 11, "it is opened again");
        // Those without a name cannot be opened again while the kernel refers to them.
        assert_eq!(images.close_unused(None, |slot| slot > 38, |_| ALL_BYTES), ALL_BYTES);
        assert_eq!(
            (images.opened(39), images.opened(40).is_some()),
            (None, true),
            "the last one stays in any case"
        );
        assert!(images.opened(4).is_some());
    }

    #[test]
    fn large_image_that_was_just_opened_stays_and_does_not_displace_small_ones() {
        let images = ImageTable::<u32>::new(LONG, LONG);
        for slot in 1..=3 {
            images.get_or_open(slot, name, || Ok(slot)).unwrap();
        }
        let close = |opened| {
            images.close_unused(opened, |_| true, |slot| if *slot == 3 { UNUSED_BYTES + 1 } else { 1 << 20 })
        };
        assert_eq!(close(Some(3)), 0);
        assert_eq!(close(None), UNUSED_BYTES + 1);
        assert_eq!(images.states().0, [1, 2]);
    }

    #[test]
    fn image_is_unused_when_the_kernel_has_dropped_as_many_references_as_it_got() {
        let images = images_in_use(1..=1);
        let close = || images.close_unused(None, |_| true, |_| UNUSED_BYTES + 1);
        assert!(!images.remove_references(1, 1));
        assert_eq!((close(), images.is_referenced(1)), (0, true));
        assert!(images.remove_references(1, 1));
        assert_eq!((close(), images.is_referenced(1)), (UNUSED_BYTES + 1, false));
        // More references than were given come from an earlier process; the table has forgotten the image by now.
        assert!(!images.remove_references(1, 7));
        images.add_references(1, 1);
        assert!(images.is_referenced(1) && images.remove_references(1, 7) && !images.is_referenced(1));
    }
}
