//! `env publish`, `env rollback` and `env sync` with Debian's registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::docker_registry::DockerRegistry;
use support::images::{Images, run};
use support::program::{Program, TestMount, failure};

/// A registry, and a program with a queue.
struct Judge {
    registry: DockerRegistry,
    builder: Program,
}

impl Judge {
    fn new() -> Self {
        let judge = Self { registry: DockerRegistry::start(), builder: Program::new() };
        judge.configure(&judge.builder, &format!("queue = '{}'\n", judge.queue().display()));
        judge
    }

    fn queue(&self) -> PathBuf {
        self.builder.dir().join("queue")
    }

    /// Writes the configuration of a program: the registry, and further keys.
    fn configure(&self, program: &Program, keys: &str) {
        let registry = self.registry.reference("env");
        let text = format!("[environments]\nregistry = '{registry}'\n{keys}");
        fs::write(program.dir().join("config.toml"), text).unwrap();
    }

    /// Adds a published revision with this image.
    fn revision(&self, id: &str, image: &str, options: &[&str]) {
        let context = self.builder.dir().join("context");
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Dockerfile"), format!("FROM scratch\nLABEL image={image}\n")).unwrap();
        let submit = ["env", "submit", id, context.to_str().unwrap(), "--as", "alice"];
        let revision = self.builder.ok(&[&submit, options].concat());
        self.builder.ok(&["env", "approve", &revision, "--as", "bob"]);
        let result =
            json!({"outcome": "published", "when": "2026-01-02T03:04:05Z", "who": "builder", "image": image});
        let path = self.queue().join(revision.replace('@', "/")).join("result.json");
        fs::write(path, result.to_string()).unwrap();
    }

    fn publish(&self) -> Value {
        self.builder.json(&["env", "publish"])
    }

    /// The list that a tag has, as another program sees it.
    fn list(&self, tag: &str) -> Value {
        let manifest = self.manifest(tag);
        let layer = &manifest["layers"][0];
        assert_eq!(layer["mediaType"], "application/vnd.rcx-imagefs.environments.v1+json");
        let blob = fs::read(self.registry.blob(layer["digest"].as_str().unwrap())).unwrap();
        serde_json::from_slice(&blob).unwrap()
    }

    fn manifest(&self, tag: &str) -> Value {
        let image = format!("docker://{}", self.registry.reference(&format!("env/environments:{tag}")));
        serde_json::from_str(&run("skopeo", &["inspect", "--raw", "--tls-verify=false", &image])).unwrap()
    }

    fn image(&self, number: u32) -> String {
        self.registry.reference(&format!("env/x@sha256:{number:064x}"))
    }
}

/// Makes a key, and returns its file.
fn key(dir: &Path, name: &str) -> String {
    let path = dir.join(name).display().to_string();
    let mut command = Command::new("ssh-keygen");
    assert!(
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", &path]).status().unwrap().success()
    );
    path
}

/// The IDs and revisions of a list.
fn revisions(list: &Value) -> Vec<String> {
    let entries = list.as_array().unwrap();
    entries.iter().map(|entry| format!("{}@{}", entry["id"].as_str().unwrap(), entry["revision"])).collect()
}

