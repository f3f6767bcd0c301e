//! `env build`: builds approved revisions, and publishes their images.

mod image;
mod smoke;
mod stop;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;

use self::stop::BuilderStop;
use super::RevisionJson;
use crate::cli::{Context, output, pull};
use crate::environments::{
    ActiveBuild, Attribution, BuildDirectory, BuildFailure, BuildFault, BuildOutput, BuildResult, Builder,
    BuiltImage, EnvironmentsError, Queue, Revision, RevisionId,
};
use crate::image::{ManifestDigest, Platform, Reference};
use crate::pipeline::{ProgressSink, outgoing_image, push};
use crate::registry::{Registry, RegistryOptions};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Build the revision that was approved first:
    rcx-imagefs env build
  Build all approved revisions, and wait for more:
    rcx-imagefs env build --watch";

/// Build an approved revision, and publish its image
///
/// Prints ID@REVISION and the image. buildah builds it from the base images of the approval, without network; then the smoke command runs in it, and it is pushed to
/// the registry of the configuration. A build that fails is final: the author submits another revision. If the host or the registry fails, the revision stays
/// approved, and an image that was built already is only pushed the next time.
///
/// Builds run commands of the Dockerfile as root: use a host or virtual machine of its own.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct BuildArgs {
    /// The revision
    #[arg(value_name = "ID@REVISION", conflicts_with_all = ["next", "watch"])]
    revision: Option<RevisionId>,
    /// Build the revision that was approved first; the default
    #[arg(long)]
    next: bool,
    /// Build revisions as they are approved, until SIGTERM or SIGINT
    #[arg(long, conflicts_with = "next")]
    watch: bool,
    /// Name of the builder [default: the user of this process]
    #[arg(long = "as", value_name = "NAME")]
    builder: Option<String>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "watch")]
    pub(super) json: bool,
}

/// What all builds of this process share.
struct BuildSession<'a> {
    context: &'a Context,
    queue: &'a Queue,
    args: &'a BuildArgs,
    store: Store,
    registry: Arc<Registry>,
    runtime: tokio::runtime::Runtime,
    stop: BuilderStop,
}

/// What was built by now, or why it cannot be.
type Built<T> = Result<T, BuildFailure>;

pub(super) fn run(context: &Context, queue: &Queue, args: &BuildArgs) -> anyhow::Result<()> {
    let runtime = pull::runtime()?;
    let options =
        RegistryOptions { platform: Platform::host(), ..context.registry_options(args.plain_http)? };
    let session = BuildSession {
        context,
        queue,
        args,
        store: context.make_store()?,
        registry: Arc::new(Registry::new(options)?),
        stop: BuilderStop::catch(&runtime)?,
        runtime,
    };
    if args.watch {
        return session.watch();
    }
    let revision = match &args.revision {
        Some(revision) => Some(revision.clone()),
        None => session.waiting()?.into_iter().next().map(|revision| revision.id),
    };
    let Some(revision) = revision else {
        tracing::warn!("no approved revision waits for this builder");
        return Ok(());
    };
    let builder = queue.builder()?;
    session.build(&builder, &revision)
}

