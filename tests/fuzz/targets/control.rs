//! The control socket: random bytes sent to the daemon, and random bytes as the daemon's response.
//!
//! Properties: each line of a connection gets one response, in order, and a line that is not a request gets an error; the
//! daemon stops reading at a request beyond the size limit; no connection affects the next. A client accepts a response or
//! returns an error with a message.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rcx_imagefs::daemon::{
    ControlListener, ControlRequest, ControlResponse, ask, decode_answer, decode_request,
};
use rcx_imagefs::fuse::AccountMark;
use tempfile::TempDir;

use crate::input::Input;

/// The longest request, in bytes.
const REQUEST_MAX: usize = 4 << 10;
/// Longer than any response takes.
const TIMEOUT: Duration = Duration::from_secs(30);

const WORDS: [&[u8]; 15] = [
    b"\"ping\"\n",
    b"\"refresh\"\n",
    b"\"status\"\n",
    b" \"ping\" \r\n",
    b"\"ping\"",
    b"\n",
    b"\"dance\"\n",
    b"{\"ping\":null}\n",
    b"null\n",
    b"{\"protocol\":2,\"request\":\"ping\"}\n",
    b"{\"protocol\":3,\"request\":{\"read-failures\":{\"since\":7}}}\n",
    b"{\"protocol\":3,\"request\":\"dance\"}\n",
    b"[[[[",
    b"\xff\n",
    b"                                                                ",
];

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check_client(input.rest()),
        1 => check_daemon(input.rest()),
        _ => {
            let mut sent = Vec::new();
            while !input.is_empty() && sent.len() < 20_000 {
                match input.below(14) {
                    0 => sent.extend_from_slice(input.chunk()),
                    1 => sent.extend(input.pick(&WORDS).repeat(input.byte().into())),
                    _ => sent.extend_from_slice(input.pick(&WORDS)),
                }
            }
            check_daemon(&sent);
        }
    }
}

/// Runs a client against a daemon's listener.
fn with_daemon(client: impl FnOnce(&Path) + Send + 'static) {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = ControlListener::bind(&path).unwrap();
        let client = tokio::task::spawn_blocking(move || client(&path));
        tokio::select! {
            () = listener.answer(answer) => unreachable!("`answer` serves until it is dropped"),
            result = client => result.unwrap(),
        }
    });
}

fn answer(request: ControlRequest) -> ControlResponse {
    match request {
        ControlRequest::Ping => ControlResponse::Pong(AccountMark::default()),
        ControlRequest::Status => ControlResponse::Error("status".to_owned()),
        ControlRequest::Refresh => ControlResponse::Refreshed,
        ControlRequest::Images => ControlResponse::Images(Vec::new()),
        ControlRequest::Image { digest } => ControlResponse::Error(format!("no image {digest}")),
        ControlRequest::ReadFailures { since, .. } => {
            let mark = AccountMark { sequence: since, ..AccountMark::default() };
            ControlResponse::Pong(mark)
        }
    }
}

/// The responses to a connection that sends these bytes and then closes its side. `None` stands for an error.
fn expected_responses(sent: &[u8]) -> Vec<Option<ControlResponse>> {
    let mut answers = Vec::new();
    let mut rest = sent;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
        let (line, behind) = rest.split_at(end.min(REQUEST_MAX));
        rest = behind;
        let (_, request) = decode_request(line);
        answers.push(request.ok().map(answer));
        if !line.ends_with(b"\n") {
            break;
        }
    }
    answers
}

fn check_daemon(sent: &[u8]) {
    let sent = sent.to_vec();
    with_daemon(move |socket| {
        exchange(socket, &sent);
        let answer = ask(socket, ControlRequest::Ping, TIMEOUT).expect("the daemon still answers");
        assert_eq!(answer, ControlResponse::Pong(AccountMark::default()));
    });
}

fn exchange(socket: &Path, sent: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let request_bytes = sent.to_vec();
    // Reads responses while writing requests, because the socket buffers cannot hold all of either.
    let writer = std::thread::spawn(move || {
        // Fails if the daemon has closed the connection at a request that is too long.
        let _ = writing.write_all(&request_bytes);
        let _ = writing.shutdown(Shutdown::Write);
    });
    let mut answers = Vec::new();
    for line in BufReader::new(&mut stream).split(b'\n') {
        match line {
            Ok(line) => {
                let (_, answer) = decode_answer(&line).expect("a valid response");
                answers.push(answer);
            }
            // The daemon closes with unread data after a request that is too long, which resets the connection.
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
    }
    writer.join().unwrap();
    let expected = expected_responses(sent);
    assert!(answers.len() <= expected.len(), "got {answers:?}, expected {expected:?}");
    let cut_off = sent.split_inclusive(|byte| *byte == b'\n').any(|line| line.len() > REQUEST_MAX);
    assert!(cut_off || answers.len() == expected.len(), "got {answers:?}, expected {expected:?}");
    for (answer, expected) in answers.iter().zip(&expected) {
        match expected {
            Some(expected) => assert_eq!(answer, expected),
            None => {
                assert!(
                    matches!(answer, ControlResponse::Error(text) if text.starts_with("malformed request"))
                )
            }
        }
    }
}

/// Checks the client against a daemon that responds with these bytes.
fn check_client(bytes: &[u8]) {
    let scratch = TempDir::new().unwrap();
    let socket = scratch.path().join("hostile.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = bytes.to_vec();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = BufReader::new(stream.try_clone().unwrap()).read_until(b'\n', &mut Vec::new());
        let _ = stream.write_all(&answer);
    });
    let result = ask(&socket, ControlRequest::Status, TIMEOUT);
    server.join().unwrap();
    // The client reads only the first line.
    let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes, |newline| &bytes[..=newline]);
    match (result, decode_answer(line).map(|(_, answer)| answer)) {
        (Ok(ControlResponse::Error(_)), _) => panic!("the client returned an error response as a success"),
        (Ok(answer), Ok(expected)) => assert_eq!(answer, expected),
        (Ok(answer), Err(error)) => panic!("the client read {answer:?} from an invalid response: {error}"),
        (Err(error), _) => assert!(!error.to_string().is_empty()),
    }
}
