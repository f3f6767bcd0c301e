//! Resolves paths inside an opened image.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::OpenImage;
use crate::error::ErrorCode;
use crate::index::{Entry, IndexedKind};
use crate::os::{LINKS_MAX, PathWalk, TooManyLinks};
use crate::tree::{NodeId, NodeSource};

/// The reason why a path does not lead to a file of an image.
#[derive(Debug, thiserror::Error)]
pub enum NodePathError {
    /// There is no such file.
    #[error("the image has no file {}", .0.display())]
    Missing(PathBuf),
    /// The path continues after a file that is not a directory.
    #[error("{} is not a directory in the image", .0.display())]
    NotADirectory(PathBuf),
    /// The path has too many links, perhaps in a circle.
    #[error("cannot resolve {} in the image", path.display())]
    Links {
        /// The path.
        path: PathBuf,
        /// The limit.
        source: TooManyLinks,
    },
}

impl NodePathError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::NoFile
    }
}

/// A file of an image, found by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNode {
    /// The file.
    pub node: NodeId,
    /// Its path in the image: absolute, without links in its directories.
    pub path: PathBuf,
}

impl OpenImage {
    /// Finds the file at a path, which may be absolute or relative to the image's root. Symbolic links lead to files of the image
    /// only. A link at the end is followed only with `follow_last`, or if the path ends with a slash.
    ///
    /// # Errors
    /// There is no such file in the image.
    pub fn find(&self, path: &Path, follow_last: bool) -> Result<FoundNode, NodePathError> {
        let bytes = path.as_os_str().as_bytes();
        let wants_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let root = Path::new("/");
        let mut walk = PathWalk::new(path, root, LINKS_MAX);
        let mut node = NodeId::ROOT;
        loop {
            let before = walk.at().to_owned();
            let Some(at) = walk.step() else { break };
            if !self.tree.is_directory(node) {
                return Err(NodePathError::NotADirectory(before));
            }
            let at = at.to_owned();
            node = self.node_at(&at).ok_or_else(|| NodePathError::Missing(at.clone()))?;
            if let Some(target) = self.link_target(node)
                && (follow_last || wants_directory || walk.has_more())
            {
                let target = Path::new(OsStr::from_bytes(target));
                walk.follow(target)
                    .map_err(|source| NodePathError::Links { path: path.to_owned(), source })?;
                node = self.node_at(walk.at()).ok_or(NodePathError::Missing(at))?;
            }
        }
        let path = walk.into_path();
        if wants_directory && !self.tree.is_directory(node) {
            return Err(NodePathError::NotADirectory(path));
        }
        Ok(FoundNode { node, path })
    }

    /// The entry of a file; `None` for a directory that no layer has an entry for.
    #[must_use]
    pub fn entry(&self, node: NodeId) -> Option<Entry<'_>> {
        match self.tree.source(node) {
            NodeSource::Entry { layer, entry } => Some(self.layers[layer.index()].index().entry(entry)),
            NodeSource::Implied => None,
        }
    }

    /// The file at an absolute path without links and `..`.
    fn node_at(&self, path: &Path) -> Option<NodeId> {
        let names = path.iter().skip(1);
        names.into_iter().try_fold(NodeId::ROOT, |at, name| self.tree.lookup(at, name.as_bytes()))
    }

    fn link_target(&self, node: NodeId) -> Option<&[u8]> {
        match self.entry(node)?.kind() {
            IndexedKind::Symlink { target } => Some(target),
            _ => None,
        }
    }
}
