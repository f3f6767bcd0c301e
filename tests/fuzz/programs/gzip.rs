//! The fuzzer for the target `gzip`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rcx_imagefs_fuzz::targets::gzip::run(data));
