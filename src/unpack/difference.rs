//! Compares two images: the paths that one of them lacks, and those whose files differ.
//!
//! Two files that come from the same entry of the same layer are equal, so only files of different layers are compared. Number of
//! links and, unless asked for, times do not count: two builds of one recipe differ in the times of all files.

use std::collections::BTreeMap;

use super::FileReader;
use crate::index::{Entry, EntryId, IndexedKind, ReadError};
use crate::pipeline::OpenImage;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME, LayerNo, NodeId, NodeSource};

/// Bytes of two files that are compared at once.
const STEP: u64 = 1 << 20;

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathChange {
    /// Only the second image has it.
    Added,
    /// Both images have it, with differences, or it is a directory with a difference below it.
    Changed,
    /// Only the first image has it. What is below a deleted directory is not listed.
    Deleted,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathDifference {
    /// The path in the images, absolute.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: PathChange,
    /// The parts of a changed file that differ: `type`, `mode`, `owner`, `content`, `target`, `device`, `xattrs`, `time`. Empty for a
    /// directory that differs only below.
    pub parts: Vec<&'static str>,
}

/// The names on the way to a path.
type Components = Vec<Vec<u8>>;

/// Returns the paths that differ between two images, depth first. `times` also compares modification times.
///
/// # Errors
/// The content of a layer cannot be read.
pub fn differences(old: &OpenImage, new: &OpenImage, times: bool) -> Result<Vec<PathDifference>, ReadError> {
    let mut comparison = ImageComparison { old, new, times, found: BTreeMap::new(), content: Vec::new() };
    comparison.directories();
    comparison.contents()?;
    Ok(comparison.finish())
}

/// Two regular files of the same size whose content may differ.
struct ContentPair {
    old: (LayerNo, EntryId),
    new: (LayerNo, EntryId),
    size: u64,
    path: Components,
}

struct ImageComparison<'a> {
    old: &'a OpenImage,
    new: &'a OpenImage,
    times: bool,
    found: BTreeMap<Components, (PathChange, Vec<&'static str>)>,
    content: Vec<ContentPair>,
}

impl ImageComparison<'_> {
    /// Compares all directories, without recursion: a tree can be deeper than the stack.
    fn directories(&mut self) {
        self.node(NodeId::ROOT, NodeId::ROOT, &Vec::new());
        let mut pairs = vec![(NodeId::ROOT, NodeId::ROOT, Components::new())];
        while let Some((old_directory, new_directory, path)) = pairs.pop() {
            let below = |name: &[u8]| [path.as_slice(), &[name.to_vec()]].concat();
            for (name, old) in self.old.tree.children(old_directory) {
                let Some(new) = self.new.tree.lookup(new_directory, name) else {
                    self.found.insert(below(name), (PathChange::Deleted, Vec::new()));
                    continue;
                };
                let path = below(name);
                self.node(old, new, &path);
                match (self.old.tree.is_directory(old), self.new.tree.is_directory(new)) {
                    (true, true) => pairs.push((old, new, path)),
                    (false, true) => self.add(new, &path),
                    (_, false) => {}
                }
            }
            for (name, new) in self.new.tree.children(new_directory) {
                if self.old.tree.lookup(old_directory, name).is_none() {
                    let path = below(name);
                    self.found.insert(path.clone(), (PathChange::Added, Vec::new()));
                    self.add(new, &path);
                }
            }
        }
    }

    /// Adds everything below a new directory.
    fn add(&mut self, directory: NodeId, path: &Components) {
        let mut pending = vec![(directory, path.clone())];
        while let Some((directory, path)) = pending.pop() {
            for (name, node) in self.new.tree.children(directory) {
                let path = [path.as_slice(), &[name.to_vec()]].concat();
                self.found.insert(path.clone(), (PathChange::Added, Vec::new()));
                if self.new.tree.is_directory(node) {
                    pending.push((node, path));
                }
            }
        }
    }

    /// Compares two files with the same path. Puts off the comparison of contents.
    fn node(&mut self, old: NodeId, new: NodeId, path: &Components) {
        let sources = (self.old.tree.source(old), self.new.tree.source(new));
        if self.is_same_entry(sources) {
            return;
        }
        let (before, after) = (self.old.entry(old), self.new.entry(new));
        let parts = different_parts(before.as_ref(), after.as_ref(), self.times);
        if !parts.is_empty() {
            self.found.insert(path.clone(), (PathChange::Changed, parts));
        }
        if let (
            (NodeSource::Entry { layer: a, entry: b }, NodeSource::Entry { layer: c, entry: d }),
            (Some(IndexedKind::Regular { size }), Some(IndexedKind::Regular { size: other })),
        ) = (sources, (before.map(|entry| entry.kind()), after.map(|entry| entry.kind())))
            && size == other
            && size > 0
        {
            self.content.push(ContentPair { old: (a, b), new: (c, d), size, path: path.clone() });
        }
    }

    fn is_same_entry(&self, sources: (NodeSource, NodeSource)) -> bool {
        match sources {
            (NodeSource::Implied, NodeSource::Implied) => true,
            (
                NodeSource::Entry { layer: old, entry: first },
                NodeSource::Entry { layer: new, entry: second },
            ) => {
                let digest = |image: &OpenImage, layer: LayerNo| *image.layers[layer.index()].index().layer();
                first == second && digest(self.old, old) == digest(self.new, new)
            }
            _ => false,
        }
    }

    /// Compares contents in the order of the new image's layers, so that its spans are decoded once.
    fn contents(&mut self) -> Result<(), ReadError> {
        self.content.sort_by_key(|pair| pair.new);
        let (mut old, mut new) = (FileReader::default(), FileReader::default());
        for pair in std::mem::take(&mut self.content) {
            let layers = (&self.old.layers[pair.old.0.index()], &self.new.layers[pair.new.0.index()]);
            let mut offset = 0;
            while offset < pair.size {
                if old.read(layers.0, pair.old.1, offset, STEP)?
                    != new.read(layers.1, pair.new.1, offset, STEP)?
                {
                    let found = self.found.entry(pair.path).or_insert((PathChange::Changed, Vec::new()));
                    found.1.push("content");
                    break;
                }
                offset += STEP;
            }
        }
        Ok(())
    }

    /// Adds the directories above each difference, and returns the list.
    fn finish(mut self) -> Vec<PathDifference> {
        let paths: Vec<Components> = self.found.keys().cloned().collect();
        for path in paths {
            for length in 1..path.len() {
                let above = path[..length].to_vec();
                self.found.entry(above).or_insert((PathChange::Changed, Vec::new()));
            }
        }
        let join = |path: Components| {
            if path.is_empty() { b"/".to_vec() } else { [&b"/"[..], &path.join(&b'/')].concat() }
        };
        let found = self.found.into_iter();
        found.map(|(path, (change, parts))| PathDifference { path: join(path), change, parts }).collect()
    }
}

