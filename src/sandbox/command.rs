//! The command of a run: its words, and the file that the first word names.
//!
//! isolate executes the first word without a search, and reports a missing program as a failure of the program. This module
//! searches for the program as a shell would, among the files that the program will see. A program that cannot be executed is
//! an error of the call, not a verdict.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::User;
use super::interpreter::InterpreterKind;
use super::view::{RootView, ViewedPath};
use crate::error::ErrorCode;
use crate::image::ImageConfig;

/// The search path for programs if neither the image nor the caller sets `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the words to execute: the image's entrypoint, followed by `command`, or by the image's command if `command` is empty.
///
/// An `entrypoint` replaces the image's entrypoint and drops the image's command. An empty `entrypoint` means no entrypoint.
pub(super) fn words(config: &ImageConfig, entrypoint: Option<&OsStr>, command: &[OsString]) -> Vec<OsString> {
    let owned = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut words = match entrypoint {
        None => owned(&config.entrypoint),
        Some(word) if word.is_empty() => Vec::new(),
        Some(word) => vec![word.to_owned()],
    };
    if !command.is_empty() {
        words.extend_from_slice(command);
    } else if entrypoint.is_none() {
        words.extend(owned(&config.cmd));
    }
    words
}

/// How many files that start each other the kernel executes for one program (fs/exec.c, `exec_binprm`).
const INTERPRETERS_MAX: usize = 5;

/// Why a program cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramFault {
    /// The file does not exist.
    #[error("no such file in the image")]
    Missing,
    /// No directory of `PATH` contains the program.
    #[error("not found in any directory of PATH")]
    NotInPath,
    /// The file is a directory.
    #[error("is a directory")]
    Directory,
    /// The file is a device, socket or fifo.
    #[error("not a regular file")]
    Special,
    /// The file has no execute permission bit.
    #[error("not executable")]
    NotExecutable,
    /// The file that the kernel starts in place of the program cannot be executed.
    #[error("its {kind} `{}`: {fault}", .path.to_string_lossy().escape_debug())]
    Interpreter {
        /// Whether the program is a script.
        kind: InterpreterKind,
        /// The file.
        path: PathBuf,
        /// Why the file cannot be executed.
        fault: Box<ProgramFault>,
    },
    /// The path cannot be resolved.
    #[error("cannot resolve the path: {0}")]
    Path(Errno),
}

impl ProgramFault {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing
            | Self::NotInPath
            | Self::Directory
            | Self::Special
            | Self::NotExecutable
            | Self::Interpreter { .. }
            | Self::Path(_) => ErrorCode::Program,
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Interpreter { kind: InterpreterKind::Script, path, .. }
                if path.as_os_str().as_bytes().ends_with(b"\r") =>
            {
                Some("the script has the line ends of Windows: convert it, for example with `dos2unix`")
            }
            Self::Interpreter { kind: InterpreterKind::Loader, .. } => {
                Some("the program was built for another system: build it in the image, or link it statically")
            }
            _ => None,
        }
    }
}

