//! `doctor`: shows what works on this host.

use std::fs;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::engine::EngineChoice;
use super::error::{self, ErrorJson};
use super::{Context, output};
use crate::daemon::{ControlRequest, ask};
use crate::error::{ErrorCode, chain_text};
use crate::roots::{InodeWidth, try_erofs_file, try_filesystem, try_overlay};
use crate::sandbox::isolate::IsolateVersion;
use crate::sandbox::{Sandbox, SandboxKind, find_isolate};
use crate::store::Store;

/// How long to wait for the daemon's answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Less free space than this is reported: a typical image has some hundred MiB.
const SPACE_MIN: u64 = 1 << 30;
/// The oldest kernel: mount_setattr(2).
const KERNEL_MIN: (u32, u32) = (5, 12);

const EXAMPLES: &str = "\
Examples:
  Check a new host, and again after a change of its configuration:
    rcx-imagefs doctor
  Print what does not work:
    rcx-imagefs doctor --json | jq '.checks[] | select(.state != \"ok\")'";

/// Show what works on this host, and what to do about the rest
///
/// Tries out what the commands need: kernel features, mounts, permissions, the sandbox, disk space, the daemon. Each check is `ok`, `failed` (the
/// configuration asks for it, or every host needs it), `missing` (it does not work, but nothing asks for it) or `unknown` (run the command as
/// root). Exits with 2 if a check failed. Changes nothing; what it mounts for a test is never visible.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct DoctorJson {
    checks: Vec<CheckJson>,
    /// Set if a check failed.
    error: Option<ErrorJson>,
}

#[derive(Debug, Serialize)]
struct CheckJson {
    name: &'static str,
    /// `ok`, `failed`, `missing` or `unknown`.
    state: &'static str,
    message: String,
    hint: Option<&'static str>,
}

