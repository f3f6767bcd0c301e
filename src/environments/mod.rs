//! Environments: from an author's Dockerfile to an image that workers offer.
//!
//! An author submits a build context as a revision of an environment, and an administrator reviews it. The queue is a
//! directory, private to its owner:
//!
//! ```text
//! QUEUE/ENV/REVISION/context.tar       what the author submitted, in canonical form
//!                    submission.json   who, when, what the build needs
//!                    review.json       approved, with the digests of the base images; rejected; or withdrawn
//!                    build.log         the output of the build
//!                    built.json        the image that was built, if the registry did not take it yet
//!                    result.json       published, failed; or withdrawn after the approval
//! QUEUE/ENV/current.json               which published revision workers offer, if not the newest; none if retired
//! QUEUE/.queue/version  log  lock  publishing  pending  tmp/
//! ```
//!
//! **The state of a revision follows from what is there.** Each file is written once, to a temporary name, and renamed. A
//! build in progress is a lock of the living builder on the directory of the revision ([`ActiveBuild`]), so a revision whose
//! builder died is `approved` again.
//!
//! **Nothing that was approved changes.** An approval names the digest of the context and those of all base images, and
//! every change is a new revision. Numbers of revisions count up, whatever the clock says.
//!
//! **Locks.** Changes take the lock of the queue for as long as a few renames take, never during a download or a build.
//! A builder takes the lock of its revision while it holds the lock of the queue, and then releases the latter. Readers take no lock.

mod advertised;
mod build;
mod builder;
mod context;
mod dockerfile;
mod error;
mod fault;
mod files;
mod flags;
mod headers;
mod id;
mod log;
mod offers;
mod publish;
mod queue;
mod read;
mod records;
mod retire;
mod review;
mod rollback;
mod signature;
mod smoke;
mod submit;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use serde::Serialize;

pub use advertised::{AdvertisedFile, AdvertisedSet};
pub use build::ActiveBuild;
pub use builder::{BaseImages, BuildDirectory, BuildLimits, BuildOutput, Builder, Ending, Supervision};
pub use context::{ContextError, ContextSource, ContextSummary, DOCKERFILE};
pub use dockerfile::{
    BaseFault, BaseUse, DOCKERFILE_MAX, Dockerfile, DockerfileError, Instruction, InstructionOption,
    ParserDirective, VariableFault,
};
pub use error::EnvironmentsError;
pub use fault::{BuildFailure, BuildFault};
pub use flags::{AllowedRegistries, BasePolicy, FlagKind, ReviewFlag, is_hidden};
pub use headers::{WorkerFile, WorkerFileError};
pub use id::{
    BuildHost, ENVIRONMENT_ID_MAX, EnvironmentId, EnvironmentNameError, HardwareGroup, RevisionId,
    RevisionNumber,
};
pub use log::{LogEntry, QueueChange};
pub use offers::{
    EnvironmentsPrefix, OFFERS_MAX, OFFERS_TYPE, Offer, OfferList, OfferListError, SIGNATURE_TYPE,
};
pub use publish::{NO_REGISTRY, PublishLock};
pub use queue::Queue;
pub use records::{
    ApprovedBase, Attribution, AttributionError, BuildOutcome, BuildResult, BuiltImage, CurrentChoice,
    Review, ReviewDecision, Submission,
};
pub use signature::{SignatureError, check_signature, sign};
pub use smoke::SmokeCommand;
pub use submit::{SubmissionDraft, Submitted};

use crate::os::AtPath as _;

/// What has happened to a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevisionState {
    /// It waits for a review.
    Submitted,
    /// It waits for a builder.
    Approved,
    /// An administrator refused it.
    Rejected,
    /// It was taken back.
    Withdrawn,
    /// A builder works on it.
    Building,
    /// Its image is in the registry.
    Published,
    /// It could not be built.
    Failed,
}

impl fmt::Display for RevisionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submitted => "submitted",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
            Self::Building => "building",
            Self::Published => "published",
            Self::Failed => "failed",
        })
    }
}

/// An environment, as its directory was when it was read.
#[derive(Debug)]
pub struct Environment {
    /// Its ID.
    pub id: EnvironmentId,
    /// Its revisions, oldest first.
    pub revisions: Vec<Revision>,
    /// Revisions whose files are damaged or missing.
    pub damaged: Vec<EnvironmentsError>,
    /// The decision which revision workers offer, if there is one.
    pub choice: Option<CurrentChoice>,
}

