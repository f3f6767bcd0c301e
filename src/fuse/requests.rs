//! Counts the kernel's requests by kind. Requests that the kernel answers from its cache are not counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! operations {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A kind of request, named as in include/uapi/linux/fuse.h.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            $(#[doc = concat!("`FUSE_", $name, "`")] $variant,)*
        }

        impl Operation {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name without `FUSE_`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

operations! {
    Lookup "LOOKUP",
    Forget "FORGET",
    GetAttr "GETATTR",
    ReadLink "READLINK",
    Open "OPEN",
    Read "READ",
    Lseek "LSEEK",
    Flush "FLUSH",
    OpenDir "OPENDIR",
    ReadDir "READDIR",
    ReadDirPlus "READDIRPLUS",
    StatFs "STATFS",
    GetXattr "GETXATTR",
    ListXattr "LISTXATTR",
    Change "CHANGE",
    Other "OTHER",
}

/// Counts requests by kind.
#[derive(Debug, Default)]
pub struct RequestCounters {
    counts: [AtomicU64; Operation::ALL.len()],
    panics: AtomicU64,
    errors: AtomicU64,
}

impl RequestCounters {
    /// Counts a request.
    pub(super) fn count(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a handler that panicked.
    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request answered with EIO or ETIMEDOUT.
    pub(super) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the name and count of each kind that has occurred.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Operation::ALL.iter().filter_map(|operation| {
            let count = self.counts[*operation as usize].load(Ordering::Relaxed);
            (count > 0).then_some((operation.name(), count))
        })
    }

    /// The number of handlers that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// The number of requests answered with EIO or ETIMEDOUT, including panics.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}
