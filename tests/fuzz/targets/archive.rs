//! The input of `load`: OCI layouts and `docker save` archives with damaged documents, members and links, random tars, and
//! random bytes.
//!
//! Properties: every image has the digest of its manifest; its configuration and layers have their declared sizes and can be
//! read in full, each from one member of the archive; opening an archive twice yields the same images.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rcx_imagefs::image::{Digest, Document, Platform, media};
use rcx_imagefs::import::Archive;
use rcx_imagefs::layer::Codec;
use serde_json::json;

use crate::input::Input;
use crate::members;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let tar = match input.byte() % 8 {
        0 => {
            let mut tar = input.rest().to_vec();
            members::fix_checksums(&mut tar);
            tar
        }
        1 => members::archive(&mut input),
        2 => {
            let mut changes = Input::new(input.bytes(24));
            let mut tar = image(&mut input);
            changes.mutate(&mut tar);
            members::fix_checksums(&mut tar);
            tar
        }
        _ => image(&mut input),
    };
    let file = File::from(rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    (&file).write_all(&tar).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let platform: Platform = "linux/amd64".parse().unwrap();
    let opened = Archive::open(Path::new(&path), &platform);
    let again = Archive::open(Path::new(&path), &platform);
    let mut archive = match (opened, again) {
        (Ok(archive), Ok(again)) => {
            let described = |archive: &Archive| format!("{:?}", archive.images());
            assert_eq!(
                described(&archive),
                described(&again),
                "opening the archive twice yields different images"
            );
            archive
        }
        (Err(one), Err(other)) => return assert_eq!(one.to_string(), other.to_string()),
        (one, other) => panic!("{:?} and {:?}", one.err(), other.err()),
    };
    let refused = archive.take_refused();
    assert!(!archive.images().is_empty() || refused.len() > 1);
    for image in archive.images() {
        assert_eq!(image.manifest_digest.digest(), Digest::of(&image.manifest_bytes));
        let document = Document::parse(&image.manifest_bytes, Some(&image.media_type)).unwrap();
        assert_eq!(document, Document::Manifest(image.manifest.clone()));
        for descriptor in image.manifest.layers().iter().chain([image.manifest.config()]) {
            let mut blob = archive.open_blob(&descriptor.digest).unwrap();
            assert_eq!(blob.size(), descriptor.size);
            let mut bytes = Vec::new();
            blob.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, descriptor.size);
            // The configuration of an image of docker before version 1.10 is generated.
            let is_generated = descriptor == image.manifest.config() && !contains(&tar, b"rootfs");
            assert!(
                is_generated || Codec::sniff(&tar) != Codec::Tar || contains(&tar, &bytes),
                "the bytes of a blob are not in the archive"
            );
        }
    }
}

fn contains(tar: &[u8], bytes: &[u8]) -> bool {
    bytes.is_empty() || tar.windows(bytes.len()).any(|window| window == bytes)
}

/// Paths of members and targets of links.
const PATHS: [&str; 12] = [
    "oci-layout",
    "index.json",
    "manifest.json",
    "repositories",
    "layer.tar",
    "a/layer.tar",
    "../layer.tar",
    "/etc/passwd",
    ".",
    "config.json",
    "./layer.tar",
    "",
];

const NAMES: [&str; 8] =
    ["lab/a:1", "a", "1.0", "docker.io/library/a:1", "lab/a@sha256:00", "../x:1", "UPPER/a:1", ""];

/// An archive under construction: tar type, path and content of each member, in order.
struct ArchiveBuilder {
    members: Vec<(u8, String, Vec<u8>)>,
}

impl ArchiveBuilder {
    fn file(&mut self, path: &str, bytes: &[u8]) {
        self.members.push((b'0', path.to_owned(), bytes.to_vec()));
    }

    fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        digest
    }
}

