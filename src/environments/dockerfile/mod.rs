//! Reads a Dockerfile as far as a reviewer needs it: its instructions with their lines, and the images that it uses.
//!
//! The rules are those of Docker's builder, where buildah has others too: parser directives, continuations, comments,
//! here-documents. A text that the two may read in different ways is refused rather than guessed at.

mod bases;
mod expand;
mod heredoc;
mod lines;

pub(super) use bases::mount_options;
pub use bases::{BaseFault, BaseUse};
pub use expand::VariableFault;

use self::lines::LogicalLine;

/// Longest Dockerfile, in bytes.
pub const DOCKERFILE_MAX: u64 = 1 << 20;

/// All instructions of the Dockerfile reference.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A Dockerfile that has been read.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    text: String,
    directives: Vec<ParserDirective>,
    escape: char,
    instructions: Vec<Instruction>,
}

/// A comment at the top that tells the builder something: `# NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParserDirective {
    /// Number of the line, from 1.
    pub line: usize,
    /// The name, in lower case.
    pub name: String,
    /// The value.
    pub value: String,
}

/// An instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Number of its first line, from 1.
    pub line: usize,
    /// The name, in upper case. That of the inner instruction for `ONBUILD`.
    pub keyword: String,
    /// Its options: `--NAME` or `--NAME=VALUE`.
    pub options: Vec<InstructionOption>,
    /// What follows the options, without here-documents.
    pub arguments: String,
}

/// An option of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructionOption {
    /// The name without `--`, in lower case.
    pub name: String,
    /// What follows `=`; empty if there is none.
    pub value: String,
}

/// A Dockerfile cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Dockerfile line {line}: {reason}")]
pub struct DockerfileError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub reason: String,
}

impl DockerfileError {
    fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

impl Dockerfile {
    /// Reads the text of a Dockerfile.
    ///
    /// # Errors
    ///
    /// Names the line of an unknown instruction, of a here-document without an end, and of a wrong `escape` directive.
    pub fn parse(text: &str) -> Result<Self, DockerfileError> {
        let lines = lines::read(text)?;
        let instructions = lines.lines.iter().map(|line| Instruction::parse(line, lines.escape));
        Ok(Self {
            text: text.to_owned(),
            instructions: instructions.collect::<Result<_, _>>()?,
            directives: lines.directives,
            escape: lines.escape,
        })
    }

    /// The text as it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The directives at the top.
    #[must_use]
    pub fn directives(&self) -> &[ParserDirective] {
        &self.directives
    }

    /// All instructions, in order.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The images that the build uses, in order: `FROM`, `COPY --from` and `RUN --mount=from=`, without stages and `scratch`.
    ///
    /// # Errors
    ///
    /// A `FROM` is malformed, or there is none.
    pub fn bases(&self) -> Result<Vec<BaseUse>, DockerfileError> {
        bases::find(self)
    }
}

impl Instruction {
    fn parse(line: &LogicalLine, escape: char) -> Result<Self, DockerfileError> {
        let (mut keyword, mut rest) = first_word(&line.text);
        if keyword.eq_ignore_ascii_case("ONBUILD") {
            (keyword, rest) = first_word(rest);
        }
        let keyword = keyword.to_ascii_uppercase();
        if !KEYWORDS.contains(&keyword.as_str()) {
            let reason = match keyword.as_str() {
                "" => "ONBUILD has no instruction".to_owned(),
                _ => format!("`{keyword}` is not an instruction"),
            };
            return Err(DockerfileError::new(line.number, reason));
        }
        let mut options = Vec::new();
        while rest.starts_with("--") {
            let end = word_end(rest, escape);
            let (word, behind) = rest.split_at(end);
            rest = behind.trim_start();
            if word == "--" {
                break;
            }
            let (name, value) = word[2..].split_once('=').unwrap_or((&word[2..], ""));
            options.push(InstructionOption { name: name.to_ascii_lowercase(), value: value.to_owned() });
        }
        Ok(Self { line: line.number, keyword, options, arguments: rest.trim_end().to_owned() })
    }

    /// The values of all options with this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |option| option.name == name).map(|option| option.value.as_str())
    }

    /// The words of the arguments: those of a JSON array of texts, or else those between white space.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        serde_json::from_str(&self.arguments)
            .unwrap_or_else(|_| self.arguments.split_whitespace().map(str::to_owned).collect())
    }
}

