//! Chooses the image of a call. No I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::rewrite::parse_rule;
use super::{BoxImages, HostCommands, ImageName, ShimError};
use crate::sandbox::isolate::{DirRule, IsolateCall, IsolateMode, IsolateOption, RuleTarget, is_root};

/// The variable that names an image among the arguments: `--env=RCX_IMAGEFS_IMAGE=REF`.
const IMAGE_VARIABLE: &str = "RCX_IMAGEFS_IMAGE";

/// The image that a call requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageChoice {
    /// No image: isolate receives the call unchanged.
    Unchanged,
    /// An image of the mount.
    Image {
        /// The path below the mountpoint, without `..`.
        name: PathBuf,
        /// Whether the rule for the root makes it writable; `None` if there is no such rule.
        writable: Option<bool>,
    },
    /// The image of the mount that the command lies in.
    OfCommand,
}

/// Chooses the image of a call. `mountpoint` is called only if the call has a rule for the root or an absolute command.
///
/// The first of these decides: a rule for the root, even if it binds something else than an image; the variable, where an
/// empty value means no image; a command in the mount; a command of `host_commands`, which means no image; the number of the
/// box. Of several rules for the root, or several values of the variable, the first counts: workers put the job's before their
/// own.
///
/// # Errors
/// The name of the image or the number of the box has the wrong form, or `mountpoint` fails.
pub fn choose(
    call: &IsolateCall,
    images: &BoxImages,
    host_commands: &HostCommands,
    mountpoint: impl FnOnce() -> Result<Option<PathBuf>, ShimError>,
) -> Result<ImageChoice, ShimError> {
    if call.mode != Some(IsolateMode::Run) {
        return Ok(ImageChoice::Unchanged);
    }
    let mut root_rules = root_rules(call).map(|rule| match rule.target {
        RuleTarget::Directory(outside) => (PathBuf::from(outside), rule.flags),
        _ => (PathBuf::new(), rule.flags),
    });
    if let Some((outside, flags)) = root_rules.next() {
        let Some(mountpoint) = mountpoint()? else { return Ok(ImageChoice::Unchanged) };
        if let Some(name) = below(&outside, &mountpoint)? {
            return Ok(ImageChoice::Image { name, writable: Some(flags.rw) });
        }
        // isolate would use the last rule, without anything that a root needs.
        return match root_rules.find(|(other, _)| other.starts_with(&mountpoint)) {
            Some((image, _)) => Err(ShimError::TwoRoots { image }),
            None => Ok(ImageChoice::Unchanged),
        };
    }
    let named = call.values(IsolateOption::Env).find_map(image_variable);
    if let (None, Some(word)) = (named, call.arguments.first()) {
        if command_in_mount(word, mountpoint)?.is_some() {
            return Ok(ImageChoice::OfCommand);
        }
        if host_commands.contains(word) {
            return Ok(ImageChoice::Unchanged);
        }
    }
    let image = match named {
        Some(text) if text.is_empty() => None,
        Some(text) => {
            let not_text = || ShimError::ImageName(text.to_string_lossy().into_owned());
            Some(text.to_str().ok_or_else(not_text)?.parse::<ImageName>()?)
        }
        None if images.is_empty() => None,
        None => {
            let text = || call.value(IsolateOption::BoxId).unwrap_or_default().to_string_lossy().into_owned();
            let id = call.box_id().ok_or_else(|| ShimError::BoxId(text()))?;
            images.of_box(id).cloned()
        }
    };
    Ok(match image {
        Some(image) => ImageChoice::Image { name: image.path().to_owned(), writable: None },
        None => ImageChoice::Unchanged,
    })
}

/// Returns the path of a command below the mountpoint, if the command lies in the mount. It begins with the name of an image.
pub(super) fn command_in_mount(
    word: &OsStr,
    mountpoint: impl FnOnce() -> Result<Option<PathBuf>, ShimError>,
) -> Result<Option<PathBuf>, ShimError> {
    let path = Path::new(word);
    if !path.is_absolute() {
        return Ok(None);
    }
    mountpoint()?.map_or(Ok(None), |mountpoint| below(path, &mountpoint))
}

