//! A registry that serves the images of OCI layouts, for tests of the command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::server::{Answer, Server};

/// The layouts by repository and tag.
type Served = BTreeMap<(String, String), PathBuf>;

/// A registry on loopback. Stopped on drop.
pub(crate) struct LayoutRegistry {
    served: Arc<Mutex<Served>>,
    server: Server,
    _runtime: Runtime,
}

impl LayoutRegistry {
    /// Starts a registry without images.
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served: Arc<Mutex<Served>> = Arc::default();
        let images = Arc::clone(&served);
        let server = runtime.block_on(Server::start(move |request, _| {
            let answer = answer(&images.lock().unwrap(), request.path());
            answer.unwrap_or_else(|| Answer::new(404, &[], br#"{"errors":[]}"#))
        }));
        Self { served, server, _runtime: runtime }
    }

    /// Serves the image of a layout under a repository and tag. Returns the reference.
    pub(crate) fn serve(&self, repository: &str, tag: &str, layout: &Path) -> String {
        self.served.lock().unwrap().insert((repository.to_owned(), tag.to_owned()), layout.to_owned());
        self.reference(&format!("{repository}:{tag}"))
    }

    /// A reference to this registry.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.server.address)
    }

    /// The paths of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.server.requests().iter().map(|request| request.path().to_owned()).collect()
    }
}

fn answer(served: &Served, path: &str) -> Option<Answer> {
    if path == "/v2/" {
        return Some(Answer::new(200, &[], b"{}"));
    }
    let path = path.split('?').next()?.strip_prefix("/v2/")?;
    if let Some(repository) = path.strip_suffix("/tags/list") {
        let tags: Vec<&String> =
            served.keys().filter(|(name, _)| name == repository).map(|(_, tag)| tag).collect();
        let list = json!({ "name": repository, "tags": tags }).to_string();
        return (!tags.is_empty()).then(|| Answer::new(200, &[], list.as_bytes()));
    }
    if let Some((repository, digest)) = path.split_once("/blobs/") {
        return Some(Answer::new(200, &[], &blob(served, repository, digest)?));
    }
    let (repository, reference) = path.split_once("/manifests/")?;
    let (digest, media_type) = match served.get(&(repository.to_owned(), reference.to_owned())) {
        None => (reference.to_owned(), "application/vnd.oci.image.manifest.v1+json".to_owned()),
        Some(layout) => {
            let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
            let text = |key: &str| index["manifests"][0][key].as_str().unwrap().to_owned();
            (text("digest"), text("mediaType"))
        }
    };
    Some(Answer::new(200, &[("Content-Type", &media_type)], &blob(served, repository, &digest)?))
}

fn blob(served: &Served, repository: &str, digest: &str) -> Option<Vec<u8>> {
    let layouts = served.iter().filter(|((name, _), _)| name == repository).map(|(_, layout)| layout);
    let mut files = layouts.map(|layout| layout.join("blobs").join(digest.replace(':', "/")));
    files.find_map(|file| fs::read(file).ok())
}
