//! What all errors share: a stable code for each kind of failure, and the text of an error chain.
//!
//! Each folder has its own error enum, with a method `code` that returns an [`ErrorCode`]. The command line prints the code
//! with `--json`, so that scripts need not parse messages.

mod code;

pub use code::ErrorCode;

/// Returns `error` and all its sources, outermost first.
pub fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Returns `error` and all its sources as one line, joined by `: `.
pub fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let texts: Vec<String> = chain(error).map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn chain_text_joins_an_error_and_its_sources() {
        let source = std::fmt::Error;
        assert_eq!(chain_text(&Outer(source)), format!("outer: {source}"));
        assert_eq!(chain_text(&source), source.to_string());
    }
}
