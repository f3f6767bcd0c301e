//! `env sync`: brings the images of the published list to this host, and offers those that work.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::smoke;
use crate::cli::failures::{FailedItemJson, Failures};
use crate::cli::{Context, error, output, progress, pull};
use crate::environments::{
    AdvertisedFile, AdvertisedSet, EnvironmentsPrefix, OFFERS_MAX, Offer, OfferList, SmokeCommand, WorkerFile,
};
use crate::error::ErrorCode;
use crate::image::Reference;
use crate::pipeline::{ProgressSink, PullJob, open_image, pull as pull_image, read_image, tree_image};
use crate::registry::{Registry, RegistryOptions};
use crate::store::{ImageRecord, Store};

const EXAMPLES: &str = "\
Examples:
  Follow the list, write its IDs to the configuration of a worker, and restart the worker if they change:
    rcx-imagefs env sync --write-headers /etc/recodex/worker/config-1.yml --exec 'systemctl restart recodex-worker@1'";

/// Bring the environments of the published list to this host
///
/// Pulls the images, checks that they are complete, makes their tree images and runs their smoke commands. Only then it offers them, and prints ID@REVISION and NAME@DIGEST
/// of each. An environment whose image cannot be pulled or does not work is left out, or stays as it was if its earlier image is complete; the command
/// then exits with 2. If the list cannot be fetched, everything stays as it was.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct SyncArgs {
    /// Registry with the list of environments, with an optional port and prefix [default: `registry` of the configuration]
    #[arg(long, value_name = "HOST/PREFIX")]
    registry: Option<EnvironmentsPrefix>,
    /// Remove the images that an earlier `env sync` pulled and that are not offered any more
    #[arg(long)]
    prune: bool,
    /// Write the IDs between the marker comments of a worker's configuration; can be repeated
    #[arg(long, value_name = "FILE")]
    write_headers: Vec<PathBuf>,
    /// Run this command of the shell if the set of IDs has changed since it last succeeded
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct SyncedJson {
    /// The list that was followed: NAME:TAG@DIGEST.
    list: Option<String>,
    environments: OfferList,
    failed: Vec<FailedItemJson>,
    /// The files of `--write-headers` that have changed.
    headers_changed: Vec<String>,
    /// Whether the command of `--exec` ran.
    executed: bool,
    /// The images that were removed.
    removed: Vec<String>,
}

/// What brings images to this host.
struct Synchronisation<'a> {
    context: &'a Context,
    store: Store,
    registry: Arc<Registry>,
    runtime: tokio::runtime::Runtime,
    before: AdvertisedSet,
    quiet: bool,
}

pub(super) fn run(context: &Context, args: &SyncArgs) -> anyhow::Result<()> {
    let config = &context.config.environments;
    let prefix = config.registry(args.registry.as_ref())?;
    let (hwgroup, platform) = (config.hwgroup()?, context.config.platform(None)?);
    for path in &args.write_headers {
        // Before long work. It is read again when it is written: somebody may edit it meanwhile.
        WorkerFile::read(path)?;
    }
    let store = context.make_store()?;
    // Before the list is fetched: a list that is older than another one cannot replace it.
    let file = AdvertisedFile::lock(&store.private_dir()?.1)?;
    let before = file.read()?;
    let options =
        RegistryOptions { platform: platform.clone(), ..context.registry_options(args.plain_http)? };
    let registry = Arc::new(Registry::new(options)?);
    let runtime = pull::runtime()?;
    let current = prefix.current();
    let fetch = registry.fetch_artifact(&current, OFFERS_MAX);
    let unchanged = "what this host offers stays as it is";
    let artifact = runtime.block_on(fetch).context(unchanged)?;
    let list = context.offers(&prefix, &artifact).context(unchanged)?;
    let mut sync =
        Synchronisation { context, store, registry, runtime, before, quiet: args.quiet || args.json };
    let wanted: Vec<&Offer> =
        list.offers().iter().filter(|offer| offer.is_for(hwgroup.as_ref(), &platform)).collect();
    sync.note_new_images(&file, &wanted)?;

    let mut failures = Failures::new(wanted.len());
    let (mut offers, mut failed) = (Vec::new(), Vec::new());
    for offer in wanted {
        let id = offer.revision_id().to_string();
        match sync.prepare(offer).with_context(|| format!("environment {id}")) {
            Ok(()) => offers.push(offer.clone()),
            Err(error) => {
                failed.push(failures.add(&id, error));
                offers.extend(sync.earlier(offer).cloned());
            }
        }
    }
    let reference = Reference { digest: Some(artifact.digest), ..current };
    let mut set = AdvertisedSet {
        list: Some(reference.to_string()),
        environments: OfferList::new(offers),
        ..sync.before.clone()
    };
    file.write(&set)?;
    let mut synced = SyncedJson {
        list: set.list.clone(),
        environments: set.environments.clone(),
        failed,
        headers_changed: Vec::new(),
        executed: false,
        removed: Vec::new(),
    };
    for path in &args.write_headers {
        if WorkerFile::read(path)?.write(&set.ids())? {
            synced.headers_changed.push(path.display().to_string());
        }
    }
    if let Some(command) = &args.exec
        && set.announced.clone().unwrap_or_default() != set.ids()
    {
        execute(command)?;
        synced.executed = true;
        set.announced = Some(set.ids());
        file.write(&set)?;
    }
    if args.prune {
        // After the workers have noticed.
        synced.removed = sync.prune(&mut set)?;
        file.write(&set)?;
    }
    // Do not wait for a thread that waits for another process to finish a layer.
    sync.runtime.shutdown_background();
    match args.json {
        true => output::json(&synced)?,
        false => print(&synced)?,
    }
    failures.finish("offered")
}

