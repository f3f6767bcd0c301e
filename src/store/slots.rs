//! Slots: small numbers for layers and images, from which inode numbers are computed.
//!
//! A slot belongs to the same layer or image for as long as the file `slots` exists, even after `gc` has removed that image:
//! the kernel, and overlays on top of the mount, remember inode numbers for longer than any image is in the store.
//!
//! The file is text and only grows. After a header line it has one line per slot, `layer N DIGEST CRC` or
//! `image N DIGEST CRC`. CRC is the CRC-32 of the text before it; layers and images are each numbered from 1. A slot is used
//! only after its line is on disk. So a crash leaves at most an unfinished last line, whose number was never used; the next
//! writer removes that line. Any other malformed line is reported as damage.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::MutexGuard;

use rustix::fs::OFlags;

use super::Store;
use super::error::StoreError;
use super::layout::FILE_MODE;
use crate::image::{LayerDigest, ManifestDigest};
use crate::os::AtPath as _;

const SLOTS: &str = "slots";
const HEADER: &str = "rcx-imagefs slots 1";
const LAYER: &str = "layer";
const IMAGE: &str = "image";

/// The number of a layer or of an image. Layers and images are numbered separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// The largest slot; the smallest is 1. An inode number has 26 bits for a slot.
    pub const MAX: u32 = (1 << 26) - 1;

    /// Converts a number; `None` if it is out of range.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number > Self::MAX { None } else { Some(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The slots of all layers, or those of all images.
#[derive(Debug)]
struct SlotMap<D> {
    slots: HashMap<D, Slot>,
    /// Element `i` is the digest of slot `i + 1`.
    digests: Vec<D>,
}

impl<D> Default for SlotMap<D> {
    fn default() -> Self {
        Self { slots: HashMap::new(), digests: Vec::new() }
    }
}

impl<D: Copy + Eq + Hash + FromStr> SlotMap<D> {
    fn digest(&self, slot: Slot) -> Option<D> {
        self.digests.get(usize::try_from(slot.0).ok()?.checked_sub(1)?).copied()
    }

    /// The next free slot; `None` if all are in use.
    fn next(&self) -> Option<Slot> {
        Slot::new(u32::try_from(self.digests.len()).ok()?.checked_add(1)?)
    }

    fn insert(&mut self, slot: Slot, digest: D) {
        self.slots.insert(digest, slot);
        self.digests.push(digest);
    }

    /// Adds the number and the digest of one line.
    fn add_line(&mut self, number: &str, digest: &str) -> Result<(), &'static str> {
        let digest = digest.parse().map_err(|_| "the digest is malformed")?;
        let slot =
            self.next().filter(|slot| number.parse() == Ok(slot.0)).ok_or("the number is out of order")?;
        if self.slots.contains_key(&digest) {
            return Err("the digest already has a slot");
        }
        self.insert(slot, digest);
        Ok(())
    }
}

/// The content of the file read so far.
#[derive(Debug, Default)]
pub(super) struct SlotTable {
    /// Device and inode of the file. If they change, the file was deleted and created again.
    identity: Option<(u64, u64)>,
    /// Bytes read so far, up to the end of a line.
    read: u64,
    /// Lines read so far, including the header.
    lines: usize,
    layers: SlotMap<LayerDigest>,
    images: SlotMap<ManifestDigest>,
}

impl SlotTable {
    /// Reads the lines that were appended since the last call. Returns whether the last line is unfinished.
    fn refresh(&mut self, file: &mut File, path: &Path) -> Result<bool, StoreError> {
        let metadata = file.metadata().at("stat", path)?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if self.identity != identity || metadata.len() < self.read {
            *self = Self { identity, ..Self::default() };
        }
        let mut bytes = Vec::new();
        file.seek(io::SeekFrom::Start(self.read)).at("read", path)?;
        file.read_to_end(&mut bytes).at("read", path)?;
        let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        for line in bytes[..complete].split_inclusive(|&byte| byte == b'\n') {
            let text = std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| "it is not UTF-8");
            text.and_then(|text| self.add_line(text)).map_err(|reason| StoreError::Slots {
                path: path.to_owned(),
                line: self.lines + 1,
                reason: reason.to_owned(),
            })?;
            self.lines += 1;
            self.read += line.len() as u64;
        }
        Ok(complete < bytes.len())
    }

    fn add_line(&mut self, text: &str) -> Result<(), &'static str> {
        if self.lines == 0 {
            return if text == HEADER { Ok(()) } else { Err("the header is not that of a slots file") };
        }
        let (body, crc) = text.rsplit_once(' ').ok_or("it has too few fields")?;
        if crc != checksum(body) {
            return Err("the checksum does not match");
        }
        let mut words = body.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(LAYER), Some(number), Some(digest), None) => self.layers.add_line(number, digest),
            (Some(IMAGE), Some(number), Some(digest), None) => self.images.add_line(number, digest),
            _ => Err("it is neither a layer line nor an image line"),
        }
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

