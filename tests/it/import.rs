//! Reads archives of skopeo and docker, and hostile ones.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcx_imagefs::image::{DiffId, Digest, Image, Platform, Reference, media};
use rcx_imagefs::import::{Archive, ImportError, ImportImage};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A handwritten OCI layout with one image of two gzip layers.
struct Layout {
    dir: TempDir,
    tars: Vec<Vec<u8>>,
}

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn open(path: &Path) -> Result<Archive, ImportError> {
    Archive::open(path, &platform())
}

fn refused(path: &Path) -> ImportError {
    open(path).map(|archive| format!("{:?}", archive.images())).unwrap_err()
}

fn layer_tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len()).unwrap());
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let tars = vec![layer_tar("a", b"lower"), layer_tar("b", &[7; 100_000])];
        Self { dir, tars }
    }

    /// A layout with the image under this tag.
    fn with(tag: &str) -> Self {
        let layout = Self::new();
        let mut entry = layout.image("amd64");
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        layout.index(&[entry]);
        layout
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path().join("blobs/sha256").join(Digest::of(bytes).hex());
        fs::write(&path, bytes).unwrap();
        path
    }

    fn index(&self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// Writes the image for an architecture. Returns its entry for `index.json`.
    fn image(&self, architecture: &str) -> Value {
        let diff_ids: Vec<_> = self.tars.iter().map(|tar| Digest::of(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["A=b"]},
        });
        let config = config.to_string().into_bytes();
        self.blob(&config);
        let mut layers = Vec::new();
        for tar in &self.tars {
            let layer = gzip(tar);
            self.blob(&layer);
            layers.push(descriptor(media::OCI_LAYER_GZIP, &layer));
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": descriptor(media::OCI_CONFIG, &config), "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        self.blob(&manifest);
        let mut entry = descriptor(media::OCI_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    }

    /// The directory as a tar.
    fn tar(&self) -> PathBuf {
        let path = self.path().join("layout.tar");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        for name in ["oci-layout", "index.json"] {
            builder.append_path_with_name(self.path().join(name), name).unwrap();
        }
        builder.append_dir_all("blobs", self.path().join("blobs")).unwrap();
        builder.finish().unwrap();
        path
    }

    /// Converts the layout to another format with skopeo.
    fn skopeo(&self, tag: &str, to: &str, rest: &str) -> PathBuf {
        let path = self.path().join(to);
        let source = format!("oci:{}:{tag}", self.path().display());
        let target = format!("{to}:{}{rest}", path.display());
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", &source, &target])
            .output()
            .expect("skopeo (a Debian package) is needed for this test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }

    /// Checks that an archive holds the image of this layout: configuration and layers.
    fn check(&self, archive: &Archive) {
        let [image] = archive.images() else { panic!("{:?}", archive.images()) };
        self.check_image(archive, image);
    }

    fn check_image(&self, archive: &Archive, image: &ImportImage) {
        assert_eq!(image.manifest_digest.digest(), Digest::of(&image.manifest_bytes));
        let config = read(archive, &image.manifest.config().digest);
        assert_eq!(Digest::of(&config), image.manifest.config().digest);
        let config = Image::new(image.manifest_digest, image.manifest.clone(), &config);
        let diff_ids: Vec<_> = self.tars.iter().map(|tar| DiffId::new(Digest::of(tar))).collect();
        assert_eq!(config.unwrap().config().diff_ids, diff_ids);
        for (layer, tar) in image.manifest.layers().iter().zip(&self.tars) {
            let bytes = read(archive, &layer.digest);
            assert_eq!(
                (Digest::of(&bytes), bytes.len()),
                (layer.digest, usize::try_from(layer.size).unwrap())
            );
            let mut unpacked = Vec::new();
            match layer.media_type.ends_with("gzip") {
                true => drop(flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut unpacked).unwrap()),
                false => unpacked = bytes,
            }
            assert!(unpacked == *tar);
        }
    }
}

fn read(archive: &Archive, digest: &Digest) -> Vec<u8> {
    let mut reader = archive.open_blob(digest).unwrap();
    let mut bytes = Vec::new();
    let size = reader.size();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(u64::try_from(bytes.len()).unwrap(), size);
    bytes
}

fn names(image: &ImportImage) -> Vec<String> {
    image.names.iter().map(Reference::to_string).collect()
}

fn tags(image: &ImportImage) -> Vec<&str> {
    image.tags.iter().map(|tag| tag.as_str()).collect()
}

#[test]
fn layout_is_read_as_directory_and_as_tar() {
    let layout = Layout::with("1.0");
    for path in [layout.path().to_owned(), layout.tar()] {
        let archive = open(&path).unwrap();
        layout.check(&archive);
        assert_eq!((tags(&archive.images()[0]), names(&archive.images()[0])), (vec!["1.0"], vec![]));
    }
}

#[test]
fn archives_of_skopeo_are_read() {
    let layout = Layout::with("1.0");
    let oci = open(&layout.skopeo("1.0", "oci-archive", ":lab/app:1.0")).unwrap();
    layout.check(&oci);
    assert_eq!(names(&oci.images()[0]), ["lab/app:1.0"]);
    let path = layout.skopeo("1.0", "docker-archive", ":lab/app:1.0");
    let docker = open(&path).unwrap();
    layout.check(&docker);
    // skopeo writes the full name.
    assert_eq!(names(&docker.images()[0]), ["docker.io/lab/app:1.0"]);
    assert_eq!(docker.images()[0].manifest.layers()[0].media_type, media::OCI_LAYER);
    let again = open(&path).unwrap();
    assert_eq!(again.images()[0].manifest_bytes, docker.images()[0].manifest_bytes);
}

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
fn platform_is_chosen_in_nested_and_in_flat_layouts() {
    let layout = Layout::new();
    let (arm64, amd64) = (layout.image("arm64"), layout.image("amd64"));
    let inner = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [arm64, amd64]});
    let inner = inner.to_string().into_bytes();
    layout.blob(&inner);
    layout.index(&[descriptor(media::OCI_INDEX, &inner)]);
    let nested = open(layout.path()).unwrap();
    layout.check(&nested);
    assert_eq!(nested.images()[0].index.as_ref().unwrap().digest.digest(), Digest::of(&inner));
    layout.index(&[arm64.clone(), amd64.clone()]);
    let flat = open(layout.path()).unwrap();
    layout.check(&flat);
    for archive in [nested, flat] {
        let digest = archive.images()[0].manifest_digest.to_string();
        assert_eq!(json!(digest), amd64["digest"]);
    }
    let error = Archive::open(layout.path(), &"linux/s390x".parse().unwrap()).unwrap_err();
    assert!(error.hint().unwrap().contains("--platform"), "{error}");
}

