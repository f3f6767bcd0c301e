//! The control protocol: requests, answers and their encoding.
//!
//! A request or an answer is one line of JSON: `{"protocol": 2, "request": "ping"}` and `{"protocol": 2, "answer": {"pong":
//! {...}}}`. Protocol 1, which version 0.1 uses, has no such envelope: the request is `"ping"` and the answer `"pong"`. A
//! daemon answers in the form of the request. A client whose request is not understood repeats it in the form of protocol 1, if
//! that form exists.
//!
//! Within a protocol number, requests, answers and fields may be added: both ends ignore fields that they do not know, and
//! fields that are missing have defaults. The number increases with each addition. It serves only to explain errors.

use serde::{Deserialize, Serialize};

use super::status::DaemonStatus;
use crate::fuse::{AccountMark, ReadFailureReport, ReaderQuery};
use crate::image::ManifestDigest;
use crate::pipeline::{ImageDescription, ImageSummary, ReadFailureText};

/// The protocol of this version.
pub const PROTOCOL: u32 = 2;
/// The protocol of version 0.1.
pub(super) const FIRST_PROTOCOL: u32 = 1;

/// The start of the error message for a request that is not understood.
pub(super) const MALFORMED: &str = "malformed request";

/// A request to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Asks whether the daemon is alive, and for the current mark of its accounts.
    Ping,
    /// Asks for the daemon's status.
    Status,
    /// Makes the mount show the current content of the store. The daemon answers once it does.
    Refresh,
    /// Asks for the images of the store. For users who may not read the store, as is the next request.
    Images,
    /// Asks for the description of an image of the store.
    Image {
        /// The digest of its manifest.
        digest: ManifestDigest,
    },
    /// Asks for the reads that failed since a mark, and for what a process and its descendants have read.
    ReadFailures {
        /// The sequence number of the mark.
        #[serde(default)]
        since: u64,
        /// The process whose reads are also asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        readers: Option<ReaderQuery>,
    },
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlResponse {
    /// Answers [`ControlRequest::Ping`]. A daemon of version 0.1, which keeps no accounts, sends the default.
    Pong(AccountMark),
    /// Answers [`ControlRequest::Status`].
    Status(Box<DaemonStatus>),
    /// Answers [`ControlRequest::Refresh`].
    Refreshed,
    /// Answers [`ControlRequest::Images`].
    Images(Vec<ImageSummary>),
    /// Answers [`ControlRequest::Image`].
    Image(Box<ImageDescription>),
    /// Answers [`ControlRequest::Image`] for an image that cannot be read.
    UnreadableImage(ReadFailureText),
    /// Answers [`ControlRequest::ReadFailures`].
    ReadFailures(ReadFailureReport),
    /// The request failed or is malformed.
    Error(String),
}

/// A request or its answer, without its envelope in protocol 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageForm {
    /// Without an envelope: protocol 1.
    Bare,
    /// With the number of the protocol.
    Enveloped,
}

#[derive(Serialize, Deserialize)]
struct RequestEnvelope<T> {
    protocol: u32,
    request: T,
}

#[derive(Serialize, Deserialize)]
struct AnswerEnvelope<T> {
    protocol: u32,
    answer: T,
}

/// A request of protocol 1.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BareRequest {
    Ping,
    Status,
    Refresh,
}

/// An answer of protocol 1.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BareAnswer {
    Pong,
    Status(Box<DaemonStatus>),
    Refreshed,
    Error(String),
}

/// Encodes a request as a line. Returns `None` if the form has no such request.
pub(super) fn encode_request(form: MessageForm, request: ControlRequest) -> Option<Vec<u8>> {
    let bare = match request {
        ControlRequest::Ping => Some(BareRequest::Ping),
        ControlRequest::Status => Some(BareRequest::Status),
        ControlRequest::Refresh => Some(BareRequest::Refresh),
        ControlRequest::Images | ControlRequest::Image { .. } | ControlRequest::ReadFailures { .. } => None,
    };
    match form {
        MessageForm::Bare => bare.map(|bare| line(&bare)),
        MessageForm::Enveloped => Some(line(&RequestEnvelope { protocol: PROTOCOL, request })),
    }
}

/// Decodes a request. Returns the form of its answer, and the request or an error message for the client.
pub fn decode_request(line: &[u8]) -> (MessageForm, Result<ControlRequest, String>) {
    match serde_json::from_slice::<RequestEnvelope<serde_json::Value>>(line) {
        Ok(envelope) => {
            let request = serde_json::from_value(envelope.request);
            (MessageForm::Enveloped, request.map_err(|error| format!("{MALFORMED}: {error}")))
        }
        Err(_) => {
            let request = serde_json::from_slice(line).map(|request| match request {
                BareRequest::Ping => ControlRequest::Ping,
                BareRequest::Status => ControlRequest::Status,
                BareRequest::Refresh => ControlRequest::Refresh,
            });
            (MessageForm::Bare, request.map_err(|error| format!("{MALFORMED}: {error}")))
        }
    }
}

