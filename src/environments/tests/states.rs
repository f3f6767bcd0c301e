//! States of revisions, and which of them workers offer.

use super::*;

#[test]
fn revision_goes_from_its_submission_to_its_publication() {
    let test = TestQueue::new();
    let submitted = test.submit("python3", DOCKERFILE_TEXT);
    assert!(submitted.is_new);
    assert_eq!(
        (submitted.revision.id.to_string().as_str(), submitted.revision.state()),
        ("python3@1", RevisionState::Submitted)
    );
    let read = test.queue.revision(&revision("python3@1")).unwrap();
    assert_eq!(read.submission, submitted.revision.submission);
    assert_eq!(read.dockerfile().unwrap().text(), DOCKERFILE_TEXT);

    let review = test.approve("python3@1").unwrap();
    let expected = ApprovedBase {
        name: "python:3.12".to_owned(),
        reference: "docker.io/library/python:3.12".to_owned(),
        digest: ManifestDigest::new(Digest::of(b"docker.io/library/python:3.12")),
    };
    assert_eq!((review.context, review.bases), (Some(read.submission.context.digest), vec![expected]));
    assert_eq!(review.hosts, read.submission.hosts);
    assert_eq!(test.state("python3@1"), RevisionState::Approved);
    assert_eq!(test.queue.approved().unwrap().len(), 1);
    assert_eq!(test.current("python3"), None);

    let build = test.queue.start_build(&revision("python3@1"), &by("builder")).unwrap();
    assert_eq!(test.state("python3@1"), RevisionState::Building);
    assert!(test.queue.approved().unwrap().is_empty());
    build.finish(&published()).unwrap();
    assert_eq!(test.state("python3@1"), RevisionState::Published);
    assert_eq!(test.current("python3").as_deref(), Some("python3@1"));
    assert_eq!(
        test.log(),
        [
            "submitted python3@1 alice",
            "approved python3@1 bob",
            "building python3@1 builder",
            "published python3@1 builder"
        ]
    );
    let mut names: Vec<_> =
        fs::read_dir(&read.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["context.tar", "result.json", "review.json", "submission.json"]);
    assert_eq!(fs::read_dir(test.queue.path().join(".queue/tmp")).unwrap().count(), 0);
}

