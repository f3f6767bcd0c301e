//! The images that a Dockerfile uses.

use super::expand::{VariableFault, Variables, expand};
use super::{Dockerfile, DockerfileError, Instruction, word_end};

/// The image without any file.
const SCRATCH: &str = "scratch";

/// A use of an image that is no stage of the same Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUse {
    /// Number of the instruction's first line, from 1.
    pub line: usize,
    /// The image as the Dockerfile has it.
    pub written: String,
    /// The same with the values of variables: the name by which the builder asks for the image.
    pub name: Result<String, BaseFault>,
}

/// The reason why it is not known which image an instruction uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseFault {
    /// A variable of `FROM`.
    #[error(transparent)]
    Variable(#[from] VariableFault),
    /// A variable where builders differ in whether they replace it.
    #[error("`{0}` has a variable, which only FROM may have")]
    NotInFrom(String),
    /// The number of a stage that does not come before the instruction.
    #[error("stage {0} does not come before this instruction")]
    NoStage(usize),
    /// There is no name.
    #[error("the name of the image is empty")]
    Empty,
}

/// Finds the images that a Dockerfile uses.
pub(super) fn find(dockerfile: &Dockerfile) -> Result<Vec<BaseUse>, DockerfileError> {
    let mut variables = Variables::new();
    let mut stages: Vec<Option<String>> = Vec::new();
    let mut bases = Vec::new();
    for instruction in &dockerfile.instructions {
        match instruction.keyword.as_str() {
            "FROM" => {
                let (written, name) = from(instruction)?;
                let expanded = expand(written, dockerfile.escape, &variables);
                let is_known =
                    expanded.as_ref().is_ok_and(|image| image == SCRATCH || is_stage(&stages, image));
                if !is_known {
                    let name = expanded.map_err(BaseFault::from).and_then(|name| match name.as_str() {
                        "" => Err(BaseFault::Empty),
                        _ => Ok(name),
                    });
                    bases.push(BaseUse { line: instruction.line, written: written.to_owned(), name });
                }
                stages.push(name);
            }
            "ARG" if stages.is_empty() => set(instruction, dockerfile.escape, &mut variables),
            "ARG" => {}
            _ if stages.is_empty() => {
                let reason = format!("{} comes before the first FROM", instruction.keyword);
                return Err(DockerfileError::new(instruction.line, reason));
            }
            "COPY" => bases.extend(
                instruction.values("from").filter_map(|from| other_image(instruction, from, &stages)),
            ),
            "RUN" => {
                let mounts = instruction.values("mount").flat_map(mount_options);
                let from = mounts.filter(|(name, _)| name == "from");
                bases.extend(from.filter_map(|(_, from)| other_image(instruction, &from, &stages)));
            }
            _ => {}
        }
    }
    if stages.is_empty() {
        return Err(DockerfileError::new(1, "the file has no FROM"));
    }
    Ok(bases)
}

/// Returns the image and the name of the stage of `FROM IMAGE [AS NAME]`.
fn from(instruction: &Instruction) -> Result<(&str, Option<String>), DockerfileError> {
    let words: Vec<&str> = instruction.arguments.split_whitespace().collect();
    match *words.as_slice() {
        [image] => Ok((image, None)),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("AS") => {
            let name = name.to_ascii_lowercase();
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            // A number would be that of another stage.
            if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(is_allowed) {
                let reason = format!("`{name}` is not a name for a stage");
                return Err(DockerfileError::new(instruction.line, reason));
            }
            Ok((image, Some(name)))
        }
        _ => Err(DockerfileError::new(instruction.line, "FROM must have the form FROM IMAGE [AS NAME]")),
    }
}

fn is_stage(stages: &[Option<String>], name: &str) -> bool {
    stages.iter().flatten().any(|stage| stage.eq_ignore_ascii_case(name))
}

/// Sets the variables of an `ARG` before the first `FROM`.
fn set(instruction: &Instruction, escape: char, variables: &mut Variables) {
    let mut rest = instruction.arguments.as_str();
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(word_end(rest, escape));
        rest = behind.trim_start();
        let Some((name, value)) = word.split_once('=') else { continue };
        match expand(value, escape, variables) {
            Ok(value) => variables.insert(name.to_owned(), value),
            // A use of the variable is then an error, which names it.
            Err(_) => variables.remove(name),
        };
    }
}

