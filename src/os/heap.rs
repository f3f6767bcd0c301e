//! The heap of the process.

/// Returns freed memory to the kernel that the allocator would keep for later. Takes some milliseconds.
pub(crate) fn release_freed_memory() {
    // SAFETY: malloc_trim(3) may be called at any time by any thread, and releases only memory that is not allocated.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim has no safe interface")]
    unsafe {
        libc::malloc_trim(0);
    }
}
