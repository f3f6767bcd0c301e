//! Reads and changes the image names and tags in `index.json`.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::StoreError;
use super::index_json::{IndexJson, IndexJsonEntry};
use super::layout::INDEX_JSON;
use crate::image::{Descriptor, ManifestDigest, Name, Platform, Tag};

/// An image of the store: a name and a manifest digest, with the tags for both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image's name.
    pub name: Name,
    /// Digest of the manifest.
    pub digest: ManifestDigest,
    /// The tags of this digest, sorted. Empty if all tags have moved to other digests.
    pub tags: Vec<Tag>,
    /// The descriptor's media type. Other tools may have added a multi-platform index.
    pub media_type: String,
    /// Size of the manifest in bytes.
    pub size: u64,
    /// The descriptor's platform.
    pub platform: Option<Platform>,
    /// The multi-platform index from which the manifest was chosen.
    ///
    /// That document may be missing: other tools see no reference to it and may remove it.
    pub index: Option<ManifestDigest>,
}

/// All images of the store at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refs {
    /// Sorted by name; images with the same name in the order of `index.json`.
    pub images: Vec<ImageRecord>,
}

/// The effect of [`Store::untag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UntagResult {
    /// The digest that had the tag.
    pub digest: ManifestDigest,
    /// Whether the image was removed with its last tag.
    pub removed: bool,
}

impl Refs {
    /// The image with the tag `name:tag`.
    #[must_use]
    pub fn tagged(&self, name: &Name, tag: &Tag) -> Option<&ImageRecord> {
        self.images.iter().find(|image| image.name == *name && image.tags.contains(tag))
    }

    /// The image with this name whose manifest or multi-platform index has this digest.
    #[must_use]
    pub fn with_digest(&self, name: &Name, digest: ManifestDigest) -> Option<&ImageRecord> {
        let of_name = || self.images.iter().filter(|image| image.name == *name);
        of_name()
            .find(|image| image.digest == digest)
            .or_else(|| of_name().find(|image| image.index == Some(digest)))
    }
}

