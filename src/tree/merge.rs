//! Merges layers into one tree.
//!
//! A layer's markers apply to the layers below it and never to its own entries, in any order of the tar
//! (image-spec, layer.md, "Whiteouts"). So each layer is applied in two steps: first its markers to the tree so far,
//! then its entries in the order of the tar. Further rules:
//!
//! - Markers act in the order of the paths that they hide, so that a marker below a hidden name has no effect.
//! - A marker below a symlink acts on the symlink's target, unless this layer has a directory entry at the symlink's own
//!   path. That directory replaces the symlink, and its markers refer to *its* content: `lib -> usr/lib` below, with
//!   `lib/` and `lib/.wh..wh..opq` above (as a builder writes when a program replaced the link with a directory), must
//!   not empty `usr/lib`.
//! - Markers create nothing: a marker with missing parents, or below a file, hides nothing.
//! - An entry below a file is an error (`a` is a file, `a/b` follows, and no entry turns `a` into a directory): unpacking the
//!   layers one by one fails there with ENOTDIR.
//! - An entry replaces the node at its path before the target of a hard link is looked up, like a program that unlinks first.
//! - Files below `.wh..wh.plnk` and other leftovers of AUFS exist while their layer is applied, so that hard links can refer to
//!   them. Then they are removed.
//! - `..` after a missing component of a symlink's target cancels that component; only the components that remain are created.

use std::cmp::Ordering;

use super::draft::{DraftKind, MergeState, NodeDraft, ReplacedLinks, ResolvedPath};
use super::{IMPLIED, LayerNo, MergeError, MergeFault, Tree};
use crate::image::{Digest, LayerDigest};
use crate::index::{EntryId, Index, IndexedKind, is_hidden};

/// Maximum number of entries and markers in all layers of an image; a layer that occurs twice counts twice. Even if they
/// create few nodes, each takes time: a thousand times the same layer of a million directories would take an hour.
const MAX_ENTRIES: usize = 1 << 25;

/// Merges the layers of an image, lowest first.
///
/// # Errors
/// A layer breaks a rule; the error names the layer and the entry.
pub fn merge<D: AsRef<[u8]>>(layers: &[&Index<D>]) -> Result<Tree, MergeError> {
    let mut merge = MergeState::new();
    require_few_entries(layers)?;
    for (number, &layer) in layers.iter().enumerate() {
        // `IMPLIED` is reserved for nodes without a layer.
        let number = u16::try_from(number).ok().filter(|number| *number != IMPLIED);
        let fail = |at, path: Vec<u8>, fault| MergeError {
            layer: LayerNo(number.unwrap_or(IMPLIED)),
            digest: *layer.layer(),
            at,
            path: path.into(),
            marker: false,
            fault,
        };
        let number = number.ok_or_else(|| fail(None, Vec::new(), MergeFault::TooMany("layers")))?;
        merge
            .apply_markers(layer)
            .map_err(|(path, fault)| MergeError { marker: true, ..fail(None, path.to_vec(), fault) })?;
        merge.reserve(layer.len());
        for (id, entry) in layer.entries() {
            let name = EntryName { dir: entry.dir(), name: entry.name(), layer: number, entry: id };
            match merge.apply(name, entry.kind()) {
                // A hidden entry matters only to the hard links that refer to it, which then are errors.
                Err(fault) if is_hidden(&entry.path()) && !matches!(fault, MergeFault::TooMany(_)) => {}
                result => result.map_err(|fault| fail(Some(entry.offset()), entry.path(), fault))?,
            }
        }
        merge.remove_hidden();
    }
    let layer = LayerNo(u16::try_from(layers.len().saturating_sub(1)).unwrap_or(IMPLIED));
    // An image without layers has only the root, so this digest never appears in an error.
    let digest = layers.last().map_or_else(|| LayerDigest::new(Digest::of(&[])), |layer| *layer.layer());
    merge.freeze().map_err(|fault| MergeError {
        layer,
        digest,
        at: None,
        path: Box::default(),
        marker: false,
        fault,
    })
}

fn require_few_entries<D: AsRef<[u8]>>(layers: &[&Index<D>]) -> Result<(), MergeError> {
    let mut entries: usize = 0;
    for (number, layer) in layers.iter().enumerate() {
        entries = entries.saturating_add(layer.len()).saturating_add(layer.marker_count());
        if entries > MAX_ENTRIES {
            let first = layer.entries().next().map(|(_, entry)| (entry.offset(), entry.path()));
            let (at, path) = first.map_or((None, Vec::new()), |(at, path)| (Some(at), path));
            return Err(MergeError {
                layer: LayerNo(u16::try_from(number).unwrap_or(IMPLIED)),
                digest: *layer.layer(),
                at,
                path: path.into(),
                marker: false,
                fault: MergeFault::TooMany("entries, with those of the layers below"),
            });
        }
    }
    Ok(())
}

/// Name and origin of an entry, without its kind.
#[derive(Debug, Clone, Copy)]
struct EntryName<'a> {
    dir: &'a [u8],
    name: &'a [u8],
    layer: u16,
    entry: EntryId,
}

