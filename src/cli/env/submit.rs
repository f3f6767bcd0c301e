//! `env submit`: adds a revision to the queue.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use serde_json::Map;

use super::RevisionJson;
use crate::cli::{Context, output};
use crate::environments::{BuildHost, ContextSource, EnvironmentId, HardwareGroup, Queue, SubmissionDraft};
use crate::os::AtPath as _;

const EXAMPLES: &str = "\
Examples:
  Submit a directory with a Dockerfile:
    rcx-imagefs env submit python3 ./python3 -m 'Python 3.12 with numpy' --smoke 'python3 -c \"import numpy\"'
  Submit a tar whose build needs a package mirror:
    rcx-imagefs env submit cxx-gcc-linux context.tar --host mirror.example:8080";

/// Submit a build context as a new revision of an environment
///
/// Prints ID@REVISION. The context must have a file Dockerfile at its top. It is stored as a tar without times and owners, so the same files
/// have the same digest whether they are submitted as a directory or as a tar. If a revision that waits for its review asks for the same, that one is
/// printed and nothing is added.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct SubmitArgs {
    /// ID of the environment in the judge: at most 32 lower-case letters and digits, joined by single `-`, `_` or `.`
    id: EnvironmentId,
    /// Directory, or tar that is not compressed
    #[arg(value_name = "DIR|CONTEXT.tar")]
    context: PathBuf,
    /// What is new in this revision
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Name of the author [default: the user of this process]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
    /// Command that shows whether the image works: it exits with 0
    #[arg(long, value_name = "COMMAND")]
    smoke: Option<String>,
    /// Host that the build needs, such as a package mirror; can be repeated
    #[arg(long = "host", value_name = "NAME[:PORT]")]
    hosts: Vec<BuildHost>,
    /// Hardware group whose workers are to offer the environment; can be repeated [default: all]
    #[arg(long = "hwgroup", value_name = "GROUP")]
    hwgroups: Vec<HardwareGroup>,
    /// Platform to build for [default: this host's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct SubmittedJson<'a> {
    /// Whether the revision is new.
    new: bool,
    #[serde(flatten)]
    revision: RevisionJson<'a>,
}

pub(super) fn run(context: &Context, queue: &Path, args: &SubmitArgs) -> anyhow::Result<()> {
    let draft = SubmissionDraft {
        by: super::attribution(args.author.as_deref(), args.message.as_deref())?,
        platform: context.config.platform(args.platform.as_deref())?,
        smoke: args.smoke.clone(),
        hosts: args.hosts.clone(),
        hwgroups: args.hwgroups.clone(),
        unknown: Map::new(),
    };
    // Before the queue, whose directory is made if it does not exist.
    let archive = match args.context.is_dir() {
        true => None,
        false => Some(File::open(&args.context).at("open", &args.context)?),
    };
    let source = match &archive {
        None => ContextSource::Directory(&args.context),
        Some(archive) => ContextSource::Archive(archive),
    };
    let queue = Queue::open_or_create(queue)?;
    let limit = context.config.environments.context_limit()?;
    let submitted = queue
        .submit(&args.id, draft, source, limit)
        .with_context(|| format!("submit {}", args.context.display()))?;
    let revision = &submitted.revision;
    if args.json {
        let environment = queue.environment(&args.id)?;
        let revision = RevisionJson::new(&environment, revision);
        return output::json(&SubmittedJson { new: submitted.is_new, revision });
    }
    if !submitted.is_new {
        tracing::warn!("{} asks for the same and waits for its review; nothing was added", revision.id);
    }
    output::line(&revision.id)
}
