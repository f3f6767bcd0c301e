//! What the process does, step by step, until it is isolate.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::guardian::Guardian;
use super::real_isolate::RealIsolate;
use super::rewrite::{CallRewrite, ImageChoice, choose, may_be_for_an_image};
use super::{BoxImages, Caller, ShimError};
use crate::image::ManifestDigest;
use crate::pipeline;
use crate::roots::{Lower, PrivateRoot, Roots, Upper, enter_private_namespace};
use crate::sandbox::DEFAULT_PATH;
use crate::sandbox::User;
use crate::sandbox::isolate::{
    DirRule, IsolateCall, IsolateError, IsolateOption, RuleTarget, components, is_trusted,
};
use crate::sandbox::view::{MountContent, RootView};
use crate::store::Store;

/// What the administrator has set.
#[derive(Debug, Clone)]
pub struct ShimSettings {
    /// The store that the images are in.
    pub store: PathBuf,
    /// Where roots have their files.
    pub homes: PathBuf,
    /// Where roots are mounted.
    pub run_dir: PathBuf,
    /// The real isolate.
    pub isolate: Option<PathBuf>,
    /// Where to search for it otherwise: the `PATH` of a caller who is not to be protected from.
    pub search: Option<OsString>,
    /// Where the images are mounted; where the store's daemon says, if this is not set.
    pub mountpoint: Option<PathBuf>,
    /// What takes the writes.
    pub upper: Upper,
    /// Whether roots can be written to where the call does not say.
    pub writable: bool,
    /// Images of boxes whose calls name none.
    pub images: BoxImages,
    /// Whether options end at the first other argument: `POSIXLY_CORRECT` is in the environment that isolate will see.
    pub in_order: bool,
}

/// Becomes isolate. Returns only where that failed; what had been made is taken away by then, or by the guardian after this
/// process has ended.
///
/// `name` is the program's own name as it was called. The process has one thread.
pub fn become_isolate(
    caller: &mut Caller,
    settings: &ShimSettings,
    name: &OsStr,
    arguments: &[OsString],
) -> ShimError {
    match prepare(caller, settings, arguments) {
        Ok((path, arguments)) => execute(caller, path, name, &arguments),
        Err(error) => error,
    }
}

/// The file that isolate would tell of its failure in, as far as the arguments can be understood.
#[must_use]
pub fn meta_file(arguments: &[OsString], in_order: bool) -> Option<PathBuf> {
    let call = IsolateCall::parse(arguments, None, in_order).ok()?;
    call.value(IsolateOption::Meta).map(PathBuf::from)
}

/// Checks that nobody but root, or who this process acts as, can have written a file that is open.
///
/// # Errors
/// [`ShimError::Untrusted`].
pub fn require_trusted(file: &File, path: &Path) -> Result<(), ShimError> {
    let untrusted = |why| ShimError::Untrusted { path: path.to_owned(), why };
    let metadata = file.metadata().map_err(|_| untrusted("it cannot be examined"))?;
    is_trusted(&metadata).map_err(untrusted)
}

/// The program to execute, and its arguments.
fn prepare(
    caller: &mut Caller,
    settings: &ShimSettings,
    arguments: &[OsString],
) -> Result<(PathBuf, Vec<OsString>), ShimError> {
    let real = RealIsolate::find(settings.isolate.as_deref(), caller.rights(), settings.search.as_deref())?;
    let Some(call) = read(settings, &real, arguments)? else { return Ok((real.path, arguments.to_vec())) };
    match choose(&call, &settings.images, || mountpoint(settings))? {
        ImageChoice::Untouched => Ok((real.path, arguments.to_vec())),
        ImageChoice::Image { name, writable } => {
            let writable = writable.unwrap_or(settings.writable);
            let arguments = in_image(caller, settings, &real, &call, &name, writable)?;
            Ok((real.path, arguments))
        }
    }
}

/// Reads the call; `None` where it is isolate's to complain about.
fn read(
    settings: &ShimSettings,
    real: &RealIsolate,
    arguments: &[OsString],
) -> Result<Option<IsolateCall>, ShimError> {
    let error = match IsolateCall::parse(arguments, None, settings.in_order) {
        Ok(call) => return Ok(Some(call)),
        Err(error) => error,
    };
    let mountpoint = mountpoint(settings).unwrap_or_default();
    if !may_be_for_an_image(arguments, &settings.images, mountpoint.as_deref()) {
        return Ok(None);
    }
    if let IsolateError::AmbiguousOption(_) = error {
        // Among the names of all versions, it may be.
        let version = real.version(&settings.run_dir)?;
        return Ok(Some(IsolateCall::parse(arguments, Some(version), settings.in_order)?));
    }
    Err(ShimError::Arguments(error))
}

/// Where images are mounted, if they are.
fn mountpoint(settings: &ShimSettings) -> Result<Option<PathBuf>, ShimError> {
    if let Some(path) = &settings.mountpoint {
        return Ok(Some(path.clone()));
    }
    if !Store::exists(&settings.store)? {
        return Ok(None);
    }
    Ok(Store::open(&settings.store)?.running_daemon()?.map(|daemon| daemon.mountpoint))
}

