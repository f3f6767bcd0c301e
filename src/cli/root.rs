//! `root`: writable roots that are there until they are removed.

use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::engine::EngineChoice;
use super::{Context, REFERENCE, output};
use crate::roots::{Engine, RootId, RootInfo, RootRemoval, RootState, Upper};
use crate::sandbox::DYING;
use crate::store::Store;

/// Make and remove writable roots: directories to hand to a sandbox
///
/// A root is an overlay of an image of the mount, of real directories /box /dev /proc /sys /tmp, and of an upper layer that
/// takes the writes. For one command in a root of its own, there is `run`.
#[derive(Debug, Args)]
pub(super) struct RootArgs {
    #[command(subcommand)]
    command: RootCommand,
}

#[derive(Debug, Subcommand)]
enum RootCommand {
    Create(CreateArgs),
    List(ListArgs),
    Remove(RemoveArgs),
    Sweep(SweepArgs),
}

/// Make a root and print its path
#[derive(Debug, Args)]
struct CreateArgs {
    /// The image.
    #[arg(help = REFERENCE, value_name = "REF")]
    reference: String,
    /// Name of the root [default: a random one]
    #[arg(long)]
    id: Option<RootId>,
    /// How the image is shown [default: fuse]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Where writes go: dir, dir:SIZE (needs project quotas), tmpfs:SIZE, or none (read-only) [default: dir]
    #[arg(long)]
    upper: Option<Upper>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List roots
#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove roots, with everything that was written in them
///
/// A root that a process works in is left alone.
#[derive(Debug, Args)]
struct RemoveArgs {
    /// Names of roots.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<RootId>,
    /// Detach a root that is in use, too; its files go when nothing uses them any more
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove what is left of runs and roots whose processes died, or that were still in use when they were removed
///
/// `mount` and `gc` do the same.
#[derive(Debug, Args)]
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
struct RemovedJson {
    id: String,
    /// False where its files stay until a sweep, because something uses them still.
    removed: bool,
    /// Processes that still have it in their mount namespace.
    holders: Vec<i32>,
}

#[derive(Debug, Serialize)]
struct SweptJson {
    removed: Vec<String>,
    /// Boxes of runs that were killed.
    boxes: usize,
}

pub(super) fn run(context: &Context, args: &RootArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    match &args.command {
        RootCommand::Create(args) => create(context, &store, args),
        RootCommand::List(args) => list(context, &store, args),
        RootCommand::Remove(args) => remove(context, &store, args),
        RootCommand::Sweep(args) => sweep(context, &store, args),
    }
}

fn create(context: &Context, store: &Store, args: &CreateArgs) -> anyhow::Result<()> {
    let upper = context.config.upper(args.upper)?;
    let (engine, lower) = context.lower(store, &args.reference, args.engine)?;
    let roots = context.roots(store)?;
    let root = roots.create(args.id.clone(), engine, &upper, &lower)?;
    if args.json {
        return output::json(&json_of(root));
    }
    output::bytes_line(root.path.unwrap_or_default().as_os_str().as_bytes())
}

fn list(context: &Context, store: &Store, args: &ListArgs) -> anyhow::Result<()> {
    let roots = context.roots(store)?.list()?;
    if args.json {
        return output::json(&roots.into_iter().map(json_of).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = roots
        .into_iter()
        .map(|root| {
            let upper = root.upper.map_or_else(|| "-".to_owned(), |upper| upper.to_string());
            let path = root.path.map_or_else(|| "-".to_owned(), |path| path.display().to_string());
            let image = root.image.unwrap_or_else(|| "-".to_owned());
            vec![root.id.to_string(), name_of(root.state).to_owned(), upper, path, image]
        })
        .collect();
    output::table(&["ID", "STATE", "UPPER", "PATH", "IMAGE"], &rows)
}

fn json_of(root: RootInfo) -> RootJson {
    let seconds =
        |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs());
    RootJson {
        id: root.id.to_string(),
        state: name_of(root.state),
        path: root.path.map(|path| path.to_string_lossy().into_owned()),
        image: root.image,
        engine: root.engine,
        upper: root.upper.map(|upper| upper.to_string()),
        created: root.created.and_then(seconds),
    }
}

fn name_of(state: RootState) -> &'static str {
    match state {
        RootState::Mounted => "mounted",
        RootState::Leased => "leased",
        RootState::Detached => "detached",
    }
}

fn remove(context: &Context, store: &Store, args: &RemoveArgs) -> anyhow::Result<()> {
    let roots = context.roots(store)?;
    let mut done = Vec::new();
    let mut failed = None;
    for id in &args.ids {
        let holders = match roots.remove(id, args.force) {
            Ok(RootRemoval::Gone) => None,
            Ok(RootRemoval::Detached { holders }) => Some(holders),
            // The others are to go all the same; each error is told, the first as the command's.
            Err(error) if failed.is_none() => {
                failed = Some(error);
                continue;
            }
            Err(error) => {
                tracing::error!("{error}");
                continue;
            }
        };
        if let Some(holders) = &holders {
            let whose = match holders.first() {
                Some(pid) => format!("process {pid} has it in its mount namespace"),
                None => "something outside the mount table keeps it".to_owned(),
            };
            tracing::warn!("root {id} is detached; its files stay until a sweep, for {whose}");
        }
        done.push(RemovedJson {
            id: id.to_string(),
            removed: holders.is_none(),
            holders: holders.into_iter().flatten().map(|pid| pid.as_raw_nonzero().get()).collect(),
        });
    }
    if args.json {
        output::json(&done)?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn sweep(context: &Context, store: &Store, args: &SweepArgs) -> anyhow::Result<()> {
    // Boxes first: their processes have to be gone before their roots can go.
    let boxes = context.boxes(store)?.sweep(DYING)?;
    let swept = context.roots(store)?.sweep()?;
    if args.json {
        let removed = swept.removed.iter().map(ToString::to_string).collect();
        output::json(&SweptJson { removed, boxes })?;
    } else {
        if boxes > 0 {
            output::line(format!("cleaned {boxes} boxes"))?;
        }
        for id in &swept.removed {
            output::line(format!("removed {id}"))?;
        }
    }
    let mut failed = swept.failed.into_iter();
    let first = failed.next();
    for (id, error) in failed {
        tracing::error!("root {id}: {error}");
    }
    match first {
        Some((id, error)) => Err(anyhow::Error::from(error).context(format!("root {id}"))),
        None => Ok(()),
    }
}

/// Removes dead roots, and boxes of dead runs, on the way of another command, which goes on whatever comes of that; how
/// many roots there were. With `dry_run`, only counts them.
pub(super) fn sweep_beside(context: &Context, store: &Store, dry_run: bool) -> usize {
    if !dry_run {
        let boxes = context.boxes(store).and_then(|boxes| Ok(boxes.sweep(Duration::ZERO)?));
        if let Err(error) = boxes {
            tracing::warn!("boxes of dead runs are not looked for: {error:#}");
        }
    }
    let swept = || -> anyhow::Result<usize> {
        // Whoever has never made a root needs no place for them.
        if !context.homes(store)?.exists() {
            return Ok(0);
        }
        let roots = context.roots(store)?;
        if dry_run {
            return Ok(roots.dead()?.len());
        }
        let swept = roots.sweep()?;
        for (id, error) in &swept.failed {
            tracing::warn!("root {id} is dead and cannot be removed: {error}");
        }
        Ok(swept.removed.len())
    };
    swept().unwrap_or_else(|error| {
        tracing::warn!("dead roots are not looked for: {error:#}");
        0
    })
}
