//! The steps from a call of the stand-in to the execution of isolate.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::choice::{ImageChoice, choose, may_request_image};
use super::guardian::{GuardedCall, Guardian};
use super::image_home::{ImageHome, stored_image};
use super::program::{find_image, find_program};
use super::real_isolate::RealIsolate;
use super::rewrite::CallRewrite;
use super::stored::known_mountpoint;
use super::supervisor::{SplitSide, SupervisedChild, split};
use super::syslog::{SYSLOG_SOCKET, log_note};
use super::trusted::{require_trusted_directories, require_trusted_path};
use super::{BoxImages, Caller, HostCommands, Rights, ShimError};
use crate::daemon::{AccountedImage, ControlError, RunAccount};
use crate::os::{NamedLock, Sharing};
use crate::roots::{
    HomesLocation, Injection, InodeWidth, PrivateRoot, Roots, Upper, enter_private_namespace, mount_terminals,
};
use crate::sandbox::BOX;
use crate::sandbox::box_lock::{BoxLock, lock_directory};
use crate::sandbox::box_locks::BoxLocks;
use crate::sandbox::isolate::{
    BoxUsers, DirRule, IsolateCall, IsolateError, IsolateMode, IsolateOption, RuleTarget, box_directory,
    box_root, components,
};
use crate::store::DaemonInfo;

/// How long to wait for another call in the box to end. Its isolate, or a `run`, may be ending.
const BOX_TIMEOUT: Duration = Duration::from_secs(2);

/// The settings of the stand-in.
#[derive(Debug, Clone)]
pub struct ShimSettings {
    /// The store of the images.
    pub store: PathBuf,
    /// The directory of the files of roots.
    pub homes: HomesLocation,
    /// The directory in which roots are mounted.
    pub run_dir: PathBuf,
    /// The real isolate.
    pub isolate: Option<PathBuf>,
    /// The caller's `PATH`, to search for the real isolate; `None` if the caller is not trusted.
    pub search: Option<OsString>,
    /// The registry that the names of images in the mount omit.
    pub default_registry: Option<String>,
    /// The mountpoint of the images. `None`: the mountpoint of the store's daemon.
    pub mountpoint: Option<PathBuf>,
    /// How long the tree image of an image without roots stays mounted; `None` if roots use the mount of the images instead.
    pub tree_idle: Option<Duration>,
    /// Where writes to a root go.
    pub upper: Upper,
    /// The inode numbers of roots.
    pub inodes: InodeWidth,
    /// Whether roots are writable unless the call overrides it.
    pub writable: bool,
    /// The images of boxes whose calls name no image.
    pub images: BoxImages,
    /// Commands that run on the host unless the call itself chooses an image.
    pub host_commands: HostCommands,
    /// Variables whose value in the image overrides that of the caller's `--env`.
    pub env_from_image: Vec<String>,
    /// Whether a root gets names for its user and `localhost`, and a default `HOME`.
    pub inject: bool,
    /// Whether options end at the first other argument, because isolate will see `POSIXLY_CORRECT` in its environment.
    pub in_order: bool,
}

/// Becomes isolate, or with an image, runs isolate in a child process and ends as isolate does. Returns only on failure. The
/// remains of the root are removed before, or by the guardian after isolate has ended.
///
/// With an image, this function may return in both processes. Each then reports its error and ends.
///
/// `name` is the name by which this program was called. The process must have one thread.
pub fn become_isolate(
    caller: &mut Caller,
    settings: &ShimSettings,
    name: &OsStr,
    arguments: &[OsString],
) -> ShimError {
    let Err(error) = try_to_become_isolate(caller, settings, name, arguments);
    error
}

fn try_to_become_isolate(
    caller: &mut Caller,
    settings: &ShimSettings,
    name: &OsStr,
    arguments: &[OsString],
) -> Result<Infallible, ShimError> {
    let real = RealIsolate::find(settings.isolate.as_deref(), caller.rights(), settings.search.as_deref())?;
    let Some(call) = parse(caller, settings, &real, arguments)? else {
        return execute(caller, real.path, name, arguments);
    };
    let Some(request) = image_request(caller, settings, &call)? else {
        await_killed_call(settings, &call);
        return execute(caller, real.path, name, arguments);
    };
    // Also of the supervisor: it forks, and writes the meta file if it fails.
    caller.raise_limits()?;
    match split()? {
        SplitSide::Supervisor(supervisor) => supervisor.end_as_child(|line| {
            // A host without a system log is no failure.
            let _ = caller.as_caller(|| log_note(Path::new(SYSLOG_SOCKET), line));
        }),
        SplitSide::Child(child) => {
            let arguments = make_root(caller, settings, &real, &request, child)?;
            execute(caller, real.path, name, &arguments)
        }
    }
}