/// Makes the root, in a mount namespace of this process, and the arguments that have isolate use it.
fn in_image(
    caller: &mut Caller,
    settings: &ShimSettings,
    real: &RealIsolate,
    call: &IsolateCall,
    name: &Path,
    writable: bool,
) -> Result<Vec<OsString>, ShimError> {
    caller.prepare()?;
    let version = real.version(&settings.run_dir)?;
    let plan = CallRewrite::new(call, version)?;
    let further = existing(caller, plan.further())?;
    let mountpoint = mountpoint(settings)?.ok_or_else(|| ShimError::NoDaemon(settings.store.clone()))?;
    // All that is likely to go wrong comes before anything is made.
    let lower = Lower::in_mount(&mountpoint, name)?;
    let roots = Roots::open(&settings.homes, &settings.run_dir)?;
    // Mount points are made in the upper.
    let upper = if writable || !further.is_empty() { settings.upper } else { Upper::None };
    let (guardian, lease) = Guardian::start(&roots, roots.lease(&upper)?)?;
    // Meanwhile the guardian settles.
    let environment = environment(settings, &lower)?;
    enter_private_namespace()?;
    let root = lease.mount(&lower)?;
    guardian.watch(&root)?;
    let further = place(&root, &plan, further)?;
    let program = program(&root, &plan, &further, &environment);
    let arguments = plan.arguments(root.path(), writable, &further, &environment, program.as_deref())?;
    guardian.wait()?;
    // Closed by exec, and by an end of this process; the lease is the guardian's.
    let _ = ManuallyDrop::new(root);
    Ok(arguments)
}

/// The rules without those whose outside the caller does not have, and which are to be left out then.
fn existing(caller: &Caller, rules: &[DirRule]) -> Result<Vec<DirRule>, ShimError> {
    let left_out = |rule: &DirRule| match &rule.target {
        // What is relative is so to the box, which only isolate knows.
        RuleTarget::Directory(outside) => {
            rule.flags.maybe && Path::new(outside).is_absolute() && !Path::new(outside).is_dir()
        }
        _ => false,
    };
    if !rules.iter().any(|rule| rule.flags.maybe) {
        return Ok(rules.to_vec());
    }
    caller.acting(|| rules.iter().filter(|rule| !left_out(rule)).cloned().collect())
}

/// The `NAME=VALUE` pairs of the image.
fn environment(settings: &ShimSettings, image: &Lower) -> Result<Vec<String>, ShimError> {
    let name = image.resolved_name();
    let digest = name.rsplit_once('@').and_then(|(_, digest)| digest.parse::<ManifestDigest>().ok());
    let digest = digest.ok_or_else(|| ShimError::NotAnImage(name.into()))?;
    let store = Store::open(&settings.store)?;
    let image = pipeline::read_image(&store, &digest)
        .map_err(|source| ShimError::Config { image: name.to_owned(), source })?;
    Ok(image.config().env.clone())
}

/// Makes mount points for the caller's rules, and gives the rules with the places that those are at.
fn place(root: &PrivateRoot, plan: &CallRewrite, rules: Vec<DirRule>) -> Result<Vec<DirRule>, ShimError> {
    let inside = |rule: &DirRule| components(&rule.inside).collect::<PathBuf>();
    // What is mounted so far: the places as the rules name them, and where they are.
    let mut mounted: Vec<(PathBuf, PathBuf)> =
        plan.standard(root.path()).iter().map(|rule| (inside(rule), inside(rule))).collect();
    let mut placed = Vec::new();
    for rule in rules {
        let wanted = inside(&rule);
        let above = mounted.iter().filter(|(named, _)| wanted.starts_with(named));
        let above = above.max_by_key(|(named, _)| named.components().count());
        let found: PathBuf = match above {
            // The mount point is in what another rule binds there: as with isolate alone, it has to be there already.
            Some((named, at)) => at.join(wanted.strip_prefix(named).unwrap_or(&wanted)),
            None => {
                let found: PathBuf = components(root.directory(&wanted)?.as_os_str()).collect();
                // A link of the image leads to where isolate will have mounted something by then, `/proc` with its magic
                // links or a directory of the host: the path would mean something else, and isolate makes what is missing.
                if let Some((named, _)) = mounted.iter().find(|(_, at)| found.starts_with(at)) {
                    return Err(ShimError::Covered(wanted, named.clone()));
                }
                found
            }
        };
        if found.as_os_str().is_empty() {
            return Err(ShimError::OverRoot(wanted));
        }
        placed.push(DirRule { inside: Path::new(".").join(&found).into(), ..rule });
        mounted.push((wanted, found));
    }
    Ok(placed)
}

/// The file of the root that the command's first word stands for, where that is searched for in `PATH`.
///
/// None where there is none: isolate then says so of the program.
fn program(
    root: &PrivateRoot,
    plan: &CallRewrite,
    further: &[DirRule],
    environment: &[String],
) -> Option<PathBuf> {
    let word = plan.program().filter(|word| !word.is_empty() && !word.as_encoded_bytes().contains(&b'/'))?;
    let mut view = RootView::new(root.fd().try_clone_to_owned().ok()?);
    for rule in plan.standard(root.path()).iter().chain(further) {
        let at: PathBuf = std::iter::once(OsStr::new("/")).chain(components(&rule.inside)).collect();
        view.mount(&at, MountContent::Unknown, false);
    }
    let path = plan.search_path(environment).unwrap_or_else(|| DEFAULT_PATH.into());
    // The box's user is known to isolate alone, and is nobody in any image.
    let user = User { uid: u32::MAX - 1, gid: u32::MAX - 1 };
    view.find_program(word, &path, Path::new("/box"), user).ok()
}

/// Becomes the caller, then isolate.
fn execute(caller: &mut Caller, path: PathBuf, name: &OsStr, arguments: &[OsString]) -> ShimError {
    if let Err(error) = caller.leave_privileges() {
        return error;
    }
    let source = Command::new(&path).arg0(name).args(arguments).exec();
    ShimError::Execute { path, source }
}
