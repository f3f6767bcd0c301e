//! Asks the daemon through its control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::protocol::{
    ControlRequest, ControlResponse, FIRST_PROTOCOL, MALFORMED, MessageForm, PROTOCOL, decode_answer,
    encode_request,
};
use crate::error::ErrorCode;
use crate::os::PathError;

/// Longest answer that a client accepts, in bytes: the status of several hundred thousand images.
const RESPONSE_MAX: u64 = 64 << 20;

/// The error of a control request, or of listening for control requests.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens at the socket.
    #[error("no daemon answers at {0}")]
    NoDaemon(PathBuf),
    /// The daemon did not answer in time.
    #[error("the daemon at {socket} did not answer within {deadline:?}")]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How long the client waited.
        deadline: Duration,
    },
    /// The control socket cannot be used.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The answer is malformed.
    #[error("malformed answer from the daemon at {socket}")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// The syntax error.
        source: serde_json::Error,
    },
    /// The daemon reported an error.
    #[error("the daemon at {socket} reports: {message}")]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The daemon's message.
        message: String,
    },
    /// The daemon is older than this program and does not know the request.
    #[error(
        "the daemon at {socket} is of an older version, which does not have this request (protocol {protocol})"
    )]
    OldDaemon {
        /// The socket.
        socket: PathBuf,
        /// The daemon's protocol.
        protocol: u32,
    },
    /// Another daemon listens at the socket.
    #[error("control socket {0} is in use by another daemon")]
    InUse(PathBuf),
}

impl ControlError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoDaemon(_) => ErrorCode::NoDaemon,
            Self::Deadline { .. } => ErrorCode::Timeout,
            Self::Io(error) => error.code(),
            Self::Answer { .. } | Self::Refused { .. } | Self::OldDaemon { .. } => ErrorCode::DaemonRefused,
            Self::InUse(_) => ErrorCode::DaemonRuns,
        }
    }

    /// What the user can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse(_) => {
                Some("each daemon needs its own run directory: choose another `--run-dir`".to_owned())
            }
            Self::OldDaemon { .. } => Some("restart the daemon".to_owned()),
            Self::NoDaemon(_)
            | Self::Deadline { .. }
            | Self::Io(_)
            | Self::Answer { .. }
            | Self::Refused { .. } => None,
        }
    }
}

/// Sends a request to the daemon at `socket`, and waits at most `deadline` for the answer.
///
/// # Errors
///
/// No daemon listens or answers in time, or the answer is an error.
pub fn ask(
    socket: &Path,
    request: ControlRequest,
    deadline: Duration,
) -> Result<ControlResponse, ControlError> {
    ask_with_protocol(socket, request, deadline).map(|(_, response)| response)
}

/// Sends a request as [`ask`] does, and returns the protocol of the answer too: the newest that the daemon knows.
///
/// # Errors
///
/// Those of [`ask`].
pub fn ask_with_protocol(
    socket: &Path,
    request: ControlRequest,
    deadline: Duration,
) -> Result<(u32, ControlResponse), ControlError> {
    let end = Instant::now() + deadline;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ControlError::Deadline { socket: socket.to_owned(), deadline }
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NoDaemon(socket.to_owned())
        }
        _ => PathError::new("use control socket", socket, error).into(),
    };
    let mut stream = connect(socket, deadline).map_err(failed)?;
    let mut exchange = |form| match encode_request(form, request) {
        None => Ok(None),
        Some(line) => {
            let answer = exchange_lines(&mut stream, &line, end).map_err(failed)?;
            let decoded = decode_answer(&answer);
            decoded.map(Some).map_err(|source| ControlError::Answer { socket: socket.to_owned(), source })
        }
    };
    let mut answer = exchange(MessageForm::Enveloped)?;
    if let Some((FIRST_PROTOCOL, ControlResponse::Error(_))) = answer {
        // Version 0.1 does not understand envelopes.
        answer = exchange(MessageForm::Bare)?;
    }
    match answer {
        Some((protocol, ControlResponse::Error(message)))
            if protocol < PROTOCOL && message.starts_with(MALFORMED) =>
        {
            Err(ControlError::OldDaemon { socket: socket.to_owned(), protocol })
        }
        None => Err(ControlError::OldDaemon { socket: socket.to_owned(), protocol: FIRST_PROTOCOL }),
        Some((_, ControlResponse::Error(message))) => {
            Err(ControlError::Refused { socket: socket.to_owned(), message })
        }
        Some(answer) => Ok(answer),
    }
}

/// Sends a line and reads the answer. Fails if the answer is not complete at `end`.
fn exchange_lines(stream: &mut UnixStream, line: &[u8], end: Instant) -> io::Result<Vec<u8>> {
    // A daemon that refuses the connection answers without reading the request. Then the answer is valid even if the write
    // fails.
    let written = stream.write_all(line);
    let mut answer = Vec::new();
    let mut chunk = [0; 16 << 10];
    while !answer.ends_with(b"\n") && (answer.len() as u64) < RESPONSE_MAX {
        let remaining = end.checked_duration_since(Instant::now()).filter(|remaining| !remaining.is_zero());
        stream.set_read_timeout(Some(remaining.ok_or(io::ErrorKind::TimedOut)?))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    if answer.is_empty() {
        written?;
    }
    Ok(answer)
}

/// Connects with a deadline: a hung daemon does not accept connections.
pub(super) fn connect(socket: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(deadline.max(Duration::from_millis(1))))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(fd.into())
}
