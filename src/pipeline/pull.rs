//! From a reference to an image in the store.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::layer::{Wanted, ensure};
use super::open::open_image;
use super::{Arrived, PipelineError, Progress};
use crate::image::{
    CONFIG_MAX, Compression, Descriptor, Digest, ImageConfig, Manifest, ManifestDigest, Name, Reference, Tag,
};
use crate::layer::Codec;
use crate::registry::{Registry, Resolved, ResolvedIndex};
use crate::store::{Store, StoreError};

/// Chunks of a download that wait for the disk.
const DOWNLOAD_QUEUE: usize = 2;
/// Layers at work at once, at least: one decodes while another waits for the network. More than there are cores only keep
/// the largest, which ends last, from its core.
const PARALLEL_LAYERS: usize = 2;

/// What to pull and how.
#[derive(Debug, Clone)]
pub struct Pull {
    /// Where to.
    pub store: Store,
    /// Where from.
    pub registry: Arc<Registry>,
    /// Who is told how far it is.
    pub progress: Progress,
}

/// An image on its way into the store: its documents, read and checked against each other.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub(super) name: Name,
    pub(super) tags: Vec<Tag>,
    pub(super) digest: ManifestDigest,
    pub(super) manifest: Manifest,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) config_bytes: Vec<u8>,
    pub(super) index: Option<ResolvedIndex>,
}

impl Incoming {
    /// The layers that the image needs, each once, the largest first: with few cores, that ends earliest.
    pub(super) fn layers(&self) -> Result<Vec<Wanted>, PipelineError> {
        let config = self.manifest.config().digest;
        let parsed = ImageConfig::parse(&self.config_bytes)
            .and_then(|parsed| parsed.check_layers(&self.manifest).map(|()| parsed))
            .map_err(|source| PipelineError::Document { what: "configuration", digest: config, source })?;
        let mut seen = HashSet::new();
        let mut layers: Vec<Wanted> = self
            .manifest
            .typed_layers()
            .zip(&parsed.diff_ids)
            .map(|((digest, media, size), &diff_id)| Wanted {
                digest,
                size,
                diff_id,
                codec: Some(match media.compression {
                    Compression::None => Codec::Tar,
                    Compression::Gzip => Codec::Gzip,
                    Compression::Zstd => Codec::Zstd,
                }),
            })
            .filter(|wanted| seen.insert((wanted.digest, wanted.diff_id)))
            .collect();
        layers.sort_by_key(|wanted| std::cmp::Reverse(wanted.size));
        Ok(layers)
    }

    /// Asks for room for what is missing, the indexes included.
    pub(super) fn require_space(&self, store: &Store, layers: &[Wanted]) -> Result<(), PipelineError> {
        let mut needed: u64 = 1 << 20;
        for wanted in layers {
            let there = match store.has_blob(&wanted.digest.digest(), Some(wanted.size)) {
                // It is fetched again.
                Err(StoreError::Damaged { .. }) => false,
                answer => answer?,
            };
            if !there {
                needed = needed.saturating_add(wanted.size).saturating_add(wanted.size / 50);
            }
        }
        Ok(store.require_space(needed)?)
    }

    /// Makes the image visible, once all of its layers are there: merges them first, so that an image whose layers do not
    /// go together is refused here and not at its first use.
    pub(super) fn publish(&self, store: &Store) -> Result<(), PipelineError> {
        // The manifest first: it is what the image is opened by. Nothing refers to it yet.
        store.put_small(&self.digest.digest(), &self.manifest_bytes)?;
        open_image(store, self.digest, |_| None)?;
        // Numbers are given out here, where a sync more does not matter, and not at the first look at the mount.
        store.image_slot(&self.digest)?;
        for (layer, _, _) in self.manifest.typed_layers() {
            store.layer_slot(&layer)?;
        }
        store.put_small(&self.manifest.config().digest, &self.config_bytes)?;
        if let Some(index) = &self.index {
            store.put_small(&index.digest.digest(), &index.bytes)?;
        }
        let manifest = Descriptor::new(
            self.manifest.media_type(),
            self.digest.digest(),
            self.manifest_bytes.len() as u64,
        );
        let index = self.index.as_ref().map(|index| index.digest);
        if self.tags.is_empty() {
            store.tag(&self.name, None, &manifest, index)?;
        }
        for tag in &self.tags {
            store.tag(&self.name, Some(tag), &manifest, index)?;
        }
        Ok(())
    }

    /// What to tell about it, given the bytes fetched for each layer.
    pub(super) fn arrived(self, fetched: &[u64]) -> Arrived {
        Arrived {
            name: self.name,
            digest: self.digest,
            tags: self.tags,
            layers_fetched: fetched.iter().filter(|&&bytes| bytes > 0).count(),
            layers: self.manifest.layers().len(),
            bytes_fetched: fetched.iter().sum(),
        }
    }
}

