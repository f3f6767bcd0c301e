//! What a run has read from the daemon, and waited for.

use serde_json::Value;

use super::Runner;

/// Runs Python for the first time, and again when the kernel has everything in its page cache.
fn only_the_first_run_reads_from_the_daemon(mut runner: Runner, options: &[&str]) {
    let image = runner.pull("python");
    let mut reads = |engine| {
        runner.engine = engine;
        let verdict = runner.verdict(&image, options, &["python3", "-c", "import json"]);
        assert_eq!(verdict["status"], "OK", "{verdict}");
        (verdict["lazy_bytes"].clone(), verdict["lazy_wait_ms"].clone())
    };
    let (bytes, wait) = reads("fuse");
    assert!(bytes.as_u64().unwrap() > 1 << 20 && wait.as_u64().unwrap() > 0, "{bytes} {wait}");
    // The kernel may be short of memory and drop pages, so only one of the next runs must find them all.
    let none = (Value::from(0), Value::from(0));
    let again: Vec<_> = (0..3).map(|_| reads("fuse")).collect();
    assert!(again.contains(&none), "{again:?}");
    assert_eq!(reads("overlay2"), none, "it needs no daemon");
    runner.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn run_under_isolate_reports_what_it_read_and_waited_for() {
    let (mut runner, isolates) = Runner::with_isolate(364);
    runner.isolate = isolates.into_iter().next();
    only_the_first_run_reads_from_the_daemon(runner, &["--processes=5"]);
}

#[test]
fn run_under_bubblewrap_reports_what_it_read_and_waited_for() {
    only_the_first_run_reads_from_the_daemon(Runner::new(12, "bwrap"), &[]);
}

#[test]
fn failed_run_reports_no_reads() {
    let runner = Runner::new(12, "bwrap");
    let image = runner.pull("small");
    let ran = runner.run(&image, &["--json"], &["nothing"]);
    let verdict: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&verdict["lazy_bytes"], &verdict["lazy_wait_ms"]), (&Value::Null, &Value::Null), "{verdict}");
}
