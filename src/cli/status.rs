//! `status`: what the daemon says of itself.

use std::time::Duration;

use clap::Args;

use super::{Context, error, output};
use crate::daemon::{ControlRequest, ControlResponse, DaemonStatus, ask};

/// How long the daemon may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Show the daemon: mount, images, caches, counters
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &StatusArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let Some(daemon) = store.running_daemon()? else {
        return Err(error::advise(
            format!("no daemon serves the store {}", store.path().display()),
            "start one with `rcx-imagefs mount DIR`",
        ));
    };
    let status = match ask(&daemon.socket, ControlRequest::Status, DEADLINE)? {
        ControlResponse::Status(status) => status,
        other => anyhow::bail!("the daemon answered {other:?}"),
    };
    if args.json {
        return output::json(&status);
    }
    print(&status)
}

fn print(status: &DaemonStatus) -> anyhow::Result<()> {
    output::line(format!(
        "rcx-imagefs {}, process {}, {} s, {} threads",
        status.version, status.pid, status.uptime_seconds, status.threads
    ))?;
    output::line(format!("store   {}", status.store.display()))?;
    output::line(format!("mount   {}", status.mountpoint.display()))?;
    let files = &status.filesystem;
    output::line(format!(
        "images  {} published, {} open, {} failed",
        files.published,
        files.open.len(),
        files.failed.len()
    ))?;
    for reason in &files.failed {
        output::line(format!("  failed: {reason}"))?;
    }
    output::line(format!("layers  {} open", files.layers))?;
    let cache = &files.cache;
    output::line(format!(
        "cache   {} of {} in {} spans",
        output::size(cache.bytes),
        output::size(cache.capacity),
        cache.spans
    ))?;
    output::line(format!(
        "  {} hits, {} misses ({} waited for another's decode), {} decodes ({} failed), {} evictions",
        cache.hits, cache.misses, cache.waits, cache.decodes, cache.failures, cache.evictions
    ))?;
    let total: u64 = status.requests.values().sum();
    output::line(format!("requests {total}, answered with EIO {}, panics {}", status.errors, status.panics))?;
    for (kind, count) in status.requests.iter().filter(|(_, count)| **count > 0) {
        output::line(format!("  {kind:<14}{count}"))?;
    }
    Ok(())
}
