//! Dumps a directory tree in the syntax of `tree::dump`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rcx_imagefs::layer::Printable;

/// Files up to this length are dumped in full, longer ones as their length with the first and last [`PART`] bytes.
const WHOLE: u64 = 4096;
/// Number of bytes at each end of a longer file.
const PART: usize = 16;

/// The content of a file as its line in a dump has it.
pub fn content<E>(size: u64, read: impl Fn(u64, usize) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    if size <= WHOLE {
        return read(0, usize::try_from(size).expect("not more than WHOLE"));
    }
    let (first, last) = (read(0, PART)?, read(size - PART as u64, PART)?);
    Ok([format!("[{size}]").as_bytes(), &first, b"...", &last].concat())
}

/// Dumps a tree.
///
/// Names that are listed but cannot be found are marked `?`. A file whose link count differs from its number of names gets
/// `nlink=`. Times from `since` on, in seconds, are written as `mtime=now`, because they cannot be predicted.
pub fn dump(root: &Path, since: i64) -> io::Result<String> {
    let meta = fs::symlink_metadata(root)?;
    let mut reader = TreeReader { since, lines: Vec::new(), files: HashMap::new() };
    let attributes = reader.attributes(root, &meta, 0o755)?;
    if !attributes.is_empty() {
        reader.lines.push(format!("d /{attributes}"));
    }
    reader.directory(root, "")?;
    for file in reader.files.values() {
        if file.names != file.nlink {
            let _ = write!(reader.lines[file.line], " nlink={}", file.nlink);
        }
    }
    Ok(reader.lines.iter().map(|line| format!("{line}\n")).collect())
}

struct TreeReader {
    since: i64,
    lines: Vec<String>,
    files: HashMap<(u64, u64), SeenFile>,
}

/// A file that has been seen under at least one name.
struct SeenFile {
    first: String,
    line: usize,
    names: u64,
    nlink: u64,
}

impl TreeReader {
    fn directory(&mut self, directory: &Path, inside: &str) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name());
        }
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            let path = directory.join(&name);
            let inside = format!("{inside}{}", field(name.as_bytes()));
            let meta = match fs::symlink_metadata(&path) {
                // Listed but missing: the effect of a wrong whiteout.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.lines.push(format!("? {inside}"));
                    continue;
                }
                meta => meta?,
            };
            if meta.is_dir() {
                let attributes = self.attributes(&path, &meta, 0o755)?;
                self.lines.push(format!("d {inside}{attributes}"));
                self.directory(&path, &format!("{inside}/"))?;
                continue;
            }
            if let Some(seen) = self.files.get_mut(&(meta.dev(), meta.ino())) {
                seen.names += 1;
                self.lines.push(format!("h {inside} {}", seen.first));
                continue;
            }
            let seen =
                SeenFile { first: inside.clone(), line: self.lines.len(), names: 1, nlink: meta.nlink() };
            self.files.insert((meta.dev(), meta.ino()), seen);
            let (kind, content, usual) = kind_of(&path, &meta)?;
            let space = if content.is_empty() { "" } else { " " };
            let attributes = self.attributes(&path, &meta, usual)?;
            self.lines.push(format!("{kind} {inside}{space}{content}{attributes}"));
        }
        Ok(())
    }

    fn attributes(&self, path: &Path, meta: &Metadata, usual: u32) -> io::Result<String> {
        let mut text = String::new();
        if meta.mode() & 0o7777 != usual {
            let _ = write!(text, " mode={:o}", meta.mode() & 0o7777);
        }
        for (key, value) in [("uid", meta.uid()), ("gid", meta.gid())] {
            if value != 0 {
                let _ = write!(text, " {key}={value}");
            }
        }
        match (meta.mtime(), meta.mtime_nsec()) {
            (0, 0) => {}
            (sec, _) if sec >= self.since => text += " mtime=now",
            (sec, 0) => drop(write!(text, " mtime={sec}")),
            (sec, nsec) if sec >= 0 => drop(write!(text, " mtime={sec}.{nsec:09}")),
            (sec, nsec) => drop(write!(text, " mtime=-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec)),
        }
        let mut names = vec![0; 1 << 16];
        let size = rustix::fs::llistxattr(path, &mut names)?;
        let mut names: Vec<&[u8]> = names[..size].split(|byte| *byte == 0).collect();
        names.sort_unstable();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            let mut value = vec![0; 1 << 16];
            let size = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
            let _ = write!(text, " xattr.{}={}", field(name), field(&value[..size]));
        }
        Ok(text)
    }
}

fn kind_of(path: &Path, meta: &Metadata) -> io::Result<(char, String, u32)> {
    let kind = meta.file_type();
    let device = || {
        let rdev = meta.rdev();
        format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev))
    };
    Ok(if kind.is_symlink() {
        ('l', field(fs::read_link(path)?.as_os_str().as_bytes()), 0o777)
    } else if kind.is_char_device() {
        ('c', device(), 0o644)
    } else if kind.is_block_device() {
        ('b', device(), 0o644)
    } else if kind.is_fifo() {
        ('p', String::new(), 0o644)
    } else if kind.is_file() {
        let file = File::open(path)?;
        let bytes = content(meta.len(), |at, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at).map(|()| bytes)
        })?;
        ('f', field(&bytes), 0o644)
    } else {
        ('?', String::new(), 0o644)
    })
}

fn field(bytes: &[u8]) -> String {
    Printable(bytes).to_string().replace(' ', "\\x20").replace('=', "\\x3d")
}
