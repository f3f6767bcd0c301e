//! The store is private: other users see images only through the mount and the daemon.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::child::Server;
use support::program::{Program, binary};
use support::text::{image, layers, load};
use support::trees::paths;

/// A user who is neither root nor the owner of the store.
const USER: u32 = 4242;
/// The group that the configuration names.
const GROUP: u32 = 4343;
const SECRET: &str = "only-for-root-in-the-image";

/// A store with one image that holds a file with mode 0600, and a copy of the program that every user can run.
struct PrivateStore {
    program: Program,
    copy: PathBuf,
    name: String,
    blob: PathBuf,
}

impl PrivateStore {
    fn new() -> Self {
        let program = Program::new();
        // Other users may have no access to the build directory.
        let copy = program.dir().join("program");
        fs::copy(binary("rcx-imagefs"), &copy).unwrap();
        let layers = layers(&format!("d etc\nf etc/shadow {SECRET} mode=600\nf etc/motd hello"));
        let blob = program.blob(&layers[0].digest.to_string());
        let name = load(&program, &image("one", layers));
        Self { program, copy, name, blob }
    }

    /// Runs the program as a user and a group.
    fn run_as(&self, (user, group): (u32, u32), arguments: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={group}")]).args(["--clear-groups", "--"]);
        command.arg(&self.copy);
        self.program.set_up(&mut command);
        command.args(arguments).output().unwrap()
    }

