//! Approvals: the context and the base images.

use super::*;

#[test]
fn approval_is_refused_for_another_context_than_the_submitted_or_the_seen_one() {
    let test = TestQueue::new();
    let context = test.submit("a", DOCKERFILE_TEXT).revision.submission.context;
    let seen = Some(Digest::of(b"other"));
    let approved = test.queue.approve(&revision("a@1"), &by("bob"), seen, &BasePolicy::default(), resolve);
    assert_eq!(code(approved).0, ErrorCode::RevisionState);
    let path = test.queue.path().join("a/1/context.tar");
    let mut bytes = fs::read(&path).unwrap();
    bytes[512] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (code, message) = code(test.approve("a@1"));
    assert_eq!(code, ErrorCode::Damaged);
    assert!(
        message.starts_with("the context of revision a@1 has changed: ")
            && message.contains(&context.digest.to_string()),
        "{message}"
    );
    assert_eq!(test.state("a@1"), RevisionState::Submitted);
    bytes[512] ^= 1;
    fs::write(&path, &bytes).unwrap();
    test.queue
        .approve(&revision("a@1"), &by("bob"), Some(context.digest), &BasePolicy::default(), resolve)
        .unwrap();
    // Between approval and build, too.
    bytes[512] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let build = test.queue.start_build(&revision("a@1"), &by("builder")).map(drop);
    assert_eq!(build.unwrap_err().code(), ErrorCode::Damaged);
    assert_eq!(test.state("a@1"), RevisionState::Approved);
}

#[test]
fn approval_names_every_base_once_and_asks_for_no_digest_that_is_given() {
    let test = TestQueue::new();
    let pinned = Digest::of(b"pinned");
    let text = format!(
        "ARG V=1\nFROM a:$V AS x\nFROM reg.example/b:2@{pinned}\nCOPY --from=x / /\nCOPY --from=a:1 / /\nFROM scratch\n"
    );
    test.submit("e", &text);
    let mut asked = BTreeMap::<String, u32>::new();
    let review = test
        .queue
        .approve(&revision("e@1"), &by("bob"), None, &BasePolicy::default(), |reference| {
            *asked.entry(reference.to_string()).or_default() += 1;
            resolve(reference)
        })
        .unwrap();
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), [("docker.io/library/a:1".to_owned(), 1)]);
    let bases: Vec<String> =
        review.bases.iter().map(|base| format!("{} {}", base.name, base.image().unwrap())).collect();
    let expected = [
        format!("a:1 docker.io/library/a:1@{}", Digest::of(b"docker.io/library/a:1")),
        format!("reg.example/b:2@{pinned} reg.example/b:2@{pinned}"),
    ];
    assert_eq!(bases, expected);
}

#[test]
fn bases_that_are_unknown_or_not_allowed_cannot_be_approved() {
    let test = TestQueue::new();
    let registries = AllowedRegistries::parse(&["docker.io".to_owned()]).unwrap();
    let policy = BasePolicy { default_registry: None, registries: Some(registries) };
    for (number, (text, expected)) in (1..).zip([
        ("FROM a\nFROM $X", "Dockerfile line 2: variable `X` has no default value before the first FROM"),
        ("FROM a\nCOPY --from=reg.example/b:1 / /", "Dockerfile line 2: the registry of reg.example/b:1 is not allowed (`registries` in the configuration)"),
        ("\nFROM A", "Dockerfile line 2"),
    ]) {
        test.submit("e", text);
        let id = revision(&format!("e@{number}"));
        let result = test.queue.approve(&id, &by("bob"), None, &policy, resolve);
        assert_eq!(code(result), (ErrorCode::Dockerfile, expected.to_owned()));
    }
    let unreadable = submit_in(&test.queue, test.dir.path(), "e", "FROM a\nRUM x").map(drop);
    assert_eq!(
        code(unreadable),
        (ErrorCode::Dockerfile, "Dockerfile line 2: `RUM` is not an instruction".to_owned())
    );
}
