//! The arguments of bubblewrap.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use crate::sandbox::isolate::{DirRule, RuleTarget};

/// The name of the host in the sandbox.
pub(super) const HOSTNAME: &str = "box";

/// A call of bubblewrap.
#[derive(Debug)]
pub(super) struct BwrapRun<'a> {
    /// The mounted root, in the mount namespace that bubblewrap is started in. The box and the caller's directories are
    /// bound into it already.
    pub(super) root: &'a Path,
    /// The caller's rules, each with its resolved path in the root: absolute and without links.
    pub(super) rules: &'a [(DirRule, PathBuf)],
    pub(super) share_net: bool,
    /// Whether the run has a terminal of its own.
    pub(super) terminal: bool,
    pub(super) environment: &'a [(OsString, OsString)],
    pub(super) chdir: &'a Path,
    /// The descriptor that bubblewrap writes the program's exit code to.
    pub(super) status_fd: RawFd,
    pub(super) words: &'a [OsString],
}

impl BwrapRun<'_> {
    /// Returns the arguments.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&dyn AsRef<OsStr>]| {
            arguments.extend(words.iter().map(|word| (**word).as_ref().to_owned()));
        };
        // In a user namespace of its own, the program would regain capabilities. `--disable-userns` prevents this.
        add(&[&"--unshare-all", &"--unshare-user", &"--disable-userns"]);
        if self.share_net {
            add(&[&"--share-net"]);
        }
        add(&[&"--die-with-parent"]);
        if !self.terminal {
            // Otherwise the program could type into the caller's terminal (TIOCSTI).
            add(&[&"--new-session"]);
        }
        add(&[&"--cap-drop", &"ALL"]);
        add(&[&"--hostname", &HOSTNAME, &"--clearenv", &"--bind", &self.root, &"/"]);
        let is_replaced = |path: &str| self.rules.iter().any(|(_, inside)| inside == Path::new(path));
        if !is_replaced("/dev") {
            add(&[&"--dev", &"/dev"]);
        }
        if !is_replaced("/proc") {
            add(&[&"--proc", &"/proc"]);
        }
        if !is_replaced("/tmp") {
            add(&[&"--perms", &"1777", &"--tmpfs", &"/tmp"]);
        }
        for (rule, inside) in self.rules {
            match &rule.target {
                RuleTarget::Filesystem(kind) if kind == "proc" => add(&[&"--proc", inside]),
                RuleTarget::Filesystem(_) | RuleTarget::Temporary => {
                    add(&[&"--perms", &"0755", &"--tmpfs", inside]);
                }
                // Directories are already bound into the root.
                RuleTarget::Directory(_) | RuleTarget::Nothing => {}
            }
        }
        for (name, value) in self.environment {
            add(&[&"--setenv", name, value]);
        }
        add(&[&"--chdir", &self.chdir, &"--json-status-fd", &self.status_fd.to_string(), &"--"]);
        arguments.extend(self.words.iter().cloned());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_request_all_isolation_that_bubblewrap_offers() {
        let rule = |text: &str| DirRule::parse(OsStr::new(text)).unwrap();
        let rules = [
            (rule("data=/srv/data"), PathBuf::from("/data")),
            (rule("scratch:tmp"), PathBuf::from("/var/scratch")),
            (rule("proc="), PathBuf::from("/proc")),
        ];
        let run = BwrapRun {
            root: Path::new("/run/x/root"),
            rules: &rules,
            share_net: true,
            terminal: false,
            environment: &[("A".into(), "1 2".into()), ("EMPTY".into(), "".into())],
            chdir: Path::new("/box"),
            status_fd: 5,
            words: &["sh".into(), "--".into()],
        };
        let expected = "--unshare-all --unshare-user --disable-userns --share-net --die-with-parent --new-session --cap-drop ALL --hostname box --clearenv \
            --bind /run/x/root / --dev /dev --perms 1777 --tmpfs /tmp --perms 0755 --tmpfs /var/scratch \
            --setenv A 1 2 --setenv EMPTY  --chdir /box --json-status-fd 5 -- sh --";
        assert_eq!(run.arguments().join(OsStr::new(" ")), expected);
    }
}
