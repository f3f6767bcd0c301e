//! The command line: one file per subcommand, and the context that they share.

mod candidates;
mod catalog;
mod commit;
mod completions;
mod config;
mod config_check;
mod copy;
mod cp;
mod df;
mod diff;
mod doctor;
mod engine;
mod env;
mod error;
mod failures;
mod find;
mod gc;
mod image_path;
mod images;
mod inspect;
mod load;
mod login;
mod logout;
mod ls;
mod man;
mod manual;
mod meta_file;
mod mount;
mod output;
mod path;
mod progress;
mod pull;
mod push;
mod reference_list;
mod rm;
mod root;
mod run;
mod shim;
mod status;
mod suggestions;
mod tag;
mod template;
mod time;
mod unknown;
mod unpack;
mod verify;
mod version;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::config::Config;
use crate::error::ErrorCode;
use crate::image::Name;
use crate::registry::{PlainHttp, RegistryOptions};
use crate::roots::{HomesLocation, Roots};
use crate::sandbox::{Boxes, find_isolate};
use crate::store::{DaemonInfo, ModeChange, Store};

pub use shim::stand_in_for_isolate;

/// Default directory of the store.
const DEFAULT_STORE: &str = "/var/lib/rcx-imagefs";
/// Help text of reference arguments.
const REFERENCE: &str = "Image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]";
/// Help of arguments that name an image of the store.
const STORED: &str = "Image: [HOST[:PORT]/]NAME[:TAG][@DIGEST], or the digest or its first digits";
/// Default directory of the control socket and of roots.
const DEFAULT_RUN_DIR: &str = "/run/rcx-imagefs";

const EXAMPLES: &str = "\
Examples:
  Fetch an image, mount the store, and look into the image:
    rcx-imagefs pull python:3.12
    rcx-imagefs mount /images &
    ls /images/python:3.12
  Run a program in the image, in a sandbox:
    rcx-imagefs run python:3.12 -- python3 -c 'print(1)'

`rcx-imagefs manual` lists the pages of the manual.";

