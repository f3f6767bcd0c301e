//! The fuzzer for the target `isolate`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::isolate::run(data));
