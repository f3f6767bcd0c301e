//! `completions`: prints completion scripts for shells.
//!
//! The scripts call this program for the candidates, since only it knows the images and roots.

use clap::Args;
use clap_complete::Shell;
use clap_complete::env::{CompleteEnv, Shells};

use super::{error, output};
use crate::error::ErrorCode;

const EXAMPLES: &str = "\
Examples:
  Install completions for bash:
    rcx-imagefs completions bash >/etc/bash_completion.d/rcx-imagefs";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Shell that reads the script
    shell: Shell,
}

/// The name of the program.
const PROGRAM: &str = "rcx-imagefs";
/// The variable in which a script names its shell when it asks for candidates.
const VARIABLE: &str = "_RCX_IMAGEFS_COMPLETE";
/// Not clap's own script, which completes no word with a `:`.
const BASH: &str = include_str!("completions.bash");

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    if args.shell == Shell::Bash {
        return output::bytes(BASH.as_bytes());
    }
    let (shells, name) = (Shells::builtins(), args.shell.to_string());
    let shell = shells.completer(&name).ok_or_else(|| {
        error::fail(ErrorCode::Internal, format!("there is no completion script for {name}"))
    })?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    output::bytes(&script)
}

/// Prints candidates and ends the process if a completion script has called it.
pub(super) fn answer_shell() {
    CompleteEnv::with_factory(super::command).var(VARIABLE).bin(PROGRAM).complete();
}
