//! The environment of a program: the image's variables, then the caller's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use super::error::SandboxError;
use crate::image::ImageConfig;

/// A rule for one variable of the program's environment. A later rule overrides earlier ones for the same variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variable {
    Set(OsString, OsString),
    Unset(OsString),
    /// Inherits the caller's value; unset if the caller does not have the variable.
    Inherit(OsString),
}

impl Variable {
    pub(super) fn name(&self) -> &OsStr {
        match self {
            Self::Set(name, _) | Self::Unset(name) | Self::Inherit(name) => name,
        }
    }
}

/// Returns the rules for the environment: the `defaults`, the image's variables, then the caller's `rules`.
pub(super) fn variables(
    defaults: Vec<Variable>,
    config: &ImageConfig,
    rules: &[OsString],
) -> Result<Vec<Variable>, SandboxError> {
    let mut variables = defaults;
    for entry in &config.env {
        if entry.contains('\0') {
            return Err(SandboxError::ImageConfig("a variable contains a zero byte"));
        }
        // An entry without `=` would inherit the host's value. Images must not read variables of the host.
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                variables.push(Variable::Set(name.into(), value.into()))
            }
            _ => tracing::info!(
                "ignoring the image's variable `{entry}`: it does not have the form NAME=VALUE"
            ),
        }
    }
    for entry in rules {
        let bytes = entry.as_bytes();
        let name = |end: usize| OsStr::from_bytes(&bytes[..end]).to_owned();
        variables.push(match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => return Err(SandboxError::Variable(entry.clone())),
            None if bytes.is_empty() => return Err(SandboxError::Variable(entry.clone())),
            None => Variable::Inherit(entry.clone()),
            Some(end) if end + 1 == bytes.len() => Variable::Unset(name(end)),
            Some(end) => Variable::Set(name(end), OsStr::from_bytes(&bytes[end + 1..]).to_owned()),
        });
    }
    Ok(variables)
}

/// Applies the rules and returns the program's environment. It starts empty, or with the caller's variables if `full`.
pub(super) fn apply(
    variables: &[Variable],
    full: bool,
    callers: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let callers: Vec<(OsString, OsString)> = callers.collect();
    let mut result = if full { callers.clone() } else { Vec::new() };
    for variable in variables {
        result.retain(|(name, _)| name != variable.name());
        match variable {
            Variable::Set(name, value) => result.push((name.clone(), value.clone())),
            Variable::Unset(_) => {}
            Variable::Inherit(inherited) => {
                result.extend(callers.iter().find(|(name, _)| name == inherited).cloned());
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(env: &[&str]) -> ImageConfig {
        let text = serde_json::json!({ "config": { "Env": env }, "rootfs": { "type": "layers" } });
        ImageConfig::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn variables_of_the_caller_override_those_of_the_image() {
        let rules = ["B=2", "C=", "HOME", "NOT_THERE", "EQUALS=a=b"].map(OsString::from);
        let config = image(&["PATH=/opt/bin", "A=1", "B=1", "C=1", "EMPTY=", "HOST_SECRET", "=x"]);
        let variables = variables(Vec::new(), &config, &rules).unwrap();
        let callers = [("HOME", "/root"), ("HOST_SECRET", "s"), ("A", "host")]
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let environment = |full| {
            let applied = apply(&variables, full, callers.clone().into_iter());
            let mut lines: Vec<String> = applied
                .into_iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect();
            lines.sort();
            lines.join(" ")
        };
        assert_eq!(environment(false), "A=1 B=2 EMPTY= EQUALS=a=b HOME=/root PATH=/opt/bin");
        assert_eq!(environment(true), "A=1 B=2 EMPTY= EQUALS=a=b HOME=/root HOST_SECRET=s PATH=/opt/bin");
        for wrong in ["", "=x"] {
            assert!(super::variables(Vec::new(), &config, &[wrong.into()]).is_err(), "{wrong}");
        }
        assert!(super::variables(Vec::new(), &image(&["A=\0"]), &[]).is_err());
    }

    #[test]
    fn default_variables_apply_where_neither_the_image_nor_the_caller_sets_them() {
        let home = |image: &ImageConfig, rules: &[OsString]| {
            let defaults = vec![Variable::Set("HOME".into(), "/box".into())];
            let applied = apply(&variables(defaults, image, rules).unwrap(), false, std::iter::empty());
            applied.into_iter().find(|(name, _)| name == "HOME").map(|(_, value)| value)
        };
        assert_eq!(home(&image(&[]), &[]), Some("/box".into()));
        assert_eq!(home(&image(&["HOME=/root"]), &[]), Some("/root".into()));
        assert_eq!(home(&image(&["HOME=/root"]), &["HOME=/x".into()]), Some("/x".into()));
        assert_eq!(home(&image(&[]), &["HOME=".into()]), None);
    }
}
