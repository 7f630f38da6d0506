//! How our documents and logs write times and hashes.

use std::fmt::Write;
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};

/// A time: UTC, six digits, `Z`.
pub(crate) fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A time as PostgreSQL writes a timestamptz in our sessions.
pub(crate) fn parse_timestamp(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    Some(time.with_timezone(&Utc))
}

/// The time since then, for a log's `elapsed_ms`.
pub(crate) fn elapsed_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Of a duration, with one digit; not below 0.
pub(crate) fn seconds(duration: chrono::TimeDelta) -> f64 {
    let tenths = duration.num_milliseconds().max(0) / 100;
    f64::from(i32::try_from(tenths).unwrap_or(i32::MAX)) / 10.0
}
