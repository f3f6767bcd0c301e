//! A test host with the stand-in installed as administrators install it: set-uid, called by an unprivileged user.

use std::ffi::OsStr;
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::{Images, run};
use support::program::{Program, TestMount};

/// The user who calls the stand-in.
pub(super) const CALLER: u32 = 12_345;
/// Another unprivileged user.
pub(super) const OTHER: u32 = 12_346;

/// Overlays the directory `$1` on `/etc` in a private mount namespace, switches to the user `$2` and runs the remaining arguments.
/// The configuration of the real host stays untouched.
const AS_USER: &str = r#"mount -t overlay -o "lowerdir=$1:/etc" rcx-test-etc /etc && user=$2 && shift 2 &&
    exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@""#;

/// An installed isolate.
#[derive(Debug, Clone)]
pub(super) struct Isolate {
    pub(super) path: PathBuf,
    /// Whether it supports control groups on this machine.
    pub(super) cg: bool,
}

impl Isolate {
    fn new(path: PathBuf) -> Self {
        let mut isolate = Self { path, cg: true };
        let lock = lock_box();
        let probe = |isolate: &Self, mode| isolate.box_command(lock.0, mode).output().unwrap();
        isolate.cg = probe(&isolate, "--init").status.success();
        // A failed `--init` may leave a partial box.
        probe(&isolate, "--cleanup");
        isolate
    }

    /// Builds a call as the caller that manages the box `id`, such as `--init`.
    fn box_command(&self, id: u32, mode: &str) -> Command {
        let user = CALLER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(&self.path);
        command.args(self.cg.then_some("--cg")).arg(format!("--box-id={id}")).arg(mode);
        command
    }
}

/// The isolate on `PATH`, and those listed in `RCX_IMAGEFS_TEST_ISOLATES`.
pub(super) fn all_isolates() -> Vec<Isolate> {
    let others = std::env::var_os("RCX_IMAGEFS_TEST_ISOLATES").unwrap_or_default();
    let others = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    std::iter::once(isolate_on_path()).chain(others.map(Isolate::new)).collect()
}

/// The isolate on `PATH`.
pub(super) fn isolate_on_path() -> Isolate {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join("isolate"));
    Isolate::new(candidates.into_iter().find(|path| path.is_file()).expect("isolate is on the PATH"))
}

/// Reserves the number of a box that no other test uses. The kernel releases the reservation when the test process ends.
fn lock_box() -> (u32, UnixListener) {
    let free = |id: &u32| {
        let name = SocketAddr::from_abstract_name(format!("rcx-imagefs-test-box-{id}")).unwrap();
        UnixListener::bind_addr(&name).ok()
    };
    (500..900).find_map(|id| free(&id).map(|lock| (id, lock))).expect("one of the boxes 500 to 899 is free")
}

/// A box initialised by the caller. Dropping it runs `isolate --cleanup`.
#[derive(Debug)]
pub(super) struct SandboxBox {
    pub(super) id: u32,
    /// The user ID of the box, from the configuration of isolate.
    pub(super) uid: u32,
    /// The directory of the box.
    pub(super) dir: PathBuf,
    isolate: Isolate,
    _lock: UnixListener,
}

impl SandboxBox {
    pub(super) fn new(isolate: &Isolate) -> Self {
        let (id, lock) = lock_box();
        let output = isolate.box_command(id, "--init").output().unwrap();
        assert!(output.status.success(), "{}", describe(&output));
        let dir = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("box");
        let uid = isolate.box_command(id, "--run").args(["--silent", "--", "/usr/bin/id", "-u"]).output();
        let uid = String::from_utf8_lossy(&uid.unwrap().stdout).trim().parse().expect("isolate runs `id`");
        Self { id, uid, dir, isolate: isolate.clone(), _lock: lock }
    }

    /// The options that every call for this box needs.
    pub(super) fn options(&self) -> Vec<String> {
        let cg = self.isolate.cg.then(|| "--cg".to_owned());
        cg.into_iter().chain([format!("--box-id={}", self.id)]).collect()
    }

    /// The processes in the box.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes().into_iter().filter(|(_, uid)| *uid == self.uid).map(|(pid, _)| pid).collect()
    }
}

impl Drop for SandboxBox {
    fn drop(&mut self) {
        let _ = self.isolate.box_command(self.id, "--cleanup").output();
    }
}

/// All processes as (pid, uid).
fn processes() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, fs::metadata(format!("/proc/{pid}")).ok()?.uid()))).collect()
}

