//! The content of a directory: blocks of entries, each sorted by name, names behind the records.

use super::format::{BLOCK, DIRENT_LEN, FileTypeByte};
use crate::tree::{NodeId, Tree};

#[expect(clippy::cast_possible_truncation, reason = "512")]
const BLOCK_LEN: usize = BLOCK as usize;

/// The entries of a directory with `.` and `..`, in byte order of their names, as the kernel searches them
/// (fs/erofs/namei.c).
fn entries(tree: &Tree, directory: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
    let dots = [(&b"."[..], directory), (&b".."[..], tree.parent(directory))];
    let mut dots = dots.into_iter().peekable();
    let mut children = tree.children(directory).peekable();
    std::iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some((dot, _)), Some((name, _))) if name < dot => children.next(),
        (Some(_), _) => dots.next(),
        (None, _) => children.next(),
    })
}

/// The size of a directory's content: whole blocks, and the used bytes of the last block.
pub(super) fn size(tree: &Tree, directory: NodeId) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for (name, _) in entries(tree, directory) {
        let len = DIRENT_LEN + name.len();
        if used + len > BLOCK_LEN {
            blocks += 1;
            used = 0;
        }
        used += len;
    }
    blocks * BLOCK + used as u64
}

/// Writes the content of a directory block by block. Each block has [`BLOCK`] bytes, except for the last: that has no padding.
/// `inode` returns the number and the kind of a node.
pub(super) fn write<E>(
    tree: &Tree,
    directory: NodeId,
    inode: impl Fn(NodeId) -> (u64, FileTypeByte),
    mut block: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut pending: Vec<(&[u8], NodeId)> = Vec::new();
    let mut used = 0;
    let mut bytes = Vec::with_capacity(BLOCK_LEN);
    let fill = |pending: &[(&[u8], NodeId)], bytes: &mut Vec<u8>| {
        bytes.clear();
        let mut name_at = pending.len() * DIRENT_LEN;
        for (name, node) in pending {
            let (number, kind) = inode(*node);
            bytes.extend_from_slice(&number.to_le_bytes());
            let at = u16::try_from(name_at).expect("a name starts within its block");
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&[kind as u8, 0]);
            name_at += name.len();
        }
        for (name, _) in pending {
            bytes.extend_from_slice(name);
        }
    };
    for (name, node) in entries(tree, directory) {
        let len = DIRENT_LEN + name.len();
        if used + len > BLOCK_LEN {
            fill(&pending, &mut bytes);
            bytes.resize(BLOCK_LEN, 0);
            block(&bytes)?;
            pending.clear();
            used = 0;
        }
        pending.push((name, node));
        used += len;
    }
    fill(&pending, &mut bytes);
    block(&bytes)
}
