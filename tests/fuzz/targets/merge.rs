//! Layers with any entries in any order, merged by the program and by the reference model.
//!
//! Properties: both yield the same tree, by listing and by lookup, with the same link counts; or both refuse the same entry
//! of the same layer, and agree again once that entry is removed.

use crate::input::Input;
use support::compare::compare;
use support::layers::{EntryKind, Line};
use support::model;

/// Only a few names, so that paths collide. Some need escaping in the text form.
const NAMES: [&[u8]; 12] =
    [b"a", b"b", b"c", b"a", b"b", b"..", b".", b"", b"a b", b"=\\", b"\xff\n", b"lib"];

/// The most entries in all layers together. The model's cost is quadratic in their number.
const LINES: usize = 40;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut stack = vec![Vec::new()];
    let mut lines = 0;
    while !input.is_empty() && lines < LINES {
        match line(&mut input) {
            Some(line) => {
                lines += 1;
                stack.last_mut().unwrap().push(line);
            }
            None if stack.len() < 6 => stack.push(Vec::new()),
            None => {}
        }
    }
    compare(stack);
}

fn path(input: &mut Input<'_>) -> Vec<u8> {
    // The two lowest bits choose the number of names, the five highest whether the path is absolute.
    let form = input.byte();
    let names: Vec<&[u8]> = (0..=form % 4).map(|_| input.pick(&NAMES)).collect();
    let path = names.join(&b'/');
    if form & 0xf8 == 0xf8 { [b"/", &path[..]].concat() } else { path }
}

/// Generates an entry. `None` starts the next layer.
fn line(input: &mut Input<'_>) -> Option<Line> {
    let kind = input.below(12);
    if kind == 11 {
        return None;
    }
    let path = path(input);
    let kind = match kind {
        0 | 1 => EntryKind::Directory,
        2 | 3 => EntryKind::Symlink(target(input)?),
        4 | 5 => EntryKind::Hardlink(target(input)?),
        6 => EntryKind::Fifo,
        7 => EntryKind::Whiteout,
        8 => EntryKind::Opaque,
        9 => EntryKind::Char(1, 3),
        _ => EntryKind::File(input.bytes(2).to_vec()),
    };
    // The root can only be a directory or have an opaque marker. The tar reader refuses all other entries for it.
    let root = model::normal(&path).is_empty();
    let dots = matches!(path.rsplit(|&byte| byte == b'/').next(), Some(b"" | b"." | b".."));
    let refused = match kind {
        EntryKind::Directory | EntryKind::Opaque => path.is_empty(),
        EntryKind::Whiteout => dots,
        // A trailing slash makes the entry a directory.
        _ => root || path.ends_with(b"/"),
    };
    if refused {
        return Some(Line::new(b"d", EntryKind::Directory));
    }
    let mut line = Line::new(&path, kind);
    let attributes = input.byte();
    if !matches!(line.kind, EntryKind::Symlink(_)) {
        line.mode = 0o600 + u32::from(attributes & 0o77);
    }
    line.uid = u32::from(attributes >> 6);
    Some(line)
}

/// Generates a link target. It is never empty, because the tar reader refuses empty targets.
fn target(input: &mut Input<'_>) -> Option<Vec<u8>> {
    Some(path(input)).map(|path| if path.is_empty() { b".".to_vec() } else { path })
}
