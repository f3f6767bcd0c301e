//! The bubblewrap backend of a run.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::mount::MountFlags;

use super::arguments::{BwrapRun, HOSTNAME};
use super::{check, verdict};
use crate::image::ImageConfig;
use crate::os::AtPath as _;
use crate::sandbox::backend::{Backend, BoxIdentity, BoxRequest, PreparedRun};
use crate::sandbox::box_lock::BoxRecord;
use crate::sandbox::error::SandboxError;
use crate::sandbox::first_process::ProgramExit;
use crate::sandbox::isolate::{IsolateOption, RuleFlags, RuleTarget};
use crate::sandbox::sandbox_command::{Redirections, SandboxCommand};
use crate::sandbox::{BOX, RunSpec, User, Verdict};

/// An installed bubblewrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BwrapSandbox {
    program: PathBuf,
}

impl BwrapSandbox {
    pub(in crate::sandbox) fn new(program: PathBuf) -> Self {
        Self { program }
    }
}

impl Backend for BwrapSandbox {
    fn check(&self, spec: &RunSpec) -> Result<(), SandboxError> {
        check::check(spec)
    }

    /// Users of the image are users of the host: bubblewrap maps no IDs. Such a user could reach the program and its box
    /// through `/proc` of the host, so the image decides only if the administrator allows it.
    fn user(&self, image: &ImageConfig, default: User, image_user: bool) -> User {
        let reason = match image.user.parse() {
            _ if image.user.is_empty() => return default,
            Ok(user) if image_user => return user,
            Ok(_) => "`bwrap-image-user` in the table [run] of the configuration is not set",
            Err(reason) => reason,
        };
        tracing::info!("running as {default} and not as the image's user `{}`: {reason}", image.user);
        default
    }

    fn record(&self, _spec: &RunSpec, root: String) -> BoxRecord {
        BoxRecord::Bwrap { root }
    }

    fn make_box(&self, request: &BoxRequest<'_>) -> Result<PathBuf, SandboxError> {
        Ok(request.directories.make(request.id, request.user)?)
    }

    fn remove_box(&self, request: &BoxRequest<'_>) -> Result<(), SandboxError> {
        request.directories.remove(request.id)?;
        Ok(())
    }

    fn box_owner(&self, user: User) -> Option<(Uid, Gid)> {
        Some((user.uid(), user.gid()))
    }

    fn identity(&self, user: User, _id: u32) -> BoxIdentity {
        BoxIdentity { user: Some((user.uid, user.gid)), hostname: HOSTNAME.to_owned() }
    }

    /// Also binds the box and the caller's directories into the root.
    fn command(&self, run: PreparedRun<'_>) -> Result<SandboxCommand, SandboxError> {
        let spec = run.spec;
        let box_flags = RuleFlags { rw: true, ..RuleFlags::default() };
        bind(run.box_path, run.root, Path::new(BOX), box_flags)?;
        for (rule, path) in run.rules {
            if let RuleTarget::Directory(outside) = &rule.target {
                if let Some(mount) = run.view.covered_by(path) {
                    return Err(SandboxError::Hidden { path: path.clone(), mount: mount.to_owned() });
                }
                bind(Path::new(outside), run.root, path, rule.flags)?;
            }
        }
        let arguments = BwrapRun {
            root: run.root,
            rules: run.rules,
            share_net: spec.has(IsolateOption::ShareNet),
            terminal: spec.terminal,
            environment: run.environment,
            chdir: run.directory,
            status_fd: run.output.as_raw_fd(),
            words: run.words,
        }
        .arguments();
        let the_box =
            run.box_fd.try_clone().map_err(|error| SandboxError::step("duplicate a descriptor", error))?;
        let redirected = |option| spec.value(option).and_then(check::path_in_box).map(Path::to_owned);
        let redirections = Redirections {
            the_box,
            stdin: redirected(IsolateOption::Stdin),
            stdout: redirected(IsolateOption::Stdout),
            stderr: redirected(IsolateOption::Stderr),
            stderr_to_stdout: spec.has(IsolateOption::StderrToStdout),
        };
        Ok(SandboxCommand::new(&self.program, arguments, run.output)
            .with_stdout_to_stderr(spec.stdout_to_stderr)
            .with_user(run.user)
            .with_redirections(redirections))
    }

    fn verdict(&self, exit: &ProgramExit, output: Vec<u8>) -> Result<(Verdict, Vec<u8>), SandboxError> {
        let verdict = verdict::from_exit(exit, &output)?;
        let meta = verdict::meta_text(&verdict);
        Ok((verdict, meta.into_bytes()))
    }
}

/// Binds a directory of the host into the root at `inside`, in the mount namespace of this process.
fn bind(outside: &Path, root: &Path, inside: &Path, rule: RuleFlags) -> Result<(), SandboxError> {
    let target = root.join(inside.strip_prefix("/").unwrap_or(inside));
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if !rule.rw {
        flags |= MountFlags::RDONLY;
    }
    if rule.noexec {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount_bind(outside, &target).at("bind", outside)?;
    Ok(rustix::mount::mount_remount(&target, MountFlags::BIND | flags, c"").at("bind", outside)?)
}
