//! bubblewrap's arguments: the sandbox where isolate is not installed. It isolates and enforces no limits.
//!
//! bubblewrap is started as a user who may nothing, in a mount namespace that has the root, and makes namespaces of its
//! own from there. Directories of the host are bound into the root before, since that user cannot reach them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::path::Path;
use std::str::FromStr;

use super::error::SandboxError;
use super::isolate::{DirRule, IsolateOption, RuleTarget};
use super::spec::RunSpec;

/// Who a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Default for User {
    /// An id that Debian gives to nobody: between those of people and `nobody`.
    fn default() -> Self {
        Self { uid: 60_999, gid: 60_999 }
    }
}

impl FromStr for User {
    type Err = &'static str;

    /// Reads `UID[:GID]`, numbers; the group is that of the same number unless it is given.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "it is not of the form UID[:GID], in numbers";
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(0), _) | (_, Ok(0)) => Err("it is root"),
            (Ok(u32::MAX), _) | (_, Ok(u32::MAX)) => Err("it is no id"),
            (Ok(uid), Ok(gid)) => Ok(Self { uid, gid }),
            _ => Err(WRONG),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Checks that nothing is asked for that bubblewrap would silently not do.
pub(super) fn check(spec: &RunSpec) -> Result<(), SandboxError> {
    for given in &spec.options {
        let refused = |why| Err(SandboxError::NotWithBubblewrap { option: given.option.name(), why });
        match given.option {
            IsolateOption::Cg
            | IsolateOption::CgMem
            | IsolateOption::Core
            | IsolateOption::ExtraTime
            | IsolateOption::Fsize
            | IsolateOption::Mem
            | IsolateOption::OpenFiles
            | IsolateOption::Processes
            | IsolateOption::Quota
            | IsolateOption::Stack
            | IsolateOption::Time
            | IsolateOption::WallTime => return Err(SandboxError::NoLimits(given.option.name())),
            IsolateOption::Syscalls => return refused("bubblewrap is not told to filter system calls"),
            IsolateOption::TtyHack => {
                return refused("with bubblewrap the program has a session without a terminal");
            }
            IsolateOption::Stdin | IsolateOption::Stdout | IsolateOption::Stderr => {
                let value = given.value.as_deref().unwrap_or_default();
                if in_box(value).is_none() {
                    return refused("with bubblewrap it names a file in the box");
                }
            }
            _ => {}
        }
    }
    for rule in &spec.dirs {
        let refused = |why| Err(SandboxError::NotWithBubblewrap { option: IsolateOption::Dir.name(), why });
        match &rule.target {
            RuleTarget::Filesystem(kind) if kind != "tmpfs" && kind != "proc" => {
                return refused("bubblewrap mounts the filesystems tmpfs and proc only");
            }
            RuleTarget::Directory(outside) if !Path::new(outside).is_absolute() => {
                return refused("bubblewrap has no directory that a path from `./` begins at");
            }
            RuleTarget::Directory(_) if rule.flags.dev => {
                return refused("bubblewrap shows no devices of the host");
            }
            _ => {}
        }
    }
    if spec.box_id.is_some() {
        return Err(SandboxError::NotWithBubblewrap {
            option: IsolateOption::BoxId.name(),
            why: "the boxes are isolate's",
        });
    }
    Ok(())
}

/// The path of a redirection from the box on; none where it leads elsewhere. isolate reads it from there too.
pub(super) fn in_box(path: &OsStr) -> Option<&Path> {
    let path = Path::new(path);
    let path = if path.is_absolute() { path.strip_prefix("/box").ok()? } else { path };
    path.file_name().is_some().then_some(path)
}

/// What bubblewrap is to do.
#[derive(Debug)]
pub(super) struct BwrapRun<'a> {
    /// Where the root is in the mount namespace that bubblewrap is started in, with the box and the host's directories
    /// bound into it.
    pub(super) root: &'a Path,
    /// The caller's rules, their places without links.
    pub(super) dirs: &'a [(DirRule, &'a Path)],
    pub(super) share_net: bool,
    pub(super) environment: &'a [(OsString, OsString)],
    pub(super) chdir: &'a Path,
    /// Where bubblewrap tells the program's exit code.
    pub(super) status: RawFd,
    pub(super) words: &'a [OsString],
}

impl BwrapRun<'_> {
    /// The arguments.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&OsStr]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        let plain = |words: &'static [&'static str]| words.iter().map(|word| OsStr::new(*word));
        // The program makes no user namespace of its own, in which it would have rights again.
        add(&plain(&["--unshare-all", "--unshare-user", "--disable-userns"]).collect::<Vec<_>>());
        if self.share_net {
            add(&[OsStr::new("--share-net")]);
        }
        // No terminal to type into, no life after this process, and no way back to rights.
        let closed =
            ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "box", "--clearenv"];
        add(&closed.map(OsStr::new));
        add(&[OsStr::new("--bind"), self.root.as_os_str(), OsStr::new("/")]);
        let replaced = |place: &str| self.dirs.iter().any(|(_, at)| *at == Path::new(place));
        for (place, mount) in [
            ("/dev", &["--dev", "/dev"][..]),
            ("/proc", &["--proc", "/proc"]),
            ("/tmp", &["--perms", "1777", "--tmpfs", "/tmp"]),
        ] {
            if !replaced(place) {
                add(&mount.iter().map(|word| OsStr::new(*word)).collect::<Vec<_>>());
            }
        }
        for (rule, at) in self.dirs {
            match &rule.target {
                RuleTarget::Filesystem(kind) if kind == "proc" => {
                    add(&[OsStr::new("--proc"), at.as_os_str()])
                }
                RuleTarget::Filesystem(_) | RuleTarget::Temporary => {
                    add(&["--perms", "0755", "--tmpfs"].map(OsStr::new));
                    add(&[at.as_os_str()]);
                }
                RuleTarget::Directory(_) | RuleTarget::Nothing => {}
            }
        }
        for (name, value) in self.environment {
            add(&[OsStr::new("--setenv"), name, value]);
        }
        add(&[OsStr::new("--chdir"), self.chdir.as_os_str()]);
        add(&[OsStr::new("--json-status-fd"), OsStr::new(&self.status.to_string()), OsStr::new("--")]);
        arguments.extend(self.words.iter().cloned());
        arguments
    }
}

