//! The control socket: one JSON request per line, one JSON answer per line. Both ends are here.
//!
//! Anyone on the host may connect (the socket has mode 0666): no request changes anything that the caller could not
//! see change anyway. A request that does more has to ask the socket for its peer's uid first.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::status::DaemonStatus;

/// Longest request; none is longer than its name.
const REQUEST_MAX: u64 = 4 << 10;
/// Longest answer that a client takes: the status of some hundred thousand images.
const RESPONSE_MAX: u64 = 64 << 20;
/// For how long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Connections answered at once; others wait to be accepted.
const CONNECTIONS: usize = 32;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Whether anyone answers.
    Ping,
    /// What the daemon holds and has done.
    Status,
    /// To show the store as it is now. Answered when the mount does.
    Refresh,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlResponse {
    /// To [`ControlRequest::Ping`].
    Pong,
    /// To [`ControlRequest::Status`].
    Status(Box<DaemonStatus>),
    /// To [`ControlRequest::Refresh`].
    Refreshed,
    /// What was asked could not be done, or was no request.
    Error(String),
}

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon answers at {0}")]
    NoDaemon(PathBuf),
    /// No answer in time.
    #[error("the daemon at {socket} did not answer within {deadline:?}")]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The connection broke.
    #[error("control socket {socket}")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("answer of the daemon at {socket}")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The daemon said that it could not.
    #[error("the daemon at {socket} answers: {message}")]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What it said.
        message: String,
    },
    /// Another daemon has the socket.
    #[error("control socket {0} is in use by another daemon (of another store?)")]
    InUse(PathBuf),
}

/// Asks the daemon that listens at `socket`, and waits for the answer no longer than `deadline`.
///
/// # Errors
///
/// Nobody listens, nobody answers in time, or the answer is an error.
pub fn ask(
    socket: &Path,
    request: ControlRequest,
    deadline: Duration,
) -> Result<ControlResponse, ControlError> {
    let end = Instant::now() + deadline;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ControlError::Deadline { socket: socket.to_owned(), deadline }
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NoDaemon(socket.to_owned())
        }
        _ => ControlError::Io { socket: socket.to_owned(), source },
    };
    let mut stream = connect(socket, deadline).map_err(failed)?;
    let mut line = serde_json::to_vec(&request).expect("a request is a string");
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

/// Connects with a deadline: a daemon that hangs leaves connections waiting to be accepted.
fn connect(socket: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(deadline.max(Duration::from_millis(1))))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(fd.into())
}

/// The listening end; its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
    socket: tokio::net::UnixListener,
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // What is left is refused by nobody and replaced by the next daemon.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ControlListener {
    /// Listens at `path`, in the place of a daemon that is gone. Called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Another daemon listens there, or the path does not serve.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Io { socket: path.to_owned(), source };
        match connect(path, Duration::from_secs(1)) {
            Ok(_) => return Err(ControlError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ControlError::InUse(path.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(_) => {}
        }
        let socket = tokio::net::UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), socket })
    }

    /// Answers with `handle` until the future is dropped. `handle` may block.
    pub async fn answer<H>(&self, handle: H)
    where
        H: Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
    {
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let place = std::sync::Arc::clone(&room).acquire_owned().await;
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, handle).await {
                            tracing::debug!(%error, "control connection");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // No descriptors left, perhaps: a pause, so that the log is not flooded.
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Answers one connection's requests until it is closed or silent.
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
            Err(error) => ControlResponse::Error(format!("not a request: {error}")),
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
    fn what_is_no_request_gets_an_error_and_the_next_line_an_answer() {
        let answers = with_listener(
            |_| ControlResponse::Refreshed,
            |path| {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(b"\"dance\"\n\"refresh\"\n").unwrap();
                let lines = BufReader::new(stream).lines().take(2);
                lines.map(Result::unwrap).collect::<Vec<_>>()
            },
        );
        assert!(answers[0].starts_with("{\"error\":\"not a request"), "{answers:?}");
        assert_eq!(answers[1], "\"refreshed\"");
    }

    #[test]
    fn endless_request_is_cut_off() {
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
        assert!(answer.contains("not a request"), "{answer}");
    }

    #[test]
    fn panic_of_the_handler_is_an_answer() {
        let answer =
            with_listener(|_| panic!("a handler's bug"), |path| ask(path, ControlRequest::Status, SOON));
        assert!(matches!(answer, Err(ControlError::Refused { message, .. }) if message.contains("panicked")));
    }

    #[test]
    fn daemon_that_hangs_is_told_after_the_deadline() {
        let answer = with_listener(
            |_| ControlResponse::Pong,
            |path| {
                // Bound and never accepted from.
                let deaf = path.with_file_name("deaf.sock");
                let _listener = std::os::unix::net::UnixListener::bind(&deaf).unwrap();
                ask(&deaf, ControlRequest::Ping, Duration::from_millis(20))
            },
        );
        assert!(matches!(answer, Err(ControlError::Deadline { .. })), "{answer:?}");
    }

    #[test]
    fn socket_of_a_daemon_that_is_gone_is_taken_and_that_of_a_living_one_is_not() {
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
