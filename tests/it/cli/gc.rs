//! `gc`.

use std::fs;

use serde_json::json;

use super::{Fixture, keys};

#[test]
fn gc_frees_only_files_that_no_image_refers_to() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let layers = [fixture.layer(&digest, 0), fixture.layer(&digest, 1)];
    let size: u64 = {
        let blobs = fs::read_dir(fixture.program.store().join("blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
    };
    // Shares its first layer with the other image.
    let kept = fixture.load("lab/b:1", super::LAYERS.split("---").next().unwrap());
    assert_eq!(fixture.layer(&kept, 0), layers[0]);
    let nothing = fixture.program.json(&["gc"]);
    let all = [
        "blobs",
        "bytes",
        "derived",
        "dry_run",
        "images",
        "kept_bytes",
        "kept_partials",
        "layers",
        "missing",
        "partials",
        "plain",
        "plain_bytes",
        "roots",
        "temporary",
    ];
    assert_eq!(keys(&nothing), all);
    assert_eq!((&nothing["blobs"], &nothing["bytes"]), (&json!(0), &json!(0)));

    fixture.program.ok(&["rm", "lab/a:1"]);
    let mut preview = fixture.program.json(&["gc", "--dry-run"]);
    assert_eq!(preview["dry_run"], true);
    assert!(fixture.blob(&digest).exists());
    let result = fixture.program.json(&["gc"]);
    preview["dry_run"] = json!(false);
    assert_eq!(result, preview);
    // Manifest, configuration and one layer with its index. Root's images have tree images, too.
    let trees = usize::from(rustix::process::geteuid().is_root());
    assert_eq!(
        (&result["blobs"], &result["derived"], &result["missing"]),
        (&json!(3), &json!(1 + trees), &json!([]))
    );
    assert!((1..size * 10).contains(&result["bytes"].as_u64().unwrap()), "{result}");
    assert!(!fixture.blob(&digest).exists() && !fixture.blob(&layers[1]).exists());
    assert!(fixture.program.ok(&["verify", "--deep"]).ends_with(": 0 problems"));
    assert_eq!(
        fixture.program.ok(&["gc"]),
        "freed 0 B: 0 blobs, 0 derived files, 0 interrupted downloads, 0 temporary files, 0 dead roots, \
         0 unpacked layers, 0 plain layers (0 B)"
    );
}

#[test]
fn missing_manifest_is_reported() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    fs::remove_file(fixture.blob(&digest)).unwrap();
    let output = fixture.program.run(&["gc", "--dry-run", "--json"]);
    let (out, err) = super::texts(&output);
    assert!(output.status.success(), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["missing"], json!([digest]));
    assert!(err.contains(&format!("manifest {digest} is not in the store")), "{err}");
}

#[test]
fn gc_names_interrupted_downloads_that_it_keeps_and_removes_them_with_partial() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let partial = fixture.program.store().join("rcx-imagefs/partial");
    fs::create_dir_all(&partial).unwrap();
    let file = partial.join("ab".repeat(32));
    fs::write(&file, [0; 3000]).unwrap();
    let kept = fixture.program.json(&["gc"]);
    assert_eq!(
        (&kept["partials"], &kept["kept_partials"], &kept["kept_bytes"]),
        (&json!(0), &json!(1), &json!(3000))
    );
    let printed = fixture.program.ok(&["gc"]);
    assert!(
        printed.contains("kept 1 interrupted downloads") && printed.contains("gc --partial"),
        "{printed}"
    );
    assert!(file.exists());
    let preview = fixture.program.json(&["gc", "--partial", "--dry-run"]);
    assert_eq!((&preview["partials"], &preview["bytes"]), (&json!(1), &json!(3000)));
    assert!(file.exists());
    assert_eq!(fixture.program.json(&["gc", "--partial"])["partials"], json!(1));
    assert!(!file.exists());
}

#[test]
fn untagged_removes_images_whose_tag_has_moved_and_keeps_those_that_the_configuration_names() {
    let (fixture, first) = Fixture::with("lab/a:1");
    let second = fixture.load("lab/a:1", "f other x");
    let third = fixture.load("lab/b:1", "f third x");
    fixture.program.ok(&["rm", "--keep", "lab/b:1"]);
    let config = format!("[isolate.images]\n7 = 'lab/b@{third}'\n");
    fs::write(fixture.program.dir().join("config.toml"), config).unwrap();

    assert_eq!(fixture.program.json(&["gc"])["images"], json!([]));
    let preview = fixture.program.json(&["gc", "--untagged", "--dry-run"]);
    assert_eq!(preview["images"], json!([format!("lab/a@{first}")]));
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 3, "a dry run removes nothing");
    let text = fixture.program.ok(&["gc", "--untagged", "--dry-run"]);
    assert!(text.starts_with(&format!("would remove lab/a@{first}\nwould free ")), "{text}");
    let mut result = fixture.program.json(&["gc", "--untagged"]);
    result["dry_run"] = json!(true);
    assert_eq!(result, preview);
    assert!(!fixture.blob(&first).exists());
    let left = fixture.program.json(&["images"]);
    let left: Vec<_> = left.as_array().unwrap().iter().map(|image| image["digest"].clone()).collect();
    assert_eq!(left, [json!(second), json!(third)]);
    assert!(fixture.program.ok(&["verify"]).ends_with(": 0 problems"));
}
