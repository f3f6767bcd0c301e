//! Writes an index file.

use super::build::{BuildError, BuiltIndex};
use super::fetch::{ReadBlob, hash_range};
use super::format::{
    CHECKED_FROM, HEADER_LEN, MAGIC, NO_BLOCK, NO_WINDOW, SPAN_HASH_AT, SPAN_LEN, Section, SpanKind, VERSION,
};
use super::thin::{SpanDraft, thin};
use super::windows::WindowGroups;
use crate::image::{DiffId, Digest, LayerDigest};
use crate::layer::{Checkpoint, Codec};

/// The size budget of an index: this fraction of its blob, as a divisor.
const BUDGET_PART: u64 = 100;
/// The budget of checkpoints if the entries use up the whole budget: this fraction of the blob, as a divisor.
const CHECKPOINTS_PART: u64 = 250;

impl BuiltIndex {
    /// The digest of the tar.
    #[must_use]
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// The length of the blob in bytes.
    #[must_use]
    pub fn blob_size(&self) -> u64 {
        self.blob_size
    }

    /// The length of the tar in bytes.
    #[must_use]
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// The length of the seekable file in bytes.
    #[must_use]
    pub fn seekable_size(&self) -> u64 {
        self.seekable_size
    }

    /// The compression of the blob.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the bytes of the index file. `layer` is the digest of the blob, which is known only at the end of a download.
    ///
    /// Reads the blob a second time: only now is it known where spans start, and so which bytes to hash.
    ///
    /// # Errors
    /// The blob cannot be read, or the windows cannot be compressed, because memory is exhausted.
    pub fn finish(self, layer: &LayerDigest, blob: &(impl ReadBlob + ?Sized)) -> Result<Vec<u8>, BuildError> {
        let Self {
            codec,
            diff_id,
            blob_size,
            tar_size,
            seekable_size,
            mut drafts,
            mut tables,
            thin: thinning,
        } = self;
        let entries: u64 = tables.sections.iter().map(|section| section.len() as u64).sum();
        if thinning {
            let budget = (blob_size / BUDGET_PART).saturating_sub(entries).max(blob_size / CHECKPOINTS_PART);
            drafts = thin(drafts, budget);
        }
        let mut groups = WindowGroups::default();
        for draft in &drafts {
            let span = span_record(draft, &mut groups, blob)?;
            tables.section(Section::Spans).extend_from_slice(&span);
        }
        groups.close().map_err(BuildError::Windows)?;
        for (offset, length, raw_len) in &groups.records {
            tables.section(Section::Groups).extend_from_slice(&offset.to_le_bytes());
            tables.put(Section::Groups, &[*length, *raw_len]);
        }
        *tables.section(Section::Windows) = groups.heap;

        let size: usize = tables.sections.iter().map(|section| section.len().next_multiple_of(8)).sum();
        let mut file = Vec::with_capacity(HEADER_LEN + size);
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.extend_from_slice(&[codec as u8, 0, 0, 0]);
        file.extend_from_slice(&[0; 32]);
        file.extend_from_slice(layer.digest().as_bytes());
        file.extend_from_slice(diff_id.digest().as_bytes());
        for size in [blob_size, tar_size, seekable_size] {
            file.extend_from_slice(&size.to_le_bytes());
        }
        for section in &tables.sections {
            file.extend_from_slice(&(section.len() as u64).to_le_bytes());
        }
        debug_assert_eq!(file.len(), HEADER_LEN);
        // Each section is dropped after it is copied, so that those of a large layer are not in memory twice.
        for section in tables.sections {
            file.extend_from_slice(&section);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        let checksum = Digest::of(&file[CHECKED_FROM..]);
        file[16..CHECKED_FROM].copy_from_slice(checksum.as_bytes());
        Ok(file)
    }
}

fn span_record(
    draft: &SpanDraft,
    groups: &mut WindowGroups,
    blob: &(impl ReadBlob + ?Sized),
) -> Result<[u8; SPAN_LEN], BuildError> {
    let (mut skip, mut stored_before, mut window_position) = (0, 0_u16, (NO_WINDOW, 0));
    let mut position = (0_u32, NO_BLOCK);
    let kind = match &draft.checkpoint {
        Some(Checkpoint::Stored) => SpanKind::Stored,
        Some(Checkpoint::GzipMember) => SpanKind::GzipMember,
        Some(Checkpoint::ZstdFrame) => SpanKind::ZstdFrame,
        None => {
            let length = u32::try_from(draft.seekable.end - draft.seekable.start)
                .expect("a frame of the seekable file has the content of one span");
            position = (length, draft.seekable.start);
            if draft.continues_frame { SpanKind::LongFrameRest } else { SpanKind::LongFrame }
        }
        Some(Checkpoint::Deflate { skip_bits, block, window }) => {
            skip = *skip_bits;
            let mut header = Vec::new();
            if let Some(block) = block {
                position = (block.bits, block.start_bit);
                stored_before = block.stored_before;
                let bytes = block.bytes();
                header.resize(usize::try_from(bytes.end - bytes.start).unwrap_or(0), 0);
                blob.read_exact_at(&mut header, bytes.start).map_err(BuildError::Blob)?;
            }
            if block.is_some() || !window.runs.is_empty() {
                window_position = groups.push(window, &header).map_err(BuildError::Windows)?;
            }
            SpanKind::Deflate
        }
    };
    let hash = hash_range(blob, &draft.blob).map_err(BuildError::Blob)?;
    let mut record = [0; SPAN_LEN];
    record[..8].copy_from_slice(&draft.tar.to_le_bytes());
    record[8..16].copy_from_slice(&draft.blob.start.to_le_bytes());
    record[16..24].copy_from_slice(&(draft.blob.end - draft.blob.start).to_le_bytes());
    record[24..28].copy_from_slice(&draft.crc.clone().finalize().to_le_bytes());
    record[28] = kind as u8;
    record[29] = skip;
    record[30..32].copy_from_slice(&window_position.1.to_le_bytes());
    record[32..36].copy_from_slice(&window_position.0.to_le_bytes());
    record[36..40].copy_from_slice(&position.0.to_le_bytes());
    record[40..48].copy_from_slice(&position.1.to_le_bytes());
    record[48..50].copy_from_slice(&stored_before.to_le_bytes());
    record[SPAN_HASH_AT..].copy_from_slice(hash.as_bytes());
    Ok(record)
}