impl RootView {
    /// Finds the program that `word` names, and returns the path to execute.
    ///
    /// A word with a `/` is only checked. Any other word is searched for in the directories of `path`. A relative path is
    /// resolved from `directory`.
    pub(super) fn find_program(
        &self,
        word: &OsStr,
        path: &OsStr,
        directory: &Path,
        user: User,
    ) -> Result<PathBuf, ProgramFault> {
        if word.as_bytes().contains(&b'/') {
            return self.check_program(Path::new(word), directory, user).map(|_| word.into());
        }
        if word.is_empty() {
            return Err(ProgramFault::Missing);
        }
        let (mut fault, mut unknown) = (ProgramFault::NotInPath, None);
        for entry in path.as_bytes().split(|byte| *byte == b':') {
            // An empty entry is the working directory.
            let entry = if entry.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(entry) };
            let candidate = Path::new(entry).join(word);
            match self.check_program(&candidate, directory, user) {
                Ok(true) => return Ok(candidate),
                // The content of this directory is unknown. A directory that is known to contain the program takes precedence.
                Ok(false) => unknown = unknown.or(Some(candidate)),
                Err(ProgramFault::NotExecutable) => fault = ProgramFault::NotExecutable,
                // A shell finds this file too, and fails to execute it.
                Err(fault @ ProgramFault::Interpreter { .. }) => return Err(fault),
                // Like a shell, continue after a directory or a broken link of this name.
                Err(_) => {}
            }
        }
        unknown.ok_or(fault)
    }

    /// Checks that a file can be executed. Returns false if this is unknown until the sandbox has made its mounts.
    fn check_program(&self, path: &Path, directory: &Path, user: User) -> Result<bool, ProgramFault> {
        self.check_chain(path, directory, user, INTERPRETERS_MAX)
    }

    /// Checks a program, its interpreter, the interpreter's interpreter and so on.
    fn check_chain(
        &self,
        path: &Path,
        directory: &Path,
        user: User,
        depth: usize,
    ) -> Result<bool, ProgramFault> {
        let (resolved, mode) = match self.resolve(path, directory, user) {
            Ok(ViewedPath::File { path, mode, .. }) => (path, mode),
            Ok(ViewedPath::Unknown) => return Ok(false),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(ProgramFault::Missing),
            Err(errno) => return Err(ProgramFault::Path(errno)),
        };
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile if mode & 0o111 == 0 => Err(ProgramFault::NotExecutable),
            // The kernel itself refuses longer chains.
            FileType::RegularFile if depth == 0 => Ok(true),
            FileType::RegularFile => match self.interpreter(&resolved) {
                None => Ok(true),
                Some((kind, path)) => match self.check_chain(&path, directory, user, depth - 1) {
                    Ok(_) => Ok(true),
                    Err(fault) => Err(ProgramFault::Interpreter { kind, path, fault: Box::new(fault) }),
                },
            },
            FileType::Directory => Err(ProgramFault::Directory),
            _ => Err(ProgramFault::Special),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::view::tests::{NOBODY, view_with_programs};

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let text = serde_json::json!({
            "config": { "Entrypoint": entrypoint, "Cmd": cmd }, "rootfs": { "type": "layers" },
        });
        ImageConfig::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        // (Entrypoint and Cmd of the image, entrypoint and command of the caller, expected words)
        for (image, entrypoint, command, expected) in [
            ((&[][..], &["sh"][..]), None, &[][..], "sh"),
            ((&[], &["sh"]), None, &["ls", "-l"], "ls -l"),
            ((&["tini", "--"], &["sh"]), None, &[], "tini -- sh"),
            ((&["tini", "--"], &["sh"]), None, &["ls"], "tini -- ls"),
            ((&["tini", "--"], &["sh"]), Some(""), &["ls"], "ls"),
            ((&["tini", "--"], &["sh"]), Some(""), &[], ""),
            ((&["tini", "--"], &["sh"]), Some("env"), &["ls"], "env ls"),
            ((&["tini", "--"], &["sh"]), Some("env"), &[], "env"),
            ((&[], &[]), None, &[], ""),
        ] {
            let command: Vec<OsString> = command.iter().map(OsString::from).collect();
            let words = words(&config(image.0, image.1), entrypoint.map(OsStr::new), &command);
            assert_eq!(words.join(OsStr::new(" ")), expected, "{image:?} {entrypoint:?} {command:?}");
        }
    }

    #[test]
    fn program_search_stays_in_the_root() {
        let (_dir, view) = view_with_programs();
        let find = |word: &str, path: &str| {
            let program = view.find_program(OsStr::new(word), OsStr::new(path), Path::new("/box"), NOBODY);
            program.map(|path| path.into_os_string().into_string().unwrap())
        };
        let path = "/nowhere:/usr/bin:/opt/bin";
        assert_eq!(find("tool", path).as_deref(), Ok("/usr/bin/tool"));
        assert_eq!(find("tool", "/bin").as_deref(), Ok("/bin/tool"));
        assert_eq!(
            find("plain", path).as_deref(),
            Ok("/opt/bin/plain"),
            "the first candidate is not executable"
        );
        assert_eq!(find("plain", "/usr/bin"), Err(ProgramFault::NotExecutable));
        assert_eq!(find("absolute", path).as_deref(), Ok("/usr/bin/absolute"));
        assert_eq!(find("climbing", path).as_deref(), Ok("/usr/bin/climbing"), "`..` stops at the root");
        for missing in ["leaking", "circle", "directory", "absent", "", "."] {
            let fault = find(missing, path).unwrap_err();
            assert!(matches!(fault, ProgramFault::NotInPath | ProgramFault::Missing), "{missing}: {fault:?}");
        }
        // A known program wins over a directory whose content is not known. An empty mount has no programs.
        assert_eq!(find("tool", "/proc/x:/tmp:/usr/bin").as_deref(), Ok("/usr/bin/tool"));
        assert_eq!(find("absent", "/tmp:/proc/x:/usr/bin").as_deref(), Ok("/proc/x/absent"));
        assert_eq!(find("absent", "/tmp:/usr/bin"), Err(ProgramFault::NotInPath));
        // An empty entry is the working directory.
        assert_eq!(find("submission", "/usr/bin:").as_deref(), Ok("./submission"));
    }

    #[test]
    fn program_with_a_slash_is_checked_in_the_view_of_the_run() {
        let (_dir, view) = view_with_programs();
        let check = |word: &str| {
            view.find_program(OsStr::new(word), OsStr::new("/usr/bin"), Path::new("/box"), NOBODY)
        };
        for path in [
            "/bin/tool",
            "./submission",
            "/box/submission",
            "/work/submission",
            "../data/bound",
            "/data/bound",
            "/proc/self/exe",
            "/private/tool",
        ] {
            assert_eq!(check(path).unwrap(), Path::new(path));
        }
        for (word, fault) in [
            ("/bin/absent", ProgramFault::Missing),
            ("/bin/tool/below", ProgramFault::Missing),
            ("/bin/leaking", ProgramFault::Missing),
            ("/data/hidden", ProgramFault::Missing),
            ("./tool", ProgramFault::Missing),
            ("/bin/circle", ProgramFault::Path(Errno::LOOP)),
            ("/bin/directory", ProgramFault::Directory),
            ("/box", ProgramFault::Directory),
            ("/tmp", ProgramFault::Directory),
            ("/tmp/tool", ProgramFault::Missing),
            ("/", ProgramFault::Directory),
            ("/usr/bin/plain", ProgramFault::NotExecutable),
        ] {
            assert_eq!(check(word), Err(fault), "{word}");
        }
    }
}
