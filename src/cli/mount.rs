//! `mount`: runs the daemon that serves the store.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::config::PlainChoice;
use super::{Context, output, root};
use crate::daemon::{ServeOptions, serve};
use crate::fs::FsOptions;
use crate::fuse::prepare_mountpoint;
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Mount the store and list its images:
    mkdir -p /images && rcx-imagefs mount /images &
    ls /images
  Unmount, which ends the daemon:
    umount /images";

/// Mount the store: every image is a directory
///
/// Runs in the foreground until SIGTERM, SIGINT or an unmount. Prints one line when the mount is ready, and notifies systemd
/// (Type=notify). Images that are pulled, loaded or removed meanwhile appear and disappear at once.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct MountArgs {
    /// Empty directory to mount on
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Number of threads that answer kernel requests [default: twice the number of processors]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Memory for decoded layer content, in MiB [default: 256]
    #[arg(long, value_name = "MIB")]
    cache: Option<u64>,
    /// Kernel readahead on the mount, in KiB [default: 128]
    #[arg(long, value_name = "KIB")]
    read_ahead: Option<u32>,
    /// Mount over a directory that is not empty
    #[arg(long)]
    allow_nonempty: bool,
}

pub(super) fn run(context: &Context, args: &MountArgs) -> anyhow::Result<()> {
    let config = &context.config.mount;
    if !Store::exists(&context.store)? {
        // Check the mountpoint before creating a store: a user who mistypes one path may have mistyped both.
        prepare_mountpoint(&args.mountpoint, args.allow_nonempty)?;
    }
    let store = context.make_store()?;
    root::sweep_beside(context, &store, false);
    let mut fs = FsOptions { prefetch: context.config.erofs.prefetch, ..FsOptions::default() };
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
        makes_tree_images: context.uses_tree_images(&store),
        makes_plain: context.config.erofs.plain != PlainChoice::Never,
        fs,
    };
    serve(store.clone(), &options, |mountpoint| {
        let text = format!("mounted {} at {}", store.path().display(), mountpoint.display());
        // A closed pipe must not end the mount.
        let _ = output::line(text);
    })?;
    Ok(())
}
