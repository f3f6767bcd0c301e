//! Reads archives of skopeo and docker, and hostile ones.

mod docker;

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
