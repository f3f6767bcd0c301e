//! Frees what no image refers to: mark from `index.json`, then sweep.
//!
//! A pull puts blobs before anything refers to them. It holds a [`Lease`](super::Lease) from the first until its image is
//! entered, and gc starts only when nobody holds one and lets none start: so what it marks is all there is. Locks of single
//! blobs are respected besides. Other tools know no leases: copying into the store with them and gc exclude each other.
//!
//! Files that a daemon has open stay readable for it. Slots are never freed.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Store;
use super::derived::{INDEX_SUFFIX, SEEKABLE_SUFFIX};
use super::dir::{self, Dir};
use super::error::{At as _, StoreError};
use super::layout::Derived;
use crate::image::{Digest, MANIFEST_MAX};

/// How long gc waits for pulls and loads that run.
const WAIT: Duration = Duration::from_secs(10);
/// An interrupted download is kept for this long, to be resumed.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What gc removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Blobs that no image refers to.
    pub blobs: u64,
    /// Indexes and seekable forms of layers that no image refers to.
    pub derived: u64,
    /// Downloads interrupted more than a day ago, or finished by other means.
    pub partials: u64,
    /// Files that dead processes were writing.
    pub temporary: u64,
    /// Bytes of all these.
    pub bytes: u64,
    /// Manifests that images refer to and that are not there: what they refer to is not known, and was not kept.
    pub missing: Vec<Digest>,
}

/// Whatever in a manifest or an index can refer to a blob.
#[derive(Deserialize)]
struct Links {
    config: Option<Link>,
    layers: Option<Vec<Link>>,
    manifests: Option<Vec<Link>>,
    blobs: Option<Vec<Link>>,
    subject: Option<Link>,
}

#[derive(Deserialize)]
struct Link {
    digest: String,
    #[serde(rename = "mediaType", default)]
    media_type: String,
}

impl Store {
    /// Removes blobs, derived files and leftovers that nothing refers to; with `dry_run` only counts them.
    ///
    /// [`StoreError::Busy`] where a pull or a load does not end within ten seconds. Removes nothing when a manifest that
    /// is there cannot be read, since what it refers to would be lost.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport, StoreError> {
        let _no_leases = self.no_leases(WAIT)?;
        let mut report = GcReport::default();
        let marked = self.mark(&mut report.missing)?;
        let mut sweep = Sweep { store: self, marked: &marked, dry_run, report };
        // First, since whether a download was finished by other means is seen from the blob.
        sweep.partials()?;
        sweep.blobs()?;
        sweep.derived(Derived::Indexes, INDEX_SUFFIX)?;
        sweep.derived(Derived::Seekable, SEEKABLE_SUFFIX)?;
        sweep.locks()?;
        let mut report = sweep.report;
        if let Some(tmp) = self.existing(Derived::Tmp)? {
            let (files, bytes) = dir::sweep(&tmp, dry_run)?;
            report.temporary += files;
            report.bytes += bytes;
        }
        Ok(report)
    }

    /// All blobs that the descriptors of `index.json` lead to.
    fn mark(&self, missing: &mut Vec<Digest>) -> Result<HashSet<Digest>, StoreError> {
        let mut marked = HashSet::new();
        // With each digest: whether it is an image's own, which ought to be there.
        let mut open: Vec<(Link, bool)> = Vec::new();
        for entry in self.entries()? {
            // Kept as a document. It does not lead on: of its platforms only the chosen one is in the store.
            marked.extend(entry.index().map(|index| index.digest()));
            open.push((Link { digest: entry.digest, media_type: entry.media_type }, true));
        }
        let mut read = HashSet::new();
        while let Some((link, own)) = open.pop() {
            let Ok(digest) = link.digest.parse::<Digest>() else { continue };
            marked.insert(digest);
            // An artifact of another type may be anything; without a type it is not of this kind.
            let document = link.media_type.is_empty() || link.media_type.ends_with("json");
            if !document || !read.insert(digest) {
                continue;
            }
            let bytes = match self.read_small(&digest, MANIFEST_MAX) {
                Ok(bytes) => bytes,
                Err(StoreError::NoBlob { .. }) => {
                    missing.extend(own.then_some(digest));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let path = self.blob_path(&digest);
            let links: Links =
                serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path, source })?;
            let lists = [links.layers, links.blobs].into_iter().flatten().flatten();
            let blobs = links.config.into_iter().chain(lists);
            marked.extend(blobs.filter_map(|link| link.digest.parse::<Digest>().ok()));
            open.extend(links.manifests.into_iter().flatten().chain(links.subject).map(|link| (link, false)));
        }
        Ok(marked)
    }
}

/// The second half of a collection.
struct Sweep<'a> {
    store: &'a Store,
    marked: &'a HashSet<Digest>,
    dry_run: bool,
    report: GcReport,
}

