//! Images that have been looked up: each is opened once, however many requests ask for it, and a failure is told to all.
//!
//! An image stays open until the process ends, also when its last name has gone: programs may still use it, and a
//! takeover leaves no count of who does. What that costs is the tree's memory and the layers' mappings.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::LoadError;
use super::error::{ImageFault, chain};

/// All images that have been asked for, by slot; `T` is an open one.
#[derive(Debug)]
pub(super) struct ImageTable<T> {
    cells: RwLock<HashMap<u32, Arc<ImageCell<T>>>>,
    deadline: Duration,
    /// For how long a failure is told again instead of trying again.
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
    pub(super) fn new(deadline: Duration, retry_after: Duration) -> Self {
        Self { cells: RwLock::new(HashMap::new()), deadline, retry_after }
    }

    /// The image, if it is open.
    pub(super) fn opened(&self, slot: u32) -> Option<Arc<T>> {
        let cell = self.cell(slot)?;
        match &*lock(&cell.state) {
            ImageState::Open(open) => Some(Arc::clone(open)),
            ImageState::Idle | ImageState::Opening | ImageState::Failed { .. } => None,
        }
    }

    /// The image; opened by `open` in this thread unless another is at it or has been. `name` is for messages.
    pub(super) fn get_or_open(
        &self,
        slot: u32,
        name: impl Fn() -> String,
        open: impl FnOnce() -> Result<T, LoadError>,
    ) -> Result<Arc<T>, Arc<ImageFault>> {
        let cell = self.cell(slot).unwrap_or_else(|| {
            Arc::clone(
                self.cells.write().unwrap_or_else(PoisonError::into_inner).entry(slot).or_insert_with(idle),
            )
        });
        let end = Instant::now() + self.deadline;
        let mut state = lock(&cell.state);
        loop {
            match &*state {
                ImageState::Open(open) => return Ok(Arc::clone(open)),
                ImageState::Failed { at, fault } if at.elapsed() < self.retry_after => {
                    return Err(Arc::clone(fault));
                }
                ImageState::Failed { .. } | ImageState::Idle => break,
                ImageState::Opening => {}
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return Err(Arc::new(ImageFault::Deadline { image: name(), waited: self.deadline }));
            };
            (state, _) = cell.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        *state = ImageState::Opening;
        drop(state);
        // Takes the place of an outcome where `open` panics.
        let mut ending = OpeningGuard { cell: &cell, outcome: Err(Arc::new(ImageFault::Panicked(name()))) };
        ending.outcome = match open() {
            Ok(open) => Ok(Arc::new(open)),
            Err(source) => Err(Arc::new(ImageFault::Open { image: name(), source })),
        };
        ending.outcome.clone()
    }

    /// Tries failed ones again when they are asked for next, without waiting: what was missing may be there now.
    pub(super) fn forget_failures(&self) {
        for cell in self.cells.read().unwrap_or_else(PoisonError::into_inner).values() {
            let mut state = lock(&cell.state);
            if let ImageState::Failed { .. } = *state {
                *state = ImageState::Idle;
            }
        }
    }

    /// Slots of open images, and of those that did not open, with the reason.
    pub(super) fn states(&self) -> (Vec<u32>, Vec<(u32, String)>) {
        let (mut open, mut failed) = (Vec::new(), Vec::new());
        for (slot, cell) in &*self.cells.read().unwrap_or_else(PoisonError::into_inner) {
            match &*lock(&cell.state) {
                ImageState::Open(_) => open.push(*slot),
                ImageState::Failed { fault, .. } => failed.push((*slot, chain(&**fault))),
                ImageState::Idle | ImageState::Opening => {}
            }
        }
        open.sort_unstable();
        failed.sort_unstable();
        (open, failed)
    }

    fn cell(&self, slot: u32) -> Option<Arc<ImageCell<T>>> {
        self.cells.read().unwrap_or_else(PoisonError::into_inner).get(&slot).map(Arc::clone)
    }
}

fn idle<T>() -> Arc<ImageCell<T>> {
    Arc::new(ImageCell { state: Mutex::new(ImageState::Idle), changed: Condvar::new() })
}

/// Ends the opening of an image when dropped, on every way out.
struct OpeningGuard<'a, T> {
    cell: &'a ImageCell<T>,
    outcome: Result<Arc<T>, Arc<ImageFault>>,
}

impl<T> Drop for OpeningGuard<'_, T> {
    fn drop(&mut self) {
        *lock(&self.cell.state) = match &self.outcome {
            Ok(open) => ImageState::Open(Arc::clone(open)),
            Err(fault) => {
                tracing::error!("{}", chain(&**fault));
                ImageState::Failed { at: Instant::now(), fault: Arc::clone(fault) }
            }
        };
        self.cell.changed.notify_all();
    }
}

/// Locks, also where a thread panicked with the lock: no change under it can panic halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn name() -> String {
        "lab/python@sha256:12".to_owned()
    }

    /// Waits until the image with slot 1 is being opened.
    fn until_opening(images: &ImageTable<u32>) {
        let end = Instant::now() + LONG;
        while !images.cell(1).is_some_and(|cell| matches!(*lock(&cell.state), ImageState::Opening)) {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
    }

    #[test]
    fn image_is_opened_once_for_all_who_ask() {
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
    fn failure_is_told_with_its_reason_and_tried_again_later() {
        let images = ImageTable::<u32>::new(LONG, LONG);
        let failed = images.get_or_open(1, name, || Err("blob is missing".into())).unwrap_err();
        assert_eq!(chain(&*failed), "image lab/python@sha256:12: blob is missing");
        let again = images.get_or_open(1, name, || unreachable!("told again without another try"));
        assert_eq!(chain(&*again.unwrap_err()), chain(&*failed));
        assert_eq!(images.states(), (vec![], vec![(1, chain(&*failed))]));
        images.forget_failures();
        assert_eq!(*images.get_or_open(1, name, || Ok(3)).unwrap(), 3);
        assert_eq!(images.states(), (vec![1], vec![]));

        let images = ImageTable::new(LONG, Duration::ZERO);
        images.get_or_open(1, name, || Err("blob is missing".into())).unwrap_err();
        assert_eq!(*images.get_or_open(1, name, || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn panic_while_opening_wakes_those_who_wait() {
        let images = ImageTable::new(LONG, LONG);
        let (go, gone) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let images = &images;
            let leader = scope.spawn(move || {
                catch_unwind(AssertUnwindSafe(|| {
                    images.get_or_open(1, name, || {
                        gone.recv().unwrap();
                        panic!("a bug in the merge")
                    })
                }))
                .is_err()
            });
            until_opening(images);
            let waiter = scope.spawn(|| images.get_or_open(1, name, || Ok(1)));
            go.send(()).unwrap();
            assert!(matches!(*waiter.join().unwrap().unwrap_err(), ImageFault::Panicked(_)));
            assert!(leader.join().unwrap());
        });
    }

    #[test]
    fn who_waits_for_another_gives_up_at_the_deadline() {
        let images = ImageTable::new(Duration::from_millis(1), LONG);
        let (go, gone) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let images = &images;
            let leader = scope.spawn(move || {
                images.get_or_open(1, name, || {
                    gone.recv().unwrap();
                    Ok(1)
                })
            });
            until_opening(images);
            let late = images.get_or_open(1, name, || Ok(2)).unwrap_err();
            assert!(matches!(*late, ImageFault::Deadline { .. }));
            go.send(()).unwrap();
            assert_eq!(*leader.join().unwrap().unwrap(), 1);
        });
    }
}
