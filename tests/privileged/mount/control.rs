//! The control socket of a real daemon: the accounts of failed reads, and users that hold connections.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcx_imagefs::daemon::{ControlRequest, ControlResponse, ask};
use rcx_imagefs::fuse::{AccountMark, ReadFailure, ReadFailureReport};
use support::child::wait_until;
use support::program::Program;
use support::text::{image, layers, load};

const SOON: Duration = Duration::from_secs(5);
const CONTENT: &str = "content-that-will-be-damaged";

fn mark(socket: &Path) -> AccountMark {
    match ask(socket, ControlRequest::Ping, SOON) {
        Ok(ControlResponse::Pong(mark)) => mark,
        other => panic!("{other:?}"),
    }
}

fn failures_since(socket: &Path, mark: AccountMark) -> ReadFailureReport {
    match ask(socket, ControlRequest::ReadFailures { since: mark.sequence, readers: None }, SOON) {
        Ok(ControlResponse::ReadFailures(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// Reads a file in another process, which must fail. Returns its process ID.
#[track_caller]
fn fail_to_read(path: &Path) -> u32 {
    let mut child =
        Command::new("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert!(!child.wait().unwrap().success(), "{} can be read", path.display());
    pid
}

/// Checks the only failure in the report: who asked, and that the parents of that process lead to this test.
#[track_caller]
fn assert_charged(report: &ReadFailureReport, pid: u32) -> &ReadFailure {
    let [failure] = &report.failures[..] else { panic!("{report:#?}") };
    assert_eq!(failure.pid, pid, "{failure:#?}");
    assert_eq!(failure.ancestors.first(), Some(&std::process::id()), "{failure:#?}");
    assert_eq!((report.lost, report.mark.sequence), (0, failure.sequence));
    failure
}

#[test]
fn failed_reads_are_charged_to_the_process_that_asked_in_the_mount_and_in_roots() {
    let program = Program::new();
    let layers = layers(&format!("d dir\nf dir/file {CONTENT}\nf intact text"));
    let (blob, tar) = (layers[0].digest.to_string(), layers[0].bytes.clone());
    let name = load(&program, &image("damaged", layers));
    let mount = program.mount();
    let socket = program.dir().join("run/control.sock");
    let root = mount.path(&name);
    assert_eq!(fs::read_dir(root.join("dir")).unwrap().count(), 1, "the image is open");
    let at = tar.windows(CONTENT.len()).position(|bytes| bytes == CONTENT.as_bytes()).unwrap();
    let file = File::options().write(true).open(program.blob(&blob)).unwrap();
    file.write_all_at(b"C", at.try_into().unwrap()).unwrap();

    let before = mark(&socket);
    assert_eq!((before.sequence, failures_since(&socket, before).failures.len()), (0, 0));
    let pid = fail_to_read(&root.join("dir/file"));
    let report = failures_since(&socket, before);
    let failure = assert_charged(&report, pid);
    assert_eq!(failure.blob.as_deref(), Some(&*blob));
    assert_eq!(failure.layer.as_deref(), Some(&*blob));
    assert_eq!((failure.path.as_deref(), &*failure.code), (Some("dir/file"), "damaged"));
    assert!(failure.reason.contains("checksum"), "{failure:#?}");

    // ENOENT is an answer, not a failure.
    assert!(!root.join("dir/missing").exists());
    assert_eq!(failures_since(&socket, report.mark).failures, []);

    let overlay = program.ok(&["root", "create", &name, "--engine", "fuse", "--id", "one"]);
    let after = mark(&socket);
    let pid = fail_to_read(&Path::new(&overlay).join("dir/file"));
    let report = failures_since(&socket, after);
    assert_eq!(assert_charged(&report, pid).path.as_deref(), Some("dir/file"));
    program.ok(&["root", "remove", "one"]);
    mount.stop();
}

#[test]
fn image_without_its_blob_is_charged_to_the_process_that_opened_it() {
    let program = Program::new();
    let layers = layers("f file text");
    let blob = layers[0].digest.to_string();
    let name = load(&program, &image("missing", layers));
    let mount = program.mount();
    let socket = program.dir().join("run/control.sock");
    fs::remove_file(program.blob(&blob)).unwrap();
    let before = mark(&socket);
    let pid = fail_to_read(&mount.path(&name).join("file"));
    let report = failures_since(&socket, before);
    let failure = assert_charged(&report, pid);
    assert_eq!(failure.image.as_deref(), Some(&*name));
    assert_eq!((failure.blob.as_deref(), &*failure.code), (Some(&*blob), "no-blob"));
    mount.stop();
}

/// Runs a function as a user without privileges, in a thread of its own.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let nobody = rustix::thread::Uid::from_raw(65534);
            // Only this thread changes its user.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn user_who_holds_many_connections_keeps_nobody_else_from_being_answered() {
    let program = Program::new();
    load(&program, &image("any", layers("f file text")));
    let mount = program.mount();
    let run = program.dir().join("run");
    let socket = run.join("control.sock");
    let held: Vec<UnixStream> =
        as_nobody(|| (0..32).map(|_| UnixStream::connect(&socket).unwrap()).collect());
    for _ in 0..8 {
        let started = std::time::Instant::now();
        mark(&socket);
        assert!(started.elapsed() < SOON);
    }
    // The user learns why, and gets an answer again when the connections are closed.
    let mut line = String::new();
    BufReader::new(&held[31]).read_line(&mut line).unwrap();
    assert!(line.contains("too many connections"), "{line}");
    let ping = || as_nobody(|| ask(&socket, ControlRequest::Ping, SOON));
    assert!(ping().unwrap_err().to_string().contains("too many connections"));
    drop(held);
    wait_until("the daemon notices that the connections are closed", || ping().is_ok());
    mount.stop();
}
