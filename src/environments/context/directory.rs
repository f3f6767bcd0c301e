//! Reads the names of a directory that becomes a context.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{
    ContextEntries, ContextEntry, ContextEntryKind, ContextError, ENTRIES_MAX, add_size, checked_path,
};
use crate::os::AtPath as _;

/// Lists a directory, following no link.
pub(super) fn read(directory: &Path, limit: u64) -> Result<ContextEntries, ContextError> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut entries = ContextEntries::new();
    let mut total = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let listed = directory.join(&below);
        for entry in fs::read_dir(&listed).at("list", &listed)? {
            let entry = entry.at("list", &listed)?;
            let path = below.join(entry.file_name());
            checked_path(path.as_os_str().as_bytes())?;
            let file = entry.path();
            let metadata = entry.metadata().at("stat", &file)?;
            let kind = if metadata.is_dir() {
                open.push(path.clone());
                ContextEntryKind::Directory
            } else if metadata.is_symlink() {
                ContextEntryKind::Link(fs::read_link(&file).at("read the link", &file)?)
            } else if metadata.is_file() {
                ContextEntryKind::File { size: metadata.len(), offset: 0 }
            } else {
                return Err(ContextError::entry(&path, "is a device, a socket or a pipe"));
            };
            let size = if let ContextEntryKind::File { size, .. } = kind { size } else { 0 };
            add_size(&mut total, size, limit)?;
            entries.insert(path, ContextEntry { mode: metadata.permissions().mode() & 0o777, kind });
            if entries.len() > ENTRIES_MAX {
                return Err(ContextError::Entries);
            }
        }
    }
    Ok(entries)
}
