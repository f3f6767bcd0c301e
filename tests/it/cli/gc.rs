//! `gc`.

use std::fs;

use serde_json::json;

use super::{Scene, keys};

#[test]
fn gc_frees_only_files_that_no_image_refers_to() {
    let (scene, digest) = Scene::with("lab/a:1");
    let layers = [scene.layer(&digest, 0), scene.layer(&digest, 1)];
    let size: u64 = {
        let blobs = fs::read_dir(scene.program.store().join("blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
    };
    // Shares its first layer with the other image.
    let kept = scene.load("lab/b:1", super::LAYERS.split("---").next().unwrap());
    assert_eq!(scene.layer(&kept, 0), layers[0]);
    let nothing = scene.program.json(&["gc"]);
    let all = ["blobs", "bytes", "derived", "dry_run", "layers", "missing", "partials", "roots", "temporary"];
    assert_eq!(keys(&nothing), all);
    assert_eq!((&nothing["blobs"], &nothing["bytes"]), (&json!(0), &json!(0)));

    scene.program.ok(&["rm", "lab/a:1"]);
    let mut would = scene.program.json(&["gc", "--dry-run"]);
    assert_eq!(would["dry_run"], true);
    assert!(scene.blob(&digest).exists());
    let did = scene.program.json(&["gc"]);
    would["dry_run"] = json!(false);
    assert_eq!(did, would);
    // Manifest, configuration and one layer with its index.
    assert_eq!((&did["blobs"], &did["derived"], &did["missing"]), (&json!(3), &json!(1), &json!([])));
    assert!((1..size * 10).contains(&did["bytes"].as_u64().unwrap()), "{did}");
    assert!(!scene.blob(&digest).exists() && !scene.blob(&layers[1]).exists());
    assert!(scene.program.ok(&["verify", "--deep"]).ends_with(": 0 problems"));
    assert_eq!(
        scene.program.ok(&["gc"]),
        "freed 0 B: 0 blobs, 0 derived files, 0 interrupted downloads, 0 temporary files, 0 dead roots, \
         0 unpacked layers"
    );
}

#[test]
fn missing_manifest_is_reported() {
    let (scene, digest) = Scene::with("lab/a:1");
    fs::remove_file(scene.blob(&digest)).unwrap();
    let output = scene.program.run(&["gc", "--dry-run", "--json"]);
    let (out, err) = super::texts(&output);
    assert!(output.status.success(), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["missing"], json!([digest]));
    assert!(err.contains(&format!("manifest {digest} is not in the store")), "{err}");
}
