//! `version`: shows the versions of the program and of what it works with.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Context, output};
use crate::daemon::{ControlRequest, ControlResponse, PROTOCOL, ask_with_protocol};
use crate::error::chain_text;
use crate::roots::loaded_filesystems;
use crate::store::Store;

/// How long to wait for the daemon's answer.
const DEADLINE: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  Show all versions, for a bug report:
    rcx-imagefs version
  Print the daemon's version:
    rcx-imagefs version --json | jq -r .daemon.version";

/// Show the versions of the program, the store, the daemon and the kernel
///
/// `--version` prints only the version of the program. `doctor` shows what works on this host.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct VersionJson {
    program: &'static str,
    /// The format of stores that the program reads and writes.
    store_format: &'static str,
    /// The control protocol of the program.
    protocol: u32,
    store: StoreJson,
    /// The daemon that serves the store; `None` if none runs.
    daemon: Option<DaemonJson>,
    kernel: KernelJson,
}

#[derive(Debug, Serialize)]
struct StoreJson {
    path: String,
    /// Why the store cannot be used.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct DaemonJson {
    pid: u32,
    mountpoint: String,
    /// `None` if the daemon does not answer.
    version: Option<String>,
    protocol: Option<u32>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct KernelJson {
    release: String,
    machine: String,
    /// Those of fuse, overlay and erofs that are loaded.
    filesystems: Vec<&'static str>,
}

pub(super) fn run(context: &Context, args: &VersionArgs) -> anyhow::Result<()> {
    let opened = context.open_store();
    let daemon = opened.as_ref().ok().and_then(|store| daemon(store).transpose()).transpose()?;
    let uname = rustix::system::uname();
    let shown = VersionJson {
        program: env!("CARGO_PKG_VERSION"),
        store_format: Store::FORMAT,
        protocol: PROTOCOL,
        store: StoreJson {
            path: context.store.display().to_string(),
            error: opened.as_ref().err().map(|error| chain_text(error.as_ref())),
        },
        daemon,
        kernel: KernelJson {
            release: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            filesystems: loaded_filesystems(),
        },
    };
    if args.json { output::json(&shown) } else { print(&shown) }
}

fn daemon(store: &Store) -> anyhow::Result<Option<DaemonJson>> {
    let Some(info) = store.running_daemon()? else { return Ok(None) };
    let mut shown = DaemonJson {
        pid: info.pid,
        mountpoint: info.mountpoint.display().to_string(),
        version: None,
        protocol: None,
        error: None,
    };
    match ask_with_protocol(&info.socket, ControlRequest::Status, DEADLINE) {
        Ok((protocol, ControlResponse::Status(status))) => {
            (shown.version, shown.protocol) = (Some(status.version.clone()), Some(protocol));
        }
        Ok(_) => shown.error = Some("unexpected answer to a status request".to_owned()),
        Err(error) => shown.error = Some(chain_text(&error)),
    }
    Ok(Some(shown))
}

fn print(shown: &VersionJson) -> anyhow::Result<()> {
    let field = |name: &str, value: String| output::line(format!("{name:<10}{value}"));
    field("program", format!("rcx-imagefs {}", shown.program))?;
    field("store", {
        let state = shown.store.error.as_deref().map_or(String::new(), |error| format!(": {error}"));
        format!("format {}, {}{state}", shown.store_format, shown.store.path)
    })?;
    field("protocol", shown.protocol.to_string())?;
    field(
        "daemon",
        match &shown.daemon {
            None => "none runs".to_owned(),
            Some(daemon) => match (&daemon.version, daemon.protocol, &daemon.error) {
                (Some(version), Some(protocol), _) => format!(
                    "rcx-imagefs {version}, protocol {protocol}, process {}, mounted on {}",
                    daemon.pid, daemon.mountpoint
                ),
                (_, _, error) => {
                    format!("process {}: {}", daemon.pid, error.as_deref().unwrap_or("no answer"))
                }
            },
        },
    )?;
    let filesystems = shown.kernel.filesystems.join(", ");
    field("kernel", format!("{} {}; {filesystems}", shown.kernel.release, shown.kernel.machine))
}
