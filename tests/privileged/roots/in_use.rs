//! Roots in use, roots without a daemon, and invalid root names.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::{RootsFixture, names};
use support::child::wait_until;
use support::images::run;
use support::program::{binary, failure, is_mounted};
use support::running::RunningProcess;

#[test]
fn live_root_survives_every_cleanup() {
    let fixture = RootsFixture::new();
    let roots = ["dir", "tmpfs:8M", "none"].map(|upper| {
        let id = upper.split(':').next().unwrap();
        (id, fixture.create(id, upper))
    });
    for (id, root) in &roots[..2] {
        fs::write(root.join("box/mine"), id).unwrap();
    }
    let assert_alive = |fixture: &RootsFixture| {
        for (id, root) in &roots {
            assert_eq!(fixture.state(id).as_deref(), Some("mounted"));
            assert!(is_mounted(root));
        }
        for (id, root) in &roots[..2] {
            assert_eq!(fs::read_to_string(root.join("box/mine")).unwrap(), *id);
            fs::write(root.join("box/more"), "more").unwrap();
        }
    };
    assert_eq!(fixture.sweep(), json!([]));
    assert_eq!(fixture.program().json(&["gc"])["roots"], 0);
    assert_eq!(fixture.program().json(&["gc", "--dry-run"])["roots"], 0);
    assert_alive(&fixture);
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--id", "dir"]);
    assert!(error.contains("root dir already exists"), "{error}");
    assert_alive(&fixture);
    for (id, _) in &roots {
        fixture.remove(id);
    }
    fixture.finish();
}

#[test]
fn dead_daemon_is_reported_and_its_roots_can_be_removed() {
    for engine in ["fuse", "erofs"] {
        check_dead_daemon(engine);
    }
}

