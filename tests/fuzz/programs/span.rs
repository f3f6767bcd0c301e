//! The fuzzer for the target `span`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::span::run(data));