/// The code of the error of a command with `--json`.
fn code(program: &Program, arguments: &[&str]) -> String {
    let output = program.run(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    printed["error"]["code"].as_str().unwrap().to_owned()
}

#[test]
fn list_is_published_under_its_own_tag_and_replaced_under_the_current_one() {
    let judge = Judge::new();
    judge.revision("python3", &judge.image(1), &["--smoke", "true", "--hwgroup", "group1"]);
    judge.revision("c", &judge.image(2), &[]);
    let first = judge.publish();
    let list = judge.list("current");
    assert_eq!(revisions(&list), ["c@1", "python3@1"]);
    assert_eq!(
        (&list[1]["image"], &list[1]["hwgroups"], &list[1]["smoke"]),
        (&json!(judge.image(1)), &json!(["group1"]), &json!("true"))
    );
    assert_eq!(first["environments"], list);
    assert_eq!(judge.manifest("current")["artifactType"], "application/vnd.rcx-imagefs.environments.v1+json");
    assert_eq!(judge.publish(), first, "the same list is the same artifact");

    judge.revision("python3", &judge.image(3), &[]);
    let second = judge.publish();
    assert_eq!(revisions(&judge.list("current")), ["c@1", "python3@2"]);
    assert_eq!(judge.list(first["tag"].as_str().unwrap()), list);

    let back = judge.builder.ok(&["env", "rollback", "python3", "--as", "bob", "--publish"]);
    assert!(back.starts_with("current python3@1\n"), "{back}");
    assert_eq!(judge.list("current"), list);
    assert_ne!(second["tag"], first["tag"]);
    let log = judge.builder.ok(&["env", "log"]);
    assert!(log.lines().last().unwrap().contains("rolled-back  python3@1 by bob"), "{log}");
    let current = judge.builder.json(&["env", "list", "--current"]);
    let current: Vec<_> =
        current.as_array().unwrap().iter().map(|one| (&one["environment"], &one["revision"])).collect();
    assert_eq!(current, [(&json!("c"), &json!(1)), (&json!("python3"), &json!(1))]);
    let missing = failure(&Program::new().run(&["env", "publish", "--queue", "/nonexistent"]), &["publish"]);
    assert!(missing.contains("there is no queue"), "{missing}");
}

#[test]
fn fields_of_the_published_list_are_kept_unless_its_signature_is_wrong() {
    let judge = Judge::new();
    judge.revision("c", &judge.image(1), &[]);
    judge.publish();
    let mut list = judge.list("current");
    list[0]["services"] = json!([{"name": "db"}]);
    // The registry serves blobs from these files, so this writes the list as another program would.
    replace_list(&judge, &list.to_string());
    judge.publish();
    assert_eq!(judge.list("current")[0]["services"], json!([{"name": "db"}]));

    let key_file = key(judge.builder.dir(), "mine");
    let signers = judge.builder.dir().join("signers");
    fs::write(&signers, format!("mine {}", fs::read_to_string(format!("{key_file}.pub")).unwrap())).unwrap();
    let queue = judge.queue();
    judge.configure(
        &judge.builder,
        &format!("queue = '{}'\nallowed-signers = '{}'\n", queue.display(), signers.display()),
    );
    let output = judge.builder.run(&["env", "publish", "--sign", &key_file]);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && warning.contains("the list of environments is not signed"),
        "{warning}"
    );
    assert_eq!(judge.list("current")[0].get("services"), None);
    assert_eq!(judge.manifest("current")["layers"].as_array().unwrap().len(), 2);
    assert_eq!(code(&judge.builder, &["env", "publish", "--sign", "/nonexistent"]), "io");
}

