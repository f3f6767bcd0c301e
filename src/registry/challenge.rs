//! Parses the challenges with which a server refuses a request (RFC 9110, section 11.6.1).
//!
//! Servers send several challenges in one header or in several, and many quote the parameters incorrectly. So the parser
//! accepts any separators and quotes, and never fails: a challenge that it cannot read is one that nobody can answer.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest list of challenges that is read, in bytes.
const CHALLENGES_MAX: usize = 16 << 10;

/// A challenge that a token of a token server answers (distribution-spec, "Token Authentication").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct BearerChallenge {
    /// The address of the token server.
    pub(super) realm: String,
    pub(super) service: Option<String>,
    /// What the token must allow.
    pub(super) scope: Option<String>,
}

/// All challenges of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AuthChallenges {
    /// The first challenge of the scheme `Bearer` that names a token server.
    pub(super) bearer: Option<BearerChallenge>,
    /// Whether a user name and a password are accepted.
    pub(super) basic: bool,
    /// The schemes that this program does not support.
    pub(super) unsupported: Vec<String>,
}

/// One challenge: a scheme and its parameters.
#[derive(Default)]
struct ParsedChallenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl ParsedChallenge {
    /// The first value of a parameter that is not empty.
    fn parameter(&self, name: &str) -> Option<String> {
        let mut values =
            self.parameters.iter().filter(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
        values.next().map(|(_, value)| value.clone())
    }
}

impl AuthChallenges {
    /// Reads the challenges of a response; `None` if it has none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut found = headers.contains_key(WWW_AUTHENTICATE).then(Self::default)?;
        let mut left = CHALLENGES_MAX;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = String::from_utf8_lossy(value.as_bytes());
            let Some(rest) = left.checked_sub(text.len()) else { break };
            left = rest;
            for challenge in parse(&text) {
                found.add(challenge);
            }
        }
        Some(found)
    }

    fn add(&mut self, challenge: ParsedChallenge) {
        if challenge.scheme.eq_ignore_ascii_case("Basic") {
            self.basic = true;
        } else if challenge.scheme.eq_ignore_ascii_case("Bearer")
            && let Some(realm) = challenge.parameter("realm")
        {
            let (service, scope) = (challenge.parameter("service"), challenge.parameter("scope"));
            self.bearer.get_or_insert(BearerChallenge { realm, service, scope });
        } else {
            self.unsupported.push(challenge.scheme);
        }
    }
}

/// Splits the text of a header into challenges.
///
/// A word with `=` behind it is a parameter, and any other word is a scheme. The credentials of schemes like `Negotiate` may
/// look like either; the result is at most another scheme that nobody knows.
fn parse(text: &str) -> Vec<ParsedChallenge> {
    let mut challenges: Vec<ParsedChallenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '='));
        if rest.is_empty() {
            return challenges;
        }
        let end =
            rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '=')).unwrap_or(rest.len());
        let word = &rest[..end];
        let behind = rest[end..].trim_start();
        match (behind.strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, behind) = parse_value(value.trim_start());
                challenge.parameters.push((word.to_owned(), value));
                rest = behind;
            }
            _ => {
                challenges.push(ParsedChallenge { scheme: word.to_owned(), parameters: Vec::new() });
                rest = &rest[end..];
            }
        }
    }
}

/// Parses the value of a parameter, and returns the text behind it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quote) = text.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
        // Quotes that were themselves escaped: `realm=\"https://…\"`.
        return (text[..end].trim_matches(['\\', '"', '\'']).to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            character if character == quote => return (value, &text[at + 1..]),
            character => value.push(character),
        }
    }
    // The closing quote is missing.
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenges(values: &[&str]) -> Option<AuthChallenges> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        AuthChallenges::of(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<BearerChallenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(BearerChallenge { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn bearer_challenge_is_found_in_every_form_that_servers_send() {
        for text in [
            r#"Bearer realm="https://t/x",service="s""#,
            r#"bearer  Realm = "https://t/x" , SERVICE=s"#,
            r#"Bearer realm="https://t/x" service="s""#,
            r#"Bearer realm=https://t/x,service=s"#,
            r#"Bearer realm='https://t/x',service='s'"#,
            r#"Bearer realm=\"https://t/x\",service=\"s\""#,
            r#"Bearer service="s",,realm="https://t/x","#,
            r#"Bearer realm="https://t/x",service="s"#,
            r#"Bearer realm="https:\/\/t/x";service="s""#,
            r#"Basic realm="x, y", Bearer realm="https://t/x",service="s""#,
            r#"Bearer realm="https://t/x",service="s", Basic realm="r""#,
            r#"Negotiate YIIabc==, NTLM, Bearer realm="https://t/x",service="s""#,
            r#"Digest qop="auth, auth-int", nonce="Bearer realm=no", Bearer realm="https://t/x",service="s""#,
            r#"Bearer realm="", Bearer realm="https://t/x",service="s""#,
            r#"Bearer realm="https://t/x",service="s",error="invalid_token",error_description="it, too""#,
        ] {
            assert_eq!(challenges(&[text]).unwrap().bearer, bearer("https://t/x", Some("s"), None), "{text}");
        }
        let several = challenges(&["Negotiate", r#"Bearer realm="https://t/x",scope="repository:a:pull""#]);
        assert_eq!(several.unwrap().bearer, bearer("https://t/x", None, Some("repository:a:pull")));
        let query = challenges(&["Bearer realm=https://t/x?a=b&c=d"]).unwrap();
        assert_eq!(query.bearer, bearer("https://t/x?a=b&c=d", None, None));
        let comma = challenges(&[r#"Bearer realm="https://t/x",service="a, b = \"c\"""#]).unwrap();
        assert_eq!(comma.bearer, bearer("https://t/x", Some(r#"a, b = "c""#), None));
    }

    #[test]
    fn password_is_accepted_only_where_a_challenge_says_basic() {
        let basic = |text: &str| challenges(&[text]).unwrap().basic;
        assert!(basic(r#"Basic realm="r""#) && basic("BASIC") && basic("Negotiate, Basic"));
        assert!(!basic(r#"Bearer realm="Basic""#) && !basic("Negotiate") && !basic(""));
        assert_eq!(challenges(&[]), None);
        let negotiate = challenges(&["Negotiate", "NTLM"]).unwrap();
        assert_eq!(negotiate.unsupported, ["Negotiate", "NTLM"]);
        assert_eq!(challenges(&["Bearer service=\"s\""]).unwrap().unsupported, ["Bearer"]);
    }

    proptest! {
        #[test]
        fn every_text_is_parsed(text in r#"([Bb]earer|realm|[a=,; "'\\é])*"#) {
            let length: usize = parse(&text).iter().map(|challenge| challenge.scheme.len()).sum();
            prop_assert!(length <= text.len());
        }
    }

    #[test]
    fn endless_headers_are_not_read() {
        let long = format!("x{}", " y".repeat(CHALLENGES_MAX));
        assert_eq!(challenges(&[&long]), Some(AuthChallenges::default()));
        for odd in ["=", "\"", "Bearer realm=\"\\", "Bearer realm=", "é=è", "Bearer realm='é"] {
            let _ = parse(odd);
        }
    }
}
