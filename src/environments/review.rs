//! Decides about a revision.

use std::fs::File;

use serde_json::Map;

use super::context;
use super::dockerfile::BaseUse;
use super::error::EnvironmentsError;
use super::flags::BasePolicy;
use super::id::RevisionId;
use super::log::QueueChange;
use super::queue::Queue;
use super::records::{ApprovedBase, Attribution, BuildResult, Review, ReviewDecision};
use super::{RESULT, REVIEW, Revision, RevisionState};
use crate::image::{Digest, ManifestDigest, Reference};
use crate::os::AtPath as _;
use crate::registry::RegistryError;

impl Queue {
    /// Approves a revision, with the digests that its base images have now.
    ///
    /// `resolve` asks a registry for the digest of a reference that has none. `seen` is the digest of the context that the
    /// reviewer has seen, where the caller knows it.
    ///
    /// # Errors
    ///
    /// The revision does not wait for a review, its context has changed, or a base image is unknown or not allowed.
    pub fn approve(
        &self,
        id: &RevisionId,
        by: &Attribution,
        seen: Option<Digest>,
        policy: &BasePolicy,
        mut resolve: impl FnMut(&Reference) -> Result<ManifestDigest, RegistryError>,
    ) -> Result<Review, EnvironmentsError> {
        let revision = self.waiting(id, "approved")?;
        let actual = revision.submission.context.digest;
        if let Some(expected) = seen.filter(|seen| *seen != actual) {
            return Err(EnvironmentsError::OtherContext { revision: id.clone(), expected, actual });
        }
        revision.check_context()?;
        let mut bases: Vec<ApprovedBase> = Vec::new();
        for base in revision.dockerfile()?.bases()? {
            // A name has one digest, even if its tag moves while this runs.
            if base.name.as_ref().is_ok_and(|name| bases.iter().any(|known| known.name == *name)) {
                continue;
            }
            bases.push(approved(&base, policy, &mut resolve)?);
        }
        let review = Review {
            decision: ReviewDecision::Approved,
            by: by.clone(),
            context: Some(actual),
            bases,
            hosts: revision.submission.hosts.clone(),
            unknown: Map::new(),
        };
        let lock = self.lock()?;
        // Another reviewer may have been faster.
        let revision = self.waiting(id, "approved")?;
        self.write_document(&lock, &revision, REVIEW, &review, QueueChange::Approved, by)?;
        Ok(review)
    }

    /// Refuses a revision.
    ///
    /// # Errors
    ///
    /// The revision does not wait for a review.
    pub fn reject(&self, id: &RevisionId, by: &Attribution) -> Result<(), EnvironmentsError> {
        let lock = self.lock()?;
        let revision = self.waiting(id, "rejected")?;
        let review = without_approval(ReviewDecision::Rejected, by);
        self.write_document(&lock, &revision, REVIEW, &review, QueueChange::Rejected, by)
    }

    /// Takes back a revision that is not built yet.
    ///
    /// # Errors
    ///
    /// The revision neither waits for a review nor for a builder.
    pub fn withdraw(&self, id: &RevisionId, by: &Attribution) -> Result<(), EnvironmentsError> {
        let lock = self.lock()?;
        let revision = self.revision(id)?;
        match revision.state() {
            RevisionState::Submitted => {
                let review = without_approval(ReviewDecision::Withdrawn, by);
                self.write_document(&lock, &revision, REVIEW, &review, QueueChange::Withdrawn, by)
            }
            RevisionState::Approved => {
                let result = BuildResult::withdrawn(by.clone());
                self.write_document(&lock, &revision, RESULT, &result, QueueChange::Withdrawn, by)
            }
            _ => Err(revision.cannot_be("withdrawn")),
        }
    }

    /// A revision that waits for its review.
    fn waiting(&self, id: &RevisionId, operation: &'static str) -> Result<Revision, EnvironmentsError> {
        let revision = self.revision(id)?;
        match revision.state() {
            RevisionState::Submitted => Ok(revision),
            _ => Err(revision.cannot_be(operation)),
        }
    }
}

impl Revision {
    /// Compares the context with its digest at submission. Reads all of it.
    ///
    /// # Errors
    ///
    /// It has changed, or cannot be read.
    pub fn check_context(&self) -> Result<(), EnvironmentsError> {
        let path = self.context_path();
        let file = File::open(&path).at("open", &path)?;
        let (expected, actual) = (self.submission.context.digest, context::digest(&file).at("read", &path)?);
        match actual == expected {
            true => Ok(()),
            false => Err(EnvironmentsError::ContextChanged { revision: self.id.clone(), expected, actual }),
        }
    }
}

fn without_approval(decision: ReviewDecision, by: &Attribution) -> Review {
    Review {
        decision,
        by: by.clone(),
        context: None,
        bases: Vec::new(),
        hosts: Vec::new(),
        unknown: Map::new(),
    }
}

/// Returns a base image with its digest.
fn approved(
    base: &BaseUse,
    policy: &BasePolicy,
    resolve: &mut impl FnMut(&Reference) -> Result<ManifestDigest, RegistryError>,
) -> Result<ApprovedBase, EnvironmentsError> {
    let line = base.line;
    let name =
        base.name.clone().map_err(|fault| EnvironmentsError::Base { line, reason: fault.to_string() })?;
    let reference = policy.reference(&name).map_err(|source| EnvironmentsError::BaseName { line, source })?;
    if !policy.allows(&reference) {
        let reason =
            format!("the registry of {reference} is not allowed (`registries` in the configuration)");
        return Err(EnvironmentsError::Base { line, reason });
    }
    let digest = match reference.digest {
        Some(digest) => digest,
        None => resolve(&reference)
            .map_err(|source| EnvironmentsError::BaseDigest { line, source: Box::new(source) })?,
    };
    Ok(ApprovedBase { name, reference: reference.to_string(), digest })
}
