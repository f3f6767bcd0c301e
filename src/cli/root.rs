//! `root`: manages writable roots, which exist until they are removed.

use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rustix::process::Pid;
use serde::Serialize;

use super::commit::{self, CommitArgs};
use super::diff::{self, RootDiffArgs};
use super::engine::EngineChoice;
use super::error::ErrorJson;
use super::{Context, STORED, candidates, output};
use crate::error::chain_text;
use crate::pipeline::read_image;
use crate::roots::{
    Engine, Injection, InodeWidth, RootId, RootInfo, RootRemoval, RootState, RootsError, Upper,
};
use crate::sandbox::{EXIT_TIMEOUT, User};
use crate::store::Store;

const ROOT_EXAMPLES: &str = "\
Examples:
  Make a root, write to it, and remove it:
    rcx-imagefs root create python:3.12 --id judge-7
    chroot /run/rcx-imagefs/roots/judge-7 touch /box/out
    rcx-imagefs root remove judge-7";

const CREATE_EXAMPLES: &str = "\
Examples:
  Make a root whose files are kept in 256 MiB of memory:
    rcx-imagefs root create python:3.12 --id judge-7 --upper tmpfs:256M
  Make a read-only root without a daemon:
    rcx-imagefs root create python:3.12 --engine overlay2 --upper none";

const LIST_EXAMPLES: &str = "\
Examples:
  List roots:
    rcx-imagefs root list
  Print the paths of mounted roots:
    rcx-imagefs root list --json | jq -r '.[].path // empty'";

const REMOVE_EXAMPLES: &str = "\
Examples:
  Remove a root:
    rcx-imagefs root remove judge-7
  Remove a root even if processes use it:
    rcx-imagefs root remove --force judge-7";

const SWEEP_EXAMPLES: &str = "\
Examples:
  Clean up after killed runs:
    rcx-imagefs root sweep";

/// Create, commit and remove writable roots: directories for a sandbox
///
/// A root is an overlay of three layers: at the bottom the image, above it real directories /box, /dev, /proc, /sys and /tmp
/// and lines in /etc that name localhost, at the top an upper layer that receives the writes. To run one command in a root of its own, use `run`.
#[derive(Debug, Args)]
#[command(after_long_help = ROOT_EXAMPLES)]
pub(super) struct RootArgs {
    #[command(subcommand)]
    command: RootCommand,
}

#[derive(Debug, Subcommand)]
enum RootCommand {
    Create(CreateArgs),
    Commit(CommitArgs),
    Diff(RootDiffArgs),
    List(ListArgs),
    Remove(RemoveArgs),
    Sweep(SweepArgs),
}

impl RootArgs {
    /// Whether the command prints JSON.
    pub(super) fn json(&self) -> bool {
        match &self.command {
            RootCommand::Create(args) => args.json,
            RootCommand::Commit(args) => args.json,
            RootCommand::Diff(args) => args.json,
            RootCommand::List(args) => args.json,
            RootCommand::Remove(args) => args.json,
            RootCommand::Sweep(args) => args.json,
        }
    }
}

