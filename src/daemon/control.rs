//! Both ends of the control socket: one JSON request per line, one JSON answer per line.
//!
//! Any user of the host may connect (the socket has mode 0666), because no request changes more than what the mount shows.
//! A request that does more must check the uid of the socket's peer first.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::status::DaemonStatus;
use crate::error::ErrorCode;
use crate::os::{AtPath as _, PathError};

/// Longest request in bytes. A request is only a name.
const REQUEST_MAX: u64 = 4 << 10;
/// Longest answer that a client accepts, in bytes: the status of several hundred thousand images.
const RESPONSE_MAX: u64 = 64 << 20;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Number of connections served at the same time. Others wait to be accepted.
const CONNECTIONS: usize = 32;

/// A request to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Asks whether the daemon is alive.
    Ping,
    /// Asks for the daemon's status.
    Status,
    /// Makes the mount show the current content of the store. The daemon answers once it does.
    Refresh,
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlResponse {
    /// Answers [`ControlRequest::Ping`].
    Pong,
    /// Answers [`ControlRequest::Status`].
    Status(Box<DaemonStatus>),
    /// Answers [`ControlRequest::Refresh`].
    Refreshed,
    /// The request failed or is malformed.
    Error(String),
}

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
            Self::Answer { .. } | Self::Refused { .. } => ErrorCode::DaemonRefused,
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
    let mut line = serde_json::to_vec(&request).expect("a request serializes to a string");
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 << 10];
    while !answer.ends_with(b"\n") && (answer.len() as u64) < RESPONSE_MAX {
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let left = left.ok_or(io::ErrorKind::TimedOut).map_err(|kind| failed(kind.into()))?;
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        match stream.read(&mut chunk).map_err(failed)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    match serde_json::from_slice(&answer) {
        Ok(ControlResponse::Error(message)) => {
            Err(ControlError::Refused { socket: socket.to_owned(), message })
        }
        Ok(response) => Ok(response),
        Err(source) => Err(ControlError::Answer { socket: socket.to_owned(), source }),
    }
}

/// Connects with a deadline: a hung daemon does not accept connections.
fn connect(socket: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(deadline.max(Duration::from_millis(1))))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(fd.into())
}

/// The daemon's end of the socket. Removes the socket file on drop.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
    socket: tokio::net::UnixListener,
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // A leftover file refuses connections, and the next daemon replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ControlListener {
    /// Listens at `path`, and replaces the socket of a dead daemon. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Another daemon listens there, or the socket cannot be created.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        match connect(path, Duration::from_secs(1)) {
            Ok(_) => return Err(ControlError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ControlError::InUse(path.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).at("remove the old control socket", path)?;
            }
            Err(_) => {}
        }
        let socket = tokio::net::UnixListener::bind(path).at("create control socket", path)?;
        let mode = PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(path, mode).at("set the mode of control socket", path)?;
        Ok(Self { path: path.to_owned(), socket })
    }

    /// Answers requests with `handle` until the future is dropped. `handle` may block.
    pub async fn answer<H>(&self, handle: H)
    where
        H: Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
    {
        let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let permit = std::sync::Arc::clone(&limit).acquire_owned().await;
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, handle).await {
                            tracing::debug!(%error, "control connection failed");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // The process may be out of descriptors. The pause keeps the log from being flooded.
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Answers the requests of one connection until it is closed or idle.
async fn converse<H>(stream: tokio::net::UnixStream, handle: H) -> io::Result<()>
where
    H: Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
{
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(REQUEST_MAX);
        tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let response = match serde_json::from_slice::<ControlRequest>(&line) {
            Ok(request) => {
                let handle = handle.clone();
                let answer = tokio::task::spawn_blocking(move || handle(request)).await;
                answer.unwrap_or_else(|_| ControlResponse::Error("the request's handler panicked".to_owned()))
            }
            Err(error) => ControlResponse::Error(format!("malformed request: {error}")),
        };
        let mut answer = serde_json::to_vec(&response).map_err(io::Error::from)?;
        answer.push(b'\n');
        tokio::time::timeout(IDLE, write.write_all(&answer)).await??;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Runs `client` against a listener that answers with `handle`.
    fn with_listener<T: Send + 'static>(
        handle: impl Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
        client: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = ControlListener::bind(&path).unwrap();
            let client = tokio::task::spawn_blocking(move || client(&path));
            tokio::select! {
                () = listener.answer(handle) => unreachable!(),
                result = client => result.unwrap(),
            }
        })
    }

    #[test]
    fn request_is_answered() {
        let answer = with_listener(
            |request| {
                assert_eq!(request, ControlRequest::Ping);
                ControlResponse::Pong
            },
            |path| ask(path, ControlRequest::Ping, SOON),
        );
        assert_eq!(answer.unwrap(), ControlResponse::Pong);
    }

    #[test]
    fn malformed_request_is_answered_with_an_error_and_the_connection_continues() {
        let answers = with_listener(
            |_| ControlResponse::Refreshed,
            |path| {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(b"\"dance\"\n\"refresh\"\n").unwrap();
                let lines = BufReader::new(stream).lines().take(2);
                lines.map(Result::unwrap).collect::<Vec<_>>()
            },
        );
        assert!(answers[0].starts_with("{\"error\":\"malformed request"), "{answers:?}");
        assert_eq!(answers[1], "\"refreshed\"");
    }

    #[test]
    fn overlong_request_is_cut_off() {
        let answer = with_listener(
            |_| ControlResponse::Pong,
            |path| {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(&[b'x'; 8 << 10]).unwrap();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).unwrap();
                line
            },
        );
        assert!(answer.contains("malformed request"), "{answer}");
    }

    #[test]
    fn panic_of_the_handler_is_answered_with_an_error() {
        let answer =
            with_listener(|_| panic!("bug in a handler"), |path| ask(path, ControlRequest::Status, SOON));
        assert!(matches!(answer, Err(ControlError::Refused { message, .. }) if message.contains("panicked")));
    }

    #[test]
    fn hung_daemon_is_reported_after_the_deadline() {
        let answer = with_listener(
            |_| ControlResponse::Pong,
            |path| {
                // This listener never accepts a connection.
                let hung = path.with_file_name("hung.sock");
                let _listener = std::os::unix::net::UnixListener::bind(&hung).unwrap();
                ask(&hung, ControlRequest::Ping, Duration::from_millis(20))
            },
        );
        assert!(matches!(answer, Err(ControlError::Deadline { .. })), "{answer:?}");
    }

    #[test]
    fn only_the_socket_of_a_dead_daemon_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(&path, ControlRequest::Ping, SOON), Err(ControlError::NoDaemon(_))));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let first = ControlListener::bind(&path).unwrap();
            assert!(matches!(ControlListener::bind(&path), Err(ControlError::InUse(_))));
            drop(first);
        });
        assert!(!path.exists());
    }
}