impl Store {
    /// Reads all images. Takes no lock, since `index.json` is replaced atomically.
    pub fn refs(&self) -> Result<Refs, StoreError> {
        let mut images: Vec<ImageRecord> = Vec::new();
        let mut positions = HashMap::new();
        let mut tags_seen = HashSet::new();
        for entry in self.entries()? {
            let (Some((name, tag)), Ok(digest)) = (entry.identity(), entry.digest.parse()) else { continue };
            // Other tools may store the same reference twice. The first one takes effect, as in skopeo.
            let tag = tag.filter(|tag| tags_seen.insert((name.clone(), tag.clone())));
            let (platform, index) = (entry.platform(), entry.index());
            let position = *positions.entry((name.clone(), digest)).or_insert(images.len());
            if position == images.len() {
                let IndexJsonEntry { media_type, size, .. } = entry;
                images.push(ImageRecord {
                    name,
                    digest,
                    tags: Vec::new(),
                    media_type,
                    size,
                    platform,
                    index,
                });
            }
            let image = &mut images[position];
            image.tags.extend(tag);
            image.index = image.index.or(index);
        }
        images.iter_mut().for_each(|image| image.tags.sort_unstable());
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Refs { images })
    }

    /// Adds an image to `index.json`, with `tag` if it is set. A digest that had the tag before remains as an image without it.
    ///
    /// `index` is the multi-platform index from which the manifest was chosen; that document must be in the store too.
    /// Annotations of `manifest` are ignored. The caller must hold a [`GcLease`](super::GcLease) and must have stored every
    /// blob of the image.
    pub fn tag(
        &self,
        name: &Name,
        tag: Option<&Tag>,
        manifest: &Descriptor,
        index: Option<ManifestDigest>,
    ) -> Result<(), StoreError> {
        self.update(|file| {
            if let Some(tag) = tag {
                file.remove_tag(name, tag, Some(ManifestDigest::from(manifest)));
            }
            file.add(name, tag, manifest, index);
        })
    }

    /// Removes a tag. If it was the image's last tag, also removes the image, unless `keep_image` is set.
    ///
    /// Both happen in one atomic step. Returns `None` if no image has the tag.
    pub fn untag(&self, name: &Name, tag: &Tag, keep_image: bool) -> Result<Option<UntagResult>, StoreError> {
        self.update(|file| {
            let digest = file.remove_tag(name, tag, None)?;
            let removed = !keep_image && !file.is_tagged(name, digest) && file.remove(name, digest);
            Some(UntagResult { digest, removed })
        })
    }

    /// Removes an image with all its tags; returns whether it existed.
    ///
    /// Keeps other names of the same digest. Keeps the blobs, until [`Store::gc`] removes them.
    pub fn remove_image(&self, name: &Name, digest: ManifestDigest) -> Result<bool, StoreError> {
        self.update(|file| file.remove(name, digest))
    }

    /// All descriptors, including those of other tools.
    pub(super) fn entries(&self) -> Result<Vec<IndexJsonEntry>, StoreError> {
        IndexJson::read(self.root()).map(IndexJson::into_entries)
    }

    /// Changes `index.json` under its lock. Writes nothing if nothing changes, so that watchers do not wake up.
    ///
    /// A full disk fails only a change that makes the file longer: a removal then uses the reserve.
    fn update<T>(&self, change: impl FnOnce(&mut IndexJson) -> T) -> Result<T, StoreError> {
        let _lock = self.lock_for_update(INDEX_JSON)?;
        let root = self.root();
        let before = IndexJson::read(root)?;
        let mut after = before.clone();
        let result = change(&mut after);
        if after == before {
            return Ok(result);
        }
        let path = root.path_of(INDEX_JSON);
        let to_bytes = |file: &IndexJson| {
            serde_json::to_vec(file).map_err(|source| StoreError::Json { path: path.clone(), source })
        };
        let bytes = to_bytes(&after)?;
        let write = || {
            let mut temp = self.temp_file(root.reopen()?, INDEX_JSON)?;
            temp.write_all(&bytes).map_err(|error| StoreError::from_write(&path, error))?;
            temp.commit()
        };
        match write() {
            Err(StoreError::DiskFull { .. })
                if bytes.len() < to_bytes(&before)?.len()
                    && self.replace_from_reserve(root, INDEX_JSON, &bytes)? => {}
            written => {
                written?;
            }
        }
        self.keep_reserve(bytes.len());
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;
    use crate::image::{Digest, media};
    use crate::store::tests::new_store;

    fn name(text: &str) -> Name {
        Name::from_archive(text).unwrap()
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn manifest(text: &str) -> Descriptor {
        Descriptor::new(media::OCI_MANIFEST, Digest::of(text.as_bytes()), text.len() as u64)
    }

    fn digest(text: &str) -> ManifestDigest {
        ManifestDigest::new(Digest::of(text.as_bytes()))
    }

    /// One line per image: name, the text whose digest it has, tags.
    fn dump(store: &Store) -> Vec<String> {
        let preimage = |of| ["a", "b", "c"].into_iter().find(|text| digest(text) == of).unwrap_or("?");
        let line = |image: ImageRecord| {
            let tags: Vec<String> = image.tags.iter().map(Tag::to_string).collect();
            format!("{} {} {}", image.name, preimage(image.digest), tags.join(",")).trim_end().to_owned()
        };
        store.refs().unwrap().images.into_iter().map(line).collect()
    }

    /// The descriptors as other tools see them: (digest, `ref.name`).
    fn seen_by_others(store: &Store) -> Vec<(String, Option<String>)> {
        let file: Value = serde_json::from_slice(&fs::read(store.index_json_path()).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let entries = file["manifests"].as_array().unwrap().iter();
        entries
            .map(|entry| {
                let ref_name = &entry["annotations"]["org.opencontainers.image.ref.name"];
                (text(&entry["digest"]).unwrap(), text(ref_name))
            })
            .collect()
    }

    #[test]
    fn tags_of_one_image_are_listed_with_it() {
        let (_dir, store) = new_store();
        let python = name("python");
        for text in ["3.12", "3", "latest", "3"] {
            store.tag(&python, Some(&tag(text)), &manifest("a"), None).unwrap();
        }
        store.tag(&name("lab.example:5000/x/y"), Some(&tag("1")), &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a 3,3.12,latest", "lab.example:5000/x/y a 1"]);
        let refs = store.refs().unwrap();
        assert_eq!(refs.tagged(&python, &tag("3")).unwrap().digest, digest("a"));
        assert_eq!(refs.tagged(&python, &tag("4")), None);
        let seen = seen_by_others(&store);
        assert_eq!(seen.len(), 4);
        assert!(seen.contains(&(digest("a").to_string(), Some("lab.example:5000/x/y:1".to_owned()))));
    }

    #[test]
    fn moved_tag_leaves_the_old_digest_without_a_tag() {
        let (_dir, store) = new_store();
        let python = name("python");
        store.tag(&python, Some(&tag("3")), &manifest("a"), None).unwrap();
        store.tag(&python, Some(&tag("3")), &manifest("b"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a", "docker.io/library/python b 3"]);
        // Move the tag back: no digest may have two entries.
        store.tag(&python, Some(&tag("3")), &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a 3", "docker.io/library/python b"]);
        assert_eq!(store.entries().unwrap().len(), 2);
    }

    #[test]
    fn tag_that_moves_between_tagged_images_leaves_no_extra_entry() {
        let (_dir, store) = new_store();
        let python = name("python");
        for (text, image) in [("3", "a"), ("3.12", "a"), ("3.13", "b"), ("3", "b")] {
            store.tag(&python, Some(&tag(text)), &manifest(image), None).unwrap();
        }
        assert_eq!(dump(&store), ["docker.io/library/python a 3.12", "docker.io/library/python b 3,3.13"]);
        assert_eq!(store.entries().unwrap().len(), 3);
    }

    #[test]
    fn image_pulled_by_digest_has_no_tag_until_it_is_tagged() {
        let (_dir, store) = new_store();
        let python = name("python");
        store.tag(&python, None, &manifest("a"), None).unwrap();
        store.tag(&python, None, &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a"]);
        assert_eq!(seen_by_others(&store), [(digest("a").to_string(), None)]);
        store.tag(&python, Some(&tag("3")), &manifest("a"), None).unwrap();
        store.tag(&python, None, &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a 3"]);
        assert_eq!(store.entries().unwrap().len(), 1);
    }

    #[test]
    fn untag_can_keep_the_image_and_remove_image_removes_all_its_tags() {
        let (_dir, store) = new_store();
        let (python, other) = (name("python"), name("lab/python"));
        for text in ["3", "3.12"] {
            store.tag(&python, Some(&tag(text)), &manifest("a"), None).unwrap();
        }
        store.tag(&other, Some(&tag("3")), &manifest("a"), None).unwrap();
        let kept = Some(UntagResult { digest: digest("a"), removed: false });
        assert_eq!(store.untag(&python, &tag("3"), true).unwrap(), kept);
        assert_eq!(store.untag(&python, &tag("3"), true).unwrap(), None);
        assert_eq!(dump(&store), ["docker.io/library/python a 3.12", "lab/python a 3"]);
        assert_eq!(store.untag(&python, &tag("3.12"), true).unwrap(), kept);
        assert_eq!(dump(&store), ["docker.io/library/python a", "lab/python a 3"]);
        assert!(store.remove_image(&python, digest("a")).unwrap());
        assert!(!store.remove_image(&python, digest("a")).unwrap());
        assert_eq!(dump(&store), ["lab/python a 3"]);
    }

    #[test]
    fn untag_removes_the_image_that_has_the_tag_at_that_moment() {
        let (_dir, store) = new_store();
        let python = name("python");
        let untag = |text| store.untag(&python, &tag(text), false).unwrap();
        for text in ["3", "3.12"] {
            store.tag(&python, Some(&tag(text)), &manifest("a"), None).unwrap();
        }
        assert_eq!(untag("3"), Some(UntagResult { digest: digest("a"), removed: false }));
        // Another process moves the tag first. `untag` then removes the image that has it now.
        store.tag(&python, Some(&tag("3.12")), &manifest("b"), None).unwrap();
        assert_eq!(untag("3.12"), Some(UntagResult { digest: digest("b"), removed: true }));
        assert_eq!(dump(&store), ["docker.io/library/python a"]);
        assert_eq!(untag("3.12"), None);
    }

    #[test]
    fn multi_platform_index_of_a_manifest_is_recorded() {
        let (_dir, store) = new_store();
        let mut arm = manifest("a");
        arm.platform = Some(Platform::new("linux", "arm", Some("v7")));
        store.tag(&name("python"), Some(&tag("3")), &arm, Some(digest("b"))).unwrap();
        let refs = store.refs().unwrap();
        let image = refs.with_digest(&name("python"), digest("b")).unwrap();
        assert_eq!((image.digest, image.index), (digest("a"), Some(digest("b"))));
        assert_eq!(image.platform, arm.platform);
        assert_eq!(refs.with_digest(&name("python"), digest("c")), None);
    }

    #[test]
    fn descriptors_of_other_tools_are_listed_if_valid_and_always_kept() {
        let (_dir, store) = new_store();
        let d = |text: &str| Digest::of(text.as_bytes());
        let foreign = format!(
            r#"{{"schemaVersion":2,"x":{{"y":1}},"manifests":[
              {{"mediaType":"{m}","digest":"{a}","size":1,"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}},
              {{"mediaType":"{m}","digest":"{b}","size":1,"annotations":{{"org.opencontainers.image.ref.name":"lab/x:1","k":"v"}}}},
              {{"mediaType":"{m}","digest":"{c}","size":1,"platform":{{"os":"linux","architecture":"arm64"}},"urls":["u"]}},
              {{"mediaType":"{m}","digest":"sha512:00","size":1,"annotations":{{"org.opencontainers.image.ref.name":"Not A Name"}}}}]}}"#,
            m = media::OCI_MANIFEST,
            a = d("a"),
            b = d("b"),
            c = d("c"),
        );
        fs::write(store.index_json_path(), &foreign).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/latest a latest", "lab/x b 1"]);
        store.tag(&name("lab/x"), Some(&tag("1")), &manifest("c"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/latest a latest", "lab/x b", "lab/x c 1"]);
        let before: Value = serde_json::from_str(&foreign).unwrap();
        let after: Value = serde_json::from_slice(&fs::read(store.index_json_path()).unwrap()).unwrap();
        for kept in [0, 2, 3] {
            assert_eq!(before["manifests"][kept], after["manifests"][kept]);
        }
        assert_eq!(after["x"], before["x"]);
        assert_eq!(after["manifests"][1]["annotations"]["k"], "v");
    }

    #[test]
    fn malformed_reference_is_not_overwritten() {
        let (_dir, store) = new_store();
        store.tag(&name("python"), None, &manifest("a"), None).unwrap();
        let text = fs::read_to_string(store.index_json_path()).unwrap();
        let malformed = "\"annotations\":{\"org.opencontainers.image.ref.name\":\"Not A Name\",";
        fs::write(store.index_json_path(), text.replace("\"annotations\":{", malformed)).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a"]);
        store.tag(&name("python"), Some(&tag("3")), &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a 3"]);
        let names: Vec<_> = seen_by_others(&store).into_iter().map(|(_, name)| name.unwrap()).collect();
        assert_eq!(names, ["Not A Name", "docker.io/library/python:3"]);
    }

    #[test]
    fn short_and_canonical_form_of_a_reference_are_the_same_tag() {
        let (_dir, store) = new_store();
        let foreign = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":1,
              "annotations":{{"org.opencontainers.image.ref.name":"python:3"}}}}]}}"#,
            media::OCI_MANIFEST,
            digest("a"),
        );
        fs::write(store.index_json_path(), foreign).unwrap();
        store.tag(&name("python"), Some(&tag("3")), &manifest("b"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a", "docker.io/library/python b 3"]);
    }

    #[test]
    fn null_counts_as_an_empty_list_of_manifests() {
        let (_dir, store) = new_store();
        fs::write(store.index_json_path(), r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
        assert_eq!(dump(&store), [""; 0]);
        store.tag(&name("python"), None, &manifest("a"), None).unwrap();
        assert_eq!(dump(&store), ["docker.io/library/python a"]);
    }

    #[test]
    fn index_json_is_not_rewritten_if_nothing_changes() {
        use std::os::unix::fs::MetadataExt as _;
        let (_dir, store) = new_store();
        store.tag(&name("python"), Some(&tag("3")), &manifest("a"), None).unwrap();
        let inode = || fs::metadata(store.index_json_path()).unwrap().ino();
        let before = inode();
        store.tag(&name("python"), Some(&tag("3")), &manifest("a"), None).unwrap();
        store.untag(&name("python"), &tag("4"), true).unwrap();
        assert_eq!(inode(), before);
        store.untag(&name("python"), &tag("3"), true).unwrap();
        assert_ne!(inode(), before);
    }

    #[test]
    fn damaged_index_json_is_reported_with_the_line_and_not_overwritten() {
        let (_dir, store) = new_store();
        let damaged = "{\"schemaVersion\":2,\n\"manifests\":[{]}";
        fs::write(store.index_json_path(), damaged).unwrap();
        for error in [
            store.refs().unwrap_err(),
            store.tag(&name("python"), None, &manifest("a"), None).unwrap_err(),
            store.gc(false).unwrap_err(),
        ] {
            let StoreError::Json { path, source } = &error else { panic!("{error:?}") };
            assert_eq!((path, source.line()), (&store.index_json_path(), 2));
        }
        assert_eq!(fs::read_to_string(store.index_json_path()).unwrap(), damaged);
        fs::remove_file(store.index_json_path()).unwrap();
        assert!(store.refs().unwrap_err().to_string().contains("index.json"));
    }

    #[test]
    fn concurrent_writers_do_not_lose_tags() {
        let (_dir, store) = new_store();
        std::thread::scope(|scope| {
            for i in 0..16 {
                let store = Store::open(store.path()).unwrap();
                scope.spawn(move || {
                    store.tag(&name("python"), Some(&tag(&i.to_string())), &manifest("a"), None).unwrap()
                });
            }
        });
        assert_eq!(store.refs().unwrap().images[0].tags.len(), 16);
    }
}
