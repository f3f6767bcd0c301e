//! `config check`: checks a configuration file.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::config::{Config, DEFAULT_PATH};
use super::output;

const EXAMPLES: &str = "\
Examples:
  Check a new configuration before it replaces the old one:
    rcx-imagefs config check config.toml.new && mv config.toml.new /etc/rcx-imagefs/config.toml";

const CHECK_EXAMPLES: &str = "\
Examples:
  Check the configuration of this host:
    rcx-imagefs config check";

/// Check the configuration file
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    Check(CheckArgs),
}

/// Check the keys and values of a configuration file
///
/// Exits with 2 and names the line of the first key that does not exist, or whose value is wrong. `doctor` checks whether this host has
/// what the configuration asks for.
#[derive(Debug, Args)]
#[command(after_long_help = CHECK_EXAMPLES)]
struct CheckArgs {
    /// Configuration file [default: the file that --config selects, or /etc/rcx-imagefs/config.toml]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ConfigArgs {
    pub(super) fn json(&self) -> bool {
        let ConfigCommand::Check(args) = &self.command;
        args.json
    }
}

#[derive(Debug, Serialize)]
struct CheckedJson {
    path: String,
    /// Whether the file exists. The default file may be missing.
    exists: bool,
}

pub(super) fn run(args: &ConfigArgs, selected: Option<&Path>) -> anyhow::Result<()> {
    let ConfigCommand::Check(args) = &args.command;
    let path = args.file.as_deref().or(selected);
    Config::load(path)?;
    let path = path.unwrap_or(Path::new(DEFAULT_PATH));
    let checked = CheckedJson { path: path.display().to_string(), exists: path.exists() };
    if args.json {
        return output::json(&checked);
    }
    let state = if checked.exists { "is valid" } else { "does not exist: all keys have their defaults" };
    output::line(format!("configuration {} {state}", checked.path))
}
