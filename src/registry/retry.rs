//! What is tried again, how often, and after which pause: the one place that decides it.

use std::time::Duration;

use super::RegistryError;

/// Most tries again without progress in between, for errors that pass by themselves.
const PASSING_MAX: u32 = 5;

/// Most tries again where nobody answers at the address: a wrong address is likelier than a restart.
const CONNECT_MAX: u32 = 3;

/// Most tries again after a deadline, which has cost long enough.
const DEADLINE_MAX: u32 = 1;

/// Longest wait that a registry can ask for; beyond it the user is told to come back.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Longest pause of our own.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The pause before the next try; `None` when the error is final. `attempt` counts the failures since the last progress,
/// from 1; `first` is the pause after the first of them.
pub(super) fn retry_after(attempt: u32, error: &RegistryError, first: Duration) -> Option<Duration> {
    use RegistryError as E;
    let (most, asked) = match error {
        E::RateLimited { retry_after, .. } | E::Server { retry_after, .. } => (PASSING_MAX, *retry_after),
        E::Broken { .. } | E::Short { .. } | E::Range { .. } => (PASSING_MAX, None),
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
    if attempt > most || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
        return None;
    }
    let own = first.saturating_mul(1 << (attempt.saturating_sub(1)).min(16)).min(PAUSE_MAX);
    Some(asked.map_or(own, |asked| asked.max(own)))
}

/// Stretches a pause by up to a quarter, so that clients that failed together do not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The standard library seeds its hash tables at random, which is random enough here.
    let random = std::hash::RandomState::new().build_hasher().finish();
    stretched(pause, random)
}

fn stretched(pause: Duration, random: u64) -> Duration {
    let parts = u32::try_from(random % 1024).expect("below 1024");
    pause + (pause / 4096) * parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Digest, Name};
    use crate::registry::Place;

    const FIRST: Duration = Duration::from_millis(250);

    fn place() -> Place {
        Place::blob(&Name::new("reg:5000", "a").unwrap(), Digest::of(b""))
    }

    fn server(retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Server { place: place(), status: 500, retry_after, message: String::new() }
    }

    #[test]
    fn pauses_double_and_end() {
        let error = server(None);
        let pauses: Vec<_> = (1..=6).map(|attempt| retry_after(attempt, &error, FIRST)).collect();
        let expected = [250, 500, 1000, 2000, 4000].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(pauses[..5], expected);
        assert_eq!(pauses[5], None);
        assert_eq!(retry_after(5, &error, Duration::from_secs(60)), Some(PAUSE_MAX));
    }

    #[test]
    fn registry_may_ask_for_a_longer_pause_within_bounds() {
        assert_eq!(retry_after(1, &server(Some(7)), FIRST), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(3, &server(Some(0)), FIRST), Some(Duration::from_secs(1)));
        assert_eq!(retry_after(1, &server(Some(61)), FIRST), None);
        let limited = |seconds| RegistryError::RateLimited {
            place: place(),
            retry_after: Some(Duration::from_secs(seconds)),
            message: String::new(),
        };
        assert_eq!(retry_after(1, &limited(60), FIRST), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(1, &limited(3600), FIRST), None);
    }

    #[test]
    fn final_errors_are_not_tried_again() {
        let message = String::new();
        for error in [
            RegistryError::NotFound { place: place(), message: message.clone() },
            RegistryError::Unauthorized { place: place(), message: message.clone() },
            RegistryError::Denied { place: place(), message },
            RegistryError::Length { place: place(), wanted: 1, got: None },
        ] {
            assert_eq!(retry_after(1, &error, FIRST), None, "{error}");
        }
        let slow = RegistryError::Deadline { place: place(), awaited: "answer", after: FIRST };
        assert!(retry_after(1, &slow, FIRST).is_some() && retry_after(2, &slow, FIRST).is_none());
    }

    #[test]
    fn jitter_stretches_by_a_quarter_at_most() {
        let pause = Duration::from_secs(4);
        for random in [0, 1, 1023, 1024, u64::MAX] {
            let stretched = stretched(pause, random);
            assert!(stretched >= pause && stretched <= pause + pause / 4, "{stretched:?}");
        }
        assert!(jittered(pause) <= pause + pause / 4);
    }
}
