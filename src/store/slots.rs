//! Slots: small numbers for layers and images, of which inode numbers are made.
//!
//! A number once given out stands for the same layer or image for as long as the file `slots` lives, gc or not: the kernel,
//! and overlays above the mount, remember inode numbers for longer than any image is in the store.
//!
//! The file is text and only grows: a heading, then one line per number, `layer N DIGEST CRC` or `image N DIGEST CRC`, where
//! CRC is the CRC-32 of what stands before it and numbers of each kind count from 1. A number is used only when its line
//! is on disk. So a crash can leave at most a line without its newline at the end, of which nobody has seen the number; the
//! next writer cuts it off. Anything else that does not read is damage, and is told.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::OFlags;

use super::Store;
use super::error::{At as _, StoreError};
use super::layout::FILE_MODE;
use crate::image::{LayerDigest, ManifestDigest};

const SLOTS: &str = "slots";
const HEADING: &str = "rcx-imagefs slots 1";
const LAYER: &str = "layer";
const IMAGE: &str = "image";

/// A number that stands for a layer, or for an image; the two kinds are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Slots are 1 to this: an inode number has 26 bits for one.
    pub const MAX: u32 = (1 << 26) - 1;

    /// Reads a number that was a slot's; `None` outside the range.
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

/// The slots of one kind.
#[derive(Debug)]
struct Kind<D> {
    numbers: HashMap<D, Slot>,
    /// What slot `i + 1` stands for.
    digests: Vec<D>,
}

impl<D> Default for Kind<D> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), digests: Vec::new() }
    }
}

impl<D: Copy + Eq + Hash + FromStr> Kind<D> {
    fn of(&self, slot: Slot) -> Option<D> {
        self.digests.get(usize::try_from(slot.0).ok()?.checked_sub(1)?).copied()
    }

    /// The next number; `None` when all are given out.
    fn next(&self) -> Option<Slot> {
        Slot::new(u32::try_from(self.digests.len()).ok()?.checked_add(1)?)
    }

    fn insert(&mut self, slot: Slot, digest: D) {
        self.numbers.insert(digest, slot);
        self.digests.push(digest);
    }

    /// Takes one line's number and digest.
    fn read(&mut self, number: &str, digest: &str) -> Result<(), &'static str> {
        let digest = digest.parse().map_err(|_| "the digest does not read")?;
        let slot =
            self.next().filter(|slot| number.parse() == Ok(slot.0)).ok_or("the number is out of order")?;
        if self.numbers.contains_key(&digest) {
            return Err("the digest has a number already");
        }
        self.insert(slot, digest);
        Ok(())
    }
}

/// What has been read of the file so far.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Device and inode of the file: another one means that it was deleted and began anew.
    identity: Option<(u64, u64)>,
    /// Bytes read: up to behind a newline.
    read: u64,
    /// Lines read, the heading included.
    lines: usize,
    layers: Kind<LayerDigest>,
    images: Kind<ManifestDigest>,
}

impl Table {
    /// Reads what was appended since. Leaves an unfinished last line alone, and returns whether there is one.
    fn refresh(&mut self, file: &mut File, path: &Path) -> Result<bool, StoreError> {
        let metadata = file.metadata().at("stat", path)?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if self.identity != identity || metadata.len() < self.read {
            *self = Self { identity, ..Self::default() };
        }
        let mut bytes = Vec::new();
        file.seek(io::SeekFrom::Start(self.read)).at("read", path)?;
        file.read_to_end(&mut bytes).at("read", path)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        for line in bytes[..whole].split_inclusive(|&byte| byte == b'\n') {
            let text = std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| "it is not text");
            text.and_then(|text| self.line(text)).map_err(|reason| StoreError::Slots {
                path: path.to_owned(),
                line: self.lines + 1,
                reason: reason.to_owned(),
            })?;
            self.lines += 1;
            self.read += line.len() as u64;
        }
        Ok(whole < bytes.len())
    }

    fn line(&mut self, text: &str) -> Result<(), &'static str> {
        if self.lines == 0 {
            return if text == HEADING { Ok(()) } else { Err("the heading is not that of a file of slots") };
        }
        let (body, crc) = text.rsplit_once(' ').ok_or("it has too few words")?;
        if crc != checksum(body) {
            return Err("the checksum does not match");
        }
        let mut words = body.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(LAYER), Some(number), Some(digest), None) => self.layers.read(number, digest),
            (Some(IMAGE), Some(number), Some(digest), None) => self.images.read(number, digest),
            _ => Err("it is neither a layer's nor an image's"),
        }
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

impl Store {
    /// The number of a layer; given out, and on disk, when it has none yet.
    pub fn layer_slot(&self, layer: &LayerDigest) -> Result<Slot, StoreError> {
        self.slot(LAYER, layer, |table| &mut table.layers)
    }

    /// The number of an image: of its manifest, whatever names it has.
    pub fn image_slot(&self, image: &ManifestDigest) -> Result<Slot, StoreError> {
        self.slot(IMAGE, image, |table| &mut table.images)
    }

    /// What layer a number was given to.
    pub fn layer_of(&self, slot: Slot) -> Result<Option<LayerDigest>, StoreError> {
        self.digest_of(slot, |table| &table.layers)
    }

    /// What image a number was given to.
    pub fn image_of(&self, slot: Slot) -> Result<Option<ManifestDigest>, StoreError> {
        self.digest_of(slot, |table| &table.images)
    }

