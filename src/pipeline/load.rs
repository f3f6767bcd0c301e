//! Loads the images of a file or directory into the store.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::layer::{StoreLayerOptions, store_layer};
use super::open::{check_platform, validate, with_config};
use super::pull::IncomingImage;
use super::{PipelineError, ProgressEvent, ProgressSink, StoredImage};
use crate::image::{
    CONFIG_MAX, Descriptor, Digest, ImageConfig, ImageLayer, ManifestDigest, Name, Reference, Tag,
};
use crate::import::{Archive, ImportImage};
use crate::os::ignore_poison;
use crate::store::{PlainRoom, Store};

/// Bytes of an archive that are read at once.
const READ: usize = 256 << 10;
/// Maximum number of chunks of an archive in the queue to the thread that stores them.
const QUEUE: usize = 4;

/// The name of images without a name. docker lists such an image with its digest alone, but each image of the mount needs one.
const UNNAMED: &str = "unnamed";

/// The options of [`load()`].
#[derive(Debug, Clone)]
pub struct LoadJob {
    /// The store that receives the images.
    pub store: Store,
    /// The name to use instead of the names in the archive. If it has no tag, the images keep their tags.
    pub name: Option<Reference>,
    /// Whether tags may move to the images of the archive. A tag also moves if the user gave its name.
    pub replace: bool,
    /// Whether to accept an image of another platform, with a warning.
    pub any_platform: bool,
    /// Whether the layers also become plain layers.
    pub plain: bool,
    /// Receives progress events.
    pub progress: ProgressSink,
}

/// The result of [`load()`].
#[derive(Debug)]
pub struct LoadedImages {
    /// The images in the store, one for each name.
    pub stored: Vec<StoredImage>,
    /// The images that were not loaded.
    pub failed: Vec<FailedImage>,
}

/// An image of an archive that was not loaded.
#[derive(Debug)]
pub struct FailedImage {
    /// Its name, tag, digest or place in the archive.
    pub label: String,
    /// The reason.
    pub error: PipelineError,
}

/// Loads all images of an archive. An image that fails does not affect the others.
///
/// # Errors
/// The store cannot be used, or one tag was given for several images.
pub fn load(job: &LoadJob, archive: &Archive) -> Result<LoadedImages, PipelineError> {
    let _lease = job.store.lease(None)?;
    if job.name.as_ref().is_some_and(|name| name.tag.is_some()) && archive.images().len() > 1 {
        return Err(PipelineError::SeveralImages { count: archive.images().len() });
    }
    let mut incoming: Vec<NamedImage<'_>> = Vec::new();
    for image in archive.images() {
        let names = match names_of(image, job.name.as_ref()) {
            names if names.is_empty() => vec![(unnamed(image), Vec::new())],
            names => names,
        };
        incoming.extend(names.into_iter().map(|(name, tags)| NamedImage { image, name, tags }));
    }
    let mut loaded = LoadedImages { stored: Vec::new(), failed: Vec::new() };
    let mut fail = |image: &ImportImage, error| {
        loaded.failed.push(FailedImage { label: image.label(), error });
    };
    incoming = keep_tags(job, incoming, &mut fail)?;
    // Images with the same configuration follow each other, so that each configuration is parsed once.
    let mut groups = HashMap::new();
    incoming.sort_by_cached_key(|incoming| {
        let next = groups.len();
        *groups.entry(incoming.image.manifest.config().digest).or_insert(next)
    });
    let mut config = None;
    for incoming in incoming {
        let image = incoming.image;
        match load_image(job, archive, incoming, &mut config) {
            Ok(image) => loaded.stored.push(image),
            Err(error) => fail(image, error),
        }
    }
    Ok(loaded)
}

/// An image of an archive with one of its names and the tags of that name.
#[derive(Debug)]
struct NamedImage<'a> {
    image: &'a ImportImage,
    name: Name,
    tags: Vec<Tag>,
}

/// The name of images that have none in their archive. Their digest distinguishes them.
fn unnamed(image: &ImportImage) -> Name {
    tracing::warn!(
        "image {} has no name in the archive; it is {UNNAMED}@{}. --name NAME[:TAG] gives it another name",
        image.label(),
        image.manifest_digest
    );
    Name::from_archive(UNNAMED).expect("the constant is a valid name")
}

/// Removes the images whose tags would move from another image because of a name that only the archive gives.
///
/// An archive may come from another host, and must not replace the image that users know by its tag unless the user says so.
fn keep_tags<'a>(
    job: &LoadJob,
    incoming: Vec<NamedImage<'a>>,
    fail: &mut impl FnMut(&ImportImage, PipelineError),
) -> Result<Vec<NamedImage<'a>>, PipelineError> {
    let refs = job.store.refs()?;
    let mut seen: HashMap<(Name, Tag), ManifestDigest> = HashMap::new();
    let mut kept = Vec::new();
    for named in incoming {
        let to = named.image.manifest_digest;
        let mut refused = None;
        for tag in &named.tags {
            let key = (named.name.clone(), tag.clone());
            let stored = || refs.tagged(&named.name, tag).map(|stored| stored.digest);
            let from = seen.get(&key).copied().or_else(stored).filter(|from| *from != to);
            if let Some(from) = from {
                let moved = PipelineError::TagMoves { name: named.name.clone(), tag: tag.clone(), from, to };
                if !job.replace && job.name.is_none() {
                    refused = Some(moved);
                    break;
                }
                tracing::warn!("{moved}");
            }
            seen.insert(key, to);
        }
        match refused {
            Some(error) => fail(named.image, error),
            None => kept.push(named),
        }
    }
    Ok(kept)
}

