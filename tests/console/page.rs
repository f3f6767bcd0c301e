//! The `console` blocks of a Markdown page.

use std::fs;

use support::repository;

/// A page and its blocks.
#[derive(Debug)]
pub(crate) struct Page {
    /// Relative to the repository.
    pub(crate) path: String,
    pub(crate) blocks: Vec<Block>,
}

/// A fenced block marked `console` or `console-host`.
#[derive(Debug)]
pub(crate) struct Block {
    /// Marked `console-host`: not to be run.
    pub(crate) exempt: bool,
    commands: Vec<Command>,
}

/// A command and what it is to print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// Number of the line that it starts in.
    pub(crate) line: usize,
    /// Without the prompt; lines that continue it follow behind line ends.
    pub(crate) text: String,
    /// Lines of output, patterns of [`crate::pattern`].
    pub(crate) expected: Vec<String>,
}

impl Block {
    pub(crate) fn commands(&self) -> &[Command] {
        &self.commands
    }
}

impl Page {
    /// Reads a page of the repository.
    pub(crate) fn read(path: &str) -> Self {
        let text =
            fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::parse(path, &text)
    }

    fn parse(path: &str, text: &str) -> Self {
        let mut blocks: Vec<Block> = Vec::new();
        let mut lines = text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let indent = line.len() - line.trim_start().len();
            let content: Vec<_> = lines.by_ref().take_while(|(line, _)| line.trim() != "```").collect();
            let exempt = match info.trim() {
                "console" => false,
                "console-host" => true,
                other => {
                    assert!(!other.starts_with("console"), "{path}:{number}: unknown kind of block: {other}");
                    continue;
                }
            };
            let content =
                content.into_iter().map(|(line, number)| (line.get(indent..).unwrap_or(""), number));
            blocks.push(Block { exempt, commands: commands(path, content) });
        }
        Self { path: path.to_owned(), blocks }
    }
}

fn commands<'a>(path: &str, lines: impl Iterator<Item = (&'a str, usize)>) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    let mut open = false;
    for (line, number) in lines {
        if open {
            let command = commands.last_mut().expect("an open command is one");
            command.text += "\n";
            command.text += line;
            open = is_open(&command.text);
        } else if let Some(text) = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")) {
            commands.push(Command { line: number, text: text.to_owned(), expected: Vec::new() });
            open = is_open(text);
        } else {
            let command = commands.last_mut();
            let command = command.unwrap_or_else(|| panic!("{path}:{number}: output before any command"));
            command.expected.push(line.to_owned());
        }
    }
    assert!(!open, "{path}: a command has no end: {:?}", commands.last());
    commands
}

/// Whether a command goes on in the next line: it ends with a backslash, or within a quote.
fn is_open(text: &str) -> bool {
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            // The guard also skips the escaped character.
            (_, '\\') if characters.next().is_none() => return true,
            (_, '\\') => {}
            (None, '\'' | '"') => quote = Some(character),
            _ => {}
        }
    }
    quote.is_some()
}

#[test]
fn blocks_are_read_with_line_numbers_continuations_and_expected_output() {
    let text = "\
text
```console
# one \\
  more
out
$ two 'a
# b' \"it's\"
```
```sh
# none
```
- in a list:
  ```console-host
  # three
  …
  ```
";
    let page = Page::parse("page", text);
    let command = |line, text: &str, expected: &[&str]| Command {
        line,
        text: text.to_owned(),
        expected: expected.iter().map(|line| (*line).to_owned()).collect(),
    };
    let [one, two] = page.blocks.as_slice() else { panic!("{page:?}") };
    assert_eq!((one.exempt, two.exempt), (false, true));
    assert_eq!(
        one.commands(),
        [command(3, "one \\\n  more", &["out"]), command(6, "two 'a\n# b' \"it's\"", &[])]
    );
    assert_eq!(two.commands(), [command(14, "three", &["…"])]);
}