/// Returns the meta file of a call; `None` if the call has no meta file or the arguments cannot be parsed.
#[must_use]
pub fn meta_file(arguments: &[OsString], in_order: bool) -> Option<PathBuf> {
    let call = IsolateCall::parse(arguments, None, in_order).ok()?;
    call.value(IsolateOption::Meta).map(PathBuf::from)
}

/// A call that requests an image.
struct ImageRequest<'a> {
    call: &'a IsolateCall,
    /// The image's path below the mountpoint; `None` if the command's path chooses the image.
    name: Option<PathBuf>,
    writable: bool,
}

/// Returns the image that the call requests; `None` if it requests none.
fn image_request<'a>(
    caller: &Caller,
    settings: &ShimSettings,
    call: &'a IsolateCall,
) -> Result<Option<ImageRequest<'a>>, ShimError> {
    if caller.rights() == Rights::SetUid && call.mode == Some(IsolateMode::Run) {
        require_trusted_directories(settings)?;
    }
    let (name, writable) =
        match choose(call, &settings.images, &settings.host_commands, || known_mountpoint(settings))? {
            ImageChoice::Unchanged => return Ok(None),
            ImageChoice::OfCommand => (None, None),
            ImageChoice::Image { name, writable } => (Some(name), writable),
        };
    Ok(Some(ImageRequest { call, name, writable: writable.unwrap_or(settings.writable) }))
}

/// Parses the call. Returns `None` for a malformed call that certainly requests no image: isolate itself reports the error.
fn parse(
    caller: &Caller,
    settings: &ShimSettings,
    real: &RealIsolate,
    arguments: &[OsString],
) -> Result<Option<IsolateCall>, ShimError> {
    let error = match IsolateCall::parse(arguments, None, settings.in_order) {
        Ok(call) => return Ok(Some(call)),
        Err(error) => error,
    };
    let mountpoint = known_mountpoint(settings).unwrap_or_default();
    if !may_request_image(arguments, &settings.images, mountpoint.as_deref()) {
        return Ok(None);
    }
    if let IsolateError::AmbiguousOption(_) = error {
        // An abbreviation that is ambiguous over all versions may be unambiguous in the installed one.
        let version = real.version(&settings.run_dir, caller)?;
        return Ok(Some(IsolateCall::parse(arguments, Some(version), settings.in_order)?));
    }
    Err(ShimError::Arguments(error))
}

/// Makes the root in a mount namespace of this process. Returns the arguments with which isolate uses it.
fn make_root(
    caller: &Caller,
    settings: &ShimSettings,
    real: &RealIsolate,
    request: &ImageRequest<'_>,
    child: SupervisedChild,
) -> Result<Vec<OsString>, ShimError> {
    let version = real.version(&settings.run_dir, caller)?;
    let rewrite = CallRewrite::new(request.call, version)?;
    let box_lock = lock_box(caller, real, request.call)?;
    let images = ImageHome::find(settings)?;
    let injection = settings.inject.then(|| injection(caller, request.call, real, &settings.run_dir));
    let open_account = |daemon: &DaemonInfo| {
        RunAccount::open(&daemon.socket, &daemon.mountpoint).map_err(|error| match error {
            ControlError::Deadline { .. } => ShimError::MountHangs(daemon.mountpoint.clone()),
            error => error.into(),
        })
    };
    let account = images.daemon().map(open_account).transpose()?;
    let guarded = GuardedCall {
        supervisor: child.supervisor(),
        box_lock: box_lock.as_ref().map(|lock| lock.as_fd()),
        mountpoint: images.daemon().map(|daemon| daemon.mountpoint.as_path()),
    };
    let name = request.name.as_deref().map(Path::as_os_str).or(rewrite.program()).unwrap_or_default();
    let mut image = AccountedImage::named(&name.to_string_lossy());
    let call = (request, &rewrite);
    match make_accounted_root(caller, settings, call, &images, injection.as_ref(), guarded, &mut image) {
        Ok(arguments) => {
            if let Some(account) = account {
                child.hand_over(account, image, request.call.box_id())?;
            }
            Ok(arguments)
        }
        // Asking for failed reads would use the mount.
        Err(error @ ShimError::MountHangs(_)) => Err(error),
        Err(error) => {
            let fault = account.and_then(|account| account.failed_reads(std::process::id(), &image));
            Err(fault.map_or(error, ShimError::from))
        }
    }
}

