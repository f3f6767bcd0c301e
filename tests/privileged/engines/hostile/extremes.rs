//! Images with very much of one thing, which the naive model would take too long for: their lines are what must be shown.

use rcx_imagefs::roots::enter_private_namespace;
use support::kernel_log::KernelLog;
use support::layers::{EntryKind, Line, merge_lines};

use super::expected::ExpectedTree;
use super::{assert_mounted, walk::Shown};

/// Compares an image with lines that give the same tree and have no path through a symlink.
#[track_caller]
fn assert_shown_as(stack: &[Vec<Line>], expected: &ExpectedTree) {
    enter_private_namespace().expect("this test needs root");
    let mut log = KernelLog::end();
    assert_mounted(&merge_lines(stack).unwrap(), expected, &[Shown::Erofs], &mut log);
}

#[test]
fn kernel_shows_a_directory_of_100_000_names() {
    // Short and long names, in another order than their bytes have, some of which are no UTF-8.
    let name = |number: u32| match number % 3 {
        0 => [&number.to_be_bytes().map(|byte| byte | 0x80)[..], &number.to_string().into_bytes()].concat(),
        1 => format!("{number:x}.").into_bytes(),
        _ => [&vec![b'n'; number as usize % 250][..], &number.to_string().into_bytes()].concat(),
    };
    let line = |number| Line::new(&[b"many/", &name(number)[..]].concat(), EntryKind::Fifo);
    let lines: Vec<Line> = (0..100_600).map(line).filter(|line| line.path.len() <= 260).collect();
    assert!(lines.len() >= 100_000, "{}", lines.len());
    assert_shown_as(std::slice::from_ref(&lines), &ExpectedTree::new(&lines));
}

/// A path has at most 4,095 bytes, but a symlink may lead to where the next path starts.
#[test]
fn kernel_shows_a_tree_of_6_000_levels() {
    const LEVELS: usize = 1500;
    let chain = vec![b"d".to_vec(); LEVELS];
    let mut layer = vec![Line::new(&chain.join(&b'/'), EntryKind::Directory)];
    let mut expected = ExpectedTree::new(&layer);
    let mut path = chain.clone();
    for number in 1..4 {
        let link = format!("link{number}").into_bytes();
        let before = if number == 1 { Vec::new() } else { format!("link{}/", number - 1).into_bytes() };
        let target = [&before[..], &chain.join(&b'/')].concat();
        let link = Line::new(&link, EntryKind::Symlink(target));
        let below = Line::new(&[&link.path[..], b"/", &chain.join(&b'/')].concat(), EntryKind::Directory);
        expected.insert(std::slice::from_ref(&link.path), &link);
        path.extend_from_slice(&chain);
        expected.insert(&path, &below);
        layer.extend([link, below]);
    }
    assert!(path.len() == 4 * LEVELS);
    assert_shown_as(std::slice::from_ref(&layer), &expected);
}

#[test]
fn kernel_shows_66_000_names_of_one_file() {
    // More than the 16 bits of a short inode.
    let mut lines = vec![Line::new(b"first", EntryKind::File(b"content".to_vec()))];
    lines.extend((0..66_000).map(|number| {
        let path = format!("links{}/{number}", number % 7);
        Line::new(path.as_bytes(), EntryKind::Hardlink(b"first".to_vec()))
    }));
    assert_shown_as(std::slice::from_ref(&lines), &ExpectedTree::new(&lines));
}

#[test]
fn kernel_shows_66_000_directories_in_one() {
    let lines: Vec<Line> = (0..66_000)
        .map(|number| Line::new(format!("many/{number}").as_bytes(), EntryKind::Directory))
        .collect();
    assert_shown_as(std::slice::from_ref(&lines), &ExpectedTree::new(&lines));
}

/// Most devices have addresses of their own, because their sizes together are more than 32 bits of blocks.
#[test]
fn kernel_shows_the_files_of_400_layers_of_many_sizes() {
    let layer = |number: u64| match number % 4 {
        0 => Vec::new(),
        1 => vec![Line::new(format!("small{number}").as_bytes(), EntryKind::File(vec![b'x'; 512 + 7]))],
        _ => {
            let size = (1 << 40) - number;
            let segments = vec![(number << 28, vec![b'a'; 700]), (size - 5, b"!end!".to_vec())];
            let mut small = Line::new(format!("beside{number}").as_bytes(), EntryKind::File(vec![b'y'; 100]));
            small.mtime = (i64::try_from(number).unwrap() - 200, 999_999_999);
            vec![Line::new(format!("large{number}").as_bytes(), EntryKind::Sparse(size, segments)), small]
        }
    };
    let stack: Vec<Vec<Line>> = (0..400).map(layer).collect();
    let lines: Vec<Line> = stack.concat();
    assert_shown_as(&stack, &ExpectedTree::new(&lines));
}

#[test]
fn kernel_shows_2_000_xattrs_of_a_file() {
    let mut lines = Vec::new();
    for (name, own) in [("a", false), ("b", false), ("c", true)] {
        let mut line = Line::new(name.as_bytes(), EntryKind::File(Vec::new()));
        for number in 0..2000 {
            let value = if own { format!("{name}{number}") } else { "shared".to_owned() };
            line.xattrs.push((format!("user.{number}"), value.into_bytes()));
        }
        lines.push(line);
    }
    assert_shown_as(std::slice::from_ref(&lines), &ExpectedTree::new(&lines));
}
