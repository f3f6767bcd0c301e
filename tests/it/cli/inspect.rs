//! `inspect`.

use std::fs;

use serde_json::json;

use super::{Fixture, Layout, keys};

#[test]
fn inspect_shows_all_parts_of_an_image() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let shown = fixture.program.json(&["inspect", "lab/a:1"]);
    let all = ["config", "created", "digest", "index", "layers", "media_type", "name", "platform", "tags"];
    assert_eq!(keys(&shown), all);
    assert_eq!(shown["name"], "lab/a");
    assert_eq!(shown["tags"], json!(["1"]));
    assert_eq!(shown["digest"], digest.as_str());
    assert_eq!(shown["index"], json!(null));
    assert_eq!(shown["media_type"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(shown["platform"], rcx_imagefs::image::Platform::host().to_string());
    assert_eq!(shown["created"], "2024-05-06T07:08:09Z");
    assert_eq!(shown["config"]["config"]["User"], "7:8");

    let manifest = fixture.manifest(&digest);
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for (at, (layer, blob)) in layers.iter().zip(manifest["layers"].as_array().unwrap()).enumerate() {
        let all = [
            "code",
            "diff_id",
            "digest",
            "entries",
            "error",
            "index_size",
            "media_type",
            "plain",
            "seekable_size",
            "size",
            "spans",
            "tar_size",
        ];
        assert_eq!(keys(layer), all);
        assert_eq!(
            (&layer["digest"], &layer["size"], &layer["media_type"]),
            (&blob["digest"], &blob["size"], &blob["mediaType"])
        );
        assert_eq!(layer["diff_id"], shown["config"]["rootfs"]["diff_ids"][at]);
        assert_eq!((&layer["error"], &layer["seekable_size"]), (&json!(null), &json!(0)));
        assert!(layer["tar_size"].as_u64() > layer["size"].as_u64() && layer["spans"] == 1, "{layer}");
        let name = layer["digest"].as_str().unwrap().replace("sha256:", "");
        let dir = fs::read_dir(fixture.program.store().join("rcx-imagefs/indexes")).unwrap();
        let index = dir.map(Result::unwrap).find(|file| file.file_name().to_string_lossy().contains(&name));
        assert_eq!(layer["index_size"], index.unwrap().metadata().unwrap().len());
    }
    // A whiteout is a marker, not an entry.
    assert_eq!((&layers[0]["entries"], &layers[1]["entries"]), (&json!(3), &json!(2)));

    let by_digest = fixture.program.json(&["inspect", &format!("lab/a@{digest}")]);
    assert_eq!(by_digest, shown);
}

#[test]
fn text_output_has_the_same_fields() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let text = fixture.program.ok(&["inspect", "lab/a:1"]);
    let fields: Vec<(&str, &str)> = text
        .lines()
        .map_while(|line| line.split_once(' ').map(|(name, value)| (name, value.trim_start())))
        .collect();
    for expected in [
        ("name", "lab/a"),
        ("tags", "1"),
        ("digest", &*digest),
        ("user", "7:8"),
        ("command", "sh -c true"),
        ("environment", "PATH=/bin"),
        ("environment", "LANG=C"),
    ] {
        assert!(fields.contains(&expected), "{expected:?}: {text}");
    }
    for number in 0..2 {
        assert!(text.contains(&fixture.layer(&digest, number)), "{text}");
    }
}

#[test]
fn control_characters_of_an_image_are_escaped_in_text_output() {
    let fixture = Fixture::new();
    let layout = Layout::with_config("f x", |config| {
        config["config"]["Env"] = json!(["A=\u{1b}]0;title\u{7}", "B=one\ntwo"]);
        config["created"] = json!("\u{9b}2J");
    });
    fixture.program.ok(&["load", layout.path(), "--name", "lab/a:1"]);
    let text = fixture.program.ok(&["inspect", "lab/a:1"]);
    assert!(text.contains("A=\\u{1b}]0;title\\u{7}\n") && text.contains("B=one\\ntwo\n"), "{text}");
    assert!(!text.chars().any(|character| character.is_control() && character != '\n'), "{text:?}");
    let shown = fixture.program.json(&["inspect", "lab/a:1"]);
    assert_eq!(shown["config"]["config"]["Env"][1], "B=one\ntwo", "JSON has the original text");
}

