//! Pulls an image from a registry into the store.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::layer::{StoreLayerOptions, store_layer};
use super::open::{OpenImage, check_platform, validate};
use super::{PipelineError, ProgressEvent, ProgressSink, StoredImage};
use crate::image::{CONFIG_MAX, Descriptor, Digest, Image, ImageLayer, Name, Reference, Tag};
use crate::registry::{Registry, Resolved, ResolvedIndex};
use crate::store::{PlainRoom, Store, StoreError};

/// Maximum number of chunks of a download in the queue to the thread that stores them.
const DOWNLOAD_QUEUE: usize = 2;
/// Minimum number of layers in parallel: one is decoded while another waits for the network. More layers than cores would only
/// slow down the largest one, which ends last.
const PARALLEL_LAYERS: usize = 2;

/// The options of [`pull()`].
#[derive(Debug, Clone)]
pub struct PullJob {
    /// The store that receives the image.
    pub store: Store,
    /// The registry.
    pub registry: Arc<Registry>,
    /// Whether to accept an image of another platform, with a warning.
    pub any_platform: bool,
    /// Whether the layers also become plain layers.
    pub plain: bool,
    /// Blobs that are fetched even if the store has them, because they are known to be damaged.
    pub damaged: Arc<HashSet<Digest>>,
    /// Receives progress events.
    pub progress: ProgressSink,
}

/// An image that is being stored.
#[derive(Debug, Clone)]
pub(super) struct IncomingImage {
    pub(super) name: Name,
    pub(super) tags: Vec<Tag>,
    pub(super) image: Image,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) config_bytes: Vec<u8>,
    pub(super) index: Option<ResolvedIndex>,
}

impl IncomingImage {
    /// The layers to fetch, each once, largest first: with few cores, this order finishes earliest.
    ///
    /// If the image lists a layer twice with different diff IDs, both are kept, so that the wrong diff ID is detected.
    pub(super) fn layers(&self) -> Vec<ImageLayer> {
        let mut seen = HashSet::new();
        let mut layers = self.image.layers().to_vec();
        layers.retain(|layer| seen.insert((layer.digest(), layer.diff_id())));
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size()));
        layers
    }

    /// Checks that the disk has room for the missing layers and their indexes. Returns the bytes that they need.
    pub(super) fn require_space(&self, store: &Store, layers: &[ImageLayer]) -> Result<u64, PipelineError> {
        let mut needed: u64 = 1 << 20;
        for layer in layers {
            let is_stored = match store.has_blob(&layer.digest().digest(), Some(layer.size())) {
                // A damaged blob is fetched again.
                Err(StoreError::Damaged { .. }) => false,
                result => result?,
            };
            if !is_stored {
                needed = needed.saturating_add(layer.size()).saturating_add(layer.size() / 50);
            }
        }
        store.require_space(needed)?;
        Ok(needed)
    }

    /// Makes the image visible. All of its layers must be stored. Merges them first, so that an image whose layers cannot
    /// be merged is refused here and not at its first use.
    pub(super) fn publish(&self, store: &Store) -> Result<(), PipelineError> {
        OpenImage::open(store, &self.image, |_| None)?;
        let (digest, manifest) = (self.image.digest(), self.image.manifest());
        // Slots are assigned here, where one more fsync does not matter, and not at the first lookup in the mount.
        store.image_slot(&digest)?;
        for layer in self.image.layers() {
            store.layer_slot(&layer.digest())?;
        }
        store.put_small(&digest.digest(), &self.manifest_bytes)?;
        store.put_small(&manifest.config().digest, &self.config_bytes)?;
        if let Some(index) = &self.index {
            store.put_small(&index.digest.digest(), &index.bytes)?;
        }
        let size = self.manifest_bytes.len() as u64;
        let manifest = Descriptor::new(manifest.media_type(), digest.digest(), size);
        let index = self.index.as_ref().map(|index| index.digest);
        if self.tags.is_empty() {
            store.tag(&self.name, None, &manifest, index)?;
        }
        for tag in &self.tags {
            store.tag(&self.name, Some(tag), &manifest, index)?;
        }
        Ok(())
    }

    /// Describes the image that was stored. `fetched` has the number of bytes fetched for each layer.
    pub(super) fn into_stored(self, fetched: &[u64]) -> StoredImage {
        StoredImage {
            name: self.name,
            digest: self.image.digest(),
            tags: self.tags,
            layers_fetched: fetched.iter().filter(|&&bytes| bytes > 0).count(),
            layers: self.image.layers().len(),
            bytes_fetched: fetched.iter().sum(),
        }
    }
}

