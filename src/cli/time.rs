//! Points in time as commands print them.

use jiff::Timestamp;

/// Formats seconds since 1970 as `2024-05-06 07:08`, in UTC. A year that has more than four digits is printed as seconds.
pub(super) fn short(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("@{seconds}"),
    }
}

/// The age of an image by the time in its configuration, such as `3 weeks`. `None` if the configuration has no valid time, or one before
/// 1980: builders that make reproducible images write such times.
pub(super) fn age(created: &str, now: Timestamp) -> Option<String> {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR_1980: i64 = 315_532_800;
    let created = created.parse::<Timestamp>().ok()?.as_second();
    if created < YEAR_1980 {
        return None;
    }
    let seconds = now.as_second().saturating_sub(created).max(0);
    // As in docker: the largest unit of which there are at least two.
    let units = [
        (365 * DAY, "year"),
        (30 * DAY, "month"),
        (7 * DAY, "week"),
        (DAY, "day"),
        (HOUR, "hour"),
        (MINUTE, "minute"),
    ];
    let (count, unit) = units
        .into_iter()
        .map(|(length, unit)| (seconds / length, unit))
        .find(|(count, _)| *count >= 2)
        .unwrap_or((seconds, "second"));
    Some(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_the_largest_unit_of_which_there_are_two() {
        let now: Timestamp = "2024-05-06T07:08:09Z".parse().unwrap();
        for (created, expected) in [
            ("2024-05-06T07:08:08.5Z", Some("1 second")),
            ("2024-05-06T07:07:00Z", Some("69 seconds")),
            ("2024-05-06T07:02:09+00:00", Some("6 minutes")),
            ("2024-05-05T07:08:09Z", Some("24 hours")),
            ("2024-04-20T00:00:00.123456789Z", Some("2 weeks")),
            ("2021-01-01T00:00:00Z", Some("3 years")),
            ("2030-01-01T00:00:00Z", Some("0 seconds")),
            ("1970-01-01T00:00:00Z", None),
            ("0001-01-01T00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(age(created, now).as_deref(), expected, "{created}");
        }
    }

    #[test]
    fn times_are_in_utc_and_never_panic() {
        assert_eq!(short(1_714_979_289), "2024-05-06 07:08");
        assert_eq!(short(-1), "1969-12-31 23:59");
        assert_eq!(short(i64::MAX), format!("@{}", i64::MAX));
    }
}
