//! A registry that takes pushes, checks that clients follow the protocol, and fails where a test wants it to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rcx_imagefs::image::Digest;
use serde_json::Value;

use super::server::{Answer, Request, Server};

/// What a registry has.
#[derive(Default)]
pub(crate) struct Content {
    /// Blobs by repository and digest.
    pub(crate) blobs: BTreeMap<(String, String), Vec<u8>>,
    /// Media type and bytes of manifests by repository and tag or digest.
    pub(crate) manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    /// Open uploads: what has been received, and the number of the next request.
    uploads: BTreeMap<String, (Vec<u8>, usize)>,
    /// Uploads opened so far.
    opened: usize,
    /// Bytes of blobs received so far.
    pub(crate) received: usize,
}

/// A registry on loopback. Stopped on drop.
pub(crate) struct PushServer {
    pub(crate) server: Server,
    content: Arc<Mutex<Content>>,
}

impl PushServer {
    /// A registry without faults.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| None).await
    }

    /// A registry that answers a request with the result of `fault`, if there is one. `fault` gets the request and the number of earlier
    /// requests with its method.
    pub(crate) async fn start_with(
        fault: impl Fn(&Request, usize) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self::start_cutting(|_| None, fault).await
    }

    /// The same, and it breaks the connection of a request after the number of bytes of its body that `cut` returns, if it returns
    /// one. It keeps those bytes.
    pub(crate) async fn start_cutting(
        cut: impl Fn(&Request) -> Option<usize> + Send + Sync + 'static,
        fault: impl Fn(&Request, usize) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let content: Arc<Mutex<Content>> = Arc::default();
        let of_handler = Arc::clone(&content);
        let methods = Mutex::new(BTreeMap::<String, usize>::new());
        let limit = move |request: &Request| cut(request).unwrap_or(usize::MAX);
        let handler = move |request: &Request, _| {
            let mut methods = methods.lock().unwrap();
            let count = methods.entry(request.method().to_owned()).or_default();
            *count += 1;
            let fault = fault(request, *count - 1);
            fault.unwrap_or_else(|| of_handler.lock().unwrap().answer(request))
        };
        Self { server: Server::start_with_limit(limit, handler).await, content }
    }

    pub(crate) fn address(&self) -> &str {
        &self.server.address
    }

    /// Looks at the content.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Content) -> T) -> T {
        look(&mut self.content.lock().unwrap())
    }

    /// The number of requests with this method whose path contains `part`.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|one| one.method() == method && one.path().contains(part)).count()
    }
}

