//! A tree as text: debug output, snapshot format and test language in one.
//!
//! One node per line, `KIND PATH [CONTENT] [KEY=VALUE]...`, each directory before its children, names in byte order:
//!
//! ```text
//! d etc mode=700
//! f etc/hosts 127.0.0.1\x20localhost\n uid=7 mtime=-1.500000000 xattr.user.a=b
//! h etc/alias etc/hosts
//! l bin usr/bin
//! c dev/null 1:3 mode=666
//! b dev/sda 8:0
//! p run/pipe
//! ```
//!
//! `f` has the content (nothing for an empty file), `l` the target, `h` the first name of the same node, devices their
//! numbers. Attributes with default values are left out: mode 755 for directories, 777 for symlinks and 644 for all others,
//! owner 0, group 0, mtime 0, no xattrs. The root has a line, `d /`, only if one of its attributes differs from the default.
//! Space, `=`, `\`, control characters and bytes that are not UTF-8 are escaped as in Rust, byte by byte.
//!
//! Layers are written the same way, with `w PATH` for a whiteout, `o PATH` for an opaque directory, and `---` between two
//! layers.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::{LayerNo, NodeId, NodeSource, Tree};
use crate::index::{EntryId, Index, IndexedKind};
use crate::layer::{Printable, Timestamp};

/// Formats a tree as text. `content` returns the content to print for a regular file.
pub fn dump<D: AsRef<[u8]>>(
    tree: &Tree,
    layers: &[&Index<D>],
    mut content: impl FnMut(LayerNo, EntryId) -> Vec<u8>,
) -> String {
    let mut text = String::new();
    let mut first_names: HashMap<NodeId, String> = HashMap::new();
    // The directories above the current node: node, length of its path, next child. A tree can be too deep for recursion.
    let mut stack = vec![(NodeId::ROOT, 0, 0)];
    let mut path = String::new();
    let root = attributes(tree, layers, NodeId::ROOT, 0o755);
    if !root.is_empty() {
        let _ = writeln!(text, "d /{root}");
    }
    while let Some((directory, length, position)) = stack.last_mut() {
        let Some((name, node)) = tree.child_at(*directory, *position) else {
            stack.pop();
            continue;
        };
        *position += 1;
        path.truncate(*length);
        path += &field(name);
        if tree.is_directory(node) {
            let _ = writeln!(text, "d {path}{}", attributes(tree, layers, node, 0o755));
            path.push('/');
            stack.push((node, path.len(), 0));
            continue;
        }
        if let Some(first) = first_names.get(&node) {
            let _ = writeln!(text, "h {path} {first}");
            continue;
        }
        let (kind, detail, default_mode) = match tree.source(node) {
            NodeSource::Implied => ('?', String::new(), 0o644),
            NodeSource::Entry { layer, entry } => match layers[layer.index()].entry(entry).kind() {
                IndexedKind::Regular { .. } => ('f', field(&content(layer, entry)), 0o644),
                IndexedKind::Symlink { target } => ('l', field(target), 0o777),
                IndexedKind::CharDevice { major, minor } => ('c', format!("{major}:{minor}"), 0o644),
                IndexedKind::BlockDevice { major, minor } => ('b', format!("{major}:{minor}"), 0o644),
                IndexedKind::Fifo => ('p', String::new(), 0o644),
                // Cannot occur in a tree; a dump helps more than a panic.
                IndexedKind::Directory | IndexedKind::Hardlink { .. } => ('?', String::new(), 0o644),
            },
        };
        let _ = write!(text, "{kind} {path}");
        if !detail.is_empty() {
            let _ = write!(text, " {detail}");
        }
        let _ = writeln!(text, "{}", attributes(tree, layers, node, default_mode));
        if tree.nlink(node) > 1 {
            first_names.insert(node, path.clone());
        }
    }
    text
}

/// The attributes of a node that do not have their default value, each preceded by a space.
fn attributes<D: AsRef<[u8]>>(tree: &Tree, layers: &[&Index<D>], node: NodeId, default_mode: u16) -> String {
    let mut text = String::new();
    let NodeSource::Entry { layer, entry } = tree.source(node) else { return text };
    let entry = layers[layer.index()].entry(entry);
    if entry.mode() != default_mode {
        let _ = write!(text, " mode={:o}", entry.mode());
    }
    if entry.uid() != 0 {
        let _ = write!(text, " uid={}", entry.uid());
    }
    if entry.gid() != 0 {
        let _ = write!(text, " gid={}", entry.gid());
    }
    match entry.mtime() {
        Timestamp { sec: 0, nsec: 0 } => {}
        Timestamp { sec, nsec: 0 } => {
            let _ = write!(text, " mtime={sec}");
        }
        Timestamp { sec, nsec } if sec >= 0 => {
            let _ = write!(text, " mtime={sec}.{nsec:09}");
        }
        // `sec` is rounded down, but in decimal notation the fraction of a negative number is negative too.
        Timestamp { sec, nsec } => {
            let _ = write!(text, " mtime=-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec);
        }
    }
    for (name, value) in entry.xattrs() {
        let _ = write!(text, " xattr.{}={}", field(name), field(value));
    }
    text
}

fn field(bytes: &[u8]) -> String {
    Printable(bytes).to_string().replace(' ', "\\x20").replace('=', "\\x3d")
}
