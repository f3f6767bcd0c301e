//! What commands print: tables and sizes for people, JSON for programs, progress on a terminal.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::pipeline::{Event, Progress};

/// Prints a value as one JSON document.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// Prints one line; a reader that has gone away is no error.
pub(super) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    bytes(format!("{}\n", plain(&text.to_string())).as_bytes())
}

/// The text on one line: what a terminal takes as a command, or as another line, is escaped. Parts of it may come from an
/// image's configuration or from a registry.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// Prints bytes as they are; a reader that has gone away is no error.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

/// Prints a line whose text need not be UTF-8.
pub(super) fn bytes_line(text: &[u8]) -> anyhow::Result<()> {
    bytes(&[text, b"\n"].concat())
}

/// Prints rows in columns as wide as their widest cell.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let width = |column: usize| {
        let cells = std::iter::once(&head).chain(rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A size for people, in binary units.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Progress bars on stderr where that is a terminal; quiet elsewhere.
pub(super) fn progress() -> Progress {
    if !std::io::stderr().is_terminal() {
        return Progress::none();
    }
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let open: Arc<Mutex<HashMap<String, ProgressBar>>> = Arc::default();
    let style = ProgressStyle::with_template(
        "{prefix:>19} {wide_bar:.cyan/dim} {binary_bytes:>11}/{binary_total_bytes:<11} {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    Progress::new(move |event| {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Layer { digest, size } => {
                let short: String = digest.hex().chars().take(12).collect();
                let bar = bars.add(ProgressBar::new(size).with_style(style.clone()).with_prefix(short));
                open.insert(digest.hex(), bar);
            }
            Event::Bytes { digest, total } => {
                if let Some(bar) = open.get(&digest.hex()) {
                    bar.set_position(total);
                }
            }
            Event::Waiting { digest } => {
                if let Some(bar) = open.get(&digest.hex()) {
                    bar.set_message("another process has it");
                }
            }
            Event::Rebuilding { digest } => {
                if let Some(bar) = open.get(&digest.hex()) {
                    bar.set_message("building its index anew");
                }
            }
            Event::Done { digest } => {
                if let Some(bar) = open.remove(&digest.hex()) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// A bar for one long job of known size, on stderr where that is a terminal; hidden elsewhere.
pub(super) fn bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar:.cyan/dim} {binary_bytes:>11}/{binary_total_bytes:<11}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size(1536), "1.50 KiB");
    }

    #[test]
    fn nothing_in_a_line_commands_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{9b}é"), "a\\u{1b}[2Jb\\nc\\u{9b}é");
    }
}
