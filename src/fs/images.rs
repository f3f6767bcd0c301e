//! Images that have been looked up. Each image is opened once, however many requests wait for it, and a failure is reported to
//! all of them.
//!
//! An image stays open until the process ends, even after its last name is gone: programs may still use it, and its users are
//! not counted across a takeover. The cost is the memory of the tree and the mappings of the layers.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::{ImageFault, LoadError};
use crate::error::chain_text;
use crate::os::ignore_poison;

/// All images that have been looked up, by slot. `T` is an open image.
#[derive(Debug)]
pub(super) struct ImageTable<T> {
    cells: RwLock<HashMap<u32, Arc<ImageCell<T>>>>,
    deadline: Duration,
    retry_after: Duration,
}

#[derive(Debug)]
struct ImageCell<T> {
    state: Mutex<ImageState<T>>,
    changed: Condvar,
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
        Self { cells: RwLock::new(HashMap::new()), deadline, retry_after }
    }

    /// Returns the image if it is open.
    pub(super) fn opened(&self, slot: u32) -> Option<Arc<T>> {
        let cell = self.cell(slot)?;
        match &*ignore_poison(cell.state.lock()) {
            ImageState::Open(open) => Some(Arc::clone(open)),
            ImageState::Idle | ImageState::Opening | ImageState::Failed { .. } => None,
        }
    }

    /// Returns the image. Calls `open` in this thread unless the image is open, has just failed, or another thread is
    /// opening it. `name` is for error messages.
    pub(super) fn get_or_open(
        &self,
        slot: u32,
        name: impl Fn() -> String,
        open: impl FnOnce() -> Result<T, LoadError>,
    ) -> Result<Arc<T>, Arc<ImageFault>> {
        let cell = self.cell(slot).unwrap_or_else(|| {
            let mut cells = ignore_poison(self.cells.write());
            Arc::clone(cells.entry(slot).or_insert_with(ImageCell::idle))
        });
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

    fn cell(&self, slot: u32) -> Option<Arc<ImageCell<T>>> {
        ignore_poison(self.cells.read()).get(&slot).map(Arc::clone)
    }
}

impl<T> ImageCell<T> {
    fn idle() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(ImageState::Idle), changed: Condvar::new() })
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
}
