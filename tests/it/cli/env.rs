//! `env`: the queue of environments.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Fixture, LAYERS, Layout, keys, texts};
use crate::registry::layout::LayoutRegistry;

/// The program with a queue.
struct EnvFixture {
    fixture: Fixture,
}

impl EnvFixture {
    fn new() -> Self {
        let env = Self { fixture: Fixture::new() };
        let queue = format!("[environments]\nqueue = '{}'\n", env.queue().display());
        fs::write(env.fixture.program.dir().join("config.toml"), queue).unwrap();
        env
    }

    fn queue(&self) -> PathBuf {
        self.fixture.program.dir().join("queue")
    }

    /// A context with this Dockerfile.
    fn context(&self, dockerfile: &str) -> String {
        let dir = self.fixture.program.dir().join("context");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
        dir.to_str().unwrap().to_owned()
    }

    /// Submits a Dockerfile as a revision of `python3`.
    fn submit(&self, dockerfile: &str) -> String {
        self.ok(&["submit", "python3", &self.context(dockerfile), "--as", "alice"])
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.fixture.program.ok(&[&["env"], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.fixture.program.json(&[&["env"], arguments].concat())
    }

    /// Runs a command that must fail. Returns its message, its hint, and its code.
    fn fails(&self, arguments: &[&str]) -> (String, Option<String>, String) {
        let arguments = [&["env"], arguments].concat();
        let output = self.fixture.program.run(&[&arguments[..], &["--json"]].concat());
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let code = printed["error"]["code"].as_str().unwrap_or_default().to_owned();
        let (error, hint) = self.fixture.fails(&arguments);
        (error, hint, code)
    }
}

#[test]
fn revision_is_submitted_reviewed_and_logged() {
    let registry = LayoutRegistry::start();
    let layout = Layout::new(LAYERS);
    let base = registry.serve("lab/a", "1", layout.path().as_ref());
    let env = EnvFixture::new();
    let context = env.context(&format!("FROM {base}\nRUN --network=host make\n"));
    let arguments = [
        "submit",
        "python3",
        &context,
        "--as",
        "alice",
        "-m",
        "first",
        "--smoke",
        "python3 -V",
        "--host",
        "b.example:80",
        "--host",
        "a.example",
        "--hwgroup",
        "group1",
        "--platform",
        "linux/amd64",
    ];
    let submitted = env.json(&arguments);
    assert_eq!(
        keys(&submitted),
        ["current", "environment", "new", "path", "result", "review", "revision", "state", "submission"]
    );
    assert_eq!(
        (&submitted["new"], &submitted["revision"], &submitted["state"]),
        (&json!(true), &json!(1), &json!("submitted"))
    );
    let submission = &submitted["submission"];
    assert_eq!(
        keys(submission),
        ["context", "hosts", "hwgroups", "message", "platform", "smoke", "when", "who"]
    );
    assert_eq!(submission["hosts"], json!(["a.example", "b.example:80"]));
    let again = env.fixture.program.run(&[&["env"], &arguments[..]].concat());
    let (out, err) = texts(&again);
    assert_eq!(out, "python3@1\n");
    assert!(err.contains("python3@1 asks for the same and waits for its review"), "{err}");

    let shown = env.json(&["show", "python3"]);
    assert_eq!(
        keys(&shown),
        [
            "current",
            "diff",
            "dockerfile",
            "environment",
            "flags",
            "last_published",
            "path",
            "result",
            "review",
            "revision",
            "state",
            "submission"
        ]
    );
    let flags: Vec<(u64, &str)> = shown["flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flag| (flag["line"].as_u64().unwrap(), flag["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(flags, [(1, "unpinned-base"), (2, "network")]);
    assert!(registry.requests().is_empty(), "only the approval asks the registry");

    let digest = submission["context"]["digest"].as_str().unwrap();
    let approved = env.ok(&["approve", "python3@1", "--as", "bob", "--context", digest]);
    let lines: Vec<&str> = approved.lines().collect();
    let [first, of_base, rest @ ..] = lines.as_slice() else { panic!("{approved}") };
    assert_eq!((*first, rest), ("approved python3@1", &["host a.example", "host b.example:80"][..]));
    assert!(of_base.starts_with(&format!("base {base} = sha256:")), "{approved}");
    let review: Value =
        serde_json::from_slice(&fs::read(env.queue().join("python3/1/review.json")).unwrap()).unwrap();
    assert_eq!(
        (&review["context"], &review["who"], &review["decision"]),
        (&json!(digest), &json!("bob"), &json!("approved"))
    );
    let pulled = env.fixture.program.pull(&base);
    assert!(pulled.ends_with(review["bases"][0]["digest"].as_str().unwrap()), "{pulled}");

    let (error, hint, code) = env.fails(&["reject", "python3@1", "--as", "carol"]);
    assert_eq!(error, "revision python3@1 cannot be rejected: it was approved by bob");
    assert_eq!(
        hint.as_deref(),
        Some("a revision is decided about once; submit another one with `env submit`")
    );
    assert_eq!(code, "revision-state");
    assert_eq!(env.ok(&["withdraw", "python3@1", "--as", "alice", "-m", "a mistake"]), "withdrew python3@1");
    let log = env.json(&["log"]);
    let log: Vec<(&str, &str)> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["what"].as_str().unwrap(), entry["who"].as_str().unwrap()))
        .collect();
    assert_eq!(log, [("submitted", "alice"), ("approved", "bob"), ("withdrawn", "alice")]);
    let list = env.json(&["list"]);
    assert_eq!((list.as_array().unwrap().len(), &list[0]["state"]), (1, &json!("withdrawn")));
}

#[test]
fn base_that_cannot_be_resolved_is_an_error_with_its_line_and_nothing_is_approved() {
    let registry = LayoutRegistry::start();
    let env = EnvFixture::new();
    let missing = registry.reference("lab/none:1");
    env.submit(&format!("FROM scratch\nCOPY --from={missing} / /\n"));
    let (error, _, code) = env.fails(&["approve", "python3@1", "--as", "bob"]);
    assert!(error.starts_with("Dockerfile line 2: ") && error.contains("lab/none:1: not found"), "{error}");
    assert_eq!(code, "not-found");
    env.submit("FROM scratch\nCOPY --from=127.0.0.1:1/a / /\n");
    let (error, hint, code) = env.fails(&["approve", "python3@2", "--as", "bob"]);
    assert_eq!(error, "Dockerfile line 2: 127.0.0.1:1: connection refused");
    assert_eq!(
        (hint.as_deref(), code.as_str()),
        (Some("check that the registry `127.0.0.1:1` exists and is running"), "network")
    );
    assert_eq!(env.json(&["list"])[0]["state"], "submitted");
}

#[test]
fn registries_of_the_configuration_restrict_base_images() {
    let env = EnvFixture::new();
    let config = env.fixture.program.dir().join("config.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    text.push_str("registries = ['reg.example/lab']\n");
    fs::write(config, text).unwrap();
    env.submit("FROM python:3.12\n");
    let shown = env.ok(&["show", "python3@1"]);
    let flag = "flag: line 1: registry-not-allowed: docker.io/library/python:3.12 is from a registry that is not allowed";
    assert!(shown.lines().any(|line| line == flag), "{shown}");
    let (error, _, code) = env.fails(&["approve", "python3@1", "--as", "bob"]);
    let expected = "Dockerfile line 1: the registry of docker.io/library/python:3.12 is not allowed (`registries` in the configuration)";
    assert_eq!((error.as_str(), code.as_str()), (expected, "dockerfile"));
}

#[test]
fn difference_is_unified_and_hidden_characters_are_escaped() {
    let env = EnvFixture::new();
    env.submit("FROM scratch\nCOPY a /\n");
    let result = json!({"outcome": "published", "when": "2024-05-06T07:08:09Z", "who": "builder"});
    let review = json!({"decision": "approved", "when": "2024-05-06T07:08:09Z", "who": "bob"});
    for (name, document) in [("review", review), ("result", result)] {
        fs::write(env.queue().join(format!("python3/1/{name}.json")), document.to_string()).unwrap();
    }
    env.submit("FROM scratch\nCOPY a\u{1b}[2J\u{202e}\t/\n");
    let shown = env.json(&["show", "python3", "--diff"]);
    let diff = "--- python3@1/Dockerfile\n+++ python3@2/Dockerfile\n@@ -1,2 +1,2 @@\n FROM scratch\n-COPY a /\n+COPY a\u{1b}[2J\u{202e}\t/\n";
    assert_eq!((&shown["diff"], &shown["last_published"]), (&json!(diff), &json!(1)));
    for arguments in [&["show", "python3@2"][..], &["show", "python3", "--diff"]] {
        let shown = env.ok(arguments);
        assert!(shown.contains("COPY a\\u{1b}[2J\\u{202e}\t/"), "{shown}");
        assert!(shown.contains("flag: line 2: hidden-text: has the invisible character U+001B"), "{shown}");
    }
    let list = env.ok(&["list"]);
    assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("python3@1  published  yes ")), "{list}");
    assert_eq!(env.json(&["retire", "python3"]), json!({"environment": "python3", "was": 1}));
    assert_eq!(env.json(&["list"])[0]["current"], false);
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let env = EnvFixture::new();
    let (error, hint, code) = env.fails(&["list"]);
    assert_eq!(error, format!("there is no queue at {}", env.queue().display()));
    assert_eq!(
        (hint.as_deref(), code.as_str()),
        (Some("`env submit` creates a queue; `--queue DIR` selects another one"), "no-queue")
    );
    let (context, nowhere) = (env.context("FROM scratch\n"), env.fixture.program.dir().join("nowhere"));
    let nowhere = nowhere.to_str().unwrap();
    let (error, _, _) = env.fails(&["submit", "python3", nowhere]);
    assert_eq!(error, format!("cannot open {nowhere}: No such file or directory (os error 2)"));
    assert!(!env.queue().exists());

