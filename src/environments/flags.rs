//! What a reviewer must look at: lines of a Dockerfile that reach out of the sandbox of a build, or that hide something.

use serde::Serialize;

use super::context::ContextSummary;
use super::dockerfile::{Dockerfile, Instruction, mount_options};
use crate::image::{Reference, ReferenceError};

/// A context with more bytes than this is pointed out: 64 MiB.
const LARGE_CONTEXT: u64 = 64 << 20;

/// The kind of a flag. Its text form is part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlagKind {
    /// A `# syntax=` line.
    Syntax,
    /// A base image without a digest.
    UnpinnedBase,
    /// A base image of a registry that is not allowed.
    RegistryNotAllowed,
    /// A base image that is not known before the build.
    UnknownBase,
    /// `ADD` of a URL, or of something that may be one.
    AddUrl,
    /// `RUN --mount=type=secret`.
    SecretMount,
    /// `RUN --mount=type=ssh`.
    SshMount,
    /// `RUN --network`.
    Network,
    /// `RUN --security`.
    Security,
    /// Another option of `RUN` that is not known.
    UnknownOption,
    /// Characters that a terminal or a browser does not show.
    HiddenText,
    /// A large context.
    LargeContext,
}

impl FlagKind {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnpinnedBase => "unpinned-base",
            Self::RegistryNotAllowed => "registry-not-allowed",
            Self::UnknownBase => "unknown-base",
            Self::AddUrl => "add-url",
            Self::SecretMount => "secret-mount",
            Self::SshMount => "ssh-mount",
            Self::Network => "network",
            Self::Security => "security",
            Self::UnknownOption => "unknown-option",
            Self::HiddenText => "hidden-text",
            Self::LargeContext => "large-context",
        }
    }
}

/// Something that a reviewer must look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReviewFlag {
    /// The line of the Dockerfile, from 1; `None` if the flag is about the whole context.
    pub line: Option<usize>,
    /// The kind.
    pub kind: FlagKind,
    /// What the line does, in words.
    pub message: String,
}

/// The registries that base images may come from: `HOST[:PORT][/PREFIX]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedRegistries(Vec<String>);

/// Which base images are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BasePolicy {
    /// The registry of a name without a host, if it is not Docker Hub.
    pub default_registry: Option<String>,
    /// The allowed registries; `None` if all are.
    pub registries: Option<AllowedRegistries>,
}

impl AllowedRegistries {
    /// Parses a list of `HOST[:PORT][/PREFIX]`.
    ///
    /// # Errors
    ///
    /// The first text that has another form.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let parse = |text: &String| {
            let name = Reference::parse(&format!("{text}/name"), None).map(|reference| reference.name);
            match name {
                Ok(name) if text.starts_with(name.host().unwrap_or("/")) => Ok(text.clone()),
                _ => Err(format!("registry `{text}` does not have the form HOST[:PORT][/PREFIX]")),
            }
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl BasePolicy {
    /// The complete name of a base image.
    ///
    /// # Errors
    ///
    /// The name is not a reference.
    pub fn reference(&self, name: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(name, self.default_registry.as_deref())
    }

    /// Whether an image comes from an allowed registry.
    #[must_use]
    pub fn allows(&self, reference: &Reference) -> bool {
        let name = reference.name.as_str();
        let is_in = |registry: &String| name.strip_prefix(registry).is_some_and(|rest| rest.starts_with('/'));
        self.registries.as_ref().is_none_or(|AllowedRegistries(all)| all.iter().any(is_in))
    }
}

impl ReviewFlag {
    /// Returns all flags of a revision, in the order of the lines. Those about the whole context come first.
    #[must_use]
    pub fn find(dockerfile: &Dockerfile, context: &ContextSummary, policy: &BasePolicy) -> Vec<Self> {
        let mut flags = Vec::new();
        if context.size > LARGE_CONTEXT {
            let message = format!("the context has {} bytes in {} files", context.size, context.entries);
            flags.push(Self { line: None, kind: FlagKind::LargeContext, message });
        }
        for directive in dockerfile.directives().iter().filter(|directive| directive.name == "syntax") {
            let message =
                format!("asks for the Dockerfile frontend {}, an image that docker runs", directive.value);
            flags.push(Self::at(directive.line, FlagKind::Syntax, message));
        }
        flags.extend(of_bases(dockerfile, policy));
        flags.extend(dockerfile.instructions().iter().flat_map(of_instruction));
        flags.extend(hidden_text(dockerfile.text()));
        // Stable: flags of one line stay in the order of the rules above.
        flags.sort_by_key(|flag| flag.line);
        flags
    }

