//! `logout`: removes stored logins.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::login::{REGISTRY, registry_key};
use super::{Context, output};
use crate::registry::{AuthFiles, remove_all_logins, remove_login};

const EXAMPLES: &str = "\
Examples:
  Remove the login for a registry:
    rcx-imagefs logout registry.example:5000
  Remove all logins of a file:
    rcx-imagefs logout --all --authfile ~/.config/containers/auth.json";

/// Remove the login for a registry
///
/// Changes only the file that `login` writes. Logins that are stored elsewhere, for example by `docker login`, stay.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LogoutArgs {
    /// The registry.
    #[arg(help = REGISTRY)]
    registry: Option<String>,
    /// Remove all logins of the file
    #[arg(short, long, conflicts_with = "registry")]
    all: bool,
    /// File from which to remove the login [default: the file that `login` writes]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The output of `logout --json`.
#[derive(Debug, Serialize)]
struct LoggedOutJson {
    registry: Option<String>,
    removed: usize,
    file: String,
}

pub(super) fn run(context: &Context, args: &LogoutArgs) -> anyhow::Result<()> {
    let path = args.authfile.clone().unwrap_or_else(AuthFiles::written_by_login);
    let file = path.display().to_string();
    let (registry, removed, text) = if args.all {
        let removed = remove_all_logins(&path).context("logout")?;
        (None, removed, format!("removed {} ({file})", output::count(removed, "login", "logins")))
    } else {
        let key = registry_key(context, args.registry.as_deref())?;
        remove_login(&path, &key).with_context(|| format!("logout {key}"))?;
        let text = format!("removed the login for {key} ({file})");
        (Some(key), 1, text)
    };
    if args.json {
        return output::json(&LoggedOutJson { registry, removed, file });
    }
    output::line(text)
}
