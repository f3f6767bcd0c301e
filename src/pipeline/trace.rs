//! The trace of an image: which spans its runs read first, in order.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::PipelineError;
use crate::image::{LayerDigest, TreeKey};
use crate::index::{Layer, SpanId};
use crate::store::Store;

/// Number of this format. Traces of another format are ignored: the next run records a new one.
const FORMAT: u32 = 1;
/// A span that this many records in a row do not have is dropped from the trace.
const MISSED_MAX: u8 = 8;

/// The spans that runs of an image read first, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadTrace {
    format: u32,
    layers: Vec<TracedLayer>,
    reads: Vec<TracedRead>,
}

/// A layer of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TracedLayer {
    layer: LayerDigest,
    /// Number of spans of its index. With another number, the trace does not fit.
    spans: u32,
}

/// The position of the layer in `layers`, the span's ordinal in it, and the number of records in a row that do not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct TracedRead(u32, u32, u8);

/// A span of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerSpan {
    /// The layer.
    pub layer: LayerDigest,
    /// The span.
    pub span: SpanId,
}

impl ReadTrace {
    /// The most spans of a trace. Each has up to some hundred KiB.
    pub const SPANS_MAX: usize = 8192;

    /// Whether the trace has no spans.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// The spans, in the order in which they are read.
    pub fn spans(&self) -> impl Iterator<Item = LayerSpan> {
        self.entries().map(|(span, _)| span)
    }

    /// The spans, and the number of records in a row that do not have each.
    fn entries(&self) -> impl Iterator<Item = (LayerSpan, u8)> {
        self.reads.iter().filter_map(|TracedRead(layer, span, missed)| {
            // A file that was changed could name spans that the layer does not have.
            let layer = self.layers.get(usize::try_from(*layer).ok()?).filter(|layer| *span < layer.spans)?;
            Some((LayerSpan { layer: layer.layer, span: SpanId::new(*span) }, *missed))
        })
    }

    /// Whether the spans of this layer are those of the trace: if not, its index was made in another way.
    #[must_use]
    pub fn fits(&self, layer: &Layer) -> bool {
        let count = layer.index().span_count();
        self.layers.iter().any(|of| of.layer == *layer.index().layer() && of.spans as usize == count)
    }

    /// Returns this trace with a new record: first what it has, in its order, then the rest. `counts` are the numbers of spans of
    /// the layers of the record.
    #[must_use]
    pub fn merged(&self, record: &[LayerSpan], counts: &HashMap<LayerDigest, u32>) -> Self {
        let mut merged = Self { format: FORMAT, ..Self::default() };
        let mut seen = HashSet::new();
        let old = self.entries().map(|(span, missed)| (span, missed.saturating_add(1)));
        for (LayerSpan { layer, span }, missed) in record.iter().map(|span| (*span, 0)).chain(old) {
            let known = self.layers.iter().find(|of| of.layer == layer).map(|of| of.spans);
            let Some(spans) = counts.get(&layer).copied().or(known) else { continue };
            let fits = known.is_none_or(|known| known == spans) || missed == 0;
            let is_kept = fits && span.get() < spans && missed < MISSED_MAX;
            if !is_kept || !seen.insert((layer, span)) || merged.reads.len() == Self::SPANS_MAX {
                continue;
            }
            let position = merged.layers.iter().position(|of| of.layer == layer).unwrap_or_else(|| {
                merged.layers.push(TracedLayer { layer, spans });
                merged.layers.len() - 1
            });
            merged.reads.push(TracedRead(u32::try_from(position).unwrap_or(u32::MAX), span.get(), missed));
        }
        merged
    }
}