    #[track_caller]
    fn ok_as(&self, user: (u32, u32), arguments: &[&str]) -> String {
        let output = self.run_as(user, arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out.trim_end().to_owned()
    }

    /// Runs a command as a user, which must fail. Returns code and message, and the hint.
    #[track_caller]
    fn fails_as(&self, user: (u32, u32), arguments: &[&str]) -> (String, String, String) {
        let output = self.run_as(user, &[arguments, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}"));
        let field = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
        (field("code"), field("message"), field("hint"))
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.program.store(), Permissions::from_mode(mode)).unwrap();
    }

    fn mode(&self) -> u32 {
        fs::metadata(self.program.store()).unwrap().mode() & 0o7777
    }

    /// Whether a user can read a file.
    fn can_read(user: (u32, u32), path: &Path) -> bool {
        let (user, group) = user;
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={group}")]).args(["--clear-groups", "cat"]);
        command.arg(path).output().unwrap().status.success()
    }
}

#[test]
fn user_sees_images_through_the_daemon_and_no_content_beyond_the_modes_of_the_image() {
    let store = PrivateStore::new();
    let mount = store.program.mount();
    let user = (USER, USER);
    assert_eq!(store.mode(), 0o700);
    assert!(!PrivateStore::can_read(user, &store.blob));
    assert!(!PrivateStore::can_read(user, &mount.path(&store.name).join("etc/shadow")));
    assert!(PrivateStore::can_read(user, &mount.path(&store.name).join("etc/motd")));

    let digest = store.name.split_once('@').unwrap().1;
    for arguments in [
        &["images"][..],
        &["images", "--json"],
        &["inspect", "lab/text:one"],
        &["inspect", &digest[..16], "--json"],
        &["path", "lab/text:one"],
        &["path", "--no-colon", digest, "--json"],
    ] {
        assert_eq!(store.ok_as(user, arguments), store.program.ok(arguments), "{arguments:?}");
    }
    let status: Value = serde_json::from_str(&store.ok_as(user, &["status", "--json"])).unwrap();
    assert_eq!(status["mountpoint"], mount.dir().to_str().unwrap());
    let (code, message, _) = store.fails_as(user, &["inspect", "lab/absent"]);
    assert_eq!((&*code, message.contains("lab/absent")), ("no-image", true), "{message}");

    // A document that no image has as its manifest stays private, even with a known digest.
    let layer = store.blob.file_name().unwrap().to_str().unwrap();
    let (code, ..) = store.fails_as(user, &["inspect", layer]);
    assert_eq!(code, "no-image");

    // What is wrong with an image is told in the same words.
    fs::remove_file(&store.blob).unwrap();
    let arguments = ["inspect", "lab/text:one", "--json"];
    assert_eq!(store.ok_as(user, &arguments), store.program.ok(&arguments));
    fs::remove_file(store.program.blob(digest)).unwrap();
    let arguments = ["images", "--json"];
    assert_eq!(store.ok_as(user, &arguments), store.program.ok(&arguments));
    assert_eq!(store.fails_as(user, &["inspect", "lab/text:one"]).0, "no-blob");
    mount.stop();
}

#[test]
fn command_that_needs_a_private_store_names_it_its_mode_and_what_to_do() {
    let store = PrivateStore::new();
    let path = store.program.store().to_str().unwrap().to_owned();
    let target = store.program.dir().join("copy");
    let private = |user, arguments: &[&str], mode: &str| {
        let (code, message, hint) = store.fails_as(user, arguments);
        let expected = format!("store {path} is private: it belongs to user 0 and has mode {mode}");
        assert_eq!(code, "permission", "{arguments:?}: {message}");
        assert!(message.starts_with(&expected), "{arguments:?}: {message}");
        assert!(hint.contains("as root or as the owner of the store"), "{arguments:?}: {hint}");
    };
    let changing: [&[&str]; 4] =
        [&["pull", "127.0.0.1:1/x"], &["load", "/nonexistent"], &["rm", "lab/text:one"], &["gc"]];
    let reading: [&[&str]; 3] = [
        &["verify"],
        &["unpack", "lab/text:one", target.to_str().unwrap()],
        &["root", "create", "lab/text:one"],
    ];
    let listing: [&[&str]; 4] =
        [&["images"], &["inspect", "lab/text:one"], &["path", "lab/text:one"], &["status"]];
    for arguments in changing.iter().chain(&reading).chain(&listing) {
        private((USER, USER), arguments, "0700");
    }
    let run = store.run_as((USER, USER), &["run", "lab/text:one", "--", "/bin/true"]);
    let error = String::from_utf8_lossy(&run.stderr);
    assert!(error.contains("is private: it belongs to user 0 and has mode 0700"), "{error}");
    let (_, message, hint) = store.fails_as((USER, USER), &["images"]);
    assert!(message.contains("no daemon answers at"), "{message}");
    assert!(hint.contains("start the daemon"), "{hint}");
    // A member of the group may read the store, but not change it.
    chown(store.program.store(), None, Some(GROUP)).unwrap();
    store.set_mode(0o750);
    for arguments in &changing[..] {
        private((USER, GROUP), arguments, "0750");
    }
    store.ok_as((USER, GROUP), &["images"]);
}

#[test]
fn daemon_of_another_store_is_not_asked() {
    let store = PrivateStore::new();
    let other = Program::new();
    // Both use the run directory of the first.
    let dir = store.program.dir().join("images");
    fs::create_dir(&dir).unwrap();
    let run_dir = store.program.dir().join("run");
    let mut command = Command::new(binary("rcx-imagefs"));
    command.arg("--store").arg(other.store()).arg("--run-dir").arg(&run_dir).arg("mount").arg(&dir);
    let mut server = Server::start(&command, &store.program.dir().join("log"));
    server.line().unwrap();
    let (code, message, _) = store.fails_as((USER, USER), &["images"]);
    assert_eq!(code, "permission");
    assert!(message.contains(&format!("serves the store {}", other.store().display())), "{message}");
    server.signal("TERM");
    server.wait();
}

#[test]
fn store_of_version_0_1_becomes_private_with_a_message() {
    let store = PrivateStore::new();
    let layout = store.program.dir().join("layouts/one");
    let load = ["load", "--name", "lab/text", layout.to_str().unwrap()];
    for (mode, arguments) in
        [(0o755, &load[..]), (0o755, &["gc"]), (0o775, &["rm", "lab/text:absent"]), (0o777, &["images"])]
    {
        store.set_mode(mode);
        let output = store.program.run(arguments);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains(&format!("(mode {mode:04o})")) && log.contains("(mode 0700)"), "{log}");
        assert_eq!(store.mode(), 0o700, "{arguments:?}");
        let again = store.program.run(arguments);
        assert!(!String::from_utf8_lossy(&again.stderr).contains("mode"), "{arguments:?}");
    }
    // A command that only reads the store does not change it.
    store.set_mode(0o755);
    store.program.ok(&["images"]);
    assert_eq!(store.mode(), 0o755);
    let mount = store.program.mount();
    assert_eq!(store.mode(), 0o700);
    assert!(mount.log().contains("it is private now"), "{}", mount.log());
    mount.stop();
}