#[test]
fn revision_is_decided_about_once() {
    type RevisionOperation = fn(&TestQueue, &str) -> Result<(), EnvironmentsError>;
    let approve: RevisionOperation = |test, id| test.approve(id).map(drop);
    let reject: RevisionOperation = |test, id| test.queue.reject(&revision(id), &by("carol"));
    let withdraw: RevisionOperation = |test, id| test.queue.withdraw(&revision(id), &by("alice"));
    let start: RevisionOperation = |test, id| test.queue.start_build(&revision(id), &by("builder")).map(drop);
    let publish: RevisionOperation =
        |test, id| test.queue.start_build(&revision(id), &by("builder"))?.finish(&published());
    let fail: RevisionOperation = |test, id| {
        let failure = BuildFailure { fault: BuildFault::Build, message: "exit status 1".to_owned() };
        let result = BuildResult::failed(by("builder"), &failure);
        test.queue.start_build(&revision(id), &by("builder"))?.finish(&result)
    };
    let test = TestQueue::new();
    for (number, (operations, state, reason, permitted)) in [
        (&[][..], "submitted", "it waits for its review", &["approved", "rejected", "withdrawn"][..]),
        (&[approve], "approved", "it was approved by bob", &["withdrawn", "built"]),
        // A builder that ends without a result.
        (&[approve, start], "approved", "it was approved by bob", &["withdrawn", "built"]),
        (&[reject], "rejected", "it was rejected by carol", &[]),
        (&[withdraw], "withdrawn", "it was withdrawn by alice", &[]),
        (&[approve, withdraw], "withdrawn", "it was withdrawn by alice", &[]),
        (&[approve, publish], "published", "it was published by builder", &[]),
        (&[approve, fail], "failed", "its build has failed", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        for (name, operation) in
            [("approved", approve), ("rejected", reject), ("withdrawn", withdraw), ("built", start)]
        {
            let environment = format!("e{number}-{name}");
            test.submit(&environment, DOCKERFILE_TEXT);
            let id = format!("{environment}@1");
            operations.iter().for_each(|operation| operation(&test, &id).unwrap());
            assert_eq!(test.state(&id).to_string(), state);
            let result = operation(&test, &id);
            if permitted.contains(&name) {
                result.unwrap_or_else(|error| panic!("{state}, {name}: {error}"));
                continue;
            }
            let expected = format!("revision {id} cannot be {name}: {reason}");
            assert_eq!(code(result), (ErrorCode::RevisionState, expected));
            assert_eq!(test.state(&id).to_string(), state);
        }
    }
}

#[test]
fn missing_revisions_are_named_with_the_newest_one() {
    let test = TestQueue::new();
    test.submit("a", "FROM scratch");
    test.submit("a", "FROM scratch AS x");
    let none = code(test.queue.revision(&revision("b@1")));
    assert_eq!(none, (ErrorCode::NoRevision, "environment b is not in the queue".to_owned()));
    let none = code(test.queue.reject(&revision("a@3"), &by("bob")));
    assert_eq!(
        none,
        (ErrorCode::NoRevision, "revision a@3 is not in the queue: the newest one of a is 2".to_owned())
    );
}

#[test]
fn same_submission_is_one_revision_only_while_it_waits() {
    let test = TestQueue::new();
    assert!(test.submit("a", DOCKERFILE_TEXT).is_new);
    let again = test.submit("a", DOCKERFILE_TEXT);
    assert_eq!((again.is_new, again.revision.id.to_string().as_str()), (false, "a@1"));
    assert!(test.submit("b", DOCKERFILE_TEXT).is_new, "another environment");
    assert!(test.submit("a", "FROM scratch").is_new, "another context");
    test.queue.reject(&revision("a@1"), &by("bob")).unwrap();
    let third = test.submit("a", DOCKERFILE_TEXT);
    assert_eq!((third.is_new, third.revision.id.to_string().as_str()), (true, "a@3"));
    assert_eq!(test.log().len(), 5);
}

#[test]
fn numbers_count_up_when_the_clock_jumps_back_and_when_a_revision_is_damaged() {
    let test = TestQueue::new();
    test.submit("a", "FROM scratch");
    let path = test.queue.path().join("a/1/submission.json");
    let mut future: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    future["when"] = json!("2999-01-01T00:00:00Z");
    fs::write(&path, future.to_string()).unwrap();
    test.submit("a", "FROM scratch AS two");
    test.publish("a@1");
    test.publish("a@2");
    assert_eq!(test.current("a").as_deref(), Some("a@2"));
    fs::remove_file(test.queue.path().join("a/2/submission.json")).unwrap();
    assert_eq!(test.submit("a", "FROM scratch AS three").revision.id.to_string(), "a@3");

    let environment = test.queue.environment(&id("a")).unwrap();
    let numbers: Vec<u32> = environment.revisions.iter().map(|revision| revision.id.number.get()).collect();
    assert_eq!((numbers, environment.damaged.len()), (vec![1, 3], 1));
    let missing = test.queue.path().join("a/2/submission.json");
    let damaged = code(test.queue.revision(&revision("a@2")));
    assert_eq!(damaged, (ErrorCode::Damaged, format!("{} is damaged: it is missing", missing.display())));
}

#[test]
fn only_one_builder_gets_a_revision_and_one_that_ends_gives_it_back() {
    let test = TestQueue::new();
    test.submit("a", DOCKERFILE_TEXT);
    test.approve("a@1").unwrap();
    let build = test.queue.start_build(&revision("a@1"), &by("first")).unwrap();
    let expected = (ErrorCode::RevisionState, "revision a@1 cannot be built: it is being built".to_owned());
    assert_eq!(code(test.queue.start_build(&revision("a@1"), &by("second"))), expected);
    assert_eq!(code(test.queue.withdraw(&revision("a@1"), &by("alice"))).0, ErrorCode::RevisionState);
    drop(build);
    assert_eq!(test.state("a@1"), RevisionState::Approved);
    test.queue.start_build(&revision("a@1"), &by("second")).unwrap();
}

#[test]
fn retired_environment_comes_back_with_a_revision_that_is_submitted_later() {
    let test = TestQueue::new();
    test.submit("a", DOCKERFILE_TEXT);
    let nothing = code(test.queue.retire(&id("a"), &by("bob")));
    assert_eq!(
        nothing,
        (
            ErrorCode::RevisionState,
            "environment a has no published revision that workers could offer".to_owned()
        )
    );
    test.publish("a@1");
    test.submit("a", "FROM scratch");
    test.queue.retire(&id("a"), &by("bob")).unwrap();
    assert_eq!((test.current("a"), test.state("a@1")), (None, RevisionState::Published));
    let twice = code(test.queue.retire(&id("a"), &by("carol")));
    assert_eq!(twice, (ErrorCode::RevisionState, "environment a is retired already (by bob)".to_owned()));
    test.publish("a@2");
    assert_eq!(test.current("a"), None, "it waited when the environment was retired");
    test.submit("a", "FROM scratch AS x");
    test.publish("a@3");
    assert_eq!(test.current("a").as_deref(), Some("a@3"));
    test.queue.retire(&id("a"), &by("carol")).unwrap();
    assert_eq!(test.current("a"), None);
    assert_eq!(
        test.log().iter().filter(|line| line.starts_with("retired")).collect::<Vec<_>>(),
        ["retired a@1 bob", "retired a@3 carol"]
    );
    assert_eq!(code(test.queue.retire(&id("b"), &by("bob"))).0, ErrorCode::NoRevision);
}

#[test]
fn rollback_holds_until_a_higher_revision_is_published() {
    let test = TestQueue::new();
    for number in 1..=4 {
        test.submit("a", &format!("FROM scratch AS s{number}"));
    }
    let roll_back = |number: Option<&str>| {
        test.queue.roll_back(&id("a"), number.map(|number| number.parse().unwrap()), &by("bob"))
    };
    assert_eq!(code(roll_back(None)).0, ErrorCode::RevisionState);
    test.publish("a@1");
    let nothing = code(roll_back(None));
    assert_eq!(nothing.1, "environment a has no published revision before the one that workers offer");
    test.publish("a@3");
    assert_eq!(roll_back(None).unwrap().to_string(), "a@1");
    assert_eq!(test.current("a").as_deref(), Some("a@1"));
    assert_eq!(code(roll_back(Some("1"))).1, "workers offer revision a@1 already");
    assert_eq!(code(roll_back(Some("2"))).1, "revision a@2 cannot be made current: it waits for its review");
    assert_eq!(code(roll_back(Some("9"))).0, ErrorCode::NoRevision);
    test.publish("a@2");
    assert_eq!(test.current("a").as_deref(), Some("a@1"), "its number is lower than that of a@3");
    test.publish("a@4");
    assert_eq!(test.current("a").as_deref(), Some("a@4"));
    roll_back(Some("3")).unwrap();
    roll_back(Some("4")).unwrap();
    assert_eq!(test.current("a").as_deref(), Some("a@4"));
    let logged: Vec<_> = test.log().into_iter().filter(|line| line.starts_with("rolled-back")).collect();
    assert_eq!(logged, ["rolled-back a@1 bob", "rolled-back a@3 bob", "rolled-back a@4 bob"]);
}

#[test]
fn rollback_brings_a_retired_environment_back() {
    let test = TestQueue::new();
    test.submit("a", DOCKERFILE_TEXT);
    test.publish("a@1");
    test.queue.retire(&id("a"), &by("bob")).unwrap();
    assert_eq!(test.queue.offers(&OfferList::default()).unwrap().offers(), []);
    test.queue.roll_back(&id("a"), None, &by("bob")).unwrap();
    assert_eq!(test.current("a").as_deref(), Some("a@1"));
}

#[test]
fn list_has_the_current_revisions_with_digest_and_the_fields_of_the_list_before() {
    let test = TestQueue::new();
    for (environment, text) in [("b", "FROM scratch"), ("a", "FROM scratch"), ("a", "FROM scratch AS x")] {
        test.submit(environment, text);
    }
    test.publish("b@1");
    test.publish("a@1");
    let mut earlier = serde_json::to_value(test.queue.offers(&OfferList::default()).unwrap()).unwrap();
    earlier[0]["services"] = json!(["db"]);
    let earlier = OfferList::parse(&serde_json::to_vec(&earlier).unwrap()).unwrap();
    test.publish("a@2");
    let image = format!("reg.example/env@{}", Digest::of(b"image"));
    let entry = |id: &str, revision: u32| json!({"id": id, "image": image, "revision": revision, "platform": "linux/amd64", "hwgroups": ["group1"], "smoke": "python3 -V"});
    let mut expected = json!([entry("a", 2), entry("b", 1)]);
    expected[0]["services"] = json!(["db"]);
    assert_eq!(serde_json::to_value(test.queue.offers(&earlier).unwrap()).unwrap(), expected);
    // It may be the current one.
    fs::write(test.queue.path().join("b/1/submission.json"), "{").unwrap();
    assert_eq!(code(test.queue.offers(&earlier)).0, ErrorCode::Damaged);
}

#[test]
fn image_of_a_builder_without_a_registry_is_not_published() {
    let test = TestQueue::new();
    test.submit("python", "FROM scratch\n");
    test.approve("python@1").unwrap();
    let build = test.queue.start_build(&revision("python@1"), &by("builder")).unwrap();
    let image = Reference::parse(&format!("localhost/python@{}", Digest::of(b"image")), None).unwrap();
    build.finish(&BuildResult::published(by("builder"), &image)).unwrap();
    assert_eq!(test.current("python").unwrap(), "python@1");
    let (code, message) = code(test.queue.offers(&OfferList::default()));
    assert_eq!(code, ErrorCode::RevisionState);
    assert_eq!(message, "the image of python@1 is in no registry: it was built without one");
}

#[test]
fn revision_is_compared_with_the_last_published_one() {
    let test = TestQueue::new();
    for number in 1..=4 {
        test.submit("a", &format!("FROM scratch AS s{number}"));
    }
    test.publish("a@1");
    test.publish("a@3");
    let environment = test.queue.environment(&id("a")).unwrap();
    let compared: Vec<_> = environment
        .revisions
        .iter()
        .map(|revision| environment.last_published(revision).map(|last| last.id.number.get()))
        .collect();
    assert_eq!(compared, [None, Some(3), Some(1), Some(3)]);
}

#[test]
fn queue_is_made_private_and_only_where_there_is_nothing_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/queue");
    let no_queue = code(Queue::open(&path));
    assert_eq!(no_queue, (ErrorCode::NoQueue, format!("there is no queue at {}", path.display())));
    assert!(!path.exists());
    Queue::open_or_create(&path).unwrap();
    Queue::open_or_create(&path).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(&path.join(".queue"))), (0o700, 0o700));
    fs::write(path.join(".queue/version"), "2\n").unwrap();
    assert_eq!(code(Queue::open(&path)).0, ErrorCode::StoreFormat);
    // A crash while the queue was made.
    fs::remove_file(path.join(".queue/version")).unwrap();
    assert_eq!(code(Queue::open(&path)).0, ErrorCode::NoQueue);
    Queue::open_or_create(&path).unwrap();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let (untrusted, message) = code(Queue::open(&path));
    assert_eq!(untrusted, ErrorCode::Untrusted);
    assert!(message.contains("other users may write to it"), "{message}");

    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("diary"), "").unwrap();
    assert_eq!(code(Queue::open_or_create(&foreign)).0, ErrorCode::StoreFormat);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}
