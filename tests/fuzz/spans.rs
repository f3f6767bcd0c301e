//! Properties of every compressed blob: decoded in spans, from any checkpoint, it yields the bytes of an ordinary decoder.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{BuildOptions, EntryId, Index, Layer, LayerBytes, build};
use rcx_imagefs::layer::{Checkpoint, DecodedSpan, LayerError, SpanDecoder, SpanLimits, decode_span};

use crate::input::Input;

const LIMITS: [SpanLimits; 4] = [
    SpanLimits { target: 4096, max: 5120 },
    SpanLimits { target: 1024, max: 1024 },
    SpanLimits { target: 700, max: 3000 },
    SpanLimits::PRODUCTION,
];

/// A reader that returns at most the given number of bytes at once.
struct Chunked<'a>(&'a [u8], usize);

impl Read for Chunked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Chunked<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

/// Decodes all spans up to the end of the blob or an error.
fn spans(blob: &[u8], limits: SpanLimits, chunk: usize) -> (Vec<DecodedSpan>, Option<LayerError>) {
    let mut decoder = match SpanDecoder::new(Chunked(blob, chunk), limits) {
        Ok(decoder) => decoder,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut spans = Vec::new();
    loop {
        match decoder.next_span() {
            Ok(Some(span)) => {
                assert!(!span.bytes.is_empty() && span.bytes.len() <= limits.max, "{}", span.bytes.len());
                spans.push(span);
            }
            Ok(None) => {
                assert_eq!(
                    decoder.blob_offset().get(),
                    blob.len() as u64,
                    "the decoder did not read the whole blob"
                );
                return (spans, None);
            }
            Err(error) => {
                assert!(
                    matches!(decoder.next_span(), Err(LayerError::AlreadyFailed)),
                    "the decoder continues after an error"
                );
                return (spans, Some(error));
            }
        }
    }
}

fn joined(spans: &[DecodedSpan]) -> Vec<u8> {
    spans.iter().flat_map(|span| &span.bytes).copied().collect()
}

fn part(blob: &[u8], range: Range<u64>) -> &[u8] {
    let index = |offset: u64| usize::try_from(offset).expect("the blob is in memory");
    &blob[index(range.start)..index(range.end)]
}

/// Checks a blob against the result of an ordinary decoder: the bytes that it decoded, and whether it reached the end.
pub(crate) fn check(blob: &[u8], plain: &[u8], complete: bool, input: &mut Input<'_>) {
    let limits = input.pick(&LIMITS);
    let (all, error) = spans(blob, limits, usize::MAX);
    assert_eq!(error.is_none(), complete, "the ordinary decoder disagrees: {error:?}");
    let bytes = joined(&all);
    match complete {
        true => assert!(bytes == plain, "the spans differ from the plain decode"),
        // Neither decoder has to return all bytes before the damage.
        false => assert!(
            bytes.starts_with(plain) || plain.starts_with(&bytes),
            "the spans differ from the plain decode"
        ),
    }
    let chunk = 1 + input.below(600);
    let (chunked, chunked_error) = spans(blob, limits, chunk);
    assert_eq!(error.is_none(), chunked_error.is_none(), "{error:?} and {chunked_error:?}");
    let count = if complete { all.len().max(chunked.len()) } else { all.len().min(chunked.len()) };
    assert!(all.get(..count) == chunked.get(..count), "spans depend on the reader");
    check_resumed(blob, &all, complete, input);
}

/// Decodes each span from its checkpoint, alone or with the spans after it.
fn check_resumed(blob: &[u8], all: &[DecodedSpan], complete: bool, input: &mut Input<'_>) {
    for (first, start) in all.iter().enumerate() {
        let joined_count = 1 + input.below(4);
        let some = &all[first..all.len().min(first + joined_count)];
        let Some(checkpoint) = &start.checkpoint else { continue };
        // Callers never join spans of stored data or zstd frames. Deflate continues across checkpoints.
        let some = match checkpoint {
            Checkpoint::Stored | Checkpoint::ZstdFrame => &some[..1],
            _ => some,
        };
        let header = match checkpoint {
            Checkpoint::Deflate { block: Some(block), .. } => {
                let end = block.start_bit + u64::from(block.bits);
                part(blob, block.start_bit / 8..end.div_ceil(8))
            }
            _ => &[],
        };
        let expected = joined(some);
        let mut out = vec![0xaa; expected.len()];
        let compressed = part(blob, start.blob.start..some[some.len() - 1].blob.end);
        match decode_span(checkpoint, header, compressed, &mut out) {
            Ok(()) => assert!(
                out == expected,
                "{} spans from {:?} decode to different bytes",
                some.len(),
                start.blob
            ),
            // Damage right after a span can share a byte with the span's last bits.
            Err(error) => assert!(!complete, "{} spans from {:?}: {error}", some.len(), start.blob),
        }
    }
}

/// Concatenates 1 to `max_pieces` pieces into a blob. With `damaged`, mutates a few bytes.
pub(crate) fn concatenated_blob<P: IntoIterator<Item = u8>>(
    input: &mut Input<'_>,
    max_pieces: usize,
    damaged: bool,
    mut piece: impl FnMut(&mut Input<'_>) -> P,
) -> Vec<u8> {
    let mut changes = Input::new(input.bytes(24));
    let mut blob = Vec::new();
    for _ in 0..=input.below(max_pieces) {
        blob.extend(piece(input));
    }
    if damaged {
        changes.mutate(&mut blob);
    }
    blob
}

/// Checks reads through an index of `blob`, a layer with one file of `content`. Reads return the right bytes at any offset; if
/// the blob is damaged after indexing, they return the right bytes or an error.
pub(crate) fn check_reads(blob: &[u8], content: &[u8], input: &mut Input<'_>) {
    let options =
        BuildOptions { limits: input.pick(&LIMITS), thin: input.one_in(2), ..BuildOptions::default() };
    let (built, seekable) = build(blob, &options, || Ok(Vec::new())).expect("the layer is valid");
    let file = built.finish(&LayerDigest::new(Digest::of(blob)), blob).expect("compresses in memory");
    let entry = EntryId::new(0);
    let layer = |blob: &[u8], seekable: Option<Vec<u8>>| {
        let index = Index::open(file.clone()).expect("a built index is valid");
        Layer::new(index, LayerBytes::Memory(blob.to_vec()), seekable.map(LayerBytes::Memory))
    };
    let whole = layer(blob, seekable.clone());
    let mut damaged_blob = blob.to_vec();
    input.mutate(&mut damaged_blob);
    let mut damaged_seekable = seekable;
    if let Some(bytes) = &mut damaged_seekable
        && input.one_in(2)
    {
        input.mutate(bytes);
    }
    let damaged = layer(&damaged_blob, damaged_seekable);
    for _ in 0..4 {
        let (offset, length) = (input.below(content.len() + 3), input.below(9000));
        let start = offset.min(content.len());
        let expected = &content[start..(start + length).min(content.len())];
        let read = whole.read(entry, offset as u64, length).expect("the blob is valid");
        assert!(read == expected, "{length} bytes from offset {offset} are wrong");
        if let Ok(read) = damaged.read(entry, offset as u64, length) {
            assert!(read == expected, "{length} bytes from offset {offset} are wrong, without an error");
        }
    }
}
