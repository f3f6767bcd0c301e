//! Blob downloads: whatever fails, the bytes of the blob arrive in order and once, or an error names the blob.

use std::time::{Duration, Instant};

use rcx_imagefs::error::chain_text;
use rcx_imagefs::registry::{PlainHttp, Registry, RegistryError, RegistryOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::server::{Answer, Request, Server};
use super::{content, descriptor, download, name, options, registry, tagged};

/// A correct answer to a request for a blob or the rest of it.
fn blob(request: &Request, content: &[u8]) -> Answer {
    match request.from() {
        None => Answer::new(200, &[], content),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Answer::new(206, &[("Content-Range", &range)], &content[from..])
        }
    }
}

/// An answer that announces the length of `content` but ends early.
fn cut(content: &[u8], at: usize) -> Answer {
    Answer::raw(200, &[("Content-Length", &content.len().to_string())], &content[..at])
}

#[tokio::test]
async fn whole_blobs_and_rests_of_blobs_are_downloaded() {
    let content = content(300_000);
    let served = content.clone();
    let server = Server::start(move |request, _| blob(request, &served)).await;
    let registry = registry();
    let layer = descriptor(&content);
    for from in [0, 1, 299_999, 300_000] {
        let rest = download(&registry, &server.address, &layer, from).await.unwrap();
        assert!(rest == content[usize::try_from(from).unwrap()..], "from {from}");
    }
    assert_eq!(server.requests().len(), 3, "no request is sent when no byte is missing");
    assert_eq!(server.requests()[0].path(), format!("/v2/lab/app/blobs/{}", layer.digest));
    assert_eq!(server.requests()[1].header("range"), Some("bytes=1-"));
}

#[tokio::test]
async fn digest_and_length_of_a_small_blob_are_checked() {
    let content = content(1000);
    let mut served = content.clone();
    served[500] ^= 1;
    let server = Server::start(move |request, before| match before {
        0 => blob(request, &super::content(1000)),
        _ => blob(request, &served),
    })
    .await;
    let (registry, blob) = (registry(), descriptor(&content));
    let name = name(&server.address);
    assert_eq!(registry.fetch_small(&name, &blob, 1000).await.unwrap(), content);
    let error = registry.fetch_small(&name, &blob, 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    assert!(error.to_string().contains(&blob.digest.to_string()), "{error}");
    let error = registry.fetch_small(&name, &blob, 999).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLong { size: 1000, limit: 999, .. }), "{error}");
}

#[tokio::test]
async fn lost_connection_is_resumed_at_the_same_byte() {
    let content = content(300_000);
    let served = content.clone();
    let server = Server::start(move |request, before| match before {
        0 => cut(&served, 100_000),
        _ => blob(request, &served),
    })
    .await;
    assert!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap() == content);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].from(), Some(100_000));
}

#[tokio::test]
async fn attempts_are_counted_from_zero_after_progress() {
    let content = content(1_000_000);
    let served = content.clone();
    let server = Server::start(move |request, _| {
        let from = request.from().unwrap_or(0);
        let range = format!("bytes {from}-999999/1000000");
        let length = (1_000_000 - from).to_string();
        let headers = [("Content-Range", range.as_str()), ("Content-Length", length.as_str())];
        let status = if from == 0 { 200 } else { 206 };
        Answer::raw(
            status,
            &headers[usize::from(from == 0)..],
            &served[from..served.len().min(from + 50_000)],
        )
    })
    .await;
    assert!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap() == content);
    assert_eq!(server.requests().len(), 20);
}

#[tokio::test]
async fn blob_that_always_ends_early_is_an_error_with_both_lengths() {
    let content = content(1000);
    let served = content.clone();
    // Without a `Content-Length`, the end of the connection is the end of the body.
    let server = Server::start(move |request, _| match request.from() {
        None => Answer::raw(200, &[], &served[..400]),
        Some(_) => Answer::raw(206, &[("Content-Range", "bytes 400-999/1000")], b""),
    })
    .await;
    let error = download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap_err();
    assert!(error.to_string().contains("ends after 400 of 1000 bytes"), "{error}");
    assert_eq!(server.requests().len(), 6, "the number of attempts is bounded");
}

