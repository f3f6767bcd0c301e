//! One run, from the image to the verdict: makes box and root, runs the program, and removes both.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::backend::{Backend, BoxIdentity, BoxRequest, PreparedRun};
use super::box_lock::{BoxLock, BoxRecord};
use super::command;
use super::copy::{copy_in, copy_out};
use super::environment::{self, Variable};
use super::error::SandboxError;
use super::first_process::{self, FirstProcess};
use super::isolate::IsolateOption;
use super::prepare::RootPreparation;
use super::process::{HeldSignals, SavedLocation, close_all_on_exec};
use super::sandbox_command::SandboxCommand;
use super::terminal::{RunTerminal, TerminalRelay, is_in_terminal};
use super::verdict::RunReport;
use super::{BoxRange, Boxes, RunSpec, Sandbox, User};
use crate::daemon::{AccountedImage, ReadFault, RunAccount};
use crate::fuse::LazyReads;
use crate::image::ImageConfig;
use crate::os::AtPath as _;
use crate::roots::{
    Injection, Lower, PrivateRoot, RootLease, Roots, enter_private_namespace, mount_terminals,
};

/// Pause between two attempts to take a box.
const BOX_PAUSE: Duration = Duration::from_millis(50);

/// A run, with its image, roots and boxes.
#[derive(Debug)]
pub struct RunRequest<'a> {
    /// The specification of the run by its caller.
    pub spec: &'a RunSpec,
    /// The image's configuration.
    pub config: &'a ImageConfig,
    /// The image, as an engine provides it.
    pub image: &'a Lower,
    /// The account with the daemon that serves the image, opened before the image was looked up; `None` if no daemon does.
    pub account: Option<&'a (RunAccount, AccountedImage)>,
    /// The roots of the store.
    pub roots: &'a Roots,
    /// The boxes of the run directory.
    pub boxes: &'a Boxes,
    /// The boxes to choose from.
    pub range: BoxRange,
    /// The program that isolates.
    pub sandbox: &'a Sandbox,
    /// The user that the program runs as under bubblewrap.
    pub user: User,
    /// Whether the image's user replaces `user`.
    pub image_user: bool,
}

/// The result of a run whose program was started.
#[derive(Debug)]
pub struct FinishedRun {
    /// How the program ended.
    pub report: RunReport,
    /// Failures after the program had ended: files that could not be copied out, or a box or root that could not be removed.
    pub errors: Vec<SandboxError>,
}

/// Runs a command in a new root of an image, and removes the root.
///
/// The process must have no other threads, and no children that must not be reaped. From here on, signals that would end this
/// process end the program instead; the run is cleaned up as usual and fails with [`SandboxError::Interrupted`]. Descriptors
/// from 3 up are marked to be closed in the programs that this process executes.
///
/// # Errors
/// The program cannot be started, a signal ends the run, a file of the image cannot be read, or the sandbox itself fails. All
/// traces of the run are removed first.
pub fn run(request: &RunRequest<'_>) -> Result<FinishedRun, SandboxError> {
    if !rustix::process::geteuid().is_root() {
        return Err(SandboxError::NotRoot);
    }
    let backend = request.sandbox.backend();
    backend.check(request.spec)?;
    if request.spec.terminal && !is_in_terminal() {
        return Err(SandboxError::NoTerminal);
    }
    let words = command::words(request.config, request.spec.entrypoint.as_deref(), &request.spec.command);
    if words.is_empty() {
        return Err(SandboxError::NoCommand);
    }
    if words.iter().any(|word| word.as_encoded_bytes().contains(&0)) {
        return Err(SandboxError::ImageConfig("the command contains a zero byte"));
    }
    let variables =
        environment::variables(request.spec.default_variables(), request.config, &request.spec.env)?;
    close_all_on_exec().map_err(|error| SandboxError::step("close inherited descriptors", error))?;
    let signals = HeldSignals::hold().map_err(|error| SandboxError::step("block signals", error))?;
    sweep(request)?;
    let lease = request.roots.lease_for(&request.spec.upper, request.image)?;
    let user = backend.user(request.config, request.user, request.image_user);
    let record = backend.record(request.spec, lease.source());
    let make = |lock: &BoxLock| backend.make_box(&request.of_box(lock, user));
    let (lock, box_path) = match take_box(request, &signals, &record, make) {
        Ok(taken) => taken,
        Err(error) => {
            lease.release()?;
            return Err(error);
        }
    };
    let run = BoxedRun { request, backend, words, variables, signals, user, box_id: lock.id(), box_path };
    let result = run.run(&lease);
    let mut cleanup_errors = Vec::new();
    cleanup_errors.extend(lease.release().err().map(SandboxError::from));
    // A box that cannot be removed keeps its record, and a later sweep tries again.
    let removed = backend.remove_box(&request.of_box(&lock, user));
    cleanup_errors.extend(removed.and_then(|()| lock.release()).err());
    match result {
        Ok((report, mut errors)) => {
            errors.append(&mut cleanup_errors);
            Ok(FinishedRun { report, errors })
        }
        Err(error) => {
            for error in cleanup_errors {
                tracing::warn!("cannot clean up the run, a later sweep tries again: {error}");
            }
            Err(error)
        }
    }
}