/// Pulls an image that a reference was resolved to: fetches what the store lacks, verifies all of it, and makes it visible.
///
/// # Errors
/// Whatever stands in the way, named. What had arrived whole stays for the next attempt; the image is not visible then.
pub async fn pull(pull: &Pull, reference: &Reference, resolved: Resolved) -> Result<Arrived, PipelineError> {
    let Pull { store, registry, progress } = pull;
    let Resolved { name, manifest_digest, manifest, manifest_bytes, index, .. } = resolved;
    let _lease = blocking({
        let store = store.clone();
        move || Ok(store.lease(None)?)
    })
    .await?;
    let config = manifest.config().clone();
    let config_bytes = match local_config(store, config.digest).await? {
        Some(bytes) => bytes,
        None => registry.fetch_small(&name, &config, CONFIG_MAX).await?,
    };
    // By digest alone, an image gets no tag.
    let tags = match (&reference.tag, &reference.digest) {
        (None, Some(_)) => Vec::new(),
        _ => vec![reference.tag_or_latest()],
    };
    let incoming = Incoming {
        name: name.clone(),
        tags,
        digest: manifest_digest,
        manifest,
        manifest_bytes,
        config_bytes,
        index,
    };
    let layers = incoming.layers()?;
    let fetched = {
        let (store, wanted, incoming) = (store.clone(), layers.clone(), incoming.clone());
        blocking(move || incoming.require_space(&store, &wanted)).await?;
        fetch_layers(pull, &name, &layers, progress).await?
    };
    let published = {
        let (store, incoming) = (store.clone(), incoming.clone());
        move || incoming.publish(&store)
    };
    blocking(published).await?;
    Ok(incoming.arrived(&fetched))
}

async fn local_config(store: &Store, digest: Digest) -> Result<Option<Vec<u8>>, PipelineError> {
    let store = store.clone();
    // One that is there but damaged is fetched anew: `put_small` replaces it.
    blocking(move || Ok(store.read_small(&digest, CONFIG_MAX).ok())).await
}

/// Fetches layers in parallel; returns the bytes fetched for each. The first error ends the others' downloads.
async fn fetch_layers(
    pull: &Pull,
    name: &Name,
    layers: &[Wanted],
    progress: &Progress,
) -> Result<Vec<u64>, PipelineError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (stop, stopped) = watch::channel(false);
    let mut waiting = layers.iter();
    let mut running = JoinSet::new();
    let mut fetched = Vec::new();
    let mut failed = None;
    loop {
        while failed.is_none()
            && running.len() < cores.max(PARALLEL_LAYERS)
            && let Some(&wanted) = waiting.next()
        {
            let job = (pull.clone(), name.clone(), wanted, progress.clone(), stopped.clone());
            let runtime = tokio::runtime::Handle::current();
            running.spawn_blocking(move || {
                let (pull, name, wanted, progress, stopped) = job;
                fetch_layer(&pull, &name, &wanted, &progress, &stopped, &runtime)
            });
        }
        let Some(done) = running.join_next().await else { break };
        match done.map_err(|error| PipelineError::Thread(std::io::Error::other(error))) {
            Ok(Ok(bytes)) => fetched.push(bytes),
            Ok(Err(error)) | Err(error) => {
                let _ = stop.send(true);
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(fetched), Err)
}

/// Fetches one layer, in a thread that may block; an end of the download before its time where `stopped` says so.
fn fetch_layer(
    pull: &Pull,
    name: &Name,
    wanted: &Wanted,
    progress: &Progress,
    stopped: &watch::Receiver<bool>,
    runtime: &tokio::runtime::Handle,
) -> Result<u64, PipelineError> {
    let descriptor = descriptor_of(wanted);
    let fetch = |from: u64| {
        let (sender, receiver) = mpsc::channel(DOWNLOAD_QUEUE);
        let mut download = pull.registry.download(name, &descriptor, from);
        let mut stopped = stopped.clone();
        runtime.spawn(async move {
            loop {
                let chunk = tokio::select! {
                    chunk = download.next_chunk() => chunk,
                    _ = stopped.wait_for(|&stop| stop) => return,
                };
                let chunk = match chunk {
                    Ok(Some(chunk)) => Ok(chunk),
                    Ok(None) => return,
                    Err(error) => Err(error.into()),
                };
                let failed = chunk.is_err();
                if sender.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        receiver
    };
    ensure(&pull.store, wanted, &fetch, &|| *stopped.borrow(), progress)
}

fn descriptor_of(wanted: &Wanted) -> Descriptor {
    Descriptor::new("application/octet-stream", wanted.digest.digest(), wanted.size)
}

/// Runs blocking work of the store off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
) -> Result<T, PipelineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PipelineError::Thread(std::io::Error::other(error))),
    }
}
