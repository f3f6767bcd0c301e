//! One run, from the image to the verdict: box, root, processes, files, and all of it away again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Gid, MemfdFlags, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::boxes::{Asked, BoxLock, BoxRecord};
use super::bwrap::{self, BwrapRun};
use super::command::{self, MountContent, ResolvedPath, RootView};
use super::copy::{copy_in, copy_out, make_directories};
use super::error::{At as _, SandboxError};
use super::first_process::{self, SandboxCommand};
use super::installed::{clean_up, init};
use super::isolate::{DirRule, IsolateOption, RuleTarget};
use super::process::{HeldSignals, SavedLocation};
use super::spec::{self, IsolateRun, Variable};
use super::verdict::{RunReport, by_bubblewrap, by_isolate};
use super::{BoxRange, Boxes, RunSpec, Sandbox, User};
use crate::image::ImageConfig;
use crate::roots::{Lower, PrivateRoot, RootLease, Roots, Upper, enter_private_namespace};

/// Where the box is in the root.
const BOX: &str = "/box";

/// A run and all that it needs.
#[derive(Debug)]
pub struct RunRequest<'a> {
    /// What is asked for.
    pub spec: &'a RunSpec,
    /// What the image says of its program.
    pub config: &'a ImageConfig,
    /// The image, as an engine shows it.
    pub image: &'a Lower,
    /// Where roots and their uppers are.
    pub roots: &'a Roots,
    /// Where boxes are.
    pub boxes: &'a Boxes,
    /// The boxes to choose from.
    pub range: BoxRange,
    /// What isolates.
    pub sandbox: &'a Sandbox,
    /// Who the program is under bubblewrap, unless the image says.
    pub user: User,
}

/// What came of a run that took place.
#[derive(Debug)]
pub struct FinishedRun {
    /// How the program ended.
    pub report: RunReport,
    /// What went wrong afterwards: files that could not be copied out, something that could not be removed.
    pub afterwards: Vec<SandboxError>,
}

/// Runs a command in a fresh root of an image, and removes the root.
///
/// The process has no other thread, and no child that this would reap. Signals that end a process are held back
/// from here on: one that arrives ends the program, and the rest takes its way.
///
/// # Errors
/// Whatever kept the program from being started, and failures of the sandbox itself. Nothing is left of the run then.
pub fn run(job: &RunRequest<'_>) -> Result<FinishedRun, SandboxError> {
    if !rustix::process::geteuid().is_root() {
        return Err(SandboxError::NotRoot);
    }
    match job.sandbox {
        Sandbox::Isolate { version, .. } => job.spec.check(*version)?,
        Sandbox::Bwrap { .. } => bwrap::check(job.spec)?,
    }
    let words = command::words(job.config, job.spec.entrypoint.as_deref(), &job.spec.command);
    if words.is_empty() {
        return Err(SandboxError::NoCommand);
    }
    if words.iter().any(|word| word.as_encoded_bytes().contains(&0)) {
        return Err(SandboxError::ImageConfig("its command has a zero byte in it"));
    }
    let variables = spec::environment(job.config, &job.spec.env)?;
    let signals = HeldSignals::hold().map_err(|error| SandboxError::step("signals", error))?;
    sweep(job)?;
    let lease = job.roots.lease_for(&job.spec.upper, job.image)?;
    let user = job.user_of_image();
    let (lock, directory) = match job.take_box(&lease, user) {
        Ok(taken) => taken,
        Err(error) => {
            lease.release()?;
            return Err(error);
        }
    };
    let run = Run { job, words, variables, signals, user, id: lock.id(), directory };
    let ran = run.all(&lease, job.image);
    let mut afterwards = Vec::new();
    afterwards.extend(lease.release().err().map(SandboxError::from));
    afterwards.extend(job.give_back(lock).err());
    match ran {
        Ok((report, mut copies)) => {
            copies.append(&mut afterwards);
            Ok(FinishedRun { report, afterwards: copies })
        }
        Err(error) => {
            for left in afterwards {
                tracing::warn!("what is left of the run stays for a sweep: {left}");
            }
            Err(error)
        }
    }
}

/// Removes what killed runs have left. That a root cannot be removed is no matter of this run.
fn sweep(job: &RunRequest<'_>) -> Result<(), SandboxError> {
    // Boxes first: they tell which processes may have roots still.
    job.boxes.sweep(Duration::ZERO)?;
    for (id, error) in job.roots.sweep()?.failed {
        tracing::warn!("root {id} is dead and cannot be removed: {error}");
    }
    Ok(())
}

