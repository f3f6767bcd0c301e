//! Prepares the root of a run: mount points for the caller's directories, and the working directory.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::copy::make_directories;
use super::error::SandboxError;
use super::isolate::{DirRule, RuleTarget, components};
use super::view::{MountContent, RootView, ViewedPath};
use super::{BOX, RunSpec, User};
use crate::image::ImageConfig;
use crate::os::AtPath as _;
use crate::roots::{PrivateRoot, Upper};

/// A mounted root that is being prepared for a run.
#[derive(Debug)]
pub(super) struct RootPreparation<'a> {
    pub(super) spec: &'a RunSpec,
    pub(super) config: &'a ImageConfig,
    pub(super) root: &'a PrivateRoot,
    pub(super) box_fd: &'a OwnedFd,
    /// The user that the program runs as.
    pub(super) user: User,
    /// The owner of directories that are made in the box.
    pub(super) box_owner: Option<(Uid, Gid)>,
}

impl RootPreparation<'_> {
    /// Makes a mount point for each directory rule. Returns the program's view of the root, and the rules with their paths in
    /// the root.
    pub(super) fn view(&self) -> Result<(RootView, Vec<(DirRule, PathBuf)>), SandboxError> {
        let duplicate = |fd: std::os::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|error| SandboxError::step("duplicate a descriptor", error))
        };
        let mut view = RootView::new(duplicate(self.root.fd())?);
        for path in ["/dev", "/proc"] {
            view.mount(Path::new(path), MountContent::Unknown, false);
        }
        view.mount(Path::new("/tmp"), MountContent::Empty, true);
        view.mount(Path::new(BOX), MountContent::Directory(duplicate(self.box_fd.as_fd())?), true);
        let mut rules = Vec::new();
        for rule in &self.spec.dirs {
            if let Some(path) = self.add_rule(rule, &mut view)? {
                rules.push((rule.clone(), path));
            }
        }
        Ok((view, rules))
    }

    /// Makes the mount point of a rule, and adds the mount to the view. Returns `None` for a rule with the
    /// flag `maybe` whose directory does not exist.
    fn add_rule(&self, rule: &DirRule, view: &mut RootView) -> Result<Option<PathBuf>, SandboxError> {
        let content = match &rule.target {
            RuleTarget::Nothing => {
                let path = Path::new("/").join(PathBuf::from_iter(components(&rule.inside)));
                view.unmount(&path);
                return Ok(Some(path));
            }
            RuleTarget::Directory(outside) if Path::new(outside).is_absolute() => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match rustix::fs::open(Path::new(outside), flags, Mode::empty()) {
                    Ok(directory) => MountContent::Directory(directory),
                    Err(Errno::NOENT | Errno::NOTDIR) if rule.flags.maybe => return Ok(None),
                    Err(errno) => return Err(errno).at("open the directory", Path::new(outside))?,
                }
            }
            RuleTarget::Temporary => MountContent::Empty,
            RuleTarget::Filesystem(kind) if kind == "tmpfs" => MountContent::Empty,
            RuleTarget::Directory(_) | RuleTarget::Filesystem(_) => MountContent::Unknown,
        };
        let path = Path::new("/").join(self.root.directory(Path::new(&rule.inside))?);
        view.mount(&path, content, rule.target == RuleTarget::Temporary);
        Ok(Some(path))
    }

    /// Returns the directory that the program starts in: the caller's, otherwise the image's if the program's user may
    /// enter it, otherwise the box.
    pub(super) fn working_directory(&self, view: &RootView) -> Result<PathBuf, SandboxError> {
        let resolve = |path: &Path| {
            let resolved = view.resolve(path, Path::new("/"), self.user);
            match resolved {
                Ok(ViewedPath::File { mode, .. }) if !is_directory(mode) => Err(Errno::NOTDIR),
                other => other,
            }
        };
        if let Some(directory) = &self.spec.chdir {
            let path = Path::new(BOX).join(directory);
            // The sandbox checks whether the user may enter the directory.
            resolve(&path).at("start the program in", &path)?;
            return Ok(path);
        }
        if self.config.working_dir.is_empty() {
            return Ok(BOX.into());
        }
        let path = Path::new("/").join(&self.config.working_dir);
        let in_box = |reason: &str| {
            tracing::info!("ignoring the image's working directory {}: {reason}", path.display());
            Ok(BOX.into())
        };
        match resolve(&path) {
            Ok(ViewedPath::Unknown) => Ok(path),
            Ok(ViewedPath::File { path, searchable: true, .. }) => Ok(path),
            Ok(ViewedPath::File { .. }) => in_box("the program's user may not enter it"),
            Err(Errno::NOENT) => match self.make_working_directory(view, &path)? {
                Some(directory) => Ok(directory),
                None => in_box("it does not exist and cannot be made"),
            },
            Err(errno) => Err(errno).at("start the program in", &path)?,
        }
    }

    /// Makes the image's working directory in the root or in the box, and returns its path. Returns `None` if the directory
    /// would be in another mount, or if the root is read-only.
    fn make_working_directory(&self, view: &RootView, path: &Path) -> Result<Option<PathBuf>, SandboxError> {
        let has_parent = path.components().any(|part| part == Component::ParentDir);
        let directory = if !has_parent && view.mountpoint(path) != Path::new("/") {
            path.to_owned()
        } else if self.spec.upper == Upper::None {
            return Ok(None);
        } else {
            // Links may lead the path into a mount: the result is checked below.
            Path::new("/").join(self.root.directory(path)?)
        };
        let mountpoint = view.mountpoint(&directory);
        if mountpoint == Path::new("/") {
            Ok(Some(directory))
        } else if mountpoint == Path::new(BOX) {
            let below = directory.strip_prefix(BOX).unwrap_or(&directory);
            make_directories(self.box_fd.as_fd(), below, self.box_owner)?;
            Ok(Some(directory))
        } else {
            Ok(None)
        }
    }
}

fn is_directory(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Directory
}
