//! Tests of the queue.

mod approval;
mod crashes;
mod states;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

use super::*;
use crate::error::ErrorCode;
use crate::image::{Digest, ManifestDigest, Platform, Reference};

const DOCKERFILE_TEXT: &str = "FROM python:3.12\nRUN make\n";

fn by(who: &str) -> Attribution {
    Attribution::now(who, None).unwrap()
}

fn id(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

fn revision(text: &str) -> RevisionId {
    text.parse().unwrap()
}

fn draft(who: &str) -> SubmissionDraft {
    SubmissionDraft {
        by: by(who),
        platform: "linux/amd64".parse::<Platform>().unwrap(),
        smoke: Some("python3 -V".to_owned()),
        hosts: vec!["pypi.example".parse().unwrap()],
        hwgroups: vec!["group1".parse().unwrap()],
        unknown: Map::new(),
    }
}

/// A queue in a temporary directory.
struct TestQueue {
    dir: tempfile::TempDir,
    queue: Queue,
}

impl TestQueue {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open_or_create(&dir.path().join("queue")).unwrap();
        Self { dir, queue }
    }

    /// Submits a Dockerfile.
    fn submit(&self, environment: &str, dockerfile: &str) -> Submitted {
        submit_in(&self.queue, self.dir.path(), environment, dockerfile).unwrap()
    }

    fn approve(&self, revision_id: &str) -> Result<Review, EnvironmentsError> {
        self.queue.approve(&revision(revision_id), &by("bob"), None, &BasePolicy::default(), resolve)
    }

    /// Brings a revision from its submission to its publication.
    fn publish(&self, revision_id: &str) {
        self.approve(revision_id).unwrap();
        let build = self.queue.start_build(&revision(revision_id), &by("builder")).unwrap();
        build.finish(&published()).unwrap();
    }

    fn state(&self, revision_id: &str) -> RevisionState {
        self.queue.revision(&revision(revision_id)).unwrap().state()
    }

    /// The log: `WHAT ID@REVISION WHO`.
    fn log(&self) -> Vec<String> {
        log_of(&self.queue)
    }

    fn current(&self, environment: &str) -> Option<String> {
        self.queue.environment(&id(environment)).unwrap().current().map(|revision| revision.id.to_string())
    }
}

fn log_of(queue: &Queue) -> Vec<String> {
    let line = |entry: LogEntry| {
        format!("{} {}@{} {}", entry.what.as_str(), entry.environment, entry.revision, entry.by.who)
    };
    queue.log().unwrap().into_iter().map(line).collect()
}

fn submit_in(
    queue: &Queue,
    scratch: &Path,
    environment: &str,
    dockerfile: &str,
) -> Result<Submitted, EnvironmentsError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let context = scratch.join(format!("context-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&context).unwrap();
    fs::write(context.join(DOCKERFILE), dockerfile).unwrap();
    queue.submit(&id(environment), draft("alice"), ContextSource::Directory(&context), 1 << 20)
}

/// A registry in which the digest of an image is that of its name.
fn resolve(reference: &Reference) -> Result<ManifestDigest, crate::registry::RegistryError> {
    Ok(ManifestDigest::new(Digest::of(reference.to_string().as_bytes())))
}

fn published() -> BuildResult {
    let image = Reference::parse(&format!("reg.example/env@{}", Digest::of(b"image")), None).unwrap();
    BuildResult::published(by("builder"), &image)
}

/// The code of an error.
#[track_caller]
fn code<T: fmt::Debug>(result: Result<T, EnvironmentsError>) -> (ErrorCode, String) {
    let error = result.unwrap_err();
    (error.code(), error.to_string())
}