/// Pulls the image that a reference was resolved to: fetches the missing layers, verifies them, and makes the image visible.
///
/// # Errors
/// The registry or the store fails, or the image is not valid. Complete layers are kept for the next attempt; the image is not
/// visible.
pub async fn pull(
    pull: &PullJob,
    reference: &Reference,
    resolved: Resolved,
) -> Result<StoredImage, PipelineError> {
    let PullJob { store, registry, any_platform, progress, .. } = pull;
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
    // An image that is pulled by digest has no tag.
    let tags = match (&reference.tag, &reference.digest) {
        (None, Some(_)) => Vec::new(),
        _ => vec![reference.tag_or_latest()],
    };
    let image = validate(manifest_digest, manifest, &config_bytes)?;
    check_platform(&image, &registry.options().platform, *any_platform)?;
    let incoming = IncomingImage { name: name.clone(), tags, image, manifest_bytes, config_bytes, index };
    let layers = incoming.layers();
    progress.send(ProgressEvent::Image { size: layers.iter().map(ImageLayer::size).sum() });
    let fetched = {
        let (store, all_layers, incoming) = (store.clone(), layers.clone(), incoming.clone());
        let needed = blocking(move || incoming.require_space(&store, &all_layers)).await?;
        let room = PlainRoom { reserve: needed, ..PlainRoom::default() };
        fetch_layers(pull, &name, &layers, pull.plain.then_some(room), progress).await?
    };
    let publish = {
        let (store, incoming) = (store.clone(), incoming.clone());
        move || incoming.publish(&store)
    };
    blocking(publish).await?;
    Ok(incoming.into_stored(&fetched))
}

async fn local_config(store: &Store, digest: Digest) -> Result<Option<Vec<u8>>, PipelineError> {
    let store = store.clone();
    // A damaged configuration is fetched again, and `put_small` replaces it.
    blocking(move || Ok(store.read_small(&digest, CONFIG_MAX).ok())).await
}

/// Fetches layers in parallel, and returns the bytes fetched for each. The first error stops the other downloads.
async fn fetch_layers(
    pull: &PullJob,
    name: &Name,
    layers: &[ImageLayer],
    plain: Option<PlainRoom>,
    progress: &ProgressSink,
) -> Result<Vec<u64>, PipelineError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (stop, stopped) = watch::channel(false);
    let mut waiting = layers.iter();
    let mut running = JoinSet::new();
    let mut fetched = Vec::new();
    let mut first_error = None;
    loop {
        while first_error.is_none()
            && running.len() < cores.max(PARALLEL_LAYERS)
            && let Some(layer) = waiting.next()
        {
            let job = (pull.clone(), name.clone(), layer.clone(), progress.clone(), stopped.clone());
            let runtime = tokio::runtime::Handle::current();
            running.spawn_blocking(move || {
                let (pull, name, layer, progress, stopped) = job;
                fetch_layer(&pull, &name, &layer, plain, &progress, &stopped, &runtime)
            });
        }
        let Some(done) = running.join_next().await else { break };
        match done.map_err(|error| PipelineError::Thread(std::io::Error::other(error))) {
            Ok(Ok(bytes)) => fetched.push(bytes),
            Ok(Err(error)) | Err(error) => {
                let _ = stop.send(true);
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(fetched), Err)
}

/// Fetches one layer, in a thread that may block. `stopped` ends the download early.
fn fetch_layer(
    pull: &PullJob,
    name: &Name,
    layer: &ImageLayer,
    plain: Option<PlainRoom>,
    progress: &ProgressSink,
    stopped: &watch::Receiver<bool>,
    runtime: &tokio::runtime::Handle,
) -> Result<u64, PipelineError> {
    let fetch = |from: u64| {
        let (sender, receiver) = mpsc::channel(DOWNLOAD_QUEUE);
        let mut download = pull.registry.download(name, layer.descriptor(), from);
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
    let is_damaged = pull.damaged.contains(&layer.digest().digest());
    let options = StoreLayerOptions { is_damaged, plain };
    let store = || store_layer(&pull.store, layer, options, &fetch, &|| *stopped.borrow(), progress);
    match store() {
        Err(error @ (PipelineError::WrongDigest { .. } | PipelineError::WrongSize { .. }))
            if pull.registry.distrust_mirrors(name) =>
        {
            tracing::warn!("{error}; fetching it from the registry itself");
            store()
        }
        result => result,
    }
}

/// Runs blocking work of the store outside the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
) -> Result<T, PipelineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PipelineError::Thread(std::io::Error::other(error))),
    }
}