pub(super) fn run(context: &Context, args: &DoctorArgs) -> anyhow::Result<()> {
    let mut host = HostCheck { context, is_root: rustix::process::geteuid().is_root(), checks: Vec::new() };
    host.kernel();
    let store = host.store();
    host.sandbox();
    if let Some(store) = &store {
        host.daemon(store);
        host.roots(store);
        host.images(store);
    }
    let failed: Vec<&str> =
        host.checks.iter().filter(|check| check.state == "failed").map(|check| check.name).collect();
    let failure = (!failed.is_empty()).then(|| {
        error::fail(ErrorCode::Host, format!("this host lacks what is needed: {}", failed.join(", ")))
    });
    let shown = DoctorJson { error: failure.as_ref().map(ErrorJson::new), checks: host.checks };
    if args.json {
        output::json(&shown)?;
    } else {
        for check in &shown.checks {
            output::line(format!("{:<8} {:<10} {}", check.state, check.name, check.message))?;
            if let Some(hint) = check.hint {
                output::line(format!("{:20}hint: {hint}", ""))?;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

struct HostCheck<'a> {
    context: &'a Context,
    is_root: bool,
    checks: Vec<CheckJson>,
}

impl HostCheck<'_> {
    /// Adds the result of a check. `needed` says whether a failure makes the command fail.
    fn add(&mut self, name: &'static str, needed: bool, result: Result<String, String>, hint: &'static str) {
        let (state, message, hint) = match result {
            Ok(message) => ("ok", message, None),
            Err(message) => (if needed { "failed" } else { "missing" }, message, Some(hint)),
        };
        self.checks.push(CheckJson { name, state, message, hint });
    }

    /// Adds the result of a check that only root can make.
    fn add_as_root(
        &mut self,
        name: &'static str,
        needed: bool,
        check: impl FnOnce() -> Result<String, String>,
        hint: &'static str,
    ) {
        if self.is_root {
            return self.add(name, needed, check(), hint);
        }
        let message = "only root can check this".to_owned();
        self.checks.push(CheckJson { name, state: "unknown", message, hint: None });
    }

    fn kernel(&mut self) {
        let engine = self.context.config.engine;
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let (major, minor) = KERNEL_MIN;
        let version = match kernel_version(&release) {
            Some(version) if version < KERNEL_MIN => {
                Err(format!("Linux {release} is older than {major}.{minor}"))
            }
            _ => Ok(format!("Linux {release}")),
        };
        self.add("kernel", true, version, "use Linux 5.12 or newer, for the mount API");
        let fuse = || match fs::File::options().read(true).write(true).open("/dev/fuse") {
            Err(error) => Err(format!("cannot open /dev/fuse: {error}")),
            Ok(_) => tried(try_filesystem("fuse"), "FUSE filesystems can be mounted"),
        };
        self.add_as_root(
            "fuse",
            !matches!(engine, Some(EngineChoice::Overlay2 | EngineChoice::Unpack)),
            fuse,
            "load the module `fuse`; in a container, pass /dev/fuse; or set engine = \"overlay2\" in the configuration",
        );
        let inodes = self.context.config.inodes(None).unwrap_or_default();
        let overlay = || {
            tried(
                try_overlay(inodes),
                &format!("overlays of detached lowers can be mounted, with inode numbers of {inodes}"),
            )
        };
        let lacks_xino = || try_overlay(inodes).is_err() && try_overlay(InodeWidth::Bits32).is_ok();
        let hint = if self.is_root && lacks_xino() {
            "the kernel lacks xino; set inodes = \"32bit\" in [root] of the configuration"
        } else {
            "load the module `overlay`; in a container, give it CAP_SYS_ADMIN"
        };
        self.add_as_root("overlay", true, overlay, hint);
    }

    /// Checks the store and its disk, and returns the store if it can be used.
    fn store(&mut self) -> Option<Store> {
        let opened = match Store::exists(&self.context.store) {
            Ok(false) => {
                let message = format!("there is no store at {} yet", self.context.store.display());
                self.add("store", false, Err(message), "`pull` and `load` create it");
                None
            }
            Ok(true) | Err(_) => match self.context.open_store() {
                Ok(store) => Some(store),
                Err(error) => {
                    let explained = chain_text(error.as_ref());
                    self.add("store", true, Err(explained), "see rcx-imagefs-store(7)");
                    None
                }
            },
        };
        if let Some(store) = &opened {
            let images = store.refs().map(|refs| output::count(refs.images.len(), "image", "images"));
            let found = images.map(|images| format!("{} with {images}", store.path().display()));
            self.add("store", true, found.map_err(|error| chain_text(&error)), "see rcx-imagefs-store(7)");
            let free = match store.free_space() {
                Ok(free) if free < SPACE_MIN => {
                    Err(format!("only {} are free in the store", output::size(free)))
                }
                Ok(free) => Ok(format!("{} are free in the store", output::size(free))),
                Err(error) => Err(chain_text(&error)),
            };
            self.add("space", false, free, "`df` shows what takes space; `rm` and `gc` free it");
        }
        let disk = opened.as_ref().map_or(std::path::Path::new("/var/tmp"), Store::path).to_owned();
        let erofs = || tried(try_erofs_file(&disk), "EROFS images in files can be mounted");
        let asked = self.context.config.engine == Some(EngineChoice::Erofs);
        let hint = "use Linux 6.12 or newer; otherwise roots use the engine `fuse`";
        self.add_as_root("erofs", asked, erofs, hint);
        opened
    }

    fn sandbox(&mut self) {
        let config = &self.context.config;
        let kind = config.run.sandbox().unwrap_or_default();
        let asks_for_isolate = kind == SandboxKind::Isolate || config.isolate.path.is_some();
        let isolate = match find_isolate(config.isolate.path.as_deref()) {
            None => Err("isolate is not on the PATH".to_owned()),
            Some(path) => match IsolateVersion::detect(&path, None) {
                Ok(version) => Ok(format!("{}, version {version}", path.display())),
                Err(error) => Err(chain_text(&error)),
            },
        };
        self.add("isolate", asks_for_isolate, isolate, "install isolate from https://github.com/ioi/isolate");
        let bwrap = Sandbox::find(SandboxKind::Bwrap, None, &self.context.run_dir);
        let bwrap = tried(bwrap.map(drop), "bubblewrap is on the PATH");
        self.add(
            "bwrap",
            kind == SandboxKind::Bwrap,
            bwrap,
            "install the package bubblewrap; isolate also works",
        );
        if let Some(mountpoint) = &config.isolate.mountpoint {
            let exists = match mountpoint.is_dir() {
                true => Ok(format!("{} exists", mountpoint.display())),
                false => Err(format!("{} is not a directory", mountpoint.display())),
            };
            self.add(
                "mountpoint",
                true,
                exists,
                "make it, or change mountpoint in [isolate] of the configuration",
            );
        }
    }

    fn daemon(&mut self, store: &Store) {
        let asked = self.context.config.engine == Some(EngineChoice::Fuse);
        let daemon = match store.running_daemon() {
            Err(error) => Err(chain_text(&error)),
            Ok(None) => Err("no daemon serves the store".to_owned()),
            Ok(Some(daemon)) => match ask(&daemon.socket, ControlRequest::Ping, DEADLINE) {
                Err(error) => Err(chain_text(&error)),
                Ok(_) => match fs::read_dir(&daemon.mountpoint) {
                    Ok(_) => Ok(format!("process {} serves {}", daemon.pid, daemon.mountpoint.display())),
                    Err(error) => Err(format!("cannot list {}: {error}", daemon.mountpoint.display())),
                },
            },
        };
        let hint = "start it with `systemctl start rcx-imagefs` or `rcx-imagefs mount DIR`";
        self.add("daemon", asked, daemon, hint);
    }

    fn roots(&mut self, store: &Store) {
        let context = self.context;
        let roots = || match context.roots(store).and_then(|roots| Ok(roots.list()?.len())) {
            Ok(count) => {
                Ok(format!("{} in {}", output::count(count, "root", "roots"), context.run_dir.display()))
            }
            Err(error) => Err(chain_text(error.as_ref())),
        };
        self.add_as_root("roots", true, roots, "see `upper-dir` and `run-dir` in rcx-imagefs-config(5)");
    }

    /// Checks that the store has the images that boxes run in.
    fn images(&mut self, store: &Store) {
        let images = self.context.config.isolate.images.values().filter(|image| !image.is_empty());
        let missing: Vec<String> =
            images.clone().filter(|image| self.context.find(store, image).is_err()).cloned().collect();
        let count = images.count();
        if count == 0 {
            return;
        }
        let found = match missing.as_slice() {
            [] => Ok(format!("the store has all images of [isolate.images] ({count})")),
            missing => Err(format!("the store lacks images of [isolate.images]: {}", missing.join(", "))),
        };
        self.add("images", true, found, "fetch them with `rcx-imagefs pull`");
    }
}

/// Turns the result of a trial into a message.
fn tried<E: std::error::Error + 'static>(result: Result<(), E>, works: &str) -> Result<String, String> {
    result.map(|()| works.to_owned()).map_err(|error| chain_text(&error))
}

/// The first two numbers of a kernel release such as `6.12.0-1-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        for (release, version) in
            [("6.12.0-1-amd64", Some((6, 12))), ("5.4-rc1", Some((5, 4))), ("custom", None), ("6", None)]
        {
            assert_eq!(kernel_version(release), version, "{release}");
        }
        assert!(kernel_version("5.4.0") < Some(KERNEL_MIN) && kernel_version("10.1.0") > Some(KERNEL_MIN));
    }
}
