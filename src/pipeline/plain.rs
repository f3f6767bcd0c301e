//! Makes and opens plain layers: decoded layers in the store, which the kernel reads without the daemon.
//!
//! A layer that is being stored gets its plain layer in the same pass ([`PlainPass`]); one that is in the store is decoded once more
//! ([`make_plain_layer`]). An image can be used without its plain layers, so no failure here makes a pull or a load fail.

use std::time::Duration;

use super::{PipelineError, open_layer};
use crate::erofs::format::BLOCK;
use crate::erofs::{LayerDevice, PlainFile, PlainFileFault, PlainLayerError, PlainWriter, write_plain};
use crate::error::chain_text;
use crate::image::LayerDigest;
use crate::store::{PlainDraft, PlainRoom, Store, StoreError};

/// How long to wait for another process that makes the same plain layer. It may be a thread of the daemon with the lowest priority.
const MAKE_WAIT: Duration = Duration::from_secs(30 * 60);

/// The content of a plain layer, for [`check_plain_layer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainCheck {
    /// The trailer and the length.
    Trailer,
    /// The content as well.
    Content,
}

/// Opens the plain layer of a layer for use; `None` if there is none that can be used. Checks its trailer and its length.
///
/// The kernel must not read the file longer than the caller has it open: until then, nothing removes it to make room for others.
///
/// # Errors
/// The store cannot be read.
pub fn plain_layer(store: &Store, layer: &LayerDigest) -> Result<Option<PlainFile>, PipelineError> {
    let Some(file) = usable(store, layer, PlainCheck::Trailer)?.ok() else { return Ok(None) };
    if let Some(file) = &file {
        store.note_plain_use(file.file());
    }
    Ok(file)
}

/// Checks the plain layer of a layer. A fault is logged, and the file removed. Returns the fault; `None` if there is no plain layer
/// or it has no fault.
///
/// # Errors
/// The store cannot be read.
pub fn check_plain_layer(
    store: &Store,
    layer: &LayerDigest,
    check: PlainCheck,
) -> Result<Option<PlainFileFault>, PipelineError> {
    Ok(usable(store, layer, check)?.err())
}

/// Opens the plain layer of a layer; `None` if it is missing. One with a fault is removed.
fn usable(
    store: &Store,
    layer: &LayerDigest,
    check: PlainCheck,
) -> Result<Result<Option<PlainFile>, PlainFileFault>, PipelineError> {
    let Some(file) = store.plain_file(layer)? else { return Ok(Ok(None)) };
    let again = file.try_clone().map_err(|error| plain_error(layer, error.into()))?;
    let fault = match PlainFile::open(file, layer) {
        Ok(plain) if check == PlainCheck::Trailer => return Ok(Ok(Some(plain))),
        Ok(plain) => match plain.verify() {
            Ok(()) => return Ok(Ok(Some(plain))),
            Err(fault) => fault,
        },
        Err(fault) => fault,
    };
    tracing::warn!("plain layer of {layer}: {fault}; it is removed");
    let discard = || match store.lock_plain(layer, Duration::ZERO)? {
        Some(lock) => store.discard_plain(layer, &again, &lock).map(drop),
        // The process that holds the lock replaces the file.
        None => Ok(()),
    };
    if let Err(error) = discard() {
        tracing::warn!("plain layer of {layer}: {error}");
    }
    Ok(Err(fault))
}

/// Makes the plain layer of a layer in the store; returns whether it did: it may exist, or another process may make it meanwhile.
///
/// # Errors
/// The layer cannot be decoded, the file cannot be written, or there is no room for it. Nothing is left of it then.
pub fn make_plain_layer(store: &Store, layer: &LayerDigest, room: PlainRoom) -> Result<bool, PipelineError> {
    let exists = || {
        Ok::<_, PipelineError>(usable(store, layer, PlainCheck::Trailer)?.is_ok_and(|file| file.is_some()))
    };
    if exists()? {
        return Ok(false);
    }
    let Some(lock) = store.lock_plain(layer, MAKE_WAIT)? else { return Ok(false) };
    // Another process may have made it meanwhile.
    if exists()? {
        return Ok(false);
    }
    let open = open_layer(store, *layer)?;
    let device = LayerDevice::of(open.index());
    let draft = store.create_plain(layer, lock, room)?;
    // The tar and the trailer: most layers have no sparse files.
    draft.require_room(open.index().tar_size().next_multiple_of(BLOCK) + BLOCK)?;
    write_plain(&open, &device, &draft).map_err(|error| written(layer, &draft, error))?;
    draft.commit()?;
    Ok(true)
}

fn plain_error(layer: &LayerDigest, source: PlainLayerError) -> PipelineError {
    PipelineError::PlainLayer { layer: *layer, source }
}

/// Finds the error of the store in that of a write.
fn written(layer: &LayerDigest, draft: &PlainDraft, error: PlainLayerError) -> PipelineError {
    match error {
        PlainLayerError::Write(error) => StoreError::from_write(&draft.path(), error).into(),
        error => plain_error(layer, error),
    }
}

/// A plain layer that is written while its layer is decoded for the first time. A failure is logged and ends only the plain layer.
#[derive(Debug)]
pub(super) struct PlainPass {
    layer: LayerDigest,
    /// `None` after a failure.
    writing: Option<(PlainDraft, PlainWriter)>,
}

impl PlainPass {
    /// Starts to write a plain layer. Returns `None` if it exists or if another process makes it.
    pub(super) fn start(store: &Store, layer: LayerDigest, room: PlainRoom) -> Option<Self> {
        let start = || -> Result<Option<PlainDraft>, PipelineError> {
            if let Ok(Some(_)) = usable(store, &layer, PlainCheck::Trailer)? {
                return Ok(None);
            }
            // Does not wait: the caller holds the lock of the blob.
            match store.lock_plain(&layer, Duration::ZERO)? {
                Some(lock) => Ok(Some(store.create_plain(&layer, lock, room)?)),
                None => Ok(None),
            }
        };
        match start() {
            Ok(draft) => Some(Self { layer, writing: Some((draft?, PlainWriter::new())) }),
            Err(error) => {
                log_failure(&layer, &error);
                None
            }
        }
    }

    /// Writes the next bytes of the tar.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let Some((draft, writer)) = &mut self.writing else { return };
        if let Err(error) = writer.append(bytes, draft) {
            log_failure(&self.layer, &written(&self.layer, draft, error.into()));
            // Frees the disk space at once: the blob may need it.
            self.writing = None;
        }
    }

    /// Completes the plain layer. The layer must be in the store, with its index. The caller must not hold the lock of its blob.
    pub(super) fn finish(self, store: &Store) {
        let Some((draft, writer)) = self.writing else { return };
        let finish = || -> Result<(), PipelineError> {
            let open = open_layer(store, self.layer)?;
            let device = LayerDevice::of(open.index());
            let finished = writer.finish(open.index(), &device, &draft);
            finished.map_err(|error| written(&self.layer, &draft, error))?;
            Ok(draft.commit()?)
        };
        if let Err(error) = finish() {
            log_failure(&self.layer, &error);
        }
    }
}

/// Makes the plain layer of a layer that is in the store, if it is missing. A failure is logged.
pub(super) fn ensure_plain_layer(store: &Store, layer: &LayerDigest, room: PlainRoom) {
    if let Err(error) = make_plain_layer(store, layer, room) {
        log_failure(layer, &error);
    }
}

fn log_failure(layer: &LayerDigest, error: &PipelineError) {
    tracing::warn!("layer {layer} has no plain layer: {}", chain_text(error));
}
