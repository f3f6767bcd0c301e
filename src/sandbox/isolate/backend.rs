//! The isolate backend of a run.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::arguments::{IsolateRun, below_root};
use super::{BoxUsers, DirRule, GivenOption, IsolateError, IsolateOption, IsolateVersion, boxes, verdict};
use crate::image::ImageConfig;
use crate::roots::Upper;
use crate::sandbox::backend::{Backend, BoxIdentity, BoxRequest, PreparedRun};
use crate::sandbox::box_lock::BoxRecord;
use crate::sandbox::error::SandboxError;
use crate::sandbox::first_process::ProgramExit;
use crate::sandbox::sandbox_command::SandboxCommand;
use crate::sandbox::{RunSpec, User, Verdict};

/// An installed isolate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolateSandbox {
    program: PathBuf,
    version: IsolateVersion,
    users: Option<BoxUsers>,
}

impl IsolateSandbox {
    /// Checks the version of the isolate at `program`. What it prints is cached in `run_dir`.
    ///
    /// # Errors
    /// The version cannot be detected: see [`IsolateVersion::detect`].
    pub(in crate::sandbox) fn new(program: PathBuf, run_dir: &Path) -> Result<Self, IsolateError> {
        let version = match fs::metadata(&program) {
            Ok(metadata) => IsolateVersion::cached(&program, &metadata, run_dir, None)?,
            Err(_) => IsolateVersion::detect(&program, None)?,
        };
        let users = BoxUsers::cached(&program, run_dir, None);
        Ok(Self { program, version, users })
    }
}

impl Backend for IsolateSandbox {
    fn check(&self, spec: &RunSpec) -> Result<(), SandboxError> {
        check(spec, self.version)
    }

    /// isolate has a user for each box, whose ID only isolate knows. So this returns an ID that owns no file.
    fn user(&self, image: &ImageConfig, _default: User, _image_user: bool) -> User {
        if !image.user.is_empty() {
            tracing::info!("ignoring the image's user `{}`: isolate has a user for each box", image.user);
        }
        User { uid: u32::MAX, gid: u32::MAX }
    }

    fn record(&self, spec: &RunSpec, root: String) -> BoxRecord {
        BoxRecord::Isolate { cg: spec.cg(), root }
    }

    fn make_box(&self, request: &BoxRequest<'_>) -> Result<PathBuf, SandboxError> {
        boxes::init(&self.program, request.id, &request.spec.options, request.lock)
    }

    fn remove_box(&self, request: &BoxRequest<'_>) -> Result<(), SandboxError> {
        boxes::clean_up(&self.program, request.id, request.spec.cg(), request.lock)
    }

    /// `isolate --run` changes the owner of everything in the box to the box's user.
    fn box_owner(&self, _user: User) -> Option<(Uid, Gid)> {
        None
    }

    /// isolate keeps the name of the host.
    fn identity(&self, _user: User, id: u32) -> BoxIdentity {
        let user = self.users.and_then(|users| users.of_box(id));
        BoxIdentity { user, hostname: rustix::system::uname().nodename().to_string_lossy().into_owned() }
    }

    fn command(&self, run: PreparedRun<'_>) -> Result<SandboxCommand, SandboxError> {
        let dirs: Vec<DirRule> = run.rules.iter().map(|(rule, path)| below_root(rule, path)).collect();
        let meta = PathBuf::from(format!("/proc/self/fd/{}", run.output.as_raw_fd()));
        let mut options = run.spec.options.clone();
        if run.spec.terminal {
            // A shell needs to start programs, and to choose which of them reads from the terminal.
            for option in [IsolateOption::TtyHack, IsolateOption::Processes] {
                if !run.spec.has(option) {
                    options.push(GivenOption { option, value: None });
                }
            }
        }
        let arguments = IsolateRun {
            version: self.version,
            id: run.box_id,
            root: run.root,
            writable: run.spec.upper != Upper::None,
            dirs: &dirs,
            options: &options,
            variables: run.variables,
            chdir: run.directory,
            meta: &meta,
            words: run.words,
        }
        .arguments()?;
        let command = SandboxCommand::new(&self.program, arguments, run.output);
        Ok(command.with_stdout_to_stderr(run.spec.stdout_to_stderr))
    }

    fn verdict(&self, exit: &ProgramExit, output: Vec<u8>) -> Result<(Verdict, Vec<u8>), SandboxError> {
        let verdict = verdict::from_meta(exit, &output)?;
        Ok((verdict, output))
    }
}

/// Checks that this version of isolate supports all options of the run.
fn check(spec: &RunSpec, version: IsolateVersion) -> Result<(), SandboxError> {
    match spec.options.iter().find(|entry| !entry.option.is_known_to(version)) {
        Some(entry) => Err(SandboxError::UnknownOption { option: entry.option.name(), version }),
        None if spec.has(IsolateOption::CgMem) && !spec.cg() => Err(SandboxError::MissingOption {
            option: IsolateOption::CgMem.name(),
            needed: IsolateOption::Cg.name(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_the_unsupported_option_and_the_version() {
        let spec = |option, value: &str| {
            let options = vec![GivenOption { option, value: Some(value.into()) }];
            RunSpec { options, ..RunSpec::default() }
        };
        let syscalls = spec(IsolateOption::Syscalls, "0");
        let error = check(&syscalls, IsolateVersion::new(1, 10, 1)).unwrap_err();
        assert_eq!(error.to_string(), "option `--syscalls` is not supported by isolate 1.10.1");
        check(&syscalls, IsolateVersion::new(2, 6, 0)).unwrap();
        let error = check(&spec(IsolateOption::CgMem, "1"), IsolateVersion::new(2, 4, 0)).unwrap_err();
        assert_eq!(error.to_string(), "option `--cg-mem` needs `--cg`");
    }
}
