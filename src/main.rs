//! The program `rcx-imagefs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rcx_imagefs::cli::run()
}