impl<'a> MergeState<'a> {
    /// First step: applies the markers of a layer to the tree so far.
    fn apply_markers<D: AsRef<[u8]>>(&mut self, layer: &'a Index<D>) -> Result<(), (&'a [u8], MergeFault)> {
        let whiteouts = layer.whiteouts().map(|path| (path, false));
        let mut markers: Vec<_> = whiteouts.chain(layer.opaques().map(|path| (path, true))).collect();
        if markers.is_empty() {
            return Ok(());
        }
        self.last = None;
        // In byte order, each path follows its parents.
        markers.sort_unstable();
        let replaced = self.replaced_links(layer);
        for (path, opaque) in markers {
            let fail = |fault| (path, fault);
            if opaque {
                if let ResolvedPath::Directory(directory) = self.resolve(path, &replaced).map_err(fail)? {
                    self.empty(directory).map_err(fail)?;
                }
            } else if let Some((directory, _)) = self.find(path, &replaced).map_err(fail)? {
                let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                let name = self.intern(name).map_err(fail)?;
                self.unbind(directory, name);
            }
        }
        Ok(())
    }

    /// Finds the symlinks that this layer replaces with directories.
    fn replaced_links<D: AsRef<[u8]>>(&mut self, layer: &'a Index<D>) -> ReplacedLinks<'a> {
        let directories = layer.entries().filter(|(_, entry)| entry.kind() == IndexedKind::Directory);
        let mut directories: Vec<_> = directories.map(|(_, entry)| (entry.dir(), entry.name())).collect();
        directories.sort_unstable_by(|a, b| by_path(*a, *b));
        let mut replaced = ReplacedLinks::new();
        for (dir, name) in directories {
            // Errors are reported when the entry is applied.
            if let Ok(ResolvedPath::Directory(directory)) = self.resolve(dir, &replaced)
                && let Some(child) = self.child(directory, name)
                && matches!(self.draft(child).kind, DraftKind::Symlink { .. })
            {
                replaced.insert((directory, name));
            }
        }
        replaced
    }

    /// Empties a directory by putting an empty copy in its place.
    fn empty(&mut self, directory: u32) -> Result<(), MergeFault> {
        let former = *self.draft(directory);
        let empty = self.add(former)?;
        match former.kind {
            DraftKind::Directory { .. } if directory == self.root => {
                self.drafts[empty as usize].kind = DraftKind::Directory { parent: empty, name: 0 };
                self.root = empty;
            }
            DraftKind::Directory { parent, name } => self.bind(parent, name, empty),
            DraftKind::Symlink { .. } | DraftKind::Other => {}
        }
        Ok(())
    }

    /// Second step: applies one entry.
    fn apply(&mut self, entry_name: EntryName<'a>, kind: IndexedKind<'a>) -> Result<(), MergeFault> {
        let EntryName { dir, name, layer, entry } = entry_name;
        let entry = entry.get();
        if name.is_empty() {
            let root = &mut self.drafts[self.root as usize];
            (root.layer, root.entry) = (layer, entry);
            return Ok(());
        }
        let parent = self.directory(dir)?;
        let name = self.intern(name)?;
        let former = self.children.get(&(parent, name)).copied();
        let kind = match kind {
            IndexedKind::Directory => match former {
                Some(former) if self.is_directory(former) => {
                    let draft = &mut self.drafts[former as usize];
                    (draft.layer, draft.entry) = (layer, entry);
                    return Ok(());
                }
                _ => DraftKind::Directory { parent, name },
            },
            IndexedKind::Hardlink { target } => {
                self.unbind(parent, name);
                return match self.find(target, &ReplacedLinks::new())? {
                    _ if target.is_empty() => Err(MergeFault::DirectoryTarget(b"/".as_slice().into())),
                    None => Err(MergeFault::NoTarget(target.into())),
                    Some((_, node)) if self.is_directory(node) => {
                        Err(MergeFault::DirectoryTarget(target.into()))
                    }
                    Some((_, node)) => {
                        self.bind(parent, name, node);
                        Ok(())
                    }
                };
            }
            IndexedKind::Symlink { target } => DraftKind::Symlink { target },
            IndexedKind::Regular { .. }
            | IndexedKind::CharDevice { .. }
            | IndexedKind::BlockDevice { .. }
            | IndexedKind::Fifo => DraftKind::Other,
        };
        let node = self.add(NodeDraft { kind, layer, entry })?;
        self.bind(parent, name, node);
        Ok(())
    }
}

/// Compares paths that are split into directory and name as if they were whole. A million entries can share a directory path
/// of 4,000 bytes; whole paths would take 4 GB.
fn by_path(a: (&[u8], &[u8]), b: (&[u8], &[u8])) -> Ordering {
    fn bytes<'b>((dir, name): (&'b [u8], &'b [u8])) -> impl Iterator<Item = &'b u8> {
        dir.iter().chain(if dir.is_empty() { &[][..] } else { b"/" }).chain(name)
    }
    if a.0 == b.0 { a.1.cmp(b.1) } else { bytes(a).cmp(bytes(b)) }
}
