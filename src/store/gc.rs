//! Removes files that no image refers to: marks from `index.json`, then sweeps.
//!
//! A pull stores blobs before anything refers to them. It holds a [`GcLease`](super::GcLease) from its first blob until its
//! image is in `index.json`. `gc` waits until no lease is held and prevents new ones, so it misses no reference. It also
//! skips blobs whose lock is held. Other tools take no lease: do not run `gc` while one copies an image into the store.
//!
//! A daemon can still read the files that it has open. Slots are never freed.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::derived::{INDEX_SUFFIX, SEEKABLE_SUFFIX, TRACE_SUFFIX, TREE_SUFFIX};
use super::dir::{self, Dir};
use super::error::StoreError;
use super::layout::Subdir;
use super::mark::MarkedFiles;
use super::plain::PLAIN_SUFFIX;
use super::{ImageRecord, Store};
use crate::image::{Digest, LayerDigest, ManifestDigest, Name};
use crate::os::AtPath as _;

/// How long `gc` waits for running pulls and loads.
const LEASE_WAIT: Duration = Duration::from_secs(10);
/// How long an interrupted download is kept, so that it can be resumed.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The files that `gc` removed, or would remove in a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Blobs that no image refers to.
    pub blobs: u64,
    /// Indexes and seekable forms of layers that no image refers to, and tree images and traces that no image has.
    pub derived: u64,
    /// Plain layers that no image has, or with the option all that are not in use.
    pub plain: u64,
    /// Total size of these plain layers on the disk in bytes.
    pub plain_bytes: u64,
    /// Downloads that were interrupted more than a day ago, or whose blob is in the store.
    pub partials: u64,
    /// Temporary files of dead processes.
    pub temporary: u64,
    /// Total size of all these files in bytes.
    pub bytes: u64,
    /// Interrupted downloads that were kept, because the next pull resumes them or a running one uses them.
    pub kept_partials: u64,
    /// Total size of the kept downloads in bytes.
    pub kept_bytes: u64,
    /// Images that were removed because the caller asked to forget them.
    pub forgotten: Vec<(Name, ManifestDigest)>,
    /// Manifests of images that are not in the store. The blobs they refer to are unknown and were not kept.
    pub missing: Vec<Digest>,
}

/// What [`Store::collect`] does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Only counts the files.
    pub dry_run: bool,
    /// Also removes downloads that were interrupted less than a day ago.
    pub all_partials: bool,
    /// Also removes the plain layers of images that stay, unless they are in use.
    pub all_plain: bool,
}

impl Store {
    /// Removes blobs and derived files that no image refers to, and leftover temporary files. With `dry_run`, only counts them.
    ///
    /// Fails with [`StoreError::Busy`] if a pull or a load is still running after ten seconds. Removes nothing if a
    /// stored manifest cannot be read, because the blobs that it refers to are then unknown.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport, StoreError> {
        self.collect(GcOptions { dry_run, ..GcOptions::default() }, |_| false)
    }

    /// The same with all options. First removes the images for which `forget` returns true.
    pub fn collect(
        &self,
        options: GcOptions,
        forget: impl Fn(&ImageRecord) -> bool,
    ) -> Result<GcReport, StoreError> {
        let GcOptions { dry_run, all_partials, all_plain } = options;
        let _exclusion = self.exclude_leases(LEASE_WAIT)?;
        let mut report = GcReport::default();
        // Under the exclusion, so that no image gets a tag between the decision and the removal.
        let forgotten = self.refs()?.images.into_iter().filter(&forget);
        report.forgotten = forgotten.map(|image| (image.name, image.digest)).collect();
        if !dry_run {
            for (name, digest) in &report.forgotten {
                self.remove_image(name, *digest)?;
            }
        }
        let marked = self.mark(&report.forgotten, &mut report.missing)?;
        let mut sweep = GcSweep { store: self, marked: &marked, dry_run, report };
        // Before `blobs`: a partial download is obsolete if its blob is in the store.
        sweep.partials(all_partials)?;
        sweep.blobs()?;
        let is_marked =
            |layer: &str| Digest::from_hex(layer).is_none_or(|layer| marked.blobs.contains(&layer));
        sweep.derived(Subdir::Indexes, INDEX_SUFFIX, is_marked)?;
        sweep.derived(Subdir::Seekable, SEEKABLE_SUFFIX, is_marked)?;
        sweep.derived(Subdir::Trees, TREE_SUFFIX, |key| marked.trees.contains(key))?;
        sweep.derived(Subdir::Traces, TRACE_SUFFIX, |key| marked.trees.contains(key))?;
        sweep.plain(all_plain)?;
        sweep.locks()?;
        let mut report = sweep.report;
        if let Some(tmp) = self.subdir(Subdir::Tmp)? {
            let (files, bytes) = dir::sweep(&tmp, dry_run)?;
            report.temporary += files;
            report.bytes += bytes;
        }
        Ok(report)
    }
}