fn check_dead_daemon(engine: &str) {
    let mut fixture = RootsFixture::new();
    let roots = ["dir", "tmpfs:8M", "none"].map(|upper| -> PathBuf {
        let id = upper.split(':').next().unwrap();
        let create =
            ["root", "create", &fixture.mounted.good, "--id", id, "--upper", upper, "--engine", engine];
        fixture.program().ok(&create).into()
    });
    let mut user = RunningProcess::in_directory(&roots[0].join("box"));
    fixture.mounted.mount.server().signal("KILL");
    fixture.mounted.mount.server().wait();
    if engine == "fuse" {
        let dead = fs::read_dir(roots[0].join("bin")).and_then(|mut dir| dir.next().transpose());
        assert_eq!(dead.unwrap_err().kind(), io::ErrorKind::NotConnected);
    } else {
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        assert!(roots[0].join("bin/busybox").is_file(), "names need no daemon");
        fs::read(roots[0].join("bin/busybox")).unwrap_err();
    }
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good]);
    assert!(
        error.contains("no daemon serves the store") && error.contains("rcx-imagefs mount DIR"),
        "{error}"
    );
    for id in ["dir", "tmpfs", "none"] {
        assert_eq!(fixture.state(id).as_deref(), Some("dead"));
    }
    fixture.remove("none");
    // A root that a process uses is not swept. A run of another test may have a copy of the mounts for a moment.
    assert_eq!(fixture.program().json(&["gc", "--dry-run"])["roots"], 2);
    wait_until("no process has the root", || fixture.sweep() == json!(["tmpfs"]));
    assert_eq!(fixture.state("dir").as_deref(), Some("dead"));
    user.kill();
    // The next daemon replaces the dead mount, and sweeps.
    fixture.mount_new_daemon();
    fixture.assert_clean();
    let root = fixture.create("it", "dir");
    assert_eq!(fs::read_to_string(root.join("etc/motd")).unwrap(), "a small image\n");
    assert_eq!(fixture.state("it").as_deref(), Some("mounted"));
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn root_of_a_stopped_daemon_is_not_dead() {
    let mut fixture = RootsFixture::new();
    fixture.create("it", "dir");
    fixture.mounted.mount.server().signal("STOP");
    assert_eq!(fixture.state("it").as_deref(), Some("mounted"));
    assert_eq!(fixture.sweep(), json!([]));
    fixture.mounted.mount.server().signal("CONT");
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn roots_made_with_umask_077_are_accessible_to_other_users() {
    let fixture = RootsFixture::new();
    let program = fixture.program();
    let run_dir = program.dir().join("new/run");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(binary("rcx-imagefs"));
    command.arg("--store").arg(program.store()).arg("--run-dir").arg(&run_dir);
    let output = command.args(["root", "create", &fixture.mounted.good, "--id", "it"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for directory in [run_dir.parent().unwrap(), &run_dir, &run_dir.join("roots"), &run_dir.join("root")] {
        assert_eq!(fs::metadata(directory).unwrap().mode() & 0o7777, 0o755, "{}", directory.display());
    }
    let motd = run_dir.join("roots/it/etc/motd");
    let user = ["--reuid", "4242", "--regid", "4242", "--clear-groups", "cat", motd.to_str().unwrap()];
    assert_eq!(run("setpriv", &user), "a small image\n");
    let run_dir = run_dir.to_str().unwrap();
    run(
        binary("rcx-imagefs").to_str().unwrap(),
        &["--store", program.store().to_str().unwrap(), "--run-dir", run_dir, "root", "remove", "it"],
    );
    fixture.finish();
}

#[test]
fn dead_mount_and_missing_mount_give_different_errors() {
    const CONNECTIONS: &str = "/sys/fs/fuse/connections";
    let mut fixture = RootsFixture::new();
    if names(Path::new(CONNECTIONS)).is_empty() {
        run("mount", &["-t", "fusectl", "fusectl", CONNECTIONS]);
    }
    let device = fs::metadata(fixture.mounted.mount.dir()).unwrap().dev();
    // The stopped daemon still holds the lock of the store and does not notice that its connection is aborted.
    fixture.mounted.mount.server().signal("STOP");
    let abort = format!("{CONNECTIONS}/{}/abort", rustix::fs::minor(device));
    fs::write(abort, "1").unwrap();
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good]);
    let mountpoint = fixture.mounted.mount.dir().to_str().unwrap();
    for word in [mountpoint, "is dead: its daemon is gone", "Transport endpoint", "rcx-imagefs mount DIR"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    fixture.assert_clean();
    fixture.mounted.mount.server().signal("KILL");
    fixture.mounted.mount.server().wait();
    fixture.mount_new_daemon();
    fixture.finish();
}

#[test]
fn missing_image_is_an_error_that_names_it() {
    let fixture = RootsFixture::new();
    let error = fixture.program().fails(&["root", "create", "lab/absent:1"]);
    assert!(error.contains("lab/absent:1 is not in the store") && error.contains("pull"), "{error}");
    let digest = format!("{}@sha256:{}", fixture.mounted.reference("lab/good"), "0".repeat(64));
    let error = fixture.program().fails(&["root", "create", &digest]);
    assert!(error.contains("is not in the store"), "{error}");
    fixture.create("it", "dir");
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn root_in_use_is_removed_only_by_force_and_swept_once_free() {
    let fixture = RootsFixture::new();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = fixture.create("used", upper);
        let mut user = RunningProcess::in_directory(&root.join("etc"));
        let error = fixture.program().fails(&["root", "remove", "used"]);
        let named = format!("root used is in use by process {} (sleep)", user.pid());
        assert!(error.contains(&named) && error.contains("--force"), "{error}");
        let output = fixture.program().run(&["root", "remove", "used", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer[0]["holders"], &answer[0]["code"]), (&json!([user.pid()]), &json!("in-use")));
        assert_eq!(fixture.state("used").as_deref(), Some("mounted"));

        let output = fixture.program().run(&["root", "remove", "used", "--force", "--json"]);
        assert!(output.status.success());
        assert!(!is_mounted(&root) && !root.exists());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            answer,
            json!([{"id": "used", "removed": false, "holders": [user.pid()], "error": null, "code": null}])
        );
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("root used is detached"), "{errors}");
        assert_eq!(fixture.state("used").as_deref(), Some("detached"));
        // While in use, the root is not swept and its name cannot be reused.
        let assert_in_use = |fixture: &RootsFixture| {
            assert_eq!(fixture.sweep(), json!([]));
            assert_eq!(fixture.program().json(&["gc"])["roots"], 0);
            let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--id", "used"]);
            assert!(error.contains("root used already exists"), "{error}");
        };
        if upper == "dir" {
            assert_in_use(&fixture);
            let process = PathBuf::from(format!("/proc/{}/cwd/../box/late", user.pid()));
            fs::write(&process, "late").unwrap();
            assert_in_use(&fixture);
        }
        user.kill();
        wait_until("the root is swept", || {
            fixture.sweep();
            fixture.state("used").is_none()
        });
        fixture.assert_clean();
    }
    fixture.finish();
}

