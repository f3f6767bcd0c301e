//! Locks between threads that stay usable after a panic.

use std::sync::{LockResult, PoisonError};

/// Returns the guard of a lock even if another thread panicked while it held the lock.
///
/// Use it only for data that is valid after each single change, so that a panic between two changes breaks no invariant. A
/// handler that panics then fails one request and not the whole mount.
pub fn ignore_poison<Guard>(result: LockResult<Guard>) -> Guard {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn lock_is_usable_after_a_holder_panicked() {
        let mutex = Mutex::new(1);
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _guard = mutex.lock();
                panic!("poison the lock");
            });
            assert!(holder.join().is_err());
        });
        assert!(mutex.lock().is_err());
        assert_eq!(*ignore_poison(mutex.lock()), 1);
    }
}
