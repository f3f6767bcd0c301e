//! Finds the here-documents that follow an instruction.

use super::{first_word, word_end};

/// Instructions that may have here-documents.
const WITH_HEREDOCS: [&str; 3] = ["ADD", "COPY", "RUN"];

/// A here-document that starts after a line.
#[derive(Debug)]
pub(super) struct Heredoc {
    /// The line that ends it.
    pub(super) name: String,
    /// Whether tabs before that line are ignored: `<<-`.
    ignores_tabs: bool,
}

impl Heredoc {
    /// Whether a line is the end of the document.
    pub(super) fn is_ended_by(&self, line: &str) -> bool {
        let line = if self.ignores_tabs { line.trim_start_matches('\t') } else { line };
        line == self.name
    }
}

/// Returns the here-documents of an instruction, in the order in which they follow.
pub(super) fn find(text: &str, escape: char) -> Vec<Heredoc> {
    let (mut keyword, mut rest) = first_word(text);
    if keyword.eq_ignore_ascii_case("ONBUILD") {
        (keyword, rest) = first_word(rest);
    }
    if !WITH_HEREDOCS.iter().any(|with| with.eq_ignore_ascii_case(keyword)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(word_end(rest, escape));
        found.extend(heredoc(word));
        rest = behind.trim_start();
    }
    found
}

/// Parses `[DIGITS]<<[-]NAME`, where the name may be quoted.
fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|character: char| character.is_ascii_digit()).strip_prefix("<<")?;
    let (ignores_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let name: String = rest.chars().filter(|character| !matches!(character, '"' | '\'' | '\\')).collect();
    (!name.is_empty() && !name.contains('<')).then_some(Heredoc { name, ignores_tabs })
}