    fn at(line: usize, kind: FlagKind, message: impl Into<String>) -> Self {
        Self { line: Some(line), kind, message: message.into() }
    }
}

fn of_bases(dockerfile: &Dockerfile, policy: &BasePolicy) -> Vec<ReviewFlag> {
    // Without its FROM lines, a Dockerfile is refused anyway.
    let bases = match dockerfile.bases() {
        Ok(bases) => bases,
        Err(error) => return vec![ReviewFlag::at(error.line, FlagKind::UnknownBase, error.reason)],
    };
    let mut flags = Vec::new();
    for base in bases {
        let unknown = |reason: String| {
            ReviewFlag::at(base.line, FlagKind::UnknownBase, format!("{}: {reason}", base.written))
        };
        let reference = match &base.name {
            Err(fault) => Err(unknown(fault.to_string())),
            Ok(name) => policy.reference(name).map_err(|error| unknown(error.to_string())),
        };
        match reference {
            Err(flag) => flags.push(flag),
            Ok(reference) => {
                if reference.digest.is_none() {
                    let message =
                        format!("{reference} has no digest; the approval names the one that it has then");
                    flags.push(ReviewFlag::at(base.line, FlagKind::UnpinnedBase, message));
                }
                if !policy.allows(&reference) {
                    let message = format!("{reference} is from a registry that is not allowed");
                    flags.push(ReviewFlag::at(base.line, FlagKind::RegistryNotAllowed, message));
                }
            }
        }
    }
    flags
}

fn of_instruction(instruction: &Instruction) -> Vec<ReviewFlag> {
    match instruction.keyword.as_str() {
        "ADD" => of_add(instruction),
        "RUN" => of_run(instruction),
        _ => Vec::new(),
    }
}

fn of_add(instruction: &Instruction) -> Vec<ReviewFlag> {
    let words = instruction.words();
    let sources = words.split_last().map_or(&[][..], |(_, sources)| sources);
    let flag = |source: &String| {
        let bare = source.trim_matches(['"', '\'']).to_ascii_lowercase();
        let message = if bare.contains("://") || bare.starts_with("git@") {
            format!("fetches {source}")
        } else if bare.contains('$') {
            format!("adds {source}, which may be a URL")
        } else {
            return None;
        };
        Some(ReviewFlag::at(instruction.line, FlagKind::AddUrl, message))
    };
    sources.iter().filter_map(flag).collect()
}

fn of_run(instruction: &Instruction) -> Vec<ReviewFlag> {
    let flag = |kind, message: String| Some(ReviewFlag::at(instruction.line, kind, message));
    let option = |option: &super::InstructionOption| {
        let text = format!("--{}={}", option.name, option.value);
        match option.name.as_str() {
            "mount" => {
                let of_type = mount_options(&option.value).filter(|(name, _)| name == "type").last();
                match of_type.as_ref().map_or("bind", |(_, value)| value.as_str()) {
                    "bind" | "cache" | "tmpfs" => None,
                    "secret" => {
                        flag(FlagKind::SecretMount, format!("asks for a secret of the builder: {text}"))
                    }
                    "ssh" => flag(FlagKind::SshMount, format!("asks for SSH keys of the builder: {text}")),
                    _ => flag(FlagKind::UnknownOption, format!("asks for an unknown kind of mount: {text}")),
                }
            }
            "network" => flag(FlagKind::Network, format!("chooses its network: {text}")),
            "security" => flag(FlagKind::Security, format!("chooses its confinement: {text}")),
            _ => flag(FlagKind::UnknownOption, format!("has an unknown option: {text}")),
        }
    };
    instruction.options.iter().filter_map(option).collect()
}

/// Finds characters that change how text is shown, or that are not shown.
fn hidden_text(text: &str) -> Vec<ReviewFlag> {
    let flag = |(line, number): (&str, usize)| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let hidden = line.chars().find(|character| is_hidden(*character))?;
        let message = format!("has the invisible character U+{:04X}", u32::from(hidden));
        Some(ReviewFlag::at(number, FlagKind::HiddenText, message))
    };
    text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').zip(1..).filter_map(flag).collect()
}

