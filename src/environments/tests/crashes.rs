//! Concurrent changes, and processes that die.

use super::*;

#[test]
fn concurrent_submitters_get_different_numbers_and_one_of_two_reviewers_decides() {
    let test = TestQueue::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (path, scratch) = (test.queue.path().to_owned(), test.dir.path());
            scope.spawn(move || {
                let queue = Queue::open_or_create(&path).unwrap();
                for number in 0..5 {
                    let text = format!("FROM scratch AS s{thread}-{number}");
                    assert!(submit_in(&queue, scratch, "a", &text).unwrap().is_new);
                }
            });
        }
    });
    let environment = test.queue.environment(&id("a")).unwrap();
    let numbers: Vec<u32> = environment.revisions.iter().map(|revision| revision.id.number.get()).collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    let barrier = std::sync::Barrier::new(2);
    for number in 1..=20 {
        let id = revision(&format!("a@{number}"));
        let (approved, rejected) = std::thread::scope(|scope| {
            let approver = scope.spawn(|| {
                barrier.wait();
                Queue::open(test.queue.path())
                    .unwrap()
                    .approve(&id, &by("bob"), None, &BasePolicy::default(), resolve)
                    .is_ok()
            });
            barrier.wait();
            let rejected = test.queue.reject(&id, &by("carol")).is_ok();
            (approver.join().unwrap(), rejected)
        });
        assert!(approved != rejected, "{id}");
        let expected = if approved { RevisionState::Approved } else { RevisionState::Rejected };
        assert_eq!(test.queue.revision(&id).unwrap().state(), expected);
    }
    assert_eq!(test.log().len(), 40);
    assert_eq!(fs::read_dir(test.queue.path().join(".queue/tmp")).unwrap().count(), 0);
}

/// Names the queue of the process that a test kills.
const VICTIM: &str = "RCX_TEST_VICTIM";

/// Runs in a process of its own, which dies at the step that a variable names. The next test starts it; otherwise it does nothing.
#[test]
fn victim_of_a_kill_at_each_step() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let queue = Queue::open_or_create(Path::new(&path)).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    submit_in(&queue, scratch.path(), "a", DOCKERFILE_TEXT).unwrap();
    queue.approve(&revision("a@1"), &by("bob"), None, &BasePolicy::default(), resolve).unwrap();
    let build = queue.start_build(&revision("a@1"), &by("builder")).unwrap();
    files::step();
    build.finish(&published()).unwrap();
    queue.retire(&id("a"), &by("bob")).unwrap();
    queue.roll_back(&id("a"), None, &by("bob")).unwrap();
}

#[test]
fn kill_at_each_step_leaves_a_queue_that_reads_well_and_whose_log_has_each_change_once() {
    let states = |queue: &Queue| -> Vec<RevisionState> {
        let environments = queue.environments().unwrap();
        assert!(environments.iter().all(|environment| environment.damaged.is_empty()));
        environments.iter().flat_map(|environment| &environment.revisions).map(Revision::state).collect()
    };
    let mut seen = Vec::new();
    for stop_at in 1.. {
        assert!(stop_at < 100, "the victim never comes to its end");
        let test = TestQueue::new();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "environments::tests::crashes::victim_of_a_kill_at_each_step"])
            .env(VICTIM, test.queue.path())
            .env("RCX_TEST_STOP_AT", stop_at.to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        let before = states(&test.queue);
        // The next change completes what the victim has begun.
        let other = test.submit("other", DOCKERFILE_TEXT);
        assert!(other.is_new);
        let (after, mut log) = (states(&test.queue), test.log());
        assert_eq!(after, [&before[..], &[RevisionState::Submitted]].concat(), "step {stop_at}");
        assert_eq!(log.pop().as_deref(), Some("submitted other@1 alice"));
        let current = test.queue.environment(&id("a")).ok().and_then(|environment| environment.choice);
        let mut expected = match before.first() {
            None => vec![],
            Some(RevisionState::Submitted) => vec!["submitted a@1 alice"],
            Some(RevisionState::Approved) => vec!["submitted a@1 alice", "approved a@1 bob"],
            Some(_) => vec![
                "submitted a@1 alice",
                "approved a@1 bob",
                "building a@1 builder",
                "published a@1 builder",
            ],
        };
        // Whether there is a decision, and whether it is the rollback.
        let decision = current.map(|choice| choice.revision.is_some());
        if decision.is_some() {
            expected.push("retired a@1 bob");
        }
        if decision == Some(true) {
            expected.push("rolled-back a@1 bob");
        }
        log.retain(|line| before.first() != Some(&RevisionState::Approved) || !line.starts_with("building"));
        assert_eq!(log, expected, "step {stop_at}");
        let own = test.queue.path().join(".queue");
        assert!(!own.join("pending").exists(), "step {stop_at}");
        assert_eq!(fs::read_dir(own.join("tmp")).unwrap().count(), 0, "step {stop_at}");
        seen.push((before, decision));
        if status.success() {
            break;
        }
    }
    seen.dedup();
    let expected = [
        (vec![], None),
        (vec![RevisionState::Submitted], None),
        (vec![RevisionState::Approved], None),
        (vec![RevisionState::Published], None),
        (vec![RevisionState::Published], Some(false)),
        (vec![RevisionState::Published], Some(true)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn line_of_the_log_that_a_crash_cut_off_is_removed() {
    let test = TestQueue::new();
    test.submit("a", DOCKERFILE_TEXT);
    let path = test.queue.path().join(".queue/log");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"when\":\"2024-");
    fs::write(&path, text).unwrap();
    assert_eq!(test.log(), ["submitted a@1 alice"]);
    test.queue.reject(&revision("a@1"), &by("bob")).unwrap();
    assert_eq!(test.log(), ["submitted a@1 alice", "rejected a@1 bob"]);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("submitted", "invented", 1)).unwrap();
    let (damaged, message) = code(test.queue.log());
    assert_eq!(damaged, ErrorCode::Damaged);
    assert!(message.starts_with(&format!("{} is damaged: line 1: ", path.display())), "{message}");
}
