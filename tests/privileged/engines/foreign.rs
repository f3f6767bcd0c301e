//! Images with wrong diff IDs, written into the store by another tool.

use std::fs;
use std::path::Path;

use rcx_imagefs::image::{Descriptor, Digest, Name, media};
use rcx_imagefs::pipeline::read_image;
use rcx_imagefs::store::Store;
use serde_json::Value;
use support::program::Program;
use support::text::pull_archives;

/// Makes a tar of one file whose content is its name.
fn tar_of(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, name.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// Tags a copy of an image with changed diff IDs, as another tool may write it into the store.
fn foreign_copy(program: &Program, image: &str, change: impl FnOnce(&mut Vec<Value>)) -> String {
    let store = Store::open(program.store()).unwrap();
    let read = |digest: &str| -> Value {
        serde_json::from_slice(&fs::read(store.blob_path(&digest.parse().unwrap())).unwrap()).unwrap()
    };
    let put = |media_type: &str, document: &Value| {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        store.put_small(&digest, &bytes).unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    };
    let _lease = store.lease(None).unwrap();
    let mut manifest = read(image.rsplit_once('@').unwrap().1);
    let mut config = read(manifest["config"]["digest"].as_str().unwrap());
    change(config["rootfs"]["diff_ids"].as_array_mut().unwrap());
    let config = put(media::OCI_CONFIG, &config);
    manifest["config"] = serde_json::to_value(&config).unwrap();
    let manifest = put(media::OCI_MANIFEST, &manifest);
    store
        .tag(&Name::from_archive("lab/foreign").unwrap(), Some(&"1".parse().unwrap()), &manifest, None)
        .unwrap();
    format!("lab/foreign@{}", manifest.digest)
}

/// Pulls an image of two layers with the files `low` and `top`.
fn pull_two_layers(program: &Program) -> String {
    pull_archives(program, &[tar_of("low"), tar_of("top")])
}

#[track_caller]
fn assert_no_root(program: &Program, image: &str, words: &[&str]) {
    for engine in ["overlay2", "unpack"] {
        let error =
            program.fails(&["root", "create", image, "--engine", engine, "--upper", "none", "--id", "none"]);
        assert!(words.iter().all(|word| error.contains(word)), "{engine}: {error}");
        assert!(!error.contains("panicked"), "{engine}: {error}");
    }
}

#[track_caller]
fn assert_no_layer_directory(program: &Program) {
    let directories = fs::read_dir(program.store().join("rcx-imagefs/layers"));
    assert_eq!(directories.into_iter().flatten().count(), 0);
}

#[test]
fn more_diff_ids_than_layers_are_refused_without_a_panic() {
    let program = Program::new();
    let foreign = foreign_copy(&program, &pull_two_layers(&program), |ids| {
        ids.push(Digest::of(b"more").to_string().into())
    });
    assert_no_root(&program, &foreign, &["3 diff IDs", "2 layers"]);
    assert_no_layer_directory(&program);
}

#[test]
fn fewer_diff_ids_than_layers_are_refused_without_losing_a_layer() {
    let program = Program::new();
    let foreign = foreign_copy(&program, &pull_two_layers(&program), |ids| {
        ids.pop();
    });
    assert_no_root(&program, &foreign, &["1 diff IDs", "2 layers"]);
    assert_no_layer_directory(&program);
}

#[test]
fn image_with_stolen_diff_ids_never_shares_layer_directories_with_their_owner() {
    let program = Program::new();
    let image = pull_two_layers(&program);
    let other = pull_archives(&program, &[tar_of("other")]);
    let store = Store::open(program.store()).unwrap();
    let diff_ids = |image: &str| -> Vec<Value> {
        let digest = image.rsplit_once('@').unwrap().1.parse().unwrap();
        let image = read_image(&store, &digest).unwrap();
        image.layers().iter().map(|layer| layer.diff_id().to_string().into()).collect()
    };
    let stolen = diff_ids(&image).remove(0);
    let foreign = foreign_copy(&program, &other, |ids| ids[0] = stolen.clone());
    let words = [stolen.as_str().unwrap(), diff_ids(&other)[0].as_str().unwrap()].map(str::to_owned);
    let words = words.each_ref().map(String::as_str);
    // Before the layer directory exists, the foreign image must not create it; afterwards it must not show its content.
    assert_no_root(&program, &foreign, &words);
    let create = ["root", "create", &image, "--engine", "overlay2", "--upper", "none", "--id", "owner"];
    let root = program.ok(&create);
    let root = Path::new(&root);
    assert_eq!(fs::read_to_string(root.join("low")).unwrap(), "low");
    assert!(root.join("top").exists() && !root.join("other").exists());
    assert_no_root(&program, &foreign, &words);
    program.ok(&["root", "remove", "owner"]);
}