/// Returns the image of `COPY --from` or `RUN --mount=from=`, unless it is a stage.
fn other_image(instruction: &Instruction, from: &str, stages: &[Option<String>]) -> Option<BaseUse> {
    let from = from.trim_matches(['"', '\'']);
    let name = match from.parse::<usize>() {
        Ok(number) if number < stages.len() => return None,
        Ok(number) => Err(BaseFault::NoStage(number)),
        Err(_) if from.contains('$') => Err(BaseFault::NotInFrom(from.to_owned())),
        Err(_) if from.is_empty() => Err(BaseFault::Empty),
        Err(_) if from == SCRATCH || is_stage(stages, from) => return None,
        Err(_) => Ok(from.to_owned()),
    };
    Some(BaseUse { line: instruction.line, written: from.to_owned(), name })
}

/// Splits the value of `--mount`: `NAME=VALUE,..`. Names are in lower case.
pub(in crate::environments) fn mount_options(value: &str) -> impl Iterator<Item = (String, String)> {
    value.split(',').map(|field| {
        let field = field.trim().trim_matches(['"', '\'']);
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        (name.trim().to_ascii_lowercase(), value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bases of a text: `LINE NAME`, or `LINE !FAULT`.
    fn bases(text: &str) -> Vec<String> {
        let bases =
            Dockerfile::parse(text).unwrap().bases().unwrap_or_else(|error| panic!("{text}: {error}"));
        let line = |base: BaseUse| match base.name {
            Ok(name) => format!("{} {name}", base.line),
            Err(fault) => format!("{} !{fault}", base.line),
        };
        bases.into_iter().map(line).collect()
    }

    #[test]
    fn every_image_of_the_file_is_found_and_no_stage_is() {
        let text = "ARG V=\"3.12\" X=\"a b\" B=debian:12\nARG IMAGE=python:${V}\nFROM --platform=$BUILDPLATFORM $IMAGE as Build\nARG V=no\n\
                    FROM scratch\nFROM build AS two\nFROM ${B}\nCOPY --from=Build a b\nCOPY --from=0 a b\nCOPY --chown=1 --from=busybox:1 a b\n\
                    RUN --mount=type=bind,from=gcc:13,target=/x --mount=type=cache,target=/y --mount=from=two,target=/z make\n\
                    ONBUILD COPY --from=alpine:3 a b\nCOPY --from=scratch a b\n";
        assert_eq!(bases(text), ["3 python:3.12", "7 debian:12", "10 busybox:1", "11 gcc:13", "12 alpine:3"]);
        // A stage is not its own base, and later stages are no stages yet.
        assert_eq!(bases("FROM a AS a\nCOPY --from=b x y\nFROM a AS b"), ["1 a", "2 b"]);
    }

    #[test]
    fn images_that_are_not_known_are_faults_with_their_line() {
        for (text, expected) in [
            ("ARG A\nFROM $A", "2 !variable `A` has no default value before the first FROM"),
            ("FROM $TARGETARCH", "1 !variable `TARGETARCH` has no default value before the first FROM"),
            ("ARG A=$B\nFROM $A", "2 !variable `A` has no default value before the first FROM"),
            ("ARG A=\nFROM $A", "2 !the name of the image is empty"),
            ("FROM ${A%x}", "1 !`${A%x}` has a form of variable that is not supported"),
        ] {
            assert_eq!(bases(text), [expected], "{text}");
        }
        for (from, expected) in [
            ("$A", "2 !`$A` has a variable, which only FROM may have"),
            ("1", "2 !stage 1 does not come before this instruction"),
            ("", "2 !the name of the image is empty"),
        ] {
            assert_eq!(bases(&format!("FROM scratch\nCOPY --from={from} a b\n")), [expected]);
        }
    }

    #[test]
    fn malformed_from_is_an_error_with_its_line() {
        for (text, expected) in [
            ("", "Dockerfile line 1: the file has no FROM"),
            ("ARG A=1\n", "Dockerfile line 1: the file has no FROM"),
            ("# c\nRUN x\nFROM a", "Dockerfile line 2: RUN comes before the first FROM"),
            ("FROM", "Dockerfile line 1: FROM must have the form FROM IMAGE [AS NAME]"),
            ("FROM a b c", "Dockerfile line 1: FROM must have the form FROM IMAGE [AS NAME]"),
            ("FROM a AS 0", "Dockerfile line 1: `0` is not a name for a stage"),
        ] {
            let error = Dockerfile::parse(text).unwrap().bases().unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }
}