impl Environment {
    /// The revision that workers offer; `None` if nothing is published or the environment is retired.
    #[must_use]
    pub fn current(&self) -> Option<&Revision> {
        let published =
            self.revisions.iter().rev().find(|revision| revision.state() == RevisionState::Published);
        match &self.choice {
            Some(choice) if published.is_none_or(|newest| newest.id.number <= choice.through) => {
                self.revisions.iter().find(|revision| Some(revision.id.number) == choice.revision)
            }
            _ => published,
        }
    }

    /// The published revision to compare a revision with: the newest one before it, or if it is not published the newest of all.
    #[must_use]
    pub fn last_published(&self, revision: &Revision) -> Option<&Revision> {
        let is_published = |revision: &Revision| revision.state() == RevisionState::Published;
        let is_before = |other: &Revision| !is_published(revision) || other.id.number < revision.id.number;
        self.revisions.iter().rev().find(|other| is_published(other) && is_before(other))
    }
}

/// A revision, as its directory was when it was read.
#[derive(Debug, Clone)]
pub struct Revision {
    /// Its environment and number.
    pub id: RevisionId,
    /// Its directory.
    pub path: PathBuf,
    /// What its author asked for.
    pub submission: Submission,
    /// The decision about it.
    pub review: Option<Review>,
    /// Its end.
    pub result: Option<BuildResult>,
    /// Whether a living builder had its lock.
    pub is_building: bool,
}

impl Revision {
    /// The state of the revision.
    #[must_use]
    pub fn state(&self) -> RevisionState {
        match (
            self.result.as_ref().map(|result| result.outcome),
            self.review.as_ref().map(|review| review.decision),
        ) {
            (Some(BuildOutcome::Published), _) => RevisionState::Published,
            (Some(BuildOutcome::Failed), _) => RevisionState::Failed,
            (Some(BuildOutcome::Withdrawn), _) | (None, Some(ReviewDecision::Withdrawn)) => {
                RevisionState::Withdrawn
            }
            (None, Some(ReviewDecision::Rejected)) => RevisionState::Rejected,
            (None, Some(ReviewDecision::Approved)) if self.is_building => RevisionState::Building,
            (None, Some(ReviewDecision::Approved)) => RevisionState::Approved,
            (None, None) => RevisionState::Submitted,
        }
    }

    /// Who brought the revision into its state.
    #[must_use]
    pub fn last_change(&self) -> &Attribution {
        let review = self.review.as_ref().map(|review| &review.by);
        self.result.as_ref().map(|result| &result.by).or(review).unwrap_or(&self.submission.by)
    }

    /// The file of the context.
    #[must_use]
    pub fn context_path(&self) -> PathBuf {
        self.path.join(CONTEXT)
    }

    /// The file of the build's output, whether or not it exists.
    #[must_use]
    pub fn build_log_path(&self) -> PathBuf {
        self.path.join(BUILD_LOG)
    }

    /// Reads the Dockerfile.
    ///
    /// # Errors
    ///
    /// The context is missing or damaged.
    pub fn dockerfile(&self) -> Result<Dockerfile, EnvironmentsError> {
        let path = self.context_path();
        Ok(context::dockerfile(&File::open(&path).at("open", &path)?)?)
    }

    /// The error of an operation that the state of the revision does not permit.
    fn cannot_be(&self, operation: &'static str) -> EnvironmentsError {
        let (state, who) = (self.state(), &self.last_change().who);
        let reason = match state {
            RevisionState::Submitted => "it waits for its review".to_owned(),
            RevisionState::Building => "it is being built".to_owned(),
            RevisionState::Failed => "its build has failed".to_owned(),
            RevisionState::Approved
            | RevisionState::Rejected
            | RevisionState::Withdrawn
            | RevisionState::Published => format!("it was {state} by {who}"),
        };
        EnvironmentsError::State { revision: self.id.clone(), operation, state, reason }
    }
}

/// The tar of a revision.
const CONTEXT: &str = "context.tar";
/// The document of the author.
const SUBMISSION: &str = "submission.json";
/// The document of the reviewer.
const REVIEW: &str = "review.json";
/// The output of the build.
const BUILD_LOG: &str = "build.log";
/// The image of a build that is not published yet.
const BUILT: &str = "built.json";
/// The document of the builder.
const RESULT: &str = "result.json";
/// The decision which revision of an environment workers offer.
const CURRENT: &str = "current.json";

#[cfg(test)]
mod tests;
