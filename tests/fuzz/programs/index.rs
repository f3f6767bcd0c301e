//! The fuzzer for the target `index`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::index::run(data));