#[test]
fn group_of_the_configuration_may_read_the_store() {
    let store = PrivateStore::new();
    fs::write(store.program.dir().join("config.toml"), format!("store-group = '{GROUP}'\n")).unwrap();
    store.program.ok(&["gc"]);
    assert_eq!(store.mode(), 0o750);
    assert_eq!(fs::metadata(store.program.store()).unwrap().gid(), GROUP);
    let member = (USER, GROUP);
    // No daemon runs.
    assert_eq!(store.ok_as(member, &["images"]), store.program.ok(&["images"]));
    store.ok_as(member, &["verify", "--deep"]);
    assert!(PrivateStore::can_read(member, &store.blob));
    assert!(!PrivateStore::can_read((USER, USER), &store.blob));
    let private = store.program.store().join("rcx-imagefs/locks");
    assert!(!PrivateStore::can_read(member, &private.join("gc")));
    // Without the key, access that others do not have is not taken from the group.
    fs::write(store.program.dir().join("config.toml"), "").unwrap();
    store.program.ok(&["gc"]);
    assert_eq!(store.mode(), 0o750);
    fs::write(store.program.dir().join("config.toml"), "store-group = 'no-such-group'\n").unwrap();
    let error = store.program.fails(&["gc"]);
    assert!(error.contains("store-group `no-such-group` does not exist"), "{error}");
}

#[test]
fn modes_in_a_store_do_not_depend_on_the_umask() {
    let modes = |umask: &str| {
        let program = Program::new();
        let dir = program.dir().join("above/store");
        let layout = program.dir().join("layouts/one");
        support::layout::write(&layout, [&image("one", layers("f file x"))]);
        for arguments in [
            &["load", "--name", "lab/text", layout.to_str().unwrap()][..],
            &["rm", "--keep", "lab/text:one"],
            &["verify"],
            &["gc"],
        ] {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("umask {umask}; exec \"$@\"")).arg("sh");
            command.arg(binary("rcx-imagefs")).arg("--store").arg(&dir);
            let output = command.arg("--run-dir").arg(program.dir().join("run")).args(arguments).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let above = dir.parent().unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        let mut modes: Vec<_> =
            paths(above).into_iter().map(|path| (mode(&above.join(&path)), path)).collect();
        modes.push((mode(above), "above".into()));
        modes
    };
    let modes_of = modes("022");
    let find = |name: &str| modes_of.iter().find(|(_, path)| path == Path::new(name)).unwrap().0;
    for (name, mode) in [
        ("above", 0o755),
        ("store", 0o700),
        ("store/blobs/sha256", 0o755),
        ("store/index.json", 0o644),
        ("store/rcx-imagefs/indexes", 0o755),
        ("store/rcx-imagefs/locks", 0o700),
        ("store/rcx-imagefs/locks/gc", 0o600),
        ("store/rcx-imagefs/reserve", 0o644),
    ] {
        assert_eq!(find(name), mode, "{name}");
    }
    for umask in ["077", "000", "027"] {
        assert_eq!(modes(umask), modes_of, "umask {umask}");
    }
}
