//! `man`: writes the manual as man pages, for packagers.
//!
//! clap_mangen makes the page of a command from its help text, up to the list of its subcommands. This module adds the
//! remaining sections, written as Markdown. Most of their text is the same for all commands. EXAMPLES repeats the examples in
//! the command's `--help`.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use clap::{Args, Command};
use clap_mangen::Man;

use crate::manual::{ManualPage, man_page_head, to_roff};

const EXAMPLES: &str = "\
Examples:
  Write the pages and open one:
    rcx-imagefs man /tmp/man && man /tmp/man/rcx-imagefs-config.5";

/// Write the manual as man pages
///
/// Writes a page for each command (section 1) and the pages that `rcx-imagefs manual` prints (sections 5, 7 and 8).
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ManArgs {
    /// Directory to write to; created if it is missing
    dir: std::path::PathBuf,
}

pub(super) fn run(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot create directory {}", dir.display()))?;
    let write = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write man page {}", path.display()))
    };
    for page in ManualPage::ALL {
        write(&page.file_name(), page.to_man_page().as_bytes())?;
    }
    for page in CommandPage::all(command) {
        write(&page.file_name(), &page.to_man_page()?)?;
    }
    Ok(())
}

/// The page of a command.
struct CommandPage {
    command: Command,
    /// The command line without the program's name, such as `root create`; empty for the program itself.
    path: String,
}

impl CommandPage {
    /// Returns the pages of a command and of all its subcommands.
    fn all(command: Command) -> Vec<Self> {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let mut pages = vec![Self { command, path: String::new() }];
        let mut at = 0;
        while let Some(page) = pages.get(at) {
            let subcommands = page.command.get_subcommands().filter(|command| !command.is_hide_set());
            let below = subcommands.map(|command| {
                let path = format!("{} {}", page.path, command.get_name()).trim_start().to_owned();
                Self { command: command.clone(), path }
            });
            let below: Vec<Self> = below.collect();
            pages.extend(below);
            at += 1;
        }
        pages
    }

    /// The name of the page, such as `rcx-imagefs-root-create`.
    fn name(&self) -> String {
        format!("rcx-imagefs {}", self.path).trim_end().replace(' ', "-")
    }

    fn file_name(&self) -> String {
        format!("{}.1", self.name())
    }

    fn to_man_page(&self) -> anyhow::Result<Vec<u8>> {
        let man = Man::new(self.command.clone());
        let mut page = man_page_head(&self.name(), 1).into_bytes();
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if self.command.has_subcommands() {
            man.render_subcommands_section(&mut page)?;
        }
        page.extend_from_slice(to_roff(&self.sections()).as_bytes());
        Ok(page)
    }

    /// The sections that clap_mangen does not write, in the order of man-pages(7).
    fn sections(&self) -> String {
        let mut text = String::new();
        let mut section = |head: &str, body: &str| {
            let _ = write!(text, "## {head}\n\n{body}\n\n");
        };
        section("Exit status", self.exit_status());
        section("Environment", &self.environment());
        section("Files", &self.files());
        section("Examples", &self.examples());
        section("See also", &self.see_also());
        text
    }

