//! Records which spans the runs of an image read first, and decodes them ahead of the next runs.
//!
//! An image is opened cold when a new superblock of its tree image is made: then each of its layer files is looked up once. What is read
//! from them afterwards is what the page cache of this superblock lacks.
//!
//! Lock order: the trees, then those of the cache.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::content::ContentReader;
use super::layers::LayerTable;
use super::{ImageSource, Ino};
use crate::error::chain_text;
use crate::image::{LayerDigest, TreeKey};
use crate::index::{Layer, Piece, SpanId};
use crate::layer::TarOffset;
use crate::os::{self, ignore_poison};
use crate::pipeline::{LayerSpan, ReadTrace};

/// A record is stored when nothing was read for this long.
const QUIET: Duration = Duration::from_secs(5);
/// The most threads that decode ahead, for all images.
const THREADS_MAX: usize = 4;
/// Priority of these threads: beside three readers on one processor, they get a tenth of it. Readers wait for a span that such a thread
/// is decoding, so it must not be much lower.
const NICE: i32 = 5;
/// How often the available memory is looked up, in spans.
const MEMORY_CHECK: usize = 16;
/// Decodes ahead only while this part of the host's memory is available.
const MEMORY_PART: f64 = 1.0 / 16.0;

/// The traces of the images whose layer files the kernel knows.
#[derive(Debug)]
pub(super) struct TraceRecorder {
    source: Arc<ImageSource>,
    layers: Arc<LayerTable>,
    content: Arc<ContentReader>,
    prefetches: bool,
    trees: Mutex<TreeTable>,
    /// Number of threads that decode ahead.
    active: Arc<AtomicUsize>,
    /// Set when this recorder is dropped.
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct TreeTable {
    trees: HashMap<u32, TracedTree>,
    last: u32,
}

/// The images with the same layers.
#[derive(Debug)]
struct TracedTree {
    key: TreeKey,
    /// The trace before this record.
    known: ReadTrace,
    /// The layers that were looked up since the superblock was made.
    opened: HashSet<u32>,
    /// The spans that were read since, in order.
    record: Vec<LayerSpan>,
    seen: HashSet<LayerSpan>,
    /// The numbers of spans of the layers in `record`.
    counts: HashMap<LayerDigest, u32>,
    last_read: Instant,
    /// Whether `record` has something that is not stored.
    changed: bool,
}

/// A record that begins.
#[derive(Debug)]
pub(super) struct NewRecord {
    number: u32,
    key: TreeKey,
    /// The record before it, if it is not stored.
    ended: Option<(TreeKey, ReadTrace)>,
}

impl TraceRecorder {
    pub(super) fn new(
        source: Arc<ImageSource>,
        layers: Arc<LayerTable>,
        content: Arc<ContentReader>,
        prefetches: bool,
    ) -> Self {
        let (active, stop) = (Arc::default(), Arc::default());
        Self { source, layers, content, prefetches, trees: Mutex::default(), active, stop }
    }

    /// Notes that a layer file of a tree image was looked up. Returns the number of the tree image, which is at least 1 and valid as
    /// the number of an entry in [`Ino::of_layer`], and the work of [`TraceRecorder::begin`] if this is the first file of a superblock.
    pub(super) fn open(&self, key: TreeKey, slot: u32) -> (u32, Option<NewRecord>) {
        let mut table = ignore_poison(self.trees.lock());
        let known = table.trees.iter().find(|(_, tree)| tree.key == key).map(|(number, _)| *number);
        if let Some(number) = known
            && let Some(tree) = table.trees.get_mut(&number)
            && tree.opened.insert(slot)
        {
            return (number, None);
        }
        // Another superblock: this one begins without pages.
        let number = known.unwrap_or_else(|| table.next());
        let ended = table.trees.remove(&number).and_then(|mut tree| tree.unsaved());
        table.trees.insert(number, TracedTree::new(key, slot));
        (number, Some(NewRecord { number, key, ended }))
    }

    /// Begins a record: stores the one before it, and decodes ahead what its trace lists. Must be called before the lookup is answered.
    pub(super) fn begin(&self, new: NewRecord) {
        let NewRecord { number, key, ended } = new;
        let trace = match ended {
            Some((_, trace)) => {
                self.save(&key, &trace);
                trace
            }
            None => self.source.trace(&key),
        };
        if let Some(tree) = ignore_poison(self.trees.lock()).trees.get_mut(&number) {
            tree.known = trace.clone();
        }
        if self.prefetches && !trace.is_empty() {
            self.decode_ahead(&trace);
        }
    }

    /// Records a read of a layer file.
    pub(super) fn read(&self, number: u32, layer: &Layer, pieces: &[Piece]) {
        let mut table = ignore_poison(self.trees.lock());
        // A file of no tree image, or of an earlier process.
        let Some(tree) = table.trees.get_mut(&number) else { return };
        tree.last_read = Instant::now();
        for span in spans_of(layer, pieces) {
            tree.add(layer, span);
        }
    }

    /// Stores and forgets the record of a tree image none of whose files the kernel knows.
    pub(super) fn close(&self, number: u32) {
        let tree = ignore_poison(self.trees.lock()).trees.remove(&number);
        if let Some((key, trace)) = tree.and_then(|mut tree| tree.unsaved()) {
            self.save(&key, &trace);
        }
    }

    /// Stores the records that have not changed for a while, or with `all` every record.
    pub(super) fn store(&self, all: bool) {
        let mut table = ignore_poison(self.trees.lock());
        let due = table.trees.values_mut().filter(|tree| all || tree.last_read.elapsed() >= QUIET);
        let unsaved: Vec<_> = due.filter_map(TracedTree::unsaved).collect();
        drop(table);
        for (key, trace) in unsaved {
            self.save(&key, &trace);
        }
    }

