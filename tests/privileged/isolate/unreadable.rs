//! The supervisor: runs whose image could not be read are reported as failures of the sandbox; everything else is passed on
//! from isolate unchanged.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use support::child::wait_until;

use super::host::{CALLER, Host, SandboxBox, all_isolates, describe, isolate_on_path, tar};
use support::running::RunningProcess;

/// A program that reads nothing of its image between its first and its last line of output.
const WAIT: &str = "echo started; read line; echo ended";
const READ: &str = "read line </data/file; exit 0";

/// Makes a host whose image has the file `data/file` in a layer of its own. Returns it and the digest of that layer.
fn host_with_file(isolate: super::host::Isolate) -> (Host, String) {
    let layer = tar(|tar| {
        let content: Vec<u8> =
            (0_u32..50_000).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, "data/file", &content[..]).unwrap();
    });
    let host = Host::with(isolate, &layer);
    let (_, digest) = host.name.split_once('@').unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(host.program.blob(digest)).unwrap()).unwrap();
    let layer = manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned();
    (host, layer)
}

/// Flips a bit in the middle of a blob.
fn damage(host: &Host, blob: &str) {
    let path = host.program.blob(blob);
    let middle = fs::metadata(&path).unwrap().len() / 2;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();
}

/// A run of a shell that waits until the test lets it end.
struct WaitingRun(Child);