impl BuildSession<'_> {
    /// The approved revisions that this host can build, those that were approved first first.
    fn waiting(&self) -> anyhow::Result<Vec<Revision>> {
        let mut revisions = self.queue.approved()?;
        revisions.retain(|revision| can_build(revision).is_ok());
        Ok(revisions)
    }

    /// Builds one revision, and prints it.
    fn build(&self, builder: &Builder, id: &RevisionId) -> anyhow::Result<()> {
        let by = self.attribution()?;
        let build = self.queue.start_build(id, &by)?;
        can_build(build.revision())?;
        let target = self.context.config.environments.image_of(id)?;
        // The base images and the result are read from the store.
        let lease = self.store.lease(None)?;
        let built = match build.built()?.filter(|built| self.has(&target, built.digest)) {
            Some(built) => {
                tracing::info!("{id} is built already");
                built
            }
            None => match self.make(builder, &build, &target).with_context(|| format!("build {id}"))? {
                Ok(built) => built,
                Err(failed) => return fail(build, &failed),
            },
        };
        let image = Reference { digest: Some(built.digest), ..target };
        if self.context.config.environments.has_registry() {
            self.push(&image).with_context(|| format!("push {id} to {}", image.name))?;
        }
        drop(lease);
        let named = Reference { tag: None, ..image };
        let result = BuildResult::published(self.attribution()?, &named);
        let result = BuildResult { seconds: Some(built.seconds), log_size: Some(built.log_size), ..result };
        build.finish(&result)?;
        if self.args.json {
            let (environment, revision) =
                (self.queue.environment(&id.environment)?, self.queue.revision(id)?);
            return output::json(&RevisionJson::new(&environment, &revision));
        }
        output::line(format!("published {id} as {named}"))
    }

    /// Makes the image of a revision, and notes it. If the build fails, returns its result.
    fn make(
        &self,
        builder: &Builder,
        build: &ActiveBuild<'_>,
        target: &Reference,
    ) -> anyhow::Result<Result<BuiltImage, BuildResult>> {
        let start = Instant::now();
        Builder::check_tools()?;
        let directory = builder.directory(&build.revision().id)?;
        let limits = self.context.config.environments.build_limits()?;
        let mut log = BuildOutput::create(&directory.log_path(), limits.log)?;
        let made = self.make_image(builder, build.revision(), &directory, &mut log, target)?;
        if let Err(failure) = &made {
            log.note(&format!("failed ({}): {}", failure.fault, failure.message))?;
        }
        log.sync()?;
        build.keep_log(&directory.log_path())?;
        let (seconds, log_size) = (start.elapsed().as_secs(), log.length());
        match made {
            Ok(digest) => {
                let built = BuiltImage { digest, seconds, log_size };
                build.keep(&built)?;
                Ok(Ok(built))
            }
            Err(failure) => {
                let result = BuildResult::failed(self.attribution()?, &failure);
                Ok(Err(BuildResult { seconds: Some(seconds), log_size: Some(log_size), ..result }))
            }
        }
    }

    /// Builds the image, loads it into the store under its name, and tries it.
    fn make_image(
        &self,
        builder: &Builder,
        revision: &Revision,
        directory: &BuildDirectory,
        log: &mut BuildOutput,
        target: &Reference,
    ) -> anyhow::Result<Built<ManifestDigest>> {
        let bases = match self.bases(revision)? {
            Ok(bases) => bases,
            Err(failure) => return Ok(Err(failure)),
        };
        let limits = self.context.config.environments.build_limits()?;
        let stopped = || self.stop.is_set();
        match builder.build(directory, revision, &self.store, &bases, &limits, log, &stopped)? {
            Ok(true) => {}
            Ok(false) => return Err(self.stop.error()),
            Err(failure) => return Ok(Err(failure)),
        }
        let digest = match self.load(directory, &bases, target)? {
            Ok(digest) => digest,
            Err(failure) => return Ok(Err(failure)),
        };
        let image = Reference { digest: Some(digest), ..target.clone() };
        let tried = self.try_image(revision, &image, directory, log);
        if !matches!(tried, Ok(Ok(()))) {
            self.store.remove_image(&image.name, digest)?;
            self.context.refresh(&self.store);
        }
        Ok(tried?.map(|()| digest))
    }

    /// Whether the store has an image under this name.
    fn has(&self, target: &Reference, digest: ManifestDigest) -> bool {
        self.store.refs().is_ok_and(|refs| refs.with_digest(&target.name, digest).is_some())
    }

    fn push(&self, image: &Reference) -> anyhow::Result<()> {
        let refs = self.store.refs()?;
        let record = image.digest.and_then(|digest| refs.with_digest(&image.name, digest));
        let record = record.context("the image is no longer in the store")?;
        let outgoing = outgoing_image(&self.store, record, &image.name, image.tag.clone())?;
        self.stop.or(&self.runtime, push(&self.registry, outgoing, &ProgressSink::none()))??;
        Ok(())
    }

    fn attribution(&self) -> anyhow::Result<Attribution> {
        super::attribution(self.args.builder.as_deref(), None)
    }
}

/// Ends a build that has failed.
fn fail(build: ActiveBuild<'_>, result: &BuildResult) -> anyhow::Result<()> {
    let revision = build.revision().clone();
    build.finish(result)?;
    let hint = format!("{} has the output of the build", revision.build_log_path().display());
    let message = result.by.message.clone().unwrap_or_default();
    let fault = result.fault.unwrap_or(BuildFault::Build);
    Err(EnvironmentsError::Build { revision: revision.id, fault, message, hint }.into())
}

/// Fails if this host cannot build a revision.
fn can_build(revision: &Revision) -> Result<(), EnvironmentsError> {
    let (id, wanted, own) = (revision.id.clone(), &revision.submission.platform, Platform::host());
    if *wanted != own {
        return Err(EnvironmentsError::BuildPlatform { revision: id, wanted: wanted.clone(), own });
    }
    let hosts = revision.review.as_ref().map(|review| review.hosts.as_slice()).unwrap_or_default();
    match hosts {
        [] => Ok(()),
        hosts => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            Err(EnvironmentsError::BuildHosts { revision: id, hosts: hosts.join(", ") })
        }
    }
}
