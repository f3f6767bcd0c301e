//! The control socket: any bytes to the daemon that listens, and any bytes as the answer of one.
//!
//! Promises: every request of a connection gets one answer, in its order, and what is none gets an error; a request is cut
//! off at its longest; whatever one connection said, the next one is answered. A client takes an answer or tells what is
//! wrong with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rcx_imagefs::daemon::{ControlListener, ControlRequest, ControlResponse, ask};
use tempfile::TempDir;

use crate::input::Input;

/// Longest request, in bytes.
const REQUEST_MAX: usize = 4 << 10;
/// More than any answer takes.
const LONG: Duration = Duration::from_secs(30);

const WORDS: [&[u8]; 12] = [
    b"\"ping\"\n",
    b"\"refresh\"\n",
    b"\"status\"\n",
    b" \"ping\" \r\n",
    b"\"ping\"",
    b"\n",
    b"\"dance\"\n",
    b"{\"ping\":null}\n",
    b"null\n",
    b"[[[[",
    b"\xff\n",
    b"                                                                ",
];

/// See the module.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check_client(input.rest()),
        1 => check_daemon(input.rest()),
        _ => {
            let mut said = Vec::new();
            while !input.is_empty() && said.len() < 20_000 {
                match input.below(14) {
                    0 => said.extend_from_slice(input.chunk()),
                    1 => said.extend(input.pick(&WORDS).repeat(input.byte().into())),
                    _ => said.extend_from_slice(input.pick(&WORDS)),
                }
            }
            check_daemon(&said);
        }
    }
}

/// Talks to a daemon's listener.
fn with_daemon(client: impl FnOnce(&Path) + Send + 'static) {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = ControlListener::bind(&path).unwrap();
        let client = tokio::task::spawn_blocking(move || client(&path));
        tokio::select! {
            () = listener.answer(answer) => unreachable!("it answers until it is dropped"),
            result = client => result.unwrap(),
        }
    });
}

fn answer(request: ControlRequest) -> ControlResponse {
    match request {
        ControlRequest::Ping => ControlResponse::Pong,
        ControlRequest::Status => ControlResponse::Error("status".to_owned()),
        ControlRequest::Refresh => ControlResponse::Refreshed,
    }
}

/// What a connection gets that says this and then nothing more.
fn expected(said: &[u8]) -> Vec<Option<ControlResponse>> {
    let mut answers = Vec::new();
    let mut rest = said;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
        let (line, behind) = rest.split_at(end.min(REQUEST_MAX));
        rest = behind;
        let request = serde_json::from_slice::<ControlRequest>(line).ok();
        answers.push(request.map(answer));
        if !line.ends_with(b"\n") {
            break;
        }
    }
    answers
}

fn check_daemon(said: &[u8]) {
    let said = said.to_vec();
    with_daemon(move |socket| {
        converse(socket, &said);
        let answer = ask(socket, ControlRequest::Ping, LONG).expect("the daemon goes on");
        assert_eq!(answer, ControlResponse::Pong);
    });
}

fn converse(socket: &Path, said: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let said_again = said.to_vec();
    // Answers are read while requests are written: neither end has room for all.
    let writer = std::thread::spawn(move || {
        // The daemon closes at a request that is too long.
        let _ = writing.write_all(&said_again);
        let _ = writing.shutdown(Shutdown::Write);
    });
    let mut answers = Vec::new();
    for line in BufReader::new(&mut stream).split(b'\n') {
        match line {
            Ok(line) => {
                answers.push(serde_json::from_slice::<ControlResponse>(&line).expect("an answer is one"))
            }
            // What was behind a request that is too long is not read any more.
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
    }
    writer.join().unwrap();
    let wanted = expected(said);
    assert!(answers.len() <= wanted.len(), "{answers:?} where {wanted:?} was expected");
    let cut_off = said.split_inclusive(|byte| *byte == b'\n').any(|line| line.len() > REQUEST_MAX);
    assert!(cut_off || answers.len() == wanted.len(), "{answers:?} where {wanted:?} was expected");
    for (answer, wanted) in answers.iter().zip(&wanted) {
        match wanted {
            Some(wanted) => assert_eq!(answer, wanted),
            None => {
                assert!(matches!(answer, ControlResponse::Error(text) if text.starts_with("not a request")))
            }
        }
    }
}

/// A daemon that answers with these bytes.
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
    let result = ask(&socket, ControlRequest::Status, LONG);
    server.join().unwrap();
    // A client does not read on behind the end of a line.
    let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes, |newline| &bytes[..=newline]);
    match (result, serde_json::from_slice::<ControlResponse>(line)) {
        (Ok(ControlResponse::Error(_)), _) => panic!("an error is no answer"),
        (Ok(answer), Ok(expected)) => assert_eq!(answer, expected),
        (Ok(answer), Err(error)) => panic!("{answer:?} was read where there is no answer: {error}"),
        (Err(error), _) => assert!(!error.to_string().is_empty()),
    }
}
