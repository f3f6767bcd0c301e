//! A handwritten HTTP server on loopback that misbehaves as a test requires.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The bytes that are sent in answer to one request.
pub(crate) struct Answer {
    bytes: Vec<u8>,
    hang: bool,
}

impl Answer {
    /// A response with a correct `Content-Length`. The connection is closed after it.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let length = body.len().to_string();
        let all: Vec<_> = headers.iter().copied().chain([("Content-Length", length.as_str())]).collect();
        Self::raw(status, &all, body)
    }

    /// A response with these headers only.
    pub(crate) fn raw(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        Self { bytes: [head.as_bytes(), b"\r\n", body].concat(), hang: false }
    }

    /// No response; the connection stays open.
    pub(crate) fn nothing() -> Self {
        Self { bytes: Vec::new(), hang: true }
    }

    /// No response; the connection is closed.
    pub(crate) fn closed() -> Self {
        Self { bytes: Vec::new(), hang: false }
    }

    /// Keeps the connection open after the response until the client closes it.
    pub(crate) fn then_hang(mut self) -> Self {
        self.hang = true;
        self
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The body, if its length was given and it is text.
    pub(crate) fn body(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as far as it was read, if its length was given.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The first byte of the requested range.
    pub(crate) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// The server. Stopped on drop.
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server that answers each request with the result of `handler` for the request and the number of earlier requests.
    pub(crate) async fn start(handler: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with_limit(|_| usize::MAX, handler).await
    }

    /// The same, but of the body of each request only as many bytes are read as `limit` says; it gets the request without its body.
    pub(crate) async fn start_with_limit(
        limit: impl Fn(&Request) -> usize + Send + Sync + 'static,
        handler: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, handler, limit) = (Arc::clone(&requests), Arc::new(handler), Arc::new(limit));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, handler, limit) = (Arc::clone(&seen), Arc::clone(&handler), Arc::clone(&limit));
                tokio::spawn(async move {
                    // Clients disconnect in many tests.
                    let _ = talk(stream, &seen, &*limit, &*handler).await;
                });
            }
        });
        Self { address, requests, task }
    }

    /// All requests received so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    limit: &(impl Fn(&Request) -> usize + Sync),
    handler: &(impl Fn(&Request, usize) -> Answer + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let mut request = Request { head: String::from_utf8_lossy(&head).into_owned(), body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; limit(&request).min(length)];
    stream.read_exact(&mut body).await?;
    request.body = body;
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    let answer = handler(&request, before);
    stream.write_all(&answer.bytes).await?;
    if answer.hang {
        // Returns when the client closes the connection.
        stream.read_to_end(&mut head).await?;
    }
    stream.shutdown().await
}