#[test]
fn artifacts_beside_an_image_are_skipped() {
    let layout = Layout::new();
    let image = layout.image("amd64");
    let artifact = json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": "application/signature",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [],
    });
    let artifact = artifact.to_string().into_bytes();
    layout.blob(&artifact);
    let entry = descriptor(media::OCI_MANIFEST, &artifact);
    layout.index(&[entry.clone(), image]);
    layout.check(&open(layout.path()).unwrap());
    layout.index(&[entry]);
    let error = refused(layout.path());
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("application/signature"));
    layout.index(&[]);
    assert!(matches!(refused(layout.path()), ImportError::Empty));
}

#[test]
fn damaged_layouts_are_refused_by_name() {
    let blob_of = |layout: &Layout, entry: &Value| {
        layout.path().join("blobs/sha256").join(&entry["digest"].as_str().unwrap()[7..])
    };
    let layout = Layout::with("1");
    let layer = layout.blob(&gzip(&layout.tars[1]));
    let good = fs::read(&layer).unwrap();
    fs::write(&layer, &good[1..]).unwrap();
    assert!(matches!(refused(layout.path()), ImportError::BlobSize { .. }));
    assert!(matches!(refused(&layout.tar()), ImportError::BlobSize { .. }));
    fs::remove_file(&layer).unwrap();
    assert!(
        matches!(refused(layout.path()), ImportError::MissingBlob(digest) if digest == Digest::of(&good))
    );
    fs::write(&layer, &good).unwrap();
    assert!(open(layout.path()).is_ok());

    let entry = layout.image("amd64");
    let manifest = blob_of(&layout, &entry);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("2", "3", 1)).unwrap();
    assert!(matches!(refused(layout.path()), ImportError::Digest { .. }));
    fs::write(&manifest, &text).unwrap();

    fs::write(layout.path().join("index.json"), "<html>").unwrap();
    assert!(
        matches!(refused(layout.path()), ImportError::Document { document, .. } if document == "index.json")
    );
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(matches!(refused(layout.path()), ImportError::LayoutVersion(_)));
    fs::write(layout.path().join("oci-layout"), "{}").unwrap();
    assert!(matches!(refused(layout.path()), ImportError::Json { .. }));
    fs::remove_file(layout.path().join("index.json")).unwrap();
    assert!(matches!(refused(layout.path()), ImportError::Unknown(_)));
}

#[test]
fn links_out_of_a_directory_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let layout = Layout::with("1");
    let layer = layout.blob(&gzip(&layout.tars[1]));
    let name = layer.file_name().unwrap().to_owned();
    fs::rename(&layer, outside.path().join(&name)).unwrap();
    symlink(outside.path().join(&name), &layer).unwrap();
    assert!(matches!(refused(layout.path()), ImportError::Link(_)));
    // Links within the directory are followed.
    fs::rename(outside.path().join(&name), layout.path().join("kept")).unwrap();
    fs::remove_file(&layer).unwrap();
    symlink("../../kept", &layer).unwrap();
    layout.check(&open(layout.path()).unwrap());
}

