//! `env`: the queue of revisions of environments.

mod build;
mod decide;
mod list;
mod log;
mod publish;
mod show;
mod smoke;
mod submit;
mod sync;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use crate::environments::{
    Attribution, BasePolicy, BuildResult, Environment, Queue, Review, Revision, RevisionState, Submission,
};

/// Default directory of the queue: beside the store, whose own files can be deleted and rebuilt.
const DEFAULT_QUEUE: &str = "/var/lib/rcx-imagefs-environments";

const EXAMPLES: &str = "\
Examples:
  Submit a directory with a Dockerfile as a revision of an environment:
    rcx-imagefs env submit python3 ./python3
  Look at what waits for a review, and approve it:
    rcx-imagefs env list
    rcx-imagefs env show python3@1
    rcx-imagefs env approve python3@1 --as bob
  Publish what workers are to offer, and follow that list on a worker:
    rcx-imagefs env publish --registry registry.example/env
    rcx-imagefs env sync --registry registry.example/env";

/// Submit, review and publish environments: images that workers offer
///
/// An author submits a directory with a Dockerfile as a revision of an environment; an administrator approves or rejects it. The queue
/// is a directory that only its owner can use. Published revisions reach the workers by a list in the registry. See rcx-imagefs-environments(7).
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct EnvArgs {
    /// Directory of the queue [env: RCX_IMAGEFS_QUEUE] [default: /var/lib/rcx-imagefs-environments]
    #[arg(long, global = true, value_name = "DIR")]
    queue: Option<PathBuf>,
    #[command(subcommand)]
    command: EnvCommand,
}

#[derive(Debug, Subcommand)]
enum EnvCommand {
    Submit(submit::SubmitArgs),
    List(list::ListEnvironmentsArgs),
    Show(show::ShowArgs),
    Approve(decide::ApproveArgs),
    Reject(decide::RejectArgs),
    Withdraw(decide::WithdrawArgs),
    Build(build::BuildArgs),
    Retire(decide::RetireArgs),
    Publish(publish::PublishArgs),
    Rollback(publish::RollbackArgs),
    Sync(sync::SyncArgs),
    Log(log::LogArgs),
}

impl EnvArgs {
    /// Whether the command prints JSON.
    pub(super) fn json(&self) -> bool {
        match &self.command {
            EnvCommand::Submit(args) => args.json,
            EnvCommand::List(args) => args.json,
            EnvCommand::Show(args) => args.json,
            EnvCommand::Approve(args) => args.json,
            EnvCommand::Reject(args) => args.json,
            EnvCommand::Withdraw(args) => args.json,
            EnvCommand::Build(args) => args.json,
            EnvCommand::Retire(args) => args.json,
            EnvCommand::Publish(args) => args.json,
            EnvCommand::Rollback(args) => args.json,
            EnvCommand::Sync(args) => args.json,
            EnvCommand::Log(args) => args.json,
        }
    }
}

/// A revision in the output of `--json`.
#[derive(Debug, Serialize)]
struct RevisionJson<'a> {
    environment: &'a str,
    revision: u32,
    state: RevisionState,
    /// Whether it is the one that workers offer.
    current: bool,
    /// Its directory.
    path: String,
    submission: &'a Submission,
    review: Option<&'a Review>,
    result: Option<&'a BuildResult>,
}

impl<'a> RevisionJson<'a> {
    fn new(environment: &Environment, revision: &'a Revision) -> Self {
        Self {
            environment: revision.id.environment.as_str(),
            revision: revision.id.number.get(),
            state: revision.state(),
            current: environment.current().is_some_and(|current| current.id == revision.id),
            path: revision.path.display().to_string(),
            submission: &revision.submission,
            review: revision.review.as_ref(),
            result: revision.result.as_ref(),
        }
    }
}

pub(super) fn run(context: &Context, args: EnvArgs) -> anyhow::Result<()> {
    if let EnvCommand::Sync(args) = &args.command {
        // A worker has no queue.
        return sync::run(context, args);
    }
    let configured = context.config.environments.queue.as_ref();
    let queue = Context::directory(args.queue, "RCX_IMAGEFS_QUEUE", configured, DEFAULT_QUEUE)?;
    if let EnvCommand::Submit(args) = &args.command {
        return submit::run(context, &queue, args);
    }
    let queue = Queue::open(&queue)?;
    match &args.command {
        EnvCommand::Submit(_) | EnvCommand::Sync(_) => unreachable!("handled above"),
        EnvCommand::List(args) => list::run(&queue, args),
        EnvCommand::Show(args) => show::run(context, &queue, args),
        EnvCommand::Approve(args) => decide::approve(context, &queue, args),
        EnvCommand::Reject(args) => decide::reject(&queue, args),
        EnvCommand::Withdraw(args) => decide::withdraw(&queue, args),
        EnvCommand::Build(args) => build::run(context, &queue, args),
        EnvCommand::Retire(args) => decide::retire(&queue, args),
        EnvCommand::Publish(args) => publish::publish(context, &queue, args),
        EnvCommand::Rollback(args) => publish::roll_back(context, &queue, args),
        EnvCommand::Log(args) => log::run(&queue, args),
    }
}

/// Attributes a change to `name`, or to the user of this process.
fn attribution(name: Option<&str>, message: Option<&str>) -> anyhow::Result<Attribution> {
    let own = || {
        let uid = nix::unistd::getuid();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        user.map_or_else(|| format!("user {uid}"), |user| user.name)
    };
    Ok(Attribution::now(&name.map_or_else(own, str::to_owned), message)?)
}

/// Which base images are allowed on this host.
fn policy(context: &Context) -> anyhow::Result<BasePolicy> {
    Ok(BasePolicy {
        default_registry: context.default_registry().map(str::to_owned),
        registries: context.config.environments.registries()?,
    })
}
