//! `status`: shows the state of the daemon.

use std::collections::BTreeMap;

use clap::Args;

use super::{Context, output};
use crate::daemon::DaemonStatus;
use crate::fuse::LazyReads;

const EXAMPLES: &str = "\
Examples:
  Show the state of the daemon:
    rcx-imagefs status
  Print the images that cannot be served, and why:
    rcx-imagefs status --json | jq -r '.filesystem.failed[]'";

/// Show the state of the daemon: mount, images, caches, counters
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(context: &Context, args: &StatusArgs) -> anyhow::Result<()> {
    let status = context.catalog()?.status(context)?;
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
        "  {} hits, {} misses ({} waited for a decode in progress), {} decodes ({} failed), {} evictions",
        cache.hits, cache.misses, cache.waits, cache.decodes, cache.failures, cache.evictions
    ))?;
    let total: u64 = status.requests.values().sum();
    output::line(format!("requests {total}, failed {}, panics {}", status.errors, status.panics))?;
    print_requests(&status.requests)?;
    let LazyReads { bytes, wait_ms } = status.reads;
    output::line(format!("reads   {}, waited {wait_ms} ms for them", output::size(bytes)))?;
    if let Some(layers) = &status.layer_files {
        let total: u64 = layers.requests.values().sum();
        output::line(format!("layer files {}, {} in use", layers.mountpoint.display(), layers.known))?;
        output::line(format!("requests {total}"))?;
        print_requests(&layers.requests)?;
    }
    let plain = &status.plain_layers;
    output::line(format!("plain layers {} ({})", plain.count, output::size(plain.bytes)))
}

fn print_requests(requests: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    for (kind, count) in requests.iter().filter(|(_, count)| **count > 0) {
        output::line(format!("  {kind:<14}{count}"))?;
    }
    Ok(())
}
