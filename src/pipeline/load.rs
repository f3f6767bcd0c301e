//! Loads the images of a file or directory into the store.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::layer::store_layer;
use super::open::{check_platform, validate, with_config};
use super::pull::IncomingImage;
use super::{PipelineError, ProgressSink, StoredImage};
use crate::image::{
    CONFIG_MAX, Descriptor, Digest, ImageConfig, ImageLayer, ManifestDigest, Name, Reference, Tag,
};
use crate::import::{Archive, ImportImage};
use crate::os::ignore_poison;
use crate::store::Store;

/// Bytes of an archive that are read at once.
const READ: usize = 256 << 10;
/// Maximum number of chunks of an archive in the queue to the thread that stores them.
const QUEUE: usize = 4;

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
    /// Receives progress events.
    pub progress: ProgressSink,
}

/// Loads all images of an archive.
///
/// # Errors
/// The error of the first image that fails. The images before it are in the store.
pub fn load(job: &LoadJob, archive: &Archive) -> Result<Vec<StoredImage>, PipelineError> {
    let _lease = job.store.lease(None)?;
    let mut incoming = Vec::new();
    for image in archive.images() {
        let names = names_of(image, job.name.as_ref());
        if names.is_empty() {
            let tags: Vec<String> = image.tags.iter().map(ToString::to_string).collect();
            return Err(PipelineError::Unnamed { image: image.manifest_digest, tags });
        }
        if job.name.as_ref().is_some_and(|name| name.tag.is_some()) && archive.images().len() > 1 {
            return Err(PipelineError::SeveralImages { count: archive.images().len() });
        }
        incoming.extend(names.into_iter().map(|(name, tags)| (image, name, tags)));
    }
    check_tags(job, &incoming)?;
    // Images with the same configuration follow each other, so that each configuration is parsed once.
    let mut groups = HashMap::new();
    incoming.sort_by_cached_key(|(image, ..)| {
        let next = groups.len();
        *groups.entry(image.manifest.config().digest).or_insert(next)
    });
    let mut config = None;
    let mut stored = Vec::new();
    for (image, name, tags) in incoming {
        stored.push(load_image(job, archive, image, (name, tags), &mut config)?);
    }
    Ok(stored)
}

/// An image of an archive with one of its names and the tags of that name.
type NamedImage<'a> = (&'a ImportImage, Name, Vec<Tag>);

/// Checks that no tag moves to another image because of a name that only the archive gives.
///
/// An archive may come from another host, and must not replace the image that users know by its tag unless the user says so.
fn check_tags(job: &LoadJob, incoming: &[NamedImage<'_>]) -> Result<(), PipelineError> {
    let refs = job.store.refs()?;
    let mut seen: HashMap<(&Name, &Tag), ManifestDigest> = HashMap::new();
    for (image, name, tags) in incoming {
        let to = image.manifest_digest;
        for tag in tags {
            let stored = || refs.tagged(name, tag).map(|stored| stored.digest);
            let from = seen.insert((name, tag), to).or_else(stored);
            let Some(from) = from.filter(|from| *from != to) else { continue };
            let moved = PipelineError::TagMoves { name: name.clone(), tag: tag.clone(), from, to };
            if !job.replace && job.name.is_none() {
                return Err(moved);
            }
            tracing::warn!("{moved}");
        }
    }
    Ok(())
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
    image: &ImportImage,
    (name, tags): (Name, Vec<Tag>),
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
    incoming.require_space(store, &layers)?;
    let fetched = load_layers(job, archive, &layers, progress)?;
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
            match load_layer(job, archive, layer, &stopped, progress) {
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
        store_layer(&job.store, layer, &fetch, &stopped, progress)
    })
}
