//! `path`, `status`, and notifications of the daemon. The daemon is a part of the test and has no mount.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcx_imagefs::daemon::{
    ControlListener, ControlRequest, ControlResponse, DaemonStatus, LayerFilesStatus, PlainLayersStatus,
};
use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource};
use rcx_imagefs::fuse::{AccountMark, LazyReads, ReadFailureReport};
use rcx_imagefs::store::{DaemonInfo, DaemonLock};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{Fixture, LAYERS, Layout, keys};

/// A daemon of a store, until it is dropped.
struct Daemon {
    received: Arc<Mutex<Vec<ControlRequest>>>,
    _lock: DaemonLock,
    _runtime: Runtime,
}

impl Daemon {
    /// Answers status requests with `status` and other requests as a daemon does. Without a status, nothing listens on the socket.
    fn new(fixture: &Fixture, status: Option<DaemonStatus>) -> Self {
        let socket = fixture.program.dir().join("control.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let received: Arc<Mutex<Vec<ControlRequest>>> = Arc::default();
        if let Some(status) = status {
            let listener = runtime.block_on(async { ControlListener::bind(&socket) }).unwrap();
            let log = Arc::clone(&received);
            let handle = move |request| {
                log.lock().unwrap().push(request);
                match request {
                    ControlRequest::Ping => ControlResponse::Pong(AccountMark::default()),
                    ControlRequest::Status => ControlResponse::Status(Box::new(status.clone())),
                    ControlRequest::Refresh => ControlResponse::Refreshed,
                    ControlRequest::ReadFailures { .. } => {
                        ControlResponse::ReadFailures(ReadFailureReport::default())
                    }
                    ControlRequest::Images => ControlResponse::Images(Vec::new()),
                    ControlRequest::Image { .. } => ControlResponse::Error("no images".to_owned()),
                }
            };
            runtime.spawn(async move { listener.answer(handle).await });
        }
        let info = DaemonInfo {
            pid: std::process::id(),
            socket,
            mountpoint: PathBuf::from("/mnt/images"),
            layers: None,
        };
        Self { received, _lock: fixture.store().lock_daemon(&info).unwrap(), _runtime: runtime }
    }

    fn received(&self) -> Vec<ControlRequest> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

fn status(fixture: &Fixture) -> DaemonStatus {
    let fs = ImageFs::new(ImageSource::new(fixture.store(), None), &FsOptions::default());
    fs.refresh().unwrap();
    DaemonStatus {
        version: "1.2.3".to_owned(),
        pid: 77,
        mountpoint: "/mnt/images".into(),
        store: fixture.program.store().to_owned(),
        uptime_seconds: 5,
        threads: 4,
        filesystem: fs.status(),
        requests: BTreeMap::from([("lookup".to_owned(), 3), ("read".to_owned(), 0)]),
        plain_layers: PlainLayersStatus { count: 3, bytes: 5 << 20 },
        errors: 1,
        panics: 0,
        reads: LazyReads { bytes: 2048, wait_ms: 30 },
        layer_files: Some(LayerFilesStatus {
            mountpoint: "/run/layers".into(),
            known: 2,
            requests: BTreeMap::from([("LOOKUP".to_owned(), 2), ("READ".to_owned(), 40)]),
        }),
    }
}

#[test]
fn path_is_below_the_mount_and_has_an_alias_without_colons() {
    let (fixture, digest) = Fixture::with("reg.example:5000/lab/a:1");
    let _daemon = Daemon::new(&fixture, Some(status(&fixture)));
    let path = format!("/mnt/images/reg.example:5000/lab/a@{digest}");
    for reference in ["reg.example:5000/lab/a:1", &format!("reg.example:5000/lab/a@{digest}")] {
        assert_eq!(fixture.program.ok(&["path", reference]), path);
        let alias = path.replace(':', "-");
        assert_eq!(fixture.program.ok(&["path", "--no-colon", reference]), alias);
        let shown = fixture.program.json(&["path", reference]);
        assert_eq!(shown, json!({ "path": path, "alias": alias, "digest": digest }));
    }
}

#[test]
fn status_shows_the_answer_of_the_daemon() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let mut answer = status(&fixture);
    answer.filesystem.failed = vec!["lab/b: it is\ngone".to_owned()];
    let daemon = Daemon::new(&fixture, Some(answer));
    let shown = fixture.program.json(&["status"]);
    let all = [
        "errors",
        "filesystem",
        "layer_files",
        "mountpoint",
        "panics",
        "pid",
        "plain_layers",
        "reads",
        "requests",
        "store",
        "threads",
        "uptime_seconds",
        "version",
    ];
    assert_eq!(keys(&shown), all);
    assert_eq!(shown["reads"], json!({ "bytes": 2048, "wait_ms": 30 }));
    assert_eq!(keys(&shown["layer_files"]), ["known", "mountpoint", "requests"]);
    assert_eq!(keys(&shown["filesystem"]), ["cache", "failed", "layers", "open", "published"]);
    let cache = ["bytes", "capacity", "decodes", "evictions", "failures", "hits", "misses", "spans", "waits"];
    assert_eq!(keys(&shown["filesystem"]["cache"]), cache);
    assert_eq!((&shown["pid"], &shown["filesystem"]["published"]), (&json!(77), &json!(1)));
    assert_eq!(shown["requests"], json!({ "lookup": 3, "read": 0 }));
    assert_eq!(daemon.received(), [ControlRequest::Status]);

    let text = fixture.program.ok(&["status"]);
    for line in [
        "rcx-imagefs 1.2.3, process 77, 5 s, 4 threads",
        "mount   /mnt/images",
        "images  1 published, 0 open, 1 failed",
        "  failed: lab/b: it is\\ngone",
        "layers  0 open",
        "cache   0 B of 256.00 MiB in 0 spans",
        "requests 3, failed 1, panics 0",
        "  lookup        3",
        "reads   2.00 KiB, waited 30 ms for them",
        "layer files /run/layers, 2 in use",
        "requests 42",
        "plain layers 3 (5.00 MiB)",
        "  READ          40",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
}

#[test]
fn only_commands_that_change_the_store_notify_the_daemon() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let daemon = Daemon::new(&fixture, Some(status(&fixture)));
    for command in [&["images"][..], &["inspect", "lab/a:1"], &["verify"], &["path", "lab/a:1"]] {
        fixture.program.ok(command);
        assert_eq!(daemon.received(), [], "{command:?}");
    }
    let layout = Layout::new(LAYERS);
    fixture.program.ok(&["load", layout.path(), "--name", "lab/b:1"]);
    assert_eq!(daemon.received(), [ControlRequest::Refresh]);
    fixture.program.ok(&["rm", "lab/a:1"]);
    assert_eq!(daemon.received(), [ControlRequest::Refresh]);
}

#[test]
fn missing_daemon_is_an_error_with_a_hint() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let store = fixture.program.store().display().to_string();
    for command in [&["status"][..], &["path", "lab/a:1"]] {
        let (error, hint) = fixture.fails(command);
        assert_eq!(error, format!("no daemon serves the store {store}"));
        assert_eq!(hint.unwrap(), "start one with `rcx-imagefs mount DIR`");
    }
}

#[test]
fn dead_daemon_is_an_error_for_status_but_does_not_stop_changes() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let _daemon = Daemon::new(&fixture, None);
    let socket = fixture.program.dir().join("control.sock");
    let (error, _) = fixture.fails(&["status"]);
    assert_eq!(error, format!("no daemon answers at {}", socket.display()));
    assert_eq!(fixture.program.ok(&["rm", "lab/a:1"]).lines().count(), 2);
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}

#[test]
fn second_daemon_is_refused_with_the_mountpoint_of_the_first() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let _daemon = Daemon::new(&fixture, Some(status(&fixture)));
    let dir = fixture.program.dir().join("images");
    std::fs::create_dir(&dir).unwrap();
    let (error, hint) = fixture.fails(&["mount", dir.to_str().unwrap()]);
    assert!(error.contains("a daemon already serves this store") && error.contains("/mnt/images"), "{error}");
    assert_eq!(hint.unwrap(), "use its mount, or stop that daemon first");
}
