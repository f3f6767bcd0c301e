//! Space for removing images from a full disk.
//!
//! Removing an image writes a new `index.json`, which a full disk has no room for. The file `reserve` holds enough allocated
//! blocks for it: the new content is written into that file, which then becomes `index.json`.

use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, OFlags};

use super::Store;
use super::dir::Dir;
use super::error::StoreError;
use super::layout::FILE_MODE;
use crate::os::AtPath as _;

/// The file with the reserved space, in `rcx-imagefs`.
const RESERVE: &str = "reserve";
/// Least size of the reserve in bytes. It is at least twice as long as `index.json`.
const RESERVE_MIN: u64 = 64 << 10;

impl Store {
    /// Makes the reserve large enough for a file of `length` bytes, if the disk has room. A failure is only logged.
    pub(super) fn keep_reserve(&self, length: usize) {
        let size = (length as u64 * 2).next_multiple_of(RESERVE_MIN).max(RESERVE_MIN);
        let allocate = || -> Result<(), StoreError> {
            let top = self.make_top()?;
            let file = top.file_with(RESERVE, OFlags::RDWR | OFlags::CREATE, FILE_MODE)?;
            let path = top.path_of(RESERVE);
            if file.metadata().at("stat", &path)?.len() >= size {
                return Ok(());
            }
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size).map_err(io::Error::from) {
                // Without fallocate(2), only written bytes occupy space.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let bytes = vec![0xff; usize::try_from(size).unwrap_or(0)];
                    Ok(file.write_all_at(&bytes, 0).at("write", &path)?)
                }
                result => Ok(result.at("write", &path)?),
            }
        };
        if let Err(error) = allocate() {
            tracing::debug!("cannot reserve space for removals: {error}");
        }
    }

    /// Replaces `name` in `target` by `bytes`, in the space of the reserve. Returns false if the reserve is missing or too
    /// small.
    pub(super) fn replace_from_reserve(
        &self,
        target: &Dir,
        name: &str,
        bytes: &[u8],
    ) -> Result<bool, StoreError> {
        let Some(top) = self.top()? else { return Ok(false) };
        if top.stat(RESERVE)?.is_none() {
            return Ok(false);
        }
        let path = top.path_of(RESERVE);
        let file = top.file_with(RESERVE, OFlags::RDWR, FILE_MODE)?;
        if file.metadata().at("stat", &path)?.len() < bytes.len() as u64 {
            return Ok(false);
        }
        file.write_all_at(bytes, 0).at("write", &path)?;
        file.set_len(bytes.len() as u64).at("write", &path)?;
        file.sync_all().at("sync", &path)?;
        top.rename(RESERVE, target, name)?;
        target.sync()?;
        Ok(true)
    }
}
