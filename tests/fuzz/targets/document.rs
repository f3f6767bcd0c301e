//! Manifests, indexes and configurations in their OCI and Docker forms, with missing, duplicate, swapped and replaced fields.
//!
//! Properties: the announced media type never turns a manifest into an index or the reverse; an accepted document fulfils the
//! guarantees that the rest of the program relies on; a written document parses as the original.

use rcx_imagefs::image::{
    CONFIG_MAX, Descriptor, Document, DocumentKind, ImageConfig, LAYERS_MAX, MANIFEST_MAX, ManifestError,
    Platform, media,
};

use crate::input::Input;

const TYPES: [&str; 20] = [
    media::OCI_MANIFEST,
    media::OCI_INDEX,
    media::DOCKER_MANIFEST,
    media::DOCKER_LIST,
    media::OCI_CONFIG,
    media::DOCKER_CONFIG,
    media::OCI_LAYER,
    media::OCI_LAYER_GZIP,
    media::OCI_LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.oci.empty.v1+json",
    "application/json",
    "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
    "text/html",
    "text/plain",
    "",
];

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let announced = (choice & 0x80 == 0).then(|| input.pick(&TYPES));
    let bytes = match choice % 4 {
        0 => input.rest().to_vec(),
        1 => {
            let mut changes = Input::new(input.bytes(24));
            let mut bytes = document(&mut input).into_bytes();
            changes.mutate(&mut bytes);
            bytes
        }
        _ => document(&mut input).into_bytes(),
    };
    check_document(&bytes, announced);
    check_config(&bytes);
    if let Ok(descriptor) = serde_json::from_slice::<Descriptor>(&bytes) {
        let written = serde_json::to_vec(&descriptor).unwrap();
        assert_eq!(serde_json::from_slice::<Descriptor>(&written).unwrap(), descriptor);
    }
}

fn kind(document: &Document) -> DocumentKind {
    match document {
        Document::Manifest(_) => DocumentKind::Manifest,
        Document::Index(_) => DocumentKind::Index,
    }
}

fn check_document(bytes: &[u8], announced: Option<&str>) {
    let alone = Document::parse(bytes, None);
    for other in TYPES.into_iter().map(Some).chain([announced]) {
        if let Ok(document) = Document::parse(bytes, other) {
            let kinds = alone.as_ref().map(|alone| (kind(alone), kind(&document)));
            assert!(
                kinds.is_ok_and(|(one, other)| one == other),
                "the kind of document depends on the media type {other:?}"
            );
        }
    }
    match &alone {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers().len() <= LAYERS_MAX);
            assert!((1..=CONFIG_MAX).contains(&manifest.config().size));
            assert!(manifest.typed_layers().all(|(_, _, size)| size > 0 && i64::try_from(size).is_ok()));
            let written = manifest.to_bytes();
            let again = Document::parse(&written, Some(manifest.media_type())).unwrap();
            assert_eq!(
                again,
                Document::Manifest(manifest.clone()),
                "the written manifest parses as a different one"
            );
        }
        Ok(Document::Index(index)) => {
            for platform in ["linux/amd64", "linux/arm/v7", "linux/arm64/v9", "windows/amd64"] {
                let wanted: Platform = platform.parse().unwrap();
                if let Ok(entry) = index.choose(&wanted) {
                    assert!(index.manifests().contains(entry) && !entry.is_attestation());
                    assert!((1..=MANIFEST_MAX).contains(&entry.size));
                    assert!(entry.platform.as_ref().is_none_or(|own| own.os() == wanted.os()));
                    assert!(
                        entry.platform.as_ref().is_none_or(|own| own.architecture() == wanted.architecture())
                    );
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check_config(bytes: &[u8]) {
    match ImageConfig::parse(bytes) {
        Ok(config) => {
            assert!(config.raw.is_object());
            let written = serde_json::to_vec(&config.raw).unwrap();
            assert_eq!(
                ImageConfig::parse(&written).unwrap(),
                config,
                "the stored configuration parses as a different one"
            );
        }
        Err(error) => assert!(matches!(
            error,
            ManifestError::Config(_) | ManifestError::RootfsType(_) | ManifestError::TooLong { .. }
        )),
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// Generates a value of any type.
fn any(input: &mut Input<'_>) -> String {
    match input.below(12) {
        0 => "null".to_owned(),
        1 => "[]".to_owned(),
        2 => "{}".to_owned(),
        3 => "true".to_owned(),
        4 => input.number().to_string(),
        5 => "-1".to_owned(),
        6 => "1e400".to_owned(),
        7 => "[".repeat(input.byte().into()),
        8 => quoted(input.pick(&TYPES)),
        9 => "[null]".to_owned(),
        10 => String::from_utf8_lossy(input.chunk()).into_owned(),
        _ => quoted(&String::from_utf8_lossy(input.chunk())),
    }
}

/// A field's name and a function that generates its value.
type Field<'a> = (&'a str, &'a dyn Fn(&mut Input<'_>) -> String);

/// Generates an object from `fields`. Now and then, leaves out, duplicates, swaps or replaces a field.
fn object(input: &mut Input<'_>, fields: &[Field<'_>]) -> String {
    let mut written = Vec::new();
    for (key, value) in fields {
        match input.below(24) {
            0 => continue,
            1 => written.push(format!("{}:{}", quoted(key), value(input))),
            2 => {
                written.push(format!("{}:{}", quoted(key), any(input)));
                continue;
            }
            3 => {
                let other = fields[input.below(fields.len())].0;
                written.push(format!("{}:{}", quoted(other), value(input)));
                continue;
            }
            4 => written.push(format!("{}:{}", quoted(&key.to_uppercase()), value(input))),
            _ => {}
        }
        written.push(format!("{}:{}", quoted(key), value(input)));
    }
    format!("{{{}}}", written.join(","))
}

fn list(input: &mut Input<'_>, max_items: usize, item: impl Fn(&mut Input<'_>) -> String) -> String {
    let items: Vec<String> = (0..input.below(max_items + 1)).map(|_| item(input)).collect();
    format!("[{}]", items.join(","))
}

fn digest(input: &mut Input<'_>) -> String {
    match input.below(12) {
        0 => quoted(&format!("sha512:{HEX}{HEX}")),
        1 => quoted(&format!("sha256:{}", HEX.to_uppercase())),
        2 => quoted(HEX),
        _ => quoted(&format!("sha256:{HEX}")),
    }
}

fn size(input: &mut Input<'_>) -> String {
    match input.below(8) {
        0 => input.number().to_string(),
        1 => "7.0".to_owned(),
        _ => (1 + input.below(9)).to_string(),
    }
}

fn annotations(input: &mut Input<'_>) -> String {
    const KEYS: [&str; 4] = [
        "org.opencontainers.image.ref.name",
        "io.containerd.image.name",
        "vnd.docker.reference.type",
        "io.rcx-imagefs.name",
    ];
    let value = |input: &mut Input<'_>| {
        quoted(input.pick(&["1", "lab/a:1", "attestation-manifest", "docker.io/library/a:1", "a@b", ""]))
    };
    let key = input.pick(&KEYS);
    object(input, &[(key, &value)])
}

