//! The stand-in for isolate as a program of its own, to be installed set-uid: nothing but that is linked into it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rcx_imagefs::cli::stand_in_for_isolate()
}
