//! Compares a root with its image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read as _};

use super::file::{RootFile, RootFileKind};
use super::tree::DirectoryTree;
use super::walk::{LinkedInode, WalkedDirectory, WalkedFiles, WalkedName, directories_above, walk};
use super::{CommitError, CommitOptions};
use crate::image::Digest;
use crate::index::EntryId;
use crate::layer::Timestamp;
use crate::os::AtPath as _;
use crate::pipeline::OpenImage;
use crate::roots::{NamedRoot, SKELETON, Upper};
use crate::tree::{IMPLIED_MODE, LayerNo, NodeId, NodeSource};
use crate::unpack::{FileReader, PathChange, PathDifference};

/// Bytes of two files that are compared at once.
const STEP: u64 = 1 << 20;
/// The mode of an injected file that the image does not have.
const INJECTED_MODE: u16 = 0o644;
/// More bytes than an injected file has: at most 1 MiB of the image, 1 MiB of the host and some lines.
const INJECTED_MAX: u64 = 4 << 20;

/// What differs between a root and its image, and the open root.
#[derive(Debug)]
pub struct RootChanges {
    /// The members of the layer by path, in the order in which a directory precedes what is in it.
    pub(super) members: BTreeMap<MemberOrder, LayerMember>,
    /// Paths of the image that the layer deletes.
    pub(super) deleted: Vec<Vec<u8>>,
    /// Paths that the root has and the image has not.
    added: HashSet<Vec<u8>>,
    /// The root; `None` if nothing can be written to it.
    pub(super) root: Option<DirectoryTree>,
}

/// A path whose order is that of its components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberOrder(Vec<u8>);

/// A file of the new layer.
#[derive(Debug)]
pub(super) struct LayerMember {
    pub(super) file: RootFile,
    /// The first name of the same file, if this is another name.
    pub(super) link_to: Option<Vec<u8>>,
    /// How it differs from the file of the image.
    parts: Vec<&'static str>,
}

impl MemberOrder {
    fn new(path: &[u8]) -> Self {
        // No name has a NUL byte, which sorts before all others.
        Self(path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect())
    }

    pub(super) fn path(&self) -> Vec<u8> {
        self.0.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
    }
}

impl RootChanges {
    /// Whether the root does not differ from its image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.deleted.is_empty()
    }

    /// The time of the newest file in the layer.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.members.values().map(|member| member.file.mtime).max_by_key(|time| (time.sec, time.nsec))
    }

    /// Lists the differences, depth first, as [`differences`](crate::unpack::differences) does. Parts may also be `links`.
    #[must_use]
    pub fn list(&self) -> Vec<PathDifference> {
        let absolute = |path: &[u8]| [b"/", path].concat();
        let changed = self.members.iter().map(|(order, member)| {
            let path = order.path();
            let (change, parts) = match self.added.contains(&path) {
                true => (PathChange::Added, Vec::new()),
                false => (PathChange::Changed, member.parts.clone()),
            };
            (order.clone(), PathDifference { path: absolute(&path), change, parts })
        });
        let deleted = self.deleted.iter().map(|path| {
            let (change, parts) = (PathChange::Deleted, Vec::new());
            (MemberOrder::new(path), PathDifference { path: absolute(path), change, parts })
        });
        let sorted: BTreeMap<_, _> = changed.chain(deleted).collect();
        sorted.into_values().collect()
    }
}

/// Compares a root with its image.
///
/// # Errors
/// A file cannot be read, or cannot be expressed in a layer.
pub fn root_changes(
    root: &NamedRoot,
    image: &OpenImage,
    options: &CommitOptions,
) -> Result<RootChanges, CommitError> {
    if root.upper() == Upper::None {
        let (members, deleted, added) = (BTreeMap::new(), Vec::new(), HashSet::new());
        return Ok(RootChanges { members, deleted, added, root: None });
    }
    let directories = root.open()?;
    let tree = DirectoryTree::new(directories.merged, root.path());
    let upper = directories.upper.map(|upper| DirectoryTree::new(upper, root.path_in_home("upper")));
    let walked = walk(&tree, upper.as_ref(), image)?;
    let comparison = RootComparison { root: &tree, injected: root.injected(), image, options };
    let mut members = comparison.names(walked.names.iter())?;
    comparison.directories(&walked, &mut members);
    let added = members
        .iter()
        .filter(|(path, _)| walked.directories.get(*path).is_some_and(|directory| directory.node.is_none()))
        .map(|(path, _)| path.clone())
        .chain(walked.names.iter().filter(|name| name.node.is_none()).map(|name| name.path.clone()))
        .collect();
    let members = members.into_iter().map(|(path, member)| (MemberOrder::new(&path), member)).collect();
    let mut deleted = walked.deleted;
    deleted.sort_by_cached_key(|path| MemberOrder::new(path));
    Ok(RootChanges { members, deleted, added, root: Some(tree) })
}

