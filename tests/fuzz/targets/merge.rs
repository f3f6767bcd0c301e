//! Layers of any entries in any order, merged by the program and by the reference model.
//!
//! Promises: both give the same tree, by listing and by look-up, with the same link counts; or both find the same line of the
//! same layer to break a rule, and go on alike without it.

use crate::input::Input;
use support::compare::compare;
use support::layers::{EntryKind, Line};
use support::model;

/// Few, so that paths meet; some that a text form has to escape.
const NAMES: [&[u8]; 12] =
    [b"a", b"b", b"c", b"a", b"b", b"..", b".", b"", b"a b", b"=\\", b"\xff\n", b"lib"];

/// The model is quadratic.
const LINES: usize = 40;

/// See the module.
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
    // The lowest bits tell how many names there are, the next whether it is absolute.
    let form = input.byte();
    let names: Vec<&[u8]> = (0..=form % 4).map(|_| input.pick(&NAMES)).collect();
    let path = names.join(&b'/');
    if form & 0xf8 == 0xf8 { [b"/", &path[..]].concat() } else { path }
}

/// `None` starts the next layer.
fn line(input: &mut Input<'_>) -> Option<Line> {
    let what = input.below(12);
    if what == 11 {
        return None;
    }
    let path = path(input);
    let what = match what {
        0 | 1 => EntryKind::Directory,
        2 | 3 => EntryKind::Symlink(target(input)?),
        4 | 5 => EntryKind::Hardlink(target(input)?),
        6 => EntryKind::Fifo,
        7 => EntryKind::Whiteout,
        8 => EntryKind::Opaque,
        9 => EntryKind::Char(1, 3),
        _ => EntryKind::File(input.bytes(2).to_vec()),
    };
    // Of the root there can be a directory and a marker for what is in it; else such names are refused before the merge.
    let root = model::normal(&path).is_empty();
    let dots = matches!(path.rsplit(|&byte| byte == b'/').next(), Some(b"" | b"." | b".."));
    let refused = match what {
        EntryKind::Directory | EntryKind::Opaque => path.is_empty(),
        EntryKind::Whiteout => dots,
        // A name with a slash at its end is a directory's.
        _ => root || path.ends_with(b"/"),
    };
    if refused {
        return Some(Line::new(b"d", EntryKind::Directory));
    }
    let mut line = Line::new(&path, what);
    let attributes = input.byte();
    if !matches!(line.kind, EntryKind::Symlink(_)) {
        line.mode = 0o600 + u32::from(attributes & 0o77);
    }
    line.uid = u32::from(attributes >> 6);
    Some(line)
}

/// Where a link leads; an empty one is refused before the merge.
fn target(input: &mut Input<'_>) -> Option<Vec<u8>> {
    Some(path(input)).map(|path| if path.is_empty() { b".".to_vec() } else { path })
}
