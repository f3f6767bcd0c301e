//! Splits the arguments of a Dockerfile instruction into words, as the shell form of Dockerfiles does: quotes, escapes, variables.

use std::iter::Peekable;
use std::str::Chars;

use super::InstructionError;

/// Values of variables by name.
pub(super) type VariableLookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Splits a text at white space outside of quotes, removes the quotes, and replaces variables.
///
/// # Errors
/// A quote or a brace is not closed, or a replacement is not supported.
pub(super) fn split_words(
    text: &str,
    variables: &VariableLookup<'_>,
) -> Result<Vec<String>, InstructionError> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|character| character.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Ok(words);
        }
        words.push(word(&mut rest, char::is_whitespace, text, variables)?);
    }
}

/// Does the same with a text that is one word, whatever white space is in it.
pub(super) fn whole_word(text: &str, variables: &VariableLookup<'_>) -> Result<String, InstructionError> {
    word(&mut text.chars().peekable(), |_| false, text, variables)
}

/// Reads characters up to one that ends the word.
fn word(
    rest: &mut Peekable<Chars<'_>>,
    ends: impl Fn(char) -> bool,
    text: &str,
    variables: &VariableLookup<'_>,
) -> Result<String, InstructionError> {
    let open = |what| InstructionError::NotClosed { text: text.to_owned(), what };
    let mut word = String::new();
    while let Some(character) = rest.next_if(|character| !ends(*character)) {
        match character {
            '\'' => loop {
                match rest.next().ok_or_else(|| open('\''))? {
                    '\'' => break,
                    other => word.push(other),
                }
            },
            '"' => loop {
                match rest.next().ok_or_else(|| open('"'))? {
                    '"' => break,
                    '\\' => match rest.next().ok_or_else(|| open('"'))? {
                        escaped @ ('"' | '$' | '\\') => word.push(escaped),
                        other => word.extend(['\\', other]),
                    },
                    '$' => word.push_str(&variable(rest, text, variables)?),
                    other => word.push(other),
                }
            },
            '\\' => word.push(rest.next().unwrap_or('\\')),
            '$' => word.push_str(&variable(rest, text, variables)?),
            other => word.push(other),
        }
    }
    Ok(word)
}

/// Reads what follows a `$`: `NAME`, `{NAME}`, `{NAME:-WORD}` or `{NAME:+WORD}`. Anything else is a plain `$`.
fn variable(
    rest: &mut Peekable<Chars<'_>>,
    text: &str,
    variables: &VariableLookup<'_>,
) -> Result<String, InstructionError> {
    let name = |rest: &mut Peekable<Chars<'_>>| {
        let mut name = String::new();
        let is_part = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
        while let Some(character) = rest.next_if(is_part) {
            name.push(character);
        }
        name
    };
    if rest.next_if_eq(&'{').is_none() {
        let name = name(rest);
        return Ok(if name.is_empty() { "$".to_owned() } else { variables(&name).unwrap_or_default() });
    }
    let name = name(rest);
    let value = variables(&name).filter(|value| !value.is_empty());
    let unsupported = || InstructionError::Variable(text.to_owned());
    let open = || InstructionError::NotClosed { text: text.to_owned(), what: '{' };
    match rest.next().ok_or_else(open)? {
        _ if name.is_empty() => Err(unsupported()),
        '}' => Ok(value.unwrap_or_default()),
        ':' => {
            let operator = rest.next().ok_or_else(open)?;
            let replacement = word(rest, |character| character == '}', text, variables)?;
            rest.next().ok_or_else(open)?;
            match (operator, value) {
                ('-', value) => Ok(value.unwrap_or(replacement)),
                ('+', Some(_)) => Ok(replacement),
                ('+', None) => Ok(String::new()),
                _ => Err(unsupported()),
            }
        }
        _ => Err(unsupported()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<String> {
        match name {
            "A" => Some("one two".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn words_are_split_unquoted_and_expanded() {
        for (text, words) in [
            ("", &[][..]),
            ("  a  b\tc ", &["a", "b", "c"]),
            (r#"a="x y" 'p "q"' z"#, &["a=x y", r#"p "q""#, "z"]),
            (r#"a\ b \"c\" d\\e"#, &["a b", "\"c\"", "d\\e"]),
            (r#""a\n\"\$A""#, &["a\\n\"$A"]),
            ("$A x$A-y ${A}z", &["one two", "xone two-y", "one twoz"]),
            ("'$A' \\$A \"$A\"", &["$A", "$A", "one two"]),
            (
                "$ $. ${B:-none} ${A:-none} ${E:-none} ${A:+some} ${B:+some}",
                &["$", "$.", "none", "one two", "none", "some", ""],
            ),
            ("${B:-${A:-x}y}", &["one twoy"]),
            ("''", &[""]),
            ("a\\", &["a\\"]),
        ] {
            assert_eq!(split_words(text, &variables).unwrap(), words, "{text}");
        }
        assert_eq!(whole_word("a  $A 'b  c' ", &variables).unwrap(), "a  one two b  c ");
    }

    #[test]
    fn unclosed_quotes_and_unknown_replacements_are_errors() {
        for text in ["'a", "\"a", "\"a\\", "${A", "${A:-b", "${", "${}", "${A:?b}", "${A%b}", "${A:"] {
            let error = split_words(text, &variables).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
