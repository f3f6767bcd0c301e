//! Answers one request: counts it, catches a panic of its handler, and maps an error to its errno.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::requests::{Operation, RequestCounters};
use crate::fs::FsError;

/// A reply that can carry an error.
pub(super) trait ErrorReply {
    fn reply_error(self, errno: Errno);
}

macro_rules! error_reply {
    ($($reply:ty),*) => {
        $(impl ErrorReply for $reply {
            fn reply_error(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

error_reply!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Runs `work` and passes its result to `accept`, or replies with its error after calling `failed`. A panic in `work` is
/// answered with EIO.
pub(super) fn answer<R: ErrorReply, T>(
    counters: &RequestCounters,
    operation: Operation,
    mut reply: R,
    work: impl FnOnce(&mut R) -> Result<T, FsError>,
    accept: impl FnOnce(R, T),
    failed: impl FnOnce(&FsError),
) {
    counters.count(operation);
    // A panic can leave only the reply half done, and the error ends the reply.
    let result = catch_unwind(AssertUnwindSafe(|| work(&mut reply)));
    let result = result.unwrap_or_else(|panic| {
        counters.count_panic();
        tracing::error!(operation = operation.name(), "handler panicked: {}", panic_message(&*panic));
        Err(FsError::Panicked)
    });
    match result {
        Ok(value) => accept(reply, value),
        Err(error) => {
            let errno = error.errno();
            if matches!(errno, rustix::io::Errno::IO | rustix::io::Errno::TIMEDOUT) {
                counters.count_error();
            }
            failed(&error);
            reply.reply_error(Errno::from_i32(errno.raw_os_error()));
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores the error of a reply.
    struct RecordedReply<'a>(&'a mut Option<Errno>);

    impl ErrorReply for RecordedReply<'_> {
        fn reply_error(self, errno: Errno) {
            *self.0 = Some(errno);
        }
    }

    #[test]
    fn panicking_handler_is_answered_with_eio_and_counted() {
        let counters = RequestCounters::default();
        let failures = std::cell::Cell::new(0);
        let request = |work: fn() -> Result<(), FsError>| {
            let mut errno = None;
            let reply = RecordedReply(&mut errno);
            answer(
                &counters,
                Operation::Read,
                reply,
                |_| work(),
                |_, ()| {},
                |_| failures.set(failures.get() + 1),
            );
            errno
        };
        assert_eq!(request(|| panic!("bug")), Some(Errno::EIO));
        assert_eq!((counters.panics(), counters.errors()), (1, 1));
        assert_eq!(request(|| Err(FsError::NotFound)), Some(Errno::ENOENT));
        assert_eq!(request(|| Ok(())), None);
        assert_eq!((counters.panics(), counters.errors(), failures.get()), (1, 1, 2));
        assert_eq!(counters.counts().collect::<Vec<_>>(), [("READ", 3)]);
    }
}