impl Sweep<'_> {
    fn blobs(&mut self) -> Result<(), StoreError> {
        let Some(blobs) = self.store.blobs()? else { return Ok(()) };
        for name in blobs.names()? {
            let Some(digest) = digest_of(&name).filter(|digest| !self.marked.contains(digest)) else {
                continue;
            };
            let Some(_lock) = self.store.try_lock_blob(&digest)? else { continue };
            self.report.blobs += self.remove(&blobs, &name)?;
        }
        self.finish(&blobs)
    }

    fn derived(&mut self, derived: Derived, suffix: &str) -> Result<(), StoreError> {
        let Some(dir) = self.store.existing(derived)? else { return Ok(()) };
        for name in dir.names()? {
            let Some(layer) = name.strip_suffix(suffix).and_then(digest_of) else { continue };
            if !self.marked.contains(&layer) {
                self.report.derived += self.remove(&dir, &name)?;
            }
        }
        self.finish(&dir)
    }

    fn partials(&mut self) -> Result<(), StoreError> {
        let Some(dir) = self.store.existing(Derived::Partial)? else { return Ok(()) };
        for name in dir.names()? {
            let Some(digest) = digest_of(&name) else { continue };
            let Some(file) = dir.file(&name)? else { continue };
            let modified =
                file.metadata().and_then(|metadata| metadata.modified()).at("stat", &dir.path_of(&name))?;
            // A time in the future counts as now.
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            if age < PARTIAL_KEPT && !matches!(self.store.has_blob(&digest, None), Ok(true)) {
                continue;
            }
            let Some(_lock) = self.store.try_lock_blob(&digest)? else { continue };
            self.report.partials += self.remove(&dir, &name)?;
        }
        self.finish(&dir)
    }

    /// Removes lock files of processes that died: taking a lock and letting it go does that.
    fn locks(&mut self) -> Result<(), StoreError> {
        let Some(dir) = self.store.existing(Derived::Locks)? else { return Ok(()) };
        for digest in dir.names()?.iter().filter_map(|name| digest_of(name)) {
            drop(self.store.try_lock_blob(&digest)?);
        }
        Ok(())
    }

    /// Removes a file and counts its bytes; returns how many files that were.
    fn remove(&mut self, dir: &Dir, name: &str) -> Result<u64, StoreError> {
        let Some(stat) = dir.stat(name)? else { return Ok(0) };
        if !self.dry_run && !dir.remove(name)? {
            return Ok(0);
        }
        self.report.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        Ok(1)
    }

    fn finish(&self, dir: &Dir) -> Result<(), StoreError> {
        if self.dry_run { Ok(()) } else { dir.sync() }
    }
}