/// Does the steps of [`make_root`] that read the image. Sets `accounted` as soon as the image is known.
fn make_accounted_root(
    caller: &Caller,
    settings: &ShimSettings,
    (request, rewrite): (&ImageRequest<'_>, &CallRewrite),
    images: &ImageHome,
    injection: Option<&Injection>,
    guarded: GuardedCall<'_>,
    accounted: &mut AccountedImage,
) -> Result<Vec<OsString>, ShimError> {
    let additional = without_missing(caller, rewrite.additional_rules())?;
    let roots = Roots::open(&settings.homes, &settings.run_dir)?.with_inodes(settings.inodes);
    // Mount points for the caller's rules are made in the upper.
    let upper = if request.writable || !additional.is_empty() { settings.upper } else { Upper::None };
    let lease = roots.lease(&upper)?;
    // The last step before the guardian, which removes the locked file.
    let run_lock = lock_run(settings, request.call)?;
    let (guardian, lease) = Guardian::start(caller, &roots, lease, run_lock, guarded)?;
    enter_private_namespace()?;
    mount_terminals()?;
    if let Some(mountpoint) = guarded.mountpoint {
        guardian.await_mount(mountpoint)?;
    }
    let (named, command) = find_image(images, request.name.as_deref(), rewrite.program())?;
    // The guardian detaches itself from the caller meanwhile.
    let name = named.name.clone();
    let (store, image) = stored_image(settings, &name)?;
    *accounted = AccountedImage::new(&name, &image);
    let lower = images.lower(settings, &store, &image, named)?;
    let home = (settings.inject && !inherits_home(request.call)).then_some(BOX);
    let environment = rewrite.environment(&image.config().env, &settings.env_from_image, home);
    let root = lease.mount(&lower, injection)?;
    guardian.watch(&root);
    let additional = resolve_rules(&root, rewrite, additional)?;
    let program = find_program(&root, rewrite, &additional, &environment, &name, command)?;
    let arguments =
        rewrite.arguments(root.path(), request.writable, &additional, &environment, program.as_deref())?;
    guardian.wait()?;
    // The root stays mounted until isolate's namespace ends. execve(2) closes its descriptor.
    let _ = ManuallyDrop::new(root);
    Ok(arguments)
}

/// Locks the directory of the call's box until the root is removed, so that no `run` takes the box, or removes it. Calls of the
/// stand-in share the lock. Returns `None` for a box that does not exist, which isolate reports.
fn lock_box(caller: &Caller, real: &RealIsolate, call: &IsolateCall) -> Result<Option<OwnedFd>, ShimError> {
    let Some(id) = call.box_id() else { return Ok(None) };
    let root = box_root(&real.path);
    if caller.rights() == Rights::SetUid {
        require_trusted_path(&root)?;
    }
    match lock_directory(&box_directory(&root, id), Sharing::Shared, BOX_TIMEOUT)? {
        NamedLock::Locked(lock) => Ok(Some(lock)),
        NamedLock::Missing => Ok(None),
        NamedLock::Busy => Err(ShimError::BoxInUse(id)),
    }
}

/// Locks the call's box until isolate has ended.
///
/// A caller that kills the supervisor with SIGKILL may call again before the guardian has killed isolate. isolate 2 would then
/// refuse the call, and isolate 1 would run two programs in the box. Returns `None` for a call whose box isolate rejects.
fn lock_run(settings: &ShimSettings, call: &IsolateCall) -> Result<Option<BoxLock>, ShimError> {
    let Some(id) = call.box_id() else { return Ok(None) };
    let lock = BoxLocks::new(&settings.run_dir).lock(id, true, BOX_TIMEOUT);
    let lock = lock.map_err(|error| ShimError::BoxLock(Box::new(error)))?;
    lock.map(Some).ok_or(ShimError::BoxInUse(id))
}

/// Waits as [`lock_run`] does before isolate makes or cleans a box, or runs a program of the host in it. isolate itself reports
/// a box that is still in use then.
fn await_killed_call(settings: &ShimSettings, call: &IsolateCall) {
    if let Some(id) = call.mode.and_then(|_| call.box_id()) {
        // Without a file, no call is in the box. A file that cannot be used says nothing about the box.
        drop(BoxLocks::new(&settings.run_dir).lock(id, false, BOX_TIMEOUT));
    }
}

/// Returns the rules without those that have the flag `maybe` and whose directory does not exist for the caller.
fn without_missing(caller: &Caller, rules: &[DirRule]) -> Result<Vec<DirRule>, ShimError> {
    let is_missing = |rule: &DirRule| match &rule.target {
        // A relative path begins at the box, which only isolate knows.
        RuleTarget::Directory(outside) => {
            rule.flags.maybe && Path::new(outside).is_absolute() && !Path::new(outside).is_dir()
        }
        _ => false,
    };
    if !rules.iter().any(|rule| rule.flags.maybe) {
        return Ok(rules.to_vec());
    }
    caller.as_caller(|| rules.iter().filter(|rule| !is_missing(rule)).cloned().collect())
}

/// Whether the program gets the caller's `HOME` with all other variables.
fn inherits_home(call: &IsolateCall) -> bool {
    call.has(IsolateOption::FullEnv) && std::env::var_os("HOME").is_some()
}

/// Returns what the root has in addition to the image.
fn injection(caller: &Caller, call: &IsolateCall, real: &RealIsolate, run_dir: &Path) -> Injection {
    let hostname = rustix::system::uname();
    let mut injection = Injection::default().with_hostname(&hostname.nodename().to_string_lossy());
    let user =
        call.box_id().and_then(|id| BoxUsers::cached(&real.path, run_dir, caller.identity())?.of_box(id));
    if let Some((uid, gid)) = user {
        injection = injection.with_user(uid, gid);
    }
    if call.has(IsolateOption::ShareNet) {
        injection = injection.with_host_network();
    }
    injection
}

/// Makes mount points for the caller's rules, and returns the rules with the resolved paths of their mount points.
fn resolve_rules(
    root: &PrivateRoot,
    rewrite: &CallRewrite,
    rules: Vec<DirRule>,
) -> Result<Vec<DirRule>, ShimError> {
    let inside = |rule: &DirRule| components(&rule.inside).collect::<PathBuf>();
    // The mounts so far, each with the path in its rule and the resolved path.
    let mut mounted: Vec<(PathBuf, PathBuf)> =
        rewrite.standard_rules(root.path()).iter().map(|rule| (inside(rule), inside(rule))).collect();
    let mut resolved_rules = Vec::new();
    for rule in rules {
        let path = inside(&rule);
        let above = mounted.iter().filter(|(mount, _)| path.starts_with(mount));
        let above = above.max_by_key(|(mount, _)| mount.components().count());
        let resolved: PathBuf = match above {
            // The mount point is in a directory that another rule binds. As with isolate alone, it must exist there.
            Some((mount, at)) => at.join(path.strip_prefix(mount).unwrap_or(&path)),
            None => {
                let resolved: PathBuf = components(root.directory(&path)?.as_os_str()).collect();
                // Links of the image lead the path into a directory that isolate will have mounted by then: `/proc` with its
                // magic links, or a directory of the host. There the path would have another meaning, and isolate would make
                // missing directories.
                if let Some((mount, _)) = mounted.iter().find(|(_, at)| resolved.starts_with(at)) {
                    return Err(ShimError::Covered { path, mount: mount.clone() });
                }
                resolved
            }
        };
        if resolved.as_os_str().is_empty() {
            return Err(ShimError::OverRoot(path));
        }
        resolved_rules.push(DirRule { inside: Path::new(".").join(&resolved).into(), ..rule });
        mounted.push((path, resolved));
    }
    Ok(resolved_rules)
}

/// Drops privileges and executes isolate.
fn execute(
    caller: &mut Caller,
    path: PathBuf,
    name: &OsStr,
    arguments: &[OsString],
) -> Result<Infallible, ShimError> {
    caller.drop_privileges()?;
    let source = Command::new(&path).arg0(name).args(arguments).exec();
    Err(ShimError::Execute { path, source })
}