    fn exit_status(&self) -> &'static str {
        match self.path.as_str() {
            "run" => {
                "\
- `0`: the program exited with 0.
- `1`: the program exited with another code, was killed by a signal, or exceeded a limit.
- `2`: the command failed; the program may not have been run. The error is on stderr, and with `--json` its code on stdout.
- 128 plus a signal's number: the signal ended the command itself, as shells report it."
            }
            "isolate-shim" => {
                "\
- `0`: isolate ran the program, which exited with 0.
- `1`: the program exited with another code, was killed by a signal, or exceeded a limit.
- `2`: the command or isolate failed. The error is on stderr and in the file of isolate's option `--meta`.
- 128 plus a signal's number: the signal ended the command itself, as shells report it."
            }
            "warm" => {
                "\
- `0`: the image is warm.
- `1`: the command was run, and failed. What it has read is warm.
- `2`: the image could not be read, or runs of the command did not become warm. The error is on stderr, and with `--json` its code on stdout.
- 128 plus a signal's number: the signal ended the command itself, as shells report it."
            }
            "verify" => {
                "\
- `0`: no problem was found.
- `2`: the command found problems, or it failed. The problems are on stdout, the error is on stderr.
- 128 plus a signal's number: the signal ended the command itself, as shells report it."
            }
            "mount" => {
                "\
- `0`: the daemon was stopped by SIGTERM, SIGINT or an unmount.
- `2`: the command failed. The error is on stderr.
- 128 plus a signal's number: another signal ended the daemon, as shells report it."
            }
            _ => {
                "\
- `0`: the command succeeded.
- `2`: the command failed. The error is on stderr; with `--json`, it is also an object on stdout.
- 128 plus a signal's number: the signal ended the command, as shells report it."
            }
        }
    }

    fn environment(&self) -> String {
        let mut variables = vec![
            ("RCX_IMAGEFS_STORE", "Directory of the store, unless `--store` is given."),
            ("RCX_IMAGEFS_RUN", "Directory of the control socket and of roots, unless `--run-dir` is given."),
            ("RUST_LOG", "Log filter, for example `debug`; replaces `-v`."),
        ];
        match self.path.as_str() {
            "pull" | "push" | "copy" => variables.extend([
                ("REGISTRY_AUTH_FILE", "File with logins, in place of podman's files; see rcx-imagefs-registries(7)."),
                ("DOCKER_CONFIG", "Directory of docker's `config.json`, whose logins are used; `~/.docker` by default."),
                ("HTTPS_PROXY", "Proxy; also `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`. See rcx-imagefs-registries(7)."),
            ]),
            "login" | "logout" => variables.extend([
                ("REGISTRY_AUTH_FILE", "File with logins, unless `--authfile` is given."),
                ("XDG_RUNTIME_DIR", "Directory of `containers/auth.json`; by default, the file is `/run/containers/UID/auth.json`."),
            ]),
            "mount" => variables.extend([(
                "NOTIFY_SOCKET",
                "systemd's notification socket. systemd is notified when the mount is ready.",
            )]),
            path if path.starts_with("env") => {
                variables.extend([("RCX_IMAGEFS_QUEUE", "Directory of the queue, unless `--queue` is given.")]);
            }
            "run" | "isolate-shim" => {
                variables.extend([("PATH", "Directories that are searched for isolate and bubblewrap.")]);
            }
            _ => {}
        }
        let lines = variables.iter().map(|(name, description)| format!("- `{name}`: {description}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn files(&self) -> String {
        let mut files = vec![
            ("/etc/rcx-imagefs/config.toml", "Configuration, see rcx-imagefs-config(5)."),
            ("/var/lib/rcx-imagefs", "The store, see rcx-imagefs-store(7)."),
        ];
        match self.path.as_str() {
            "" | "mount" | "status" => {
                files.push(("/run/rcx-imagefs/control.sock", "Control socket of the daemon."));
            }
            path if path.starts_with("env") => {
                files.push((
                    "/var/lib/rcx-imagefs-environments",
                    "The queue, see rcx-imagefs-environments(7).",
                ));
            }
            path if path.starts_with("root") || path == "run" || path == "isolate-shim" => {
                files.push(("/run/rcx-imagefs", "Roots and locks."));
            }
            _ => {}
        }
        let lines = files.iter().map(|(path, description)| format!("- `{path}`: {description}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The examples of `--help` as Markdown: a line of two spaces is text, a line of four is code.
    fn examples(&self) -> String {
        let help = self.command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        let mut text = String::new();
        for line in help.lines() {
            if let Some(code) = line.strip_prefix("    ") {
                let _ = writeln!(text, "    {code}");
            } else if let Some(sentence) = line.strip_prefix("  ") {
                let _ = write!(text, "\n{sentence}\n\n");
            }
        }
        text
    }

    fn see_also(&self) -> String {
        let pages: &[&str] = match self.path.as_str() {
            "" => &[
                "images",
                "run",
                "isolate",
                "config",
                "registries",
                "environments",
                "operations",
                "store",
                "errors",
                "changes",
            ],
            "run" => &["run", "images", "config", "errors"],
            "isolate-shim" => &["isolate", "run", "config"],
            path if path.starts_with("root") => &["run", "images", "config", "errors"],
            path if path.starts_with("env") => &["environments", "config", "errors"],
            "mount" | "path" | "status" => &["images", "operations", "config", "errors"],
            "login" | "logout" => &["registries", "config", "errors"],
            "pull" | "push" | "copy" => &["registries", "store", "images", "config", "errors"],
            "gc" | "verify" | "rm" | "images" | "inspect" | "load" | "unpack" | "tag" | "ls" | "cp" => {
                &["store", "images", "config", "errors"]
            }
            _ => &["config", "operations"],
        };
        let of_manual = pages.iter().filter_map(|name| ManualPage::find(name)).map(ManualPage::title);
        let program = (!self.path.is_empty()).then(|| "rcx-imagefs(1)".to_owned());
        program.into_iter().chain(of_manual).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples() {
        for page in CommandPage::all(super::super::command()) {
            let examples = page.examples();
            assert!(
                examples.contains(format!("rcx-imagefs {}", page.path).trim_end()),
                "{}: {examples}",
                page.name()
            );
        }
    }
}
