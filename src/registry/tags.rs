//! Lists the tags of a repository, to suggest one.

use reqwest::header::CONTENT_LENGTH;
use serde::Deserialize;
use tokio::time::timeout;

use super::client::RegistryRequest;
use super::endpoint::Endpoint;
use super::exchange::host_of;
use super::{Registry, RegistryError, RemoteObject};
use crate::image::{Name, Reference, Tag};

/// Maximum number of tags that are requested. Registries return them in alphabetical order, or the oldest first.
const TAGS_MAX: usize = 1000;
/// Maximum length of the answer in bytes: as many tags, each of 128 bytes, as a JSON list.
const ANSWER_MAX: usize = TAGS_MAX * 256;

#[derive(Deserialize)]
struct TagList {
    /// Some registries send `null` for an empty repository.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// Returns up to 1000 tags of a repository, without retries. Tags that are not valid are left out.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]. Several registries refuse this request to strangers.
    pub async fn tags(&self, name: &Name) -> Result<Vec<Tag>, RegistryError> {
        let object = RemoteObject::manifest(Reference { name: name.clone(), tag: None, digest: None });
        let path = format!("tags/list?n={TAGS_MAX}");
        let request = RegistryRequest { object: &object, path, accept: None, from: 0 };
        let mut response = self.request(&Endpoint::of(name)?, &request).await?;
        let host = host_of(response.url());
        let deadlines = &self.options().deadlines;
        let too_long =
            |size| RegistryError::TooLong { object: object.clone(), size, limit: ANSWER_MAX as u64 };
        let declared =
            response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(size) = declared.filter(|size| *size > ANSWER_MAX as u64) {
            return Err(too_long(size));
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) =
                response.chunk().await.map_err(|e| RegistryError::transport(&object, &host, &e, deadlines))?
            {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > ANSWER_MAX {
                    return Err(too_long(bytes.len() as u64));
                }
            }
            Ok(bytes)
        };
        let bytes = timeout(deadlines.idle, read)
            .await
            .map_err(|_| RegistryError::deadline(&object, &host, "the list of tags", deadlines.idle))??;
        // An answer that is no list suggests nothing.
        let list = serde_json::from_slice(&bytes).unwrap_or(TagList { tags: None });
        Ok(list.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()).collect())
    }
}
