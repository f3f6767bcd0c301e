//! Writes failures of the stand-in, and what runs waited for, to the system log, because workers discard its stderr and its meta file.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The socket of syslogd or journald. A constant: the caller of a set-uid program must not choose where it writes.
pub const SYSLOG_SOCKET: &str = "/dev/log";
/// Facility `user` and severity `error` (RFC 3164, section 4.1.1).
const FAILURE: u8 = (1 << 3) + 3;
/// The same with severity `informational`.
const NOTE: u8 = (1 << 3) + 6;
/// Longest line, in bytes (RFC 3164, section 4.1).
const LINE_MAX: usize = 1024;

/// Writes a failure to the system log that listens at `socket`. Does not block: a line that the log cannot take at once is lost.
///
/// The line has no timestamp and no host name. The log adds its own, as RFC 3164 demands in section 4.3.
///
/// # Errors
/// Nothing listens at `socket`, or it does not take the line.
pub fn log_failure(socket: &Path, message: &str) -> io::Result<()> {
    log(socket, FAILURE, message)
}

/// The same for what is no failure.
pub(super) fn log_note(socket: &Path, message: &str) -> io::Result<()> {
    log(socket, NOTE, message)
}

fn log(socket: &Path, priority: u8, message: &str) -> io::Result<()> {
    let mut line = format!("<{priority}>rcx-imagefs-isolate[{}]: {message}", std::process::id());
    let is_end = |end: &usize| line.is_char_boundary(*end);
    line.truncate((0..=LINE_MAX.min(line.len())).rfind(is_end).unwrap_or(0));
    let log = UnixDatagram::unbound()?;
    log.set_nonblocking(true)?;
    log.send_to(line.as_bytes(), socket)?;
    Ok(())
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
}
