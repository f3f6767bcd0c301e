//! The configuration and the manifest of an image with one more layer.

use serde_json::{Map, Value, json};

use super::instruction::{get, set};
use super::{CommitError, CommitNotes, CommitOptions};
use crate::image::{Compression, Descriptor, Digest, Image, LAYERS_MAX, LayerMedia, Manifest, media};
use crate::layer::Timestamp;
use crate::pipeline::NewLayer;

/// The start of the text in the history that says how the layer was made.
const CREATED_BY: &str = "rcx-imagefs root commit";

/// Returns the manifest and the configuration of `image` with one more layer on top; without `layer`, with an entry in the history
/// alone.
///
/// `newest` is the time of the newest file in the layer. It becomes the time of the image, so that the documents depend on nothing
/// but the image, the layer and the notes.
pub(super) fn extend(
    image: &Image,
    layer: Option<&NewLayer>,
    newest: Option<Timestamp>,
    options: &CommitOptions,
    notes: &CommitNotes,
) -> Result<(Manifest, Vec<u8>), CommitError> {
    let mut config = image.config().raw.as_object().cloned().unwrap_or_default();
    if let Some(created) = created(options, newest) {
        set(&mut config, "created", created.into());
    }
    let mut rootfs = object(&config, "rootfs");
    let mut diff_ids: Vec<Value> = image.config().diff_ids.iter().map(|id| json!(id)).collect();
    diff_ids.extend(layer.map(|layer| json!(layer.diff_id)));
    set(&mut rootfs, "type", "layers".into());
    set(&mut rootfs, "diff_ids", diff_ids.into());
    set(&mut config, "rootfs", rootfs.into());
    let mut history = get(&config, "history").and_then(Value::as_array).cloned().unwrap_or_default();
    history.push(entry(&config, layer.is_none(), notes));
    set(&mut config, "history", history.into());
    if !notes.changes.is_empty() {
        let mut program = object(&config, "config");
        let mut sets_cmd = false;
        for change in &notes.changes {
            change.apply(&mut program)?;
            sets_cmd |= change.is_cmd();
            // The command of the image is an argument for the entrypoint of the image, as in a Dockerfile.
            if change.is_entrypoint() && !sets_cmd {
                set(&mut program, "Cmd", Value::Null);
            }
        }
        set(&mut config, "config", program.into());
    }
    let bytes = serde_json::to_vec(&config).expect("JSON values always serialize");
    let mut layers: Vec<Descriptor> = image.manifest().layers().iter().map(as_oci).collect();
    layers
        .extend(layer.map(|layer| Descriptor::new(media::OCI_LAYER_GZIP, layer.digest.digest(), layer.size)));
    if layers.len() > LAYERS_MAX {
        return Err(CommitError::TooManyLayers);
    }
    let descriptor = Descriptor::new(media::OCI_CONFIG, Digest::of(&bytes), bytes.len() as u64);
    Ok((Manifest::new(descriptor, layers)?, bytes))
}

fn entry(config: &Map<String, Value>, is_empty: bool, notes: &CommitNotes) -> Value {
    let mut created_by = CREATED_BY.to_owned();
    for change in &notes.changes {
        created_by.push_str(&format!(" --change '{change}'"));
    }
    let mut entry = json!({"created_by": created_by});
    if let Some(created) = get(config, "created") {
        entry["created"] = created.clone();
    }
    if let Some(message) = &notes.message {
        entry["comment"] = json!(message);
    }
    if is_empty {
        entry["empty_layer"] = json!(true);
    }
    entry
}

/// The time of the new image as in RFC 3339; `None` for the time of its base.
fn created(options: &CommitOptions, newest: Option<Timestamp>) -> Option<String> {
    let time = options.epoch.map(|sec| Timestamp { sec, nsec: 0 }).or(newest)?;
    let nsec = i32::try_from(time.nsec).unwrap_or(0);
    // A program can give its files times that the format cannot express.
    jiff::Timestamp::new(time.sec, nsec).ok().map(|time| time.to_string())
}

fn object(object: &Map<String, Value>, name: &str) -> Map<String, Value> {
    get(object, name).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Returns the descriptor of a layer with the media type of OCI, since tools refuse a manifest with types of both kinds.
fn as_oci(layer: &Descriptor) -> Descriptor {
    let oci = match LayerMedia::parse(&layer.media_type) {
        Some(LayerMedia { foreign: true, .. } | LayerMedia { compression: None, .. }) | None => {
            return layer.clone();
        }
        Some(LayerMedia { compression: Some(Compression::None), .. }) => media::OCI_LAYER,
        Some(LayerMedia { compression: Some(Compression::Gzip), .. }) => media::OCI_LAYER_GZIP,
        Some(LayerMedia { compression: Some(Compression::Zstd), .. }) => media::OCI_LAYER_ZSTD,
    };
    Descriptor { media_type: oci.to_owned(), ..layer.clone() }
}
