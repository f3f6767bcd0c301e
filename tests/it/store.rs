//! The store as other tools see it, and theirs as the store sees it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, ManifestDigest, Name, media};
use rcx_imagefs::store::Store;

/// Runs a program that must succeed, and returns what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Puts an image of one layer with one file and tags it; returns its manifest and layer.
fn put_image(store: &Store, name: &Name, tag: &str) -> (Descriptor, LayerDigest) {
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        store.put_small(&digest, bytes).unwrap();
        (digest, bytes.len())
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    let (layer, layer_len) = put(&tar.into_inner().unwrap());
    let (config, config_len) = put(format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    )
    .as_bytes());
    let (manifest, manifest_len) = put(format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{config}","size":{config_len}}},
            "layers":[{{"mediaType":"{}","digest":"{layer}","size":{layer_len}}}]}}"#,
        media::OCI_MANIFEST,
        media::OCI_CONFIG,
        media::OCI_LAYER,
    )
    .as_bytes());
    let manifest = Descriptor::new(media::OCI_MANIFEST, manifest, manifest_len as u64);
    store.put_index(&LayerDigest::new(layer), b"index").unwrap();
    store.tag(name, Some(&tag.parse().unwrap()), &manifest, None).unwrap();
    (manifest, LayerDigest::new(layer))
}

#[test]
fn skopeo_and_umoci_read_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open_or_create(&path).unwrap();
    let name: Name = "registry.test:5000/lab/hello".parse().unwrap();
    let (manifest, _) = put_image(&store, &name, "1.0");
    store.tag(&name, Some(&"latest".parse().unwrap()), &manifest, None).unwrap();

    let image = format!("oci:{}:registry.test:5000/lab/hello:1.0", text(&path));
    let inspected = run("skopeo", &["inspect", "--format", "{{.Digest}}", &image]);
    assert_eq!(inspected.trim(), manifest.digest.to_string());
    let mut listed: Vec<_> =
        run("umoci", &["ls", "--layout", text(&path)]).lines().map(str::to_owned).collect();
    listed.sort_unstable();
    assert_eq!(listed, ["registry.test:5000/lab/hello:1.0", "registry.test:5000/lab/hello:latest"]);
    // Copying checks every blob.
    let out = dir.path().join("out");
    run("skopeo", &["--insecure-policy", "copy", "-q", &image, &format!("dir:{}", text(&out))]);
    let bundle = dir.path().join("bundle");
    let image = format!("{}:registry.test:5000/lab/hello:latest", text(&path));
    run("umoci", &["unpack", "--rootless", "--image", &image, text(&bundle)]);
    assert_eq!(std::fs::read(bundle.join("rootfs/hello")).unwrap(), b"hello");
}

#[test]
fn changes_by_other_tools_are_seen_and_keep_our_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open_or_create(&path).unwrap();
    let name: Name = "registry.test:5000/lab/hello".parse().unwrap();
    let (manifest, layer) = put_image(&store, &name, "1.0");
    let digest = ManifestDigest::from(&manifest);
    let slot = store.layer_slot(&layer).unwrap();

    let source = format!("oci:{}:registry.test:5000/lab/hello:1.0", text(&path));
    let target = format!("oci:{}:registry.test:5000/lab/copy:2", text(&path));
    run("skopeo", &["--insecure-policy", "copy", "-q", &source, &target]);
    let copy: Name = "registry.test:5000/lab/copy".parse().unwrap();
    let refs = store.refs().unwrap();
    assert_eq!(refs.tagged(&copy, &"2".parse().unwrap()).unwrap().digest, digest);
    assert_eq!(refs.tagged(&name, &"1.0".parse().unwrap()).unwrap().digest, digest);

    let tagged = format!("{}:registry.test:5000/lab/hello:1.0", text(&path));
    run("umoci", &["tag", "--image", &tagged, "other"]);
    let other: Name = "docker.io/library/other".parse().unwrap();
    assert_eq!(store.refs().unwrap().tagged(&other, &"latest".parse().unwrap()).unwrap().digest, digest);

    run("umoci", &["gc", "--layout", text(&path)]);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.layer_slot(&layer).unwrap(), slot);
    assert!(store.index_file(&layer).unwrap().is_some());
    assert!(store.has_blob(&layer.digest(), None).unwrap());
    assert_eq!(store.gc(true).unwrap().blobs, 0);
}