impl WaitingRun {
    fn start(host: &Host, sandbox: &SandboxBox, options: &[&str]) -> Self {
        let mut command = host.isolate();
        command.args(host.run_arguments(sandbox, options, WAIT));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        // Without a buffer, so that the rest stays in the pipe.
        let mut out = BufReader::with_capacity(1, child.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        Self(child)
    }

    fn end(mut self) -> Output {
        // Fails if the program has ended, because it cannot read the image any more.
        let _ = self.0.stdin.take().unwrap().write_all(b"\n");
        self.0.wait_with_output().unwrap()
    }
}

/// Checks that the stand-in reports a failure of the sandbox that names all of `words`: on stderr after isolate's own line,
/// with its exit status and in the meta file, which belongs to the caller.
#[track_caller]
fn assert_internal(host: &Host, output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{}", describe(output));
    let error = String::from_utf8_lossy(&output.stderr);
    let message = error.lines().last().and_then(|line| line.strip_prefix("error: ")).unwrap_or_default();
    assert!(message.starts_with("rcx-imagefs: image "), "{error}");
    for word in words {
        assert!(message.contains(word), "the message should contain {word:?}: {message}");
    }
    let meta = host.caller_dir.join("meta");
    assert_eq!(fs::read_to_string(&meta).unwrap(), format!("status:XX\nmessage:{message}\n"));
    assert_eq!(fs::metadata(&meta).unwrap().uid(), CALLER);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn call_whose_image_could_not_be_read_is_a_failure_of_the_sandbox() {
    for isolate in all_isolates() {
        let (host, blob) = host_with_file(isolate.clone());
        let (sandbox, second) = (SandboxBox::new(&isolate), SandboxBox::new(&isolate));
        damage(&host, &blob);
        let run = |script: &str| {
            host.isolate().args(host.run_arguments(&sandbox, &["--meta=meta"], script)).output().unwrap()
        };
        let beside = WaitingRun::start(&host, &second, &["--meta=beside"]);
        // Whatever the program makes of the error: isolate reports success, an exit code, a signal.
        for script in [READ, "cat /data/file; exit 3", "cat /data/file & wait; kill -9 $$"] {
            assert_internal(&host, &run(script), &[&host.name, &blob]);
        }
        // A program that the image has but that cannot be read is not the program's fault either.
        let mut arguments = host.run_arguments(&sandbox, &["--meta=meta"], "");
        arguments.truncate(arguments.len() - 3);
        arguments.push("/data/file".to_owned());
        let output = host.isolate().args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
        // Failed reads of other runs and of processes of the host are not charged to a run.
        let read = Command::new("cat").arg(format!("{}/data/file", host.image)).output().unwrap();
        assert!(!read.status.success(), "{}", describe(&read));
        let output = beside.end();
        assert_eq!(
            (output.status.code(), &*output.stdout),
            (Some(0), &b"ended\n"[..]),
            "{}",
            describe(&output)
        );
        let meta = fs::read_to_string(host.caller_dir.join("beside")).unwrap();
        assert!(meta.contains("time:") && !meta.contains("status"), "{meta}");
        assert_eq!(host.run(&sandbox, &[], "cat /etc/motd"), "a small image\n");
        host.assert_clean();
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn call_whose_daemon_dies_is_a_failure_of_the_sandbox() {
    let mut host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let run = WaitingRun::start(&host, &sandbox, &["--meta=meta"]);
    let server = host.mount.as_mut().unwrap().server();
    server.signal("KILL");
    server.wait();
    let output = run.end();
    assert_internal(&host, &output, &[&host.name, "cannot ask the daemon", "no daemon answers"]);
}

/// A call of isolate that a signal ends: how, and what its meta file and stderr say apart from times.
fn ended_by(
    mut command: Command,
    host: &Host,
    sandbox: &SandboxBox,
    signal: &str,
) -> (Option<i32>, Option<i32>, String) {
    let mut child = RunningProcess::start(command.arg("--meta=meta").args([
        "--run",
        "--",
        "/bin/sh",
        "-c",
        "exec sleep 1000",
    ]));
    wait_until("the program runs", || {
        assert_eq!(child.0.try_wait().unwrap(), None, "{signal}: the call has ended");
        !sandbox.processes().is_empty()
    });
    let pid = child.0.id().to_string();
    let kill = host.command_as(CALLER, "/bin/kill").args(["-s", signal, &pid]).output().unwrap();
    assert!(kill.status.success(), "the caller cannot signal the stand-in: {}", describe(&kill));
    let status = child.0.wait().unwrap();
    wait_until("the box is empty", || sandbox.processes().is_empty());
    let meta = fs::read_to_string(host.caller_dir.join("meta")).unwrap_or_default();
    let keys = ["status:", "exitsig:", "message:", "killed:"];
    let meta: Vec<_> = meta.lines().filter(|line| keys.iter().any(|key| line.starts_with(key))).collect();
    let _ = fs::remove_file(host.caller_dir.join("meta"));
    (status.code(), status.signal(), meta.join("\n"))
}

#[test]
#[ignore = "needs isolate on PATH"]
fn signals_to_the_call_end_it_as_they_end_isolate() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let in_image = |signal: &str| {
            let mut command = host.isolate();
            command.args(sandbox.options()).arg(format!("--dir=.={}", host.image));
            ended_by(command, &host, &sandbox, signal)
        };
        for signal in ["TERM", "INT", "HUP", "QUIT"] {
            let mut command = host.command_as(CALLER, &isolate.path);
            command.args(sandbox.options());
            let on_host = ended_by(command, &host, &sandbox, signal);
            assert_eq!(in_image(signal), on_host, "SIG{signal}");
            host.assert_clean();
        }
        // isolate alone would leave its program running after these.
        for (signal, number) in [("KILL", libc::SIGKILL), ("USR1", libc::SIGUSR1)] {
            let (code, ended, _) = in_image(signal);
            assert_eq!((code, ended), (None, Some(number)));
            host.assert_clean();
        }
    }
}

#[test]
fn call_ends_with_the_exit_code_or_the_signal_of_isolate() {
    for (script, expected) in [
        ("exit 0", (Some(0), None)),
        ("exit 1", (Some(1), None)),
        ("exit 77", (Some(77), None)),
        ("kill -SEGV $$", (None, Some(libc::SIGSEGV))),
        ("kill -TERM $$", (None, Some(libc::SIGTERM))),
        ("kill -KILL $$", (None, Some(libc::SIGKILL))),
    ] {
        let host = Host::with_script(script);
        let arguments = [&format!("--dir=.={}", host.image), "--run", "--", "/bin/sh"].map(str::to_owned);
        let status = host.isolate().args(arguments).status().unwrap();
        assert_eq!((status.code(), status.signal()), expected, "{script}");
        host.assert_clean();
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn terminal_stops_continues_and_interrupts_the_call() {
    let host = Host::with_isolate(isolate_on_path());
    let sandbox = SandboxBox::new(&host.isolate);
    // script(1) gives an interactive shell with job control a terminal.
    let call: Vec<String> = std::iter::once(host.shim.display().to_string())
        .chain(host.run_arguments(&sandbox, &["--meta=meta"], "\"sleep 1000\""))
        .collect();
    let inner = host.command_as(CALLER, "script");
    let mut command = Command::new(inner.get_program());
    command.args(inner.get_args()).args(["-qec", "bash --norc -i", "/dev/null"]);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("PS1", "")
        .current_dir(&host.caller_dir);
    let mut child = RunningProcess(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut keys = child.0.stdin.take().unwrap();
    keys.write_all(format!("{}\n", call.join(" ")).as_bytes()).unwrap();
    wait_until("the program runs", || !sandbox.processes().is_empty());
    let states = || -> Vec<String> {
        let state = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let letter = |stat: String| stat.rsplit(") ").next().unwrap_or_default()[..1].to_owned();
        let supervisors = host.stand_ins().into_iter().filter(|pid| !host.guardians().contains(pid));
        supervisors.map(|pid| letter(state(pid))).collect()
    };
    wait_until("only the supervisor waits", || states() == ["S"]);
    keys.write_all(b"\x1a").unwrap();
    wait_until("the call is stopped", || states() == ["T"]);
    keys.write_all(b"fg\n").unwrap();
    wait_until("the call continues", || states() == ["S"]);
    keys.write_all(b"\x03").unwrap();
    wait_until("the box is empty", || sandbox.processes().is_empty());
    keys.write_all(b"exit 0\n").unwrap();
    drop(keys);
    child.0.wait().unwrap();
    let meta = fs::read_to_string(host.caller_dir.join("meta")).unwrap();
    assert!(meta.contains("status:SG") || meta.contains("exitsig:2"), "{meta}");
    host.assert_clean();
}