/// Shows OCI images as read-only directories, for sandboxes that run programs in them
#[derive(Debug, Parser)]
#[command(name = "rcx-imagefs", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_long_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// Directory of the store [env: RCX_IMAGEFS_STORE] [default: /var/lib/rcx-imagefs]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Directory of the control socket and of roots [env: RCX_IMAGEFS_RUN] [default: /run/rcx-imagefs]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Configuration file [default: /etc/rcx-imagefs/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log more on stderr; -vv for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pull(pull::PullArgs),
    Load(load::LoadArgs),
    Push(push::PushArgs),
    Copy(copy::CopyArgs),
    Login(login::LoginArgs),
    Logout(logout::LogoutArgs),
    Mount(mount::MountArgs),
    Images(images::ImagesArgs),
    Inspect(inspect::InspectArgs),
    Path(path::PathArgs),
    Tag(tag::TagArgs),
    Ls(ls::LsArgs),
    Cp(cp::CpArgs),
    Diff(diff::DiffArgs),
    Df(df::DfArgs),
    Unpack(unpack::UnpackArgs),
    Rm(rm::RmArgs),
    Gc(gc::GcArgs),
    Verify(verify::VerifyArgs),
    Root(root::RootArgs),
    Run(Box<run::RunArgs>),
    Warm(warm::WarmArgs),
    Env(env::EnvArgs),
    Status(status::StatusArgs),
    Version(version::VersionArgs),
    Config(config_check::ConfigArgs),
    Doctor(doctor::DoctorArgs),
    IsolateShim(shim::ShimArgs),
    Manual(manual::ManualArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// Whether the command prints JSON.
    fn json(&self) -> bool {
        match self {
            Self::Pull(args) => args.json,
            Self::Load(args) => args.json,
            Self::Push(args) => args.json,
            Self::Copy(args) => args.json,
            Self::Login(args) => args.json,
            Self::Logout(args) => args.json,
            Self::Images(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Path(args) => args.json,
            Self::Tag(args) => args.json,
            Self::Ls(args) => args.json,
            Self::Cp(args) => args.json,
            Self::Diff(args) => args.json,
            Self::Df(args) => args.json,
            Self::Unpack(args) => args.json,
            Self::Rm(args) => args.json,
            Self::Gc(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Root(args) => args.json(),
            Self::Run(args) => args.json,
            Self::Warm(args) => args.json,
            Self::Env(args) => args.json(),
            Self::Status(args) => args.json,
            Self::Version(args) => args.json,
            Self::Config(args) => args.json(),
            Self::Doctor(args) => args.json,
            Self::Mount(_) | Self::IsolateShim(_) | Self::Manual(_) | Self::Completions(_) | Self::Man(_) => {
                false
            }
        }
    }
}

/// The settings of every command.
struct Context {
    config: Config,
    /// The file of the configuration, if it was given.
    config_path: Option<PathBuf>,
    store: PathBuf,
    run_dir: PathBuf,
}

impl Context {
    fn new(global: Global) -> anyhow::Result<Self> {
        let config = Config::load(global.config.as_deref())?;
        let store = Self::directory(global.store, "RCX_IMAGEFS_STORE", config.store.as_ref(), DEFAULT_STORE)?;
        let run_dir =
            Self::directory(global.run_dir, "RCX_IMAGEFS_RUN", config.run_dir.as_ref(), DEFAULT_RUN_DIR)?;
        Ok(Self { config, config_path: global.config, store, run_dir })
    }

    /// Returns a directory that an option, a variable or the configuration selects.
    fn directory(
        option: Option<PathBuf>,
        variable: &str,
        configured: Option<&PathBuf>,
        default: &str,
    ) -> anyhow::Result<PathBuf> {
        // Not by clap, which would list the options of set variables in the usage of every error.
        let given = match (option, std::env::var_os(variable)) {
            (None, Some(empty)) if empty.is_empty() => {
                return Err(error::fail(ErrorCode::Usage, format!("the variable {variable} is empty")));
            }
            (option, value) => option.or_else(|| value.map(PathBuf::from)),
        };
        Ok(given.or_else(|| configured.cloned()).unwrap_or_else(|| default.into()))
    }

    fn default_registry(&self) -> Option<&str> {
        self.config.default_registry.as_deref()
    }

    /// The options of a client for registries. `plain_http`: over plain HTTP, whatever the configuration says.
    fn registry_options(&self, plain_http: bool) -> anyhow::Result<RegistryOptions> {
        let plain_http = match plain_http {
            true => PlainHttp::Always,
            false => PlainHttp::Hosts(self.config.plain_http.clone()),
        };
        Ok(RegistryOptions { plain_http, mirrors: self.config.mirrors()?, ..RegistryOptions::default() })
    }

    /// Opens the store, which must exist, for reading.
    fn open_store(&self) -> anyhow::Result<Store> {
        let store = Store::open(&self.store)?;
        // Whoever can write to a store can also make root show and run anything.
        if store.is_writable_by_others()? {
            self.make_private(&store)?;
            store.require_trusted()?;
        }
        self.configured(store)
    }

    /// Opens the store, which must exist, for a command that changes it.
    fn change_store(&self) -> anyhow::Result<Store> {
        let store = self.open_store()?;
        store.require_write_access()?;
        self.make_private(&store)?;
        Ok(store)
    }

    /// Fails if [`Self::make_store`] would fail after long work. Creates nothing.
    fn check_store(&self) -> anyhow::Result<()> {
        if Store::exists(&self.store)? {
            Store::open(&self.store)?.require_write_access()?;
        }
        Ok(())
    }

    /// Opens the store for a command that changes it, or creates it.
    fn make_store(&self) -> anyhow::Result<Store> {
        let store = Store::open_or_create(&self.store)?;
        self.make_private(&store)?;
        self.configured(store)
    }

    /// Returns the store with the limits of the configuration.
    fn configured(&self, store: Store) -> anyhow::Result<Store> {
        let budget = self.config.erofs.plain_budget()?;
        Ok(store.with_layer_limits(self.config.limits.layer()).with_plain_budget(budget))
    }

    /// Whether layers that are stored also become plain layers. `option`: whether the user asks for it.
    fn makes_plain(&self, option: bool) -> bool {
        option || self.config.erofs.plain == config::PlainChoice::Always
    }

    /// Takes the access to the store from other users, and tells the user if they had any: version 0.1 gave it to all.
    fn make_private(&self, store: &Store) -> anyhow::Result<()> {
        if let Some(ModeChange { before, after }) = store.make_private(self.config.store_group()?)? {
            tracing::warn!(
                "other users had access to the store {} and so to the content of all images (mode {before:04o}); it is \
                 private now (mode {after:04o}): see rcx-imagefs-store(7)",
                store.path().display()
            );
        }
        Ok(())
    }

    /// Returns the daemon that serves the store. It must be running.
    fn daemon(&self, store: &Store) -> anyhow::Result<DaemonInfo> {
        self.daemon_or(store, "start one with `rcx-imagefs mount DIR`")
    }

    /// Returns the daemon that serves the store. `hint` is the hint of the error if no daemon runs.
    fn daemon_or(&self, store: &Store, hint: &str) -> anyhow::Result<DaemonInfo> {
        store.running_daemon()?.ok_or_else(|| {
            let message = format!("no daemon serves the store {}", store.path().display());
            error::fail_with_hint(ErrorCode::NoDaemon, message, hint)
        })
    }

    /// The directory of the files of roots.
    fn homes(&self, store: &Store) -> anyhow::Result<HomesLocation> {
        if let Some(directory) = &self.config.root.upper_dir {
            return Ok(HomesLocation::Directory(directory.clone()));
        }
        // Makes the directory above it.
        store.roots_path()?;
        Ok(HomesLocation::Store(store.path().to_owned()))
    }

    /// Returns the boxes of runs.
    fn boxes(&self, store: &Store) -> anyhow::Result<Boxes> {
        let isolate = find_isolate(self.config.isolate.path.as_deref());
        Ok(Boxes::new(&self.run_dir, store.private_dir()?, isolate))
    }

    /// Returns the roots of this host.
    fn roots(&self, store: &Store) -> anyhow::Result<Roots> {
        store.require_trusted()?;
        Ok(Roots::open(&self.homes(store)?, &self.run_dir)?.with_inodes(self.config.inodes(None)?))
    }

    /// Returns the name as users write it, without the implied parts.
    fn familiar(&self, name: &Name) -> String {
        name.familiar(self.default_registry())
    }

    /// Notifies a running daemon that the store has changed, and waits until the mount shows the change.
    ///
    /// A failure is only logged: the change itself is done.
    fn refresh(&self, store: &Store) {
        if let Err(error) = crate::daemon::refresh(store) {
            tracing::warn!("the mount may not show the change yet: {error}");
        }
    }
}

/// Parses the command line, runs the command, reports an error if it fails, and returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    if let Some(code) = shim::stand_in() {
        return code;
    }
    completions::answer_shell();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::report_usage(&error),
    };
    start_log(cli.global.verbose);
    let json = cli.command.json();
    dispatch(cli).unwrap_or_else(|error| error::report(&error, json))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Config(args) = &cli.command {
        // Before the context, which fails if the configuration does.
        config_check::run(args, cli.global.config.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context::new(cli.global)?;
    match cli.command {
        Command::Run(args) => return run::run(&context, &args),
        Command::Warm(args) => return warm::run(&context, &args),
        Command::Pull(args) => pull::run(&context, &args),
        Command::Load(args) => load::run(&context, &args),
        Command::Push(args) => push::run(&context, &args),
        Command::Copy(args) => copy::run(&context, &args),
        Command::Login(args) => login::run(&context, &args),
        Command::Logout(args) => logout::run(&context, &args),
        Command::Mount(args) => mount::run(&context, &args),
        Command::Images(args) => images::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Path(args) => path::run(&context, &args),
        Command::Tag(args) => tag::run(&context, &args),
        Command::Ls(args) => ls::run(&context, &args),
        Command::Cp(args) => cp::run(&context, &args),
        Command::Diff(args) => diff::run(&context, &args),
        Command::Df(args) => df::run(&context, &args),
        Command::Unpack(args) => unpack::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Gc(args) => gc::run(&context, &args),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Root(args) => root::run(&context, &args),
        Command::Env(args) => env::run(&context, args),
        Command::Status(args) => status::run(&context, &args),
        Command::Version(args) => version::run(&context, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
        Command::IsolateShim(args) => shim::run(&context, &args),
        Command::Config(_) => unreachable!("handled above"),
        Command::Manual(args) => manual::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args, command()),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the log on stderr: warnings, retries if it is a terminal, and more with `-v`. `RUST_LOG` overrides all this.
fn start_log(verbose: u8) {
    use std::io::IsTerminal as _;
    let level = match verbose {
        0 if std::io::stderr().is_terminal() => "rcx_imagefs::registry::retry=info,warn",
        0 => "warn",
        1 => "rcx_imagefs=info,warn",
        _ => "rcx_imagefs=debug,info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// The definition of the command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Checks the text of a configuration file as every command does.
///
/// # Errors
///
/// The first error in the text, as one line.
pub fn check_config(text: &str) -> anyhow::Result<()> {
    Config::parse(text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_passes_clap_checks() {
        command().debug_assert();
    }
}
