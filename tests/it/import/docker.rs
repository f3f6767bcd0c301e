//! Archives of `docker save`, of all versions.

use std::fs;
use std::path::{Path, PathBuf};

use rcx_imagefs::image::{DiffId, Digest, Image, media};
use rcx_imagefs::import::ImportError;
use serde_json::{Value, json};

use super::{Layout, descriptor, gzip, layer_tar, loadable, names, open, platform, read, refused, tar_of};

/// A `docker save` archive in the form from before docker added OCI layouts.
fn docker_save(dir: &Path, layout: &Layout, manifest: &Value) -> PathBuf {
    docker_save_with(dir, layout, manifest, "")
}

/// The same with a comment in the configuration.
fn docker_save_with(dir: &Path, layout: &Layout, manifest: &Value, comment: &str) -> PathBuf {
    let path = dir.join("save.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut file = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).unwrap());
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let diff_ids: Vec<_> = layout.tars.iter().map(|tar| Digest::of(tar)).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "comment": comment});
    file("config.json", config.to_string().as_bytes());
    file("one/layer.tar", &layout.tars[0]);
    file("two.tar.gz", &gzip(&layout.tars[1]));
    file("manifest.json", manifest.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link/layer.tar", "../one/layer.tar").unwrap();
    builder.append_link(&mut header, "out/layer.tar", "../../../../etc/passwd").unwrap();
    builder.finish().unwrap();
    path
}

#[test]
fn old_docker_archive_gets_a_manifest() {
    let (dir, layout) = (tempfile::tempdir().unwrap(), Layout::new());
    let image =
        |layers: &[&str], tags: &[&str]| json!({"Config": "config.json", "RepoTags": tags, "Layers": layers});
    let manifest = json!([
        image(&["one/layer.tar", "two.tar.gz"], &["lab/app:1", "lab/app:2", "Not A Name"]),
        image(&["link/layer.tar", "two.tar.gz"], &[]),
    ]);
    let archive = open(&docker_save(dir.path(), &layout, &manifest)).unwrap();
    assert_eq!(archive.images().len(), 1, "the second image is the first one without a name");
    for image in archive.images() {
        layout.check_image(&archive, image);
        let types: Vec<_> = image.manifest.layers().iter().map(|layer| layer.media_type.as_str()).collect();
        assert_eq!(types, [media::OCI_LAYER, media::OCI_LAYER_GZIP]);
    }
    assert_eq!(names(&archive.images()[0]), ["lab/app:1", "lab/app:2"]);
}

#[test]
fn configuration_that_an_archive_lists_often_is_parsed_once() {
    let (dir, layout) = (tempfile::tempdir().unwrap(), Layout::new());
    let image =
        |tag| json!({"Config": "config.json", "RepoTags": [tag], "Layers": ["one/layer.tar", "two.tar.gz"]});
    let manifest = |count| Value::from_iter((0..count).map(|number| image(format!("lab/app:{number}"))));
    let comment = "x".repeat(4 << 20);
    let start = std::time::Instant::now();
    let archive = open(&docker_save_with(dir.path(), &layout, &manifest(1000), &comment)).unwrap();
    // Parsing it a thousand times takes minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!((archive.images().len(), names(&archive.images()[0]).len()), (1, 1000));
    let error = refused(&docker_save(dir.path(), &layout, &manifest(1001)));
    assert!(matches!(error, ImportError::TooMany { limit: 1000, .. }), "{error}");
}

#[test]
fn overlong_paths_in_an_archive_are_refused() {
    let (dir, layout) = (tempfile::tempdir().unwrap(), Layout::new());
    let long = "../a/".repeat(10_000);
    for (config, layer) in [(long.as_str(), "one/layer.tar"), ("config.json", long.as_str())] {
        let manifest = json!([{"Config": config, "RepoTags": null, "Layers": [layer, "two.tar.gz"]}]);
        let error = refused(&docker_save(dir.path(), &layout, &manifest));
        assert!(matches!(error, ImportError::PathTooLong { length: 50_000, .. }), "{error}");
    }
}

