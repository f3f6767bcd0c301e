//! The guardian depends neither on its caller nor on the daemon, and takes nothing that belongs to root.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::attempts::compile;
use super::host::{CALLER, Host, failure_message};
use support::child::wait_until;
use support::program::{Program, TestMount};
use support::running::RunningProcess;

/// The type of every EROFS (linux/magic.h).
const EROFS_MAGIC: i64 = 0xe0f5_e1e2;
/// A script that stands for isolate and does not end.
const SLEEP: &str = "exec sleep 1000";

fn in_image(host: &Host, flags: &str) -> Vec<String> {
    [&format!("--dir=.={}{flags}", host.image), "--run", "--", "/bin/sh"].map(str::to_owned).into()
}

#[test]
fn stopped_daemon_fails_the_call_within_seconds() {
    let mut host = Host::with_script(SLEEP);
    let mountpoint = host.mount.as_ref().unwrap().dir().to_owned();
    // Fills the caches of the kernel, and that of the version of isolate.
    RunningProcess::start(host.isolate().args(in_image(&host, ""))).kill();
    host.assert_clean();
    for flags in ["", ":rw"] {
        let server = host.mount.as_mut().unwrap().server();
        server.signal("STOP");
        let begin = Instant::now();
        let message = failure_message(&host.isolate().args(in_image(&host, flags)).output().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
        let expected = format!("the mount {} does not answer", mountpoint.display());
        assert!(message.contains(&expected), "{message}");
        // While it waits, the call can be killed.
        let mut child = RunningProcess::start(host.isolate().args(in_image(&host, flags)));
        wait_until("the call waits", || host.stand_ins().len() >= 2);
        child.kill();
        host.mount.as_mut().unwrap().server().signal("CONT");
        host.assert_clean();
    }
}

/// Mounts a copy of the host's store with a daemon of its own, and makes its mount that of the stand-in. Returns the mount, and
/// the path of the image in it.
///
/// While that daemon is stopped, the mount hangs although the host's own daemon answers on the control socket.
fn mount_beside_the_daemon(host: &Host) -> (Program, TestMount, String) {
    let other = Program::new();
    support::images::run(
        "cp",
        &["-a", host.program.store().to_str().unwrap(), other.store().to_str().unwrap()],
    );
    let mount = other.mount();
    host.configure(&format!("mountpoint = '{}'\n", mount.dir().display()));
    let image = other.ok(&["path", "--no-colon", &host.name]);
    (other, mount, image)
}

#[test]
fn mount_that_hangs_although_the_daemon_answers_fails_the_call_within_seconds() {
    let host = Host::with_script(SLEEP);
    let (_other, mut mount, image) = mount_beside_the_daemon(&host);
    mount.server().signal("STOP");
    let mut command = host.isolate();
    let output = command.args([&format!("--dir=.={image}"), "--run", "--", "/bin/sh"]).output().unwrap();
    mount.server().signal("CONT");
    let message = failure_message(&output);
    let expected = format!("the mount {} does not answer", mount.dir().display());
    assert!(message.contains(&expected), "{message}");
    host.assert_clean();
    mount.stop();
}

#[test]
fn mount_that_hangs_at_the_end_of_a_run_makes_it_a_failure_of_the_sandbox_within_seconds() {
    let host = Host::with_script(SLEEP);
    let (_other, mut mount, image) = mount_beside_the_daemon(&host);
    let rule = format!("--dir=.={image}");
    let mut call = RunningProcess::start(host.isolate().args([&rule, "--run", "--", "/bin/sh"]));
    wait_until("the script sleeps", || isolate_of(&call).is_some());
    mount.server().signal("STOP");
    support::images::run("kill", &[&isolate_of(&call).unwrap().to_string()]);
    let begin = Instant::now();
    let status = call.0.wait().unwrap();
    let elapsed = begin.elapsed();
    mount.server().signal("CONT");
    let mut message = String::new();
    call.0.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(status.code(), Some(2), "{message}");
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    let expected = format!("the mount at {} does not answer after the run", mount.dir().display());
    assert!(message.contains(&expected), "{message}");
    host.assert_clean();
    mount.stop();
}

/// A library for `LD_PRELOAD` that stops the process `TEST_DAEMON` as soon as the guardian, which the second fork(2) of the
/// stand-in starts, has had its answer.
const STOPS_THE_DAEMON: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int forks;
pid_t fork(void) {
    pid_t (*real_fork)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    pid_t child = real_fork();
    if (forks++ != 1 || child == 0) return child;
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)child);
    while (strcmp(name, "rcx-guardian\n") != 0) {
        FILE *file = fopen(path, "r");
        if (!file || !fgets(name, sizeof name, file)) abort();
        fclose(file);
        usleep(1000);
    }
    kill(atoi(getenv("TEST_DAEMON")), SIGSTOP);
    return child;
}
"#;

