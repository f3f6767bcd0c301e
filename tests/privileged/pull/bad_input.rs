//! Invalid answers of a registry give one clear error that names the object, and leave existing images unaffected.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use support::fixture::MountedFixture;
use support::images::{Images, sha256};

#[test]
fn pull_error_names_an_unknown_tag_repository_or_digest() {
    let fixture = MountedFixture::new();
    let absent = format!("sha256:{}", sha256(b"never pushed"));
    fixture.pull_fails(&[&fixture.reference("lab/good:2")], &["lab/good:2"]);
    fixture.pull_fails(&[&fixture.reference("lab/none:1")], &["lab/none:1"]);
    fixture.pull_fails(&[&fixture.reference(&format!("lab/good@{absent}"))], &[&absent]);
    fixture.pull_fails(&["127.0.0.1:1/lab/good:1"], &["127.0.0.1:1"]);
    for invalid in ["", "lab/UPPER:1", "lab/good:", "lab/good@sha256:12", "a b"] {
        let error = fixture.program.fails(&["pull", invalid]);
        assert!(error.contains(invalid), "{error}");
    }
    fixture.assert_unaffected();
}

#[test]
fn missing_platform_error_lists_the_available_platforms() {
    let fixture = MountedFixture::new();
    let images = Images::make(&["multi"]);
    fixture.registry.push(&images.layout().image("multi"), "multi:1", &["--all"]);
    fixture.pull_fails(
        &["--platform", "linux/s390x", &fixture.reference("multi:1")],
        &["linux/s390x", "arm64", "amd64"],
    );
}

/// Damages a pushed layer in the storage of the registry and asserts that its pull is refused.
#[track_caller]
fn assert_damaged_layer_is_refused(damage: impl Fn(&Path)) {
    let fixture = MountedFixture::new();
    let images = Images::make(&["python"]);
    fixture.registry.push_from(&images.layout(), "python", "lab/bad:1");
    let layer = images.layout().layers("python").pop().unwrap();
    damage(&fixture.registry.blob(&layer));
    fixture.pull_fails(&[&fixture.reference("lab/bad:1")], &["lab/bad:1", &layer]);
}

#[test]
fn truncated_layer_in_the_registry_is_refused_and_named() {
    assert_damaged_layer_is_refused(|blob| {
        let file = File::options().write(true).open(blob).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
}

#[test]
fn changed_layer_in_the_registry_is_refused_and_named() {
    assert_damaged_layer_is_refused(|blob| {
        let file = File::options().read(true).write(true).open(blob).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    });
}

#[test]
fn lengthened_layer_in_the_registry_is_refused_and_named() {
    assert_damaged_layer_is_refused(|blob| {
        let file = File::options().write(true).open(blob).unwrap();
        file.write_all_at(&[0; 4096], file.metadata().unwrap().len()).unwrap();
    });
}

#[test]
fn layer_missing_from_the_registry_is_an_error_that_names_it() {
    assert_damaged_layer_is_refused(|blob| fs::remove_file(blob).unwrap());
}

#[test]
fn changed_manifest_in_the_registry_is_refused() {
    let fixture = MountedFixture::new();
    let digest = fixture.registry.push_from(&fixture.images.layout(), "small-arm64", "lab/bad:1");
    let blob = fixture.registry.blob(&digest);
    let mut text = fs::read_to_string(&blob).unwrap();
    text.push(' ');
    fs::write(&blob, text).unwrap();
    fixture.pull_fails(&[&fixture.reference(&format!("lab/bad@{digest}"))], &["lab/bad", &digest]);
}

#[test]
fn wrong_diff_id_is_refused_with_both_values() {
    let fixture = MountedFixture::new();
    let copy = fixture.copy();
    let wrong = format!("sha256:{}", sha256(b"not this layer"));
    copy.change_config(|config| {
        config["rootfs"]["diff_ids"][0] = wrong.clone().into();
    });
    fixture.registry.push(&copy.image(), "lab/bad:1", &[]);
    let layer = copy.layout().layers("small").remove(0);
    fixture.pull_fails(&[&fixture.reference("lab/bad:1")], &["lab/bad:1", &layer, &wrong]);
}

#[test]
fn number_of_diff_ids_that_differs_from_the_number_of_layers_is_refused() {
    let fixture = MountedFixture::new();
    let copy = fixture.copy();
    copy.change_config(|config| {
        config["rootfs"]["diff_ids"]
            .as_array_mut()
            .unwrap()
            .push(format!("sha256:{}", sha256(b"one more")).into());
    });
    fixture.registry.push(&copy.image(), "lab/bad:1", &[]);
    fixture.pull_fails(&[&fixture.reference("lab/bad:1")], &["lab/bad:1"]);
}

/// Asserts that a layer blob with a correct digest but invalid content is refused.
#[track_caller]
fn assert_layer_is_refused(bytes: &[u8], words: &[&str]) {
    let fixture = MountedFixture::new();
    let copy = fixture.copy();
    copy.change_layer(0, bytes);
    fixture.registry.push(&copy.image(), "lab/bad:1", &[]);
    let digest = format!("sha256:{}", sha256(bytes));
    fixture.pull_fails(&[&fixture.reference("lab/bad:1")], &[&["lab/bad:1", &digest], words].concat());
}

#[test]
fn layer_that_is_not_gzip_is_refused() {
    assert_layer_is_refused(b"<html>this is not a layer</html>", &[]);
}

#[test]
fn layer_that_ends_inside_its_gzip_stream_is_refused() {
    let layout = Images::make(&["small"]).layout();
    let bytes = fs::read(layout.blob(&layout.layers("small")[0])).unwrap();
    assert_layer_is_refused(&bytes[..bytes.len() - 100_000], &["gzip"]);
}

#[test]
fn layer_with_garbage_after_its_gzip_stream_is_refused() {
    let layout = Images::make(&["small"]).layout();
    let mut bytes = fs::read(layout.blob(&layout.layers("small")[0])).unwrap();
    bytes.extend(b"garbage");
    assert_layer_is_refused(&bytes, &["gzip"]);
}

#[test]
fn layer_larger_than_the_configured_limit_is_refused() {
    let fixture = MountedFixture::new();
    let copy = fixture.copy();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    io::copy(&mut io::repeat(0).take(300 << 20), &mut gzip).unwrap();
    let bytes = gzip.finish().unwrap();
    copy.change_layer(0, &bytes);
    fixture.registry.push(&copy.image(), "lab/bad:1", &[]);
    fs::write(fixture.program.dir().join("config.toml"), "[limits]\nlayer-size-mib = 256\n").unwrap();
    let digest = format!("sha256:{}", sha256(&bytes));
    let words = ["lab/bad:1", &digest, "268435456 bytes", "`layer-size-mib` in `[limits]`"];
    fixture.pull_fails(&[&fixture.reference("lab/bad:1")], &words);
}

#[test]
fn empty_layer_blob_is_refused() {
    assert_layer_is_refused(b"", &[]);
}
