//! From a reference to a verified manifest, and small blobs as a whole.

use tokio::time::timeout;

use reqwest::header::{CONTENT_TYPE, HeaderMap};

use super::client::Request;
use super::retry::{jittered, retry_after};
use super::{Place, Registry, RegistryError, Resolved, ResolvedIndex};
use crate::image::{
    Descriptor, Digest, Document, MANIFEST_MAX, ManifestDigest, ManifestError, Name, Reference, media,
};

/// Deepest nesting of indexes that is followed. Builders nest once at most.
const INDEX_DEPTH_MAX: usize = 4;

/// A manifest or an index as it came.
struct Fetched {
    bytes: Vec<u8>,
    digest: ManifestDigest,
    document: Document,
}

impl Registry {
    /// Finds the manifest that a reference stands for on this registry's platform.
    ///
    /// # Errors
    /// See [`RegistryError`]; each names the reference.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let name = &reference.name;
        let asked = Place::manifest(reference.clone());
        let mut fetched = match reference.digest {
            Some(digest) => self.document(&asked, &digest.to_string(), Some(digest)).await?,
            None => self.document(&asked, reference.tag_or_latest().as_str(), None).await?,
        };
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
            let wrong = |source| RegistryError::document(&asked, source);
            let entry = manifests.choose(&self.options().platform).map_err(wrong)?.clone();
            index.get_or_insert_with(|| ResolvedIndex {
                digest: fetched.digest,
                media_type: manifests.media_type().to_owned(),
                bytes: std::mem::take(&mut fetched.bytes),
            });
            let digest = ManifestDigest::new(entry.digest);
            let place = Place::manifest(Reference { name: name.clone(), tag: None, digest: Some(digest) });
            fetched = self.document(&place, &entry.digest.to_string(), Some(digest)).await?;
            check_entry(&place, &entry, &fetched)?;
        }
        let source = ManifestError::TooMany {
            what: "nested indexes",
            count: INDEX_DEPTH_MAX + 1,
            limit: INDEX_DEPTH_MAX,
        };
        Err(RegistryError::document(&asked, source))
    }

    /// Fetches a whole blob of at most `limit` bytes and checks it.
    ///
    /// # Errors
    /// See [`RegistryError`]; each names the blob.
    pub async fn fetch_small(
        &self,
        name: &Name,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let place = Place::blob(name, descriptor.digest);
        if descriptor.size > limit {
            return Err(RegistryError::TooLong { place, size: descriptor.size, limit });
        }
        let mut download = self.download(name, descriptor, 0);
        let mut bytes = Vec::new();
        while let Some(chunk) = download.next_chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        check_digest(&place, descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    /// Fetches one manifest or index, trying again where that helps.
    async fn document(
        &self,
        place: &Place,
        tag_or_digest: &str,
        digest: Option<ManifestDigest>,
    ) -> Result<Fetched, RegistryError> {
        let request = Request {
            place,
            path: format!("manifests/{tag_or_digest}"),
            accept: Some(media::DOCUMENTS.join(", ")),
            from: 0,
        };
        let mut attempt = 0;
        loop {
            let error = match self.document_once(&request, digest).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            attempt += 1;
            let Some(pause) = retry_after(attempt, &error, self.options().deadlines.backoff) else {
                return Err(error);
            };
            tracing::debug!(%error, attempt, ?pause, "trying again");
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    async fn document_once(
        &self,
        request: &Request<'_>,
        digest: Option<ManifestDigest>,
    ) -> Result<Fetched, RegistryError> {
        let place = request.place;
        let deadlines = &self.options().deadlines;
        let mut response = self.request(request).await?;
        let headers = response.headers().clone();
        let too_long = |size| RegistryError::TooLong { place: place.clone(), size, limit: MANIFEST_MAX };
        if let Some(size) = response.content_length().filter(|size| *size > MANIFEST_MAX) {
            return Err(too_long(size));
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) =
                response.chunk().await.map_err(|e| RegistryError::transport(place, e, deadlines))?
            {
                bytes.extend_from_slice(&chunk);
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                if size > MANIFEST_MAX {
                    return Err(too_long(size));
                }
            }
            Ok(bytes)
        };
        // One deadline for the whole body: it is short.
        let bytes = match timeout(deadlines.idle, read).await {
            Ok(bytes) => bytes?,
            Err(_) => {
                let (place, after) = (place.clone(), deadlines.idle);
                return Err(RegistryError::Deadline { place, awaited: "end of the manifest", after });
            }
        };
        let announced = header(&headers, CONTENT_TYPE.as_str());
        let document = match Document::parse(&bytes, announced) {
            // A web page has another digest too, but that it is a page says more.
            Err(source @ ManifestError::Html) => {
                return Err(RegistryError::document(place, source));
            }
            parsed => parsed,
        };
        let claimed = header(&headers, "docker-content-digest").and_then(|text| text.parse().ok());
        for expected in digest.map(|digest| digest.digest()).into_iter().chain(claimed) {
            check_digest(place, expected, &bytes)?;
        }
        let digest = ManifestDigest::new(Digest::of(&bytes));
        let document = document.map_err(|source| RegistryError::document(place, source))?;
        Ok(Fetched { bytes, digest, document })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn check_digest(place: &Place, expected: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
    let found = Digest::of(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(RegistryError::Digest { place: place.clone(), expected, found })
    }
}

/// Checks that what came is what the index's entry says: its length and its media type.
fn check_entry(place: &Place, entry: &Descriptor, fetched: &Fetched) -> Result<(), RegistryError> {
    let got = u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX);
    if got != entry.size {
        return Err(RegistryError::Length { place: place.clone(), wanted: entry.size, got: Some(got) });
    }
    Document::parse(&fetched.bytes, Some(&entry.media_type))
        .map(|_| ())
        .map_err(|source| RegistryError::document(place, source))
}
