//! Resolves a reference to a verified manifest, and fetches small blobs.

use tokio::time::timeout;

use reqwest::header::{CONTENT_TYPE, HeaderMap};

use super::client::RegistryRequest;
use super::endpoint::Endpoint;
use super::exchange::host_of;
use super::retry::with_retries;
use super::{Registry, RegistryError, RemoteObject, Resolved, ResolvedIndex};
use crate::image::{
    Descriptor, Digest, Document, ImageIndex, MANIFEST_MAX, ManifestDigest, ManifestError, Name, Reference,
    TWINS_MAX, media,
};

/// Deepest nesting of indexes that is followed. Build tools nest at most once.
const INDEX_DEPTH_MAX: usize = 4;

/// A manifest or an index, with its bytes as the registry sent them.
pub(super) struct FetchedDocument<T = Document> {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: ManifestDigest,
    pub(super) document: T,
}

/// Parses a document of this media type.
type ParseDocument<T> = fn(&[u8], Option<&str>) -> Result<T, ManifestError>;

impl Registry {
    /// Resolves a reference to the manifest for this client's platform.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; each error names the reference.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let name = &reference.name;
        let object = RemoteObject::manifest(reference.clone());
        let mut fetched = self.document(&object, reference, Document::parse).await?;
        let mut index = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let manifests = match fetched.document {
                Document::Manifest(manifest) => {
                    return Ok(Resolved {
                        name: name.clone(),
                        manifest_digest: fetched.digest,
                        media_type: manifest.media_type().to_owned(),
                        manifest,
                        manifest_bytes: fetched.bytes,
                        index,
                    });
                }
                Document::Index(manifests) => manifests,
            };
            let chosen = self.chosen(name, &object, &manifests).await?;
            index.get_or_insert_with(|| ResolvedIndex {
                digest: fetched.digest,
                media_type: manifests.media_type().to_owned(),
                bytes: std::mem::take(&mut fetched.bytes),
            });
            fetched = chosen;
        }
        let source = ManifestError::TooMany {
            items: "nested indexes",
            count: INDEX_DEPTH_MAX + 1,
            limit: INDEX_DEPTH_MAX,
        };
        Err(RegistryError::document(&object, source))
    }

    /// Fetches the entry of an index for this client's platform; if that is no image, the next best entry.
    async fn chosen(
        &self,
        name: &Name,
        object: &RemoteObject,
        index: &ImageIndex,
    ) -> Result<FetchedDocument, RegistryError> {
        let mut others = index.clone();
        let mut first_error = None;
        for _ in 0..=TWINS_MAX {
            let entry = match others.choose(&self.options().platform) {
                Ok(entry) => entry.clone(),
                Err(source) => {
                    return Err(first_error.unwrap_or_else(|| RegistryError::document(object, source)));
                }
            };
            let digest = ManifestDigest::new(entry.digest);
            let reference = Reference { name: name.clone(), tag: None, digest: Some(digest) };
            let child = RemoteObject::manifest(reference.clone());
            match self.document(&child, &reference, Document::parse).await {
                Err(RegistryError::Document { object, source }) if source.is_of_no_image() => {
                    tracing::warn!("ignoring {digest}, which is not an image: {source}");
                    others = others.without(&entry.digest);
                    first_error.get_or_insert(RegistryError::Document { object, source });
                }
                fetched => {
                    let fetched = fetched?;
                    check_size(&child, &entry, &fetched)?;
                    Document::parse(&fetched.bytes, Some(&entry.media_type))
                        .map_err(|source| RegistryError::document(&child, source))?;
                    return Ok(fetched);
                }
            }
        }
        Err(first_error.expect("each round without a result leaves an error"))
    }

    /// Fetches a blob of at most `limit` bytes and checks its digest.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; each error names the blob.
    pub async fn fetch_small(
        &self,
        name: &Name,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let object = RemoteObject::blob(name, descriptor.digest);
        if descriptor.size > limit {
            return Err(RegistryError::TooLong { object, size: descriptor.size, limit });
        }
        let fetch = async || {
            let mut download = self.download(name, descriptor, 0);
            let mut bytes = Vec::new();
            while let Some(chunk) = download.next_chunk().await? {
                bytes.extend_from_slice(&chunk);
            }
            check_digest(&object, descriptor.digest, &bytes)?;
            Ok(bytes)
        };
        match fetch().await {
            Err(error @ RegistryError::Digest { .. }) if self.distrust_mirrors(name) => {
                tracing::warn!("{error}; fetching it from the registry itself");
                fetch().await
            }
            result => result,
        }
    }

    /// Fetches one manifest or index from the first place that has it, with retries at the registry itself.
    pub(super) async fn document<T>(
        &self,
        object: &RemoteObject,
        reference: &Reference,
        parse: ParseDocument<T>,
    ) -> Result<FetchedDocument<T>, RegistryError> {
        let (name, digest) = (&reference.name, reference.digest);
        let tag_or_digest = match digest {
            Some(digest) => digest.to_string(),
            None => reference.tag_or_latest().to_string(),
        };
        let request = RegistryRequest {
            object,
            path: format!("manifests/{tag_or_digest}"),
            accept: Some(media::DOCUMENTS.join(", ")),
            from: 0,
        };
        for endpoint in self.endpoints(name)?.iter().filter(|endpoint| endpoint.is_mirror) {
            match self.document_once(endpoint, &request, digest, parse).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => self.pass_over(endpoint, &error),
            }
        }
        let registry = Endpoint::of(name)?;
        with_retries(self.options().deadlines.backoff, async || {
            self.document_once(&registry, &request, digest, parse).await
        })
        .await
    }

    async fn document_once<T>(
        &self,
        endpoint: &Endpoint,
        request: &RegistryRequest<'_>,
        digest: Option<ManifestDigest>,
        parse: ParseDocument<T>,
    ) -> Result<FetchedDocument<T>, RegistryError> {
        let object = request.object;
        let deadlines = &self.options().deadlines;
        let mut response = self.request(endpoint, request).await?;
        let host = host_of(response.url());
        let headers = response.headers().clone();
        let too_long = |size| RegistryError::TooLong { object: object.clone(), size, limit: MANIFEST_MAX };
        if let Some(size) = response.content_length().filter(|size| *size > MANIFEST_MAX) {
            return Err(too_long(size));
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) =
                response.chunk().await.map_err(|e| RegistryError::transport(object, &host, &e, deadlines))?
            {
                bytes.extend_from_slice(&chunk);
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                if size > MANIFEST_MAX {
                    return Err(too_long(size));
                }
            }
            Ok(bytes)
        };
        // A single deadline is enough for a body of this size.
        let bytes = match timeout(deadlines.idle, read).await {
            Ok(bytes) => bytes?,
            Err(_) => {
                return Err(RegistryError::deadline(
                    object,
                    &host,
                    "the rest of the manifest",
                    deadlines.idle,
                ));
            }
        };
        let announced = header(&headers, CONTENT_TYPE.as_str());
        let document = match parse(&bytes, announced) {
            // An HTML page also has the wrong digest, but this error is more helpful.
            Err(source @ ManifestError::Html) => {
                return Err(RegistryError::document(object, source));
            }
            parsed => parsed,
        };
        let claimed = header(&headers, "docker-content-digest").and_then(|text| text.parse().ok());
        for expected in digest.map(|digest| digest.digest()).into_iter().chain(claimed) {
            check_digest(object, expected, &bytes)?;
        }
        let digest = ManifestDigest::new(Digest::of(&bytes));
        let document = document.map_err(|source| RegistryError::document(object, source))?;
        Ok(FetchedDocument { bytes, digest, document })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn check_digest(
    object: &RemoteObject,
    expected: Digest,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    let actual = Digest::of(bytes);
    if actual == expected {
        Ok(())
    } else {
        Err(RegistryError::Digest { object: object.clone(), expected, actual })
    }
}

/// Checks that a document has the size of its entry in the index.
pub(super) fn check_size<T>(
    object: &RemoteObject,
    entry: &Descriptor,
    fetched: &FetchedDocument<T>,
) -> Result<(), RegistryError> {
    match u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX) {
        actual if actual == entry.size => Ok(()),
        actual => {
            Err(RegistryError::Length { object: object.clone(), expected: entry.size, actual: Some(actual) })
        }
    }
}