    fn digest_of<D: Copy + Eq + Hash + FromStr>(
        &self,
        slot: Slot,
        kind: impl Fn(&Table) -> &Kind<D>,
    ) -> Result<Option<D>, StoreError> {
        let mut table = self.table();
        if let Some(digest) = kind(&table).of(slot) {
            return Ok(Some(digest));
        }
        // Given out by another process, perhaps.
        let Some(top) = self.existing_top()? else { return Ok(None) };
        let Some(mut file) = top.file(SLOTS)? else { return Ok(None) };
        table.refresh(&mut file, &top.path_of(SLOTS))?;
        Ok(kind(&table).of(slot))
    }

    fn slot<D: Copy + Eq + Hash + FromStr + std::fmt::Display>(
        &self,
        word: &str,
        digest: &D,
        kind: impl Fn(&mut Table) -> &mut Kind<D>,
    ) -> Result<Slot, StoreError> {
        let mut table = self.table();
        if let Some(&slot) = kind(&mut table).numbers.get(digest) {
            return Ok(slot);
        }
        let _lock = self.file_lock(SLOTS)?;
        let (mut file, path) = self.slots_file(&mut table)?;
        if let Some(&slot) = kind(&mut table).numbers.get(digest) {
            return Ok(slot);
        }
        let Some(slot) = kind(&mut table).next() else {
            return Err(StoreError::SlotsExhausted { path, limit: Slot::MAX });
        };
        let body = format!("{word} {} {digest}", slot.0);
        append(&mut file, &path, &mut table, &format!("{body} {}\n", checksum(&body)))?;
        kind(&mut table).insert(slot, *digest);
        Ok(slot)
    }

    /// Opens the file for appending, up to date and whole. The caller has its lock.
    fn slots_file(&self, table: &mut Table) -> Result<(File, PathBuf), StoreError> {
        let top = self.top()?;
        let path = top.path_of(SLOTS);
        let mut file = top.file_with(SLOTS, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND, FILE_MODE)?;
        if table.refresh(&mut file, &path)? {
            tracing::warn!("{}: an unfinished last line is cut off", path.display());
            file.set_len(table.read).at("truncate", &path)?;
        }
        if table.lines == 0 {
            append(&mut file, &path, table, &format!("{HEADING}\n"))?;
            top.sync()?;
        }
        Ok((file, path))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A table that a panic left behind has read less than it says or is as it was: begin anew.
        self.inner.slots.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            let mut table = poisoned.into_inner();
            *table = Table::default();
            table
        })
    }
}

/// Appends a line durably.
fn append(file: &mut File, path: &Path, table: &mut Table, line: &str) -> Result<(), StoreError> {
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

    /// The same store as another process sees it.
    fn other_process(store: &Store) -> Store {
        Store::open(store.path()).unwrap()
    }

    fn path(store: &Store) -> PathBuf {
        store.path().join("rcx-imagefs").join(SLOTS)
    }

    #[test]
    fn numbers_are_the_same_in_every_process_and_after_a_restart() {
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
    fn threads_and_processes_never_share_a_number() {
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
        assert!(slots.iter().all(|one| *one == slots[0]));
        let mut numbers: Vec<u32> = slots[0].iter().map(|slot| slot.get()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_repaired_at_every_length() {
        let (_dir, store) = new_store();
        let a = store.layer_slot(&layer("a")).unwrap();
        let one = fs::read(path(&store)).unwrap();
        store.layer_slot(&layer("b")).unwrap();
        let two = fs::read(path(&store)).unwrap();
        for cut in 0..two.len() {
            fs::write(path(&store), &two[..cut]).unwrap();
            let store = other_process(&store);
            let c = store.layer_slot(&layer("c")).unwrap();
            let kept = cut >= one.len();
            assert_eq!(c.get(), if kept { 2 } else { 1 }, "cut at {cut}");
            assert_eq!(store.layer_of(a).unwrap(), Some(layer(if kept { "a" } else { "c" })));
            let again = other_process(&store);
            assert_eq!(again.layer_of(c).unwrap(), Some(layer("c")), "cut at {cut}");
        }
        // A size that reached the disk before the bytes: zeros without a newline.
        fs::write(path(&store), [&one[..], &[0; 50]].concat()).unwrap();
        assert_eq!(other_process(&store).layer_slot(&layer("c")).unwrap().get(), 2);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_an_error_that_names_the_line() {
        let (_dir, store) = new_store();
        store.layer_slot(&layer("a")).unwrap();
        store.image_slot(&image("b")).unwrap();
        let good = fs::read(path(&store)).unwrap();
        // The last newline aside, whose loss looks like a line cut short.
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
    fn a_deleted_file_starts_anew() {
        let (_dir, store) = new_store();
        store.layer_slot(&layer("a")).unwrap();
        fs::remove_file(path(&store)).unwrap();
        let store = other_process(&store);
        assert_eq!(store.layer_of(Slot::new(1).unwrap()).unwrap(), None);
        assert_eq!(store.layer_slot(&layer("b")).unwrap().get(), 1);
    }

    #[test]
    fn numbers_stay_within_the_bits_of_an_inode_number() {
        assert_eq!(Slot::new(0), None);
        assert_eq!(Slot::new(1 << 26), None);
        assert_eq!(Slot::new(Slot::MAX).unwrap().get(), (1 << 26) - 1);
    }
}
