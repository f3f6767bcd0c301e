//! The seam between a run and the program that isolates it.
//!
//! [`run`](fn@super::run) does what all runs have in common and asks a [`Backend`] for the rest. Each backend is a folder,
//! `isolate/` or `bwrap/`, with one implementation of the trait.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::User;
use super::box_directories::BoxDirectories;
use super::box_lock::BoxRecord;
use super::environment::Variable;
use super::error::SandboxError;
use super::first_process::ProgramExit;
use super::isolate::DirRule;
use super::sandbox_command::SandboxCommand;
use super::spec::RunSpec;
use super::verdict::Verdict;
use super::view::RootView;
use crate::image::ImageConfig;

/// A program that can isolate a run.
pub(super) trait Backend {
    /// Checks that the backend supports everything that the run requests.
    fn check(&self, spec: &RunSpec) -> Result<(), SandboxError>;

    /// Returns the user that the program runs as: `default`, or the image's if the administrator allows that with
    /// `image_user` and the backend supports it.
    fn user(&self, image: &ImageConfig, default: User, image_user: bool) -> User;

    /// Returns the record from which a sweep cleans the box if this process is killed. `root` is the source of the run's root
    /// in the mount table.
    fn record(&self, spec: &RunSpec, root: String) -> BoxRecord;

    /// Makes the box and returns its directory on the host.
    ///
    /// Fails with [`SandboxError::BoxTaken`] if another program uses the box.
    fn make_box(&self, request: &BoxRequest<'_>) -> Result<PathBuf, SandboxError>;

    /// Removes the box and everything in it.
    fn remove_box(&self, request: &BoxRequest<'_>) -> Result<(), SandboxError>;

    /// Returns the owner of files that are put into the box; `None` if the sandbox changes their owner itself.
    fn box_owner(&self, user: User) -> Option<(Uid, Gid)>;

    /// Returns the user and group that programs in box `id` have, if they are known before the sandbox starts, and the name
    /// of their host.
    fn identity(&self, user: User, id: u32) -> BoxIdentity;

    /// Returns the command that starts the program in the sandbox. Called in the mount namespace that has the root.
    fn command(&self, run: PreparedRun<'_>) -> Result<SandboxCommand, SandboxError>;

    /// Returns the verdict on a run, and the same verdict as the text of an isolate meta file. `output` is the content of
    /// [`PreparedRun::output`].
    fn verdict(&self, exit: &ProgramExit, output: Vec<u8>) -> Result<(Verdict, Vec<u8>), SandboxError>;
}

/// Who and where a program finds itself to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoxIdentity {
    /// Its user and group.
    pub(super) user: Option<(u32, u32)>,
    pub(super) hostname: String,
}

/// The box that a backend makes or removes.
#[derive(Debug)]
pub(super) struct BoxRequest<'a> {
    pub(super) id: u32,
    /// The locked file of the box. The box stays locked while any process has this file open.
    pub(super) lock: &'a File,
    /// The directory that contains the boxes of backends other than isolate.
    pub(super) directories: &'a BoxDirectories,
    pub(super) spec: &'a RunSpec,
    /// The user that the program runs as.
    pub(super) user: User,
}

/// A run whose root is mounted and whose program is found.
#[derive(Debug)]
pub(super) struct PreparedRun<'a> {
    pub(super) spec: &'a RunSpec,
    pub(super) box_id: u32,
    /// The box's directory on the host, as a path and opened.
    pub(super) box_path: &'a Path,
    pub(super) box_fd: &'a OwnedFd,
    /// The user that the program runs as.
    pub(super) user: User,
    /// The mounted root, in the mount namespace of this process.
    pub(super) root: &'a Path,
    pub(super) view: &'a RootView,
    /// The caller's directory rules, each with its resolved path in the root: absolute and without links.
    pub(super) rules: &'a [(DirRule, PathBuf)],
    /// The rules for the environment, and the resulting environment.
    pub(super) variables: &'a [Variable],
    pub(super) environment: &'a [(OsString, OsString)],
    /// The directory in the root that the program starts in.
    pub(super) directory: &'a Path,
    /// The program's path in the root, and its arguments.
    pub(super) words: &'a [OsString],
    /// A memory file for the sandbox's report on the run.
    pub(super) output: OwnedFd,
}