/// Pushes a list that this program would not make.
fn replace_list(judge: &Judge, text: &str) {
    use rcx_imagefs::environments::OFFERS_TYPE;
    use rcx_imagefs::registry::{ArtifactDocument, Registry, RegistryOptions};
    let name = rcx_imagefs::image::Reference::parse(&judge.registry.reference("env/environments"), None);
    let document = ArtifactDocument { media_type: OFFERS_TYPE.to_owned(), bytes: text.as_bytes().to_vec() };
    let registry = Registry::new(RegistryOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let tags = ["current".parse().unwrap()];
    let push = registry.push_artifact(
        &name.as_ref().unwrap().name,
        &tags,
        OFFERS_TYPE,
        std::slice::from_ref(&document),
    );
    runtime.block_on(push).unwrap();
}

/// A host with a worker: a program with a mounted store that follows the list of a judge.
struct Worker {
    // Dropped before the directories of the program.
    _mount: TestMount,
    program: Program,
}

impl Worker {
    fn new(judge: &Judge, keys: &str) -> Self {
        let program = Program::new();
        judge.configure(&program, keys);
        Self { _mount: program.mount(), program }
    }

    /// Runs `env sync`. Returns its exit code and what it printed on stderr.
    fn sync(&self, options: &[&str]) -> (Option<i32>, String) {
        let output = self.program.run(&[&["env", "sync"], options].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn state(&self) -> Value {
        let path = self.program.store().join("rcx-imagefs/environments.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// What the host offers.
    fn offered(&self) -> Vec<String> {
        revisions(&self.state()["environments"])
    }

    /// The number of images in the store.
    fn images(&self) -> usize {
        self.program.json(&["images"]).as_array().unwrap().len()
    }
}

impl Judge {
    /// Pushes an image with a shell and this smoke command in its label. Returns its complete name.
    fn push(&self, repository: &str, smoke: &str) -> String {
        let copy = Images::make(&["small"]).layout().copy_of("small");
        copy.change_config(|config| config["config"]["Labels"]["io.rcx-imagefs.smoke"] = smoke.into());
        let name = format!("env/{repository}");
        let digest = self.registry.push(&copy.image(), &format!("{name}:1"), &[]);
        self.registry.reference(&format!("{name}@{digest}"))
    }
}

#[test]
fn only_images_whose_smoke_command_succeeds_are_offered() {
    let judge = Judge::new();
    let worker = Worker::new(&judge, "hwgroup = 'group1'\n");
    judge.revision("good", &judge.push("good", "[\"/bin/sh\", \"-c\", \"exit 0\"]"), &[]);
    judge.revision("bad", &judge.push("bad", "echo no compiler; exit 3"), &[]);
    judge.revision("group2", &judge.push("group2", "exit 0"), &["--hwgroup", "group2"]);
    judge.revision(
        "group1",
        &judge.push("group1", "exit 3"),
        &["--hwgroup", "group1", "--smoke", "test -x /bin/sh"],
    );
    judge.revision("arm", &judge.image(1), &["--platform", "linux/riscv64"]);
    judge.publish();
    let (status, error) = worker.sync(&[]);
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("environment bad@1: the smoke command") && error.contains("1 of 3"), "{error}");
    assert_eq!(worker.offered(), ["good@1", "group1@1"]);

    // The earlier revision of an environment stays if the new one does not work.
    judge.revision("good", &judge.push("good", "exit 4"), &[]);
    judge.revision("bad", &judge.push("bad", "exit 0"), &[]);
    judge.publish();
    let (status, error) = worker.sync(&[]);
    assert!(status == Some(2) && error.contains("environment good@2"), "{error}");
    assert_eq!(worker.offered(), ["bad@2", "good@1", "group1@1"]);
    judge.builder.ok(&["env", "rollback", "good", "--publish"]);
    let synced = worker.program.json(&["env", "sync"]);
    assert_eq!(revisions(&synced["environments"]), ["bad@2", "good@1", "group1@1"]);
    assert_eq!((&synced["failed"], &synced["headers_changed"]), (&json!([]), &json!([])));
}

#[test]
fn incomplete_image_and_registry_that_is_down_change_nothing_that_is_offered() {
    let judge = Judge::new();
    let worker = Worker::new(&judge, "");
    judge.revision("a", &judge.push("a", "exit 0"), &[]);
    judge.publish();
    assert_eq!(worker.sync(&[]).0, Some(0));
    judge.revision("b", &judge.image(7), &[]);
    judge.publish();
    let (status, error) = worker.sync(&[]);
    assert!(status == Some(2) && error.contains("environment b@1"), "{error}");
    assert_eq!(worker.offered(), ["a@1"]);
    for list in [
        json!({"a": 1}).to_string(),
        json!([{"id": "a".repeat(33)}]).to_string(),
        "<html>".to_owned(),
        json!([{"id": "a", "image": judge.registry.reference("env/a:1"), "revision": 1, "platform": "linux/amd64"}]).to_string(),
    ] {
        replace_list(&judge, &list);
        assert_eq!(code(&worker.program, &["env", "sync"]), "environment-list", "{list}");
    }
    let before = worker.state();
    drop(judge);
    assert_eq!(code(&worker.program, &["env", "sync"]), "network");
    assert_eq!(worker.state(), before);
}

#[test]
fn pruned_are_only_images_that_sync_pulled_and_nobody_tagged() {
    let judge = Judge::new();
    let worker = Worker::new(&judge, "");
    let (own, tagged, first) =
        (judge.push("own", "exit 0"), judge.push("tagged", "exit 0"), judge.push("a", "exit 0"));
    worker.program.pull(&own);
    for (id, image) in [("own", &own), ("tagged", &tagged), ("a", &first)] {
        judge.revision(id, image, &[]);
    }
    judge.publish();
    assert_eq!(worker.sync(&["--prune"]).0, Some(0));
    assert_eq!(worker.images(), 3);
    worker.program.ok(&["tag", &tagged, "mine:1"]);
    worker.program.ok(&["tag", &tagged, &format!("{}:keep", tagged.split('@').next().unwrap())]);
    judge.revision("a", &judge.push("a", "true"), &[]);
    judge.builder.ok(&["env", "retire", "own"]);
    judge.builder.ok(&["env", "retire", "tagged"]);
    judge.publish();
    assert_eq!(worker.sync(&[]).0, Some(0));
    let all = worker.images();
    let removed = worker.program.json(&["env", "sync", "--prune"]);
    assert_eq!(removed["removed"], json!([first]));
    assert_eq!(worker.images(), all - 1);
    assert_eq!(worker.offered(), ["a@2"]);
}

#[test]
fn worker_file_and_command_follow_the_set_of_ids() {
    let judge = Judge::new();
    let worker = Worker::new(&judge, "");
    let (file, log) = (worker.program.dir().join("worker.yml"), worker.program.dir().join("log"));
    fs::write(&file, "headers:\n  env:\n").unwrap();
    let path = file.to_str().unwrap();
    let command = format!("echo ran >> {}", log.display());
    let options = ["--write-headers", path, "--exec", &command];
    judge.revision("a", &judge.push("a", "exit 0"), &[]);
    judge.publish();
    assert_eq!(code(&worker.program, &[&["env", "sync"], &options[..]].concat()), "worker-file");
    assert_eq!(worker.images(), 0, "the file is checked before long work");
    let marked = |list: &str| {
        format!(
            "headers:\n  env:\n    - bash\t# x\n    # rcx-imagefs: begin\n{list}    # rcx-imagefs: end\nother: [1,\t2]\n"
        )
    };
    fs::write(&file, marked("")).unwrap();
    let runs = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let failing = worker.sync(&["--exec", "exit 3"]);
    assert!(failing.0 == Some(2) && failing.1.contains("exit status: 3"), "{}", failing.1);
    assert_eq!(worker.offered(), ["a@1"]);
    for expected in [1, 1] {
        assert_eq!(worker.sync(&options).0, Some(0));
        assert_eq!((fs::read_to_string(&file).unwrap(), runs()), (marked("    - \"a\"\n"), expected));
    }
    judge.revision("a", &judge.push("a", "true"), &[]);
    judge.publish();
    assert_eq!(worker.sync(&options).0, Some(0));
    assert_eq!((worker.offered(), runs()), (vec!["a@2".to_owned()], 1), "the worker knows only IDs");
    judge.builder.ok(&["env", "retire", "a"]);
    judge.publish();
    assert_eq!(worker.sync(&options).0, Some(0));
    assert_eq!((fs::read_to_string(&file).unwrap(), runs()), (marked(""), 2));
}

#[test]
fn list_without_the_signature_of_an_allowed_signer_is_refused() {
    let judge = Judge::new();
    let (mine, other) = (key(judge.builder.dir(), "mine"), key(judge.builder.dir(), "other"));
    let signers = judge.builder.dir().join("signers");
    fs::write(&signers, format!("mine {}", fs::read_to_string(format!("{mine}.pub")).unwrap())).unwrap();
    let worker = Worker::new(&judge, &format!("allowed-signers = '{}'\n", signers.display()));
    judge.revision("a", &judge.push("a", "exit 0"), &[]);
    for options in [&["env", "publish"][..], &["env", "publish", "--sign", &other]] {
        judge.builder.ok(options);
        assert_eq!(code(&worker.program, &["env", "sync"]), "signature", "{options:?}");
    }
    judge.builder.ok(&["env", "publish", "--sign", &mine]);
    assert_eq!(worker.sync(&[]).0, Some(0));
    assert_eq!(worker.offered(), ["a@1"]);
}
