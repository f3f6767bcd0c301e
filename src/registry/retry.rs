//! Decides which errors are retried, how often, and after which pause.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::RegistryError;

/// Maximum number of retries without progress after a transient error.
const TRANSIENT_MAX: u32 = 5;

/// Maximum number of retries if the connection fails. A wrong address is more likely than a registry that restarts.
const CONNECT_MAX: u32 = 3;

/// Maximum number of retries after a timeout: each further attempt may take as long again.
const DEADLINE_MAX: u32 = 1;

/// Longest pause that a registry may request. If it requests more, the error is final.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A pause of which every user is told.
const LONG_PAUSE: Duration = Duration::from_secs(5);

/// Longest pause if the registry requests none.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Calls `attempt` until it succeeds or fails with a final error, with pauses that start with `first`.
pub(super) async fn with_retries<T>(
    first: Duration,
    attempt: impl AsyncFn() -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failures += 1;
        let Some(pause) = retry_after(failures, &error, first) else { return Err(error) };
        pause_before_retry(failures, &error, pause).await;
    }
}

/// Says what failed and waits.
///
/// The command line shows also the short pauses if somebody watches it on a terminal.
pub(super) async fn pause_before_retry(failures: u32, error: &RegistryError, pause: Duration) {
    let pause = jittered(pause);
    let text = format!("{error}; trying again in {:.1} s (retry {failures})", pause.as_secs_f32());
    match pause >= LONG_PAUSE {
        true => tracing::warn!("{text}"),
        false => tracing::info!("{text}"),
    }
    tokio::time::sleep(pause).await;
}

/// Returns the pause that a server requests with `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3).
pub(super) fn requested_pause(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // A date that has passed asks for no pause.
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// Returns the pause before the next retry; `None` if the error is final.
///
/// `attempt` is the number of failures since the last progress, at least 1. `first` is the pause after the first failure.
pub(super) fn retry_after(attempt: u32, error: &RegistryError, first: Duration) -> Option<Duration> {
    use RegistryError as E;
    let (attempts_max, requested) = match error {
        E::RateLimited { retry_after, .. } | E::Server { retry_after, .. } => (TRANSIENT_MAX, *retry_after),
        E::Broken { .. } | E::Short { .. } | E::Range { .. } | E::UploadLost { .. } => (TRANSIENT_MAX, None),
        E::Connect { .. } => (CONNECT_MAX, None),
        E::Deadline { .. } => (DEADLINE_MAX, None),
        E::Local(_)
        | E::NotFound { .. }
        | E::Unauthorized { .. }
        | E::Denied { .. }
        | E::Status { .. }
        | E::LoginRefused { .. }
        | E::LoginUnusable { .. }
        | E::Scheme { .. }
        | E::Address { .. }
        | E::Tls { .. }
        | E::Redirect { .. }
        | E::Document { .. }
        | E::Html { .. }
        | E::Digest { .. }
        | E::Length { .. }
        | E::TooLong { .. }
        | E::Credentials { .. }
        | E::Token { .. }
        | E::NoRepository { .. }
        | E::Refused { .. }
        | E::TooLarge { .. }
        | E::NotDistributable { .. }
        | E::Read { .. }
        | E::Damaged { .. }
        | E::Certificate { .. }
        | E::TlsSetup(_) => return None,
    };
    if attempt > attempts_max || requested.is_some_and(|requested| requested > RETRY_AFTER_MAX) {
        return None;
    }
    let backoff = first.saturating_mul(1 << (attempt.saturating_sub(1)).min(16)).min(PAUSE_MAX);
    Some(requested.map_or(backoff, |requested| requested.max(backoff)))
}

/// Lengthens a pause by up to a quarter, so that clients that failed at the same time do not retry at the same time.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The random seeds of the standard library's hash tables are good enough here.
    let random = std::hash::RandomState::new().build_hasher().finish();
    lengthened(pause, random)
}

fn lengthened(pause: Duration, random: u64) -> Duration {
    let parts = u32::try_from(random % 1024).expect("below 1024");
    pause + (pause / 4096) * parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Digest, Name};
    use crate::registry::RemoteObject;

    const FIRST: Duration = Duration::from_millis(250);

    fn object() -> RemoteObject {
        RemoteObject::blob(&Name::new("reg:5000", "a").unwrap(), Digest::of(b""))
    }

    fn server(retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Server {
            object: object(),
            host: "reg".to_owned(),
            status: 500,
            retry_after,
            message: String::new(),
        }
    }

    #[test]
    fn pauses_double_until_the_last_retry() {
        let error = server(None);
        let pauses: Vec<_> = (1..=6).map(|attempt| retry_after(attempt, &error, FIRST)).collect();
        let expected = [250, 500, 1000, 2000, 4000].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(pauses[..5], expected);
        assert_eq!(pauses[5], None);
        assert_eq!(retry_after(5, &error, Duration::from_secs(60)), Some(PAUSE_MAX));
    }

    #[test]
    fn registry_may_request_a_pause_of_up_to_a_minute() {
        assert_eq!(retry_after(1, &server(Some(7)), FIRST), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(3, &server(Some(0)), FIRST), Some(Duration::from_secs(1)));
        assert_eq!(retry_after(1, &server(Some(61)), FIRST), None);
        let limited = |seconds| RegistryError::RateLimited {
            object: object(),
            host: "reg".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
            message: String::new(),
        };
        assert_eq!(retry_after(1, &limited(60), FIRST), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(1, &limited(3600), FIRST), None);
    }

    #[test]
    fn requested_pause_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn final_errors_are_not_retried() {
        let message = String::new();
        for error in [
            RegistryError::NotFound { object: object(), message: message.clone() },
            RegistryError::Unauthorized { object: object(), message: message.clone() },
            RegistryError::Denied { object: object(), message },
            RegistryError::Length { object: object(), expected: 1, actual: None },
        ] {
            assert_eq!(retry_after(1, &error, FIRST), None, "{error}");
        }
        let slow = RegistryError::deadline(&object(), "reg", "a response", FIRST);
        assert!(retry_after(1, &slow, FIRST).is_some() && retry_after(2, &slow, FIRST).is_none());
    }

    #[test]
    fn jitter_lengthens_a_pause_by_a_quarter_at_most() {
        let pause = Duration::from_secs(4);
        for random in [0, 1, 1023, 1024, u64::MAX] {
            let lengthened = lengthened(pause, random);
            assert!(lengthened >= pause && lengthened <= pause + pause / 4, "{lengthened:?}");
        }
        assert!(jittered(pause) <= pause + pause / 4);
    }
}
