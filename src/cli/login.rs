//! `login`: stores a user name and a password for a registry.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::Serialize;

use super::error::fail_with_hint;
use super::pull::runtime;
use super::{Context, output};
use crate::error::ErrorCode;
use crate::image::{DOCKER_HUB, Reference};
use crate::registry::{AuthFiles, LoginCheck, Registry, add_login};

/// Longest password that is read, in bytes. Access tokens have some kilobytes.
const PASSWORD_MAX: u64 = 64 << 10;

/// Help text of the registry.
pub(super) const REGISTRY: &str =
    "Registry, perhaps with a namespace: HOST[:PORT][/NAMESPACE] [default: the default registry]";

/// The terminal of this process, whatever its standard input is.
const TERMINAL: &str = "/dev/tty";

const EXAMPLES: &str = "\
Examples:
  Log in; asks for the user name and the password:
    rcx-imagefs login registry.example:5000
  In a script:
    rcx-imagefs login -u reader --password-stdin registry.example:5000 < password";

/// Log in to a registry
///
/// Checks the user name and the password, and stores them where `podman login` does: in $REGISTRY_AUTH_FILE, or in
/// containers/auth.json below $XDG_RUNTIME_DIR or /run/containers/UID. These directories are emptied when the host starts; to
/// keep the login, use `--authfile ~/.config/containers/auth.json`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LoginArgs {
    /// The registry.
    #[arg(help = REGISTRY)]
    registry: Option<String>,
    /// User name
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// File in which to store the login
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The output of `login --json`.
#[derive(Debug, Serialize)]
struct LoggedInJson<'a> {
    registry: &'a str,
    username: &'a str,
    file: String,
    checked: bool,
}

pub(super) fn run(context: &Context, args: &LoginArgs) -> anyhow::Result<()> {
    let key = registry_key(context, args.registry.as_deref())?;
    let host = key.split('/').next().unwrap_or_default();
    let (user, password) = credentials(args, &key)?;
    let registry = Registry::new(context.registry_options(args.plain_http)?)?;
    let runtime = runtime()?;
    let checked = runtime.block_on(registry.check_login(host, &user, &password));
    let checked = checked.with_context(|| format!("login {key}"))?;
    if checked == LoginCheck::NotRequired {
        tracing::warn!("{host} requires no login, so the user name and the password could not be checked");
    }
    let file = args.authfile.clone().unwrap_or_else(AuthFiles::written_by_login);
    add_login(&file, &key, &user, &password).with_context(|| format!("login {key}"))?;
    let file = file.display().to_string();
    if args.json {
        let checked = checked == LoginCheck::Accepted;
        return output::json(&LoggedInJson { registry: &key, username: &user, file, checked });
    }
    output::line(format!("logged in to {key} as {user} ({file})"))
}

/// The key of a registry in a credential file: its host, perhaps with a namespace.
pub(super) fn registry_key(context: &Context, registry: Option<&str>) -> anyhow::Result<String> {
    let registry = registry.unwrap_or(context.default_registry().unwrap_or(DOCKER_HUB));
    // Users paste URLs.
    let bare = registry.split_once("://").map_or(registry, |(_, rest)| rest).trim_end_matches('/');
    let (host, namespace) = bare.split_once('/').unwrap_or((bare, ""));
    let name = if namespace.is_empty() { "name" } else { namespace };
    let name = Reference::parse(name, Some(host)).with_context(|| format!("registry `{registry}`"))?.name;
    let host = name.host().unwrap_or(host);
    Ok(if namespace.is_empty() { host.to_owned() } else { format!("{host}/{namespace}") })
}

/// The user name and the password: from the options, or from the terminal.
fn credentials(args: &LoginArgs, key: &str) -> anyhow::Result<(String, String)> {
    let (user, password) = match (&args.username, args.password_stdin) {
        (Some(user), true) => {
            let mut password = String::new();
            std::io::stdin()
                .take(PASSWORD_MAX)
                .read_to_string(&mut password)
                .context("cannot read the password from standard input")?;
            (user.clone(), password)
        }
        (user, _) => ask(user.as_deref(), key)?,
    };
    let password = password.trim_end_matches(['\n', '\r']).to_owned();
    let refuse = |message: &str| Err(super::error::fail(ErrorCode::Usage, message));
    if user.is_empty() || user.contains([':', '\n']) {
        return refuse("the user name is empty or contains a colon");
    }
    if password.is_empty() {
        return refuse("the password is empty");
    }
    Ok((user, password))
}

/// Asks at the terminal. The password is not shown.
fn ask(user: Option<&str>, key: &str) -> anyhow::Result<(String, String)> {
    let terminal = OpenOptions::new().read(true).write(true).open(TERMINAL);
    let Some(mut terminal) = terminal.ok().filter(|_| std::io::stdin().is_terminal()) else {
        return Err(fail_with_hint(
            ErrorCode::Usage,
            "cannot ask for the password: standard input is not a terminal",
            format!("use `rcx-imagefs login -u USER --password-stdin {key} < FILE`"),
        ));
    };
    let mut lines = BufReader::new(terminal.try_clone().context(TERMINAL)?);
    let mut line = |terminal: &mut File, prompt: &str| {
        write!(terminal, "{prompt}")?;
        let mut text = String::new();
        lines.by_ref().take(PASSWORD_MAX).read_line(&mut text)?;
        Ok::<_, std::io::Error>(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    let user = match user {
        Some(user) => user.to_owned(),
        None => line(&mut terminal, &format!("user name for {key}: ")).context(TERMINAL)?,
    };
    let hidden = HiddenInput::start(&terminal).context(TERMINAL)?;
    let password = line(&mut terminal, &format!("password of {user} for {key}: ")).context(TERMINAL)?;
    drop(hidden);
    // The terminal did not show the end of the line either.
    writeln!(terminal).context(TERMINAL)?;
    Ok((user, password))
}

/// A terminal that does not show what is typed. Restored on drop.
struct HiddenInput {
    terminal: File,
    before: Termios,
}

impl HiddenInput {
    fn start(terminal: &File) -> std::io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