#[test]
fn process_with_an_open_file_in_a_root_is_a_holder_of_it() {
    let fixture = RootsFixture::new();
    for (upper, with_mount) in [("dir", false), ("tmpfs:8M", false), ("dir", true)] {
        let root = fixture.create("held", upper);
        let tmp = root.join("tmp");
        if with_mount {
            run("mount", &["-t", "tmpfs", "tmpfs", tmp.to_str().unwrap()]);
        }
        let file = fs::File::create(tmp.join("file")).unwrap();
        let mut holder = RunningProcess(Command::new("sleep").arg("1000").stdin(file).spawn().unwrap());
        for force in [false, true] {
            let arguments = ["root", "remove", "held", "--json", "--force"];
            let output = fixture.program().run(&arguments[..if force { 5 } else { 4 }]);
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            // Only the mount below the root is in use then.
            let holders = if force && with_mount { json!([]) } else { json!([holder.pid()]) };
            assert_eq!(answer[0]["holders"], holders, "{upper}, {with_mount}, {force}: {answer}");
            assert_eq!(answer[0]["removed"], json!(force && with_mount), "{answer}");
        }
        holder.kill();
        wait_until("the root is swept", || {
            fixture.sweep();
            fixture.state("held").is_none()
        });
    }
    fixture.finish();
}

#[test]
fn root_mounted_in_another_namespace_is_reported_and_outlives_its_removal() {
    let fixture = RootsFixture::new();
    let root = fixture.create("it", "dir");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sleep", "1000"]);
    let mut holder = RunningProcess(command.spawn().unwrap());
    let pid = holder.pid();
    let comm = format!("/proc/{pid}/comm");
    wait_until("the process has its own namespace", || fs::read_to_string(&comm).unwrap() == "sleep\n");
    // The namespace has a copy of every mount. A copy alone does not count as use, and it disappears with the mountpoint.
    fixture.remove("it");
    assert!(!root.exists());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    // Roots of other tests have the same name.
    assert!(!mounts.contains(root.to_str().unwrap()), "{mounts}");
    holder.kill();
    fixture.finish();
}

