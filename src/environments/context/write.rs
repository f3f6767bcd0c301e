//! Writes a context as a tar that depends on its files alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::Digest as _;
use tar::{Builder, EntryType, Header};

use super::{ContextEntries, ContextEntry, ContextEntryKind, ContextError, ContextSource, ContextSummary};
use crate::image::Digest;
use crate::os::{AtPath as _, PathError};

/// Counts and hashes what is written.
struct SummaryWriter<W> {
    out: W,
    sha256: sha2::Sha256,
    size: u64,
}

impl<W> SummaryWriter<W> {
    fn new(out: W) -> Self {
        Self { out, sha256: sha2::Sha256::new(), size: 0 }
    }

    fn digest(self) -> Digest {
        Digest::new(self.sha256.finalize().into())
    }
}

impl<W: Write> Write for SummaryWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all entries in the order of their paths.
pub(super) fn write(
    source: ContextSource<'_>,
    entries: &ContextEntries,
    limit: u64,
    out: &mut File,
) -> Result<ContextSummary, ContextError> {
    let mut builder = Builder::new(io::BufWriter::new(SummaryWriter::new(out)));
    for (path, entry) in entries {
        append(source, &mut builder, path, entry)?;
    }
    let written = builder.into_inner().and_then(|buffer| buffer.into_inner().map_err(io::Error::from));
    let summary = written.at("write", Path::new("context.tar"))?;
    if summary.size > limit {
        return Err(ContextError::Size { limit });
    }
    Ok(ContextSummary { size: summary.size, entries: entries.len(), digest: summary.digest() })
}

/// Returns the digest of a file. Reads all of it.
pub(super) fn digest(mut file: &File) -> io::Result<Digest> {
    let mut hashed = SummaryWriter::new(io::sink());
    io::copy(&mut file, &mut hashed)?;
    Ok(hashed.digest())
}

fn append(
    source: ContextSource<'_>,
    builder: &mut Builder<impl Write>,
    path: &Path,
    entry: &ContextEntry,
) -> Result<(), ContextError> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let appended = match &entry.kind {
        ContextEntryKind::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, path, io::empty())
        }
        ContextEntryKind::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            // The kernel ignores the mode of a link, and filesystems have different ones.
            header.set_mode(0o777);
            header.set_size(0);
            builder.append_link(&mut header, path, target)
        }
        &ContextEntryKind::File { size, offset } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            let content: Box<dyn Read> = match source {
                ContextSource::Directory(directory) => Box::new(open(&directory.join(path))?),
                ContextSource::Archive(file) => Box::new(ContentAt { file, offset }),
            };
            let mut content = ExactContent { content: content.take(size), left: size };
            builder.append_data(&mut header, path, &mut content)
        }
    };
    appended.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            ContextError::entry(path, "ends early: the tar is truncated, or the file has changed")
        }
        _ => PathError::new("pack", path, error).into(),
    })
}

/// Opens a file that was a regular one when its directory was listed.
fn open(path: &Path) -> Result<File, ContextError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty()).map(File::from).at("open", path)?)
}

/// The content of a file in a tar.
struct ContentAt<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for ContentAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Content that must have the length in its header.
struct ExactContent<R> {
    content: io::Take<R>,
    left: u64,
}

impl<R: Read> Read for ExactContent<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.left -= count as u64;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