/// Whether a character is a control character other than a tab, has no width, or changes the direction of text. Such a character must not be printed as
/// it is.
#[must_use]
pub fn is_hidden(character: char) -> bool {
    (character.is_control() && character != '\t')
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    /// The flags of a text: `LINE KIND`.
    fn flags(text: &str, policy: &BasePolicy, size: u64) -> Vec<String> {
        let context = ContextSummary { digest: Digest::of(b""), size, entries: 1 };
        let flags = ReviewFlag::find(&Dockerfile::parse(text).unwrap(), &context, policy);
        let line = |flag: &ReviewFlag| format!("{} {}", flag.line.unwrap_or(0), flag.kind.as_str());
        flags.iter().map(line).collect()
    }

    #[test]
    fn every_kind_of_flag_has_its_line() {
        let registries =
            AllowedRegistries::parse(&["reg.example/lab".to_owned(), "reg:5000".to_owned()]).unwrap();
        let policy = BasePolicy { default_registry: None, registries: Some(registries) };
        let pinned = Digest::of(b"x");
        let text = format!(
            "# syntax=docker/dockerfile:1\nARG A\nFROM reg.example/lab/a@{pinned}\nFROM reg:5000/a\nFROM reg.example/labs/a@{pinned}\n\
             FROM $A\nFROM A:1\nADD --chown=1 https://x/y.tar git@h:z $SRC file /dst\nADD [\"HTTP://x\", \"/dst\"]\nADD file http://dst\n\
             RUN --mount=type=secret,id=a --mount=id=b,type=ssh --mount=type=cache,target=/x --mount=from=reg:5000/b,target=/y x\n\
             RUN --network=host --security=insecure --device=x --mount=type=$T y\nONBUILD RUN --network=none z\n# \u{202e}\nRUN a\u{200b}b\tc\n"
        );
        assert_eq!(
            flags(&text, &policy, (64 << 20) + 1),
            [
                "0 large-context",
                "1 syntax",
                "4 unpinned-base",
                "5 registry-not-allowed",
                "6 unknown-base",
                "7 unknown-base",
                "8 add-url",
                "8 add-url",
                "8 add-url",
                "9 add-url",
                "11 unpinned-base",
                "11 secret-mount",
                "11 ssh-mount",
                "12 network",
                "12 security",
                "12 unknown-option",
                "12 unknown-option",
                "13 network",
                "14 hidden-text",
                "15 hidden-text",
            ]
        );
    }

    #[test]
    fn harmless_file_has_no_flag() {
        let text = format!(
            "FROM python@{} AS a\r\nRUN --mount=type=tmpfs,target=/x x\r\nCOPY --from=a x y\r\nADD x.tar /\r\n",
            Digest::of(b"x")
        );
        assert_eq!(flags(&text, &BasePolicy::default(), 1024), [""; 0]);
    }

    #[test]
    fn allowed_registries_have_a_host() {
        for text in ["docker.io", "reg.example/lab/x", "localhost", "reg:5000"] {
            AllowedRegistries::parse(&[text.to_owned()]).unwrap();
        }
        for text in ["", "lab", "reg.example/", "https://reg.example", "reg.example/Lab", "a b"] {
            let error = AllowedRegistries::parse(&[text.to_owned()]).unwrap_err();
            assert!(error.starts_with(&format!("registry `{text}` ")), "{error}");
        }
    }
}
