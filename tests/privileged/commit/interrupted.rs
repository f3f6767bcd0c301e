//! A commit that is killed, and a store that is full.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{CommitFixture, shell};

#[test]
fn commit_killed_at_any_moment_leaves_an_accepted_store() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "head -c 3000000 /dev/urandom > big; rm -r gone; mv moved renamed");
    let started = Instant::now();
    let complete = fixture.commit("it", "lab/complete:1", &[]);
    let duration = u64::try_from(started.elapsed().as_micros()).unwrap();
    let (mut finished, mut killed) = (0, 0);
    let mut state: u64 = 20_261_128;
    for number in 0..40 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Another layer each time: one that the store has is not written again.
        shell(&root, &format!("echo {number} > number"));
        let name = format!("lab/killed:{number}");
        let mut command = fixture.program.command(&["root", "commit", "it", &name]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros((state >> 33) % duration));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            finished += 1
        } else {
            killed += 1
        }
        let verified = fixture.program.ok(&["verify"]);
        assert!(verified.ends_with(" 0 problems"), "{verified}");
    }
    assert!(killed > 10, "{killed} commits were killed, {finished} finished before");
    fixture.program.ok(&["gc"]);
    assert!(fixture.program.ok(&["verify", "--deep"]).ends_with(" 0 problems"));
    // Nothing is held any more, and the root is as before.
    shell(&root, "rm number");
    let before = fixture.top_layer(&complete);
    let again = fixture.commit("it", "lab/again:1", &[]);
    assert_eq!(fixture.members(&again), fixture.members(&complete));
    assert_ne!(fixture.top_layer(&again), before, "the directory has another time");
    fixture.remove("it");
    let tmp = fixture.program.store().join("rcx-imagefs/tmp");
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
}