#[test]
fn format_prints_fields_under_the_names_of_docker_and_of_json() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let config = fixture.manifest(&digest)["config"]["digest"].as_str().unwrap().to_owned();
    let format = |template: &str| fixture.program.ok(&["inspect", "--format", template, "lab/a:1"]);
    assert_eq!(format("{{.Id}}"), config);
    assert_eq!(format("{{.Config.User}} on {{.Os}}"), "7:8 on linux");
    assert_eq!(format("{{json .Config.Env}}"), r#"["PATH=/bin","LANG=C"]"#);
    assert_eq!(format("{{.Config.Cmd.0}}"), "sh");
    assert_eq!(format("{{.RepoTags}}{{.RepoDigests.0}}"), format!(r#"["lab/a:1"]lab/a@{digest}"#));
    assert_eq!(format("{{.digest}} {{.layers.1.entries}}"), format!("{digest} 2"));
    let (error, hint) = fixture.fails(&["inspect", "-f", "{{.Cofnig}}", "lab/a:1"]);
    assert_eq!(error, "there is no field `.Cofnig`");
    assert!(hint.unwrap().contains("Config, "));
}

#[test]
fn text_output_has_the_whole_configuration() {
    let fixture = Fixture::new();
    let layout = Layout::with_config(super::LAYERS, |config| {
        config["config"]["Labels"] = json!({"maintainer": "lab"});
        config["config"]["ExposedPorts"] = json!({"80/tcp": {}});
        config["config"]["Volumes"] = json!({"/data": {}});
        config["config"]["StopSignal"] = json!("SIGQUIT");
        config["config"]["WorkingDir"] = json!("/work");
    });
    fixture.program.ok(&["load", layout.path(), "--name", "lab/a:1"]);
    let text = fixture.program.ok(&["inspect", "lab/a:1"]);
    for (name, value) in [
        ("user", "7:8"),
        ("directory", "/work"),
        ("command", "sh -c true"),
        ("environment", "PATH=/bin"),
        ("environment", "LANG=C"),
        ("stop signal", "SIGQUIT"),
        ("port", "80/tcp"),
        ("volume", "/data"),
        ("label", "maintainer=lab"),
    ] {
        assert!(text.contains(&format!("\n{name:<12}{value}\n")), "{name}: {text}");
    }
}

#[test]
fn layer_with_a_missing_blob_is_shown_with_the_error_beside_the_others() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let layer = fixture.layer(&digest, 1);
    fs::remove_file(fixture.blob(&layer)).unwrap();
    let shown = fixture.program.json(&["inspect", "lab/a:1"]);
    assert_eq!(shown["layers"][0]["error"], json!(null));
    assert_eq!(shown["layers"][1]["entries"], json!(null));
    assert!(shown["layers"][1]["error"].as_str().unwrap().contains(&layer), "{shown}");
    assert!(fixture.program.ok(&["inspect", "lab/a:1"]).contains(&format!("{layer}: ")));
}

#[test]
fn image_with_a_missing_manifest_is_an_error_with_a_hint() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    fs::remove_file(fixture.blob(&digest)).unwrap();
    let (error, hint) = fixture.fails(&["inspect", "lab/a:1"]);
    assert_eq!(error, format!("blob {digest} is not in the store"));
    assert_eq!(hint.unwrap(), "pull or load the image again");
}

#[test]
fn digest_and_its_first_digits_name_an_image() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let hex = digest.strip_prefix("sha256:").unwrap().to_owned();
    for reference in [&digest, &hex, &digest[..13], &hex[..6], &hex[..20]] {
        assert_eq!(fixture.program.json(&["inspect", reference])["digest"], digest, "{reference}");
        fixture.program.ok(&["verify", reference]);
    }
    for reference in [&digest[..12], &hex[..5]] {
        let (error, _) = fixture.fails(&["inspect", reference]);
        assert!(error.contains("is not in the store"), "{error}");
    }
    let (error, _) = fixture.fails(&["inspect", "sha256:0123456789"]);
    assert_eq!(error, "no image in the store has the digest sha256:0123456789");
}

#[test]
fn ambiguous_digest_is_an_error_that_lists_the_images_and_names_win() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    // Two names of one image are ambiguous only for a command that removes names.
    fixture.load("lab/b:1", super::LAYERS);
    let short = &digest[..20];
    fixture.program.ok(&["inspect", short]);
    let (error, _) = fixture.fails(&["rm", short]);
    assert!(error.contains(&format!("lab/a@{digest}, lab/b@{digest}")), "{error}");

    let other = fixture.load(short, "f other x");
    assert_eq!(fixture.program.json(&["inspect", short])["digest"], other);
    fixture.program.ok(&["rm", &format!("lab/b@{digest}")]);
    fixture.program.ok(&["rm", &digest[..21]]);
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 1);
}