    let long = "a".repeat(33);
    for (arguments, wanted, wanted_code) in [
        (&["submit", &long, &context][..], "has 33 characters; at most 32 are allowed", "usage"),
        (&["submit", "Python", &context], "environment ID `Python` is not valid", "usage"),
        (&["submit", "../x", &context], "environment ID `../x` is not valid", "usage"),
        (
            &["submit", "a", &context, "--host", "https://x"],
            "host `https://x` is not of the form NAME[:PORT]",
            "usage",
        ),
        (
            &["submit", "a", &context, "--platform", "linux"],
            "platform `linux` is not of the form",
            "reference",
        ),
        (&["submit", "a", &context, "--as", ""], "name `` is not valid", "usage"),
        (
            &["submit", "a", "/etc/passwd"],
            "submit /etc/passwd: the context is not a tar, or it is damaged",
            "context",
        ),
        (&["approve", "a", "--as", "x"], "`a` names no revision; write ID@REVISION, such as a@1", "usage"),
        (&["approve", "a@01", "--as", "x"], "revision `01` is not a number from 1 up", "usage"),
        (&["show", "a@0"], "revision `0` is not a number from 1 up", "usage"),
    ] {
        let output = env.fixture.program.run(&[&["env"], arguments, &["--json"]].concat());
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let printed: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}"));
        assert!(err.contains(wanted), "{arguments:?}: {err}");
        assert_eq!(printed["error"]["code"], wanted_code, "{arguments:?}");
    }
    assert!(env.json(&["submit", "b", &context])["new"].as_bool().unwrap());
    assert_eq!(env.json(&["list"]).as_array().unwrap().len(), 1);
    let (error, _, code) = env.fails(&["show", "a"]);
    assert_eq!((error.as_str(), code.as_str()), ("environment a is not in the queue", "no-revision"));
}

