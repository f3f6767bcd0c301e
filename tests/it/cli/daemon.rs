//! `path`, `status`, and notifications of the daemon. The daemon is a part of the test and has no mount.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcx_imagefs::daemon::{ControlListener, ControlRequest, ControlResponse, DaemonStatus};
use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource};
use rcx_imagefs::store::{DaemonInfo, DaemonLock};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{LAYERS, Layout, Scene, keys};

/// Answers for a store until it is dropped.
struct Daemon {
    asked: Arc<Mutex<Vec<ControlRequest>>>,
    _lock: DaemonLock,
    _runtime: Runtime,
}

impl Daemon {
    /// Answers status requests with `status`, and all else as a daemon does; nobody listens without.
    fn new(scene: &Scene, status: Option<DaemonStatus>) -> Self {
        let socket = scene.program.dir().join("control.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked: Arc<Mutex<Vec<ControlRequest>>> = Arc::default();
        if let Some(status) = status {
            let listener = runtime.block_on(async { ControlListener::bind(&socket) }).unwrap();
            let heard = Arc::clone(&asked);
            let handle = move |request| {
                heard.lock().unwrap().push(request);
                match request {
                    ControlRequest::Ping => ControlResponse::Pong,
                    ControlRequest::Status => ControlResponse::Status(Box::new(status.clone())),
                    ControlRequest::Refresh => ControlResponse::Refreshed,
                }
            };
            runtime.spawn(async move { listener.answer(handle).await });
        }
        let info = DaemonInfo { pid: std::process::id(), socket, mountpoint: PathBuf::from("/mnt/images") };
        Self { asked, _lock: scene.store().lock_daemon(&info).unwrap(), _runtime: runtime }
    }

    fn asked(&self) -> Vec<ControlRequest> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn status(scene: &Scene) -> DaemonStatus {
    let fs = ImageFs::new(ImageSource::new(scene.store(), None), &FsOptions::default());
    fs.refresh().unwrap();
    DaemonStatus {
        version: "1.2.3".to_owned(),
        pid: 77,
        mountpoint: "/mnt/images".into(),
        store: scene.program.store().to_owned(),
        uptime_seconds: 5,
        threads: 4,
        filesystem: fs.status(),
        requests: BTreeMap::from([("lookup".to_owned(), 3), ("read".to_owned(), 0)]),
        errors: 1,
        panics: 0,
    }
}

#[test]
fn path_is_below_the_mount_and_has_an_alias_without_colons() {
    let (scene, digest) = Scene::with("reg.example:5000/lab/a:1");
    let _daemon = Daemon::new(&scene, Some(status(&scene)));
    let path = format!("/mnt/images/reg.example:5000/lab/a@{digest}");
    for reference in ["reg.example:5000/lab/a:1", &format!("reg.example:5000/lab/a@{digest}")] {
        assert_eq!(scene.program.ok(&["path", reference]), path);
        let alias = path.replace(':', "-");
        assert_eq!(scene.program.ok(&["path", "--no-colon", reference]), alias);
        let shown = scene.program.json(&["path", reference]);
        assert_eq!(shown, json!({ "path": path, "alias": alias, "digest": digest }));
    }
}

#[test]
fn status_shows_the_answer_of_the_daemon() {
    let (scene, _) = Scene::with("lab/a:1");
    let mut answer = status(&scene);
    answer.filesystem.failed = vec!["lab/b: it is\ngone".to_owned()];
    let daemon = Daemon::new(&scene, Some(answer));
    let shown = scene.program.json(&["status"]);
    let all = [
        "errors",
        "filesystem",
        "mountpoint",
        "panics",
        "pid",
        "requests",
        "store",
        "threads",
        "uptime_seconds",
        "version",
    ];
    assert_eq!(keys(&shown), all);
    assert_eq!(keys(&shown["filesystem"]), ["cache", "failed", "layers", "open", "published"]);
    let cache = ["bytes", "capacity", "decodes", "evictions", "failures", "hits", "misses", "spans", "waits"];
    assert_eq!(keys(&shown["filesystem"]["cache"]), cache);
    assert_eq!((&shown["pid"], &shown["filesystem"]["published"]), (&json!(77), &json!(1)));
    assert_eq!(shown["requests"], json!({ "lookup": 3, "read": 0 }));
    assert_eq!(daemon.asked(), [ControlRequest::Status]);

    let text = scene.program.ok(&["status"]);
    for line in [
        "rcx-imagefs 1.2.3, process 77, 5 s, 4 threads",
        "mount   /mnt/images",
        "images  1 published, 0 open, 1 failed",
        "  failed: lab/b: it is\\ngone",
        "layers  0 open",
        "cache   0 B of 256.00 MiB in 0 spans",
        "requests 3, answered with EIO 1, panics 0",
        "  lookup        3",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
}

#[test]
fn only_commands_that_change_the_store_notify_the_daemon() {
    let (scene, _) = Scene::with("lab/a:1");
    let daemon = Daemon::new(&scene, Some(status(&scene)));
    for command in [&["images"][..], &["inspect", "lab/a:1"], &["verify"], &["path", "lab/a:1"]] {
        scene.program.ok(command);
        assert_eq!(daemon.asked(), [], "{command:?}");
    }
    let layout = Layout::new(LAYERS);
    scene.program.ok(&["load", layout.path(), "--name", "lab/b:1"]);
    assert_eq!(daemon.asked(), [ControlRequest::Refresh]);
    scene.program.ok(&["rm", "lab/a:1"]);
    assert_eq!(daemon.asked(), [ControlRequest::Refresh]);
}

#[test]
fn missing_daemon_is_an_error_with_a_hint() {
    let (scene, _) = Scene::with("lab/a:1");
    let store = scene.program.store().display().to_string();
    for command in [&["status"][..], &["path", "lab/a:1"]] {
        let (error, hint) = scene.fails(command);
        assert_eq!(error, format!("no daemon serves the store {store}"));
        assert_eq!(hint.unwrap(), "start one with `rcx-imagefs mount DIR`");
    }
}

#[test]
fn dead_daemon_is_an_error_for_status_but_does_not_stop_changes() {
    let (scene, _) = Scene::with("lab/a:1");
    let _daemon = Daemon::new(&scene, None);
    let socket = scene.program.dir().join("control.sock");
    let (error, _) = scene.fails(&["status"]);
    assert_eq!(error, format!("no daemon answers at {}", socket.display()));
    assert_eq!(scene.program.ok(&["rm", "lab/a:1"]).lines().count(), 2);
    assert_eq!(scene.program.json(&["images"]), json!([]));
}

#[test]
fn second_daemon_is_refused_with_the_mountpoint_of_the_first() {
    let (scene, _) = Scene::with("lab/a:1");
    let _daemon = Daemon::new(&scene, Some(status(&scene)));
    let dir = scene.program.dir().join("images");
    std::fs::create_dir(&dir).unwrap();
    let (error, hint) = scene.fails(&["mount", dir.to_str().unwrap()]);
    assert!(error.contains("a daemon serves this store already") && error.contains("/mnt/images"), "{error}");
    assert_eq!(hint.unwrap(), "use its mount, or stop that daemon first");
}
