//! Joins the lines of a Dockerfile to logical lines, one for each instruction.

use super::heredoc;
use super::{DockerfileError, ParserDirective};

/// An instruction as one line: continuations joined, comments and here-documents left out.
#[derive(Debug)]
pub(super) struct LogicalLine {
    /// Number of its first line, from 1.
    pub(super) number: usize,
    pub(super) text: String,
}

/// The lines of a Dockerfile.
#[derive(Debug)]
pub(super) struct LogicalLines {
    pub(super) directives: Vec<ParserDirective>,
    /// The character that continues a line, and that escapes others.
    pub(super) escape: char,
    pub(super) lines: Vec<LogicalLine>,
}

/// Reads a text.
pub(super) fn read(text: &str) -> Result<LogicalLines, DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let all = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let mut rest = (1..).zip(all).peekable();
    let mut read = LogicalLines { directives: Vec::new(), escape: '\\', lines: Vec::new() };
    while let Some(directive) = rest.peek().and_then(|(number, line)| directive(*number, line)) {
        if directive.name == "escape" {
            read.escape = match directive.value.as_str() {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let reason = format!("escape must be ` or \\, not `{other}`");
                    return Err(DockerfileError::new(directive.line, reason));
                }
            };
        }
        read.directives.push(directive);
        rest.next();
    }
    while let Some((number, line)) = rest.next() {
        if is_ignored(line) {
            continue;
        }
        let (start, mut goes_on) = without_continuation(line.trim_start(), read.escape);
        let mut text = start.to_owned();
        while goes_on && let Some((_, line)) = rest.next() {
            if is_ignored(line) {
                continue;
            }
            let (part, continued) = without_continuation(line, read.escape);
            text.push_str(part);
            goes_on = continued;
        }
        // A line with nothing but the character that continues it.
        if text.trim().is_empty() {
            continue;
        }
        for heredoc in heredoc::find(&text, read.escape) {
            if !rest.by_ref().any(|(_, line)| heredoc.is_ended_by(line)) {
                let reason = format!("the here-document `{}` has no end", heredoc.name);
                return Err(DockerfileError::new(number, reason));
            }
        }
        read.lines.push(LogicalLine { number, text });
    }
    Ok(read)
}

/// Parses `# NAME=VALUE`.
fn directive(line: usize, text: &str) -> Option<ParserDirective> {
    let (name, value) = text.trim_start().strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_name && !value.is_empty()).then(|| ParserDirective {
        line,
        name: name.to_ascii_lowercase(),
        value: value.to_owned(),
    })
}

/// Whether a line is blank or a comment. Such lines are left out even between the lines of an instruction.
fn is_ignored(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// Returns a line without the character that continues it, and whether it had one. An escaped one does not count.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}