/// Takes a box. If none is free, tries again for as long as the caller wants to wait.
fn take_box(
    request: &RunRequest<'_>,
    signals: &HeldSignals,
    record: &BoxRecord,
    mut make: impl FnMut(&BoxLock) -> Result<PathBuf, SandboxError>,
) -> Result<(BoxLock, PathBuf), SandboxError> {
    let spec = request.spec;
    let start = Instant::now();
    loop {
        let error = match request.boxes.take(spec.box_id, request.range, record, &mut make) {
            Ok(taken) => return Ok(taken),
            Err(error) => error,
        };
        let is_taken = matches!(
            error,
            SandboxError::NoFreeBox { .. } | SandboxError::BoxInUse(_) | SandboxError::BoxTaken { .. }
        );
        if !is_taken || spec.wait.is_none_or(|wait| start.elapsed() >= wait) {
            return Err(error);
        }
        tracing::debug!("waiting for a box: {error}");
        let interrupted = signals.wait_for_end(BOX_PAUSE);
        if let Some(signal) = interrupted.map_err(|error| SandboxError::step("wait for a box", error))? {
            return Err(SandboxError::Interrupted(signal.as_raw()));
        }
    }
}

/// Removes the remains of killed runs. A root that cannot be removed does not fail this run.
fn sweep(request: &RunRequest<'_>) -> Result<(), SandboxError> {
    // Sweep boxes first: cleaning a box waits for the processes of its run, which may keep a root alive.
    request.boxes.sweep(Duration::ZERO)?;
    for (id, error) in request.roots.sweep()?.failed {
        tracing::warn!("cannot remove dead root {id}: {error}");
    }
    Ok(())
}

impl RunRequest<'_> {
    fn of_box<'a>(&'a self, lock: &'a BoxLock, user: User) -> BoxRequest<'a> {
        let directories = self.boxes.directories();
        BoxRequest { id: lock.id(), lock: lock.file(), directories, spec: self.spec, user }
    }
}

/// A run with its box.
struct BoxedRun<'a> {
    request: &'a RunRequest<'a>,
    backend: &'a dyn Backend,
    words: Vec<OsString>,
    variables: Vec<Variable>,
    signals: HeldSignals,
    user: User,
    box_id: u32,
    /// The box's directory on the host.
    box_path: PathBuf,
}

