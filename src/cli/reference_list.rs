//! Reads files that list references, for `pull --from`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error;
use crate::error::ErrorCode;
use crate::os::AtPath as _;

/// Maximum length of a list in bytes.
const LENGTH_MAX: u64 = 1 << 20;

/// A reference as the user wrote it: an argument, or a line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedReference {
    text: String,
    /// The file and the number of the line, counted from 1.
    line: Option<(PathBuf, usize)>,
}

impl ListedReference {
    pub(super) fn argument(text: &str) -> Self {
        Self { text: text.to_owned(), line: None }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// The reference with the file and line that it comes from, for messages.
impl fmt::Display for ListedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            None => f.write_str(&self.text),
            Some((file, line)) => write!(f, "{} ({} line {line})", self.text, file.display()),
        }
    }
}

/// Reads the references of a file, one per line; `-` is standard input. Leaves out blank lines and comments, which start with
/// `#`. A line that is no reference is returned too, so that the command can report it and go on with the others.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<ListedReference>> {
    let (name, bytes) = if file == Path::new("-") {
        (Path::new("standard input"), read_bounded(&mut std::io::stdin().lock()).at("read", file)?)
    } else {
        (file, read_bounded(&mut File::open(file).at("open", file)?).at("read", file)?)
    };
    if bytes.len() as u64 > LENGTH_MAX {
        let message =
            format!("{} is no list of references: it is longer than {LENGTH_MAX} bytes", name.display());
        return Err(error::fail(ErrorCode::Usage, message));
    }
    Ok(parse(name, &bytes))
}

fn read_bounded(input: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(LENGTH_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(file: &Path, bytes: &[u8]) -> Vec<ListedReference> {
    let text = String::from_utf8_lossy(bytes);
    // A byte order mark, which some editors write.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = (1..).zip(text.lines()).filter_map(|(number, line)| {
        // No reference contains `#`.
        let text = line.split('#').next().unwrap_or_default().trim();
        let line = Some((file.to_owned(), number));
        (!text.is_empty()).then(|| ListedReference { text: text.to_owned(), line })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_left_out_and_lines_keep_their_numbers() {
        let text = "\u{feff}# images of the course\r\n\n  lab/a:1  # first\r\n\t\nnot valid\nlab/b";
        let listed = parse(Path::new("list"), text.as_bytes());
        let shown: Vec<String> = listed.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["lab/a:1 (list line 3)", "not valid (list line 5)", "lab/b (list line 6)"]);
    }

    #[test]
    fn endless_input_is_read_only_up_to_the_limit() {
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.starts_with("/dev/zero is no list of references"), "{error}");
    }
}
