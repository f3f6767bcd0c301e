//! Isolated runs: one command in a root of its own, under `isolate` or bubblewrap; and a stand-in for isolate.
//!
//! [`run`](fn@run) does what all runs have in common: it makes the box and the root, copies files, finds the program, and
//! cleans up. The differences between the two sandboxes are behind one trait, `Backend`, with one implementation in `isolate/`
//! and one in `bwrap/`. Argument vectors are made by pure functions, so that tests compare them as text.
//!
//! ```text
//!  caller                       holds the lease of the root and the lock of the box
//!   └─ first process            PID 1 of a PID namespace, in the mount namespace with the root; ends with the caller
//!       └─ isolate --run        or bwrap
//!           └─ the program
//! ```
//!
//! When the caller is killed, the kernel kills the first process and with it the whole PID namespace. The mounts end with the
//! last process of the mount namespace. The files of the root and the box remain; the next run sweeps them.

pub mod isolate;
pub mod shim;

mod backend;
mod box_directories;
mod box_lock;
mod box_locks;
mod boxes;
mod bwrap;
mod command;
mod copy;
mod environment;
mod error;
mod first_process;
mod installed;
mod interpreter;
mod prepare;
mod process;
mod run;
mod sandbox_command;
mod spec;
mod terminal;
mod user;
mod verdict;
mod view;

pub use boxes::{BoxRange, Boxes, EXIT_TIMEOUT};
pub use bwrap::BwrapSandbox;
pub use command::{DEFAULT_PATH, ProgramFault};
pub use copy::{CopyError, FileCopy};
pub use error::SandboxError;
pub use installed::{Sandbox, SandboxKind, find_isolate};
pub use interpreter::InterpreterKind;
pub use run::{FinishedRun, RunRequest, run};
pub use spec::RunSpec;
pub use terminal::is_in_terminal;
pub use user::User;
pub use verdict::{RunReport, RunStatus, Verdict};

/// The path of the box in the root.
const BOX: &str = "/box";
