//! Stable error codes and error chains, shared by all modules.
//!
//! Each module has its own error enum, with a method `code` that returns an [`ErrorCode`]. With `--json` the command line
//! prints the code, so that scripts need not parse messages.

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
    struct WrappedError(#[source] std::fmt::Error);

    #[test]
    fn chain_text_joins_an_error_and_its_sources() {
        let source = std::fmt::Error;
        assert_eq!(chain_text(&WrappedError(source)), format!("outer: {source}"));
        assert_eq!(chain_text(&source), source.to_string());
    }
}
