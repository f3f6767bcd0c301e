//! Names the box and the image of a call for the system log.

use std::ffi::OsString;

use super::ShimSettings;
use super::choice::{ImageChoice, choose};
use super::stored::known_mountpoint;
use crate::sandbox::isolate::{IsolateCall, IsolateOption};

/// Returns the box and the image of a call, as far as they are known: `box 7, image lab/python:3.12`.
#[must_use]
pub fn call_subject(arguments: &[OsString], in_order: bool, settings: Option<&ShimSettings>) -> String {
    let Ok(call) = IsolateCall::parse(arguments, None, in_order) else { return "box unknown".to_owned() };
    let id = call.value(IsolateOption::BoxId).map_or("0".into(), |id| id.to_string_lossy());
    let choice = settings.map(|settings| {
        choose(&call, &settings.images, &settings.host_commands, || known_mountpoint(settings))
    });
    match choice {
        Some(Ok(ImageChoice::Image { name, .. })) => format!("box {id}, image {}", name.display()),
        Some(Ok(ImageChoice::OfCommand)) => {
            let command = call.arguments.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            format!("box {id}, image of {command}")
        }
        _ => format!("box {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_of_a_call_names_its_box() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(call_subject(&words("-b 7 --run -- a"), false, None), "box 7");
        assert_eq!(call_subject(&words("--run -- a"), false, None), "box 0");
        assert_eq!(call_subject(&words("--no-such"), false, None), "box unknown");
    }
}
