//! The daemon's end of the control socket: one JSON request per line, one JSON answer per line.
//!
//! Any user of the host may connect (the socket has mode 0666), because no request changes anything but the content that the
//! mount shows. A request that does more must check the uid of the socket's peer first.
//!
//! No user can block the requests of other users: root and the daemon's own user have their own slots, each other user has a
//! few slots, and silent connections are closed.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::control::{ControlError, connect};
use super::protocol::{ControlRequest, ControlResponse, MessageForm, decode_request, encode_answer};
use crate::os::{AtPath as _, ignore_poison};

/// Longest request in bytes. A request is only a name and a number.
const REQUEST_MAX: u64 = 4 << 10;
/// How long a connection may take to send a request or to receive its answer.
const IDLE: Duration = Duration::from_secs(10);
/// Number of connections of root and of the daemon's own user that are served at the same time. Others wait.
const OWN_CONNECTIONS: usize = 32;
/// Number of connections of one other user. Others are refused.
const USER_CONNECTIONS: usize = 4;
/// Number of connections of all other users together. Others are refused.
const FOREIGN_CONNECTIONS: usize = 64;

/// The daemon's end of the socket. Removes the socket file on drop.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
    socket: tokio::net::UnixListener,
    idle: Duration,
    /// The user of the daemon's process, who is served like root.
    owner: u32,
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
        let owner = rustix::process::geteuid().as_raw();
        Ok(Self { path: path.to_owned(), socket, idle: IDLE, owner })
    }

    /// Answers requests with `handle` until the future is dropped. `handle` may block.
    pub async fn answer<H>(&self, handle: H)
    where
        H: Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
    {
        let own = Arc::new(Semaphore::new(OWN_CONNECTIONS));
        let foreign = Arc::new(ForeignConnections::default());
        let idle = self.idle;
        loop {
            let (stream, uid) = match self.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The process may be out of descriptors. The pause keeps the log from being flooded.
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let handle = handle.clone();
            let (own, is_own) = (Arc::clone(&own), uid == 0 || uid == self.owner);
            let slot = if is_own { None } else { ForeignConnections::enter(&foreign, uid) };
            tokio::spawn(async move {
                let result = match (is_own, &slot) {
                    (true, _) => {
                        let _permit = own.acquire_owned().await;
                        converse(stream, idle, handle).await
                    }
                    (false, Some(_)) => converse(stream, idle, handle).await,
                    (false, None) => refuse(stream, idle).await,
                };
                if let Err(error) = result {
                    tracing::debug!(%error, uid, "control connection failed");
                }
                drop(slot);
            });
        }
    }

    async fn accept(&self) -> io::Result<(tokio::net::UnixStream, u32)> {
        let (stream, _) = self.socket.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

/// Counts the connections of users other than root and the daemon's own, by user.
#[derive(Debug, Default)]
struct ForeignConnections {
    counts: Mutex<HashMap<u32, usize>>,
}

impl ForeignConnections {
    /// Counts a connection until the result is dropped; `None` if the user has too many.
    fn enter(this: &Arc<Self>, uid: u32) -> Option<ForeignConnection> {
        let mut counts = ignore_poison(this.counts.lock());
        let count = counts.get(&uid).copied().unwrap_or(0);
        if count >= USER_CONNECTIONS || counts.values().sum::<usize>() >= FOREIGN_CONNECTIONS {
            return None;
        }
        counts.insert(uid, count + 1);
        Some(ForeignConnection { connections: Arc::clone(this), uid })
    }
}

/// A counted connection.
#[derive(Debug)]
struct ForeignConnection {
    connections: Arc<ForeignConnections>,
    uid: u32,
}

impl Drop for ForeignConnection {
    fn drop(&mut self) {
        let mut counts = ignore_poison(self.connections.counts.lock());
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Answers a client without a slot with an error, without waiting for its request.
async fn refuse(stream: tokio::net::UnixStream, idle: Duration) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let message = "too many connections of this user to the daemon; try again".to_owned();
    // Enveloped, so that the client does not repeat the request in another form.
    let answer = encode_answer(MessageForm::Enveloped, ControlResponse::Error(message));
    let mut stream = stream;
    // A socket accepts a few hundred bytes at once, even if the client does not read them.
    tokio::time::timeout(idle, stream.write_all(&answer)).await??;
    Ok(())
}

/// Answers the requests of one connection until it is closed or idle.
async fn converse<H>(stream: tokio::net::UnixStream, idle: Duration, handle: H) -> io::Result<()>
where
    H: Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
{
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(REQUEST_MAX);
        tokio::time::timeout(idle, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let (form, request) = decode_request(&line);
        let response = match request {
            Ok(request) => {
                let handle = handle.clone();
                let answer = tokio::task::spawn_blocking(move || handle(request)).await;
                answer.unwrap_or_else(|_| ControlResponse::Error("the request's handler panicked".to_owned()))
            }
            Err(message) => ControlResponse::Error(message),
        };
        let answer = encode_answer(form, response);
        tokio::time::timeout(idle, write.write_all(&answer)).await??;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write as _};
    use std::os::unix::net::UnixStream;

    use super::super::control::ask;
    use super::*;
    use crate::fuse::AccountMark;

    const SOON: Duration = Duration::from_secs(10);

    /// Runs `client` against a listener that answers with `handle`.
    fn with_listener<T: Send + 'static>(
        handle: impl Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
        client: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        with_impatient_listener(IDLE, handle, client)
    }

    /// Like [`with_listener`], but the listener closes connections that are silent for `idle`.
    fn with_impatient_listener<T: Send + 'static>(
        idle: Duration,
        handle: impl Fn(ControlRequest) -> ControlResponse + Clone + Send + 'static,
        client: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut listener = ControlListener::bind(&path).unwrap();
            listener.idle = idle;
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
                ControlResponse::Pong(AccountMark::default())
            },
            |path| ask(path, ControlRequest::Ping, SOON),
        );
        assert_eq!(answer.unwrap(), ControlResponse::Pong(AccountMark::default()));
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
    fn request_of_version_0_1_is_answered_in_its_own_form() {
        let answer = with_listener(
            |_| ControlResponse::Pong(AccountMark { instance: 1, ..AccountMark::default() }),
            |path| {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(b"\"ping\"\n").unwrap();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).unwrap();
                line
            },
        );
        assert_eq!(answer, "\"pong\"\n");
    }

    /// Answers like a daemon of version 0.1, as recorded.
    fn answer_like_version_0_1(path: &Path) {
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut writer = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines() {
                    let answer: &[u8] = match line.unwrap().as_str() {
                        "\"ping\"" => b"\"pong\"\n",
                        "\"refresh\"" => b"\"refreshed\"\n",
                        _ => {
                            b"{\"error\":\"not a request: invalid type: map, expected variant identifier\"}\n"
                        }
                    };
                    writer.write_all(answer).unwrap();
                }
            }
        });
    }

    #[test]
    fn daemon_of_version_0_1_is_asked_in_its_own_form() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        answer_like_version_0_1(&path);
        let pong = ControlResponse::Pong(AccountMark::default());
        assert_eq!(ask(&path, ControlRequest::Ping, SOON).unwrap(), pong);
        assert_eq!(ask(&path, ControlRequest::Refresh, SOON).unwrap(), ControlResponse::Refreshed);
        let error = ask(&path, ControlRequest::ReadFailures { since: 0, readers: None }, SOON).unwrap_err();
        assert!(matches!(error, ControlError::OldDaemon { protocol: 1, .. }), "{error:?}");
    }

    #[test]
    fn silent_connection_is_closed_after_a_while() {
        let end = with_impatient_listener(
            Duration::from_millis(20),
            |_| ControlResponse::Refreshed,
            |path| {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(b"\"refr").unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                BufReader::new(stream).read_line(&mut String::new())
            },
        );
        // The daemon closes the connection without reading the rest of the line.
        assert!(
            matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
        );
    }

    #[test]
    fn one_user_has_few_connections_and_all_foreign_users_together_have_a_limit() {
        let connections = Arc::new(ForeignConnections::default());
        let enter = |uid| ForeignConnections::enter(&connections, uid);
        let mut of_one: Vec<_> = (0..USER_CONNECTIONS).map(|_| enter(1000).unwrap()).collect();
        assert!(enter(1000).is_none());
        let other = enter(1001).unwrap();
        of_one.pop();
        of_one.push(enter(1000).unwrap());
        drop((of_one, other));
        assert!(connections.counts.lock().unwrap().is_empty());
        let uids = (0..).map(|number: u32| 2000 + number / 4);
        let all: Vec<_> = uids.map_while(enter).collect();
        assert_eq!(all.len(), FOREIGN_CONNECTIONS);
        assert!(enter(999).is_none());
        drop(all);
        assert!(connections.counts.lock().unwrap().is_empty(), "a refused user is not kept");
    }

    #[test]
    fn overlong_request_is_cut_off() {
        let answer = with_listener(
            |_| ControlResponse::Refreshed,
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
            |_| ControlResponse::Refreshed,
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
