//! `env publish` and `env rollback`: what workers are to offer.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::cli::{Context, output, pull};
use crate::environments::{
    EnvironmentId, EnvironmentsPrefix, OFFERS_MAX, OFFERS_TYPE, OfferList, OfferListError, Queue,
    RevisionNumber, SIGNATURE_TYPE, check_signature, sign,
};
use crate::error::chain_text;
use crate::image::{ManifestDigest, Tag};
use crate::registry::{ArtifactDocument, Registry, RegistryError, RemoteArtifact};

const PUBLISH_EXAMPLES: &str = "\
Examples:
  Publish what `env list --current` shows, signed:
    rcx-imagefs env publish --registry registry.example/env --sign /etc/rcx-imagefs/publish_key";

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  Let workers offer the revision before the current one:
    rcx-imagefs env rollback python3 -m 'numpy is broken' --publish";

/// Where and how the list of environments is published.
#[derive(Debug, Args)]
struct PublishOptions {
    /// Registry with the list of environments, with an optional port and prefix [default: `registry` of the configuration]
    #[arg(long, value_name = "HOST/PREFIX")]
    registry: Option<EnvironmentsPrefix>,
    /// Sign the list with this private key of OpenSSH
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
}

/// Publish the list of what workers are to offer
///
/// Writes the list of all current revisions to the registry, as the artifact PREFIX/environments:current, and prints its name with its digest. Workers follow
/// it with `env sync`. Each list also gets a tag of its own, so older ones stay.
#[derive(Debug, Args)]
#[command(after_long_help = PUBLISH_EXAMPLES)]
pub(super) struct PublishArgs {
    #[command(flatten)]
    options: PublishOptions,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Make another published revision the one that workers offer
///
/// Without a revision, that is the newest one before the current one. It stays current until a revision with a higher number than all published ones is
/// published. Workers notice after `env publish`.
#[derive(Debug, Args)]
#[command(after_long_help = ROLLBACK_EXAMPLES)]
pub(super) struct RollbackArgs {
    /// The environment, or the revision
    #[arg(value_name = "ID[@REVISION]")]
    target: RollbackTarget,
    /// Who decides [default: the user of this process]
    #[arg(long = "as", value_name = "NAME")]
    administrator: Option<String>,
    /// Reason
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Also publish the list
    #[arg(long)]
    publish: bool,
    #[command(flatten)]
    options: PublishOptions,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `ID[@REVISION]`.
#[derive(Debug, Clone)]
struct RollbackTarget {
    environment: EnvironmentId,
    revision: Option<RevisionNumber>,
}

impl std::str::FromStr for RollbackTarget {
    type Err = crate::environments::EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (environment, revision) = match text.split_once('@') {
            Some((environment, revision)) => (environment, Some(revision.parse()?)),
            None => (text, None),
        };
        Ok(Self { environment: environment.parse()?, revision })
    }
}

#[derive(Debug, Serialize)]
struct PublishedJson {
    /// The artifact: NAME:TAG@DIGEST.
    list: String,
    digest: String,
    /// The tag that stays with this list.
    tag: String,
    signed: bool,
    environments: OfferList,
}

#[derive(Debug, Serialize)]
struct RolledBackJson {
    environment: String,
    revision: u32,
    published: Option<PublishedJson>,
}

pub(super) fn publish(context: &Context, queue: &Queue, args: &PublishArgs) -> anyhow::Result<()> {
    let published = publish_list(context, queue, &args.options)?;
    match args.json {
        true => output::json(&published),
        false => print(&published),
    }
}

pub(super) fn roll_back(context: &Context, queue: &Queue, args: &RollbackArgs) -> anyhow::Result<()> {
    let by = super::attribution(args.administrator.as_deref(), args.message.as_deref())?;
    if args.publish {
        // Before the change: nothing has happened if this fails.
        context.config.environments.registry(args.options.registry.as_ref())?;
    }
    let RollbackTarget { environment, revision } = &args.target;
    let chosen = queue.roll_back(environment, *revision, &by)?;
    let publish = || {
        publish_list(context, queue, &args.options)
            .with_context(|| format!("{chosen} is current, but the list is not published"))
    };
    let published = args.publish.then(publish).transpose()?;
    if args.json {
        let (environment, revision) = (chosen.environment.as_str().to_owned(), chosen.number.get());
        return output::json(&RolledBackJson { environment, revision, published });
    }
    output::line(format!("current {chosen}"))?;
    published.as_ref().map_or(Ok(()), print)
}

fn print(published: &PublishedJson) -> anyhow::Result<()> {
    for offer in published.environments.offers() {
        output::line(format!("{} {}", offer.revision_id(), offer.image))?;
    }
    output::line(format!("published {}", published.list))
}

fn publish_list(context: &Context, queue: &Queue, options: &PublishOptions) -> anyhow::Result<PublishedJson> {
    let prefix = context.config.environments.registry(options.registry.as_ref())?;
    let registry = Registry::new(context.registry_options(options.plain_http)?)?;
    let runtime = pull::runtime()?;
    let _lock = queue.lock_publishing()?;
    let earlier = match runtime.block_on(registry.fetch_artifact(&prefix.current(), OFFERS_MAX)) {
        Ok(artifact) => context.offers(&prefix, &artifact).unwrap_or_else(|error| {
            tracing::warn!("fields of the published list are not kept: {}", chain_text(error.as_ref()));
            OfferList::default()
        }),
        Err(RegistryError::NotFound { .. }) => OfferList::default(),
        Err(RegistryError::Document { source, .. }) => {
            tracing::warn!("{} is no list and is replaced: {}", prefix.current(), chain_text(&source));
            OfferList::default()
        }
        Err(error) => return Err(error.into()),
    };
    let list = queue.offers(&earlier)?;
    let mut documents = vec![ArtifactDocument { media_type: OFFERS_TYPE.to_owned(), bytes: list.to_bytes() }];
    if let Some(key) = &options.sign {
        let bytes = sign(key, &documents[0].bytes)?;
        documents.push(ArtifactDocument { media_type: SIGNATURE_TYPE.to_owned(), bytes });
    }
    let digest = send(&runtime, &registry, &prefix, &documents)
        .with_context(|| format!("publish {}", prefix.current()))?;
    let reference = crate::image::Reference { digest: Some(digest), ..prefix.current() };
    Ok(PublishedJson {
        list: reference.to_string(),
        digest: digest.to_string(),
        tag: own_tag(&documents).to_string(),
        signed: options.sign.is_some(),
        environments: list,
    })
}

/// Sends the list. Its own tag comes first, so that a list that workers have followed always has one.
fn send(
    runtime: &tokio::runtime::Runtime,
    registry: &Registry,
    prefix: &EnvironmentsPrefix,
    documents: &[ArtifactDocument],
) -> Result<ManifestDigest, RegistryError> {
    let tags = [own_tag(documents), EnvironmentsPrefix::current_tag()];
    runtime.block_on(registry.push_artifact(prefix.list(), &tags, OFFERS_TYPE, documents))
}

/// The tag of a list: the same list has the same one.
fn own_tag(documents: &[ArtifactDocument]) -> Tag {
    let mut all = Vec::new();
    for document in documents {
        all.extend_from_slice(&document.bytes);
    }
    format!("list-{}", crate::image::Digest::of(&all).hex()).parse().expect("hex digits are a tag")
}

impl Context {
    /// The list in an artifact. Its signature is checked if the configuration names allowed signers.
    pub(super) fn offers(
        &self,
        prefix: &EnvironmentsPrefix,
        artifact: &RemoteArtifact,
    ) -> anyhow::Result<OfferList> {
        let Some(bytes) = artifact.document(OFFERS_TYPE) else {
            return Err(OfferListError::OtherArtifact(prefix.current()).into());
        };
        if let Some(signers) = &self.config.environments.allowed_signers {
            check_signature(signers, bytes, artifact.document(SIGNATURE_TYPE))?;
        }
        Ok(OfferList::parse(bytes)?)
    }
}
