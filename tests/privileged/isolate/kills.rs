//! Calls killed at any moment leave nothing behind once their guardians have exited.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use super::attempts::compile;
use super::host::{Host, SandboxBox, all_isolates, describe, stdout_of, tar};
use support::child::wait_until;
use support::images::run;
use support::running::RunningProcess;

#[test]
#[ignore = "needs isolate on PATH"]
fn killing_the_started_process_ends_the_box() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let script = "echo > /tmp/x; sleep 1000 & sleep 1000 & sleep 1000";
        let mut child = RunningProcess::start(host.isolate().args(host.run_arguments(&sandbox, &[], script)));
        wait_until("the box has processes", || sandbox.processes().len() >= 3);
        assert_eq!((host.guardians().len(), host.stand_ins().len()), (1, 2));
        child.kill();
        wait_until("the processes in the box are dead", || sandbox.processes().is_empty());
        host.assert_clean();
        // The box can be used again.
        assert_eq!(host.run(&sandbox, &[], "echo again"), "again\n");
        host.assert_clean();
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn call_waits_until_the_isolate_of_a_killed_call_in_its_box_has_ended() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let box_call = |mode: &str| [sandbox.options(), vec![mode.to_owned()]].concat();
        for arguments in [host.run_arguments(&sandbox, &[], "true"), box_call("--cleanup")] {
            let sleep = host.run_arguments(&sandbox, &[], "sleep 1000");
            let mut killed = RunningProcess::start(host.isolate().args(sleep));
            wait_until("the box has processes", || !sandbox.processes().is_empty());
            let guardian = host.guardians()[0].to_string();
            run("kill", &["-STOP", &guardian]);
            killed.kill();
            let mut command = host.isolate();
            let mut next =
                command.args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let has_ended = next.try_wait().unwrap().is_some();
            run("kill", &["-CONT", &guardian]);
            assert!(!has_ended, "{arguments:?} did not wait");
            stdout_of(&next.wait_with_output().unwrap());
            host.assert_clean();
        }
        stdout_of(&host.isolate().args(box_call("--init")).output().unwrap());
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn one_hundred_isolate_calls_in_a_row_leave_nothing() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let arguments = host.run_arguments(&sandbox, &[], "echo > /tmp/x; echo $0");
    for _ in 0..100 {
        assert_eq!(stdout_of(&host.isolate().args(&arguments).output().unwrap()), "/bin/sh\n");
    }
    host.assert_clean();
}

/// A deterministic source of pseudo-random numbers.
struct PseudoRandom(u64);

impl PseudoRandom {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn sixteen_concurrent_isolate_calls_with_half_killed_leave_nothing() {
    for upper in ["dir", "tmpfs:4M"] {
        let host = Host::new();
        host.configure(&format!("upper = '{upper}'\n"));
        let boxes: Vec<_> = (0..16).map(|_| SandboxBox::new(&host.isolate)).collect();
        let finished: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = boxes
                .iter()
                .zip(1..)
                .map(|(sandbox, seed)| {
                    let arguments = host.run_arguments(sandbox, &[], "echo > /tmp/x; sleep 0.05; echo end");
                    let mut command = host.isolate();
                    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
                    scope.spawn(move || {
                        let mut numbers = PseudoRandom(seed);
                        let mut finished = 0;
                        for _ in 0..6 {
                            let mut child = command.spawn().unwrap();
                            if numbers.below(2) == 0 {
                                std::thread::sleep(Duration::from_micros(numbers.below(250_000)));
                                child.kill().unwrap();
                                child.wait().unwrap();
                            } else {
                                let output = child.wait_with_output().unwrap();
                                assert_eq!(stdout_of(&output), "end\n", "{}", describe(&output));
                                finished += 1;
                            }
                        }
                        finished
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((20..80).contains(&finished), "{finished} of 96 calls finished");
        // A call killed before its guardian started leaves files. The next call removes them.
        host.run(&boxes[0], &[], "true");
        host.assert_clean();
    }
}

/// A library for `LD_PRELOAD` that changes the order of events around the second fork(2) of the stand-in, which starts the
/// guardian. The first starts the supervisor's child, later ones the process that holds the image.
///
/// - A process holds the root open from the moment it is mounted until the file `release` appears.
/// - The supervisor's child ends only after that process has opened the root.
const ROOT_HOLDER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static pid_t supervised;
static int forks;
static void await(const char *path) { while (access(path, F_OK) != 0) usleep(1000); }
static int is_mounted(pid_t pid, const char *root) {
    char line[8192], name[64], wanted[4096];
    snprintf(name, sizeof name, "/proc/%d/mountinfo", (int)pid);
    snprintf(wanted, sizeof wanted, " %s ", root);
    FILE *mounts = fopen(name, "r");
    int found = 0;
    while (mounts && fgets(line, sizeof line, mounts)) found |= strstr(line, wanted) != NULL;
    if (mounts) fclose(mounts);
    return found;
}
pid_t fork(void) {
    pid_t (*real_fork)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    if (forks++ != 1) return real_fork();
    pid_t parent = getpid(), child = real_fork();
    if (child != 0) { supervised = parent; return child; }
    if (real_fork() == 0) {
        char path[4096];
        const char *root = getenv("TEST_ROOT");
        while (!is_mounted(parent, root)) usleep(1000);
        snprintf(path, sizeof path, "/proc/%d/root%s", (int)parent, root);
        if (open(path, O_RDONLY | O_DIRECTORY) < 0) _exit(1);
        close(open("held", O_WRONLY | O_CREAT, 0600));
        await("release");
        _exit(0);
    }
    return 0;
}
__attribute__((destructor)) static void wait_for_holder(void) { if (getpid() == supervised) await("held"); }
"#;

#[test]
fn root_is_removed_although_it_is_still_in_use_when_the_call_fails() {
    let layer = tar(|tar| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "covered", "/dev").unwrap();
    });
    let host = Host::with_script_and_layer("exit 9", &layer);
    let arguments = ["--dir=covered/x=/from", &format!("--dir=.={}", host.image), "--run", "--", "/bin/sh"]
        .map(str::to_owned);
    // Also caches the version of isolate, so that the next call does not fork for it.
    let message = host.fails(&mut host.isolate(), &arguments);
    assert!(message.contains("covered"), "{message}");

    let library = compile(&host.caller_dir, "holder.so", ROOT_HOLDER, &["-shared", "-fPIC"]);
    let mut command = host.command_as(0, "env");
    command.arg(format!("LD_PRELOAD={}", library.display()));
    command.arg(format!("TEST_ROOT={}", host.run_dir().join("root").display()));
    command.arg(&host.shim).args(arguments).stdout(Stdio::null());
    let status = command.stderr(File::create(host.caller_dir.join("error")).unwrap()).status().unwrap();
    let error = fs::read_to_string(host.caller_dir.join("error")).unwrap();
    assert_eq!(status.code(), Some(2), "{error}");
    assert!(error.contains("covered"), "{error}");
    // Now the guardian runs while the root is still in use. It must wait until the root is released.
    let has_reported = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "rcx-guardian\n"
    };
    wait_until("the guardian has detached itself or has ended", || {
        let guardians = host.stand_ins();
        guardians.len() < 2 || guardians.into_iter().any(has_reported)
    });
    fs::write(host.caller_dir.join("release"), "").unwrap();
    host.assert_clean();
}