/// Removes everything that is not marked.
struct GcSweep<'a> {
    store: &'a Store,
    marked: &'a MarkedFiles,
    dry_run: bool,
    report: GcReport,
}

impl GcSweep<'_> {
    fn blobs(&mut self) -> Result<(), StoreError> {
        let Some(blobs) = self.store.blobs()? else { return Ok(()) };
        for name in blobs.names()? {
            let Some(digest) = Digest::from_hex(&name).filter(|digest| !self.marked.blobs.contains(digest))
            else {
                continue;
            };
            let Some(_lock) = self.store.try_lock_blob(&digest)? else { continue };
            self.report.blobs += self.remove(&blobs, &name)?;
        }
        self.finish(&blobs)
    }

    /// Removes derived files. `is_marked` is called with each name without its suffix.
    fn derived(
        &mut self,
        subdir: Subdir,
        suffix: &str,
        is_marked: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let Some(dir) = self.store.subdir(subdir)? else { return Ok(()) };
        for name in dir.names()? {
            if name.strip_suffix(suffix).is_some_and(|name| !is_marked(name)) {
                self.report.derived += self.remove(&dir, &name)?;
            }
        }
        self.finish(&dir)
    }

    /// Removes plain layers: those of layers without an image, or with `all` every one. Keeps those in use.
    fn plain(&mut self, all: bool) -> Result<(), StoreError> {
        for layer in self.store.plain_sizes()?.into_keys() {
            if !all && self.marked.blobs.contains(&layer) {
                continue;
            }
            if let Some(bytes) = self.store.remove_idle_plain(&LayerDigest::new(layer), self.dry_run)? {
                self.report.plain += 1;
                self.report.plain_bytes += bytes;
                self.report.bytes += bytes;
            }
        }
        Ok(())
    }

    /// Removes interrupted downloads: those that are old or whose blob is in the store, or with `all` every one that no
    /// process is writing.
    fn partials(&mut self, all: bool) -> Result<(), StoreError> {
        let Some(dir) = self.store.subdir(Subdir::Partial)? else { return Ok(()) };
        for name in dir.names()? {
            let Some(digest) = Digest::from_hex(&name) else { continue };
            let Some(file) = dir.file(&name)? else { continue };
            let lock = match all || partial_is_due(self.store, &dir, &digest)? {
                true => self.store.try_lock_blob(&digest)?,
                false => None,
            };
            if lock.is_none() {
                self.report.kept_partials += 1;
                self.report.kept_bytes += file.metadata().at("stat", &dir.path_of(&name))?.len();
                continue;
            }
            self.report.partials += self.remove(&dir, &name)?;
        }
        self.finish(&dir)
    }

    /// Removes lock files of dead processes, by taking and releasing each lock.
    fn locks(&mut self) -> Result<(), StoreError> {
        let Some(dir) = self.store.subdir(Subdir::Locks)? else { return Ok(()) };
        for name in dir.names()? {
            if let Some(digest) = Digest::from_hex(&name) {
                drop(self.store.try_lock_blob(&digest)?);
            } else if let Some(layer) = name.strip_suffix(PLAIN_SUFFIX).and_then(Digest::from_hex) {
                drop(self.store.lock_plain(&LayerDigest::new(layer), Duration::ZERO)?);
            }
        }
        Ok(())
    }

    /// Removes a file and counts its bytes; returns the number of removed files, 0 or 1.
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