/// Returns whether arguments that cannot be parsed may request an image.
pub fn may_request_image(arguments: &[OsString], images: &BoxImages, mountpoint: Option<&Path>) -> bool {
    let holds = |argument: &OsString, text: &[u8]| {
        argument.as_bytes().windows(text.len()).any(|window| window == text)
    };
    let names = |argument: &OsString| {
        holds(argument, IMAGE_VARIABLE.as_bytes())
            || mountpoint.is_some_and(|path| holds(argument, path.as_os_str().as_bytes()))
    };
    !images.is_empty() || arguments.iter().any(names)
}

/// Returns the value of the variable that names an image, if `pair` sets it.
pub(super) fn image_variable(pair: &OsStr) -> Option<&OsStr> {
    let value = pair.as_bytes().strip_prefix(IMAGE_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
    Some(OsStr::from_bytes(value))
}

/// Returns the rules that mount something on the root of the box. Skips rules that isolate refuses.
fn root_rules(call: &IsolateCall) -> impl Iterator<Item = DirRule> {
    let rules = call.values(IsolateOption::Dir).filter_map(|text| parse_rule(text).ok());
    rules.filter(|rule| is_root(&rule.inside) && rule.target != RuleTarget::Nothing)
}

/// Returns the part of `path` below the mountpoint, if there is one. The paths are compared as text, without any filesystem
/// access.
fn below(path: &Path, mountpoint: &Path) -> Result<Option<PathBuf>, ShimError> {
    let Ok(rest) = path.strip_prefix(mountpoint) else { return Ok(None) };
    if rest.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(ShimError::ParentDir(path.to_owned()));
    }
    if rest.as_os_str().is_empty() {
        return Err(ShimError::NotAnImage(path.to_owned()));
    }
    Ok(Some(rest.components().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect()
    }

    fn call(line: &str) -> IsolateCall {
        IsolateCall::parse(&words(line), None, false).unwrap()
    }

    fn images(pairs: &[(&'static str, &'static str)]) -> BoxImages {
        BoxImages::new(pairs.iter().copied()).unwrap()
    }

    /// Returns the image of a call, followed by `+` if the root is writable; `-` for no image, `!` for an error.
    fn chosen(line: &str, images: &BoxImages) -> String {
        let commands = HostCommands::new(["/usr/bin/judge-*"]).unwrap();
        match choose(&call(line), images, &commands, || Ok(Some("/images".into()))) {
            Ok(ImageChoice::Unchanged) => "-".to_owned(),
            Ok(ImageChoice::OfCommand) => "command".to_owned(),
            Ok(ImageChoice::Image { name, writable }) => {
                format!("{}{}", name.display(), if writable == Some(true) { "+" } else { "" })
            }
            Err(_) => "!".to_owned(),
        }
    }

    #[test]
    fn rule_then_variable_then_command_then_box_choose_the_image() {
        let none = BoxImages::default();
        for (line, expected) in [
            ("--run -- a", "-"),
            ("--dir=.=/images/lab/x@sha256-ab --run -- a", "lab/x@sha256-ab"),
            ("-d /./=/images//lab/./x:rw:dev --run -- a", "lab/x+"),
            ("--dir=.=/images/a --dir=.=/images/b --run -- a", "a"),
            ("--dir=.=/images/a --dir=./=/images/b:rw --dir=.=/images/c --run -- a", "a"),
            ("--dir=.=/images/a --dir=.= --run -- a", "a"),
            ("--dir=.= --dir=.=/images/a --run -- a", "a"),
            ("--dir=.=/srv/root --dir=.=/images/a --run -- a", "!"),
            ("--dir=.=tmpfs:fs --dir=.=/images/a --run -- a", "!"),
            ("--dir=.=/srv/root --dir=/=/srv/other --run -- a", "-"),
            ("--dir=/=/images/a:rw --run -- a", "a+"),
            ("--dir=.=/images/a --init", "-"),
            ("--dir=.=/images/a --cleanup", "-"),
            ("--dir=.=/images/a", "-"),
            ("--dir=.=/srv/root --run -- a", "-"),
            ("--dir=.=/imagesx/a --run -- a", "-"),
            ("--dir=.=./images/a --run -- a", "-"),
            ("--dir=.=/srv/../images/a --run -- a", "-"),
            ("--dir=.=tmpfs:fs --run -- a", "-"),
            ("--dir=.=/images/../etc --run -- a", "!"),
            ("--dir=.=/images/a/../b --run -- a", "!"),
            ("--dir=.=/images --run -- a", "!"),
            ("--dir=.=/images/ --run -- a", "!"),
            ("--dir=mnt=/images/a --run -- a", "-"),
            ("--env=RCX_IMAGEFS_IMAGE=x --run -- a", "x:latest"),
            ("-E RCX_IMAGEFS_IMAGE=y:1@sha256:ab --env=RCX_IMAGEFS_IMAGE=x:1 --run -- a", "y@sha256:ab"),
            ("--run -- /images/lab/x/usr/bin/env a", "command"),
            ("--run -- /images/x", "command"),
            ("--run -- /images", "!"),
            ("--run -- /images/x/../y/bin/env", "!"),
            ("--run -- images/x/bin/env", "-"),
            ("--run -- /imagesx/bin/env", "-"),
            ("--run -- env /images/x/bin/env", "-"),
            ("--init -- /images/x/bin/env", "-"),
            ("--env=RCX_IMAGEFS_IMAGE= --run -- /images/x/bin/env", "-"),
            ("--env=RCX_IMAGEFS_IMAGE=a --run -- /images/x/bin/env", "a:latest"),
            ("--dir=.=/images/a --run -- /images/x/bin/env", "a"),
            ("--env=RCX_IMAGEFS_IMAGE=../x --run -- a", "!"),
            ("--env=RCX_IMAGEFS_IMAGE --run -- a", "-"),
            ("--env=RCX_IMAGEFS_IMAGES=x --run -- a", "-"),
            ("--run -- a --env=RCX_IMAGEFS_IMAGE=x", "-"),
            ("--env=RCX_IMAGEFS_IMAGE=x --dir=.=/images/b --run -- a", "b"),
            ("--env=RCX_IMAGEFS_IMAGE=x --dir=.=/srv/root --run -- a", "-"),
        ] {
            assert_eq!(chosen(line, &none), expected, "{line}");
        }
        let boxes = images(&[("default", "d"), ("7", "s:1"), ("8", "")]);
        for (line, expected) in [
            ("--run -- a", "d:latest"),
            ("--box-id=7 --run -- a", "s:1"),
            ("-b 8 --run -- a", "-"),
            ("-b 7 -b 9 --run -- a", "d:latest"),
            ("-b 7 --init", "-"),
            ("-b x --run -- a", "!"),
            ("-b 7 --env=RCX_IMAGEFS_IMAGE=x --run -- a", "x:latest"),
            ("-b 7 --env=RCX_IMAGEFS_IMAGE= --run -- a", "-"),
            ("-b 7 --run -- /images/x/bin/env", "command"),
            ("-b 7 --run -- /usr/bin/judge-a", "-"),
            ("-b 7 --run -- /usr/bin/judge", "s:1"),
            ("-b 7 --env=RCX_IMAGEFS_IMAGE=x --run -- /usr/bin/judge-a", "x:latest"),
            ("-b 7 --dir=.=/images/x --run -- /usr/bin/judge-a", "x"),
        ] {
            assert_eq!(chosen(line, &boxes), expected, "{line}");
        }
    }

    #[test]
    fn mountpoint_is_looked_up_only_for_a_rule_about_the_root_or_an_absolute_command() {
        let never = || -> Result<Option<PathBuf>, ShimError> { panic!("looked up the mountpoint") };
        for line in ["--run -- a", "--init", "--dir=x=/images/a --run -- a", "--dir=.= --run -- a"] {
            assert_eq!(
                choose(&call(line), &BoxImages::default(), &HostCommands::default(), never).unwrap(),
                ImageChoice::Unchanged,
                "{line}"
            );
        }
        let unmounted = call("--dir=.=/images/a --run -- a");
        let unmounted = choose(&unmounted, &BoxImages::default(), &HostCommands::default(), || Ok(None));
        assert_eq!(unmounted.unwrap(), ImageChoice::Unchanged);
    }

    #[test]
    fn malformed_arguments_may_request_an_image_if_one_is_named_or_configured() {
        let may = |line: &str, images: &BoxImages| {
            may_request_image(&words(line), images, Some(Path::new("/images")))
        };
        let none = BoxImages::default();
        assert!(!may("--new-option --run -- a", &none));
        assert!(may("--new-option --dir=.=/images/a --run", &none));
        assert!(may("--new-option --env=RCX_IMAGEFS_IMAGE=a --run", &none));
        assert!(may("--new-option --run -- a", &images(&[("7", "a")])));
    }
}