/// Reads a file name of 64 hex digits.
fn digest_of(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::image::{Descriptor, LayerDigest, ManifestDigest, Name, media};
    use crate::store::tests::new_store;

    fn put(store: &Store, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        store.put_small(&digest, bytes).unwrap();
        digest
    }

    /// Puts an image of one layer, with its index file, and returns manifest, config and layer.
    fn put_image(store: &Store, text: &str) -> (Descriptor, Digest, LayerDigest) {
        let config = put(store, format!("config of {text}").as_bytes());
        let layer = put(store, format!("layer of {text}").as_bytes());
        store.put_index(&LayerDigest::new(layer), b"index").unwrap();
        store.create_seekable(&LayerDigest::new(layer)).unwrap().commit().unwrap();
        let bytes = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{config}"}},"layers":[{{"mediaType":"l","digest":"{layer}"}}]}}"#
        );
        let manifest = put(store, bytes.as_bytes());
        (Descriptor::new(media::OCI_MANIFEST, manifest, bytes.len() as u64), config, LayerDigest::new(layer))
    }

    fn name() -> Name {
        Name::given("python").unwrap()
    }

    #[test]
    fn what_images_refer_to_stays_and_all_else_goes() {
        let (_dir, store) = new_store();
        let (kept, kept_config, kept_layer) = put_image(&store, "kept");
        let (gone, gone_config, gone_layer) = put_image(&store, "gone");
        let index = put(&store, br#"{"manifests":[]}"#);
        store.tag(&name(), None, &kept, Some(ManifestDigest::new(index))).unwrap();
        store.tag(&name(), None, &gone, None).unwrap();
        let nothing = GcReport::default();
        assert_eq!(store.gc(false).unwrap(), nothing);

        store.remove_image(&name(), ManifestDigest::from(&gone)).unwrap();
        let wanted =
            GcReport { blobs: 3, derived: 2, bytes: store.gc(true).unwrap().bytes, ..nothing.clone() };
        assert!(wanted.bytes > gone.size);
        assert_eq!(store.gc(true).unwrap(), wanted);
        assert!(store.has_blob(&gone.digest, None).unwrap());
        assert_eq!(store.gc(false).unwrap(), wanted);
        for blob in [gone.digest, gone_config, gone_layer.digest()] {
            assert!(!store.has_blob(&blob, None).unwrap());
        }
        assert!(store.index_file(&gone_layer).unwrap().is_none());
        assert!(store.seekable_file(&gone_layer).unwrap().is_none());
        for blob in [kept.digest, kept_config, kept_layer.digest(), index] {
            assert!(store.has_blob(&blob, None).unwrap());
        }
        assert!(store.index_file(&kept_layer).unwrap().is_some());
        assert_eq!(store.gc(false).unwrap(), nothing);
    }

    #[test]
    fn manifests_behind_an_index_that_another_tool_entered_are_followed() {
        let (_dir, store) = new_store();
        let (manifest, config, _) = put_image(&store, "kept");
        let absent = Digest::of(b"another platform");
        let bytes = format!(
            r#"{{"manifests":[{{"mediaType":"{}","digest":"{}"}},{{"mediaType":"{}","digest":"{absent}"}}]}}"#,
            media::OCI_MANIFEST,
            manifest.digest,
            media::OCI_MANIFEST,
        );
        let index = put(&store, bytes.as_bytes());
        let index = Descriptor::new(media::OCI_INDEX, index, bytes.len() as u64);
        store.tag(&name(), None, &index, None).unwrap();
        assert_eq!(store.gc(false).unwrap(), GcReport::default());
        assert!(store.has_blob(&config, None).unwrap());
    }

    #[test]
    fn a_lease_keeps_what_was_put_and_not_yet_entered() {
        let (_dir, store) = new_store();
        let lease = store.lease(None).unwrap();
        let (manifest, _, layer) = put_image(&store, "new");
        std::thread::scope(|scope| {
            let gc = scope.spawn(|| store.gc(false).unwrap());
            store.tag(&name(), None, &manifest, None).unwrap();
            drop(lease);
            assert_eq!(gc.join().unwrap(), GcReport::default());
        });
        assert!(store.has_blob(&layer.digest(), None).unwrap());
    }

    #[test]
    fn a_damaged_manifest_stops_gc_and_a_missing_one_is_reported() {
        let (_dir, store) = new_store();
        let (manifest, _, layer) = put_image(&store, "kept");
        store.tag(&name(), None, &manifest, None).unwrap();
        fs::write(store.blob_path(&manifest.digest), "{}").unwrap();
        assert!(matches!(store.gc(false), Err(StoreError::Damaged { .. })));
        assert!(store.has_blob(&layer.digest(), None).unwrap());
        fs::remove_file(store.blob_path(&manifest.digest)).unwrap();
        assert_eq!(store.gc(false).unwrap().missing, [manifest.digest]);
    }

    #[test]
    fn fresh_and_locked_partials_stay_and_old_or_finished_ones_go() {
        let (_dir, store) = new_store();
        let partial = |text: &str, age: Duration| {
            let digest = Digest::of(text.as_bytes());
            let lock = store.lock_blob(&digest, None).unwrap();
            store.partial(&lock).unwrap().write_all(b"part").unwrap();
            let path = store.path().join("rcx-imagefs/partial").join(digest.hex());
            fs::File::open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            (path, lock)
        };
        let (fresh, lock) = partial("fresh", Duration::ZERO);
        drop(lock);
        let (old, lock) = partial("old", 2 * PARTIAL_KEPT);
        drop(lock);
        let (locked, _lock) = partial("locked", 2 * PARTIAL_KEPT);
        let (finished, lock) = partial("finished", Duration::ZERO);
        drop(lock);
        put(&store, b"finished");
        let report = store.gc(false).unwrap();
        assert_eq!((report.partials, report.blobs), (2, 1));
        assert_eq!([&fresh, &old, &locked, &finished].map(|path| path.exists()), [true, false, true, false]);
    }

    #[test]
    fn lock_files_and_temporary_files_of_the_dead_are_removed() {
        let (_dir, store) = new_store();
        let top = store.path().join("rcx-imagefs");
        drop(store.lease(None).unwrap());
        let lock = top.join("locks").join(Digest::of(b"x").hex());
        fs::write(&lock, "").unwrap();
        fs::write(top.join("tmp/1-0-x.idx"), "half").unwrap();
        let report = store.gc(false).unwrap();
        assert_eq!((report.temporary, report.bytes), (1, 4));
        assert!(!lock.exists());
    }

    #[test]
    fn files_that_are_not_the_stores_are_left_alone() {
        let (_dir, store) = new_store();
        put(&store, b"garbage");
        let readme = store.path().join("blobs/sha256/README");
        fs::write(&readme, "").unwrap();
        let other = store.path().join("blobs/sha512/00");
        fs::create_dir(other.parent().unwrap()).unwrap();
        fs::write(&other, "").unwrap();
        assert_eq!(store.gc(false).unwrap().blobs, 1);
        assert!(readme.exists() && other.exists());
    }
}