/// Generates a valid archive of up to three images, then applies a few changes.
fn image(input: &mut Input<'_>) -> Vec<u8> {
    let mut changes = Input::new(input.bytes(40));
    let mut builder = ArchiveBuilder { members: Vec::new() };
    if input.one_in(2) {
        docker_save(&mut builder, input)
    } else {
        oci_layout(&mut builder, input)
    }
    for _ in 0..changes.below(4) {
        change(&mut builder.members, &mut changes);
    }
    let mut tar = Vec::new();
    for (kind, path, bytes) in &builder.members {
        if path.len() > 100 {
            tar.extend(members::member(b'L', b"././@LongLink", &[path.as_bytes(), b"\0"].concat()));
        }
        match kind {
            b'1' | b'2' => {
                let records =
                    [members::pax_record(b"linkpath", bytes), members::pax_record(b"comment", b"")].concat();
                tar.extend(members::member(b'x', b"PaxHeaders/x", &records));
                tar.extend(members::member(*kind, path.as_bytes(), b""));
            }
            _ => tar.extend(members::member(*kind, path.as_bytes(), bytes)),
        }
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn change(members: &mut Vec<(u8, String, Vec<u8>)>, input: &mut Input<'_>) {
    let at = input.below(members.len().max(1));
    let other = input.below(members.len().max(1));
    let path = input.pick(&PATHS).to_owned();
    let Some(member) = members.get(at).cloned() else { return };
    match input.below(8) {
        0 => drop(members.remove(at)),
        1 => members.push(member),
        2 => members[at].1 = path,
        3 => {
            let target = if input.one_in(2) { members[other].1.clone() } else { path };
            let up = "../".repeat(member.1.matches('/').count());
            members[at] = (b'2', member.1, format!("{up}{target}").into_bytes());
        }
        4 => members[at] = (b'1', member.1, members[other].1.clone().into_bytes()),
        5 => members.swap(at, other),
        6 => members[at].0 = input.pick(b"0\x0075Sx"),
        _ => input.mutate(&mut members[at].2),
    }
}

fn config(layers: usize, input: &mut Input<'_>) -> Vec<u8> {
    let diff_ids: Vec<Digest> = (0..layers).map(|layer| Digest::of(&layer.to_le_bytes())).collect();
    let architecture = input.pick(&["amd64", "amd64", "amd64", "arm64"]);
    json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn layer(input: &mut Input<'_>) -> (&'static str, Vec<u8>) {
    let (media_type, magic): (_, &[u8]) = match input.below(3) {
        0 => (media::OCI_LAYER_GZIP, &[0x1f, 0x8b]),
        1 => (media::OCI_LAYER_ZSTD, &[0x28, 0xb5, 0x2f, 0xfd]),
        _ => (media::OCI_LAYER, b"tar"),
    };
    (media_type, [magic, &input.content(300)].concat())
}

fn oci_layout(builder: &mut ArchiveBuilder, input: &mut Input<'_>) {
    let version = input.pick(&["1.0.0", "1.0.0", "1.0.0", "1.1.0"]);
    builder.file("oci-layout", json!({"imageLayoutVersion": version}).to_string().as_bytes());
    let mut entries = Vec::new();
    for _ in 0..=input.below(3) {
        let layers: Vec<_> = (0..input.below(3)).map(|_| layer(input)).collect();
        let config = config(layers.len(), input);
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let described: Vec<_> =
            layers.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
        let config_type =
            if input.one_in(12) { "application/vnd.oci.empty.v1+json" } else { media::OCI_CONFIG };
        let mut media_type = media::OCI_MANIFEST;
        let mut document = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": descriptor(config_type, &config), "layers": described,
        })
        .to_string()
        .into_bytes();
        builder.blob(&config);
        for (_, bytes) in &layers {
            builder.blob(bytes);
        }
        for _ in 0..input.below(8).saturating_sub(2) {
            builder.blob(&document);
            let mut inner = descriptor(media_type, &document);
            if input.one_in(2) {
                inner["platform"] = json!({"os": "linux", "architecture": input.pick(&["amd64", "arm64"])});
            }
            media_type = media::OCI_INDEX;
            document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [inner]})
                .to_string()
                .into_bytes();
        }
        builder.blob(&document);
        let mut entry = descriptor(media_type, &document);
        if input.one_in(3) {
            entry["platform"] =
                json!({"os": "linux", "architecture": input.pick(&["amd64", "arm64", "unknown"])});
        }
        let key = input.pick(&["org.opencontainers.image.ref.name", "io.containerd.image.name"]);
        entry["annotations"] = json!({key: input.pick(&NAMES)});
        entries.push(entry);
    }
    builder.file("index.json", json!({"schemaVersion": 2, "manifests": entries}).to_string().as_bytes());
    if input.one_in(3) {
        let config = entries[0]["digest"].as_str().unwrap_or_default().replace("sha256:", "blobs/sha256/");
        let list = json!([{"Config": config, "RepoTags": [input.pick(&NAMES)], "Layers": []}]);
        builder.file("manifest.json", list.to_string().as_bytes());
    }
}

fn docker_save(builder: &mut ArchiveBuilder, input: &mut Input<'_>) {
    let mut items = Vec::new();
    for image in 0..=input.below(3) {
        let mut paths = Vec::new();
        for number in 0..input.below(3) {
            let path = if input.one_in(6) {
                input.pick(&PATHS).to_owned()
            } else {
                format!("{image}{number}/layer.tar")
            };
            let (_, bytes) = layer(input);
            builder.file(&path, &bytes);
            paths.push(path);
        }
        let config = config(paths.len() + usize::from(input.one_in(12)), input);
        let config_path = format!("{}.json", Digest::of(&config).hex());
        builder.file(&config_path, &config);
        items.push(json!({"Config": config_path, "RepoTags": [input.pick(&NAMES)], "Layers": paths}));
    }
    builder.file("manifest.json", serde_json::to_string(&items).unwrap().as_bytes());
}
