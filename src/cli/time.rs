//! Points in time as commands print them.

use jiff::Timestamp;

/// Formats seconds since 1970 as `2024-05-06 07:08`, in UTC. A year that has more than four digits is printed as seconds.
pub(super) fn short(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("@{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc_and_never_panic() {
        assert_eq!(short(1_714_979_289), "2024-05-06 07:08");
        assert_eq!(short(-1), "1969-12-31 23:59");
        assert_eq!(short(i64::MAX), format!("@{}", i64::MAX));
    }
}
