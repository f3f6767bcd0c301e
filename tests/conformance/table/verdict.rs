//! Compares the result of a tool with the expected result of a case.

use std::fmt;

use crate::tools::Outcome;
use support::case::Expected;

/// The longest difference or message in a cell, in characters.
const CELL: usize = 200;
/// Longer runs of a character are shown as the character and the length of the run.
const REPEAT: usize = 12;

#[derive(Debug)]
pub(crate) enum Verdict {
    /// The expected tree.
    Same,
    /// The expected tree, except for the times of directories.
    Times,
    /// A different tree.
    Differs(String),
    /// No tree; `as_expected` if the case expects an error.
    Refuses { as_expected: bool, message: String },
    /// A tree, although the case expects an error.
    Accepts(String),
}

impl Verdict {
    pub(crate) fn of(expected: &Expected, outcome: &Outcome) -> Self {
        match (expected, outcome) {
            (Expected::Tree(_), Err(message)) => {
                Self::Refuses { as_expected: false, message: message.clone() }
            }
            (Expected::Error(_), Err(message)) => {
                Self::Refuses { as_expected: true, message: message.clone() }
            }
            (Expected::Error(_), Ok(tree)) => Self::Accepts(compared(tree, true).join("; ")),
            (Expected::Tree(expected), Ok(tree)) => {
                let expected: Vec<&str> = expected.lines().collect();
                let root = expected.first().is_some_and(|line| line.starts_with("d / ") || *line == "d /");
                let found = compared(tree, !root);
                if found == expected {
                    return Self::Same;
                }
                let timeless: Vec<String> = found.iter().map(|line| line.replace(" mtime=now", "")).collect();
                if timeless == expected {
                    return Self::Times;
                }
                let missing = expected.iter().filter(|line| !timeless.iter().any(|other| other == **line));
                let more = timeless.iter().filter(|line| !expected.contains(&line.as_str()));
                let lines = missing.map(|line| format!("-{line}")).chain(more.map(|line| format!("+{line}")));
                let lines: Vec<String> = lines.collect();
                // Empty if only the order differs: the first name of a hard-linked file has the content.
                Self::Differs(lines.join("; "))
            }
        }
    }

    /// Returns whether the tool agrees with us, except for the times of directories.
    pub(crate) fn agrees(&self) -> bool {
        matches!(self, Self::Same | Self::Times | Self::Refuses { as_expected: true, .. })
    }
}

/// Returns the lines of a tree, optionally without the line of the root.
fn compared(tree: &str, skip_root: bool) -> Vec<String> {
    let lines = tree.lines().filter(|line| !(skip_root && line.starts_with("d / ")));
    lines.map(str::to_owned).collect()
}

/// Formats text as a table cell.
fn cell(text: &str) -> String {
    let mut short = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.chars().take_while(|other| *other == first).count();
        if run > REPEAT && first.is_ascii_alphanumeric() {
            short += &format!("{first}…({run})");
        } else {
            short.extend(std::iter::repeat_n(first, run));
        }
        rest = &rest[first.len_utf8() * run..];
    }
    let mut cut: String = short.chars().take(CELL).collect();
    if cut.len() < short.len() {
        cut += "…";
    }
    format!("`{}`", cut.replace('|', "\\|").replace('`', "'"))
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("same"),
            Self::Times => f.write_str("times"),
            Self::Differs(difference) => write!(f, "**differs** {}", cell(difference)),
            Self::Refuses { as_expected: true, .. } => f.write_str("refuses"),
            Self::Refuses { message, .. } => write!(f, "**refuses** {}", cell(message)),
            Self::Accepts(tree) if tree.is_empty() => f.write_str("**accepts** an empty tree"),
            Self::Accepts(tree) => write!(f, "**accepts** {}", cell(tree)),
        }
    }
}
