//! Store files that other tools write or a crash leaves behind: `index.json`, `slots`, `oci-layout`.
//!
//! Properties: a file is readable, or is reported as damaged and left unchanged; adding, moving and removing a tag affects
//! that image only, keeps the entries of other tools, and is visible to the next reader; a slot belongs to one layer or
//! image, and every process sees the same assignment.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, ManifestDigest, Name, Tag, media};
use rcx_imagefs::store::{Slot, Store};
use serde_json::Value;
use tempfile::TempDir;

use crate::input::Input;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check_slots(&mut input),
        1 => {
            let text = input.rest();
            with_store(|store, path| {
                std::fs::write(path.join("oci-layout"), text).unwrap();
                drop(store);
                let _ = Store::open(path);
                let _ = Store::exists(path);
            });
        }
        2 => check_refs(input.chunk().to_vec(), &mut input),
        _ => {
            let mut changes = Input::new(input.bytes(20));
            let mut text = index_json(&mut input).into_bytes();
            changes.mutate(&mut text);
            check_refs(text, &mut input);
        }
    }
}

/// Runs a check on a new store. Uses /dev/shm where it exists, because the store syncs every write.
fn with_store(check: impl FnOnce(Store, &Path)) {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = TempDir::new_in(parent).unwrap();
    let path: PathBuf = dir.path().join("store");
    check(Store::open_or_create(&path).unwrap(), &path);
}

fn digest(number: u8) -> Digest {
    Digest::of(&[number % 4])
}

fn index_json(input: &mut Input<'_>) -> String {
    let mut entries = Vec::new();
    while !input.is_empty() && entries.len() < 12 {
        let mut entry = serde_json::json!({
            "mediaType": input.pick(&[media::OCI_MANIFEST, media::OCI_INDEX, "x"]),
            "digest": match input.below(8) { 0 => "sha512:00".to_owned(), _ => digest(input.byte()).to_string() },
            "size": 1 + input.below(5),
        });
        let keys =
            ["org.opencontainers.image.ref.name", "io.rcx-imagefs.name", "io.rcx-imagefs.index", "other"];
        for _ in 0..input.below(3) {
            let index = digest(input.byte()).to_string();
            let value =
                input.pick(&["lab/a:1", "lab/a", "docker.io/library/a:2", "lab/b:1", "1", "?", &index]);
            entry["annotations"][input.pick(&keys)] = value.into();
        }
        match input.below(8) {
            0 => entry["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"}),
            1 => entry["platform"] = 5.into(),
            2 => entry["annotations"] = Value::Null,
            3 => entry["urls"] = serde_json::json!(["x"]),
            _ => {}
        }
        entries.push(entry);
    }
    let list = if entries.is_empty() { Value::Null } else { entries.into() };
    serde_json::json!({"schemaVersion": 2, "manifests": list, "annotations": {"kept": "yes"}}).to_string()
}

/// Returns the manifest digest of each name and tag.
fn tags(store: &Store) -> HashMap<(String, String), ManifestDigest> {
    let refs = store.refs().unwrap();
    let pairs = refs.images.iter().flat_map(|image| image.tags.iter().map(move |tag| (image, tag)));
    pairs.map(|(image, tag)| ((image.name.to_string(), tag.to_string()), image.digest)).collect()
}

/// Returns the name and manifest digest of each image.
fn images(store: &Store) -> Vec<(String, ManifestDigest)> {
    store.refs().unwrap().images.into_iter().map(|image| (image.name.to_string(), image.digest)).collect()
}

fn check_refs(text: Vec<u8>, input: &mut Input<'_>) {
    with_store(|store, path| {
        let file = path.join("index.json");
        std::fs::write(&file, &text).unwrap();
        if store.refs().is_err() {
            let name = Name::from_archive("lab/a").unwrap();
            let descriptor = Descriptor::new(media::OCI_MANIFEST, digest(1), 1);
            assert!(store.tag(&name, None, &descriptor, None).is_err());
            assert!(std::fs::read(&file).unwrap() == text, "a damaged file was changed");
            return;
        }
        let foreign = |path: &Path| {
            let value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let entries = value["manifests"].as_array().cloned().unwrap_or_default();
            let ours = |entry: &Value| {
                entry["annotations"].as_object().is_some_and(|keys| {
                    keys.contains_key("org.opencontainers.image.ref.name")
                        || keys.contains_key("io.rcx-imagefs.name")
                })
            };
            let mut rest = value;
            rest["manifests"] = Value::Null;
            let foreign: Vec<Value> = entries.into_iter().filter(|entry| !ours(entry)).collect();
            (foreign.iter().map(|entry| entry["digest"].clone()).collect::<Vec<_>>(), rest)
        };
        let foreign_before = foreign(&file);
        for _ in 0..1 + input.below(3) {
            change(&store, input);
            assert_eq!(foreign(&file), foreign_before, "an entry of another tool was changed");
            let reopened = Store::open(path).unwrap();
            assert_eq!(reopened.refs().unwrap(), store.refs().unwrap());
        }
    });
}

