//! The fuzzer for the target `tar`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::tar::run(data));