#[test]
fn docker_archive_with_wrong_paths_is_refused() {
    let (dir, layout) = (tempfile::tempdir().unwrap(), Layout::new());
    let refused = |config: &str, layers: &[&str]| {
        let manifest = json!([{"Config": config, "RepoTags": null, "Layers": layers}]);
        refused(&docker_save(dir.path(), &layout, &manifest))
    };
    let missing =
        |error: &ImportError, path: &str| matches!(error, ImportError::Missing(what) if what == path);
    assert!(missing(&refused("none.json", &[]), "none.json"));
    assert!(missing(&refused("../../etc/passwd", &[]), "../../etc/passwd"));
    assert!(missing(&refused("config.json", &["one/layer.tar", "x"]), "x"));
    assert!(missing(&refused("config.json", &["/etc/passwd", "two.tar.gz"]), "/etc/passwd"));
    assert!(matches!(refused("config.json", &["out/layer.tar", "two.tar.gz"]), ImportError::Link(_)));
    assert!(matches!(refused("config.json", &["one/layer.tar"]), ImportError::Document { .. }));
}

#[test]
fn current_docker_archive_keeps_the_names_of_its_manifest_json() {
    let layout = Layout::new();
    let mut entry = layout.image("amd64");
    let manifest =
        fs::read(layout.path().join("blobs/sha256").join(&entry["digest"].as_str().unwrap()[7..])).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap()[7..].to_owned();
    let image_name = "io.containerd.image.name";
    let ref_name = "org.opencontainers.image.ref.name";
    entry["annotations"] = json!({image_name: "docker.io/lab/app:1", ref_name: "1"});
    let mut second = entry.clone();
    second["annotations"] = json!({image_name: "docker.io/lab/app:2", ref_name: "2"});
    layout.index(&[entry, second]);
    let archive = open(layout.path()).unwrap();
    layout.check(&archive);
    assert_eq!(names(&archive.images()[0]), ["docker.io/lab/app:1", "docker.io/lab/app:2"]);
    let list = json!([{"Config": format!("blobs/sha256/{config}"), "RepoTags": ["lab/app:1", "lab/app:2"], "Layers": []}]);
    fs::write(layout.path().join("manifest.json"), list.to_string()).unwrap();
    let archive = open(layout.path()).unwrap();
    assert_eq!(names(&archive.images()[0]), ["lab/app:1", "lab/app:2"]);
}

#[test]
fn manifest_json_decides_where_index_json_is_wrong() {
    let layout = Layout::new();
    let mut entry = layout.image("amd64");
    entry["annotations"] = json!({"io.containerd.image.name": "docker.io/lab/app:1"});
    let digest = |value: &Value| value["digest"].as_str().unwrap()[7..].to_owned();
    let blob = |hex: &str| fs::read(layout.path().join("blobs/sha256").join(hex)).unwrap();
    let mut manifest: Value = serde_json::from_slice(&blob(&digest(&entry))).unwrap();
    let config = digest(&manifest["config"]);
    let layers: Vec<_> = layout
        .tars
        .iter()
        .map(|tar| {
            layout.blob(tar);
            format!("blobs/sha256/{}", Digest::of(tar).hex())
        })
        .collect();
    let listed =
        json!([{"Config": format!("blobs/sha256/{config}"), "RepoTags": ["lab/app:1"], "Layers": layers}]);
    fs::write(layout.path().join("manifest.json"), listed.to_string()).unwrap();
    // docker 25.0 wrote manifests without layers.
    manifest["layers"] = json!([]);
    let empty = manifest.to_string().into_bytes();
    layout.blob(&empty);
    let mut without_layers = descriptor(media::OCI_MANIFEST, &empty);
    without_layers["annotations"] = entry["annotations"].clone();
    let mut missing = descriptor(media::OCI_MANIFEST, b"not in the archive");
    missing["annotations"] = entry["annotations"].clone();
    let index = |manifests: Value| json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    for text in [
        "null".to_owned(),
        index(Value::Null),
        index(json!([])),
        index(json!([without_layers])),
        index(json!([missing])),
    ] {
        fs::write(layout.path().join("index.json"), &text).unwrap();
        for path in [layout.path().to_owned(), {
            let path = layout.path().join("save.tar");
            let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
            for name in ["oci-layout", "index.json", "manifest.json"] {
                builder.append_path_with_name(layout.path().join(name), name).unwrap();
            }
            builder.append_dir_all("blobs", layout.path().join("blobs")).unwrap();
            builder.finish().unwrap();
            path
        }] {
            let mut archive = open(&path).unwrap_or_else(|error| panic!("{text}: {error:?}"));
            layout.check(&archive);
            assert_eq!(loadable(&mut archive), (vec!["lab/app:1".to_owned()], vec![]), "{text}");
        }
    }
    // A complete manifest keeps its digest.
    layout.index(&[entry.clone()]);
    let archive = open(layout.path()).unwrap();
    assert_eq!(json!(archive.images()[0].manifest_digest.to_string()), entry["digest"]);
    // An image that only index.json has is not lost.
    let other = Layout { dir: tempfile::tempdir().unwrap(), tars: vec![layer_tar("c", b"other")] };
    fs::create_dir_all(other.path().join("blobs/sha256")).unwrap();
    let mut second = other.image("amd64");
    second["annotations"] = json!({"io.containerd.image.name": "docker.io/lab/second:1"});
    for file in fs::read_dir(other.path().join("blobs/sha256")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), layout.path().join("blobs/sha256").join(file.file_name())).unwrap();
    }
    layout.index(&[second]);
    let mut archive = open(layout.path()).unwrap();
    assert_eq!(loadable(&mut archive).0, ["lab/app:1", "docker.io/lab/second:1"]);
}