impl Store {
    /// The slot of a layer. Assigns one, and syncs it to disk, if the layer has none yet.
    pub fn layer_slot(&self, layer: &LayerDigest) -> Result<Slot, StoreError> {
        self.slot(LAYER, layer, |table| &mut table.layers)
    }

    /// The slot of an image, by its manifest: all names of the image share it. Assigns one if it has none yet.
    pub fn image_slot(&self, image: &ManifestDigest) -> Result<Slot, StoreError> {
        self.slot(IMAGE, image, |table| &mut table.images)
    }

    /// The layer that has this slot.
    pub fn layer_of(&self, slot: Slot) -> Result<Option<LayerDigest>, StoreError> {
        self.digest_of(slot, |table| &table.layers)
    }

    /// The image that has this slot.
    pub fn image_of(&self, slot: Slot) -> Result<Option<ManifestDigest>, StoreError> {
        self.digest_of(slot, |table| &table.images)
    }

    fn digest_of<D: Copy + Eq + Hash + FromStr>(
        &self,
        slot: Slot,
        map: impl Fn(&SlotTable) -> &SlotMap<D>,
    ) -> Result<Option<D>, StoreError> {
        let mut table = self.table();
        if let Some(digest) = map(&table).digest(slot) {
            return Ok(Some(digest));
        }
        // Another process may have assigned the slot.
        let Some(top) = self.top()? else { return Ok(None) };
        let Some(mut file) = top.file(SLOTS)? else { return Ok(None) };
        table.refresh(&mut file, &top.path_of(SLOTS))?;
        Ok(map(&table).digest(slot))
    }

    fn slot<D: Copy + Eq + Hash + FromStr + std::fmt::Display>(
        &self,
        kind: &str,
        digest: &D,
        map: impl Fn(&mut SlotTable) -> &mut SlotMap<D>,
    ) -> Result<Slot, StoreError> {
        let mut table = self.table();
        if let Some(&slot) = map(&mut table).slots.get(digest) {
            return Ok(slot);
        }
        let _lock = self.lock_for_update(SLOTS)?;
        let (mut file, path) = self.slots_file(&mut table)?;
        if let Some(&slot) = map(&mut table).slots.get(digest) {
            return Ok(slot);
        }
        let Some(slot) = map(&mut table).next() else {
            return Err(StoreError::SlotsExhausted { path, limit: Slot::MAX });
        };
        let body = format!("{kind} {} {digest}", slot.0);
        append(&mut file, &path, &mut table, &format!("{body} {}\n", checksum(&body)))?;
        map(&mut table).insert(slot, *digest);
        Ok(slot)
    }

    /// Opens the file for appending, brings `table` up to date and removes an unfinished last line.
    ///
    /// The caller must hold the file's lock.
    fn slots_file(&self, table: &mut SlotTable) -> Result<(File, PathBuf), StoreError> {
        let top = self.make_top()?;
        let path = top.path_of(SLOTS);
        let mut file = top.file_with(SLOTS, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND, FILE_MODE)?;
        if table.refresh(&mut file, &path)? {
            tracing::warn!("removing the unfinished last line of {}", path.display());
            file.set_len(table.read).at("truncate", &path)?;
        }
        if table.lines == 0 {
            append(&mut file, &path, table, &format!("{HEADER}\n"))?;
            top.sync()?;
        }
        Ok((file, path))
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        // A panic may have left the table half updated, so read the file again from the start.
        self.shared.slots.lock().unwrap_or_else(|poisoned| {
            let mut table = poisoned.into_inner();
            *table = SlotTable::default();
            table
        })
    }
}

