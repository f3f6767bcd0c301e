//! Finds the files of a root that can differ from its image.
//!
//! With an upper on disk, these are the files in the upper and, below a renamed directory, all files: there, overlayfs shows files of
//! the image at other paths than the image has them. With an upper in memory, they are all files of the root.

use std::collections::{BTreeMap, HashSet};

use super::CommitError;
use super::file::{RootFile, RootFileKind};
use super::tree::{DirectoryTree, join, split};
use crate::pipeline::OpenImage;
use crate::tree::NodeId;

/// The extended attribute of a directory of the upper that shows the files of a directory with another path
/// (Documentation/filesystems/overlayfs.rst, "redirect_dir").
const REDIRECT: &str = "trusted.overlay.redirect";
/// Prefix of the names that have another meaning in a layer.
const MARKER: &[u8] = b".wh.";

/// The files of a root that can differ from its image.
#[derive(Debug, Default)]
pub(super) struct WalkedFiles {
    /// By path. All directories above other files are here too.
    pub(super) directories: BTreeMap<Vec<u8>, WalkedDirectory>,
    /// All other files.
    pub(super) names: Vec<WalkedName>,
    /// Paths that the image has and the root has not, without what is below them.
    pub(super) deleted: Vec<Vec<u8>>,
}

/// A directory of a root.
#[derive(Debug)]
pub(super) struct WalkedDirectory {
    pub(super) file: RootFile,
    /// The file of the image with the same path.
    pub(super) node: Option<NodeId>,
}

/// A file of a root that is not a directory.
#[derive(Debug)]
pub(super) struct WalkedName {
    pub(super) path: Vec<u8>,
    pub(super) file: RootFile,
    /// The file of the image with the same path.
    pub(super) node: Option<NodeId>,
    /// Whether the file is known to be in the upper.
    pub(super) in_upper: bool,
    /// Equal for the names of one file; `None` for a file with one name.
    pub(super) links: Option<LinkedInode>,
}

/// Identifies a file with several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LinkedInode {
    /// By device and inode number in the upper, which are exact.
    Upper(u64, u64),
    /// By device and inode number in the root: a file of the image.
    Root(u64, u64),
}

/// A directory that is still to be visited.
struct PendingDirectory {
    path: Vec<u8>,
    /// The directory of the image with the same path.
    node: Option<NodeId>,
    /// Whether all files can differ, and not only those in the upper.
    whole: bool,
}

/// Walks over a root. `upper` is `None` for an upper that cannot be read.
pub(super) fn walk(
    root: &DirectoryTree,
    upper: Option<&DirectoryTree>,
    image: &OpenImage,
) -> Result<WalkedFiles, CommitError> {
    let mut walked = WalkedFiles::default();
    if let Some(found) = root.file(b"")? {
        let directory = WalkedDirectory { file: found.file, node: Some(NodeId::ROOT) };
        walked.directories.insert(Vec::new(), directory);
    }
    // Without recursion: a tree can be deeper than the stack.
    let first = PendingDirectory { path: Vec::new(), node: Some(NodeId::ROOT), whole: upper.is_none() };
    let mut pending = vec![first];
    while let Some(directory) = pending.pop() {
        // Where a program uses the root, files may disappear at any time.
        let Some(names) = root.names(&directory.path)? else { continue };
        for (name, _) in directory.node.into_iter().flat_map(|node| image.tree.children(node)) {
            if names.binary_search_by(|listed| listed.as_slice().cmp(name)).is_err() {
                walked.deleted.push(join(&directory.path, name));
            }
        }
        for name in names {
            let path = join(&directory.path, &name);
            let in_upper = match upper {
                Some(upper) => upper.identity(&path)?,
                None => None,
            };
            if in_upper.is_none() && !directory.whole {
                continue;
            }
            let node = directory.node.and_then(|node| image.tree.lookup(node, &name));
            let Some(found) = root.file(&path)? else { continue };
            if name.starts_with(MARKER) {
                return Err(CommitError::MarkerName(path));
            }
            match found.file.kind {
                RootFileKind::Directory => {
                    let is_redirected = match (upper, in_upper) {
                        (Some(upper), Some(_)) => upper.has_xattr(&path, REDIRECT)?,
                        _ => false,
                    };
                    pending.push(PendingDirectory {
                        path: path.clone(),
                        node: node.filter(|node| image.tree.is_directory(*node)),
                        whole: directory.whole || is_redirected,
                    });
                    walked.directories.insert(path, WalkedDirectory { file: found.file, node });
                }
                RootFileKind::Socket => {
                    tracing::warn!("{} is a socket, which layers cannot have", root.path_of(&path).display());
                    walked.deleted.extend(node.map(|_| path));
                }
                _ => {
                    let links = found.links.map(|(device, inode)| match in_upper {
                        Some((device, inode)) => LinkedInode::Upper(device, inode),
                        None => LinkedInode::Root(device, inode),
                    });
                    let (file, in_upper) = (found.file, in_upper.is_some());
                    walked.names.push(WalkedName { path, file, node, in_upper, links });
                }
            }
        }
    }
    if upper.is_some() {
        add_other_names(&mut walked, root, image)?;
    }
    Ok(walked)
}

/// Adds the names that files below renamed directories have elsewhere in the image: all names of a file must be in one layer.
fn add_other_names(
    walked: &mut WalkedFiles,
    root: &DirectoryTree,
    image: &OpenImage,
) -> Result<(), CommitError> {
    let of_image = |name: &WalkedName| name.links.filter(|_| !name.in_upper);
    let linked: HashSet<LinkedInode> = walked.names.iter().filter_map(of_image).collect();
    if linked.is_empty() {
        return Ok(());
    }
    let visited: HashSet<&[u8]> = walked.names.iter().map(|name| name.path.as_slice()).collect();
    let mut added = Vec::new();
    let mut pending = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((directory, node)) = pending.pop() {
        for (name, node) in image.tree.children(node) {
            let path = join(&directory, name);
            if image.tree.is_directory(node) {
                pending.push((path, node));
            } else if image.tree.nlink(node) > 1
                && !visited.contains(path.as_slice())
                && let Some(found) = root.file(&path)?
                && let Some(links) = found.links.map(|(device, inode)| LinkedInode::Root(device, inode))
                && linked.contains(&links)
            {
                let (node, links) = (Some(node), Some(links));
                added.push(WalkedName { path, file: found.file, node, in_upper: false, links });
            }
        }
    }
    for name in &added {
        let mut node = Some(NodeId::ROOT);
        let above: Vec<&[u8]> = directories_above(&name.path).collect();
        for path in above.into_iter().rev() {
            node = node.and_then(|node| image.tree.lookup(node, split(path).1));
            if !walked.directories.contains_key(path)
                && let Some(found) = root.file(path)?
            {
                walked.directories.insert(path.to_vec(), WalkedDirectory { file: found.file, node });
            }
        }
    }
    walked.names.extend(added);
    Ok(())
}

/// Returns the directories above a path, without the root.
pub(super) fn directories_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = split(path).0;
    std::iter::successors(Some(first), |path: &&[u8]| Some(split(path).0)).take_while(|path| !path.is_empty())
}