fn print(synced: &SyncedJson) -> anyhow::Result<()> {
    for offer in synced.environments.offers() {
        output::line(format!("{} {}", offer.revision_id(), offer.image))?;
    }
    for image in &synced.removed {
        output::line(format!("removed {image}"))?;
    }
    Ok(())
}

/// Runs the command of `--exec`. Its output goes to the standard error, because that of this command may be read by a program.
fn execute(command: &str) -> anyhow::Result<()> {
    let mut shell = Command::new("/bin/sh");
    let status = shell
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .context("run /bin/sh")?;
    match status.success() {
        true => Ok(()),
        false => Err(error::fail_with_hint(
            ErrorCode::Exec,
            format!("the command of --exec failed ({status}): {command}"),
            "the environments are offered; the next `env sync --exec` runs the command again",
        )),
    }
}

impl Synchronisation<'_> {
    /// Notes the images that will be pulled before they are, so that `--prune` finds them whatever happens.
    fn note_new_images(&mut self, file: &AdvertisedFile, wanted: &[&Offer]) -> anyhow::Result<()> {
        let mut set = self.before.clone();
        for offer in wanted {
            if self.record(&offer.image)?.is_none() {
                set.pulled.insert(offer.image.to_string());
            }
        }
        if set != self.before {
            file.write(&set)?;
            self.before = set;
        }
        Ok(())
    }

    /// Brings an image here and checks it. What was checked before is not checked again.
    fn prepare(&self, offer: &Offer) -> anyhow::Result<()> {
        let earlier = self.before.environments.get(&offer.id).filter(|earlier| earlier.image == offer.image);
        if earlier.is_none() || !self.is_complete(&offer.image) {
            self.pull(&offer.image)?;
        }
        let record = self.record(&offer.image)?;
        let record = record.with_context(|| format!("{} was removed", offer.image))?;
        let image = read_image(&self.store, &record.digest)?;
        if self.context.uses_tree_images(&self.store) {
            tree_image(&self.store, &image)?;
        }
        match SmokeCommand::of(offer.smoke.as_deref(), image.config()) {
            Some(command) if earlier.is_none_or(|earlier| earlier.smoke != offer.smoke) => {
                smoke::run(self.context, &offer.image.to_string(), &command)
            }
            _ => Ok(()),
        }
    }

    fn pull(&self, reference: &Reference) -> anyhow::Result<()> {
        let pull = async {
            let resolved = self.registry.resolve(reference).await?;
            let text = reference.to_string();
            let progress = if self.quiet { ProgressSink::none() } else { progress::bars(&text) };
            let job = PullJob {
                store: self.store.clone(),
                registry: Arc::clone(&self.registry),
                any_platform: false,
                plain: self.context.makes_plain(false),
                damaged: Arc::default(),
                progress,
            };
            pull_image(&job, reference, resolved).await?;
            anyhow::Ok(())
        };
        self.runtime.block_on(pull)?;
        self.context.refresh(&self.store);
        Ok(())
    }

    /// The offer that stays if the one of the list does not work: another image that is complete.
    fn earlier(&self, offer: &Offer) -> Option<&Offer> {
        let earlier = self.before.environments.get(&offer.id)?;
        (earlier.image != offer.image && self.is_complete(&earlier.image)).then_some(earlier)
    }

    fn record(&self, reference: &Reference) -> anyhow::Result<Option<ImageRecord>> {
        let Some(digest) = reference.digest else { return Ok(None) };
        Ok(self.store.refs()?.with_digest(&reference.name, digest).cloned())
    }

    /// Whether the store has the image with all its layers.
    fn is_complete(&self, reference: &Reference) -> bool {
        let Ok(Some(record)) = self.record(reference) else { return false };
        match open_image(&self.store, record.digest, |_| None) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("{reference} is not complete: {}", crate::error::chain_text(&error));
                false
            }
        }
    }

    /// Removes the images that were pulled to be offered, are not offered any more, and have no tag. Returns them.
    fn prune(&self, set: &mut AdvertisedSet) -> anyhow::Result<Vec<String>> {
        let offered: Vec<String> =
            set.environments.offers().iter().map(|offer| offer.image.to_string()).collect();
        let mut removed = Vec::new();
        for text in set.pulled.clone() {
            if offered.contains(&text) {
                continue;
            }
            let reference = Reference::parse(&text, None)?;
            let record = self.record(&reference)?;
            if record.as_ref().is_some_and(|record| !record.tags.is_empty()) {
                continue;
            }
            set.pulled.remove(&text);
            if let Some(record) = record
                && self.store.remove_image(&record.name, record.digest)?
            {
                removed.push(text);
            }
        }
        self.context.refresh(&self.store);
        Ok(removed)
    }
}
