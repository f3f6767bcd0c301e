//! The file of a box: a lock that ends with its holder, and a record of what to clean if the holder is killed.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use crate::os::{self, AtPath as _};

/// Largest record that is read, in bytes. Records are a few hundred bytes long.
const RECORD_MAX: u64 = 64 << 10;

/// The remains of a killed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "sandbox")]
pub(super) enum BoxRecord {
    /// A box that isolate made.
    Isolate { program: PathBuf, cg: bool, root: String },
    /// A directory that this program made.
    Bwrap { root: String },
}

impl BoxRecord {
    /// Returns the source of the run's root in the mount table.
    pub(super) fn root(&self) -> &str {
        match self {
            Self::Isolate { root, .. } | Self::Bwrap { root } => root,
        }
    }
}

/// A box that belongs to this process.
///
/// If the lock is dropped without [`release`](Self::release), the box is in the state that a killed run leaves: unlocked, with
/// its record.
#[derive(Debug)]
pub(super) struct BoxLock {
    id: u32,
    file: File,
    path: PathBuf,
}

impl BoxLock {
    /// Returns the lock of box `id`. `file` is the locked file at `path`.
    pub(super) fn new(id: u32, file: File, path: PathBuf) -> Self {
        Self { id, file, path }
    }

    /// The number of the box.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// The locked file. The box stays locked while any process has it open.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads the record. `None` if the last run has cleaned up, or was killed before it had made anything.
    pub(super) fn read(&mut self) -> Result<Option<BoxRecord>, SandboxError> {
        let mut bytes = Vec::new();
        self.file.rewind().at("read", &self.path)?;
        (&self.file).take(RECORD_MAX).read_to_end(&mut bytes).at("read", &self.path)?;
        // An incomplete record belongs to a run that was killed before it had made anything.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Writes the record. The caller must do this before it makes anything that needs cleaning.
    pub(super) fn write(&mut self, record: &BoxRecord) -> Result<(), SandboxError> {
        let mut write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&text)
        };
        Ok(write().at("write", &self.path)?)
    }

    /// Releases the box. The caller must have cleaned it.
    pub(super) fn release(self) -> Result<(), SandboxError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", &self.path)?,
            _ => {}
        }
        os::unlock(&self.file);
        Ok(())
    }
}