/// Encodes an answer as a line.
pub(super) fn encode_answer(form: MessageForm, answer: ControlResponse) -> Vec<u8> {
    match form {
        MessageForm::Enveloped => line(&AnswerEnvelope { protocol: PROTOCOL, answer }),
        MessageForm::Bare => line(&match answer {
            ControlResponse::Pong(_) => BareAnswer::Pong,
            ControlResponse::Status(status) => BareAnswer::Status(status),
            ControlResponse::Refreshed => BareAnswer::Refreshed,
            ControlResponse::Images(_)
            | ControlResponse::Image(_)
            | ControlResponse::UnreadableImage(_)
            | ControlResponse::ReadFailures(_) => {
                BareAnswer::Error("protocol 1 has no such answer".to_owned())
            }
            ControlResponse::Error(message) => BareAnswer::Error(message),
        }),
    }
}

/// Decodes an answer in either form. Returns the protocol of the daemon, and the answer.
///
/// # Errors
///
/// The line is not an answer in either form.
pub fn decode_answer(line: &[u8]) -> Result<(u32, ControlResponse), serde_json::Error> {
    let error = match serde_json::from_slice::<AnswerEnvelope<ControlResponse>>(line) {
        Ok(envelope) => return Ok((envelope.protocol, envelope.answer)),
        Err(error) => error,
    };
    let answer = match serde_json::from_slice(line).map_err(|_| error)? {
        BareAnswer::Pong => ControlResponse::Pong(AccountMark::default()),
        BareAnswer::Status(status) => ControlResponse::Status(status),
        BareAnswer::Refreshed => ControlResponse::Refreshed,
        BareAnswer::Error(message) => ControlResponse::Error(message),
    };
    Ok((FIRST_PROTOCOL, answer))
}

fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages have string keys, so they serialize to JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::{LazyReads, ReadFailure};
    use crate::image::{Digest, media};
    use crate::pipeline::{IndexDescription, LayerDescription};
    use crate::store::ImageRecord;

    /// The answer of a daemon of version 0.1 to `"status"`, as recorded.
    const STATUS_0_1: &str = r#"{"status":{"version":"0.1.0","pid":28751,"mountpoint":"/images","store":"/var/lib/rcx-imagefs","uptime_seconds":3,"threads":4,"filesystem":{"published":1,"open":["lab/a@sha256:12",null],"failed":[],"layers":0,"cache":{"hits":0,"misses":0,"waits":0,"decodes":0,"failures":0,"evictions":0,"spans":0,"bytes":0,"capacity":268435456}},"requests":{"READ":7},"errors":0,"panics":0}}"#;

    fn text(line: &[u8]) -> &str {
        std::str::from_utf8(line).unwrap().strip_suffix('\n').unwrap()
    }

    #[test]
    fn recorded_requests_of_version_0_1_are_understood_and_answered_in_its_form() {
        for (recorded, request) in [
            ("\"ping\"\n", ControlRequest::Ping),
            ("\"status\"\n", ControlRequest::Status),
            ("\"refresh\"\n", ControlRequest::Refresh),
        ] {
            assert_eq!(decode_request(recorded.as_bytes()), (MessageForm::Bare, Ok(request)));
        }
        let answer = |answer| text(&encode_answer(MessageForm::Bare, answer)).to_owned();
        assert_eq!(
            answer(ControlResponse::Pong(AccountMark { instance: 1, ..AccountMark::default() })),
            r#""pong""#
        );
        assert_eq!(answer(ControlResponse::Refreshed), r#""refreshed""#);
        assert_eq!(answer(ControlResponse::Error("no".to_owned())), r#"{"error":"no"}"#);
        // Version 0.1 has no defaults: every field that it sent must still be sent.
        let recorded: serde_json::Value = serde_json::from_str(STATUS_0_1).unwrap();
        let (_, ours) = decode_answer(STATUS_0_1.as_bytes()).unwrap();
        let ours: serde_json::Value = serde_json::from_str(&answer(ours)).unwrap();
        assert_contains(&ours, &recorded);
    }

    /// Checks that `value` contains all fields of `part`.
    fn assert_contains(value: &serde_json::Value, part: &serde_json::Value) {
        match part {
            serde_json::Value::Object(fields) => {
                fields.iter().for_each(|(key, field)| assert_contains(&value[key], field));
            }
            other => assert_eq!(value, other),
        }
    }

    #[test]
    fn recorded_answers_of_version_0_1_are_understood() {
        for (recorded, answer) in [
            (r#""pong""#, ControlResponse::Pong(AccountMark::default())),
            (r#""refreshed""#, ControlResponse::Refreshed),
            (r#"{"error":"no"}"#, ControlResponse::Error("no".to_owned())),
        ] {
            assert_eq!(decode_answer(recorded.as_bytes()).unwrap(), (FIRST_PROTOCOL, answer));
        }
        let (protocol, answer) = decode_answer(STATUS_0_1.as_bytes()).unwrap();
        let ControlResponse::Status(status) = answer else { panic!("{answer:?}") };
        assert_eq!((protocol, status.pid, status.requests["READ"]), (FIRST_PROTOCOL, 28_751, 7));
    }

    #[test]
    fn bare_requests_are_encoded_as_by_version_0_1() {
        let bare = |request| encode_request(MessageForm::Bare, request).map(|line| text(&line).to_owned());
        assert_eq!(bare(ControlRequest::Ping).as_deref(), Some(r#""ping""#));
        assert_eq!(bare(ControlRequest::Status).as_deref(), Some(r#""status""#));
        assert_eq!(bare(ControlRequest::Refresh).as_deref(), Some(r#""refresh""#));
        assert_eq!(bare(ControlRequest::ReadFailures { since: 1, readers: None }), None);
    }

    #[test]
    fn messages_survive_encoding_and_decoding() {
        let digest = ManifestDigest::new(Digest::of(b"manifest"));
        for request in [
            ControlRequest::Ping,
            ControlRequest::Images,
            ControlRequest::Image { digest },
            ControlRequest::ReadFailures { since: 7, readers: None },
            ControlRequest::ReadFailures { since: 7, readers: Some(ReaderQuery { process: 3, since: 2 }) },
        ] {
            let line = encode_request(MessageForm::Enveloped, request).unwrap();
            assert_eq!(decode_request(&line), (MessageForm::Enveloped, Ok(request)));
        }
        let mark = AccountMark { instance: 5, sequence: 9, pid_namespace: 3, reader: 4 };
        let failures = vec![ReadFailure { sequence: 9, pid: 3, ..ReadFailure::default() }];
        let failure = ReadFailureText { code: "no-blob".to_owned(), message: "gone".to_owned() };
        let record = ImageRecord {
            name: "docker.io/library/python".parse().unwrap(),
            digest,
            tags: vec!["3.12".parse().unwrap()],
            media_type: media::OCI_MANIFEST.to_owned(),
            size: 7,
            platform: Some("linux/arm/v7".parse().unwrap()),
            index: Some(digest),
        };
        let listed = ImageSummary {
            record,
            layers: None,
            blob_bytes: None,
            created: None,
            failure: Some(failure.clone()),
        };
        let layer =
            LayerDescription { index: Some(IndexDescription::default()), ..LayerDescription::default() };
        let description = ImageDescription { layers: vec![layer], ..ImageDescription::default() };
        for answer in [
            ControlResponse::Images(vec![listed]),
            ControlResponse::Image(Box::new(description)),
            ControlResponse::UnreadableImage(failure),
            ControlResponse::Pong(mark),
            ControlResponse::ReadFailures(ReadFailureReport {
                mark,
                lost: 1,
                failures,
                reads: Some(LazyReads { bytes: 5, wait_ms: 6 }),
            }),
        ] {
            let line = encode_answer(MessageForm::Enveloped, answer.clone());
            assert_eq!(decode_answer(&line).unwrap(), (PROTOCOL, answer));
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_defaults() {
        let request = br#"{"protocol":3,"request":{"read-failures":{"more":[1]}},"color":"red"}"#;
        let expected = ControlRequest::ReadFailures { since: 0, readers: None };
        assert_eq!(decode_request(request), (MessageForm::Enveloped, Ok(expected)));
        let answer = br#"{"protocol":3,"color":"red","answer":{"status":{"pid":4,"filesystem":{"cache":{"more":1}}}}}"#;
        let (protocol, answer) = decode_answer(answer).unwrap();
        let expected = DaemonStatus { pid: 4, ..DaemonStatus::default() };
        assert_eq!((protocol, answer), (3, ControlResponse::Status(Box::new(expected))));
        let answer = br#"{"protocol":3,"answer":{"read-failures":{"failures":[{"pid":4}]}}}"#;
        let (_, answer) = decode_answer(answer).unwrap();
        let failures = vec![ReadFailure { pid: 4, ..ReadFailure::default() }];
        let expected = ReadFailureReport { failures, ..ReadFailureReport::default() };
        assert_eq!(answer, ControlResponse::ReadFailures(expected));
    }

    #[test]
    fn unknown_request_of_a_newer_client_is_answered_in_its_form() {
        let (form, request) = decode_request(br#"{"protocol":9,"request":"dance"}"#);
        assert_eq!(form, MessageForm::Enveloped);
        assert!(request.unwrap_err().starts_with("malformed request: unknown variant `dance`"));
    }
}