/// The name of a process.
fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// A host with a mounted image, the stand-in and its configuration.
#[derive(Debug)]
pub(super) struct Host {
    // Dropped first: the directories of the other fields cannot be removed below a mount.
    pub(super) mount: Option<TestMount>,
    pub(super) program: Program,
    pub(super) isolate: Isolate,
    /// The image as `NAME@DIGEST`.
    pub(super) name: String,
    /// The reference that the image was pulled by.
    pub(super) reference: String,
    /// The path of the image in the mount, without a colon.
    pub(super) image: String,
    /// The path of the stand-in.
    pub(super) shim: PathBuf,
    /// A directory that belongs to the caller.
    pub(super) caller_dir: PathBuf,
    /// The files in the run directory and the root homes before the test.
    initial_files: Vec<String>,
}

impl Host {
    /// Makes a host with the isolate on `PATH` and a busybox image.
    pub(super) fn new() -> Self {
        Self::with(isolate_on_path(), &[])
    }

    pub(super) fn with_isolate(isolate: Isolate) -> Self {
        Self::with(isolate, &[])
    }

    /// Makes a host with a shell script as its isolate.
    pub(super) fn with_script(script: &str) -> Self {
        Self::with_script_and_layer(script, &[])
    }

    /// Like [`Self::with_script`], with one more layer (a tar) in the image.
    pub(super) fn with_script_and_layer(script: &str, layer: &[u8]) -> Self {
        let mut host = Self::with(Isolate { path: "/nonexistent".into(), cg: false }, layer);
        let path = host.program.dir().join("real-isolate");
        let version = "[ \"$1\" = --version ] && echo 'The process isolator 2.6' && exit
            [ \"$1\" = --verbose ] && exit 2";
        fs::write(&path, format!("#!/bin/sh\n{version}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        host.isolate.path = path;
        host.configure("");
        host
    }

    /// Makes a host whose image has one more layer (a tar, may be empty) and sets `PATH` and `OF_IMAGE`.
    pub(super) fn with(isolate: Isolate, layer: &[u8]) -> Self {
        Self::make(isolate, layer, &["pull"])
    }

    /// Makes a host whose image has only plain layers.
    pub(super) fn with_plain_layers(isolate: Isolate) -> Self {
        Self::make(isolate, &[], &["pull", "--plain"])
    }

    fn make(isolate: Isolate, layer: &[u8], pull: &[&str]) -> Self {
        let images = Images::make(&["small"]);
        let layout = images.layout().copy_of("small");
        if !layer.is_empty() {
            layout.add_layer(layer);
        }
        layout.change_config(|config| {
            config["config"]["Env"] = serde_json::json!(["PATH=/bin:/opt/of-image", "OF_IMAGE=image"]);
        });
        let registry = DockerRegistry::start();
        registry.push(&layout.image(), "lab/image:1", &[]);
        let reference = registry.reference("lab/image:1");
        let program = Program::new();
        let name = program.ok(&[pull, &[&*reference]].concat());
        let mount = program.mount();
        let image = program.ok(&["path", "--no-colon", &name]);
        let (bin, caller_dir) = (program.dir().join("bin"), program.dir().join("own"));
        let shim = bin.join("isolate");
        fs::create_dir(bin).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_rcx-imagefs-isolate"), &shim).unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir(&caller_dir).unwrap();
        chown(&caller_dir, Some(CALLER), Some(CALLER)).unwrap();
        let mount = Some(mount);
        let mut host = Self {
            mount,
            program,
            isolate,
            name,
            reference,
            image,
            shim,
            caller_dir,
            initial_files: Vec::new(),
        };
        host.configure("");
        // The first command on roots creates the directories that all roots share.
        host.program.ok(&["root", "list"]);
        host.initial_files = host.files();
        host
    }

    /// The file that the caller's namespace shows as the configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.program.dir().join("etc/rcx-imagefs/config.toml")
    }

    /// Writes the configuration with `lines` added to its `[isolate]` table.
    pub(super) fn configure(&self, lines: &str) {
        self.configure_all(&format!("[isolate]\npath = '{}'\n{lines}", self.isolate.path.display()));
    }

    /// Writes the configuration: the store, the run directory and `lines`.
    pub(super) fn configure_all(&self, lines: &str) {
        fs::create_dir_all(self.config().parent().unwrap()).unwrap();
        let (store, run_dir) = (self.program.store().display(), self.run_dir());
        let text = format!("store = '{store}'\nrun-dir = '{}'\n{lines}", run_dir.display());
        fs::write(self.config(), text).unwrap();
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.program.dir().join("run")
    }

    pub(super) fn homes(&self) -> PathBuf {
        self.program.store().join("rcx-imagefs/roots")
    }

    /// Builds a call of a program by a user.
    pub(super) fn command_as(&self, user: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", AS_USER, "sh"]);
        command.arg(self.program.dir().join("etc")).arg(user.to_string()).arg(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(&self.caller_dir).stdin(Stdio::null());
        command
    }

    /// Builds a call of the stand-in by the caller.
    pub(super) fn isolate(&self) -> Command {
        self.command_as(CALLER, &self.shim)
    }

    /// Builds a call of a shell by the caller, with the stand-in as `$0`.
    pub(super) fn shell(&self, script: &str) -> Command {
        let mut command = self.command_as(CALLER, "sh");
        command.args(["-c", script]).arg(&self.shim);
        command
    }

    /// The arguments that run a shell script in the image.
    pub(super) fn run_arguments(&self, sandbox: &SandboxBox, options: &[&str], script: &str) -> Vec<String> {
        let mut arguments = sandbox.options();
        arguments.push(format!("--dir=.={}:rw", self.image));
        arguments.push("--processes=20".to_owned());
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        arguments.extend(["--run", "--", "/bin/sh", "-c", script].map(str::to_owned));
        arguments
    }

    /// Runs a shell script in the image and returns its output. The run must succeed.
    #[track_caller]
    pub(super) fn run(&self, sandbox: &SandboxBox, options: &[&str], script: &str) -> String {
        stdout_of(&self.isolate().args(self.run_arguments(sandbox, options, script)).output().unwrap())
    }

    /// Runs the stand-in, which must itself fail: exit code 2, one line on stderr and the same message in the meta file. Returns
    /// the message.
    #[track_caller]
    pub(super) fn fails(&self, command: &mut Command, arguments: &[String]) -> String {
        let meta = self.caller_dir.join("meta.failed");
        let _ = fs::remove_file(&meta);
        command.arg(format!("--meta={}", meta.display())).args(arguments);
        let message = failure_message(&command.output().unwrap());
        let content = fs::read_to_string(&meta).expect("the stand-in writes the meta file");
        assert_eq!(content, format!("status:XX\nmessage:{message}\n"));
        assert_eq!(fs::metadata(&meta).unwrap().uid(), CALLER);
        self.assert_clean();
        message
    }

    /// The running processes of the stand-in on this host: supervisors, guardians, and calls that have not executed isolate yet. The
    /// processes that hold the mount of an image outlive the calls.
    pub(super) fn stand_ins(&self) -> Vec<u32> {
        self.own_processes().filter(|pid| name_of(*pid) != "rcx-tree").collect()
    }

    /// The processes of the stand-in that hold the mount of an image.
    pub(super) fn holders(&self) -> Vec<u32> {
        self.own_processes().filter(|pid| name_of(*pid) == "rcx-tree").collect()
    }

    fn own_processes(&self) -> impl Iterator<Item = u32> {
        let is_ours = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.shim);
        processes().into_iter().map(|(pid, _)| pid).filter(is_ours)
    }

    /// The running guardians that have detached themselves from their callers.
    pub(super) fn guardians(&self) -> Vec<u32> {
        self.stand_ins().into_iter().filter(|pid| name_of(*pid) == "rcx-guardian").collect()
    }

    /// Waits for the guardians to exit and checks that no file and no mount is left behind.
    #[track_caller]
    pub(super) fn assert_clean(&self) {
        wait_until("the guardians have exited", || self.stand_ins().is_empty());
        assert_eq!(self.files(), self.initial_files, "files are left behind");
        let root = self.run_dir().join("root");
        let mounts = |pid: u32| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let root = format!(" {} ", root.display());
        let holders: Vec<_> =
            processes().into_iter().filter(|(pid, _)| mounts(*pid).contains(&root)).collect();
        assert_eq!(holders, [], "processes still hold mounts of roots");
    }

    /// Lists the files in the run directory and in the root homes, without those that every first call makes.
    fn files(&self) -> Vec<String> {
        let (run_dir, homes) = (self.run_dir(), self.homes());
        let found = run("find", &[run_dir.to_str().unwrap(), homes.to_str().unwrap(), "-printf", "%P %y\n"]);
        let mut found: Vec<_> = found
            .lines()
            .filter(|line| !line.starts_with("isolate-") && !["control.sock s", "boxes d"].contains(line))
            .filter(|line| !line.starts_with("trees") && !line.starts_with("layers"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    }
}

/// Describes how a process ended: its status, stdout and stderr.
pub(super) fn describe(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// The stdout of a call, which must have succeeded.
#[track_caller]
pub(super) fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", describe(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The message of a call in which the stand-in itself must have failed: exit code 2, nothing on stdout, one line on stderr.
#[track_caller]
pub(super) fn failure_message(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", describe(output));
    assert!(output.stdout.is_empty(), "{}", describe(output));
    let error = String::from_utf8_lossy(&output.stderr);
    let message = error.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
    let message = message.filter(|message| message.starts_with("rcx-imagefs: ") && !message.contains('\n'));
    message.unwrap_or_else(|| panic!("stderr should be one error line: {error:?}")).to_owned()
}

/// Makes a tar of the entries that `add` adds.
pub(super) fn tar(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder);
    builder.into_inner().unwrap()
}