#[test]
fn mount_that_hangs_while_the_root_is_made_fails_the_call_within_seconds() {
    let mut host = Host::with_script(SLEEP);
    // Also caches the version of isolate, so that the next call does not fork for it.
    RunningProcess::start(host.isolate().args(in_image(&host, ""))).kill();
    host.assert_clean();
    let library = compile(&host.caller_dir, "stop.so", STOPS_THE_DAEMON, &["-shared", "-fPIC"]);
    let (error, meta) = (host.caller_dir.join("error"), host.caller_dir.join("meta"));
    let mut command = host.command_as(0, "env");
    command.arg(format!("LD_PRELOAD={}", library.display()));
    command.arg(format!("TEST_DAEMON={}", host.mount.as_mut().unwrap().server().pid()));
    command.arg(&host.shim).arg(format!("--meta={}", meta.display())).args(in_image(&host, ""));
    let begin = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(File::create(&error).unwrap()).status().unwrap();
    let elapsed = begin.elapsed();
    host.mount.as_mut().unwrap().server().signal("CONT");
    let message = fs::read_to_string(error).unwrap();
    assert_eq!(status.code(), Some(2), "{message}");
    assert!(elapsed < Duration::from_secs(60), "{elapsed:?}");
    assert!(message.contains("the root was not ready after 30 seconds"), "{message}");
    assert!(fs::read_to_string(meta).unwrap().starts_with("status:XX\n"));
    host.assert_clean();
}

#[test]
fn calls_of_a_user_leave_the_inotify_instances_of_root_alone() {
    let host = Host::with_script(SLEEP);
    let start = |id: usize| {
        let id = format!("--box-id={id}");
        RunningProcess::start(host.isolate().arg(id).args(in_image(&host, "")))
    };
    let calls: Vec<RunningProcess> = (0..140).map(start).collect();
    wait_until("all calls run", || host.guardians().len() == calls.len());
    let running = || calls.iter().filter(|call| isolate_of(call).is_some()).count();
    wait_until("all calls have become isolate", || running() == calls.len());
    let flags = rustix::fs::inotify::CreateFlags::CLOEXEC;
    let instances: Result<Vec<_>, _> = (0..20).map(|_| rustix::fs::inotify::init(flags)).collect();
    instances.expect("root can still make instances");
    drop(calls);
    host.assert_clean();
}

/// Takes all inotify instances of its user, and runs its arguments meanwhile.
const TAKE_ALL: &str = "#include <sys/inotify.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
    int main(int c, char **v) {\n while (inotify_init1(IN_CLOEXEC) >= 0) ;\n pid_t pid = fork();\n\
    if (pid == 0) { execv(v[1], v + 1); _exit(127); }\n int status; waitpid(pid, &status, 0);\n\
    return WEXITSTATUS(status); }\n";

#[test]
fn caller_without_inotify_instances_has_its_root_removed_too() {
    let host = Host::with_script("exit 9");
    let program = compile(&host.caller_dir, "take-all", TAKE_ALL, &[]);
    let mut command = host.command_as(CALLER, program);
    let status = command.arg(&host.shim).args(in_image(&host, ":rw")).status().unwrap();
    assert_eq!(status.code(), Some(9));
    host.assert_clean();
}

/// Returns the process that runs the script of a call, if the stand-in has executed it.
fn isolate_of(call: &RunningProcess) -> Option<u32> {
    let pid = call.0.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| comm(*pid) == "sleep\n")
}

/// Control groups with the same name, one in each hierarchy that can end or stop its processes. Removed when dropped.
struct ControlGroups(Vec<PathBuf>);

