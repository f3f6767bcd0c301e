//! The configuration of the new image.

use serde_json::json;

use support::docker_registry::DockerRegistry;
use support::program::Program;

use super::{CommitFixture, shell};

#[test]
fn changes_and_message_are_in_the_configuration_and_nothing_else_changes() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "echo 1 > new && touch -d '2024-05-06 07:08:09 UTC' new . etc");
    let changes = [
        "ENV PATH=/opt/bin:$PATH A='b c'",
        "WORKDIR /dir",
        "USER 1000",
        "LABEL org.example=\"x y\"",
        "ENTRYPOINT [\"/bin/busybox\"]",
        "CMD [\"echo\", \"hi\"]",
    ];
    let mut options = vec!["--message", "why"];
    changes.iter().for_each(|change| options.extend(["--change", *change]));
    let image = fixture.commit("it", "lab/new:1", &options);
    let (manifest, config) = fixture.documents(&image);
    assert_eq!(
        config["config"],
        json!({
            "Env": ["PATH=/opt/bin:/bin", "A=b c"], "WorkingDir": "/dir", "User": "1000", "Labels": {"org.example": "x y"},
            "Entrypoint": ["/bin/busybox"], "Cmd": ["echo", "hi"],
        })
    );
    assert_eq!(config["created"], "2024-05-06T07:08:09Z");
    let last = config["history"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["comment"], &last["created"]), (&json!("why"), &config["created"]));
    assert!(last["created_by"].as_str().unwrap().starts_with("rcx-imagefs root commit --change 'ENV PATH="));
    assert!(last.get("empty_layer").is_none());
    let types: Vec<_> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["mediaType"]).collect();
    assert_eq!(types.last().unwrap(), &"application/vnd.oci.image.layer.v1.tar+gzip");
    // Without a change, the program of the base image stays.
    let plain = fixture.commit("it", "lab/plain:1", &[]);
    let (_, base) = fixture.base();
    assert_eq!(fixture.documents(&plain).1["config"], base["config"]);
    // An entrypoint without a command of its own does not get that of the base image as an argument.
    let entry = fixture.commit("it", "lab/entry:1", &["--change", "ENTRYPOINT [\"/bin/true\"]"]);
    assert_eq!(fixture.documents(&entry).1["config"]["Cmd"], json!(null));
}

#[test]
fn tag_that_another_image_has_moves_with_a_warning() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "echo 1 > new");
    let output = fixture.program.run(&["root", "commit", "it", "lab/base:1", "--json"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && warning.contains("tag lab/base:1 moves from sha256:"), "{warning}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["name"], &json["tag"]), (&json!("lab/base"), &json!("1")));
    assert!(json["moved_from"].as_str().unwrap().starts_with("sha256:"));
    // The root still has its image, which another commit compares it with.
    let again = fixture.program.json(&["root", "commit", "it", "lab/base"]);
    assert_eq!((&again["digest"], &again["tag"]), (&json["digest"], &json!("latest")));
}

#[test]
fn pushed_image_can_be_pulled_elsewhere_and_a_name_without_a_registry_is_refused_first() {
    let fixture = CommitFixture::new();
    let registry = DockerRegistry::start();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "echo pushed > new");
    let before = fixture.program.ok(&["images"]);
    let error = fixture.program.fails(&["root", "commit", "it", "lab/new:1", "--push"]);
    assert!(error.contains("lab/new is a name without a registry"), "{error}");
    assert_eq!(fixture.program.ok(&["images"]), before);
    let reference = registry.reference("lab/new:1");
    let image = fixture.commit("it", &reference, &["--push"]);
    let elsewhere = Program::new();
    assert_eq!(elsewhere.pull(&reference), image);
    assert_eq!(elsewhere.ok(&["cp", &format!("{reference}:/new"), "-"]), "pushed");
    // Nobody listens on this port. The image is committed all the same.
    let error = fixture.program.fails(&["root", "commit", "it", "127.0.0.1:1/lab/new:1", "--push"]);
    assert!(error.contains("push 127.0.0.1:1/lab/new:1"), "{error}");
    assert!(fixture.program.ok(&["images"]).contains("127.0.0.1:1/lab/new"));
}
