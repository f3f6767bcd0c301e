//! Prints the output of commands: tables and sizes for users, JSON for programs, progress on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::ErrorJson;

/// Whether this process has printed a JSON document. Each process prints at most one.
static JSON_PRINTED: AtomicBool = AtomicBool::new(false);

/// Prints a value as one JSON document.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    JSON_PRINTED.store(true, Ordering::Relaxed);
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// Prints an error as a JSON document, unless the command has printed one, which then contains the error.
///
/// A failure to write is ignored: the command has failed already, and the error is on stderr.
pub(super) fn json_error(error: &ErrorJson) {
    #[derive(Serialize)]
    struct FailedJson<'a> {
        error: &'a ErrorJson,
    }
    if !JSON_PRINTED.load(Ordering::Relaxed) {
        let _ = json(&FailedJson { error });
    }
}

/// A number with a noun: `1 box`, `2 boxes`.
pub(super) fn count(number: usize, singular: &str, plural: &str) -> String {
    format!("{number} {}", if number == 1 { singular } else { plural })
}

/// Prints one line. A closed pipe is not an error.
pub(super) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    bytes(format!("{}\n", plain(&text.to_string())).as_bytes())
}

/// Escapes control characters, so that the text stays on one line and cannot control the terminal. Parts of it may come from
/// an image's configuration or from a registry.
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

/// Prints bytes unchanged. A closed pipe is not an error.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints a line of text that may not be UTF-8.
pub(super) fn bytes_line(text: &[u8]) -> anyhow::Result<()> {
    bytes(&[text, b"\n"].concat())
}

/// Prints a table. Each column is as wide as its widest cell.
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

/// The first 12 hex digits of a digest, as docker prints them.
pub(super) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// Formats a size in binary units.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Returns a progress bar for `total` bytes, on stderr if that is a terminal, and hidden otherwise.
pub(super) fn bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{wide_bar:.cyan/dim} {binary_bytes:>11}/{binary_total_bytes:<11} {binary_bytes_per_sec:>13}",
    )
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
    fn one_thing_has_a_singular_noun() {
        assert_eq!([0, 1, 2].map(|number| count(number, "box", "boxes")), ["0 boxes", "1 box", "2 boxes"]);
    }

    #[test]
    fn control_characters_in_a_line_are_escaped() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{9b}é"), "a\\u{1b}[2Jb\\nc\\u{9b}é");
    }
}
