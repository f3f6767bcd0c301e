//! The tree that the kernel must show, as a naive structure of its own.

use std::collections::BTreeMap;

use support::layers::{EntryKind, Line};
use support::model::normal;

/// The root's number in [`ExpectedTree`].
pub(super) const ROOT: usize = 0;

/// Nodes by number.
#[derive(Debug)]
pub(super) struct ExpectedTree {
    pub(super) nodes: Vec<ExpectedNode>,
}

/// A node with what Linux stores of its attributes.
#[derive(Debug)]
pub(super) struct ExpectedNode {
    pub(super) line: Line,
    /// The children of a directory.
    pub(super) children: BTreeMap<Vec<u8>, usize>,
    /// The number of names of another node.
    pub(super) names: u64,
}

impl ExpectedTree {
    /// The tree of these lines, in which no path leads through a symlink. Hard links follow their target.
    pub(super) fn new(lines: &[Line]) -> Self {
        let mut tree = Self { nodes: vec![ExpectedNode::implied()] };
        for line in lines {
            tree.insert(&normal(&line.path), line);
        }
        tree
    }

    /// Adds a line at a path, with the directories above it.
    pub(super) fn insert(&mut self, path: &[Vec<u8>], line: &Line) {
        let node = ExpectedNode { line: stored(line), children: BTreeMap::new(), names: 1 };
        let Some((name, parents)) = path.split_last() else {
            self.nodes[ROOT].line = node.line;
            return;
        };
        let mut at = ROOT;
        for parent in parents {
            let next = self.nodes.len();
            at = *self.nodes[at].children.entry(parent.clone()).or_insert(next);
            if at == next {
                self.nodes.push(ExpectedNode::implied());
            }
        }
        if let EntryKind::Hardlink(target) = &line.kind {
            let target = normal(target).iter().fold(ROOT, |at, name| self.nodes[at].children[name]);
            self.nodes[target].names += 1;
            self.nodes[at].children.insert(name.clone(), target);
            return;
        }
        let next = self.nodes.len();
        let at = *self.nodes[at].children.entry(name.clone()).or_insert(next);
        match at == next {
            true => self.nodes.push(node),
            false => self.nodes[at].line = node.line,
        }
    }

    /// The link count of a node.
    pub(super) fn nlink(&self, node: usize) -> u64 {
        let is_directory = |node: usize| self.nodes[node].line.kind == EntryKind::Directory;
        match is_directory(node) {
            true => {
                2 + self.nodes[node].children.values().filter(|child| is_directory(**child)).count() as u64
            }
            false => self.nodes[node].names,
        }
    }
}

impl ExpectedNode {
    /// A directory without an entry.
    fn implied() -> Self {
        Self { line: Line::new(b"", EntryKind::Directory), children: BTreeMap::new(), names: 1 }
    }
}

/// What Linux stores of a line: rules 6 and 7 of rcx-imagefs-images(7), and the effect of ACLs.
fn stored(line: &Line) -> Line {
    let mut stored = Line { xattrs: Vec::new(), ..line.clone() };
    let is_directory = line.kind == EntryKind::Directory;
    let is_link = matches!(line.kind, EntryKind::Symlink(_));
    let is_file = matches!(line.kind, EntryKind::File(_) | EntryKind::Sparse(..));
    if is_link {
        stored.mode = 0o777;
    }
    let last: BTreeMap<&String, &Vec<u8>> = line.xattrs.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in last {
        let below = |prefix: &str| name.len() > prefix.len() && name.starts_with(prefix);
        let keep = match name.as_str() {
            "system.posix_acl_access" if !is_link => {
                let entries: Vec<&[u8]> = value[4..].chunks(8).collect();
                if !entries.is_empty() {
                    let of =
                        |tag| entries.iter().find(|entry| entry[0] == tag).map(|entry| u32::from(entry[2]));
                    let group = of(0x10).or(of(0x04)).unwrap();
                    stored.mode =
                        stored.mode & 0o7000 | of(0x01).unwrap() << 6 | group << 3 | of(0x20).unwrap();
                }
                entries.len() > 3
            }
            "system.posix_acl_default" => is_directory && value.len() > 4,
            _ if name.starts_with("user.overlay.") || name.starts_with("trusted.overlay.") => false,
            _ if below("user.") => is_directory || is_file,
            _ => below("trusted.") || below("security."),
        };
        if keep {
            stored.xattrs.push((name.clone(), shown(name, value)));
        }
    }
    stored
}

/// What the kernel answers for a value. Capabilities that belong to the user namespace of the host's root are those of version 2
/// (security/commoncap.c, `cap_inode_getsecurity`).
fn shown(name: &str, value: &[u8]) -> Vec<u8> {
    match (name, value) {
        ("security.capability", [effective, 0, 0, 3, data @ .., 0, 0, 0, 0]) => {
            [&[*effective, 0, 0, 2], data].concat()
        }
        _ => value.to_vec(),
    }
}
