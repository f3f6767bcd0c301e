//! isolate's meta file: lines `key:value` about the end of a run.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The content of a meta file, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IsolateMeta {
    pairs: Vec<(String, String)>,
}

impl IsolateMeta {
    /// Parses a meta file. Lines without a colon are skipped; bytes that are not UTF-8 become replacement characters.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let pair = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self { pairs: text.lines().filter_map(pair).collect() }
    }

    /// Returns the value of a key. If the key is repeated, the last value applies, as in readers that fill a table.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns all pairs, in the order of the file.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns whether the sandbox failed, not the program in it.
    #[must_use]
    pub fn is_internal_error(&self) -> bool {
        self.value("status") == Some("XX")
    }
}

/// Returns the meta file of a run in which the sandbox failed: status `XX` and the message, as one line.
#[must_use]
pub fn failure_text(message: &str) -> String {
    let line: String = message.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    format!("status:XX\nmessage:{}\n", line.trim())
}

/// Writes [`failure_text`] to a meta file. As with isolate, an existing file is truncated, and `-` is standard output.
///
/// The file is opened with the current credentials of this process.
///
/// # Errors
/// The file cannot be opened or written.
pub fn write_failure(path: &Path, message: &str) -> io::Result<()> {
    let text = failure_text(message);
    if path == Path::new("-") {
        let mut out = io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o666).custom_flags(libc::O_NOCTTY);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_file_is_parsed_line_by_line() {
        let meta =
            IsolateMeta::parse(b"time:0.012\nstatus:RE\nmessage:Exited: with error\nnothing\nexitcode:1\n");
        assert_eq!(meta.value("message"), Some("Exited: with error"));
        assert_eq!(meta.value("nothing"), None);
        assert!(!meta.is_internal_error());
        let keys: Vec<&str> = meta.pairs().map(|(key, _)| key).collect();
        assert_eq!(keys, ["time", "status", "message", "exitcode"]);
    }

    #[test]
    fn failure_is_two_lines_whatever_the_message_contains() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("meta");
        std::fs::write(&file, "time:1\nstatus:OK\n a text longer than the new content\n").unwrap();
        write_failure(&file, "image `a\nstatus:OK`:\tnot there\n").unwrap();
        let written = std::fs::read(&file).unwrap();
        assert_eq!(written, b"status:XX\nmessage:image `a status:OK`: not there\n");
        assert!(IsolateMeta::parse(&written).is_internal_error());
        let error = write_failure(&dir.path().join("missing/meta"), "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