impl Content {
    /// Adds a blob to a repository. Returns its digest.
    pub(crate) fn add_blob(&mut self, repository: &str, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        self.blobs.insert((repository.to_owned(), digest.clone()), bytes.to_vec());
        digest
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let (path, query) = request.path().split_once('?').unwrap_or((request.path(), ""));
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.replace("%3A", ":").replace("%2F", "/")))
            .collect();
        let path = path.strip_prefix("/v2/").unwrap();
        if path.is_empty() {
            return Answer::new(200, &[], b"{}");
        }
        if let Some((repository, upload)) = path.split_once("/blobs/uploads/") {
            return self.upload(request, repository, upload, &query);
        }
        if let Some((repository, digest)) = path.split_once("/blobs/") {
            let blob = self.blobs.get(&(repository.to_owned(), digest.to_owned()));
            return match (request.method(), blob) {
                (_, None) => error(404, "BLOB_UNKNOWN"),
                ("HEAD", Some(_)) => Answer::new(200, &[], b""),
                (_, Some(blob)) => Answer::new(200, &[], blob),
            };
        }
        let (repository, reference) = path.split_once("/manifests/").unwrap();
        let key = (repository.to_owned(), reference.to_owned());
        if request.method() == "PUT" {
            return self.put_manifest(request, key);
        }
        match self.manifests.get(&key) {
            Some((media_type, bytes)) => Answer::new(200, &[("Content-Type", media_type)], bytes),
            None => error(404, "MANIFEST_UNKNOWN"),
        }
    }

    fn upload(
        &mut self,
        request: &Request,
        repository: &str,
        upload: &str,
        query: &BTreeMap<String, String>,
    ) -> Answer {
        if request.method() == "POST" {
            if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from"))
                && let Some(blob) = self.blobs.get(&(from.clone(), digest.clone())).cloned()
            {
                self.add_blob(repository, &blob);
                return Answer::new(201, &[], b"");
            }
            let id = format!("upload-{}", self.opened);
            self.opened += 1;
            self.uploads.insert(id.clone(), (Vec::new(), 0));
            return self.accepted(202, repository, &id);
        }
        let Some((received, number)) = self.uploads.get_mut(upload) else {
            return error(404, "BLOB_UPLOAD_UNKNOWN");
        };
        // Each answer has a location of its own, and only the last one is right.
        if query.get("number") != Some(&number.to_string()) {
            return error(400, "BLOB_UPLOAD_INVALID");
        }
        let complete = request
            .header("content-length")
            .is_none_or(|length| length.parse::<usize>().unwrap() == request.bytes().len());
        match request.method() {
            "GET" => return self.accepted(204, repository, upload),
            "PATCH" => {
                let range = request.header("content-range").expect("a chunk says where it belongs");
                let (first, last) = range.split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let length = request.header("content-length").unwrap();
                assert_eq!(last + 1 - first, length.parse::<usize>().unwrap(), "{range}");
                if first != received.len() {
                    return error(416, "BLOB_UPLOAD_INVALID");
                }
            }
            _ => {}
        }
        received.extend_from_slice(request.bytes());
        self.received += request.bytes().len();
        if !complete {
            return Answer::closed();
        }
        if request.method() == "PATCH" {
            *number += 1;
            return self.accepted(202, repository, upload);
        }
        let (bytes, _) = self.uploads.remove(upload).unwrap();
        match &query["digest"] {
            digest if *digest == Digest::of(&bytes).to_string() => {
                self.add_blob(repository, &bytes);
                Answer::new(201, &[("Docker-Content-Digest", digest)], b"")
            }
            _ => error(400, "DIGEST_INVALID"),
        }
    }

    /// The answer that tells how much of an upload has been received.
    fn accepted(&self, status: u16, repository: &str, upload: &str) -> Answer {
        let (received, number) = &self.uploads[upload];
        let location = format!("/v2/{repository}/blobs/uploads/{upload}?number={number}");
        let range = format!("0-{}", received.len().saturating_sub(1));
        let headers = [("Location", location.as_str()), ("Range", range.as_str())];
        Answer::new(status, &headers, b"")
    }

    fn put_manifest(&mut self, request: &Request, key: (String, String)) -> Answer {
        let manifest: Value = serde_json::from_slice(request.bytes()).unwrap();
        let parts = |field: &str| manifest[field].as_array().cloned().unwrap_or_default();
        let config = manifest.get("config").cloned();
        for blob in parts("layers").into_iter().chain(config) {
            let digest = blob["digest"].as_str().unwrap().to_owned();
            if !self.blobs.contains_key(&(key.0.clone(), digest)) {
                return error(400, "MANIFEST_BLOB_UNKNOWN");
            }
        }
        for child in parts("manifests") {
            let digest = child["digest"].as_str().unwrap().to_owned();
            if !self.manifests.contains_key(&(key.0.clone(), digest)) {
                return error(400, "MANIFEST_UNKNOWN");
            }
        }
        let media_type = request.header("content-type").unwrap().to_owned();
        let digest = Digest::of(request.bytes()).to_string();
        if key.1.starts_with("sha256:") && key.1 != digest {
            return error(400, "DIGEST_INVALID");
        }
        let value = (media_type, request.bytes().to_vec());
        self.manifests.insert((key.0.clone(), digest.clone()), value.clone());
        self.manifests.insert(key, value);
        Answer::new(201, &[("Docker-Content-Digest", &digest)], b"")
    }
}

/// A refusal with this code.
pub(crate) fn error(status: u16, code: &str) -> Answer {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"it says so"}}]}}"#);
    Answer::new(status, &[], body.as_bytes())
}
