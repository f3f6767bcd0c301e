//! Calls killed at any moment leave nothing behind once their guardians have exited.

use std::process::Stdio;
use std::time::Duration;

use super::host::{Host, RunningProcess, SandboxBox, all_isolates, describe, stdout_of};
use support::child::wait_until;

#[test]
#[ignore = "needs isolate on PATH"]
fn killing_the_started_process_ends_the_box() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let script = "echo > /tmp/x; sleep 1000 & sleep 1000 & sleep 1000";
        let mut child = RunningProcess::start(host.isolate().args(host.run_arguments(&sandbox, &[], script)));
        wait_until("the box has processes", || sandbox.processes().len() >= 3);
        assert_eq!(host.guardians().len(), 1);
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
                                wait_until("the box is empty", || sandbox.processes().is_empty());
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
