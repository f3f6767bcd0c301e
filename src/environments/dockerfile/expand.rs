//! Replaces variables in a word of a Dockerfile, and removes its quotes.

use std::collections::BTreeMap;

/// Deepest nesting of `${NAME:-WORD}` that is followed.
const DEPTH_MAX: usize = 8;

/// The reason why the value of a word is not known before the build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableFault {
    /// A variable has no value.
    #[error("variable `{0}` has no default value before the first FROM")]
    Undefined(String),
    /// The form of a variable is not supported.
    #[error("`{0}` has a form of variable that is not supported")]
    Form(String),
}

/// The variables that `ARG` sets before the first `FROM`.
pub(super) type Variables = BTreeMap<String, String>;

/// Returns the value of a word.
pub(super) fn expand(word: &str, escape: char, variables: &Variables) -> Result<String, VariableFault> {
    let mut expansion = WordExpansion { rest: word, escape, variables, depth: 0 };
    expansion.run(None)?.ok_or_else(|| VariableFault::Form(word.to_owned()))
}

struct WordExpansion<'a> {
    rest: &'a str,
    escape: char,
    variables: &'a Variables,
    depth: usize,
}

impl WordExpansion<'_> {
    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next();
        self.rest = characters.as_str();
        next
    }

    /// Expands until `end`, which is consumed, or until the end of the word; `None` if the form is not supported.
    fn run(&mut self, end: Option<char>) -> Result<Option<String>, VariableFault> {
        let mut value = String::new();
        let mut quoted = false;
        while let Some(character) = self.next() {
            match character {
                _ if Some(character) == end && !quoted => return Ok(Some(value)),
                '\'' if !quoted => loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(literal) => value.push(literal),
                        None => return Ok(None),
                    }
                },
                '"' => quoted = !quoted,
                _ if character == self.escape => match self.next() {
                    Some(escaped) => value.push(escaped),
                    None => return Ok(None),
                },
                '$' => match self.variable()? {
                    Some(text) => value.push_str(&text),
                    None => return Ok(None),
                },
                _ => value.push(character),
            }
        }
        Ok((end.is_none() && !quoted).then_some(value))
    }

    /// Expands what follows `$`.
    fn variable(&mut self) -> Result<Option<String>, VariableFault> {
        let is_braced = self.rest.starts_with('{');
        if is_braced {
            self.next();
        }
        let length =
            self.rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let (name, rest) = self.rest.split_at(length);
        self.rest = rest;
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(None);
        }
        let value = self.variables.get(name);
        let undefined = || VariableFault::Undefined(name.to_owned());
        if !is_braced || rest.starts_with('}') {
            if is_braced {
                self.next();
            }
            return value.cloned().ok_or_else(undefined).map(Some);
        }
        // With a colon, an empty value counts as none.
        let value = match rest.strip_prefix(':') {
            Some(rest) => {
                self.rest = rest;
                value.filter(|value| !value.is_empty())
            }
            None => value,
        };
        let operator = self.next();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Ok(None);
        }
        // Read even if it is not used, because it must end.
        let word = self.run(Some('}'))?;
        self.depth -= 1;
        match (operator, value) {
            (Some('-' | '?'), Some(value)) => Ok(word.map(|_| value.clone())),
            (Some('-'), None) | (Some('+'), Some(_)) => Ok(word),
            (Some('+'), None) => Ok(word.map(|_| String::new())),
            (Some('?'), None) => Err(undefined()),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_the_forms_of_the_dockerfile_reference() {
        let variables = Variables::from(
            [("V", "3.12"), ("E", ""), ("_a1", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let undefined = |name: &str| Err(VariableFault::Undefined(name.to_owned()));
        for (word, expected) in [
            ("python:$V", Ok("python:3.12")),
            ("python:${V}-slim", Ok("python:3.12-slim")),
            ("$_a1/$V", Ok("x/3.12")),
            ("\"a:${V}\"'$V'", Ok("a:3.12$V")),
            ("a\\$V", Ok("a$V")),
            ("a:${N:-1}", Ok("a:1")),
            ("a:${E:-1}${E-2}", Ok("a:1")),
            ("a:${N:-${V}}", Ok("a:3.12")),
            ("a${V:+-slim}${N:+x}${E+y}", Ok("a-slimy")),
            ("${V?no}", Ok("3.12")),
            ("", Ok("")),
            ("$N", undefined("N")),
            ("${N}", undefined("N")),
            ("${N:?no}", undefined("N")),
            ("${N:-$M}", undefined("M")),
        ] {
            assert_eq!(expand(word, '\\', &variables), expected.map(str::to_owned), "{word}");
        }
        for word in [
            "$",
            "a$",
            "$1",
            "${",
            "${V",
            "${V#3}",
            "${V:-x",
            "'a",
            "\"a",
            "a\\",
            "${V/a/b}",
            &"${N:-".repeat(100),
        ] {
            assert_eq!(expand(word, '\\', &variables), Err(VariableFault::Form(word.to_owned())));
        }
    }
}
