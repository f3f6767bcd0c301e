//! The list `headers.env` in the configuration of a ReCodEx worker: the lines between two marker comments.
//!
//! Everything else in the file is kept byte for byte, so the file is not parsed as YAML.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::id::EnvironmentId;
use crate::error::ErrorCode;
use crate::os::{AtPath as _, PathError};

/// The comment before the list.
const BEGIN: &str = "# rcx-imagefs: begin";
/// The comment after the list.
const END: &str = "# rcx-imagefs: end";

/// The configuration of a worker cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFileError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The file has no markers, or not one of each, or not in this order.
    #[error("{}: {reason}", .path.display())]
    Markers {
        /// The file.
        path: PathBuf,
        /// What is wrong with the markers.
        reason: String,
    },
}

impl WorkerFileError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(error) => error.code(),
            Self::Markers { .. } => ErrorCode::WorkerFile,
        }
    }

    /// Advice for the user.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io(_) => None,
            Self::Markers { .. } => Some(
                "`headers:` of the file needs these lines, once: `    env:`, `        # rcx-imagefs: begin`, `        # rcx-imagefs: end`",
            ),
        }
    }
}

/// The configuration file of a worker, with markers.
#[derive(Debug)]
pub struct WorkerFile {
    path: PathBuf,
    text: Vec<u8>,
    /// The offsets of the lines between the markers.
    list: std::ops::Range<usize>,
    /// What stands before the markers in their lines.
    indent: Vec<u8>,
    line_end: &'static [u8],
}

impl WorkerFile {
    /// Reads a file and finds its markers. A symbolic link is followed.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no usable markers.
    pub fn read(path: &Path) -> Result<Self, WorkerFileError> {
        let path = fs::canonicalize(path).at("open", path)?;
        let text = fs::read(&path).at("read", &path)?;
        Self::parse(path, text)
    }

