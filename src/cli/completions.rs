//! `completions` and `man`: what packagers need.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Directory, made if missing
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    super::output::bytes(&script)
}

pub(super) fn man(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("directory {}", args.dir.display()))?;
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("manual pages in {}", args.dir.display()))
}