fn platform(input: &mut Input<'_>) -> String {
    let os = |input: &mut Input<'_>| quoted(input.pick(&["linux", "windows", "unknown", ""]));
    let architecture = |input: &mut Input<'_>| {
        quoted(input.pick(&["amd64", "arm64", "arm", "x86_64", "unknown", "riscv64", "386"]))
    };
    let variant = |input: &mut Input<'_>| {
        quoted(input.pick(&["v7", "v8", "8", "v9.2", "v6", "v99999999999", "v8.20", "", "V3"]))
    };
    object(input, &[("os", &os), ("architecture", &architecture), ("variant", &variant)])
}

fn descriptor(input: &mut Input<'_>, usual: &str) -> String {
    let media_type = |input: &mut Input<'_>| {
        let other = input.pick(&TYPES);
        quoted(if input.one_in(8) { other } else { usual })
    };
    match input.below(4) {
        0 => object(input, &[("mediaType", &media_type), ("digest", &digest), ("size", &size)]),
        _ => object(
            input,
            &[
                ("mediaType", &media_type),
                ("digest", &digest),
                ("size", &size),
                ("annotations", &annotations),
                ("platform", &platform),
            ],
        ),
    }
}

fn document(input: &mut Input<'_>) -> String {
    let version = |input: &mut Input<'_>| input.pick(&["2", "2", "2", "2", "2", "2", "1", "3"]).to_owned();
    let own = |usual: &'static str| {
        move |input: &mut Input<'_>| {
            let other = input.pick(&TYPES);
            quoted(if input.one_in(8) { other } else { usual })
        }
    };
    match input.below(6) {
        0 | 1 => {
            let docker = input.one_in(2);
            let config = |input: &mut Input<'_>| {
                descriptor(input, if docker { media::DOCKER_CONFIG } else { media::OCI_CONFIG })
            };
            let layers =
                |input: &mut Input<'_>| list(input, 4, |input| descriptor(input, media::OCI_LAYER_GZIP));
            let own = own(if docker { media::DOCKER_MANIFEST } else { media::OCI_MANIFEST });
            object(
                input,
                &[
                    ("schemaVersion", &version),
                    ("mediaType", &own),
                    ("config", &config),
                    ("layers", &layers),
                    ("annotations", &annotations),
                ],
            )
        }
        2 | 3 => {
            let docker = input.one_in(2);
            let own = own(if docker { media::DOCKER_LIST } else { media::OCI_INDEX });
            let entries =
                |input: &mut Input<'_>| list(input, 5, |input| descriptor(input, media::OCI_MANIFEST));
            object(
                input,
                &[
                    ("schemaVersion", &version),
                    ("mediaType", &own),
                    ("manifests", &entries),
                    ("annotations", &annotations),
                ],
            )
        }
        4 => config(input),
        _ => descriptor(input, media::OCI_MANIFEST),
    }
}

fn config(input: &mut Input<'_>) -> String {
    let kind = |input: &mut Input<'_>| quoted(input.pick(&["layers", "layers", "layers", "layers+base"]));
    let diff_ids = |input: &mut Input<'_>| list(input, 4, digest);
    let rootfs = |input: &mut Input<'_>| object(input, &[("type", &kind), ("diff_ids", &diff_ids)]);
    let words =
        |input: &mut Input<'_>| list(input, 3, |input| quoted(input.pick(&["A=b", "sh", "", "=", "\0"])));
    let text = |input: &mut Input<'_>| quoted(input.pick(&["", "/w", "1:2", "root", "../.."]));
    let inner = |input: &mut Input<'_>| {
        object(
            input,
            &[
                ("Env", &words),
                ("Cmd", &words),
                ("Entrypoint", &words),
                ("WorkingDir", &text),
                ("User", &text),
            ],
        )
    };
    object(
        input,
        &[
            ("rootfs", &rootfs),
            ("config", &inner),
            ("os", &text),
            ("architecture", &text),
            ("created", &text),
        ],
    )
}