/// The program's exit code by what bubblewrap wrote: JSON documents, one of them with `exit-code`. None where the program
/// did not start.
pub(super) fn exit_code(status: &[u8]) -> Option<i32> {
    let documents = serde_json::Deserializer::from_slice(status).into_iter::<serde_json::Value>();
    let codes = documents.map_while(Result::ok).filter_map(|document| document.get("exit-code")?.as_i64());
    codes.last().and_then(|code| i32::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::isolate::GivenOption;

    #[test]
    fn users_are_numbers_and_never_root() {
        let parse = |text: &str| text.parse::<User>();
        assert_eq!(parse("1000"), Ok(User { uid: 1000, gid: 1000 }));
        assert_eq!(parse("1000:5").unwrap().to_string(), "1000:5");
        for text in ["", "www-data", "1000:staff", "-1", "1:2:3", "0", "0:5", "5:0", "4294967295"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arguments_isolate_all_that_bubblewrap_can() {
        let rule = |text: &str| DirRule::parse(OsStr::new(text)).unwrap();
        let dirs = [
            (rule("data=/srv/data"), Path::new("/data")),
            (rule("scratch:tmp"), Path::new("/var/scratch")),
            (rule("proc="), Path::new("/proc")),
        ];
        let run = BwrapRun {
            root: Path::new("/run/x/root"),
            dirs: &dirs,
            share_net: true,
            environment: &[("A".into(), "1 2".into()), ("EMPTY".into(), "".into())],
            chdir: Path::new("/box"),
            status: 5,
            words: &["sh".into(), "--".into()],
        };
        let expected = "--unshare-all --unshare-user --disable-userns --share-net --die-with-parent --new-session --cap-drop ALL --hostname box --clearenv \
            --bind /run/x/root / --dev /dev --perms 1777 --tmpfs /tmp --perms 0755 --tmpfs /var/scratch \
            --setenv A 1 2 --setenv EMPTY  --chdir /box --json-status-fd 5 -- sh --";
        assert_eq!(run.arguments().join(OsStr::new(" ")), expected);
    }

    #[test]
    fn nothing_is_taken_that_would_not_be_done() {
        let checked = |option: IsolateOption, value: &str| {
            let value = (!value.is_empty()).then(|| value.into());
            check(&RunSpec { options: vec![GivenOption { option, value }], ..RunSpec::default() })
                .map_err(|error| error.to_string())
        };
        for option in [
            IsolateOption::Time,
            IsolateOption::WallTime,
            IsolateOption::Mem,
            IsolateOption::Cg,
            IsolateOption::Processes,
            IsolateOption::Quota,
            IsolateOption::OpenFiles,
        ] {
            let error = checked(option, "1").unwrap_err();
            assert_eq!(error, format!("option `--{}`: bubblewrap enforces no limits", option.name()));
        }
        assert!(
            checked(IsolateOption::Syscalls, "0").is_err() && checked(IsolateOption::TtyHack, "").is_err()
        );
        assert!(
            checked(IsolateOption::Stdin, "/etc/passwd").is_err()
                && checked(IsolateOption::Stdout, "").is_err()
        );
        for (option, value) in [
            (IsolateOption::ShareNet, ""),
            (IsolateOption::FullEnv, ""),
            (IsolateOption::Stdin, "in"),
            (IsolateOption::Stdout, "/box/o"),
        ] {
            checked(option, value).unwrap();
        }
        let with = |rule: &str| {
            let dirs = vec![DirRule::parse(OsStr::new(rule)).unwrap()];
            check(&RunSpec { dirs, ..RunSpec::default() })
        };
        for rule in ["sys=sysfs:fs", "a=./b", "dev=/dev:dev"] {
            assert!(with(rule).is_err(), "{rule}");
        }
        for rule in ["data=/srv:rw:maybe", "a:tmp", "a=tmpfs:fs", "tmp="] {
            with(rule).unwrap();
        }
        assert!(check(&RunSpec { box_id: Some(1), ..RunSpec::default() }).is_err());
    }

    #[test]
    fn exit_code_is_the_last_that_bubblewrap_tells() {
        assert_eq!(exit_code(b"{ \"child-pid\": 12 }\n{ \"exit-code\": 3 }\n"), Some(3));
        for text in ["{ \"child-pid\": 12 }\n", "", "x"] {
            assert_eq!(exit_code(text.as_bytes()), None, "{text}");
        }
    }
}
