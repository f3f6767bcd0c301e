//! What a tool made of a case, against what should come of it.

use std::fmt;

use crate::tools::Outcome;
use support::case::Expected;

/// Longest difference or message in a cell, in characters.
const CELL: usize = 200;
/// A character that is repeated more often is shown once with the number.
const REPEAT: usize = 12;

#[derive(Debug)]
pub(crate) enum Verdict {
    /// The tree.
    Same,
    /// The tree, but for times of directories.
    Times,
    /// Another tree.
    Differs(String),
    /// No tree; `too` where there should be none.
    Refuses { too: bool, why: String },
    /// A tree where there should be none.
    Accepts(String),
}

impl Verdict {
    pub(crate) fn of(expected: &Expected, outcome: &Outcome) -> Self {
        match (expected, outcome) {
            (Expected::Tree(_), Err(why)) => Self::Refuses { too: false, why: why.clone() },
            (Expected::Error(_), Err(why)) => Self::Refuses { too: true, why: why.clone() },
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
                // The same lines in another order: of hard links, the first name has the content.
                Self::Differs(lines.join("; "))
            }
        }
    }

    /// Whether it is as we have it, times of directories aside.
    pub(crate) fn agrees(&self) -> bool {
        matches!(self, Self::Same | Self::Times | Self::Refuses { too: true, .. })
    }
}

/// A tree's lines, without that of the root where it is not to be compared.
fn compared(tree: &str, skip_root: bool) -> Vec<String> {
    let lines = tree.lines().filter(|line| !(skip_root && line.starts_with("d / ")));
    lines.map(str::to_owned).collect()
}

/// As a cell of a table shows it.
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
            Self::Refuses { too: true, .. } => f.write_str("refuses"),
            Self::Refuses { why, .. } => write!(f, "**refuses** {}", cell(why)),
            Self::Accepts(tree) if tree.is_empty() => f.write_str("**accepts** an empty tree"),
            Self::Accepts(tree) => write!(f, "**accepts** {}", cell(tree)),
        }
    }
}
