//! Dockerfile instructions that change the configuration of an image.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::words::{split_words, whole_word};
use crate::error::ErrorCode;

/// The instructions that are supported, for messages.
const SUPPORTED: &str = "ENV, CMD, ENTRYPOINT, WORKDIR, USER and LABEL";
/// The shell of the shell form, unless the image names another one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A change of the configuration, written as an instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    keyword: Keyword,
    arguments: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keyword {
    Env,
    Cmd,
    Entrypoint,
    Workdir,
    User,
    Label,
}

/// The reason why an instruction cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum InstructionError {
    /// Only instructions that change the configuration can be applied to an image without running a program.
    #[error("instruction `{0}` is not supported: a change is one of {SUPPORTED}")]
    Unsupported(String),
    /// An instruction has no arguments.
    #[error("instruction {0} has no arguments")]
    NoArguments(String),
    /// A quote or brace is not closed.
    #[error("`{what}` is not closed in `{text}`")]
    NotClosed {
        /// The arguments.
        text: String,
        /// The quote or brace.
        what: char,
    },
    /// A replacement of a variable is not supported.
    #[error("a variable in `{0}` is not of the form $NAME, ${{NAME}}, ${{NAME:-WORD}} or ${{NAME:+WORD}}")]
    Variable(String),
    /// ENV or LABEL has a word without `=`.
    #[error("`{word}` in `{instruction}` is not of the form NAME=VALUE")]
    NoValue {
        /// The instruction.
        instruction: String,
        /// The word.
        word: String,
    },
    /// The instruction takes one argument.
    #[error("`{0}` has several arguments instead of one")]
    SeveralArguments(String),
}

impl InstructionError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Usage
    }
}

impl FromStr for ConfigChange {
    type Err = InstructionError;

    fn from_str(text: &str) -> Result<Self, InstructionError> {
        let text = text.trim();
        let (word, arguments) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let keyword = match word.to_ascii_uppercase().as_str() {
            "ENV" => Keyword::Env,
            "CMD" => Keyword::Cmd,
            "ENTRYPOINT" => Keyword::Entrypoint,
            "WORKDIR" => Keyword::Workdir,
            "USER" => Keyword::User,
            "LABEL" => Keyword::Label,
            _ => return Err(InstructionError::Unsupported(word.to_owned())),
        };
        let instruction = Self { keyword, arguments: arguments.trim().to_owned() };
        if instruction.arguments.is_empty() {
            return Err(InstructionError::NoArguments(word.to_ascii_uppercase()));
        }
        // Errors that depend on no image are found before anything is committed.
        instruction.apply(&mut Map::new())?;
        Ok(instruction)
    }
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keyword = match self.keyword {
            Keyword::Env => "ENV",
            Keyword::Cmd => "CMD",
            Keyword::Entrypoint => "ENTRYPOINT",
            Keyword::Workdir => "WORKDIR",
            Keyword::User => "USER",
            Keyword::Label => "LABEL",
        };
        write!(f, "{keyword} {}", self.arguments)
    }
}

impl ConfigChange {
    /// Returns whether this sets the command.
    pub(super) fn is_cmd(&self) -> bool {
        self.keyword == Keyword::Cmd
    }

    /// Returns whether this sets the entrypoint.
    pub(super) fn is_entrypoint(&self) -> bool {
        self.keyword == Keyword::Entrypoint
    }

    /// Changes `program`, the part of an image's configuration about its program.
    pub(super) fn apply(&self, program: &mut Map<String, Value>) -> Result<(), InstructionError> {
        match self.keyword {
            Keyword::Env => {
                let mut env = list(program, "Env");
                for (name, value) in self.pairs(program)? {
                    let variable = format!("{name}={value}");
                    let is_same =
                        |entry: &String| entry.split_once('=').is_some_and(|(other, _)| other == name);
                    match env.iter_mut().find(|entry| is_same(entry)) {
                        Some(entry) => *entry = variable,
                        None => env.push(variable),
                    }
                }
                set(program, "Env", env.into());
            }
            Keyword::Label => {
                let mut labels = match take(program, "Labels") {
                    Some(Value::Object(labels)) => labels,
                    _ => Map::new(),
                };
                for (name, value) in self.pairs(program)? {
                    labels.insert(name, value.into());
                }
                set(program, "Labels", labels.into());
            }
            Keyword::Cmd => set(program, "Cmd", self.command(program).into()),
            Keyword::Entrypoint => set(program, "Entrypoint", self.command(program).into()),
            Keyword::Workdir => {
                let directory = self.single(program)?;
                let path = match directory.starts_with('/') {
                    true => directory,
                    false => format!("{}/{directory}", text(program, "WorkingDir")),
                };
                set(program, "WorkingDir", normal(&path).into());
            }
            Keyword::User => {
                let user = self.single(program)?;
                set(program, "User", user.into());
            }
        }
        Ok(())
    }

    /// The words of a command: a JSON list, or a line for the shell.
    fn command(&self, program: &Map<String, Value>) -> Vec<String> {
        if let Ok(words) = serde_json::from_str(&self.arguments) {
            return words;
        }
        let shell = list(program, "Shell");
        let shell = if shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { shell };
        shell.into_iter().chain([self.arguments.clone()]).collect()
    }