/// Appends a line and syncs it to disk.
fn append(file: &mut File, path: &Path, table: &mut SlotTable, line: &str) -> Result<(), StoreError> {
    file.write_all(line.as_bytes()).at("write", path)?;
    file.sync_data().at("sync", path)?;
    table.read += line.len() as u64;
    table.lines += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::Digest;
    use crate::store::tests::new_store;

    fn layer(text: &str) -> LayerDigest {
        LayerDigest::new(Digest::of(text.as_bytes()))
    }

    fn image(text: &str) -> ManifestDigest {
        ManifestDigest::new(Digest::of(text.as_bytes()))
    }

    /// Opens the same store with its own table, as another process does.
    fn other_process(store: &Store) -> Store {
        Store::open(store.path()).unwrap()
    }

    fn path(store: &Store) -> PathBuf {
        store.path().join("rcx-imagefs").join(SLOTS)
    }

    #[test]
    fn slots_are_the_same_in_every_process_and_after_a_restart() {
        let (_dir, store) = new_store();
        let other = other_process(&store);
        let a = store.layer_slot(&layer("a")).unwrap();
        let b = other.layer_slot(&layer("b")).unwrap();
        assert_eq!((a.get(), b.get()), (1, 2));
        assert_eq!(store.image_slot(&image("a")).unwrap().get(), 1);
        assert_eq!(other.layer_slot(&layer("a")).unwrap(), a);
        assert_eq!(store.layer_of(b).unwrap(), Some(layer("b")));
        let restarted = other_process(&store);
        assert_eq!(restarted.layer_of(a).unwrap(), Some(layer("a")));
        assert_eq!(restarted.image_of(a).unwrap(), Some(image("a")));
        assert_eq!(restarted.layer_slot(&layer("b")).unwrap(), b);
        assert_eq!(restarted.layer_of(Slot::new(3).unwrap()).unwrap(), None);
    }

    #[test]
    fn concurrent_threads_and_processes_never_assign_a_slot_twice() {
        let (_dir, store) = new_store();
        let stores = [store.clone(), other_process(&store), other_process(&store)];
        let slots: Vec<Vec<Slot>> = std::thread::scope(|scope| {
            let work = |store: Store, start: usize| {
                move || {
                    let name = |i: usize| layer(&format!("{}", (i + start) % 20));
                    (0..20).map(|i| (name(i), store.layer_slot(&name(i)).unwrap())).collect::<HashMap<_, _>>()
                }
            };
            let threads: Vec<_> = (0..6).map(|t| scope.spawn(work(stores[t % 3].clone(), t * 3))).collect();
            let maps: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            maps.iter().map(|map| (0..20).map(|i| map[&layer(&i.to_string())]).collect()).collect()
        });
        assert!(slots.iter().all(|thread_slots| *thread_slots == slots[0]));
        let mut numbers: Vec<u32> = slots[0].iter().map(|slot| slot.get()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn line_cut_short_by_a_crash_is_repaired_at_every_length() {
        let (_dir, store) = new_store();
        let a = store.layer_slot(&layer("a")).unwrap();
        let first_line = fs::read(path(&store)).unwrap();
        store.layer_slot(&layer("b")).unwrap();
        let both_lines = fs::read(path(&store)).unwrap();
        for cut in 0..both_lines.len() {
            fs::write(path(&store), &both_lines[..cut]).unwrap();
            let store = other_process(&store);
            let c = store.layer_slot(&layer("c")).unwrap();
            let kept = cut >= first_line.len();
            assert_eq!(c.get(), if kept { 2 } else { 1 }, "cut at {cut}");
            assert_eq!(store.layer_of(a).unwrap(), Some(layer(if kept { "a" } else { "c" })));
            let again = other_process(&store);
            assert_eq!(again.layer_of(c).unwrap(), Some(layer("c")), "cut at {cut}");
        }
        // The file's new size may reach the disk before its content: zeros without a newline.
        fs::write(path(&store), [&first_line[..], &[0; 50]].concat()).unwrap();
        assert_eq!(other_process(&store).layer_slot(&layer("c")).unwrap().get(), 2);
    }

    #[test]
    fn flipped_bit_is_an_error_that_names_the_line() {
        let (_dir, store) = new_store();
        store.layer_slot(&layer("a")).unwrap();
        store.image_slot(&image("b")).unwrap();
        let good = fs::read(path(&store)).unwrap();
        // Except the last newline: without it, the last line looks unfinished.
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(path(&store), &bad).unwrap();
            let line = good[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
            match other_process(&store).layer_slot(&layer("c")) {
                Err(error @ StoreError::Slots { line: named, .. }) => {
                    assert_eq!(named, line, "byte {at}");
                    assert!(error.hint().is_some());
                }
                other => panic!("byte {at}: {other:?}"),
            }
            assert_eq!(fs::read(path(&store)).unwrap(), bad);
        }
    }

    #[test]
    fn numbering_restarts_after_the_file_is_deleted() {
        let (_dir, store) = new_store();
        store.layer_slot(&layer("a")).unwrap();
        fs::remove_file(path(&store)).unwrap();
        let store = other_process(&store);
        assert_eq!(store.layer_of(Slot::new(1).unwrap()).unwrap(), None);
        assert_eq!(store.layer_slot(&layer("b")).unwrap().get(), 1);
    }

    #[test]
    fn slots_fit_into_26_bits() {
        assert_eq!(Slot::new(0), None);
        assert_eq!(Slot::new(1 << 26), None);
        assert_eq!(Slot::new(Slot::MAX).unwrap().get(), (1 << 26) - 1);
    }
}
