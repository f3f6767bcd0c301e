//! The stand-in for isolate as a separate program, because it may be installed set-uid: it links only what it needs.

use std::process::ExitCode;

fn main() -> ExitCode {
    rcx_imagefs::cli::stand_in_for_isolate()
}
