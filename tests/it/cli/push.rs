//! `push` and `copy`: names, errors, and output.

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Fixture, LAYERS, Layout, keys, texts};
use crate::registry::push_server::PushServer;

/// A registry that takes pushes.
fn registry() -> (Runtime, PushServer) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(PushServer::start());
    (runtime, server)
}

#[test]
fn push_sets_the_tag_of_the_image_unless_the_destination_has_one() {
    let (_runtime, server) = registry();
    let (fixture, digest) = Fixture::with("lab/a:1");
    for (reference, destination, tag) in [
        ("lab/a:1", "team/a", json!("1")),
        ("lab/a:1", "team/a:2", json!("2")),
        (&*format!("lab/a@{digest}"), "team/b", Value::Null),
        (&digest[..20], "team/b:3", json!("3")),
    ] {
        let destination = format!("{}/{destination}", server.address());
        let printed = fixture.program.json(&["push", reference, &destination]);
        assert_eq!((&printed["tag"], &printed["digest"]), (&tag, &json!(digest)), "{reference}");
        let fields =
            ["blobs", "blobs_mounted", "blobs_sent", "bytes_sent", "digest", "manifests", "name", "tag"];
        assert_eq!(keys(&printed), fields);
    }
    let printed = fixture.program.ok(&["push", "lab/a:1", &format!("{}/team/a", server.address())]);
    assert_eq!(printed, format!("{}/team/a@{digest}", server.address()));
}

#[test]
fn destination_without_a_host_belongs_to_the_default_registry() {
    let (_runtime, server) = registry();
    let (fixture, digest) = Fixture::with("lab/a:1");
    let config = fixture.program.dir().join("config.toml");
    std::fs::write(config, format!("default-registry = '{}'\n", server.address())).unwrap();
    let printed = fixture.program.ok(&["push", "lab/a:1", "team/a"]);
    assert_eq!(printed, format!("team/a@{digest}"));
    assert_eq!(server.count("PUT", "/v2/team/a/manifests/1"), 1);
}

#[test]
fn push_to_a_name_that_no_registry_can_have_is_refused() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let (error, hint) = fixture.fails(&["push", "lab/a:1"]);
    assert_eq!(error, "push lab/a:1: lab/a is a name without a registry");
    assert_eq!(hint.unwrap(), "name the destination: `rcx-imagefs push lab/a:1 HOST/NAME:TAG`");
    let by_digest = format!("reg.example/a@{digest}");
    for command in ["push", "copy"] {
        let (error, hint) = fixture.fails(&[command, "lab/a:1", &by_digest]);
        let expected =
            format!("{command} lab/a:1: `{by_digest}` has a digest; a destination consists of NAME and TAG");
        assert_eq!(error, expected);
        assert!(hint.is_some());
    }
    let (error, _) = fixture.fails(&["push", "lab/none:1", "reg.example/a"]);
    assert!(error.contains("is not in the store"), "{error}");
    let (error, hint) = fixture.fails(&["push", "lab/a:1", "127.0.0.1:1/lab/a"]);
    assert_eq!(error, "push lab/a:1: 127.0.0.1:1: connection refused");
    assert!(hint.unwrap().contains("exists and is running"));
}

#[test]
fn layer_that_may_not_be_distributed_is_refused_before_anything_is_sent() {
    let (_runtime, server) = registry();
    let fixture = Fixture::new();
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let layout = Layout::with_media(LAYERS, foreign, |_| ());
    let printed = fixture.program.ok(&["load", layout.path(), "--name", "lab/a:1"]);
    let digest = printed.split_once('@').unwrap().1;
    let layer = fixture.layer(digest, 0);
    let target = format!("{}/lab/a", server.address());
    let output = fixture.program.run(&["push", "--json", "lab/a:1", &target]);
    let printed: Value = serde_json::from_str(&texts(&output).0).unwrap();
    assert_eq!(printed["error"]["code"], "not-distributable");
    let expected =
        format!("push lab/a:1: lab/a: layer {layer} may not be distributed: its media type is `{foreign}`");
    assert_eq!(printed["error"]["message"], json!(expected));
    assert_eq!(server.server.requests().len(), 0);
}

#[test]
fn missing_or_damaged_blob_is_named() {
    let (_runtime, server) = registry();
    let (fixture, digest) = Fixture::with("lab/a:1");
    let layer = fixture.layer(&digest, 0);
    let target = format!("{}/lab/a", server.address());
    fixture.damage(&layer);
    let (error, hint) = fixture.fails(&["push", "lab/a:1", &target]);
    assert!(error.starts_with(&format!("push lab/a:1: blob {layer} is damaged: ")), "{error}");
    assert!(hint.unwrap().contains("verify --repair"));
    std::fs::remove_file(fixture.blob(&layer)).unwrap();
    let (error, _) = fixture.fails(&["push", "lab/a:1", &target]);
    assert_eq!(error, format!("push lab/a:1: blob {layer} is missing from the store"));
}

#[test]
fn copy_suggests_the_tags_of_the_source() {
    let registry = crate::registry::layout::LayoutRegistry::start();
    let layout = Layout::new(LAYERS);
    registry.serve("lab/a", "1", layout.path().as_ref());
    let fixture = Fixture::new();
    let source = registry.reference("lab/a:2");
    let (error, hint) = fixture.fails(&["copy", &source, "127.0.0.1:1/lab/a"]);
    assert_eq!(error, format!("copy {source}: {source}: not found"));
    assert_eq!(hint.unwrap(), "the registry has this image with other tags: 1");
}