/// Returns the trace of the images with these layers; an empty one if there is none that can be used.
///
/// # Errors
/// The store cannot be read.
pub fn read_trace(store: &Store, key: &TreeKey) -> Result<ReadTrace, PipelineError> {
    let Some(bytes) = store.trace(key)? else { return Ok(ReadTrace::default()) };
    match serde_json::from_slice::<ReadTrace>(&bytes) {
        Ok(trace) if trace.format == FORMAT && trace.reads.len() <= ReadTrace::SPANS_MAX => Ok(trace),
        Ok(_) => Ok(ReadTrace::default()),
        Err(error) => {
            tracing::warn!("cannot use the trace {}, which is recorded anew: {error}", key.hex());
            Ok(ReadTrace::default())
        }
    }
}

/// Stores a trace, replacing an older one.
///
/// # Errors
/// The store cannot be written.
pub fn save_trace(store: &Store, key: &TreeKey, trace: &ReadTrace) -> Result<(), PipelineError> {
    let bytes = serde_json::to_vec(trace).expect("numbers and digests are valid JSON");
    Ok(store.put_trace(key, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    fn layer(text: &str) -> LayerDigest {
        LayerDigest::new(Digest::of(text.as_bytes()))
    }

    fn record(spans: &[(&str, u32)]) -> Vec<LayerSpan> {
        spans.iter().map(|(name, span)| LayerSpan { layer: layer(name), span: SpanId::new(*span) }).collect()
    }

    fn counts(a: u32) -> HashMap<LayerDigest, u32> {
        HashMap::from([(layer("a"), a), (layer("b"), 10)])
    }

    #[test]
    fn new_record_comes_first_in_its_order_and_the_rest_follows() {
        let first = ReadTrace::default().merged(&record(&[("a", 3), ("b", 1), ("a", 1)]), &counts(10));
        let second = first.merged(&record(&[("a", 1), ("a", 2)]), &counts(10));
        let spans: Vec<_> = second.spans().collect();
        assert_eq!(spans, record(&[("a", 1), ("a", 2), ("a", 3), ("b", 1)]));
        let text = serde_json::to_string(&second).unwrap();
        assert_eq!(serde_json::from_str::<ReadTrace>(&text).unwrap(), second);
    }

    #[test]
    fn spans_that_records_miss_repeatedly_are_dropped() {
        let mut trace = ReadTrace::default().merged(&record(&[("a", 1), ("b", 1)]), &counts(10));
        for _ in 1..MISSED_MAX {
            trace = trace.merged(&record(&[("b", 1)]), &counts(10));
            assert_eq!(trace.spans().count(), 2);
        }
        trace = trace.merged(&record(&[("b", 1)]), &counts(10));
        assert_eq!(trace.spans().collect::<Vec<_>>(), record(&[("b", 1)]));
    }

    #[test]
    fn spans_of_a_layer_that_was_indexed_in_another_way_are_dropped() {
        let first = ReadTrace::default().merged(&record(&[("a", 3), ("b", 1)]), &counts(10));
        let second = first.merged(&record(&[("a", 2)]), &counts(4));
        assert_eq!(second.spans().collect::<Vec<_>>(), record(&[("a", 2), ("b", 1)]));
        // Ordinals beyond the end of the layer do not come from its index.
        assert!(ReadTrace::default().merged(&record(&[("a", 4)]), &counts(4)).is_empty());
    }

    #[test]
    fn numbers_that_no_layer_has_are_ignored() {
        let text = format!(
            r#"{{"format":1,"layers":[{{"layer":"{}","spans":2}}],"reads":[[0,2,0],[1,0,0],[0,1,0]]}}"#,
            layer("a")
        );
        let trace: ReadTrace = serde_json::from_str(&text).unwrap();
        assert_eq!(trace.spans().collect::<Vec<_>>(), record(&[("a", 1)]));
    }

    #[test]
    fn length_of_a_trace_is_bounded() {
        let spans: Vec<_> = (0..10_000).map(|span| ("a", span)).collect();
        let trace = ReadTrace::default().merged(&record(&spans), &counts(20_000));
        assert_eq!(trace.spans().count(), ReadTrace::SPANS_MAX);
    }
}
