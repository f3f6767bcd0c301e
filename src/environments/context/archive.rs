//! Reads the names of a tar that becomes a context.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::{
    ContextEntries, ContextEntry, ContextEntryKind, ContextError, ENTRIES_MAX, add_size, checked_path,
};

/// The first bytes of gzip, zstd, xz and bzip2.
pub(super) const MAGIC: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"];

/// Lists a tar. Reads no content of files.
pub(super) fn read(file: &File, limit: u64) -> Result<ContextEntries, ContextError> {
    let mut start = Vec::new();
    rewound(file)?.take(6).read_to_end(&mut start).map_err(ContextError::archive)?;
    if MAGIC.iter().any(|magic| start.starts_with(magic)) {
        return Err(ContextError::Compressed);
    }
    let mut entries = ContextEntries::new();
    let mut total = 0;
    let mut archive = Archive::new(rewound(file)?);
    for entry in archive.entries_with_seek().map_err(ContextError::archive)? {
        let mut entry = entry.map_err(ContextError::archive)?;
        let kind = entry.header().entry_type();
        // `git archive` writes one with the commit.
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let path = checked_path(&entry.path_bytes())?;
        if path.as_os_str().is_empty() {
            continue;
        }
        if is_sparse(&mut entry)? {
            return Err(ContextError::entry(&path, "is a sparse file; pack it without --sparse"));
        }
        let target = || entry.link_name_bytes().map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)));
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous => {
                ContextEntryKind::File { size: entry.size(), offset: entry.raw_file_position() }
            }
            EntryType::Directory => ContextEntryKind::Directory,
            EntryType::Symlink => ContextEntryKind::Link(target().unwrap_or_default()),
            EntryType::Link => linked(&entries, &path, target())?,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(ContextError::entry(&path, "is a device or a pipe"));
            }
            _ => return Err(ContextError::entry(&path, "has an unknown type in the tar")),
        };
        let mode = entry.header().mode().map_err(ContextError::archive)? & 0o777;
        let size = if let ContextEntryKind::File { size, .. } = kind { size } else { 0 };
        add_size(&mut total, size, limit)?;
        let is_directory = matches!(kind, ContextEntryKind::Directory);
        let before = entries.insert(path.clone(), ContextEntry { mode, kind });
        if before.is_some_and(|before| !is_directory || !matches!(before.kind, ContextEntryKind::Directory)) {
            return Err(ContextError::entry(&path, "occurs twice"));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(ContextError::Entries);
        }
    }
    Ok(entries)
}

/// The tar from its start.
pub(super) fn rewound(mut file: &File) -> Result<&File, ContextError> {
    file.rewind().map_err(ContextError::archive)?;
    Ok(file)
}

fn is_sparse(entry: &mut tar::Entry<'_, &File>) -> Result<bool, ContextError> {
    if entry.header().entry_type() == EntryType::GNUSparse {
        return Ok(true);
    }
    let Some(records) = entry.pax_extensions().map_err(ContextError::archive)? else { return Ok(false) };
    for record in records {
        let record = record.map_err(ContextError::archive)?;
        if record.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the file that a hard link of the tar names. It must come before the link.
fn linked(
    entries: &ContextEntries,
    path: &Path,
    target: Option<PathBuf>,
) -> Result<ContextEntryKind, ContextError> {
    let target = target.unwrap_or_default();
    let leads_out = || ContextError::Link { path: path.to_owned(), target: target.clone() };
    let file = checked_path(target.as_os_str().as_bytes()).map_err(|_| leads_out())?;
    match entries.get(&file).map(|entry| &entry.kind) {
        Some(&ContextEntryKind::File { size, offset }) => Ok(ContextEntryKind::File { size, offset }),
        _ => Err(ContextError::entry(path, "is a hard link to no file that comes before it")),
    }
}