/// Splits a text after its first word.
fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// Returns where the first word of a text ends, in which quoted and escaped white space does not count.
fn word_end(text: &str, escape: char) -> usize {
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (Some('"') | None, character) if character == escape => drop(characters.next()),
            (Some(open), character) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, character) if character.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The instructions of a text, one per line: `LINE KEYWORD [OPTION..] | ARGUMENTS`.
    fn dump(text: &str) -> Vec<String> {
        let dockerfile = Dockerfile::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let line = |instruction: &Instruction| {
            let options: Vec<String> = instruction
                .options
                .iter()
                .map(|option| format!(" {}={}", option.name, option.value))
                .collect();
            format!(
                "{} {}{} | {}",
                instruction.line,
                instruction.keyword,
                options.concat(),
                instruction.arguments
            )
        };
        dockerfile.instructions().iter().map(line).collect()
    }

    #[test]
    fn instructions_have_their_first_line_whatever_follows_in_it() {
        let text = "\u{feff}# syntax=docker/dockerfile:1\r\n# a comment\nfrom a AS b\n\n  RUN one \\  \n\n # between\n  && two\ncopy --from=b --chown=1:2 x y\n\
                    RUN --mount=type=secret,id=a --mount=\"type=bind, from=x\" -- cat\nOnBuild RUN --network=none x\nRUN last \\";
        assert_eq!(
            dump(text),
            [
                "3 FROM | a AS b",
                "5 RUN | one   && two",
                "9 COPY from=b chown=1:2 | x y",
                "10 RUN mount=type=secret,id=a mount=\"type=bind, from=x\" | cat",
                "11 RUN network=none | x",
                "12 RUN | last",
            ]
        );
        assert_eq!(
            dump("FROM a\nCMD x\\\\\nCMD y"),
            ["1 FROM | a", "2 CMD | x\\\\", "3 CMD | y"],
            "an escaped backslash"
        );
        assert_eq!(dump(""), [""; 0]);
    }

    #[test]
    fn escape_directive_changes_what_continues_a_line() {
        assert_eq!(dump("# escape=`\nFROM a\nRUN c:\\ `\n x\n"), ["2 FROM | a", "3 RUN | c:\\  x"]);
        // Only at the top.
        assert_eq!(dump("\n# escape=`\nRUN a `\nRUN b"), ["3 RUN | a `", "4 RUN | b"]);
        let error = Dockerfile::parse("# escape=x\n").unwrap_err();
        assert_eq!(error.to_string(), "Dockerfile line 1: escape must be ` or \\, not `x`");
    }

    #[test]
    fn here_documents_are_no_instructions() {
        let text = "FROM a\nRUN <<EOF\nFROM evil\nEOF\nRUN cat <<-'E' 3<<F >x\nADD y\n\tE\nG\nF\nRUN echo \"<<EOF\" a<<EOF 1<<<EOF\nCOPY <<\"A B\" /x\nA B\nCMD <<X\n";
        assert_eq!(
            dump(text),
            [
                "1 FROM | a",
                "2 RUN | <<EOF",
                "5 RUN | cat <<-'E' 3<<F >x",
                "10 RUN | echo \"<<EOF\" a<<EOF 1<<<EOF",
                "11 COPY | <<\"A B\" /x",
                "13 CMD | <<X",
            ]
        );
        let error = Dockerfile::parse("FROM a\nRUN <<EOF\n EOF\n").unwrap_err();
        assert_eq!(error.to_string(), "Dockerfile line 2: the here-document `EOF` has no end");
    }

    #[test]
    fn unknown_instruction_is_an_error_with_its_line() {
        for (text, expected) in [
            ("FROM a\n\nRUM x", "Dockerfile line 3: `RUM` is not an instruction"),
            ("FROM a\nONBUILD\n", "Dockerfile line 2: ONBUILD has no instruction"),
            ("FROM a\nINCLUDE other", "Dockerfile line 2: `INCLUDE` is not an instruction"),
        ] {
            assert_eq!(Dockerfile::parse(text).unwrap_err().to_string(), expected);
        }
    }

    const PIECES: [&str; 30] = [
        "FROM ",
        "from a AS b",
        "COPY --from=",
        "ADD ",
        "RUN ",
        "ONBUILD ",
        "ARG A=",
        "--mount=type=",
        "secret",
        "from=",
        ",",
        "$A",
        "${A:-",
        "}",
        "\\",
        "`",
        "\n",
        "\n",
        "\n",
        "\r",
        "# ",
        "#escape=`",
        "syntax=x",
        "<<EOF",
        "EOF",
        "<<-'",
        "\"",
        "'",
        "é\u{202e}",
        "0",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_or_refused_and_lines_are_lines_of_the_text(
            pieces in prop::collection::vec(prop_oneof![4 => prop::sample::select(&PIECES[..]).prop_map(str::to_owned), 1 => any::<String>()], 0..40),
        ) {
            let text = pieces.concat();
            let count = text.split('\n').count();
            let mut lines = Vec::new();
            match Dockerfile::parse(&text) {
                Err(error) => lines.push(error.line),
                Ok(dockerfile) => {
                    lines.extend(dockerfile.directives().iter().map(|directive| directive.line));
                    lines.extend(dockerfile.instructions().iter().map(|instruction| instruction.line));
                    match dockerfile.bases() {
                        Err(error) => lines.push(error.line),
                        Ok(bases) => lines.extend(bases.iter().map(|base| base.line)),
                    }
                }
            }
            prop_assert!(lines.iter().all(|line| (1..=count).contains(line)), "{lines:?} of {count}");
        }
    }
}
