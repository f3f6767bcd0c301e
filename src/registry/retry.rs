//! Decides which errors are retried, how often, and after which pause.

use std::time::Duration;

use super::RegistryError;

/// Maximum number of retries without progress after a transient error.
const TRANSIENT_MAX: u32 = 5;

/// Maximum number of retries if the connection fails. A wrong address is more likely than a registry that restarts.
const CONNECT_MAX: u32 = 3;

/// Maximum number of retries after a timeout: each further attempt may take as long again.
const DEADLINE_MAX: u32 = 1;

/// Longest pause that a registry may request. If it requests more, the error is final.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Longest pause if the registry requests none.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Returns the pause before the next retry; `None` if the error is final.
///
/// `attempt` is the number of failures since the last progress, at least 1. `first` is the pause after the first failure.
pub(super) fn retry_after(attempt: u32, error: &RegistryError, first: Duration) -> Option<Duration> {
    use RegistryError as E;
    let (attempts_max, requested) = match error {
        E::RateLimited { retry_after, .. } | E::Server { retry_after, .. } => (TRANSIENT_MAX, *retry_after),
        E::Broken { .. } | E::Short { .. } | E::Range { .. } => (TRANSIENT_MAX, None),
        E::Connect { .. } => (CONNECT_MAX, None),
        E::Deadline { .. } => (DEADLINE_MAX, None),
        E::Local(_)
        | E::NotFound { .. }
        | E::Unauthorized { .. }
        | E::Denied { .. }
        | E::Status { .. }
        | E::Tls { .. }
        | E::Redirect { .. }
        | E::Document { .. }
        | E::Html { .. }
        | E::Digest { .. }
        | E::Length { .. }
        | E::TooLong { .. }
        | E::Credentials { .. }
        | E::Token { .. }
        | E::CaFile { .. }
        | E::TlsSetup(_) => return None,
    };
    if attempt > attempts_max || requested.is_some_and(|requested| requested > RETRY_AFTER_MAX) {
        return None;
    }
    let backoff = first.saturating_mul(1 << (attempt.saturating_sub(1)).min(16)).min(PAUSE_MAX);
    Some(requested.map_or(backoff, |requested| requested.max(backoff)))
}

/// Lengthens a pause by up to a quarter, so that clients that failed at the same time do not retry at the same time.
pub(super) fn jittered(pause: Duration) -> Duration {
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
        RegistryError::Server { object: object(), status: 500, retry_after, message: String::new() }
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
            retry_after: Some(Duration::from_secs(seconds)),
            message: String::new(),
        };
        assert_eq!(retry_after(1, &limited(60), FIRST), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(1, &limited(3600), FIRST), None);
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
        let slow = RegistryError::Deadline { object: object(), awaited: "a response", after: FIRST };
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