impl ControlGroups {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let tops = mounts.lines().filter_map(|line| {
            let (place, filesystem) = line.split_once(" - ")?;
            let is_one = filesystem.starts_with("cgroup2 ")
                || filesystem.starts_with("cgroup ")
                    && filesystem.split(',').any(|option| option == "freezer");
            is_one.then(|| PathBuf::from(place.split(' ').nth(4).unwrap()))
        });
        let groups: Vec<PathBuf> = tops.map(|top| top.join(name)).collect();
        groups.iter().for_each(|group| fs::create_dir(group).unwrap());
        Self(groups)
    }

    /// The group that has this file.
    fn file(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().map(|group| group.join(name)).find(|file| file.exists())
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        for group in &self.0 {
            wait_until("the control group is empty", || fs::remove_dir(group).is_ok());
        }
    }
}

#[test]
fn root_is_removed_although_the_control_group_of_the_caller_is_killed_or_frozen() {
    let host = Host::with_script(SLEEP);
    let name = format!("rcx-test-{}", std::process::id());
    let groups = ControlGroups::new(&name);
    let start = || {
        let call = host.isolate();
        let mut command = Command::new("sh");
        let enter = "for group in $0; do echo 0 > $group/cgroup.procs || exit; done; exec \"$@\"";
        let names: Vec<_> = groups.0.iter().map(|group| group.to_str().unwrap()).collect();
        command.args(["-c", enter, &names.join(" ")]).arg(call.get_program()).args(call.get_args());
        command.args(in_image(&host, ":rw")).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.current_dir(&host.caller_dir).stdin(Stdio::null());
        let child = RunningProcess::start(&mut command);
        wait_until("the script runs", || isolate_of(&child).is_some());
        let [guardian] = host.guardians()[..] else { panic!("one guardian: {:?}", host.guardians()) };
        let groups_of = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups_of(child.0.id()).contains(&name));
        wait_until("the guardian has left the groups of its caller", || !groups_of(guardian).contains(&name));
        child
    };
    let mut child = start();
    let kill = groups.file("cgroup.kill").expect("control groups of version 2 are mounted");
    fs::write(kill, "1").unwrap();
    child.0.wait().unwrap();
    host.assert_clean();

    let (file, frozen, thawed) = match groups.file("freezer.state") {
        Some(file) => (file, "FROZEN", "THAWED"),
        None => (groups.file("cgroup.freeze").unwrap(), "1", "0"),
    };
    let mut child = start();
    fs::write(&file, frozen).unwrap();
    assert_eq!(host.guardians().iter().filter(|pid| is_frozen(**pid, &file)).count(), 0);
    // A frozen process ends only when it is thawed.
    child.0.kill().unwrap();
    fs::write(&file, thawed).unwrap();
    child.kill();
    host.assert_clean();
}

/// Whether a process belongs to the group of a file.
fn is_frozen(pid: u32, file: &Path) -> bool {
    let processes = fs::read_to_string(file.with_file_name("cgroup.procs")).unwrap();
    processes.lines().any(|line| line == pid.to_string())
}

#[test]
fn calls_use_the_tree_image_and_no_process_of_the_caller_has_its_mount() {
    let host = Host::with_script(SLEEP);
    let start = |id: &str| {
        let call = RunningProcess::start(host.isolate().arg(id).args(in_image(&host, "")));
        wait_until("the call has become isolate", || isolate_of(&call).is_some());
        call
    };
    // Each call makes its root in a mount namespace of its own.
    let (call, other) = (start("--box-id=1"), start("--box-id=2"));
    let holders = host.holders();
    assert_eq!(holders.len(), 1);
    let is_tree = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
        let stat = |fd: PathBuf| rustix::fs::statfs(&fd).map(|stat| stat.f_type);
        descriptors.map(stat).filter(|kind| *kind == Ok(EROFS_MAGIC)).count()
    };
    assert!(is_tree(holders[0]) > 0);
    let supervisor = call.0.id();
    for pid in [supervisor, isolate_of(&call).unwrap()] {
        assert_eq!(is_tree(pid), 0, "process {pid} has a descriptor of the mount");
    }
    // The process that has it belongs to root, in a session of its own.
    let status = fs::read_to_string(format!("/proc/{}/status", holders[0])).unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0\n"), "{status}");
    drop((call, other));
    host.assert_clean();
}