#[test]
fn layout_made_by_umoci_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    run("umoci", &["init", "--layout", text(&path)]);
    run("umoci", &["new", "--image", &format!("{}:latest", text(&path))]);
    let store = Store::open(&path).unwrap();
    let images = store.refs().unwrap().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].name.as_str(), "docker.io/library/latest");
    assert!(!path.join("rcx-imagefs").exists());
    let (manifest, _) = put_image(&store, &images[0].name, "latest");
    let refs = Store::open_or_create(&path).unwrap().refs().unwrap();
    assert_eq!(refs.images.len(), 2);
    assert!(
        refs.images.iter().any(|image| image.digest.digest() == manifest.digest && !image.tags.is_empty())
    );
    assert_eq!(run("umoci", &["ls", "--layout", text(&path)]).trim(), "docker.io/library/latest:latest");
}

/// Set in the processes that `killed_writers_leave_a_usable_store` starts from its own binary.
const WRITER: &str = "RCX_IMAGEFS_TEST_WRITER";

/// Adds images until it is killed. Prints a line during downloads and between all other steps.
fn write_until_killed(path: &Path) -> ! {
    let report = || println!("step");
    let store = Store::open_or_create(path).unwrap();
    let name: Name = "registry.test:5000/lab/hello".parse().unwrap();
    for round in 0.. {
        let _lease = store.lease(None).unwrap();
        let bytes = format!("layer {round} ").repeat(1000);
        let layer = Digest::of(bytes.as_bytes());
        let lock = store.lock_blob(&layer, None).unwrap();
        report();
        if !store.has_blob(&layer, Some(bytes.len() as u64)).unwrap() {
            let mut partial = store.partial(&lock).unwrap();
            // Only the length of a partial download is used here; its bytes are checked below.
            let rest = &bytes.as_bytes()[usize::try_from(partial.len()).unwrap()..];
            for part in rest.chunks(3000) {
                partial.write_all(part).unwrap();
                report();
            }
            let whole = std::io::read_to_string(partial.reader().unwrap()).unwrap();
            partial.commit(Digest::of(whole.as_bytes()), whole.len() as u64).unwrap();
            report();
        }
        drop(lock);
        store.put_index(&LayerDigest::new(layer), bytes.as_bytes()).unwrap();
        report();
        store.layer_slot(&LayerDigest::new(layer)).unwrap();
        report();
        put_image(&store, &name, &format!("{}", round % 5));
        report();
    }
    unreachable!("the loop is infinite");
}

fn start_writer(path: &Path) -> (Child, impl Iterator<Item = ()>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::killed_writers_leave_a_usable_store", "--nocapture"])
        .env(WRITER, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.filter(|line| line.as_ref().unwrap() == "step").map(drop))
}

#[test]
fn killed_writers_leave_a_usable_store() {
    if let Some(path) = std::env::var_os(WRITER) {
        write_until_killed(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for steps in 1..=24 {
        // Two writers do the same work at once. Both are killed after this many steps of the first.
        let (mut first, mut reports) = start_writer(&path);
        let (mut second, _reports) = start_writer(&path);
        assert_eq!(reports.by_ref().take(steps).count(), steps);
        first.kill().unwrap();
        second.kill().unwrap();
        for mut writer in [first, second] {
            let status = writer.wait().unwrap();
            assert_eq!(status.signal(), Some(9), "a writer ended by itself: {status}");
        }

        let store = Store::open_or_create(&path).unwrap();
        assert_eq!(std::fs::read_dir(path.join("rcx-imagefs/tmp")).unwrap().count(), 0);
        for blob in std::fs::read_dir(path.join("blobs/sha256")).unwrap() {
            let hex = blob.unwrap().file_name().into_string().unwrap();
            store.verify_blob(&format!("sha256:{hex}").parse().unwrap(), |_| ()).unwrap();
        }
        for image in store.refs().unwrap().images {
            assert!(store.has_blob(&image.digest.digest(), Some(image.size)).unwrap());
        }
        let slot = store.layer_slot(&LayerDigest::new(Digest::of(&steps.to_le_bytes()))).unwrap();
        assert_eq!(Store::open(&path).unwrap().layer_of(slot).unwrap(), store.layer_of(slot).unwrap());
        // The killed processes hold no lock.
        store.gc(false).unwrap();
    }
    let text = std::fs::read_to_string(path.join("rcx-imagefs/slots")).unwrap();
    assert!(text.lines().count() > 24 + 1, "the writers were killed before they added anything");
}