/// Whether `gc` removes an interrupted download without being asked: it is old, or its blob is in the store.
pub(super) fn partial_is_due(store: &Store, dir: &Dir, digest: &Digest) -> Result<bool, StoreError> {
    let name = digest.hex();
    let Some(file) = dir.file(&name)? else { return Ok(false) };
    let modified =
        file.metadata().and_then(|metadata| metadata.modified()).at("stat", &dir.path_of(&name))?;
    // A time in the future counts as now.
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    Ok(age >= PARTIAL_AGE_MAX || matches!(store.has_blob(digest, None), Ok(true)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::image::{Descriptor, media};
    use crate::store::tests::new_store;

    fn put(store: &Store, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        store.put_small(&digest, bytes).unwrap();
        digest
    }

    /// Stores an image of one layer with its derived files; returns manifest, config and layer.
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
        Name::from_archive("python").unwrap()
    }

    #[test]
    fn only_files_that_no_image_refers_to_are_removed() {
        let (_dir, store) = new_store();
        let (kept, kept_config, kept_layer) = put_image(&store, "kept");
        let (removed, removed_config, removed_layer) = put_image(&store, "removed");
        let index = put(&store, br#"{"manifests":[]}"#);
        store.tag(&name(), None, &kept, Some(ManifestDigest::new(index))).unwrap();
        store.tag(&name(), None, &removed, None).unwrap();
        let nothing = GcReport::default();
        assert_eq!(store.gc(false).unwrap(), nothing);

        store.remove_image(&name(), ManifestDigest::from(&removed)).unwrap();
        let expected =
            GcReport { blobs: 3, derived: 2, bytes: store.gc(true).unwrap().bytes, ..nothing.clone() };
        assert!(expected.bytes > removed.size);
        assert_eq!(store.gc(true).unwrap(), expected);
        assert!(store.has_blob(&removed.digest, None).unwrap());
        assert_eq!(store.gc(false).unwrap(), expected);
        for blob in [removed.digest, removed_config, removed_layer.digest()] {
            assert!(!store.has_blob(&blob, None).unwrap());
        }
        assert!(store.index_file(&removed_layer).unwrap().is_none());
        assert!(store.seekable_file(&removed_layer).unwrap().is_none());
        for blob in [kept.digest, kept_config, kept_layer.digest(), index] {
            assert!(store.has_blob(&blob, None).unwrap());
        }
        assert!(store.index_file(&kept_layer).unwrap().is_some());
        assert_eq!(store.gc(false).unwrap(), nothing);
    }

    #[test]
    fn manifests_of_an_index_that_another_tool_added_are_kept() {
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
    fn lease_protects_blobs_that_no_image_refers_to_yet() {
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
    fn damaged_manifest_stops_gc_and_missing_one_is_reported() {
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
    fn only_old_or_finished_partials_without_a_lock_are_removed() {
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
        let (old, lock) = partial("old", 2 * PARTIAL_AGE_MAX);
        drop(lock);
        let (locked, _lock) = partial("locked", 2 * PARTIAL_AGE_MAX);
        let (finished, lock) = partial("finished", Duration::ZERO);
        drop(lock);
        put(&store, b"finished");
        let report = store.gc(false).unwrap();
        assert_eq!((report.partials, report.blobs), (2, 1));
        assert_eq!([&fresh, &old, &locked, &finished].map(|path| path.exists()), [true, false, true, false]);
    }

    #[test]
    fn lock_files_and_temporary_files_of_dead_processes_are_removed() {
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
    fn foreign_files_are_not_removed() {
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
