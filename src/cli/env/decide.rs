//! `env approve`, `env reject`, `env withdraw`, `env retire`: decisions about revisions and environments.

use clap::Args;
use serde::Serialize;

use super::RevisionJson;
use crate::cli::{Context, output, pull};
use crate::environments::{EnvironmentId, Queue, RevisionId};
use crate::image::Digest;
use crate::registry::{Registry, RegistryOptions};

const APPROVE_EXAMPLES: &str = "\
Examples:
  Approve a revision:
    rcx-imagefs env approve python3@2 --as bob
  Approve it only if its context is the one that was reviewed:
    rcx-imagefs env approve python3@2 --as bob --context \"$(rcx-imagefs env show python3@2 --json | jq -r .submission.context.digest)\"";

const REJECT_EXAMPLES: &str = "\
Examples:
  Reject a revision, with the reason:
    rcx-imagefs env reject python3@2 --as bob -m 'pin the base image'";

const WITHDRAW_EXAMPLES: &str = "\
Examples:
  Take back a revision:
    rcx-imagefs env withdraw python3@2";

const RETIRE_EXAMPLES: &str = "\
Examples:
  Stop offering an environment:
    rcx-imagefs env retire python2 -m 'no course uses it'";

/// Approve a revision, so that it is built
///
/// Prints the digests of the base images, which the approval names together with that of the context: the build uses exactly these. The registry is asked for
/// the digest of an image that has none in the Dockerfile. The context must be as it was submitted.
#[derive(Debug, Args)]
#[command(after_long_help = APPROVE_EXAMPLES)]
pub(super) struct ApproveArgs {
    /// The revision
    #[arg(value_name = "ID@REVISION")]
    revision: RevisionId,
    /// Name of the reviewer
    #[arg(long = "as", value_name = "NAME")]
    reviewer: String,
    /// Remark
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Digest of the context that was reviewed; another one is an error
    #[arg(long, value_name = "DIGEST")]
    context: Option<Digest>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Reject a revision
///
/// A rejected revision is never built. The author submits another one.
#[derive(Debug, Args)]
#[command(after_long_help = REJECT_EXAMPLES)]
pub(super) struct RejectArgs {
    /// The revision
    #[arg(value_name = "ID@REVISION")]
    revision: RevisionId,
    /// Name of the reviewer
    #[arg(long = "as", value_name = "NAME")]
    reviewer: String,
    /// Reason, for the author
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Take back a revision that is not built yet
///
/// Works until a builder starts: on a revision that waits for its review, and on one that is approved.
#[derive(Debug, Args)]
#[command(after_long_help = WITHDRAW_EXAMPLES)]
pub(super) struct WithdrawArgs {
    /// The revision
    #[arg(value_name = "ID@REVISION")]
    revision: RevisionId,
    /// Who withdraws it [default: the user of this process]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
    /// Reason
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Take an environment out of what workers offer
///
/// Its revisions and their images stay, so that old submissions can be judged again. A revision that is submitted later brings the environment back when it is published.
#[derive(Debug, Args)]
#[command(after_long_help = RETIRE_EXAMPLES)]
pub(super) struct RetireArgs {
    /// The environment
    id: EnvironmentId,
    /// Who retires it [default: the user of this process]
    #[arg(long = "as", value_name = "NAME")]
    administrator: Option<String>,
    /// Reason
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn approve(context: &Context, queue: &Queue, args: &ApproveArgs) -> anyhow::Result<()> {
    let by = super::attribution(Some(&args.reviewer), args.message.as_deref())?;
    let platform = queue.revision(&args.revision)?.submission.platform;
    let registry = Registry::new(RegistryOptions { platform, ..context.registry_options(args.plain_http)? })?;
    let runtime = pull::runtime()?;
    let review = queue.approve(&args.revision, &by, args.context, &super::policy(context)?, |reference| {
        let resolved = runtime.block_on(registry.resolve(reference))?;
        // The digest by which others pin the image: of the index where it has one.
        Ok(resolved.index.map_or(resolved.manifest_digest, |index| index.digest))
    })?;
    if args.json {
        return print_revision(queue, &args.revision);
    }
    output::line(format!("approved {}", args.revision))?;
    for base in &review.bases {
        output::line(format!("base {} = {}", base.name, base.digest))?;
    }
    for host in &review.hosts {
        output::line(format!("host {host}"))?;
    }
    Ok(())
}

pub(super) fn reject(queue: &Queue, args: &RejectArgs) -> anyhow::Result<()> {
    queue.reject(&args.revision, &super::attribution(Some(&args.reviewer), args.message.as_deref())?)?;
    match args.json {
        true => print_revision(queue, &args.revision),
        false => output::line(format!("rejected {}", args.revision)),
    }
}

pub(super) fn withdraw(queue: &Queue, args: &WithdrawArgs) -> anyhow::Result<()> {
    queue.withdraw(&args.revision, &super::attribution(args.author.as_deref(), args.message.as_deref())?)?;
    match args.json {
        true => print_revision(queue, &args.revision),
        false => output::line(format!("withdrew {}", args.revision)),
    }
}

#[derive(Debug, Serialize)]
struct RetiredJson<'a> {
    environment: &'a str,
    /// The revision that workers offered.
    was: u32,
}

pub(super) fn retire(queue: &Queue, args: &RetireArgs) -> anyhow::Result<()> {
    let was = queue
        .retire(&args.id, &super::attribution(args.administrator.as_deref(), args.message.as_deref())?)?;
    match args.json {
        true => output::json(&RetiredJson { environment: args.id.as_str(), was: was.number.get() }),
        false => output::line(format!("retired {}; workers offered {was}", args.id)),
    }
}

fn print_revision(queue: &Queue, id: &RevisionId) -> anyhow::Result<()> {
    let (environment, revision) = (queue.environment(&id.environment)?, queue.revision(id)?);
    output::json(&RevisionJson::new(&environment, &revision))
}