/// Returns the parts in which two files differ, except for equally long contents. `None` is a directory without an entry.
fn different_parts(old: Option<&Entry<'_>>, new: Option<&Entry<'_>>, times: bool) -> Vec<&'static str> {
    use IndexedKind as K;
    let kind = |entry: Option<&Entry<'_>>| entry.map_or(0, |entry| kind_number(&entry.kind()));
    let mut parts = Vec::new();
    if kind(old) != kind(new) {
        return vec!["type"];
    }
    let mode = |entry: Option<&Entry<'_>>| entry.map_or(IMPLIED_MODE, Entry::mode);
    if mode(old) != mode(new) {
        parts.push("mode");
    }
    let owner = |entry: Option<&Entry<'_>>| entry.map_or((0, 0), |entry| (entry.uid(), entry.gid()));
    if owner(old) != owner(new) {
        parts.push("owner");
    }
    parts.extend(match (old.map(Entry::kind), new.map(Entry::kind)) {
        (Some(K::Regular { size: old }), Some(K::Regular { size: new })) if old != new => Some("content"),
        (Some(K::Symlink { target: old }), Some(K::Symlink { target: new })) if old != new => Some("target"),
        (
            Some(old @ (K::CharDevice { .. } | K::BlockDevice { .. })),
            Some(new @ (K::CharDevice { .. } | K::BlockDevice { .. })),
        ) if old != new => Some("device"),
        _ => None,
    });
    let xattrs = |entry: Option<&Entry<'_>>| {
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        all.extend(
            entry
                .into_iter()
                .flat_map(|entry| entry.xattrs())
                .map(|(name, value)| (name.to_vec(), value.to_vec())),
        );
        all.sort_unstable();
        all
    };
    if xattrs(old) != xattrs(new) {
        parts.push("xattrs");
    }
    let time = |entry: Option<&Entry<'_>>| entry.map_or(IMPLIED_MTIME, Entry::mtime);
    if times && time(old) != time(new) {
        parts.push("time");
    }
    parts
}

fn kind_number(kind: &IndexedKind<'_>) -> u8 {
    match kind {
        IndexedKind::Directory => 0,
        IndexedKind::Regular { .. } => 1,
        IndexedKind::Symlink { .. } => 2,
        IndexedKind::CharDevice { .. } => 3,
        IndexedKind::BlockDevice { .. } => 4,
        IndexedKind::Fifo => 5,
        IndexedKind::Hardlink { .. } => 6,
    }
}
