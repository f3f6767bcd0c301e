//! A host with the stand-in installed as administrators do: set-uid, called by somebody who is not root.

use std::ffi::OsStr;
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::{Images, run, sha256};
use support::program::{Program, TestMount};

/// Who calls.
pub(super) const CALLER: u32 = 12_345;
/// Somebody else.
pub(super) const OTHER: u32 = 12_346;

/// Puts a directory over `/etc` in a mount namespace of its own, so that the host keeps its configuration, and becomes a user there.
const AS_USER: &str = r#"mount -t overlay -o "lowerdir=$1:/etc" rcx-test-etc /etc && user=$2 && shift 2 &&
    exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@""#;

/// A real isolate.
#[derive(Debug, Clone)]
pub(super) struct Isolate {
    pub(super) path: PathBuf,
    /// Whether it can use control groups here.
    pub(super) cg: bool,
}

impl Isolate {
    fn new(path: PathBuf) -> Self {
        let mut isolate = Self { path, cg: true };
        let lock = lock_box();
        let probe = |isolate: &Self, mode| isolate.as_caller(lock.0, mode).output().unwrap();
        isolate.cg = probe(&isolate, "--init").status.success();
        // Also what a failed try may have begun.
        probe(&isolate, "--cleanup");
        isolate
    }

    /// A call that is about the box itself, by the caller.
    fn as_caller(&self, id: u32, mode: &str) -> Command {
        let user = CALLER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(&self.path);
        command.args(self.cg.then_some("--cg")).arg(format!("--box-id={id}")).arg(mode);
        command
    }
}

/// The isolate of the `PATH`, and those that `RCX_IMAGEFS_TEST_ISOLATES` lists.
pub(super) fn isolates() -> Vec<Isolate> {
    let further = std::env::var_os("RCX_IMAGEFS_TEST_ISOLATES").unwrap_or_default();
    let further = std::env::split_paths(&further).filter(|path| !path.as_os_str().is_empty());
    std::iter::once(isolate_of_the_path()).chain(further.map(Isolate::new)).collect()
}

/// The isolate of the `PATH`.
pub(super) fn isolate_of_the_path() -> Isolate {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|place| place.join("isolate"));
    Isolate::new(places.into_iter().find(|path| path.is_file()).expect("isolate is on the PATH"))
}

/// The number of a box that no other test has. The kernel gives it back when the test ends, however that is.
fn lock_box() -> (u32, UnixListener) {
    let free = |id: &u32| {
        let name = SocketAddr::from_abstract_name(format!("rcx-imagefs-test-box-{id}")).unwrap();
        UnixListener::bind_addr(&name).ok()
    };
    (500..900).find_map(|id| free(&id).map(|lock| (id, lock))).expect("a box is free")
}

/// A box that is initialised, by the caller; cleaned up when dropped.
#[derive(Debug)]
pub(super) struct SandboxBox {
    pub(super) id: u32,
    /// The box's user, which isolate's configuration says.
    pub(super) uid: u32,
    /// The box's directory.
    pub(super) dir: PathBuf,
    isolate: Isolate,
    _lock: UnixListener,
}

impl SandboxBox {
    pub(super) fn new(isolate: &Isolate) -> Self {
        let (id, lock) = lock_box();
        let output = isolate.as_caller(id, "--init").output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let dir = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("box");
        let asked = isolate.as_caller(id, "--run").args(["--silent", "--", "/usr/bin/id", "-u"]).output();
        let uid = String::from_utf8_lossy(&asked.unwrap().stdout).trim().parse().expect("isolate runs `id`");
        Self { id, uid, dir, isolate: isolate.clone(), _lock: lock }
    }

    /// The options that a call about this box needs.
    pub(super) fn options(&self) -> Vec<String> {
        let cg = self.isolate.cg.then(|| "--cg".to_owned());
        cg.into_iter().chain([format!("--box-id={}", self.id)]).collect()
    }

    /// Processes that are in the box.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes().into_iter().filter(|(_, uid)| *uid == self.uid).map(|(pid, _)| pid).collect()
    }
}

impl Drop for SandboxBox {
    fn drop(&mut self) {
        let _ = self.isolate.as_caller(self.id, "--cleanup").output();
    }
}

/// All processes, and whose each is.
fn processes() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, fs::metadata(format!("/proc/{pid}")).ok()?.uid()))).collect()
}

