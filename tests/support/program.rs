//! Runs the program under test, with its own store and mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::child::Server;

/// Returns the path of a program of this package, built by cargo before the test that calls this.
///
/// Cargo names these paths to integration tests only (`CARGO_BIN_EXE_*`), not to the libraries that they use. It puts
/// programs into the directory above that of the test binaries.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("/proc/self/exe can be read");
    let path = test.parent().and_then(Path::parent).expect("TARGET/PROFILE/deps/TEST").join(name);
    assert!(path.is_file(), "{} is missing: build the whole package", path.display());
    path
}

/// `rcx-imagefs` with an empty store, an empty home directory and its own configuration file.
#[derive(Debug)]
pub struct Program {
    dir: TempDir,
    store: PathBuf,
}

impl Program {
    /// Makes a temporary directory, in which the store will be.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-test").tempdir().expect("temporary directory");
        // Some tests access the mount and the program as other users.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let store = dir.path().join("store");
        Self { dir, store }
    }

    /// The same with another place for the store.
    pub fn with_store(store: &Path) -> Self {
        Self { store: store.to_owned(), ..Self::new() }
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The temporary directory, also for other files of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file of a blob in the store.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.store.join("blobs").join(digest.replace(':', "/"))
    }

    /// Prepares a command: environment, global options, arguments.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(binary("rcx-imagefs"));
        self.set_up(&mut command);
        command.args(arguments);
        command
    }

    /// Sets the environment and the global options of a command.
    pub fn set_up(&self, command: &mut Command) {
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        for variable in ["RUST_LOG", "NO_COLOR", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "RCX_IMAGEFS_QUEUE"] {
            command.env_remove(variable);
        }
        for variable in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        let config = self.dir.path().join("config.toml");
        if !config.exists() {
            fs::write(&config, "").expect("write the configuration");
        }
        command.env("HOME", self.dir.path()).env("RUST_BACKTRACE", "1");
        command.arg("--store").arg(&self.store).arg("--run-dir").arg(self.dir.path().join("run"));
        command.arg("--config").arg(&config);
    }

    /// Runs a command.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs a command, which must succeed. Returns its standard output without the final newline.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}\n{out}{err}", output.status);
        out.trim_end().to_owned()
    }

    /// Runs a command with `--json`, which must succeed. Returns the parsed output.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?} --json: {error}: {text}"))
    }

    /// Runs a command, which must fail with exit code 2. Returns its standard error.
    pub fn fails(&self, arguments: &[&str]) -> String {
        failure(&self.run(arguments), arguments)
    }

    /// Pulls an image. Returns its `NAME@DIGEST`.
    pub fn pull(&self, reference: &str) -> String {
        self.ok(&["pull", reference])
    }

    /// Mounts the store at `images` in the temporary directory.
    pub fn mount(&self) -> TestMount {
        let dir = self.dir.path().join("images");
        fs::create_dir_all(&dir).expect("make the mountpoint");
        self.mount_at(&dir).unwrap_or_else(|error| panic!("mount: {error}"))
    }

    /// Mounts the store at a directory.
    ///
    /// # Errors
    /// The exit status and log of the daemon, if it ended.
    pub fn mount_at(&self, dir: &Path) -> Result<TestMount, String> {
        let log = self.dir.path().join("daemon.log");
        let mut server = Server::start(&self.command(&[OsStr::new("mount"), dir.as_os_str()]), &log);
        server.line()?;
        Ok(TestMount {
            dir: dir.to_owned(),
            layers: self.dir.path().join("run/layers"),
            mounts: MountTable::open(),
            server,
        })
    }
}

/// Checks that a command failed with exit code 2, nothing on stdout and one error on stderr. Returns the standard error.
pub fn failure(output: &Output, arguments: &[&str]) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{arguments:?} should fail with exit code 2\n{out}{err}");
    assert_eq!(out, "", "{arguments:?} should print nothing on stdout");
    assert_eq!(
        err.lines().filter(|line| line.starts_with("error:")).count(),
        1,
        "there should be one error:\n{err}"
    );
    assert!(!err.contains("panicked"), "{err}");
    err.into_owned()
}

/// A mounted store, served by a daemon in its own process. Unmounted on drop.
#[derive(Debug)]
pub struct TestMount {
    dir: PathBuf,
    layers: PathBuf,
    /// Of the namespace of the daemon. The test may enter another one, which keeps copies of the mounts.
    mounts: MountTable,
    server: Server,
}

impl TestMount {
    /// The mountpoint.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mountpoint of the layer files.
    pub fn layers(&self) -> &Path {
        &self.layers
    }

    /// A path below the mountpoint.
    pub fn path(&self, rest: &str) -> PathBuf {
        self.dir.join(rest)
    }

    /// The log of the daemon.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// The process of the daemon.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Stops the daemon with SIGTERM and checks that it exits with success and unmounts.
    pub fn stop(mut self) {
        self.server.signal("TERM");
        let status = self.server.wait();
        assert!(status.success(), "the daemon ended with {status}; log:\n{}", self.log());
        for dir in [&self.dir, &self.layers] {
            assert!(!self.mounts.has(dir), "{} is still mounted", dir.display());
        }
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        self.server.signal("TERM");
        // The daemon unmounts. If it cannot, or if the test killed it, the mount is removed below.
        let mounted = || [&self.dir, &self.layers].into_iter().filter(|dir| self.mounts.has(dir));
        for _ in 0..100 {
            if mounted().next().is_none() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = Command::new("umount").arg("--lazy").args(mounted()).status();
    }
}

/// Whether something is mounted at this directory, in the mount namespace of the calling thread.
pub fn is_mounted(dir: &Path) -> bool {
    MountTable::open().has(dir)
}

/// The mounts of the namespace that the thread was in when it opened the table.
#[derive(Debug)]
struct MountTable(File);

impl MountTable {
    fn open() -> Self {
        Self(File::open("/proc/thread-self/mountinfo").expect("open the mounts"))
    }

    fn has(&self, dir: &Path) -> bool {
        let (mut table, mut mounts) = (&self.0, String::new());
        table.rewind().expect("read the mounts again");
        table.read_to_string(&mut mounts).expect("read the mounts");
        mounts.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(dir))
    }
}