#[test]
fn damaged_revision_is_an_error_after_the_list_of_the_others() {
    let env = EnvFixture::new();
    env.submit("FROM scratch\n");
    env.submit("FROM scratch AS two\n");
    let damaged = env.queue().join("python3/1/submission.json");
    fs::write(&damaged, "{").unwrap();
    let output = env.fixture.program.run(&["env", "list"]);
    let (out, err) = texts(&output);
    assert_eq!((output.status.code(), out.lines().count()), (Some(2), 2), "{out}{err}");
    assert!(err.starts_with(&format!("error: {} is damaged: ", damaged.display())), "{err}");
}

#[test]
fn queue_is_chosen_by_option_then_variable_then_configuration() {
    let env = EnvFixture::new();
    let context = env.context("FROM scratch\n");
    let [option, variable] = ["of-option", "of-variable"].map(|name| env.fixture.program.dir().join(name));
    let submit = |arguments: &[&str]| {
        let mut command =
            env.fixture.program.command(&[&["env", "submit", "a", &context], arguments].concat());
        let output = command.env("RCX_IMAGEFS_QUEUE", &variable).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
    };
    submit(&["--queue", option.to_str().unwrap()]);
    assert!(option.join("a/1").is_dir() && !variable.exists());
    submit(&[]);
    assert!(variable.join("a/1").is_dir() && !env.queue().exists());
    env.submit("FROM scratch\n");
    assert!(env.queue().join("python3/1").is_dir());
}