    /// The names and values of ENV and LABEL: `NAME=VALUE...`, or `NAME VALUE`.
    fn pairs(&self, program: &Map<String, Value>) -> Result<Vec<(String, String)>, InstructionError> {
        let env = list(program, "Env");
        let variables = variables(&env);
        let no_value =
            |word: &str| InstructionError::NoValue { instruction: self.to_string(), word: word.to_owned() };
        let first = self.arguments.split_whitespace().next().unwrap_or_default();
        if !first.contains('=') {
            let name = whole_word(first, &variables)?;
            let value = self.arguments[first.len()..].trim_start();
            return match value.is_empty() {
                true => Err(no_value(&name)),
                false => Ok(vec![(name, whole_word(value, &variables)?)]),
            };
        }
        let pair = |word: String| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(no_value(&word)),
        };
        split_words(&self.arguments, &variables)?.into_iter().map(pair).collect()
    }

    fn single(&self, program: &Map<String, Value>) -> Result<String, InstructionError> {
        let env = list(program, "Env");
        let mut words = split_words(&self.arguments, &variables(&env))?;
        match (words.pop(), words.is_empty()) {
            (Some(word), true) => Ok(word),
            _ => Err(InstructionError::SeveralArguments(self.to_string())),
        }
    }
}

fn variables(env: &[String]) -> impl Fn(&str) -> Option<String> + '_ {
    |name| {
        let values = env.iter().filter_map(|entry| entry.split_once('='));
        values.filter(|(other, _)| *other == name).map(|(_, value)| value.to_owned()).next_back()
    }
}

/// Removes all spellings of a field and returns the one that counts: readers in Go accept other letter case.
fn take(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let exact = object.remove(name);
    let others: Vec<String> = object.keys().filter(|key| key.eq_ignore_ascii_case(name)).cloned().collect();
    let other = others.iter().filter_map(|key| object.remove(key)).next();
    exact.or(other)
}

/// Sets a field, and removes other spellings of it.
pub(super) fn set(object: &mut Map<String, Value>, name: &str, value: Value) {
    take(object, name);
    object.insert(name.to_owned(), value);
}

/// Returns the value of a field, in whatever letter case it is.
pub(super) fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let in_other_case =
        || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    object.get(name).or_else(in_other_case)
}

fn list(object: &Map<String, Value>, name: &str) -> Vec<String> {
    let values = get(object, name).and_then(Value::as_array);
    values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text(object: &Map<String, Value>, name: &str) -> String {
    get(object, name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns an absolute path without `.`, `..` and empty components.
fn normal(path: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            other => components.push(other),
        }
    }
    format!("/{}", components.join("/"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(before: &Value, instructions: &[&str]) -> Value {
        let mut program = before.as_object().unwrap().clone();
        for text in instructions {
            text.parse::<ConfigChange>().unwrap().apply(&mut program).unwrap();
        }
        Value::Object(program)
    }

    #[test]
    fn instructions_change_the_configuration_as_in_a_dockerfile() {
        let base =
            json!({"Env": ["PATH=/usr/bin", "X=1"], "WorkingDir": "/src", "Labels": {"a": "1"}, "Other": 7});
        for (instructions, field, expected) in [
            (
                &["ENV A=b 'C=d e' F=\"g h\""][..],
                "Env",
                json!(["PATH=/usr/bin", "X=1", "A=b", "C=d e", "F=g h"]),
            ),
            (&["env PATH=/opt/bin:$PATH"], "Env", json!(["PATH=/opt/bin:/usr/bin", "X=1"])),
            (&["ENV A some text"], "Env", json!(["PATH=/usr/bin", "X=1", "A=some text"])),
            (&["ENV X=2 Y=$X"], "Env", json!(["PATH=/usr/bin", "X=2", "Y=1"])),
            (&["ENV X=2", "ENV Y=$X"], "Env", json!(["PATH=/usr/bin", "X=2", "Y=2"])),
            (&["CMD [\"python3\", \"-i\"]"], "Cmd", json!(["python3", "-i"])),
            (&["CMD python3 \"$X\""], "Cmd", json!(["/bin/sh", "-c", "python3 \"$X\""])),
            (&["CMD []"], "Cmd", json!([])),
            (&["ENTRYPOINT [\"/run\"]"], "Entrypoint", json!(["/run"])),
            (&["WORKDIR /a/../b//"], "WorkingDir", json!("/b")),
            (&["WORKDIR sub", "WORKDIR $X"], "WorkingDir", json!("/src/sub/1")),
            (&["USER 1000:1000"], "User", json!("1000:1000")),
            (&["LABEL b=2 \"c d\"='e $X'"], "Labels", json!({"a": "1", "b": "2", "c d": "e $X"})),
            (&["LABEL a"], "", json!(null)),
        ] {
            if field.is_empty() {
                let error = instructions[0].parse::<ConfigChange>().unwrap_err();
                assert!(matches!(error, InstructionError::NoValue { .. }), "{error}");
                continue;
            }
            let after = apply(&base, instructions);
            assert_eq!(after[field], expected, "{instructions:?}");
            assert_eq!(after["Other"], 7);
        }
        let shell = apply(&json!({"Shell": ["/bin/bash", "-ec"]}), &["CMD make"]);
        assert_eq!(shell["Cmd"], json!(["/bin/bash", "-ec", "make"]));
        assert_eq!(apply(&json!({"env": ["A=1"]}), &["ENV B=2"]), json!({"Env": ["A=1", "B=2"]}));
    }

    #[test]
    fn other_instructions_and_malformed_ones_are_refused_by_name() {
        for (text, word) in [
            ("", "``"),
            ("RUN make", "`RUN`"),
            ("copy a b", "`copy`"),
            ("EXPOSE 80", "`EXPOSE`"),
            ("ENV", "ENV"),
            ("CMD  ", "CMD"),
            ("ENV A", "`A`"),
            ("ENV A=1 B", "`B`"),
            ("ENV =1", "`=1`"),
            ("LABEL 'a=b", "`'`"),
            ("WORKDIR /a /b", "WORKDIR /a /b"),
            ("USER a b", "USER a b"),
            ("ENV A=${B:?c}", "${B:?c}"),
        ] {
            let error = text.parse::<ConfigChange>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