fn change(store: &Store, input: &mut Input<'_>) {
    let name = Name::from_archive(input.pick(&["lab/a", "a", "lab/b"])).unwrap();
    let tag: Tag = input.pick(&["1", "2", "latest"]).parse().unwrap();
    let own = (name.to_string(), tag.to_string());
    let (mut before, images_before) = (tags(store), images(store));
    let digest = ManifestDigest::new(digest(input.byte()));
    let descriptor = Descriptor::new(media::OCI_MANIFEST, digest.digest(), 2);
    match input.below(4) {
        0 => {
            let removed = store.remove_image(&name, digest).unwrap();
            assert_eq!(removed, images_before.contains(&(own.0.clone(), digest)));
            before.retain(|(other, _), is| *other != own.0 || *is != digest);
            // A tag may now resolve to a further entry of the file that also carries it.
            let after = tags(store);
            assert!(before.iter().all(|(tag, is)| after.get(tag) == Some(is)));
            assert!(!images(store).contains(&(own.0, digest)));
        }
        1 => {
            let keep_image = input.one_in(2);
            let untagged = store.untag(&name, &tag, keep_image).unwrap();
            assert_eq!(
                untagged.map(|untagged| untagged.digest),
                before.remove(&own),
                "untag returned a different image"
            );
            assert_eq!(tags(store), before, "another tag was changed");
            if let Some(untagged) = untagged {
                assert_eq!(images(store).contains(&(own.0, untagged.digest)), !untagged.removed);
            }
        }
        2 => {
            store.tag(&name, None, &descriptor, None).unwrap();
            assert_eq!(tags(store), before, "adding an image without a tag changed a tag");
            assert!(images(store).contains(&(own.0, digest)));
        }
        _ => {
            store.tag(&name, Some(&tag), &descriptor, Some(digest)).unwrap();
            before.insert(own, digest);
            assert_eq!(tags(store), before, "another tag was changed, or this one was not");
            let after = images(store);
            assert!(images_before.iter().all(|image| after.contains(image)), "an image is missing");
        }
    }
}

fn check_slots(input: &mut Input<'_>) {
    with_store(|store, path| {
        let layer = |number: u8| LayerDigest::new(digest(number));
        let image = |number: u8| ManifestDigest::new(digest(number));
        for number in 0..input.byte() % 4 {
            store.layer_slot(&layer(number)).unwrap();
            store.image_slot(&image(number)).unwrap();
        }
        drop(store);
        let file = path.join("rcx-imagefs/slots");
        let mut text = std::fs::read(&file).unwrap_or_default();
        let line = |body: String| format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()));
        let sums = input.below(4);
        for _ in 0..input.below(3) {
            let number = input.number() % 6;
            let kind = input.pick(&["layer", "image", "other"]);
            text.extend(line(format!("{kind} {number} {}", digest(input.byte()))).into_bytes());
        }
        if sums == 0 {
            input.mutate(&mut text);
        }
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
        let Ok(store) = Store::open(path) else { return };
        let slots: Vec<_> = (0..4).map(|number| store.layer_slot(&layer(number))).collect();
        if slots.iter().any(Result::is_err) {
            assert!(slots[0].is_err(), "the first access did not report the damaged file");
            assert!(std::fs::read(&file).unwrap() == text, "a damaged file was changed");
            return;
        }
        let reopened = Store::open(path).unwrap();
        let mut seen = Vec::new();
        for (number, slot) in (0..).zip(slots) {
            let slot = slot.unwrap();
            assert!(!seen.contains(&slot), "two layers have the same slot");
            seen.push(slot);
            assert_eq!(
                reopened.layer_of(slot).unwrap(),
                Some(layer(number)),
                "another process sees a different layer in the slot"
            );
            assert_eq!(reopened.layer_slot(&layer(number)).unwrap(), slot);
            assert_eq!(Slot::new(slot.get()), Some(slot));
        }
    });
}
