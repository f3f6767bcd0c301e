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
    let error = refused(&path);
    assert!(matches!(error, ImportError::Compressed("gzip")));
    assert!(error.hint().unwrap().contains("gzip -dk"));
    fs::write(&path, layer_tar("etc/hosts", b"x")).unwrap();
    assert!(matches!(refused(&path), ImportError::Unknown(_)));
    fs::write(&path, layer_tar("repositories", b"{}")).unwrap();
    assert!(refused(&path).to_string().contains("1.10"));
    assert!(matches!(refused(Path::new("/dev/null")), ImportError::FileType));
    let layout = Layout::with("1");
    let bytes = fs::read(layout.tar()).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = refused(&path);
    assert!(!matches!(error, ImportError::Open(_) | ImportError::Read { .. }), "{error}");
}
