//! Decodes spans of layer files before a reader asks for them: what earlier runs of an image read, and the span after each one that
//! is read for the first time.
//!
//! Most readers follow the order of the tar for a while: through a large file, or through a directory. Of the spans that a program
//! reads first, about three quarters are followed by another that it reads.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use tracing::{debug, error, warn};

use super::content::ContentReader;
use crate::image::LayerDigest;
use crate::index::{Layer, SpanId};
use crate::os::{self, ignore_poison};
use crate::pipeline::LayerSpan;

/// The most threads that decode ahead.
const THREADS_MAX: usize = 4;
/// Priority of these threads: beside three readers on one processor, they get a tenth of it. Readers wait for a span that such a thread
/// is decoding, so it must not be much lower.
const NICE: i32 = 5;
/// The most single spans that wait. More mean that the processors are busy, and then the readers reach the oldest ones first.
const SINGLES_MAX: usize = 8;
/// Number of spans of a list whose compressed bytes are read from the disk ahead of decoding. A span takes about a millisecond to decode,
/// as long as a disk takes to answer.
const READ_AHEAD: usize = 16;
/// How often the available memory is looked up, in spans.
const MEMORY_CHECK: usize = 16;
/// Decodes ahead only while this part of the host's memory is available.
const MEMORY_PART: f64 = 1.0 / 16.0;

/// Threads that decode ahead. They end when this is dropped.
#[derive(Debug)]
pub(super) struct DecodeAhead {
    shared: Arc<SharedQueue>,
}

/// A span of an open layer.
#[derive(Debug)]
pub(super) struct OpenSpan {
    pub(super) slot: u32,
    pub(super) layer: Arc<Layer>,
    pub(super) span: SpanId,
}

#[derive(Debug)]
struct SharedQueue {
    content: Arc<ContentReader>,
    waiting: Mutex<WaitingSpans>,
    /// Signalled when spans are added, and at the end.
    added: Condvar,
    /// Number of spans that were taken.
    taken: AtomicUsize,
}

#[derive(Debug, Default)]
struct WaitingSpans {
    /// The newest is taken first: its reader is nearest.
    singles: VecDeque<OpenSpan>,
    lists: VecDeque<SpanList>,
    stop: bool,
}

/// The spans that earlier runs of an image read.
#[derive(Debug)]
struct SpanList {
    spans: VecDeque<LayerSpan>,
    layers: HashMap<LayerDigest, (u32, Arc<Layer>)>,
}

impl DecodeAhead {
    /// Starts the threads, one less than there are processors: one stays free for the readers.
    pub(super) fn start(content: Arc<ContentReader>) -> Self {
        let shared = Arc::new(SharedQueue {
            content,
            waiting: Mutex::default(),
            added: Condvar::new(),
            taken: AtomicUsize::new(0),
        });
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for _ in 0..(processors - 1).clamp(1, THREADS_MAX) {
            let queue = Arc::clone(&shared);
            if let Err(error) = thread::Builder::new().name("ahead".to_owned()).spawn(move || queue.work()) {
                warn!(%error, "cannot start a thread that decodes ahead");
            }
        }
        Self { shared }
    }

    /// Decodes a span soon, unless newer ones displace it.
    pub(super) fn decode(&self, span: OpenSpan) {
        span.layer.will_need(span.span);
        let mut waiting = ignore_poison(self.shared.waiting.lock());
        waiting.singles.push_back(span);
        if waiting.singles.len() > SINGLES_MAX {
            waiting.singles.pop_front();
        }
        self.shared.added.notify_one();
    }

    /// Decodes the spans of `spans` whose layers are in `layers`, in order, as far as half of the cache has room: more would displace what
    /// was decoded first. Returns the spans that will be decoded.
    pub(super) fn decode_all(
        &self,
        spans: impl Iterator<Item = LayerSpan>,
        layers: HashMap<LayerDigest, (u32, Arc<Layer>)>,
    ) -> HashSet<LayerSpan> {
        let mut room = self.shared.content.counters().capacity / 2;
        let spans = spans.filter_map(|span| {
            let (_, layer) = layers.get(&span.layer)?;
            let range = layer.index().span_range(span.span);
            Some((span, range.end - range.start))
        });
        let fitting = spans.map_while(|(span, len)| {
            room = room.checked_sub(len)?;
            Some(span)
        });
        let spans: VecDeque<_> = fitting.collect();
        let all = spans.iter().copied().collect();
        let list = SpanList { spans, layers };
        for upcoming in (0..READ_AHEAD).filter_map(|position| list.span(position)) {
            upcoming.layer.will_need(upcoming.span);
        }
        ignore_poison(self.shared.waiting.lock()).lists.push_back(list);
        self.shared.added.notify_all();
        all
    }
}

impl Drop for DecodeAhead {
    fn drop(&mut self) {
        ignore_poison(self.shared.waiting.lock()).stop = true;
        self.shared.added.notify_all();
    }
}

impl SharedQueue {
    fn work(&self) {
        // On Linux, this applies to the calling thread.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            debug!(%error, "cannot lower the priority of a thread that decodes ahead");
        }
        while let Some((span, upcoming)) = self.take() {
            let is_check = self.taken.fetch_add(1, Ordering::Relaxed).is_multiple_of(MEMORY_CHECK);
            if is_check && os::available_memory().is_some_and(|part| part < MEMORY_PART) {
                debug!("memory is short: decodes nothing ahead");
                ignore_poison(self.waiting.lock()).clear();
                continue;
            }
            if let Some(upcoming) = upcoming {
                upcoming.layer.will_need(upcoming.span);
            }
            let decode = AssertUnwindSafe(|| self.content.decode_ahead(span.slot, &span.layer, span.span));
            if catch_unwind(decode).is_err() {
                error!("decoding ahead panicked");
            }
        }
    }

    /// Waits for a span. Returns it with one whose compressed bytes will be needed soon, or `None` at the end.
    fn take(&self) -> Option<(OpenSpan, Option<OpenSpan>)> {
        let mut waiting = ignore_poison(self.waiting.lock());
        loop {
            if waiting.stop {
                return None;
            }
            if let Some(next) = waiting.next() {
                return Some(next);
            }
            waiting = ignore_poison(self.added.wait(waiting));
        }
    }
}

impl WaitingSpans {
    fn next(&mut self) -> Option<(OpenSpan, Option<OpenSpan>)> {
        if let Some(span) = self.singles.pop_back() {
            return Some((span, None));
        }
        while let Some(list) = self.lists.front_mut() {
            if let Some(span) = list.span(0) {
                let upcoming = list.span(READ_AHEAD);
                list.spans.pop_front();
                return Some((span, upcoming));
            }
            self.lists.pop_front();
        }
        None
    }

    fn clear(&mut self) {
        self.singles.clear();
        self.lists.clear();
    }
}

impl SpanList {
    fn span(&self, position: usize) -> Option<OpenSpan> {
        let LayerSpan { layer, span } = *self.spans.get(position)?;
        let (slot, layer) = self.layers.get(&layer)?;
        Some(OpenSpan { slot: *slot, layer: Arc::clone(layer), span })
    }
}