/// The host.
#[derive(Debug)]
pub(super) struct Host {
    // Dropped first: the other fields' directories cannot be removed below a mount.
    pub(super) mount: Option<TestMount>,
    pub(super) program: Program,
    pub(super) isolate: Isolate,
    /// The image, `NAME@DIGEST`.
    pub(super) name: String,
    /// The image, as it was pulled.
    pub(super) reference: String,
    /// The image in the mount, without a colon.
    pub(super) image: String,
    /// The stand-in.
    pub(super) shim: PathBuf,
    /// A directory of the caller's.
    pub(super) own: PathBuf,
    before: Vec<String>,
}

impl Host {
    /// With the isolate of the `PATH`, and an image of busybox.
    pub(super) fn new() -> Self {
        Self::with(isolate_of_the_path(), &[])
    }

    pub(super) fn with_isolate(isolate: Isolate) -> Self {
        Self::with(isolate, &[])
    }

    /// With a shell script as the isolate.
    pub(super) fn with_script(script: &str) -> Self {
        Self::with_script_and(script, &[])
    }

    /// The same with a further layer in the image.
    pub(super) fn with_script_and(script: &str, layer: &[u8]) -> Self {
        let mut host = Self::with(Isolate { path: "/nonexistent".into(), cg: false }, layer);
        let path = host.program.dir().join("real-isolate");
        let version = "[ \"$1\" = --version ] && echo 'The process isolator 2.6' && exit";
        fs::write(&path, format!("#!/bin/sh\n{version}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        host.isolate.path = path;
        host.configure("");
        host
    }

    /// With a further layer, a tar, in the image, and the variables `PATH` and `OF_IMAGE`.
    pub(super) fn with(isolate: Isolate, layer: &[u8]) -> Self {
        let images = Images::make(&["small"]);
        let layout = images.layout().copy_of("small");
        let diff = format!("sha256:{}", sha256(layer));
        if !layer.is_empty() {
            layout.add_layer_blob(layer);
            layout.change_manifest(|manifest| {
                let media = "application/vnd.oci.image.layer.v1.tar";
                let layer = serde_json::json!({"mediaType": media, "digest": diff, "size": layer.len()});
                manifest["layers"].as_array_mut().unwrap().push(layer);
            });
        }
        layout.change_config(|config| {
            if !layer.is_empty() {
                config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(diff.as_str().into());
            }
            config["config"]["Env"] = serde_json::json!(["PATH=/bin:/opt/of-image", "OF_IMAGE=image"]);
        });
        let registry = DockerRegistry::start();
        registry.push(&layout.image(), "lab/image:1", &[]);
        let reference = registry.reference("lab/image:1");
        let program = Program::new();
        let name = program.pull(&reference);
        let mount = program.mount();
        let image = program.ok(&["path", "--no-colon", &name]);
        let (bin, own) = (program.dir().join("bin"), program.dir().join("own"));
        let shim = bin.join("isolate");
        fs::create_dir(bin).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_rcx-imagefs-isolate"), &shim).unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir(&own).unwrap();
        chown(&own, Some(CALLER), Some(CALLER)).unwrap();
        let mount = Some(mount);
        let mut host =
            Self { mount, program, isolate, name, reference, image, shim, own, before: Vec::new() };
        host.configure("");
        // The first root makes what all share.
        host.program.ok(&["root", "create", &host.name, "--id", "first"]);
        host.program.ok(&["root", "remove", "first"]);
        host.before = host.files();
        host
    }

    /// Where the configuration is in the caller's namespace, seen from outside of it.
    pub(super) fn config(&self) -> PathBuf {
        self.program.dir().join("etc/rcx-imagefs/config.toml")
    }

    /// Writes the configuration, with `isolate` as the further lines of the table.
    pub(super) fn configure(&self, isolate: &str) {
        self.configure_all(&format!("[isolate]\npath = '{}'\n{isolate}", self.isolate.path.display()));
    }

    /// Writes the configuration, with all but the places.
    pub(super) fn configure_all(&self, further: &str) {
        fs::create_dir_all(self.config().parent().unwrap()).unwrap();
        let (store, run_dir) = (self.program.store().display(), self.run_dir());
        let text = format!("store = '{store}'\nrun-dir = '{}'\n{further}", run_dir.display());
        fs::write(self.config(), text).unwrap();
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.program.dir().join("run")
    }

    pub(super) fn homes(&self) -> PathBuf {
        self.program.store().join("rcx-imagefs/roots")
    }

    /// A program, called by somebody.
    pub(super) fn by(&self, user: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", AS_USER, "sh"]);
        command.arg(self.program.dir().join("etc")).arg(user.to_string()).arg(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(&self.own).stdin(Stdio::null());
        command
    }

    /// The stand-in, called by the caller.
    pub(super) fn isolate(&self) -> Command {
        self.by(CALLER, &self.shim)
    }

    /// A shell of the caller's, whose `$0` is the stand-in.
    pub(super) fn shell(&self, script: &str) -> Command {
        let mut command = self.by(CALLER, "sh");
        command.args(["-c", script]).arg(&self.shim);
        command
    }

    /// The arguments of a run in the image.
    pub(super) fn run_arguments(&self, sandbox: &SandboxBox, options: &[&str], script: &str) -> Vec<String> {
        let mut arguments = sandbox.options();
        arguments.push(format!("--dir=.={}:rw", self.image));
        arguments.push("--processes=20".to_owned());
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        arguments.extend(["--run", "--", "/bin/sh", "-c", script].map(str::to_owned));
        arguments
    }

    /// Runs a shell's script in the image, and returns what it printed. It must succeed.
    #[track_caller]
    pub(super) fn run(&self, sandbox: &SandboxBox, options: &[&str], script: &str) -> String {
        succeeded(&self.isolate().args(self.run_arguments(sandbox, options, script)).output().unwrap())
    }

    /// Calls the stand-in, which must fail by itself: exit code 2, one line on stderr, and the same in the meta file. Returns
    /// the message.
    #[track_caller]
    pub(super) fn fails(&self, command: &mut Command, arguments: &[String]) -> String {
        let meta = self.own.join("meta.failed");
        let _ = fs::remove_file(&meta);
        command.arg(format!("--meta={}", meta.display())).args(arguments);
        let message = failed(&command.output().unwrap());
        let told = fs::read_to_string(&meta).expect("a meta file");
        assert_eq!(told, format!("status:XX\nmessage:{message}\n"));
        assert_eq!(fs::metadata(&meta).unwrap().uid(), CALLER);
        self.is_clean();
        message
    }

    /// Guardians of runs in this host's images.
    pub(super) fn guardians(&self) -> Vec<u32> {
        let is_one = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.shim);
        processes().into_iter().map(|(pid, _)| pid).filter(is_one).collect()
    }

    /// Waits for the guardians, and checks that they have left nothing.
    #[track_caller]
    pub(super) fn is_clean(&self) {
        wait_until("the guardians are done", || self.guardians().is_empty());
        assert_eq!(self.files(), self.before, "files are left");
        let root = self.run_dir().join("root");
        let mounts = |pid: u32| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let root = format!(" {} ", root.display());
        let holding: Vec<_> =
            processes().into_iter().filter(|(pid, _)| mounts(*pid).contains(&root)).collect();
        assert_eq!(holding, [], "mounts are left");
    }

    /// What is in the run directory, and below the homes.
    fn files(&self) -> Vec<String> {
        let (run_dir, homes) = (self.run_dir(), self.homes());
        let found = run("find", &[run_dir.to_str().unwrap(), homes.to_str().unwrap(), "-printf", "%P %y\n"]);
        let mut found: Vec<_> = found
            .lines()
            .filter(|line| !line.starts_with("isolate-version") && *line != "control.sock s")
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    }
}

/// What a process said.
pub(super) fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// What a call printed, which must have succeeded.
#[track_caller]
pub(super) fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The message of a call that must have failed by itself: exit code 2, nothing on stdout, one line on stderr.
#[track_caller]
pub(super) fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    assert!(output.stdout.is_empty(), "{}", said(output));
    let error = String::from_utf8_lossy(&output.stderr);
    let message = error.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
    let message = message.filter(|message| message.starts_with("rcx-imagefs: ") && !message.contains('\n'));
    message.unwrap_or_else(|| panic!("one line, an error: {error:?}")).to_owned()
}

/// A tar of what `add` adds.
pub(super) fn tar(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder);
    builder.into_inner().unwrap()
}

/// A process that is killed when dropped: a test that fails leaves no box that is in use.
#[derive(Debug)]
pub(super) struct Running(pub(super) std::process::Child);

impl Running {
    pub(super) fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub(super) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