impl RunRequest<'_> {
    /// Who the program is: under isolate its box's user, which is not known here.
    fn user_of_image(&self) -> User {
        const SOMEBODY: User = User { uid: u32::MAX, gid: u32::MAX };
        let wanted = &self.config.user;
        match (self.sandbox, wanted.parse::<User>()) {
            (Sandbox::Isolate { .. }, _) => {
                if !wanted.is_empty() {
                    tracing::info!(
                        "the image's user `{wanted}` is left out: isolate has a user for each box"
                    );
                }
                SOMEBODY
            }
            (Sandbox::Bwrap { .. }, Ok(user)) => user,
            (Sandbox::Bwrap { .. }, Err(why)) => {
                if !wanted.is_empty() {
                    tracing::info!("the image's user `{wanted}` is left out: {why}; it is {}", self.user);
                }
                self.user
            }
        }
    }

    fn take_box(&self, lease: &RootLease, user: User) -> Result<(BoxLock, PathBuf), SandboxError> {
        let root = lease.source();
        match self.sandbox {
            Sandbox::Isolate { program, .. } => {
                let record = BoxRecord::Isolate { program: program.clone(), cg: self.spec.cg(), root };
                let options = &self.spec.options;
                self.boxes.take(self.spec.box_id, self.range, &record, |lock| {
                    init(program, &spec::init_arguments(lock.id(), options), lock.file())
                })
            }
            Sandbox::Bwrap { .. } => self.boxes.take(None, self.range, &BoxRecord::Bwrap { root }, |lock| {
                let directory = self.boxes.make_directory(lock.id())?;
                let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
                rustix::fs::chown(&directory, Some(uid), Some(gid)).at("chown", &directory)?;
                Ok(Asked::Ready(directory))
            }),
        }
    }

    fn give_back(&self, lock: BoxLock) -> Result<(), SandboxError> {
        match self.sandbox {
            // What cannot be cleaned keeps its record, for a sweep.
            Sandbox::Isolate { program, .. } => clean_up(program, lock.id(), self.spec.cg(), lock.file())?,
            Sandbox::Bwrap { .. } => self.boxes.remove_directory(lock.id())?,
        }
        lock.release()
    }
}

/// A run that has its box.
struct Run<'a> {
    job: &'a RunRequest<'a>,
    words: Vec<OsString>,
    variables: Vec<Variable>,
    signals: HeldSignals,
    user: User,
    id: u32,
    /// Of the box, on the host.
    directory: PathBuf,
}

/// A program that is to be started, and where it tells how it went.
struct Started {
    program: SandboxCommand,
    tells: OwnedFd,
}

