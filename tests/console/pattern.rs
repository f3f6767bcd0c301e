//! Expected output in which `…` stands for any text.

const ANY: &str = "…";

/// Whether output matches: line by line, where `…` in a line matches any text of that line and a line of `…` alone any
/// number of lines. Space at the ends of lines does not count.
pub(crate) fn matches(expected: &[String], output: &str) -> bool {
    let expected: Vec<&str> = expected.iter().map(|line| line.trim_end()).collect();
    let actual: Vec<&str> = output.lines().map(str::trim_end).collect();
    lines_match(&expected, &actual)
}

fn lines_match(expected: &[&str], actual: &[&str]) -> bool {
    match (expected, actual) {
        ([], _) => actual.is_empty(),
        ([first, rest @ ..], _) if first.trim() == ANY => {
            (0..=actual.len()).any(|skipped| lines_match(rest, &actual[skipped..]))
        }
        ([_, ..], []) => false,
        ([first, expected @ ..], [line, actual @ ..]) => {
            line_matches(first, line) && lines_match(expected, actual)
        }
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once(ANY) else { return pattern == line };
    let Some(mut line) = line.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split(ANY).collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = line.split_once(part) else { return false };
        line = behind;
    }
    line.ends_with(end)
}

#[test]
fn ellipsis_matches_any_text_of_a_line_and_alone_any_lines() {
    let matches = |expected: &str, output: &str| {
        matches(&expected.lines().map(str::to_owned).collect::<Vec<_>>(), output)
    };
    for (expected, output) in [
        ("", ""),
        ("a b", "a b\n"),
        ("a…", "a\n"),
        ("python@sha256:…", "python@sha256:0123\n"),
        ("{…\"status\": \"TO\"…}", "{\"a\": 1, \"status\": \"TO\", \"b\": 2}"),
        ("…", ""),
        ("…", "a\nb\n"),
        ("…\nmount …\n…", "a\nmount /images\nb\nc\n"),
        ("…c…", "abcabc"),
        ("a…b", "a b b"),
    ] {
        assert!(matches(expected, output), "{expected:?} matches {output:?}");
    }
    for (expected, output) in [
        ("", "a"),
        ("a", ""),
        ("a", "a\nb"),
        ("a…b", "ab c"),
        ("ab…b", "ab"),
        ("a…b…c", "a c b"),
        ("…\nb", "a\nb\nc"),
    ] {
        assert!(!matches(expected, output), "{expected:?} does not match {output:?}");
    }
}