    fn parse(path: PathBuf, text: Vec<u8>) -> Result<Self, WorkerFileError> {
        let mut begins = Vec::new();
        let mut ends = Vec::new();
        let mut offset = 0;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let range = offset..offset + line.len();
            offset = range.end;
            match line.trim_ascii() {
                word if word == BEGIN.as_bytes() => begins.push(range),
                word if word == END.as_bytes() => ends.push(range),
                _ => {}
            }
        }
        let markers = |reason: String| WorkerFileError::Markers { path: path.clone(), reason };
        let (begin, end) = match (begins.as_slice(), ends.as_slice()) {
            ([begin], [end]) if begin.end <= end.start => (begin.clone(), end.clone()),
            ([_], [_]) => return Err(markers(format!("`{END}` stands before `{BEGIN}`"))),
            ([], _) => return Err(markers(format!("it has no line `{BEGIN}`"))),
            (_, []) => return Err(markers(format!("it has no line `{END}`"))),
            ([_], _) => return Err(markers(format!("it has the line `{END}` twice"))),
            _ => return Err(markers(format!("it has the line `{BEGIN}` twice"))),
        };
        let line = &text[begin.clone()];
        let indent: Vec<u8> = line.iter().copied().take_while(u8::is_ascii_whitespace).collect();
        if indent.contains(&b'\t') {
            return Err(markers(format!("`{BEGIN}` is indented by tabs, which YAML does not allow")));
        }
        let line_end: &[u8] = if line.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        Ok(Self { path, list: begin.end..end.start, indent, line_end, text })
    }

    /// The file with these environments between the markers.
    fn with(&self, ids: &[EnvironmentId]) -> Vec<u8> {
        let mut text = self.text[..self.list.start].to_vec();
        for id in ids {
            text.extend_from_slice(&self.indent);
            // An ID may look like a number or a truth value.
            text.extend_from_slice(format!("- \"{id}\"").as_bytes());
            text.extend_from_slice(self.line_end);
        }
        text.extend_from_slice(&self.text[self.list.end..]);
        text
    }

    /// Writes these environments between the markers, and returns whether that changes the file. The file is replaced in one step; owner
    /// and mode stay.
    ///
    /// # Errors
    ///
    /// The file or its directory cannot be written. The file is then as before.
    pub fn write(&self, ids: &[EnvironmentId]) -> Result<bool, WorkerFileError> {
        let text = self.with(ids);
        if text == self.text {
            return Ok(false);
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = self.path.with_file_name(format!(".{name}.rcx-imagefs-{}", std::process::id()));
        let written = self.write_to(&temporary, &text);
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.map(|()| true)
    }

    fn write_to(&self, temporary: &Path, text: &[u8]) -> Result<(), WorkerFileError> {
        let before = fs::metadata(&self.path).at("stat", &self.path)?;
        let mut options = File::options();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(temporary).at("create", temporary)?;
        file.write_all(text).at("write", temporary)?;
        let own = file.metadata().at("stat", temporary)?;
        if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))
                .at("chown", temporary)?;
        }
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777)).at("chmod", temporary)?;
        file.sync_all().at("sync", temporary)?;
        fs::rename(temporary, &self.path).at("rename", temporary)?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let sync = || -> io::Result<()> { File::open(parent)?.sync_all() };
        Ok(sync().at("sync", parent)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(texts: &[&str]) -> Vec<EnvironmentId> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn parse(text: &str) -> Result<WorkerFile, WorkerFileError> {
        WorkerFile::parse("/etc/worker.yml".into(), text.as_bytes().to_vec())
    }

    #[test]
    fn only_the_lines_between_the_markers_change() {
        let before = "# top\nworker-id: 1\t# tab\nheaders:\n    env:\n        - bash # of the host\n        # rcx-imagefs: begin\n";
        let after = "        # rcx-imagefs: end\n    threads: 4\nunknown: {a: [1,\t2]}   \nlast: \u{fe}";
        let file = parse(&format!("{before}        - old\n# own comment\n{after}")).unwrap();
        let written = String::from_utf8(file.with(&ids(&["c-gcc-linux", "7"]))).unwrap();
        assert_eq!(written, format!("{before}        - \"c-gcc-linux\"\n        - \"7\"\n{after}"));
        let empty = parse(&written).unwrap().with(&[]);
        assert_eq!(String::from_utf8(empty).unwrap(), format!("{before}{after}"));
    }

    #[test]
    fn line_ends_of_the_file_are_kept() {
        let file = parse("env:\r\n  # rcx-imagefs: begin\r\n  # rcx-imagefs: end\r\n").unwrap();
        let written = file.with(&ids(&["a"]));
        assert_eq!(written, b"env:\r\n  # rcx-imagefs: begin\r\n  - \"a\"\r\n  # rcx-imagefs: end\r\n");
    }

    #[test]
    fn each_marker_must_stand_once_and_in_order() {
        let (begin, end) = ("  # rcx-imagefs: begin\n", "  # rcx-imagefs: end\n");
        for (text, expected) in [
            ("headers:\n  env:\n    - c\n".to_owned(), "no line `# rcx-imagefs: begin`"),
            (begin.to_owned(), "no line `# rcx-imagefs: end`"),
            (format!("{end}{begin}"), "stands before"),
            (format!("{begin}{begin}{end}"), "begin` twice"),
            (format!("{begin}{end}{end}"), "end` twice"),
            (format!("\t# rcx-imagefs: begin\n{end}"), "tabs"),
        ] {
            let error = parse(&text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::WorkerFile);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().unwrap().contains(BEGIN));
        }
    }

    #[test]
    fn file_is_replaced_with_its_owner_and_mode_and_only_if_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("worker.yml"), dir.path().join("link"));
        fs::write(&path, "env:\n# rcx-imagefs: begin\n# rcx-imagefs: end\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("worker.yml", &link).unwrap();
        assert!(WorkerFile::read(&link).unwrap().write(&ids(&["a"])).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!WorkerFile::read(&link).unwrap().write(&ids(&["a"])).unwrap());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.ino(), metadata.mode() & 0o7777), (inode, 0o640));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
