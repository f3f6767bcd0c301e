//! The command line: one file per subcommand, and what they share.

mod completions;
mod config;
mod engine;
mod error;
mod gc;
mod images;
mod inspect;
mod load;
mod mount;
mod output;
mod path;
mod pull;
mod rm;
mod root;
mod run;
mod shim;
mod status;
mod unpack;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::config::Config;
use crate::image::{Name, Reference, Tag};
use crate::roots::Roots;
use crate::sandbox::Boxes;
use crate::store::{DaemonInfo, ImageRecord, Store};

pub use shim::stand_in_for_isolate;

/// Where the store is unless told otherwise.
const DEFAULT_STORE: &str = "/var/lib/rcx-imagefs";
/// How references are written, for the help of each command that takes one.
const REFERENCE: &str = "Image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]";
/// Where the control socket is unless told otherwise.
const DEFAULT_RUN_DIR: &str = "/run/rcx-imagefs";

/// Shows OCI images as read-only directories, for sandboxes that run programs in them.
#[derive(Debug, Parser)]
#[command(name = "rcx-imagefs", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// Directory of the store [default: /var/lib/rcx-imagefs]
    #[arg(long, global = true, value_name = "DIR", env = "RCX_IMAGEFS_STORE", hide_env_values = true)]
    store: Option<PathBuf>,
    /// Directory of the control socket and of roots [default: /run/rcx-imagefs]
    #[arg(long, global = true, value_name = "DIR", env = "RCX_IMAGEFS_RUN", hide_env_values = true)]
    run_dir: Option<PathBuf>,
    /// Configuration file [default: /etc/rcx-imagefs/config.toml, if there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say more on stderr; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pull(pull::PullArgs),
    Load(load::LoadArgs),
    Mount(mount::MountArgs),
    Images(images::ImagesArgs),
    Inspect(inspect::InspectArgs),
    Path(path::PathArgs),
    Unpack(unpack::UnpackArgs),
    Rm(rm::RmArgs),
    Gc(gc::GcArgs),
    Verify(verify::VerifyArgs),
    Root(root::RootArgs),
    Run(Box<run::RunArgs>),
    Status(status::StatusArgs),
    IsolateShim(shim::ShimArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// What every command works with.
struct Context {
    config: Config,
    store: PathBuf,
    run_dir: PathBuf,
}

impl Context {
    fn new(global: Global) -> anyhow::Result<Self> {
        let config = Config::load(global.config.as_deref())?;
        let store = global.store.or_else(|| config.store.clone()).unwrap_or_else(|| DEFAULT_STORE.into());
        let run_dir =
            global.run_dir.or_else(|| config.run_dir.clone()).unwrap_or_else(|| DEFAULT_RUN_DIR.into());
        Ok(Self { config, store, run_dir })
    }

    fn default_registry(&self) -> Option<&str> {
        self.config.default_registry.as_deref()
    }

    /// The store, which has to be there.
    fn open_store(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.store)?.with_layer_limits(self.config.limits.layer()))
    }

    /// The store, made where there is none.
    fn make_store(&self) -> anyhow::Result<Store> {
        Ok(Store::open_or_create(&self.store)?.with_layer_limits(self.config.limits.layer()))
    }

    /// The daemon that serves the store, which has to run.
    fn daemon(&self, store: &Store) -> anyhow::Result<DaemonInfo> {
        store.running_daemon()?.ok_or_else(|| {
            error::advise(
                format!("no daemon serves the store {}", store.path().display()),
                "start one with `rcx-imagefs mount DIR`",
            )
        })
    }

    /// Where roots keep what is written in them.
    fn homes(&self, store: &Store) -> anyhow::Result<PathBuf> {
        match &self.config.root.upper_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(store.roots_path()?),
        }
    }

    /// The places of boxes.
    fn boxes(&self, store: &Store) -> anyhow::Result<Boxes> {
        Ok(Boxes::new(&self.run_dir, &store.boxes_path()?))
    }

    /// The places of roots.
    fn roots(&self, store: &Store) -> anyhow::Result<Roots> {
        Ok(Roots::open(&self.homes(store)?, &self.run_dir)?)
    }

    /// The name as people write it.
    fn familiar(&self, name: &Name) -> String {
        name.familiar(self.default_registry())
    }

    /// Finds the image that a reference stands for in the store.
    fn find(&self, store: &Store, text: &str) -> anyhow::Result<Found> {
        let refs = store.refs()?;
        let meanings = Reference::meanings(text, self.default_registry())?;
        for reference in &meanings {
            let tag = reference.tag_or_latest();
            let found = match reference.digest {
                Some(digest) => refs.with_digest(&reference.name, digest),
                None => refs.tagged(&reference.name, &tag),
            };
            if let Some(image) = found {
                let tag = reference.digest.is_none().then_some(tag);
                return Ok(Found { image: image.clone(), tag });
            }
        }
        let mut reference = meanings[0].clone();
        if reference.digest.is_none() {
            reference.tag = Some(reference.tag_or_latest());
        }
        let tags: Vec<String> = refs
            .images
            .iter()
            .filter(|image| meanings.iter().any(|meaning| meaning.name == image.name))
            .flat_map(|image| image.tags.iter().map(ToString::to_string))
            .collect();
        let hint = match tags.as_slice() {
            [] => format!("`rcx-imagefs pull {text}` fetches it; `rcx-imagefs images` lists what is there"),
            tags => format!("this name is there with: {}", tags.join(", ")),
        };
        Err(error::advise(format!("image {reference} is not in the store"), hint))
    }

    /// Tells a running daemon that the store has changed, and waits until the mount shows it.
    fn refresh(&self, store: &Store) {
        if let Err(error) = crate::daemon::refresh(store) {
            tracing::warn!("the daemon did not take the change yet: {error}");
        }
    }
}

/// An image of the store that a reference stands for.
struct Found {
    image: ImageRecord,
    /// The tag that led to it; none for a digest.
    tag: Option<Tag>,
}

/// Parses the command line, runs the command, and tells how it ended.
#[must_use]
pub fn run() -> ExitCode {
    if let Some(code) = shim::stand_in() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { error::EXIT_FAILURE } else { 0 });
        }
    };
    start_log(cli.global.verbose);
    dispatch(cli).unwrap_or_else(|failure| error::report(&failure))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context::new(cli.global)?;
    match cli.command {
        Command::Run(args) => return run::run(&context, &args),
        Command::Pull(args) => pull::run(&context, &args),
        Command::Load(args) => load::run(&context, &args),
        Command::Mount(args) => mount::run(&context, &args),
        Command::Images(args) => images::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Path(args) => path::run(&context, &args),
        Command::Unpack(args) => unpack::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Gc(args) => gc::run(&context, &args),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Root(args) => root::run(&context, &args),
        Command::Status(args) => status::run(&context, &args),
        Command::IsolateShim(args) => shim::run(&context, &args),
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Logs to stderr: warnings, more with `-v`; `RUST_LOG` goes before both.
fn start_log(verbose: u8) {
    use std::io::IsTerminal as _;
    let level = match verbose {
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

/// Reads the text of a configuration file as every command does.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn check_config(text: &str) -> anyhow::Result<()> {
    Config::parse(text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