/// The digest, bytes and content of the configuration that was parsed last.
type LastConfig = Option<(Digest, Vec<u8>, Arc<ImageConfig>)>;

/// Returns the names of an image, each with its tags. `new_name` replaces the names in the archive.
fn names_of(image: &ImportImage, new_name: Option<&Reference>) -> Vec<(Name, Vec<Tag>)> {
    if let Some(new_name) = new_name {
        let archive_tags =
            || image.names.iter().map(Reference::tag_or_latest).chain(image.tags.iter().cloned()).collect();
        let tags: Vec<Tag> = new_name.tag.clone().map_or_else(archive_tags, |tag| vec![tag]);
        let tags = if tags.is_empty() { vec![Tag::latest()] } else { tags };
        return vec![(new_name.name.clone(), tags)];
    }
    let mut names: Vec<(Name, Vec<Tag>)> = Vec::new();
    for reference in &image.names {
        // A name with a digest but without a tag remains without a tag.
        let tag = (reference.digest.is_none() || reference.tag.is_some()).then(|| reference.tag_or_latest());
        match names.iter_mut().find(|(name, _)| *name == reference.name) {
            Some((_, tags)) => tags.extend(tag),
            None => names.push((reference.name.clone(), tag.into_iter().collect())),
        }
    }
    names
}

fn load_image(
    job: &LoadJob,
    archive: &Archive,
    NamedImage { image, name, tags }: NamedImage<'_>,
    last_config: &mut LastConfig,
) -> Result<StoredImage, PipelineError> {
    let LoadJob { store, progress, .. } = job;
    let digest = image.manifest.config().digest;
    let (config_bytes, valid) = match last_config {
        Some((last, bytes, config)) if *last == digest => {
            let config = Arc::clone(config);
            (bytes.clone(), with_config(image.manifest_digest, image.manifest.clone(), config)?)
        }
        _ => {
            let bytes = read_config(archive, image.manifest.config())?;
            let valid = validate(image.manifest_digest, image.manifest.clone(), &bytes)?;
            *last_config = Some((digest, bytes.clone(), valid.shared_config()));
            (bytes, valid)
        }
    };
    check_platform(&valid, archive.platform(), job.any_platform)?;
    let incoming = IncomingImage {
        name,
        tags,
        image: valid,
        manifest_bytes: image.manifest_bytes.clone(),
        config_bytes,
        index: image.index.clone(),
    };
    let layers = incoming.layers();
    progress.send(ProgressEvent::Image { size: layers.iter().map(ImageLayer::size).sum() });
    let needed = incoming.require_space(store, &layers)?;
    let room = PlainRoom { reserve: needed, ..PlainRoom::default() };
    let options = StoreLayerOptions { plain: job.plain.then_some(room), ..StoreLayerOptions::default() };
    let fetched = load_layers(job, archive, &layers, options, progress)?;
    incoming.publish(store)?;
    Ok(incoming.into_stored(&fetched))
}

/// Reads a configuration from the archive, without checking it.
fn read_config(archive: &Archive, config: &Descriptor) -> Result<Vec<u8>, PipelineError> {
    let mut bytes = Vec::new();
    let reader = archive.open_blob(&config.digest)?;
    reader
        .take(CONFIG_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| PipelineError::ArchiveRead { digest: config.digest, source })?;
    Ok(bytes)
}

/// Stores layers, in one thread per core.
fn load_layers(
    job: &LoadJob,
    archive: &Archive,
    layers: &[ImageLayer],
    options: StoreLayerOptions,
    progress: &ProgressSink,
) -> Result<Vec<u64>, PipelineError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len().max(1));
    let queue = Mutex::new(layers.iter());
    let next = || ignore_poison(queue.lock()).next();
    // The first error. It stops the other threads, whose own errors are dropped.
    let first_error = Mutex::new(None);
    let stopped = || ignore_poison(first_error.lock()).is_some();
    let work = || {
        let mut fetched = Vec::new();
        while !stopped()
            && let Some(layer) = next()
        {
            match load_layer(job, archive, layer, options, &stopped, progress) {
                Ok(bytes) => fetched.push(bytes),
                Err(error) => {
                    ignore_poison(first_error.lock()).get_or_insert(error);
                }
            }
        }
        fetched
    };
    let fetched = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        results.collect::<Result<Vec<_>, _>>()
    });
    let fetched = fetched.map_err(|_| PipelineError::Thread(std::io::Error::other("the thread panicked")))?;
    match ignore_poison(first_error.into_inner()) {
        Some(error) => Err(error),
        None => Ok(fetched.concat()),
    }
}

fn load_layer(
    job: &LoadJob,
    archive: &Archive,
    layer: &ImageLayer,
    options: StoreLayerOptions,
    stopped: &(dyn Fn() -> bool + Sync),
    progress: &ProgressSink,
) -> Result<u64, PipelineError> {
    let blob = layer.digest().digest();
    std::thread::scope(|scope| {
        let fetch = |from: u64| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            scope.spawn(move || {
                let outcome = archive.open_blob(&blob).map_err(PipelineError::from).and_then(|mut reader| {
                    let failed = |source| PipelineError::ArchiveRead { digest: blob, source };
                    std::io::copy(&mut reader.by_ref().take(from), &mut std::io::sink()).map_err(failed)?;
                    loop {
                        let mut chunk = vec![0; READ];
                        let length = reader.read(&mut chunk).map_err(failed)?;
                        chunk.truncate(length);
                        if length == 0 || sender.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                            return Ok(());
                        }
                    }
                });
                if let Err(error) = outcome {
                    let _ = sender.blocking_send(Err(error));
                }
            });
            receiver
        };
        store_layer(&job.store, layer, options, &fetch, &stopped, progress)
    })
}