#[test]
fn file_that_is_no_archive_is_an_error_that_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    assert!(matches!(refused(&path), ImportError::Open(_)));
    assert!(matches!(refused(dir.path()), ImportError::Unknown(_)));
    fs::write(&path, "hello").unwrap();
    assert!(matches!(refused(&path), ImportError::Tar { offset: 0, .. }));
    fs::write(&path, gzip(b"hello")).unwrap();
    assert!(matches!(refused(&path), ImportError::Tar { offset: 0, .. }));
    fs::write(&path, b"\xfd7zXZ\0rest").unwrap();
    assert!(matches!(refused(&path), ImportError::Decompression { program: "xz", .. }));
    fs::write(&path, layer_tar("etc/hosts", b"x")).unwrap();
    assert!(matches!(refused(&path), ImportError::Unknown(_)));
    fs::write(&path, layer_tar("repositories", b"{}")).unwrap();
    assert!(matches!(refused(&path), ImportError::Empty));
    assert!(matches!(refused(Path::new("/dev/null")), ImportError::FileType));
    let layout = Layout::with("1");
    let bytes = fs::read(layout.tar()).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = refused(&path);
    assert!(!matches!(error, ImportError::Open(_) | ImportError::Read { .. }), "{error}");
}

/// The names of the images that can be loaded, and the labels and errors of the others.
fn loadable(archive: &mut Archive) -> (Vec<String>, Vec<(String, String)>) {
    let refused = archive.take_refused().into_iter().map(|image| {
        let error = rcx_imagefs::error::chain_text(&image.error);
        (image.label, error)
    });
    let refused = refused.collect();
    (archive.images().iter().flat_map(names).collect(), refused)
}

fn tar_of(path: &Path, files: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

fn config_of(tars: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes()
}

#[test]
fn compressed_archives_are_read_in_place() {
    let layout = Layout::with("1.0");
    let tar = fs::read(layout.tar()).unwrap();
    let path = layout.path().join("compressed");
    for bytes in [gzip(&tar), zstd::bulk::compress(&tar, 3).unwrap()] {
        fs::write(&path, &bytes).unwrap();
        layout.check(&open(&path).unwrap());
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert!(matches!(refused(&path), ImportError::Compression(_)));
    }
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
fn image_that_fails_does_not_affect_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (path, tar) = (dir.path().join("save.tar"), layer_tar("a", b"x"));
    let config = config_of(&[&tar]);
    let list = json!([
        {"Config": "config.json", "RepoTags": ["lab/missing:1"], "Layers": ["nowhere/layer.tar"]},
        {"Config": "config.json", "RepoTags": ["lab/climbs:1"], "Layers": ["../../etc/passwd"]},
        {"Config": 7, "RepoTags": ["lab/malformed:1"]},
        {"config": "config.json", "repoTags": ["lab/good:1"], "layers": ["a/layer.tar"]},
        {"Config": "other.json", "RepoTags": null, "Layers": []},
    ]);
    let other = br#"{"rootfs":{"type":"layers","diff_ids":null}}"#;
    tar_of(
        &path,
        &[
            ("config.json", &config),
            ("other.json", other),
            ("a/layer.tar", &tar),
            ("manifest.json", list.to_string().as_bytes()),
        ],
    );
    let mut archive = open(&path).unwrap();
    assert_eq!(archive.images().len(), 2);
    let (names, refused) = loadable(&mut archive);
    assert_eq!(names, ["lab/good:1"]);
    let expected = [
        ("entry 3 of manifest.json", "cannot parse entry 3"),
        ("lab/missing:1", "nowhere/layer.tar is missing"),
        ("lab/climbs:1", "../../etc/passwd is missing"),
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for ((label, error), (expected_label, part)) in refused.iter().zip(expected) {
        assert!(label == expected_label && error.contains(part), "{label}: {error}");
    }
}

#[test]
fn documents_of_one_name_and_different_content_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, tar) = (dir.path().join("save.tar"), layer_tar("a", b"x"));
    let config = config_of(&[&tar]);
    let list = |name: &str| {
        json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string()
    };
    let write = |first: &str, second: &str| {
        tar_of(
            &path,
            &[
                ("manifest.json", first.as_bytes()),
                ("config.json", &config),
                ("layer.tar", &tar),
                ("./manifest.json", second.as_bytes()),
            ],
        );
    };
    write(&list("lab/a:1"), &list("lab/b:1"));
    let error = refused(&path);
    assert!(matches!(&error, ImportError::Twice(name) if name == "manifest.json"), "{error}");
    write(&list("lab/a:1"), &list("lab/a:1"));
    assert_eq!(loadable(&mut open(&path).unwrap()).0, ["lab/a:1"]);
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