impl BoxedRun<'_> {
    /// Copies files in, runs the program, and copies files out. Returns the report and the failures of copying out.
    fn run(&self, lease: &RootLease) -> Result<(RunReport, Vec<SandboxError>), SandboxError> {
        let spec = self.request.spec;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let box_fd = rustix::fs::open(&self.box_path, flags, Mode::empty()).at("open", &self.box_path)?;
        for copy in &spec.copy_in {
            copy_in(box_fd.as_fd(), copy, self.backend.box_owner(self.user))?;
        }
        let mut report = self.run_program(lease, &box_fd).map_err(|error| self.blame_image(error))?;
        report.reads = self.close_account()?;
        let copied = spec.copy_out.iter().map(|copy| copy_out(box_fd.as_fd(), copy));
        let errors = copied.filter_map(|copied| copied.err().map(SandboxError::from));
        Ok((report, errors.collect()))
    }

    /// Checks that the image could be read throughout the run, and returns what the run has read from the daemon. All processes of the
    /// run have ended.
    fn close_account(&self) -> Result<Option<LazyReads>, ReadFault> {
        match self.request.account {
            Some((account, image)) => account.close(std::process::id(), image),
            None => Ok(Some(LazyReads::default())),
        }
    }

    /// Replaces the error of a run that failed because its image could not be read.
    fn blame_image(&self, error: SandboxError) -> SandboxError {
        match error {
            SandboxError::Interrupted(_) => error,
            error => {
                let account = self.request.account;
                let fault =
                    account.and_then(|(account, image)| account.failed_reads(std::process::id(), image));
                fault.map_or(error, SandboxError::from)
            }
        }
    }

    /// Mounts the root in a private mount namespace, runs the program in it, and waits for its end.
    fn run_program(&self, lease: &RootLease, box_fd: &OwnedFd) -> Result<RunReport, SandboxError> {
        let location =
            SavedLocation::save().map_err(|error| SandboxError::step("open the mount namespace", error))?;
        let identity = self.backend.identity(self.user, self.box_id);
        let failed = |error| SandboxError::step("make a terminal", error);
        enter_private_namespace()?;
        let start = || {
            mount_terminals()?;
            // Among the terminals of the sandbox, where ttyname(3) finds it.
            let open = || RunTerminal::open(identity.user);
            let terminal = self.request.spec.terminal.then(open).transpose().map_err(failed)?;
            let (first_process, output) = self.start(lease, box_fd, &identity, terminal.as_ref())?;
            Ok((first_process, output, terminal))
        };
        let started: Result<_, SandboxError> = start();
        // This process returns to its own namespace even if the start failed.
        location.restore().map_err(|error| SandboxError::step("return to the mount namespace", error))?;
        let (first_process, output, terminal) = started?;
        let relay = terminal.map(RunTerminal::relay).transpose().map_err(failed)?;
        let exit = first_process.wait(&self.signals, &|| relay.iter().for_each(TerminalRelay::resize));
        drop(relay);
        let exit = exit?;
        let mut bytes = Vec::new();
        let mut output = File::from(output);
        output
            .rewind()
            .and_then(|()| output.read_to_end(&mut bytes))
            .map_err(|error| SandboxError::step("read the output of the sandbox", error))?;
        let (verdict, meta) = self.backend.verdict(&exit, bytes)?;
        Ok(RunReport { verdict, meta, box_id: self.box_id, reads: None })
    }

    /// Returns what the root has in addition to the image.
    fn injection(&self, identity: &BoxIdentity) -> Option<Injection> {
        let spec = self.request.spec;
        if spec.no_inject {
            return None;
        }
        let mut injection = Injection::default().with_hostname(&identity.hostname);
        if let Some((uid, gid)) = identity.user {
            injection = injection.with_user(uid, gid);
        }
        if spec.has(IsolateOption::ShareNet) {
            injection = injection.with_host_network();
        }
        Some(injection)
    }

    /// Starts the first process. Returns it, and the file that the sandbox writes its output to.
    fn start(
        &self,
        lease: &RootLease,
        box_fd: &OwnedFd,
        identity: &BoxIdentity,
        terminal: Option<&RunTerminal>,
    ) -> Result<(FirstProcess, OwnedFd), SandboxError> {
        let root = lease.mount(self.request.image, self.injection(identity).as_ref())?;
        let (command, output) = self.prepare(&root, box_fd)?;
        let duplicate = |terminal: &RunTerminal| terminal.inner().try_clone_to_owned();
        let inner = terminal.map(duplicate).transpose();
        let inner = inner.map_err(|error| SandboxError::step("duplicate a descriptor", error))?;
        let command = command.with_terminal(inner);
        let signal = self
            .signals
            .wait_for_end(Duration::ZERO)
            .map_err(|error| SandboxError::step("check for pending signals", error))?;
        if let Some(signal) = signal {
            return Err(SandboxError::Interrupted(signal.as_raw()));
        }
        Ok((first_process::start(&command, &self.signals)?, output))
    }

    /// Finds the program in the root, and returns the command that starts it and the file for the output of the sandbox.
    fn prepare(
        &self,
        root: &PrivateRoot,
        box_fd: &OwnedFd,
    ) -> Result<(SandboxCommand, OwnedFd), SandboxError> {
        let RunRequest { spec, config, .. } = self.request;
        let box_owner = self.backend.box_owner(self.user);
        let preparation = RootPreparation { spec, config, root, box_fd, user: self.user, box_owner };
        let (view, rules) = preparation.view()?;
        let directory = preparation.working_directory(&view)?;
        let full = spec.has(IsolateOption::FullEnv);
        let environment = environment::apply(&self.variables, full, std::env::vars_os());
        let path = environment.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(OsStr::new(""), |(_, path)| path);
        let mut words = self.words.clone();
        let program = view
            .find_program(&words[0], path, &directory, self.user)
            .map_err(|fault| SandboxError::Program { program: words[0].clone(), fault })?;
        words[0] = program.into_os_string();
        let output = rustix::fs::memfd_create("verdict", MemfdFlags::CLOEXEC)
            .map_err(|errno| SandboxError::step("make a file in memory", errno))?;
        let inherited =
            output.try_clone().map_err(|error| SandboxError::step("duplicate a descriptor", error))?;
        let command = self.backend.command(PreparedRun {
            spec,
            box_id: self.box_id,
            box_path: &self.box_path,
            box_fd,
            user: self.user,
            root: root.path(),
            view: &view,
            rules: &rules,
            variables: &self.variables,
            environment: &environment,
            directory: &directory,
            words: &words,
            output: inherited,
        })?;
        Ok((command, output))
    }
}
