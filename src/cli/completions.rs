//! `completions`: prints completion scripts for shells.

use clap::{Args, Command};

use super::output;

const EXAMPLES: &str = "\
Examples:
  Install completions for bash:
    rcx-imagefs completions bash >/etc/bash_completion.d/rcx-imagefs";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Shell that reads the script
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    output::bytes(&script)
}