#[test]
fn invalid_unknown_and_removed_root_names_are_errors() {
    let fixture = RootsFixture::new();
    fixture.create("it", "dir");
    fixture.remove("it");
    for id in ["it", "unknown"] {
        let error = fixture.program().fails(&["root", "remove", id]);
        assert!(error.contains(&format!("there is no root {id}")) && error.contains("root list"), "{error}");
    }
    let long = "x".repeat(65);
    for id in ["..", "a/b", "a:b", "a,b", "A", "", ".a", &long] {
        for arguments in [&["root", "remove", id][..], &["root", "create", &fixture.mounted.good, "--id", id]]
        {
            let error = fixture.program().fails(arguments);
            assert!(error.contains("1 to 64 characters of"), "{error}");
        }
    }
    for upper in ["ram", "tmpfs", "tmpfs:0", "dir:x", "none:1"] {
        let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--upper", upper]);
        assert!(error.contains(&format!("upper `{upper}`")), "{error}");
    }
    // Of several roots, all that can be removed are removed.
    fixture.create("one", "dir");
    fixture.create("two", "none");
    let output = fixture.program().run(&["root", "remove", "one", "unknown", "two", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let removed = |id: &str| json!({"id": id, "removed": true, "holders": [], "error": null, "code": null});
    assert_eq!((&answer[0], &answer[2]), (&removed("one"), &removed("two")));
    assert_eq!((&answer[1]["id"], &answer[1]["code"]), (&json!("unknown"), &json!("no-root")));
    fixture.finish();
}

#[test]
fn one_of_several_concurrent_creates_of_one_root_wins() {
    let fixture = RootsFixture::new();
    for round in 0..10 {
        let children: Vec<_> = (0..8).map(|_| fixture.start_create("it", "dir")).collect();
        let outputs: Vec<Output> =
            children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
        assert_eq!(won.len(), 1, "round {round}: {outputs:#?}");
        for output in lost {
            let error = failure(output, &["root", "create"]);
            assert!(error.contains("root it already exists"), "{error}");
        }
        fs::write(fixture.run_dir().join("roots/it/box/file"), "").unwrap();
        fixture.remove("it");
        fixture.assert_clean();
    }
    fixture.finish();
}

#[test]
fn sixteen_concurrent_creates_and_removes_leave_nothing() {
    let fixture = RootsFixture::new();
    let outputs = |children: Vec<Child>| {
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    };
    for _ in 0..3 {
        let id = |number: usize| format!("many-{number}");
        let upper = |number: usize| ["dir", "tmpfs:1M", "none"][number % 3];
        outputs((0..16).map(|number| fixture.start_create(&id(number), upper(number))).collect());
        for number in (0..16).filter(|number| number % 3 != 2) {
            fs::write(fixture.run_dir().join("roots").join(id(number)).join("box/file"), "").unwrap();
        }
        assert_eq!(fixture.program().json(&["root", "list"]).as_array().unwrap().len(), 16);
        let remove = |number| {
            let id = id(number);
            // Concurrent sweeps do nothing.
            let arguments = if number < 16 { vec!["root", "remove", &id] } else { vec!["root", "sweep"] };
            let mut command = fixture.program().command(&arguments);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        outputs((0..20).map(remove).collect());
        fixture.assert_clean();
    }
    fixture.finish();
}

#[test]
fn homes_without_a_mount_are_swept_after_a_reboot() {
    let fixture = RootsFixture::new();
    for (id, upper) in [("cut-disk", "dir"), ("cut-memory", "tmpfs:1M"), ("cut-shared", "none")] {
        let root = fixture.create(id, upper);
        if upper == "dir" {
            fs::write(root.join("box/file"), "").unwrap();
        }
        run("umount", &[root.to_str().unwrap()]);
        assert_eq!(fixture.state(id).as_deref(), Some("detached"));
    }
    // A directory whose name is not a valid root name is not touched.
    let foreign = fixture.homes().join("Not Ours");
    fs::create_dir(&foreign).unwrap();
    // A run of another test may have a copy of the mounts for a moment.
    wait_until("no process has a root", || fixture.program().json(&["gc", "--dry-run"])["roots"] == 3);
    assert_eq!(fixture.sweep(), json!(["cut-disk", "cut-memory", "cut-shared"]));
    fs::remove_dir(foreign).unwrap();
    fixture.assert_clean();
    // The home of an unmounted root blocks neither a new root of that name nor its removal.
    let root = fixture.create("after", "dir");
    run("umount", &[root.to_str().unwrap()]);
    fixture.create("after", "tmpfs:1M");
    run("umount", &[root.to_str().unwrap()]);
    fixture.remove("after");
    fixture.finish();
}

#[test]
fn roots_with_the_same_name_in_two_stores_are_independent() {
    let (fixture, other) = (RootsFixture::new(), RootsFixture::new());
    let (root, other_root) = (fixture.create("same", "dir"), other.create("same", "dir"));
    let mut user = RunningProcess::in_directory(&other_root.join("etc"));
    fs::write(root.join("box/file"), "").unwrap();
    assert_eq!(names(&other_root.join("box")), Vec::<String>::new());
    fixture.remove("same");
    assert_eq!(other.sweep(), json!([]));
    let error = other.program().fails(&["root", "remove", "same"]);
    assert!(error.contains(&format!("in use by process {}", user.pid())), "{error}");
    user.kill();
    other.remove("same");
    fixture.finish();
    other.finish();
}
