//! Records which spans the runs of an image read first, and decodes them ahead of the next runs.
//!
//! An image is opened cold when a new superblock of its tree image is made: then each of its layer files is looked up once. What is read
//! from them afterwards is what the page cache of this superblock lacks.
//!
//! Lock order: the trees, then those of the cache.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::warn;

use super::ahead::{DecodeAhead, OpenSpan};
use super::content::ContentReader;
use super::layers::LayerTable;
use super::{ImageSource, Ino};
use crate::error::chain_text;
use crate::image::{LayerDigest, TreeKey};
use crate::index::{Layer, Piece, SpanId};
use crate::os::ignore_poison;
use crate::pipeline::{LayerSpan, ReadTrace};

/// A record is stored when nothing was read for this long.
const QUIET: Duration = Duration::from_secs(5);

/// The traces of the images whose layer files the kernel knows.
#[derive(Debug)]
pub(super) struct TraceRecorder {
    source: Arc<ImageSource>,
    layers: Arc<LayerTable>,
    /// `None`: nothing is decoded ahead.
    ahead: Option<DecodeAhead>,
    trees: Mutex<TreeTable>,
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
    /// The spans of `known` that are decoded ahead.
    expected: HashSet<LayerSpan>,
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
        let ahead = prefetches.then(|| DecodeAhead::start(content));
        Self { source, layers, ahead, trees: Mutex::default() }
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
        let expected = match &self.ahead {
            Some(ahead) if !trace.is_empty() => ahead.decode_all(trace.spans(), self.layers_of(&trace)),
            _ => HashSet::new(),
        };
        if let Some(tree) = ignore_poison(self.trees.lock()).trees.get_mut(&number) {
            (tree.known, tree.expected) = (trace, expected);
        }
    }

    /// Records a read of a layer file. Decodes the span after it ahead if nothing is known of how the image is read.
    pub(super) fn read(&self, number: u32, slot: u32, layer: &Arc<Layer>, pieces: &[Piece]) {
        let next = {
            let mut table = ignore_poison(self.trees.lock());
            // A file of no tree image, or of an earlier process.
            let Some(tree) = table.trees.get_mut(&number) else { return };
            tree.last_read = Instant::now();
            let spans = layer.index().span_slices(pieces.iter().copied()).map(|slice| slice.span);
            spans.filter(|span| tree.add(layer, *span)).last().and_then(|span| span_after(layer, span))
        };
        if let (Some(ahead), Some(span)) = (&self.ahead, next) {
            ahead.decode(OpenSpan { slot, layer: Arc::clone(layer), span });
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

    /// Opens the layers of a trace that it fits. One that cannot be opened is left to its readers, who then learn the reason.
    fn layers_of(&self, trace: &ReadTrace) -> HashMap<LayerDigest, (u32, Arc<Layer>)> {
        let digests: HashSet<LayerDigest> = trace.spans().map(|span| span.layer).collect();
        let open = digests.into_iter().filter_map(|digest| {
            let (slot, layer) = self.source.open_layer_by_digest(digest).ok()??;
            Some((digest, (slot, self.layers.insert(slot, layer))))
        });
        open.filter(|(_, (_, layer))| trace.fits(layer)).collect()
    }
}

impl Drop for TraceRecorder {
    fn drop(&mut self) {
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
            expected: HashSet::new(),
            last_read: Instant::now(),
            changed: false,
        }
    }

    /// Returns the trace with this record, if it is not stored.
    fn unsaved(&mut self) -> Option<(TreeKey, ReadTrace)> {
        let changed = std::mem::take(&mut self.changed);
        changed.then(|| (self.key, self.known.merged(&self.record, &self.counts)))
    }

    /// Adds a span to the record. Returns whether it is new, and not in the trace that is decoded ahead.
    fn add(&mut self, layer: &Layer, span: SpanId) -> bool {
        let span = LayerSpan { layer: *layer.index().layer(), span };
        if self.record.len() == ReadTrace::SPANS_MAX || !self.seen.insert(span) {
            return false;
        }
        let count = u32::try_from(layer.index().span_count()).unwrap_or(u32::MAX);
        self.counts.insert(span.layer, count);
        self.record.push(span);
        self.changed = true;
        !self.expected.contains(&span)
    }
}

/// Returns the span after another one of a layer.
fn span_after(layer: &Layer, span: SpanId) -> Option<SpanId> {
    let next = span.get() + 1;
    (usize::try_from(next).ok()? < layer.index().span_count()).then(|| SpanId::new(next))
}
