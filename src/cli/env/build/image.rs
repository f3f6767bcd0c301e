//! Moves images between the store and a build: base images into it, the result out of it.

use std::sync::Arc;

use super::{BuildSession, Built};
use crate::environments::{
    BaseImages, BuildDirectory, BuildFailure, BuildFault, EnvironmentsError, Revision,
};
use crate::error::{ErrorCode, chain_text};
use crate::image::{Image, ManifestDigest, Platform, Reference};
use crate::import::Archive;
use crate::pipeline::{LoadJob, PipelineError, ProgressSink, PullJob, load, pull, read_image};
use crate::store::{ImageRecord, Store};

impl BuildSession<'_> {
    /// Makes sure that the store has the base images of the approval.
    pub(super) fn bases(&self, revision: &Revision) -> anyhow::Result<Built<BaseImages>> {
        let mut bases = BaseImages::new();
        for base in revision.review.iter().flat_map(|review| &review.bases) {
            let damaged = || EnvironmentsError::Damaged {
                path: revision.path.join("review.json"),
                reason: format!("base image `{}` is not a reference", base.reference),
            };
            // Without its tag, so that no tag of the store moves.
            let reference = Reference { tag: None, ..base.image().ok_or_else(damaged)? };
            let record = match stored(&self.store, base.digest)? {
                Some(record) => record,
                None => match self.pull_base(&reference)? {
                    Ok(()) => stored(&self.store, base.digest)?.ok_or_else(damaged)?,
                    Err(failure) => return Ok(Err(failure)),
                },
            };
            bases.push((base.clone(), record));
        }
        Ok(Ok(bases))
    }

    fn pull_base(&self, reference: &Reference) -> anyhow::Result<Built<()>> {
        let job = PullJob {
            store: self.store.clone(),
            registry: Arc::clone(&self.registry),
            any_platform: false,
            plain: false,
            damaged: Arc::default(),
            progress: ProgressSink::none(),
        };
        let pulled = self.stop.or(&self.runtime, async {
            let resolved = self.registry.resolve(reference).await?;
            pull(&job, reference, resolved).await
        })?;
        match pulled {
            Ok(_) => Ok(Ok(())),
            // Everything else may be better the next time.
            Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::NoPlatform) => {
                let message = format!("base image {reference}: {}", chain_text(&error));
                Ok(Err(BuildFailure { fault: BuildFault::Base, message }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Loads the image that was built into the store.
    pub(super) fn load(
        &self,
        directory: &BuildDirectory,
        bases: &BaseImages,
        target: &Reference,
    ) -> anyhow::Result<Built<ManifestDigest>> {
        let images = bases.iter().map(|(_, record)| read_image(&self.store, &record.digest));
        let images: Vec<Image> = images.collect::<Result<_, PipelineError>>()?;
        directory.use_base_layers(&self.store, &images)?;
        let job = LoadJob {
            store: self.store.clone(),
            name: Some(target.clone()),
            replace: true,
            any_platform: false,
            plain: self.context.makes_plain(false),
            progress: ProgressSink::none(),
        };
        let refused = |text: String| Ok(Err(BuildFailure { fault: BuildFault::Image, message: text }));
        let mut archive = match Archive::open(&directory.image_path(), &Platform::host()) {
            Ok(archive) => archive,
            Err(error) => return refused(chain_text(&error)),
        };
        if let Some(image) = archive.take_refused().into_iter().next() {
            return refused(chain_text(&image.error));
        }
        let loaded = load(&job, &archive)?;
        match (loaded.stored.first(), loaded.failed.into_iter().next()) {
            (Some(image), _) => {
                self.context.refresh(&self.store);
                self.context.make_tree_images(&self.store, [image.digest]);
                Ok(Ok(image.digest))
            }
            (None, Some(failed)) if is_of_host(failed.error.code()) => Err(failed.error.into()),
            (None, Some(failed)) => refused(chain_text(&failed.error)),
            (None, None) => refused("the build made no image".to_owned()),
        }
    }
}

/// Whether an image was refused for a reason that has nothing to do with it.
fn is_of_host(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Io
            | ErrorCode::Permission
            | ErrorCode::DiskFull
            | ErrorCode::ReadOnlyFilesystem
            | ErrorCode::Busy
            | ErrorCode::Internal
    )
}

/// The image of the store with a digest of its own or of its index; `None` if the store does not have it completely.
fn stored(store: &Store, digest: ManifestDigest) -> anyhow::Result<Option<ImageRecord>> {
    for record in store.refs()?.images {
        if record.digest != digest && record.index != Some(digest) {
            continue;
        }
        let Ok(image) = read_image(store, &record.digest) else { continue };
        let has = |layer: &crate::image::ImageLayer| {
            store.has_blob(&layer.digest().digest(), Some(layer.size())).unwrap_or(false)
        };
        if image.config().is_for(&Platform::host()) && image.layers().iter().all(has) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}