#[test]
fn archives_of_docker_before_version_1_10_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("save.tar");
    let (lower, upper) = (layer_tar("a", b"lower"), layer_tar("b", b"upper"));
    let json = |id: &str, parent: Option<&str>| {
        let mut json = json!({"id": id, "created": "2014-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["A=b"]}, "Size": 5});
        if let Some(parent) = parent {
            json["parent"] = parent.into();
        }
        json.to_string().into_bytes()
    };
    let repositories = json!({"lab/app": {"1": "22", "latest": "22"}, "lab/base": {"1": "11"}}).to_string();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("22/VERSION", b"1.0".to_vec()),
        ("22/json", json("22", Some("11"))),
        ("22/layer.tar", upper.clone()),
        ("11/json", json("11", None)),
        ("11/layer.tar", lower.clone()),
        ("33/json", json("33", Some("11"))),
        ("33/layer.tar", vec![0; 1024]),
        ("44/json", json("44", Some("nowhere"))),
        ("44/layer.tar", upper.clone()),
        ("55/json", json("55", Some("55"))),
        ("55/layer.tar", upper.clone()),
        ("repositories", repositories.into_bytes()),
    ];
    let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    tar_of(&path, &files);
    let mut archive = open(&path).unwrap();
    let of_name = |name: &str| {
        archive.images().iter().find(|image| names(image).contains(&name.to_owned())).unwrap().clone()
    };
    let app = of_name("lab/app:1");
    assert_eq!(names(&app), ["lab/app:1", "lab/app:latest"]);
    let config = read(&archive, &app.manifest.config().digest);
    let image = Image::new(app.manifest_digest, app.manifest.clone(), &config).unwrap();
    let diff_ids: Vec<_> = [&lower, &upper].map(|tar| DiffId::new(Digest::of(tar))).into();
    assert_eq!(image.config().diff_ids, diff_ids);
    assert_eq!(
        (image.config().cmd.clone(), image.config().env.clone()),
        (vec!["sh".into()], vec!["A=b".into()])
    );
    assert!(image.config().raw.get("parent").is_none() && image.config().is_for(&platform()));
    for (layer, tar) in app.manifest.layers().iter().zip([&lower, &upper]) {
        assert!(read(&archive, &layer.digest) == *tar);
    }
    assert_eq!(of_name("lab/base:1").manifest.layers().len(), 1);
    // An image that `repositories` does not name is not lost.
    assert_eq!(archive.images().len(), 3);
    let (_, refused) = loadable(&mut archive);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].0 == "44" && refused[0].1.contains("nowhere/json is missing"), "{refused:?}");
    assert_eq!(open(&path).unwrap().images()[0].manifest_bytes, archive.images()[0].manifest_bytes);
}
