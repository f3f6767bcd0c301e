//! Reads the directories of environments and revisions.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::EnvironmentsError;
use super::id::{EnvironmentId, RevisionId, RevisionNumber};
use super::{CURRENT, Environment, RESULT, REVIEW, Revision, SUBMISSION};
use crate::os::{self, AtPath as _, PathError, Sharing};

/// Reads an environment; `None` if it has no revision.
pub(super) fn environment(
    queue: &Path,
    id: &EnvironmentId,
) -> Result<Option<Environment>, EnvironmentsError> {
    let numbers = numbers(queue, id)?;
    if numbers.is_empty() {
        return Ok(None);
    }
    let choice = document(&queue.join(id.as_str()).join(CURRENT))?;
    let mut environment = Environment { id: id.clone(), revisions: Vec::new(), damaged: Vec::new(), choice };
    for number in numbers {
        match revision(queue, &RevisionId { environment: id.clone(), number }) {
            Ok(revision) => environment.revisions.extend(revision),
            Err(error) => environment.damaged.push(error),
        }
    }
    Ok(Some(environment))
}

/// Reads a revision; `None` if it does not exist.
pub(super) fn revision(queue: &Path, id: &RevisionId) -> Result<Option<Revision>, EnvironmentsError> {
    let path = queue.join(id.environment.as_str()).join(id.number.to_string());
    let directory = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        directory => directory.at("open", &path)?,
    };
    // In this order: a builder writes its result before it releases its lock, and a reviewer decides before a build starts.
    let is_building = is_locked(&directory).at("lock", &path)?;
    let result = document(&path.join(RESULT))?;
    let review = document(&path.join(REVIEW))?;
    let submission = path.join(SUBMISSION);
    let missing =
        || EnvironmentsError::Damaged { path: submission.clone(), reason: "it is missing".to_owned() };
    let submission = document(&submission)?.ok_or_else(missing)?;
    Ok(Some(Revision { id: id.clone(), path, submission, review, result, is_building }))
}

/// Returns the highest number of an environment's revisions, also of damaged ones.
pub(super) fn newest(queue: &Path, id: &EnvironmentId) -> Result<Option<RevisionNumber>, EnvironmentsError> {
    Ok(numbers(queue, id)?.pop())
}

fn numbers(queue: &Path, id: &EnvironmentId) -> Result<Vec<RevisionNumber>, EnvironmentsError> {
    let path = queue.join(id.as_str());
    let names = match fs::read_dir(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        names => names.at("list", &path)?,
    };
    let mut numbers = Vec::new();
    for name in names {
        let name = name.at("list", &path)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RevisionNumber>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether another process has the lock of a revision.
///
/// The lock is taken for a moment where it is free, so builders must wait a little for it.
fn is_locked(directory: &File) -> Result<bool, rustix::io::Errno> {
    let is_free = os::try_lock(directory, Sharing::Shared)?;
    if is_free {
        os::unlock(directory);
    }
    Ok(!is_free)
}

/// Reads a document; `None` if it does not exist.
pub(super) fn document<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EnvironmentsError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PathError::new("read", path, error).into()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| EnvironmentsError::Damaged { path: path.to_owned(), reason: error.to_string() })
}
