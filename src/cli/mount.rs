//! `mount`: serves the store.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::{Context, output, root};
use crate::daemon::{ServeOptions, serve};
use crate::fs::FsOptions;
use crate::fuse::prepare_mountpoint;
use crate::store::Store;

/// Show every image of the store as a directory, until SIGTERM, SIGINT or an unmount
///
/// Runs in the foreground. Prints one line when it is ready, and tells systemd (Type=notify).
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Empty directory to mount on
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Threads that answer the kernel
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Memory for decoded spans, in MiB [default: 256]
    #[arg(long, value_name = "MIB")]
    cache: Option<u64>,
    /// Readahead of the kernel on the mount, in KiB
    #[arg(long, value_name = "KIB")]
    read_ahead: Option<u32>,
    /// Mount over a directory that has something in it
    #[arg(long)]
    allow_nonempty: bool,
}

pub(super) fn run(context: &Context, args: &MountArgs) -> anyhow::Result<()> {
    let config = &context.config.mount;
    if !Store::exists(&context.store)? {
        // No new store where nothing can be mounted: its path may be mistyped too.
        prepare_mountpoint(&args.mountpoint, args.allow_nonempty)?;
    }
    let store = context.make_store()?;
    root::sweep_beside(context, &store, false);
    let mut fs = FsOptions::default();
    if let Some(mib) = args.cache.or(config.cache_mib) {
        fs.cache_bytes = mib.saturating_mul(1 << 20);
    }
    let options = ServeOptions {
        mountpoint: args.mountpoint.clone(),
        run_dir: context.run_dir.clone(),
        default_registry: context.config.default_registry.clone(),
        threads: args.threads.or(config.threads),
        kernel_read_ahead_kib: args.read_ahead.or(config.read_ahead_kib),
        allow_nonempty: args.allow_nonempty,
        fs,
    };
    serve(store.clone(), &options, |mountpoint| {
        let text = format!("mounted {} at {}", store.path().display(), mountpoint.display());
        // Whoever started this may have closed the pipe; the mount does not end for that.
        let _ = output::line(text);
    })?;
    Ok(())
}