#[tokio::test]
async fn hang_before_or_within_the_answer_ends_in_a_deadline_error() {
    let content = content(200_000);
    let served = content.clone();
    for (in_head, part) in [(true, "no answer"), (false, "no further bytes")] {
        let served = served.clone();
        let server = Server::start(move |request, _| match in_head {
            true => Answer::nothing(),
            false if request.from().is_some() => Answer::nothing(),
            false => cut(&served, 1000).then_hang(),
        })
        .await;
        let start = Instant::now();
        let error = download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap_err();
        assert!(matches!(error, RegistryError::Deadline { .. }), "{part}: {error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{part}");
        assert_eq!(server.requests().len(), 2, "{part}: {error}");
    }
}

#[tokio::test]
async fn hang_within_the_body_is_resumed() {
    let content = content(200_000);
    let served = content.clone();
    let server = Server::start(move |request, before| match before {
        0 => cut(&served, 60_000).then_hang(),
        _ => blob(request, &served),
    })
    .await;
    assert!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap() == content);
    assert_eq!(server.requests()[1].from(), Some(60_000));
}

#[tokio::test]
async fn temporary_server_errors_are_retried() {
    let content = content(1000);
    let served = content.clone();
    let server = Server::start(move |request, before| match before {
        0 => Answer::new(500, &[], b"oops"),
        1 => Answer::new(503, &[], b""),
        _ => blob(request, &served),
    })
    .await;
    assert_eq!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap(), content);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn persistent_server_error_is_reported() {
    let server = Server::start(|_, _| Answer::new(502, &[], b"<html>bad gateway")).await;
    let blob = descriptor(b"x");
    let error = download(&registry(), &server.address, &blob, 0).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("502") && text.contains("HTML") && text.contains(&blob.digest.to_string()),
        "{text}"
    );
    assert!(text.contains(&format!("{}/lab/app", server.address)), "{text}");
}

#[tokio::test]
async fn registry_says_when_to_come_back() {
    let content = content(1000);
    let served = content.clone();
    let server = Server::start(move |request, before| match before {
        0 => Answer::new(429, &[("Retry-After", "1")], b""),
        _ => blob(request, &served),
    })
    .await;
    let start = Instant::now();
    assert_eq!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap(), content);
    assert!(start.elapsed() >= Duration::from_secs(1));

    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"come back tomorrow"}]}"#;
    let server = Server::start(|_, _| Answer::new(429, &[("Retry-After", "3600")], body)).await;
    let error = download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::RateLimited { .. }), "{error}");
    assert!(error.to_string().contains("come back tomorrow"), "{error}");
    assert_eq!(server.requests().len(), 1, "an hour is not waited for");
}

#[tokio::test]
async fn whole_blob_in_answer_to_a_range_is_skipped_into() {
    let content = content(300_000);
    let served = content.clone();
    let server = Server::start(move |_, before| match before {
        0 => cut(&served, 100_000),
        _ => Answer::new(200, &[], &served),
    })
    .await;
    let layer = descriptor(&content);
    assert!(download(&registry(), &server.address, &layer, 0).await.unwrap() == content);
    assert!(download(&registry(), &server.address, &layer, 299_999).await.unwrap() == content[299_999..]);
}

#[tokio::test]
async fn wrong_range_is_noticed_and_the_whole_blob_fetched() {
    let content = content(300_000);
    for range in ["bytes 0-299999/300000", "bytes 99999-299999/300000", "bytes 100000-", "garbage", ""] {
        let served = content.clone();
        let server = Server::start(move |request, before| match (before, request.from()) {
            (0, _) => cut(&served, 100_000),
            (_, Some(from)) => Answer::new(206, &[("Content-Range", range)], &served[from..]),
            (_, None) => Answer::new(200, &[], &served),
        })
        .await;
        let all = download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap();
        assert!(all == content, "{range}");
        assert_eq!(server.requests().len(), 3, "{range}");
    }
}

