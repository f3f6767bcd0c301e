//! The file of `run --meta`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::output;

/// An open meta file.
pub(super) struct MetaFile {
    /// `None` for standard output.
    file: Option<File>,
    path: PathBuf,
}

impl MetaFile {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = match path == Path::new("-") {
            true => None,
            false => Some(
                File::create(path).with_context(|| format!("cannot open meta file {}", path.display()))?,
            ),
        };
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        match &mut self.file {
            None => output::bytes(text),
            Some(file) => file
                .write_all(text)
                .with_context(|| format!("cannot write meta file {}", self.path.display())),
        }
    }
}
