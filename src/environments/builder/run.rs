//! Runs buildah.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use super::{BuildDirectory, BuildLimits, BuildOutput, Builder, Ending, Supervision};
use crate::environments::Revision;
use crate::environments::error::EnvironmentsError;
use crate::environments::fault::{BuildFailure, BuildFault};
use crate::environments::records::ApprovedBase;
use crate::os::{AtPath as _, PathError};
use crate::store::{ImageRecord, Store};

/// What runs in the namespaces of a build.
const SCRIPT: &str = include_str!("script.sh");
/// The exit code of the script if the build could not begin.
const EXIT_SETUP: i32 = 99;
/// The programs that a build needs, with their Debian packages.
const TOOLS: &[(&str, &str)] = &[
    ("buildah", "buildah"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("setpriv", "util-linux"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
];
/// Free space below which the disk of a build counts as full.
const DISK_FULL: u64 = 256 << 10;
/// Accepts every image: the digests of the base images were verified when they were stored.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// The base images of a build, in the order of the approval.
pub type BaseImages = Vec<(ApprovedBase, ImageRecord)>;

impl Builder {
    /// Checks that this host has all programs.
    ///
    /// # Errors
    ///
    /// One is missing.
    pub fn check_tools() -> Result<(), EnvironmentsError> {
        let directories = std::env::var_os("PATH").unwrap_or_default();
        let is_missing = |program: &str| {
            !std::env::split_paths(&directories).any(|directory| directory.join(program).is_file())
        };
        match TOOLS.iter().find(|(program, _)| is_missing(program)) {
            Some(&(program, package)) => Err(EnvironmentsError::NoTool { program, package }),
            None => Ok(()),
        }
    }

    /// Builds a revision. `Ok(Err(_))` is a failure of the revision itself; `Ok(Ok(false))` means that `stopped` ended the build.
    ///
    /// The caller holds a lease of the store.
    ///
    /// # Errors
    ///
    /// The build could not begin.
    #[expect(clippy::too_many_arguments, reason = "each is another thing, and there is one caller")]
    pub fn build(
        &self,
        directory: &BuildDirectory,
        revision: &Revision,
        store: &Store,
        bases: &BaseImages,
        limits: &BuildLimits,
        log: &mut BuildOutput,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Result<bool, BuildFailure>, EnvironmentsError> {
        let mut options = Vec::new();
        for (number, (base, image)) in bases.iter().enumerate() {
            options.extend(directory.add_base(number, base, store, image)?);
        }
        let path = directory.path();
        for (name, content) in [("policy.json", POLICY), ("empty.conf", "")] {
            fs::write(path.join(name), content).at("write", &path.join(name))?;
        }
        fs::create_dir(path.join("mnt")).at("make directory", &path.join("mnt"))?;
        make_disk(&path.join("disk"), limits.disk)?;

        // The first program ends with this process, the second one's child, the first process of the namespace, with the second one.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
        ]);
        command.args(["--kill-child", "--mount-proc", "--", "sh", "-c", SCRIPT, "build"]);
        command
            .arg(revision.context_path())
            .args(options)
            .current_dir(path)
            .stdin(Stdio::from(self.lock_file()?));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", path.join("mnt/tmp"))
            .env("TMPDIR", path.join("mnt/tmp"))
            .env("LC_ALL", "C.UTF-8");
        for variable in ["CONTAINERS_CONF", "CONTAINERS_REGISTRIES_CONF", "CONTAINERS_STORAGE_CONF"] {
            command.env(variable, path.join("empty.conf"));
        }
        // Signals of the terminal are for this process.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mount = path.join("mnt");
        let supervision = Supervision {
            deadline: Instant::now() + limits.time,
            stopped,
            exceeds: &|pid| is_full(pid, &mount).then_some(BuildFault::DiskLimit),
            signal: Signal::KILL,
            stdout: None,
        };
        log.note(&format!("building {}", revision.id))?;
        let ending = log.run(&mut command, &supervision)?;
        let fail = |fault, message| Ok(Err(BuildFailure { fault, message }));
        match ending {
            Ending::Stopped => Ok(Ok(false)),
            Ending::Exceeded(fault) => fail(fault, limits.exceeded(fault)),
            Ending::Exited(status) if status.success() => Ok(Ok(true)),
            Ending::Exited(status) if status.code() == Some(EXIT_SETUP) => {
                Err(EnvironmentsError::BuildSetup(log.last_line()))
            }
            Ending::Exited(_) if log.ends_near("no space left on device") => {
                fail(BuildFault::DiskLimit, limits.exceeded(BuildFault::DiskLimit))
            }
            Ending::Exited(_) => fail(BuildFault::Build, log.last_line()),
        }
    }
}

impl BuildLimits {
    /// The message of a build that exceeded a limit.
    fn exceeded(&self, fault: BuildFault) -> String {
        match fault {
            BuildFault::TimeLimit => {
                format!("it took longer than {} seconds (`build-time`)", self.time.as_secs())
            }
            BuildFault::LogLimit => {
                format!("it printed more than {} bytes (`build-log`)", self.log)
            }
            _ => format!("it filled its disk of {} bytes (`build-disk`)", self.disk),
        }
    }
}

/// Whether the filesystem of a build is full, seen from its mount namespace. Before it is mounted, and after the end, it is not.
fn is_full(pid: u32, mount: &Path) -> bool {
    let inside = Path::new("/proc").join(pid.to_string()).join("root");
    let Ok(relative) = mount.strip_prefix("/") else { return false };
    let stat = rustix::fs::statvfs(inside.join(relative));
    stat.is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < DISK_FULL)
}

/// Makes the image of an empty filesystem. Its space is taken at once: a full disk of the host must not damage it later.
fn make_disk(path: &Path, size: u64) -> Result<(), PathError> {
    let file = File::create_new(path).at("create", path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP) => file.set_len(size).at("enlarge", path)?,
        allocated => allocated.at("enlarge", path)?,
    }
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"])
        .arg(path);
    let output = command.stdin(Stdio::null()).output().at("run mkfs.ext4 on", path)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(PathError::new("run mkfs.ext4 on", path, io::Error::other(text)))
        }
    }
}
