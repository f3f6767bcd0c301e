//! `isolate-shim`, and the program under the name `isolate`: the stand-in for isolate.
//!
//! Called as `isolate`, this program accepts isolate's command line and takes its settings only from the configuration file. A
//! set-uid program acts only as the stand-in for isolate.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::config::Config;
use super::engine::EngineChoice;
use super::error::EXIT_FAILURE;
use super::output::plain;
use super::{Context, DEFAULT_RUN_DIR, DEFAULT_STORE};
use crate::roots::HomesLocation;
use crate::sandbox::isolate::write_failure;
use crate::sandbox::shim::{
    Caller, Rights, SYSLOG_SOCKET, ShimError, ShimSettings, become_isolate, call_subject, log_failure,
    meta_file,
};

/// The name under which the program is a stand-in for isolate.
const NAME: &str = "isolate";

const EXAMPLES: &str = "\
Examples:
  Run a command in an image, in a box that was made with `isolate --init`:
    rcx-imagefs isolate-shim --box-id=7 --env=RCX_IMAGEFS_IMAGE=python:3.12 --run -- /usr/bin/env";

/// Become isolate, in the root of an image if the call requests an image
///
/// A stand-in for workers that call isolate themselves. It accepts isolate's arguments. A call requests an image if a directory
/// rule binds an image to the root of the box (--dir=.=/images/NAME@DIGEST), if it has --env=RCX_IMAGEFS_IMAGE=REF, or if the
/// table [isolate.images] of the configuration has an image for the box. All other calls go to the real isolate unchanged. The
/// program does the same when it is called as `isolate`. To run a command without a worker, use `run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_long_help = EXAMPLES)]
pub(super) struct ShimArgs {
    /// Arguments of isolate
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the subcommand `isolate-shim` with this program's own options.
pub(super) fn run(context: &Context, args: &ShimArgs) -> anyhow::Result<()> {
    let mut caller = Caller::of_this_process();
    let settings =
        settings(&context.config, context.store.clone(), context.run_dir.clone(), caller.rights())?;
    let error = become_isolate(&mut caller, &settings, OsStr::new(NAME), &args.arguments);
    let error = anyhow::Error::from(error);
    report_failure(&mut caller, &args.arguments, Some(&settings), &error);
    Err(error)
}

/// Becomes isolate if the program is called by that name or is set-uid; otherwise returns `None`.
pub(super) fn stand_in() -> Option<ExitCode> {
    let caller = Caller::of_this_process();
    let name = std::env::args_os().next().unwrap_or_default();
    let is_isolate = Path::new(&name).file_name() == Some(OsStr::new(NAME));
    (is_isolate || caller.rights() == Rights::SetUid).then(|| become_or_report(caller, is_isolate))
}

/// Becomes isolate, whatever the name of the program. Returns only on failure.
#[must_use]
pub fn stand_in_for_isolate() -> ExitCode {
    become_or_report(Caller::of_this_process(), true)
}

fn become_or_report(mut caller: Caller, is_isolate: bool) -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // The message of a panic depends on the environment, which is not trusted.
    std::panic::set_hook(Box::new(|_| ()));
    let arguments: Vec<OsString> = arguments.collect();
    let mut settings = None;
    let attempt = AssertUnwindSafe(|| {
        if is_isolate {
            become_isolate_by_configuration(&mut caller, &mut settings, &name, &arguments)
        } else {
            anyhow::anyhow!(
                "a set-uid rcx-imagefs only stands in for isolate, and must be called as `{NAME}`"
            )
        }
    });
    let error = std::panic::catch_unwind(attempt)
        .unwrap_or_else(|_| anyhow::anyhow!("internal error of rcx-imagefs"));
    let message = report_failure(&mut caller, &arguments, settings.as_ref(), &error);
    eprintln!("error: {message}");
    ExitCode::from(EXIT_FAILURE)
}

/// Becomes isolate, with settings from the configuration file. Returns only on failure; `known` then has the settings, if they
/// could be read.
fn become_isolate_by_configuration(
    caller: &mut Caller,
    known: &mut Option<ShimSettings>,
    name: &OsStr,
    arguments: &[OsString],
) -> anyhow::Error {
    let settings = match caller.rights() {
        Rights::SetUid => Config::load_trusted().and_then(|config| {
            let (store, run_dir) = directories(&config, |_| None);
            settings(&config, store, run_dir, Rights::SetUid)
        }),
        rights => Config::load(None).and_then(|config| {
            let (store, run_dir) = directories(&config, |variable| std::env::var_os(variable));
            settings(&config, store, run_dir, rights)
        }),
    };
    match settings {
        Ok(settings) => become_isolate(caller, known.insert(settings), name, arguments).into(),
        Err(error) => error,
    }
}

/// Returns the store and the run directory.
fn directories(config: &Config, environment: impl Fn(&str) -> Option<OsString>) -> (PathBuf, PathBuf) {
    let directory = |variable, configured: &Option<PathBuf>, default: &str| {
        let value = environment(variable).map(PathBuf::from).or_else(|| configured.clone());
        value.unwrap_or_else(|| default.into())
    };
    (
        directory("RCX_IMAGEFS_STORE", &config.store, DEFAULT_STORE),
        directory("RCX_IMAGEFS_RUN", &config.run_dir, DEFAULT_RUN_DIR),
    )
}

fn settings(
    config: &Config,
    store: PathBuf,
    run_dir: PathBuf,
    rights: Rights,
) -> anyhow::Result<ShimSettings> {
    Ok(ShimSettings {
        homes: match &config.root.upper_dir {
            Some(directory) => HomesLocation::Directory(directory.clone()),
            None => HomesLocation::Store(store.clone()),
        },
        store,
        run_dir,
        isolate: config.isolate.path.clone(),
        search: (rights != Rights::SetUid).then(|| std::env::var_os("PATH")).flatten(),
        default_registry: config.default_registry.clone(),
        mountpoint: config.isolate.mountpoint.clone(),
        tree_idle: (config.engine != Some(EngineChoice::Fuse)).then(|| config.erofs.idle()),
        upper: config.isolate.upper()?,
        inodes: config.inodes(None)?,
        writable: config.isolate.writable,
        images: config.isolate.box_images()?,
        host_commands: config.isolate.host_commands()?,
        env_from_image: config.isolate.env_from_image()?,
        inject: config.isolate.inject.unwrap_or(true),
        in_order: std::env::var_os("POSIXLY_CORRECT").is_some(),
    })
}

/// Reports the failure in the meta file as isolate would, with the caller's rights only. Workers discard stderr and read the
/// meta file.
///
/// Returns the message, as one line.
fn report_failure(
    caller: &mut Caller,
    arguments: &[OsString],
    settings: Option<&ShimSettings>,
    error: &anyhow::Error,
) -> String {
    let in_order = std::env::var_os("POSIXLY_CORRECT").is_some();
    // Before privileges are dropped: the caller may have no access to the store.
    let subject = call_subject(arguments, in_order, settings);
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<ShimError>()).and_then(ShimError::hint);
    let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    let message = plain(&format!("rcx-imagefs: {error:#}{hint}"));
    if caller.drop_privileges().is_err() {
        return message;
    }
    // A host without a system log is no failure.
    let _ = log_failure(Path::new(SYSLOG_SOCKET), &plain(&format!("{subject}: {error:#}{hint}")));
    if let Some(meta) = meta_file(arguments, in_order).filter(|path| !path.as_os_str().as_bytes().is_empty())
        && let Err(error) = write_failure(&meta, &message)
    {
        return format!("{message}; cannot write meta file {}: {error}", plain(&meta.to_string_lossy()));
    }
    message
}