    fn save(&self, key: &TreeKey, trace: &ReadTrace) {
        if let Err(error) = self.source.save_trace(key, trace) {
            warn!("cannot store what runs of an image read first: {}", chain_text(&error));
        }
    }

    /// Starts threads that decode the spans of a trace.
    fn decode_ahead(&self, trace: &ReadTrace) {
        let spans: Arc<[LayerSpan]> = trace.spans().collect();
        let layers: HashMap<_, _> =
            self.layers_of(&spans).filter(|(_, (_, layer))| trace.fits(layer)).collect();
        let job = Arc::new(Prefetch {
            spans,
            layers,
            content: Arc::clone(&self.content),
            next: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            stop: Arc::clone(&self.stop),
        });
        for _ in 0..threads() {
            let place = ThreadPlace::take(&self.active);
            if place.before >= THREADS_MAX {
                return;
            }
            let thread_job = Arc::clone(&job);
            let run = move || {
                let _place = place;
                thread_job.run();
            };
            if let Err(error) = thread::Builder::new().name("prefetch".to_owned()).spawn(run) {
                warn!(%error, "cannot start the thread prefetch");
            }
        }
    }

    /// Opens the layers of spans. One that cannot be opened is left to its readers, who then learn the reason.
    fn layers_of<'a>(
        &'a self,
        spans: &'a [LayerSpan],
    ) -> impl Iterator<Item = (LayerDigest, (u32, Arc<Layer>))> + 'a {
        let digests: HashSet<LayerDigest> = spans.iter().map(|span| span.layer).collect();
        digests.into_iter().filter_map(|digest| {
            let (slot, layer) = self.source.open_layer_by_digest(digest).ok()??;
            Some((digest, (slot, self.layers.insert(slot, layer))))
        })
    }
}

impl Drop for TraceRecorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.store(true);
    }
}

impl TreeTable {
    /// Returns a number that is not in use.
    fn next(&mut self) -> u32 {
        loop {
            self.last = if self.last + 1 < Ino::NODE_LIMIT { self.last + 1 } else { 1 };
            if !self.trees.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

impl TracedTree {
    fn new(key: TreeKey, slot: u32) -> Self {
        Self {
            key,
            known: ReadTrace::default(),
            opened: HashSet::from([slot]),
            record: Vec::new(),
            seen: HashSet::new(),
            counts: HashMap::new(),
            last_read: Instant::now(),
            changed: false,
        }
    }

    /// Returns the trace with this record, if it is not stored.
    fn unsaved(&mut self) -> Option<(TreeKey, ReadTrace)> {
        let changed = std::mem::take(&mut self.changed);
        changed.then(|| (self.key, self.known.merged(&self.record, &self.counts)))
    }

    fn add(&mut self, layer: &Layer, span: SpanId) {
        let span = LayerSpan { layer: *layer.index().layer(), span };
        if self.record.len() < ReadTrace::SPANS_MAX && self.seen.insert(span) {
            let count = u32::try_from(layer.index().span_count()).unwrap_or(u32::MAX);
            self.counts.insert(span.layer, count);
            self.record.push(span);
            self.changed = true;
        }
    }
}

/// Returns the spans of pieces of a layer.
fn spans_of<'a>(layer: &'a Layer, pieces: &'a [Piece]) -> impl Iterator<Item = SpanId> + 'a {
    pieces.iter().flat_map(|piece| {
        let ends = match piece {
            Piece::Data { tar, len } if *len > 0 => {
                let last = TarOffset::new(tar.get() + len - 1);
                layer.index().span_at(*tar).zip(layer.index().span_at(last))
            }
            _ => None,
        };
        ends.into_iter().flat_map(|(first, last)| first.get()..=last.get()).map(SpanId::new)
    })
}

/// Number of threads that decode ahead for one image: a processor stays free for the readers.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get() - 1).clamp(1, THREADS_MAX)
}

/// The place of a thread among those that decode ahead, until it is dropped.
struct ThreadPlace {
    active: Arc<AtomicUsize>,
    /// Number of places that were taken before.
    before: usize,
}

impl ThreadPlace {
    fn take(active: &Arc<AtomicUsize>) -> Self {
        Self { active: Arc::clone(active), before: active.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for ThreadPlace {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Threads that decode the spans of a trace, in order.
struct Prefetch {
    spans: Arc<[LayerSpan]>,
    layers: HashMap<LayerDigest, (u32, Arc<Layer>)>,
    content: Arc<ContentReader>,
    /// The position of the next span.
    next: AtomicUsize,
    /// Number of bytes that were decoded.
    bytes: AtomicUsize,
    stop: Arc<AtomicBool>,
}

impl Prefetch {
    fn run(&self) {
        // On Linux, this applies to the calling thread.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            debug!(%error, "cannot lower the priority of the thread prefetch");
        }
        // What does not fit into the cache would displace what was decoded first.
        let room = usize::try_from(self.content.counters().capacity / 2).unwrap_or(usize::MAX);
        while !self.stop.load(Ordering::Relaxed) && self.bytes.load(Ordering::Relaxed) < room {
            let position = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(span) = self.spans.get(position) else { break };
            if position.is_multiple_of(MEMORY_CHECK)
                && os::available_memory().is_some_and(|part| part < MEMORY_PART)
            {
                debug!("memory is short: decodes nothing ahead");
                break;
            }
            let Some((slot, layer)) = self.layers.get(&span.layer) else { continue };
            // A span that cannot be decoded is an error of its readers.
            let decoded = self.content.decode_ahead(*slot, layer, span.span).unwrap_or(0);
            self.bytes.fetch_add(decoded, Ordering::Relaxed);
        }
    }
}
