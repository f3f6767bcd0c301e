//! `root commit`: makes an image of a root and what was written to it.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::diff::image_of;
use super::{Context, candidates, error, output, progress, pull};
use crate::commit::{CommitNotes, CommitOptions, ConfigChange, OwnerMapping, commit};
use crate::error::ErrorCode;
use crate::image::Reference;
use crate::pipeline::{outgoing_image, push};
use crate::registry::Registry;
use crate::roots::RootId;
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Make an image of a root in which packages were installed:
    rcx-imagefs root commit judge-7 lab/python:exam --message 'numpy for the exam'
  Give the image another environment, and the files of the box's user to root:
    rcx-imagefs root commit judge-7 lab/python:exam --change 'ENV PATH=/opt/bin:$PATH' --map-owner 60007=0";

/// Make an image of a root, with what was written to it as a new layer
///
/// Prints NAME@DIGEST. The layer has the files that differ from the root's image, as `diff ID` lists them, and nothing that
/// every root has: not the directories /box, /dev, /proc, /sys and /tmp as long as they are empty, and no injected lines of /etc/hosts.
/// The root stays as it is. It must not be in use. The same files always give the same digest. NAME:TAG is as with `tag`: a tag
/// that another image has moves, with a warning. If --push fails, the image stays in the store, and `push` sends it again.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct CommitArgs {
    /// ID of the root
    #[arg(add = candidates::roots(), value_name = "ID")]
    id: RootId,
    /// The name of the new image.
    #[arg(help = "Name of the new image: [HOST[:PORT]/]NAME[:TAG]", value_name = "NAME[:TAG]")]
    name: String,
    /// Comment for the history of the image
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Dockerfile instruction to apply to the configuration: ENV, CMD, ENTRYPOINT, WORKDIR, USER or LABEL (repeatable)
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<ConfigChange>,
    /// Write files of this user as files of another one, and files of the group with the same number (repeatable)
    #[arg(long = "map-owner", value_name = "UID=UID")]
    owners: Vec<OwnerMapping>,
    /// Also send the new image to the registry that NAME has
    #[arg(long)]
    push: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct CommittedJson {
    name: String,
    tag: String,
    digest: String,
    /// The digest of the new layer; null if the root does not differ from its image.
    layer: Option<String>,
    /// The size of the new layer's blob in bytes.
    layer_size: u64,
    /// The digest that had the tag before, if it was another one.
    moved_from: Option<String>,
}

pub(super) fn run(context: &Context, args: &CommitArgs) -> anyhow::Result<()> {
    let at = || format!("commit root {} as {}", args.id, args.name);
    let target = Reference::from_archive(&args.name).with_context(at)?;
    if target.digest.is_some() {
        let message = format!("`{}` has a digest; a new name consists of NAME and TAG", args.name);
        return Err(error::fail(ErrorCode::Reference, message));
    }
    if args.push && target.name.host().is_none() {
        let message = format!("{} is a name without a registry", context.familiar(&target.name));
        let hint = "with --push, name the registry too: HOST/NAME:TAG";
        return Err(error::fail_with_hint(ErrorCode::Reference, message, hint));
    }
    let epoch = match std::env::var_os("SOURCE_DATE_EPOCH").filter(|epoch| !epoch.is_empty()) {
        Some(epoch) => Some(CommitOptions::parse_epoch(&epoch.to_string_lossy())?),
        None => None,
    };
    let options = CommitOptions { owners: args.owners.clone(), epoch };
    let notes = CommitNotes { message: args.message.clone(), changes: args.changes.clone() };
    let store = context.change_store()?;
    let held = context.roots(&store)?.hold(&args.id).map_err(crate::commit::CommitError::from);
    let root = held.with_context(at)?;
    let _lease = store.lease(None)?;
    let image = image_of(&store, &root).with_context(at)?;
    let tag = target.tag_or_latest();
    let before = store.refs()?.tagged(&target.name, &tag).map(|image| image.digest);
    let committed = commit(&store, &root, &image, &target, &options, &notes).with_context(at)?;
    drop(root);
    let digest = committed.image.digest;
    let name = context.familiar(&target.name);
    let moved_from = before.filter(|before| *before != digest);
    if let Some(from) = moved_from {
        tracing::warn!("tag {name}:{tag} moves from {from} to {digest}");
    }
    context.refresh(&store);
    context.make_tree_images(&store, [digest]);
    if args.push {
        push_committed(context, &store, &target, &args.name)?;
    }
    if args.json {
        return output::json(&CommittedJson {
            name,
            tag: tag.to_string(),
            digest: digest.to_string(),
            layer: committed.layer.map(|layer| layer.digest.to_string()),
            layer_size: committed.layer.map_or(0, |layer| layer.size),
            moved_from: moved_from.map(|digest| digest.to_string()),
        });
    }
    output::line(format!("{name}@{digest}"))
}

/// Sends a new image to the registry of its name. The caller holds a lease of the store.
fn push_committed(context: &Context, store: &Store, target: &Reference, shown: &str) -> anyhow::Result<()> {
    let at = || format!("push {shown}");
    let tag = target.tag_or_latest();
    let refs = store.refs()?;
    let image = refs.tagged(&target.name, &tag).with_context(|| format!("{shown} was removed meanwhile"))?;
    let outgoing = outgoing_image(store, image, &target.name, Some(tag)).with_context(at)?;
    let registry = Registry::new(context.registry_options(false)?).with_context(at)?;
    pull::runtime()?.block_on(push(&registry, outgoing, &progress::bars(shown))).with_context(at)?;
    Ok(())
}