struct RootComparison<'a> {
    root: &'a DirectoryTree,
    /// The digests of the files that the root has in addition to its image.
    injected: &'a BTreeMap<String, Digest>,
    image: &'a OpenImage,
    options: &'a CommitOptions,
}

/// The members of a layer by path.
type Members = HashMap<Vec<u8>, LayerMember>;

impl RootComparison<'_> {
    /// Returns how a file differs from the file of the image, and from it as it is in the layer.
    fn parts(&self, file: &RootFile, node: Option<NodeId>) -> Vec<&'static str> {
        let Some(node) = node else { return vec!["type"] };
        let before = RootFile::of_node(self.image, node);
        let parts = file.different_parts(&before);
        if parts.is_empty() { parts } else { self.options.apply(file).different_parts(&before) }
    }

    /// Returns the members for files that are not directories.
    fn names<'w>(&self, names: impl Iterator<Item = &'w WalkedName>) -> Result<Members, CommitError> {
        let mut groups: Vec<Vec<&WalkedName>> = Vec::new();
        let mut group_of: HashMap<LinkedInode, usize> = HashMap::new();
        for name in names {
            match name.links.and_then(|links| group_of.get(&links).copied()) {
                Some(group) => groups[group].push(name),
                None => {
                    if let Some(links) = name.links {
                        group_of.insert(links, groups.len());
                    }
                    groups.push(vec![name]);
                }
            }
        }
        let different = self.different_contents(groups.iter().flatten().copied())?;
        for group in &mut groups {
            group.sort_by_cached_key(|name| MemberOrder::new(&name.path));
        }
        groups.sort_by_cached_key(|group| MemberOrder::new(&group[0].path));
        let mut members = Members::new();
        // The files of the image that are the same files in the root.
        let mut kept = HashSet::new();
        for group in groups {
            let first = group[0];
            let nodes: HashSet<_> = group.iter().map(|name| name.node).collect();
            let parts = |name: &WalkedName| {
                let mut parts = self.parts(&name.file, name.node);
                if different.contains(&name.path) {
                    parts.push("content");
                }
                parts
            };
            // Whether the names of this file are those of one file of the image. Of a file of the image, some names may have
            // become other files; in the upper, they are other files than those that stay behind.
            let is_linked_alike = nodes.len() == 1
                && first.node.is_some_and(|node| match first.in_upper {
                    true => self.image.tree.nlink(node) as usize == group.len(),
                    false => !kept.contains(&node),
                });
            if is_linked_alike && parts(first).is_empty() {
                kept.extend(first.node);
                continue;
            }
            if self.is_injected(first)? {
                continue;
            }
            for name in &group {
                let mut parts = parts(name);
                if !is_linked_alike && name.node.is_some() && parts.is_empty() {
                    parts.push("links");
                }
                let file = self.options.apply(&name.file);
                let link_to = (name.path != first.path).then(|| first.path.clone());
                members.insert(name.path.clone(), LayerMember { file, link_to, parts });
            }
        }
        Ok(members)
    }

    /// Adds the directories that differ, and those above other members: tools that unpack a layer by itself would make them with other
    /// attributes.
    fn directories(&self, walked: &WalkedFiles, members: &mut Members) {
        let mut needed = HashSet::new();
        let mut changed = Members::new();
        for (path, directory) in &walked.directories {
            let file = self.visible(path, directory);
            let parts = self.parts(&file, directory.node);
            if !parts.is_empty() && !self.is_skeleton_directory(path, directory) {
                let file = self.options.apply(&file);
                changed.insert(path.clone(), LayerMember { file, link_to: None, parts });
            }
        }
        for path in members.keys().chain(changed.keys()).chain(&walked.deleted) {
            needed.extend(directories_above(path).map(<[u8]>::to_vec));
        }
        for path in needed {
            let Some(directory) = walked.directories.get(&path).filter(|_| !changed.contains_key(&path))
            else {
                continue;
            };
            let node = directory.node.filter(|node| self.image.tree.is_directory(*node));
            let file = match node {
                Some(node) => RootFile::of_node(self.image, node),
                None => self.options.apply(&directory.file),
            };
            let parts = if node.is_some() { Vec::new() } else { vec!["type"] };
            members.insert(path, LayerMember { file, link_to: None, parts });
        }
        members.extend(changed);
    }

    /// Returns the attributes of a directory. The root itself lacks the extended attributes that its image has.
    fn visible(&self, path: &[u8], directory: &WalkedDirectory) -> RootFile {
        let mut file = directory.file.clone();
        if let (true, true, Some(node)) = (path.is_empty(), file.xattrs.is_empty(), directory.node) {
            file.xattrs = RootFile::of_node(self.image, node).xattrs;
        }
        file
    }

    /// Returns whether a directory is one that the root has in addition to its image, or in its place. Mounts and temporary files change
    /// only the time of such a directory.
    fn is_skeleton_directory(&self, path: &[u8], directory: &WalkedDirectory) -> bool {
        let mountpoint = SKELETON.iter().find(|(name, _)| name.as_bytes() == path);
        let is_above_injected =
            || self.injected.keys().any(|file| directories_above(file.as_bytes()).any(|above| above == path));
        let mode = match mountpoint {
            Some((_, mode)) => *mode,
            // If the image has it, the root has it with the same attributes.
            None if directory.node.is_none() && is_above_injected() => u32::from(IMPLIED_MODE),
            None => return false,
        };
        let RootFile { uid, gid, xattrs, .. } = &directory.file;
        u32::from(directory.file.mode) == mode && (*uid, *gid) == (0, 0) && xattrs.is_empty()
    }

    /// Returns whether a file is one that the root has in addition to its image, unchanged.
    fn is_injected(&self, name: &WalkedName) -> Result<bool, CommitError> {
        let Some(digest) = str::from_utf8(&name.path).ok().and_then(|path| self.injected.get(path)) else {
            return Ok(false);
        };
        // It has the attributes of the image's file, or those of a file without any. Links of the image are followed.
        let mut expected = match name.node {
            Some(node) => RootFile::of_node(self.image, node),
            None => RootFile { mode: INJECTED_MODE, ..RootFile::implied() },
        };
        let is_replaced = name.node.is_some() && !matches!(expected.kind, RootFileKind::Regular { .. });
        expected.kind = name.file.kind.clone();
        let RootFileKind::Regular { size: ..=INJECTED_MAX } = name.file.kind else { return Ok(false) };
        if name.links.is_some() || !(is_replaced || expected == name.file) {
            return Ok(false);
        }
        let mut content = Vec::new();
        let mut file = self.root.open(&name.path)?.take(INJECTED_MAX + 1);
        file.read_to_end(&mut content).at("read", &self.root.path_of(&name.path))?;
        Ok(Digest::of(&content) == *digest)
    }

    /// Returns the paths of the files that have as many bytes as those of the image, but others.
    ///
    /// Compares them in the order of the image's layers, so that each span is decoded once.
    fn different_contents<'w>(
        &self,
        names: impl Iterator<Item = &'w WalkedName>,
    ) -> Result<HashSet<Vec<u8>>, CommitError> {
        let mut pairs: Vec<((LayerNo, EntryId), u64, &WalkedName)> = Vec::new();
        for name in names {
            let Some(node) = name.node else { continue };
            if let (RootFileKind::Regular { size }, NodeSource::Entry { layer, entry }) =
                (&name.file.kind, self.image.tree.source(node))
                && *size > 0
                && RootFile::of_node(self.image, node).kind == name.file.kind
            {
                pairs.push(((layer, entry), *size, name));
            }
        }
        pairs.sort_by_key(|(source, ..)| *source);
        let (mut reader, mut different) = (FileReader::default(), HashSet::new());
        let mut step = Vec::new();
        for ((layer, entry), size, name) in pairs {
            let layer = &self.image.layers[layer.index()];
            let mut file = self.root.open(&name.path)?;
            let mut offset = 0;
            while offset < size {
                let expected = reader.read(layer, entry, offset, STEP);
                let expected =
                    expected.map_err(|source| CommitError::ImageFile { path: name.path.clone(), source })?;
                step.resize(expected.len(), 0);
                match file.read_exact(&mut step) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(CommitError::Changed(self.root.path_of(&name.path)));
                    }
                    result => result.at("read", &self.root.path_of(&name.path))?,
                }
                if step != expected {
                    different.insert(name.path.clone());
                    break;
                }
                offset += STEP;
            }
        }
        Ok(different)
    }
}
