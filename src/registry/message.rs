//! Extracts a printable message from the body of an error response.

/// Longest message, in characters.
const MESSAGE_MAX: usize = 200;

/// Returns the message of a server as one line; empty if the body contains none.
///
/// Removes control characters, which could control the terminal. Registries send `{"errors": [{"code", "message"}]}`
/// (distribution-spec, "Error Codes"), token servers `{"details"}` or plain text, proxies HTML.
pub(super) fn server_message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => from_json(&value).unwrap_or_default(),
        Err(_) if body.trim_ascii_start().starts_with(b"<") => "an HTML page".to_owned(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn from_json(value: &serde_json::Value) -> Option<String> {
    let text = |value: &serde_json::Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
    let first = value.get("errors").and_then(|errors| errors.get(0));
    if let Some(error) = first {
        return match (text(error, "code"), text(error, "message")) {
            (Some(code), Some(message)) if !message.is_empty() => Some(format!("{code}: {message}")),
            (code, message) => code.or(message),
        };
    }
    ["error_description", "details", "message", "error"].iter().find_map(|key| text(value, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_message_becomes_one_printable_line() {
        let long = "x".repeat(1000);
        for (body, expected) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#, "DENIED: no way"),
            (r#"{"errors":[{"code":"DENIED"}]}"#, "DENIED"),
            (r#"{"details":"wrong password"}"#, "wrong password"),
            (r#"{"hello":1}"#, ""),
            ("[]", ""),
            ("  <html><body>", "an HTML page"),
            ("slow \u{1b}[31mdown\r\n", "slow [31mdown"),
            ("", ""),
            (&long, &format!("{}...", "x".repeat(200))),
        ] {
            assert_eq!(server_message(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(server_message(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }
}