/// Create a root and print its path
///
/// With `--engine unpack`, creating a root copies the whole image, which takes seconds to minutes and as much disk space as
/// the image's files. Use that engine only to compare; fuse and overlay2 share the image between all roots.
#[derive(Debug, Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
struct CreateArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Name of the root [default: a random name]
    #[arg(long)]
    id: Option<RootId>,
    /// How the root accesses the image's files [default: erofs if possible, otherwise fuse]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Where writes go: dir, dir:SIZE (needs project quotas), tmpfs:SIZE, or none for a read-only root [default: dir]
    #[arg(long)]
    upper: Option<Upper>,
    /// Inode numbers: 64bit, or 32bit for programs without large-file support [default: 64bit]
    #[arg(long, value_name = "WIDTH")]
    inodes: Option<InodeWidth>,
    /// User and group of the programs, in numbers, to name them in /etc/passwd and /etc/group
    #[arg(long, value_name = "UID[:GID]", conflicts_with = "no_inject")]
    user: Option<User>,
    /// Add nothing to the image: no line for localhost in /etc/hosts
    #[arg(long)]
    no_inject: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List roots
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove roots, with everything that was written to them
///
/// Fails for a root that a process uses, unless --force is given.
#[derive(Debug, Args)]
#[command(after_long_help = REMOVE_EXAMPLES)]
struct RemoveArgs {
    /// Names of the roots
    #[arg(required = true, value_name = "ID", add = candidates::roots())]
    ids: Vec<RootId>,
    /// Detach a root even if it is in use; its files are removed when no process uses them any more
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove the remains of killed runs, and of roots that were in use when they were removed
///
/// `mount` and `gc` do the same.
#[derive(Debug, Args)]
#[command(after_long_help = SWEEP_EXAMPLES)]
struct SweepArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct RootJson {
    id: String,
    state: &'static str,
    path: Option<String>,
    image: Option<String>,
    engine: Option<Engine>,
    upper: Option<String>,
    /// Seconds since 1970.
    created: Option<u64>,
}

#[derive(Debug, Serialize)]
struct RemovedRootJson {
    id: String,
    /// False if the root was in use and is only detached, or if the removal failed.
    removed: bool,
    /// Processes that use the root.
    holders: Vec<i32>,
    /// Why the removal failed.
    error: Option<String>,
    /// The code of `error`.
    code: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct SweptJson {
    removed: Vec<String>,
    /// Number of boxes of killed runs.
    boxes: usize,
    /// Roots that could not be removed.
    failed: Vec<FailedRootJson>,
    /// The first failure.
    error: Option<ErrorJson>,
}

#[derive(Debug, Serialize)]
struct FailedRootJson {
    id: String,
    error: String,
    code: &'static str,
}

pub(super) fn run(context: &Context, args: &RootArgs) -> anyhow::Result<()> {
    if let RootCommand::Commit(args) = &args.command {
        return commit::run(context, args);
    }
    let store = context.open_store()?;
    match &args.command {
        RootCommand::Commit(_) => unreachable!("handled above"),
        RootCommand::Diff(args) => diff::run_root(context, &store, args),
        RootCommand::Create(args) => create(context, &store, args),
        RootCommand::List(args) => list(context, &store, args),
        RootCommand::Remove(args) => remove(context, &store, args),
        RootCommand::Sweep(args) => sweep(context, &store, args),
    }
}

fn create(context: &Context, store: &Store, args: &CreateArgs) -> anyhow::Result<()> {
    let upper = context.config.upper(args.upper)?;
    // First of all, because it checks the run directory.
    let roots = context.roots(store)?.with_inodes(context.config.inodes(args.inodes)?);
    let image = context.find(store, &args.reference)?.image;
    let name = format!("{}@{}", context.familiar(&image.name), image.digest);
    let image = read_image(store, &image.digest).with_context(|| name.clone())?;
    let lower = context.with_engine(args.engine, |engine| context.lower(store, &image, &name, engine))?;
    let injection = args.user.map_or(Injection::default(), |user| {
        Injection::default().with_user(user.uid().as_raw(), user.gid().as_raw())
    });
    let injection = (!args.no_inject).then_some(injection);
    let root = roots.create(args.id.clone(), &upper, &lower, injection.as_ref())?;
    if args.json {
        return output::json(&root_json(root));
    }
    output::bytes_line(root.path.unwrap_or_default().as_os_str().as_bytes())
}

fn list(context: &Context, store: &Store, args: &ListArgs) -> anyhow::Result<()> {
    let roots = context.roots(store)?.list()?;
    if args.json {
        return output::json(&roots.into_iter().map(root_json).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = roots
        .into_iter()
        .map(|root| {
            let upper = root.upper.map_or_else(|| "-".to_owned(), |upper| upper.to_string());
            let path = root.path.map_or_else(|| "-".to_owned(), |path| path.display().to_string());
            let image = root.image.unwrap_or_else(|| "-".to_owned());
            vec![root.id.to_string(), state_name(root.state).to_owned(), upper, path, image]
        })
        .collect();
    output::table(&["ID", "STATE", "UPPER", "PATH", "IMAGE"], &rows)
}

fn root_json(root: RootInfo) -> RootJson {
    let seconds =
        |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs());
    RootJson {
        id: root.id.to_string(),
        state: state_name(root.state),
        path: root.path.map(|path| path.to_string_lossy().into_owned()),
        image: root.image,
        engine: root.engine,
        upper: root.upper.map(|upper| upper.to_string()),
        created: root.created.and_then(seconds),
    }
}

fn state_name(state: RootState) -> &'static str {
    match state {
        RootState::Mounted => "mounted",
        RootState::Dead => "dead",
        RootState::Leased => "leased",
        RootState::Detached => "detached",
    }
}

fn remove(context: &Context, store: &Store, args: &RemoveArgs) -> anyhow::Result<()> {
    let roots = context.roots(store)?;
    let mut done = Vec::new();
    let mut failure = None;
    for id in &args.ids {
        let mut item = RemovedRootJson {
            id: id.to_string(),
            removed: false,
            holders: Vec::new(),
            error: None,
            code: None,
        };
        match roots.remove(id, args.force) {
            Ok(RootRemoval::Gone) => item.removed = true,
            Ok(RootRemoval::Detached { holders }) => {
                let reason = match holders.first() {
                    Some(pid) => format!("process {pid} uses it"),
                    None => "its overlay is in use outside the mount table".to_owned(),
                };
                tracing::warn!("root {id} is detached, but {reason}; a later sweep removes its files");
                item.holders = numbers(holders);
            }
            // Remove the other roots nevertheless. The first error becomes the error of the command.
            Err(error) => {
                if let RootsError::InUse { by, .. } = &error {
                    item.holders = numbers(by.iter().map(|(pid, _)| *pid));
                }
                let error = anyhow::Error::from(error);
                let explained = ErrorJson::new(&error);
                (item.error, item.code) = (Some(explained.message), Some(explained.code));
                match failure {
                    None => failure = Some(error),
                    Some(_) => tracing::error!("{error:#}"),
                }
            }
        }
        done.push(item);
    }
    if args.json {
        output::json(&done)?;
    }
    failure.map_or(Ok(()), Err)
}

fn numbers(pids: impl IntoIterator<Item = Pid>) -> Vec<i32> {
    pids.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect()
}

fn sweep(context: &Context, store: &Store, args: &SweepArgs) -> anyhow::Result<()> {
    // Boxes first: a root can be removed only after the processes of its box have ended.
    let boxes = context.boxes(store)?.sweep(EXIT_TIMEOUT)?;
    let roots = context.roots(store)?;
    roots.unmount_dead()?;
    let swept = roots.sweep()?;
    let failures = swept.failed.into_iter().map(|(id, error)| {
        let error = anyhow::Error::from(error).context(format!("root {id}"));
        (id, error)
    });
    let mut failures: Vec<_> = failures.collect();
    if args.json {
        let failed = failures.iter().map(|(id, error)| {
            let error = ErrorJson::new(error);
            FailedRootJson { id: id.to_string(), error: error.message, code: error.code }
        });
        output::json(&SweptJson {
            removed: swept.removed.iter().map(ToString::to_string).collect(),
            boxes,
            failed: failed.collect(),
            error: failures.first().map(|(_, error)| ErrorJson::new(error)),
        })?;
    } else {
        if boxes > 0 {
            output::line(format!("cleaned {}", output::count(boxes, "box", "boxes")))?;
        }
        for id in &swept.removed {
            output::line(format!("removed {id}"))?;
        }
    }
    for (_, error) in failures.iter().skip(1) {
        tracing::error!("{error:#}");
    }
    failures.drain(..).next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Removes dead roots and boxes of dead runs as part of another command, and returns the number of roots. With `dry_run`,
/// only counts them. Errors are logged and do not stop the other command.
pub(super) fn sweep_beside(context: &Context, store: &Store, dry_run: bool) -> usize {
    if !dry_run {
        let boxes = context.boxes(store).and_then(|boxes| Ok(boxes.sweep(Duration::ZERO)?));
        if let Err(error) = boxes {
            tracing::warn!("cannot clean boxes of dead runs: {error:#}");
        }
    }
    let swept = || -> anyhow::Result<usize> {
        // Do not create the directory of roots where no root was ever made.
        if context.homes(store)?.path().symlink_metadata().is_err() {
            return Ok(0);
        }
        let roots = context.roots(store)?;
        if dry_run {
            return Ok(roots.dead()?.len());
        }
        roots.unmount_dead()?;
        let swept = roots.sweep()?;
        for (id, error) in &swept.failed {
            tracing::warn!("cannot remove dead root {id}: {}", chain_text(error));
        }
        Ok(swept.removed.len())
    };
    swept().unwrap_or_else(|error| {
        tracing::warn!("cannot remove dead roots: {error:#}");
        0
    })
}
