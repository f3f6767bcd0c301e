//! Isolated runs: one command in a root of its own, under `isolate` or bubblewrap.
//!
//! What a run asks for is a value; the argument vectors that come of it are made by pure functions. Processes and
//! namespaces are the business of few files.
//!
//! ```text
//!  caller                       holds the root's lease and the box; init, files in, files out, cleanup
//!   └─ first process            of a process namespace and a mount namespace that has the root; ends when the caller does
//!       └─ isolate --run        or bwrap
//!           └─ the program
//! ```
//!
//! When the caller is killed, the kernel kills the first process, with it all others of its namespace, and with the last
//! of them the mounts go. What is left then, files and a box, the next run sweeps.

pub mod isolate;
pub mod shim;

mod boxes;
mod bwrap;
mod command;
mod copy;
mod error;
mod first_process;
mod installed;
mod process;
mod run;
mod spec;
mod verdict;

pub use boxes::{BoxRange, Boxes, DYING};
pub use bwrap::User;
pub use command::{DEFAULT_PATH, ProgramFault};
pub use copy::FileCopy;
pub use error::SandboxError;
pub use installed::{Sandbox, SandboxKind, find_isolate};
pub use run::{FinishedRun, RunRequest, run};
pub use spec::RunSpec;
pub use verdict::{RunReport, RunStatus, Verdict};
