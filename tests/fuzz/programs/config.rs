//! The fuzzer for the target `config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::config::run(data));
