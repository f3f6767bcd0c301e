//! Reports failures of the stand-in to the system log, because workers discard its stderr and its meta file.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::choice::{ImageChoice, choose};
use super::exec::{ShimSettings, known_mountpoint};
use crate::sandbox::isolate::{IsolateCall, IsolateOption};

/// The socket of syslogd or journald. A constant: the caller of a set-uid program must not choose where it writes.
pub const SYSLOG_SOCKET: &str = "/dev/log";
/// Facility `user` and severity `error` (RFC 3164, section 4.1.1).
const PRIORITY: u8 = (1 << 3) + 3;
/// Longest line, in bytes (RFC 3164, section 4.1).
const LINE_MAX: usize = 1024;

/// Writes one line to the system log that listens at `socket`. Does not block: a line that the log cannot take at once is lost.
///
/// The line has no timestamp and no host name. The log adds its own, as RFC 3164 demands in section 4.3.
///
/// # Errors
/// Nothing listens at `socket`, or it does not take the line.
pub fn log_failure(socket: &Path, message: &str) -> io::Result<()> {
    let mut line = format!("<{PRIORITY}>rcx-imagefs-isolate[{}]: {message}", std::process::id());
    let is_end = |end: &usize| line.is_char_boundary(*end);
    line.truncate((0..=LINE_MAX.min(line.len())).rfind(is_end).unwrap_or(0));
    let log = UnixDatagram::unbound()?;
    log.set_nonblocking(true)?;
    log.send_to(line.as_bytes(), socket)?;
    Ok(())
}

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
    fn failure_is_one_bounded_line_and_no_log_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("log");
        assert!(log_failure(&socket, "x").is_err());
        let log = UnixDatagram::bind(&socket).unwrap();
        let mut buffer = [0; 4096];
        log_failure(&socket, "box 7: reason").unwrap();
        let length = log.recv(&mut buffer).unwrap();
        let expected = format!("<11>rcx-imagefs-isolate[{}]: box 7: reason", std::process::id());
        assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);
        log_failure(&socket, &"é".repeat(2000)).unwrap();
        let length = log.recv(&mut buffer).unwrap();
        assert!(std::str::from_utf8(&buffer[..length]).is_ok() && (1000..=LINE_MAX).contains(&length));
        // A log that reads nothing does not block its writers.
        while log_failure(&socket, "x").is_ok() {}
    }

    #[test]
    fn subject_of_a_call_names_its_box() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(call_subject(&words("-b 7 --run -- a"), false, None), "box 7");
        assert_eq!(call_subject(&words("--run -- a"), false, None), "box 0");
        assert_eq!(call_subject(&words("--no-such"), false, None), "box unknown");
    }
}