impl Run<'_> {
    /// Who has what is put into the box; isolate gives it to its user itself.
    fn owner(&self) -> Option<(Uid, Gid)> {
        match self.job.sandbox {
            Sandbox::Isolate { .. } => None,
            Sandbox::Bwrap { .. } => Some((Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid))),
        }
    }

    /// Files in, the program, files out.
    fn all(&self, lease: &RootLease, image: &Lower) -> Result<(RunReport, Vec<SandboxError>), SandboxError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let the_box = rustix::fs::open(&self.directory, flags, Mode::empty()).at("open", &self.directory)?;
        for copy in &self.job.spec.copy_in {
            copy_in(the_box.as_fd(), copy, self.owner())?;
        }
        let report = self.program(lease, image, &the_box)?;
        let copied = self.job.spec.copy_out.iter().filter_map(|copy| copy_out(the_box.as_fd(), copy).err());
        Ok((report, copied.collect()))
    }

    /// Makes the root in a mount namespace and the program's first process in it, and waits for the end of both.
    fn program(
        &self,
        lease: &RootLease,
        image: &Lower,
        the_box: &OwnedFd,
    ) -> Result<RunReport, SandboxError> {
        let here = SavedLocation::here().map_err(|error| SandboxError::step("mount namespace", error))?;
        enter_private_namespace()?;
        // From here on this process is elsewhere, and comes back whatever happens.
        let started = self.start(lease, image, the_box);
        here.back().map_err(|error| SandboxError::step("return to the mount namespace", error))?;
        let (first, tells) = started?;
        let ended = first.wait(&self.signals)?;
        let mut told = Vec::new();
        let mut tells = File::from(tells);
        tells
            .rewind()
            .and_then(|()| tells.read_to_end(&mut told))
            .map_err(|error| SandboxError::step("verdict", error))?;
        let report = match self.job.sandbox {
            Sandbox::Isolate { .. } => by_isolate(&ended, told)?,
            Sandbox::Bwrap { .. } => by_bubblewrap(&ended, &told)?,
        };
        Ok(RunReport { box_id: self.id, ..report })
    }

    fn start(
        &self,
        lease: &RootLease,
        image: &Lower,
        the_box: &OwnedFd,
    ) -> Result<(first_process::FirstProcess, OwnedFd), SandboxError> {
        let root = lease.mount(image)?;
        let Started { program, tells } = self.prepare(&root, the_box)?;
        if let Some(signal) =
            self.signals.end_wanted().map_err(|error| SandboxError::step("signals", error))?
        {
            return Err(SandboxError::Interrupted(signal.as_raw()));
        }
        let first = first_process::start(&program, &self.signals)?;
        Ok((first, tells))
    }

    /// Looks for the program in the root, and says how it is to be started.
    fn prepare(&self, root: &PrivateRoot, the_box: &OwnedFd) -> Result<Started, SandboxError> {
        let spec = self.job.spec;
        let duplicate =
            |fd: &OwnedFd| fd.try_clone().map_err(|error| SandboxError::step("descriptor", error));
        let top = root.fd().try_clone_to_owned().map_err(|error| SandboxError::step("descriptor", error))?;
        let mut view = RootView::new(top);
        for place in ["/dev", "/proc"] {
            view.mount(Path::new(place), MountContent::Unknown, false);
        }
        view.mount(Path::new("/tmp"), MountContent::Empty, true);
        view.mount(Path::new(BOX), MountContent::Directory(duplicate(the_box)?), true);
        let mut dirs = Vec::new();
        for rule in &spec.dirs {
            if let Some(at) = self.place(root, rule, &mut view)? {
                dirs.push((rule.clone(), at));
            }
        }
        let directory = self.directory(root, &view, the_box)?;
        let caller = || std::env::vars_os();
        let environment = spec::apply(&self.variables, spec.has(IsolateOption::FullEnv), caller());
        let path =
            environment.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(""), |(_, path)| path);
        let mut words = self.words.clone();
        let program = view
            .program(&words[0], path, &directory, self.user)
            .map_err(|fault| SandboxError::Program { program: words[0].clone(), fault })?;
        words[0] = program.into_os_string();
        let tells = rustix::fs::memfd_create("verdict", MemfdFlags::CLOEXEC)
            .map_err(|errno| SandboxError::step("memfd_create", errno))?;
        let passed = duplicate(&tells)?;
        let program = match self.job.sandbox {
            Sandbox::Isolate { program, version } => {
                let dirs: Vec<DirRule> = dirs.iter().map(|(rule, at)| spec::respelled(rule, at)).collect();
                let meta = PathBuf::from(format!("/proc/self/fd/{}", passed.as_raw_fd()));
                let run = IsolateRun {
                    version: *version,
                    id: self.id,
                    root: root.path(),
                    writable: spec.upper != Upper::None,
                    dirs: &dirs,
                    options: &spec.options,
                    variables: &self.variables,
                    chdir: &directory,
                    meta: &meta,
                    words: &words,
                };
                let arguments = run.arguments()?;
                let stdout_to_stderr = spec.stdout_to_stderr;
                SandboxCommand::new(program, arguments, passed).with_stdout_to_stderr(stdout_to_stderr)
            }
            Sandbox::Bwrap { program } => {
                bind(&self.directory, root.path(), Path::new(BOX), true, false)?;
                for (rule, at) in &dirs {
                    if let RuleTarget::Directory(outside) = &rule.target {
                        if let Some(over) = view.covered_by(at) {
                            return Err(SandboxError::Hidden { at: at.clone(), over: over.to_owned() });
                        }
                        bind(Path::new(outside), root.path(), at, rule.flags.rw, rule.flags.noexec)?;
                    }
                }
                let dirs: Vec<(DirRule, &Path)> =
                    dirs.iter().map(|(rule, at)| (rule.clone(), at.as_path())).collect();
                let run = BwrapRun {
                    root: root.path(),
                    dirs: &dirs,
                    share_net: spec.has(IsolateOption::ShareNet),
                    environment: &environment,
                    chdir: &directory,
                    status: passed.as_raw_fd(),
                    words: &words,
                };
                let redirected = |option| {
                    let given = spec.options.iter().rev().find(|given| given.option == option);
                    given.and_then(|given| bwrap::in_box(given.value.as_deref()?)).map(Path::to_owned)
                };
                let arguments = run.arguments();
                SandboxCommand::new(program, arguments, passed)
                    .with_stdout_to_stderr(spec.stdout_to_stderr)
                    .with_user(self.user)
                    .with_redirections(first_process::Redirections {
                        the_box: duplicate(the_box)?,
                        stdin: redirected(IsolateOption::Stdin),
                        stdout: redirected(IsolateOption::Stdout),
                        stderr: redirected(IsolateOption::Stderr),
                        stderr_to_stdout: spec.has(IsolateOption::StderrToStdout),
                    })
            }
        };
        Ok(Started { program, tells })
    }

    /// Makes the place of a rule in the root, and notes what will be there; none where the rule is to be left out.
    fn place(
        &self,
        root: &PrivateRoot,
        rule: &DirRule,
        view: &mut RootView,
    ) -> Result<Option<PathBuf>, SandboxError> {
        let absolute = |inside: PathBuf| Path::new("/").join(inside);
        let what = match &rule.target {
            RuleTarget::Nothing => {
                let at = absolute(PathBuf::from_iter(super::isolate::components(&rule.inside)));
                view.unmount(&at);
                return Ok(Some(at));
            }
            RuleTarget::Directory(outside) if Path::new(outside).is_absolute() => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match rustix::fs::open(Path::new(outside), flags, Mode::empty()) {
                    Ok(directory) => MountContent::Directory(directory),
                    Err(Errno::NOENT | Errno::NOTDIR) if rule.flags.maybe => return Ok(None),
                    Err(errno) => return Err(errno).at("directory", Path::new(outside)),
                }
            }
            RuleTarget::Temporary => MountContent::Empty,
            RuleTarget::Filesystem(kind) if kind == "tmpfs" => MountContent::Empty,
            RuleTarget::Directory(_) | RuleTarget::Filesystem(_) => MountContent::Unknown,
        };
        let at = absolute(root.directory(Path::new(&rule.inside))?);
        let own = rule.target == RuleTarget::Temporary;
        view.mount(&at, what, own);
        Ok(Some(at))
    }

    /// Where the program starts: as the caller says, else the image, where its user gets there.
    fn directory(
        &self,
        root: &PrivateRoot,
        view: &RootView,
        the_box: &OwnedFd,
    ) -> Result<PathBuf, SandboxError> {
        if let Some(directory) = &self.job.spec.chdir {
            let wanted = Path::new(BOX).join(directory);
            // Who may enter it is the sandbox's to say.
            return match view.resolve(&wanted, Path::new("/"), self.user) {
                Ok(ResolvedPath::There { mode, .. }) if !is_directory(mode) => Err(Errno::NOTDIR),
                Ok(_) => Ok(wanted.clone()),
                Err(errno) => Err(errno),
            }
            .at("working directory", &wanted);
        }
        if self.job.config.working_dir.is_empty() {
            return Ok(BOX.into());
        }
        let wanted = Path::new("/").join(&self.job.config.working_dir);
        let left_out = |why: &str| {
            tracing::info!("the image's working directory {} is left out: {why}", wanted.display());
            Ok(BOX.into())
        };
        match view.resolve(&wanted, Path::new("/"), self.user) {
            Ok(ResolvedPath::Unknown) => Ok(wanted),
            Ok(ResolvedPath::There { mode, .. }) if !is_directory(mode) => {
                Err(Errno::NOTDIR).at("working directory", &wanted)
            }
            Ok(ResolvedPath::There { path, open: true, .. }) => Ok(path),
            Ok(ResolvedPath::There { .. }) => left_out("the program's user may not enter it"),
            Err(Errno::NOENT) => match self.make_directory(root, view, the_box, &wanted)? {
                Some(made) => Ok(made),
                None => left_out("it is missing, and cannot be made there"),
            },
            Err(errno) => Err(errno).at("working directory", &wanted),
        }
    }

    /// Makes a directory that is missing, in the root or in the box; none where it would be in something else, or where
    /// the root is read-only.
    fn make_directory(
        &self,
        root: &PrivateRoot,
        view: &RootView,
        the_box: &OwnedFd,
        wanted: &Path,
    ) -> Result<Option<PathBuf>, SandboxError> {
        let plain = wanted.components().all(|part| part != Component::ParentDir);
        let made = match view.mountpoint(wanted) {
            at if plain && at != Path::new("/") => wanted.to_owned(),
            _ if self.job.spec.upper == Upper::None => return Ok(None),
            // Links may lead it to where something will be mounted.
            _ => Path::new("/").join(root.directory(wanted)?),
        };
        match view.mountpoint(&made) {
            at if at == Path::new("/") => Ok(Some(made)),
            at if at == Path::new(BOX) => {
                make_directories(the_box.as_fd(), made.strip_prefix(BOX).unwrap_or(&made), self.owner())?;
                Ok(Some(made))
            }
            _ => Ok(None),
        }
    }
}

fn is_directory(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Directory
}

/// Binds a directory of the host into the root, in the mount namespace of this process.
fn bind(outside: &Path, root: &Path, at: &Path, writable: bool, noexec: bool) -> Result<(), SandboxError> {
    use rustix::mount::MountFlags;
    let target = root.join(at.strip_prefix("/").unwrap_or(at));
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    if noexec {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount_bind(outside, &target).at("bind", outside)?;
    rustix::mount::mount_remount(&target, MountFlags::BIND | flags, c"").at("bind", outside)
}
