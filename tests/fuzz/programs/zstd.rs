//! The fuzzer for the target `zstd`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::zstd::run(data));
