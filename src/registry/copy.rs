//! Collects what an image of one registry consists of, to send it to another one.

use std::collections::HashSet;

use super::outgoing::{BlobSource, OutgoingBlob, OutgoingImage, OutgoingManifest};
use super::resolve::{FetchedDocument, check_size};
use super::{Registry, RegistryError, RemoteObject};
use crate::image::{
    Descriptor, DocumentLinks, MANIFEST_MAX, ManifestDigest, ManifestError, Name, Reference, Tag,
};

/// Deepest nesting of indexes that is followed. Build tools nest at most once.
const INDEX_DEPTH_MAX: usize = 4;

/// Most bytes of manifests and indexes of one image: they are all in memory. An index of 20 platforms has some 100 KiB.
const DOCUMENTS_MAX: u64 = 64 << 20;

/// What has been found of an image so far.
struct FoundParts<'a> {
    source: &'a Name,
    mount_from: Option<Name>,
    seen: HashSet<ManifestDigest>,
    seen_blobs: HashSet<crate::image::Digest>,
    blobs: Vec<OutgoingBlob>,
    /// Each document after those that it refers to.
    documents: Vec<OutgoingManifest>,
    bytes: u64,
}

impl Registry {
    /// Collects the blobs and manifests of an image, for [`Registry::push`] to another repository: all platforms of an index with
    /// everything else that it lists, or with `one_platform` the image for this client's platform.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; [`RegistryError::NotDistributable`] if a layer may not be sent to another registry.
    pub async fn collect(
        &self,
        source: &Reference,
        target: &Name,
        tag: Option<Tag>,
        one_platform: bool,
    ) -> Result<OutgoingImage, RegistryError> {
        let object = RemoteObject::manifest(source.clone());
        let top = match one_platform {
            false => self.document(&object, source, DocumentLinks::parse).await?,
            true => {
                let resolved = self.resolve(source).await?;
                let document = DocumentLinks::parse(&resolved.manifest_bytes, Some(&resolved.media_type))
                    .map_err(|error| RegistryError::document(&object, error))?;
                FetchedDocument { bytes: resolved.manifest_bytes, digest: resolved.manifest_digest, document }
            }
        };
        let is_mountable = source.name.host() == target.host() && source.name != *target;
        let mut found = FoundParts {
            source: &source.name,
            mount_from: is_mountable.then(|| source.name.clone()),
            seen: HashSet::new(),
            seen_blobs: HashSet::new(),
            blobs: Vec::new(),
            documents: Vec::new(),
            bytes: 0,
        };
        self.collect_from(&mut found, &object, top, INDEX_DEPTH_MAX).await?;
        let top = found.documents.pop().expect("the document itself comes last");
        let image =
            OutgoingImage { name: target.clone(), tag, blobs: found.blobs, manifests: found.documents, top };
        image.check_distributable(&source.name)?;
        Ok(image)
    }

    /// Adds a document, after everything to which it refers.
    async fn collect_from(
        &self,
        found: &mut FoundParts<'_>,
        object: &RemoteObject,
        fetched: FetchedDocument<DocumentLinks>,
        depth: usize,
    ) -> Result<(), RegistryError> {
        let FetchedDocument { bytes, digest, document } = fetched;
        found.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found.bytes > DOCUMENTS_MAX {
            let (object, size) = (object.clone(), found.bytes);
            return Err(RegistryError::TooLong { object, size, limit: DOCUMENTS_MAX });
        }
        for blob in document.blobs {
            found.add_blob(blob);
        }
        for entry in document.manifests {
            let child = ManifestDigest::new(entry.digest);
            if !found.seen.insert(child) {
                continue;
            }
            let reference = Reference { name: found.source.clone(), tag: None, digest: Some(child) };
            let object = RemoteObject::manifest(reference.clone());
            if entry.size > MANIFEST_MAX {
                return Err(RegistryError::TooLong { object, size: entry.size, limit: MANIFEST_MAX });
            }
            let Some(depth) = depth.checked_sub(1) else {
                let (items, limit) = ("nested indexes", INDEX_DEPTH_MAX);
                let error = ManifestError::TooMany { items, count: limit + 1, limit };
                return Err(RegistryError::document(&object, error));
            };
            let fetched = self.document(&object, &reference, DocumentLinks::parse).await?;
            check_size(&object, &entry, &fetched)?;
            Box::pin(self.collect_from(found, &object, fetched, depth)).await?;
        }
        let media_type = document.media_type;
        found.documents.push(OutgoingManifest { digest, media_type, bytes: bytes.into() });
        Ok(())
    }
}

impl FoundParts<'_> {
    fn add_blob(&mut self, descriptor: Descriptor) {
        if self.seen_blobs.insert(descriptor.digest) {
            let source = BlobSource::Repository(self.source.clone());
            self.blobs.push(OutgoingBlob { descriptor, source, mount_from: self.mount_from.clone() });
        }
    }
}
