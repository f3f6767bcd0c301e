//! The smoke command of an environment: it exits with 0 if the image works.

use crate::image::ImageConfig;

/// The label of an image with its smoke command.
const LABEL: &str = "io.rcx-imagefs.smoke";

/// A smoke command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmokeCommand {
    /// As it was given.
    pub text: String,
    /// The program and its arguments.
    pub words: Vec<String>,
}

impl SmokeCommand {
    /// Returns the command that was given for an environment, otherwise that of the image's label; `None` if there is none.
    ///
    /// As in a Dockerfile, a JSON list is the words of the command, and other text is for the image's shell.
    #[must_use]
    pub fn of(given: Option<&str>, image: &ImageConfig) -> Option<Self> {
        let label = || image.raw["config"]["Labels"][LABEL].as_str();
        let text = given.or_else(label).filter(|text| !text.trim().is_empty())?.to_owned();
        let list = serde_json::from_str::<Vec<String>>(&text).ok().filter(|words| !words.is_empty());
        let words = list.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()]);
        Some(Self { text, words })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn given_command_overrides_that_of_the_image_and_a_list_needs_no_shell() {
        let image = |label: &str| {
            let document = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []},
                "config": {"Labels": {LABEL: label}}});
            ImageConfig::parse(document.to_string().as_bytes()).unwrap()
        };
        let words = |given, label| SmokeCommand::of(given, &image(label)).map(|command| command.words);
        assert_eq!(words(Some("a -V"), "b").unwrap(), ["/bin/sh", "-c", "a -V"]);
        assert_eq!(words(None, "[\"/b\", \"-V\"]").unwrap(), ["/b", "-V"]);
        assert_eq!(words(None, "[ -f /b ]").unwrap(), ["/bin/sh", "-c", "[ -f /b ]"]);
        assert_eq!(words(None, "[]").unwrap(), ["/bin/sh", "-c", "[]"]);
        assert_eq!(words(None, " "), None);
    }
}