#[tokio::test]
async fn range_that_the_server_does_not_know_is_not_insisted_on() {
    let content = content(1000);
    let served = content.clone();
    let server = Server::start(move |request, _| match request.from() {
        Some(_) => Answer::new(416, &[], b""),
        None => Answer::new(200, &[], &served),
    })
    .await;
    let rest = download(&registry(), &server.address, &descriptor(&content), 600).await.unwrap();
    assert_eq!(rest, content[600..]);
}

#[tokio::test]
async fn another_length_than_the_manifests_is_an_error() {
    let content = content(1000);
    let layer = descriptor(&content);
    let longer: Vec<u8> = [content.as_slice(), b"x"].concat();
    let announced = {
        let longer = longer.clone();
        Server::start(move |_, _| Answer::new(200, &[], &longer)).await
    };
    let unannounced = Server::start(move |_, _| Answer::raw(200, &[], &longer)).await;
    let shorter = Server::start(move |_, _| Answer::new(200, &[], &super::content(999))).await;
    let in_range =
        Server::start(|_, _| Answer::new(206, &[("Content-Range", "bytes 500-2000/2001")], &[0; 1501])).await;
    for (server, from, part) in [
        (&announced, 0, "has 1001 bytes, but the manifest declares 1000"),
        (&unannounced, 0, "has more than 1000 bytes, but the manifest declares 1000"),
        (&shorter, 0, "has 999 bytes, but the manifest declares 1000"),
        (&in_range, 500, "has 2001 bytes, but the manifest declares 1000"),
    ] {
        let error = download(&registry(), &server.address, &layer, from).await.unwrap_err();
        assert!(matches!(error, RegistryError::Length { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(server.requests().len(), 1, "{part}: a retry would give the same result");
    }
}

#[tokio::test]
async fn web_page_in_place_of_a_blob_is_reported() {
    let server = Server::start(|_, _| Answer::new(200, &[("Content-Type", "text/html")], b"<html>")).await;
    let error = download(&registry(), &server.address, &descriptor(b"<html>"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Html { .. }), "{error}");
}

#[tokio::test]
async fn missing_blob_is_reported() {
    let body = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    let server = Server::start(|_, _| Answer::new(404, &[], body)).await;
    let layer = descriptor(b"x");
    let error = download(&registry(), &server.address, &layer, 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&layer.digest.to_string()) && text.contains("blob unknown"), "{text}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn redirect_is_followed_without_the_credentials() {
    let content = content(1000);
    let served = content.clone();
    let storage = Server::start(move |request, _| blob(request, &served)).await;
    let location = format!("http://{}/storage?signature=1", storage.address);
    let server = Server::start(move |request, _| match request.header("authorization") {
        None if request.path() == "/v2/" => {
            Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"registry\"")], b"")
        }
        None => Answer::new(401, &[], b""),
        Some(_) => Answer::new(307, &[("Location", &location)], b""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let options = super::auth::with_password(&directory, &server.address);
    let registry = Registry::new(options).unwrap();
    let rest = download(&registry, &server.address, &descriptor(&content), 400).await.unwrap();
    assert_eq!(rest, content[400..]);
    let at_storage = storage.requests();
    assert_eq!(at_storage.len(), 1);
    assert_eq!(at_storage[0].header("authorization"), None);
    assert_eq!(at_storage[0].from(), Some(400), "the range is sent after the redirect");
}

#[tokio::test]
async fn endless_redirects_are_an_error() {
    let server = Server::start(|_, _| Answer::new(302, &[("Location", "/again")], b"")).await;
    let error = download(&registry(), &server.address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    assert!(server.requests().len() < 20);
}

#[tokio::test]
async fn refused_connection_is_reported_without_retries() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = download(&registry(), &address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error}");
    assert_eq!(chain_text(&error), format!("{address}: connection refused"));
    assert!(error.hint().unwrap().contains(&address));
}

#[tokio::test]
async fn tls_to_a_plain_http_server_is_reported_with_a_hint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_u8().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let options = RegistryOptions { plain_http: PlainHttp::Never, ..options() };
    let error = Registry::new(options).unwrap().resolve(&tagged(&address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
    assert_eq!(chain_text(&error), format!("{address}: the server does not speak TLS"));
    assert!(error.hint().unwrap().contains("--plain-http"));
    server.abort();
}
