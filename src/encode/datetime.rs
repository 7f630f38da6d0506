//! Owns dates, times and intervals.
//!
//! Timestamps are `YYYY-MM-DDTHH:MM:SS.ffffff`, with a `Z` after those that have a time zone. As PostgreSQL
//! does, years past 9999 take as many digits as they need, and years before 1 stand as ` BC` at the very end
//! (`0044-03-15T00:00:00.000000Z BC`): PostgreSQL reads both back.

use super::Unencodable;
use super::number::write_integer;
use super::reader::{Reader, exact};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_MINUTE: i64 = 60 * MICROS_PER_SECOND;
const MICROS_PER_HOUR: i64 = 60 * MICROS_PER_MINUTE;
const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

const INFINITY: &[u8] = b"\"infinity\"";
const MINUS_INFINITY: &[u8] = b"\"-infinity\"";

/// Writes a timestamptz: microseconds since 2000-01-01T00:00:00Z.
#[inline]
pub(super) fn write_timestamptz(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_moment(value, b"Z", out)
}

/// Writes a timestamp: microseconds since 2000-01-01T00:00:00.
#[inline]
pub(super) fn write_timestamp(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_moment(value, b"", out)
}

/// Writes a date: days since 2000-01-01.
pub(super) fn write_date(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    match i32::from_be_bytes(exact(value)?) {
        i32::MAX => out.extend_from_slice(INFINITY),
        i32::MIN => out.extend_from_slice(MINUS_INFINITY),
        days => write_dated(*b"\"0000-00-00", Date::of(i64::from(days)), b"", out),
    }
    Ok(())
}

/// Writes a time: microseconds since midnight, and `24:00:00.000000` for the midnight after.
pub(super) fn write_time(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let clock = time_of_day(exact(value)?)?;
    out.push(b'"');
    out.extend_from_slice(&clock);
    out.push(b'"');
    Ok(())
}

/// Writes a timetz: a time, then the seconds *west* of UTC as an offset, `+HH:MM` and `:SS` where it has
/// seconds.
pub(super) fn write_timetz(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let clock = time_of_day(input.array()?)?;
    let west_seconds = input.int32()?;
    input.finish()?;
    out.push(b'"');
    out.extend_from_slice(&clock);
    write_offset(west_seconds, out)?;
    out.push(b'"');
    Ok(())
}

/// Writes an interval as PostgreSQL does under `intervalstyle = iso_8601`: microseconds, days and months,
/// each with its own sign. All three at their end is PostgreSQL 17's infinity; to older servers it is the very
/// last interval there is.
pub(super) fn write_interval(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let micros = i64::from_be_bytes(input.array()?);
    let days = input.int32()?;
    let months = input.int32()?;
    input.finish()?;
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => out.extend_from_slice(INFINITY),
        (i64::MIN, i32::MIN, i32::MIN) => out.extend_from_slice(MINUS_INFINITY),
        (0, 0, 0) => out.extend_from_slice(b"\"PT0S\""),
        _ => write_period(micros, i64::from(days), i64::from(months), out),
    }
    Ok(())
}

/// A day of the proleptic Gregorian calendar, with a year 0 (1 BC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    year: i64,
    month: u32,
    day: u32,
}

impl Date {
    /// The date that is `days` after 2000-01-01, by eras of 400 years that begin on 1 March
    /// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    #[inline]
    fn of(days: i64) -> Self {
        const DAYS_PER_ERA: i64 = 146_097;
        /// From 0000-03-01 to 2000-01-01.
        const EPOCH: i64 = 730_425;
        let days = days + EPOCH;
        let era = days.div_euclid(DAYS_PER_ERA);
        let day_of_era = days.rem_euclid(DAYS_PER_ERA) as u32;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let (month, carry) = match month_from_march {
            0..=9 => (month_from_march + 3, 0),
            _ => (month_from_march - 9, 1),
        };
        let year = era * 400 + i64::from(year_of_era) + carry;
        Self { year, month, day }
    }
}

#[inline]
fn write_moment(value: &[u8], zone: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    match i64::from_be_bytes(exact(value)?) {
        i64::MAX => out.extend_from_slice(INFINITY),
        i64::MIN => out.extend_from_slice(MINUS_INFINITY),
        micros => {
            let mut text = *b"\"0000-00-00T00:00:00.000000";
            text[12..].copy_from_slice(&clock(micros.rem_euclid(MICROS_PER_DAY)));
            let date = Date::of(micros.div_euclid(MICROS_PER_DAY));
            write_dated(text, date, zone, out);
        }
    }
    Ok(())
}

/// Writes `text`, which begins with `"0000-00-00`, with `date` in the place of those zeros, then `zone`, the
/// era and the closing quote.
#[inline]
fn write_dated<const N: usize>(mut text: [u8; N], date: Date, zone: &[u8], out: &mut Vec<u8>) {
    text[6..8].copy_from_slice(&pair(date.month));
    text[9..11].copy_from_slice(&pair(date.day));
    if (1..=9999).contains(&date.year) {
        let year = date.year as u32;
        text[1..3].copy_from_slice(&pair(year / 100));
        text[3..5].copy_from_slice(&pair(year % 100));
        out.extend_from_slice(&text);
    } else {
        out.push(b'"');
        write_far_year(date.year, out);
        out.extend_from_slice(&text[5..]);
    }
    out.extend_from_slice(zone);
    if date.year < 1 {
        out.extend_from_slice(b" BC");
    }
    out.push(b'"');
}

/// Writes a year that is not between 1 and 9999, without its era, in four digits or more.
#[cold]
fn write_far_year(year: i64, out: &mut Vec<u8>) {
    let year = if year < 1 { 1 - year } else { year };
    for smallest in [1000, 100, 10] {
        if year < smallest {
            out.push(b'0');
        }
    }
    write_integer(year, out);
}

fn time_of_day(bytes: [u8; 8]) -> Result<[u8; 15], Unencodable> {
    match i64::from_be_bytes(bytes) {
        micros @ 0..=MICROS_PER_DAY => Ok(clock(micros)),
        _ => Err(Unencodable { reason: "time is not within a day" }),
    }
}

/// `HH:MM:SS.ffffff` for microseconds between 0 and a day.
#[inline]
fn clock(micros: i64) -> [u8; 15] {
    let seconds = (micros / MICROS_PER_SECOND) as u32;
    let fraction = (micros % MICROS_PER_SECOND) as u32;
    let mut text = *b"00:00:00.000000";
    text[0..2].copy_from_slice(&pair(seconds / 3600));
    text[3..5].copy_from_slice(&pair(seconds / 60 % 60));
    text[6..8].copy_from_slice(&pair(seconds % 60));
    text[9..].copy_from_slice(&six_digits(fraction));
    text
}

#[inline]
fn six_digits(fraction: u32) -> [u8; 6] {
    let mut text = [0; 6];
    text[0..2].copy_from_slice(&pair(fraction / 10_000));
    text[2..4].copy_from_slice(&pair(fraction / 100 % 100));
    text[4..6].copy_from_slice(&pair(fraction % 100));
    text
}

/// The two digits of a number below 100.
#[inline]
fn pair(number: u32) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

fn write_offset(west_seconds: i32, out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let seconds = west_seconds.unsigned_abs();
    if seconds >= 86_400 {
        return Err(Unencodable { reason: "time zone is a day or more from UTC" });
    }
    out.push(if west_seconds <= 0 { b'+' } else { b'-' });
    out.extend_from_slice(&pair(seconds / 3600));
    out.push(b':');
    out.extend_from_slice(&pair(seconds / 60 % 60));
    if !seconds.is_multiple_of(60) {
        out.push(b':');
        out.extend_from_slice(&pair(seconds % 60));
    }
    Ok(())
}

fn write_period(micros: i64, days: i64, months: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"P");
    write_part(months / 12, b'Y', out);
    write_part(months % 12, b'M', out);
    write_part(days, b'D', out);
    if micros != 0 {
        out.push(b'T');
        write_part(micros / MICROS_PER_HOUR, b'H', out);
        write_part(micros % MICROS_PER_HOUR / MICROS_PER_MINUTE, b'M', out);
        write_seconds(micros % MICROS_PER_MINUTE, out);
    }
    out.push(b'"');
}

fn write_part(number: i64, unit: u8, out: &mut Vec<u8>) {
    if number != 0 {
        write_integer(number, out);
        out.push(unit);
    }
}

/// Writes the seconds of an interval, with no more decimal places than they have.
fn write_seconds(micros: i64, out: &mut Vec<u8>) {
    if micros == 0 {
        return;
    }
    if micros < 0 {
        out.push(b'-');
    }
    let micros = micros.abs();
    write_integer(micros / MICROS_PER_SECOND, out);
    let digits = six_digits((micros % MICROS_PER_SECOND) as u32);
    if let Some(last) = digits.iter().rposition(|digit| *digit != b'0') {
        out.push(b'.');
        out.extend_from_slice(&digits[..=last]);
    }
    out.push(b'S');
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::super::tests::encoded;
    use super::*;

    #[track_caller]
    fn check(encoding: &Encoding, hex: &str, text: &str) {
        assert_eq!(encoded(encoding, hex), Ok(["\"", text, "\""].concat()));
    }

    #[test]
    fn timestamps_have_six_digits_always() {
        let timestamptz = Encoding::TimestampTz;
        check(&timestamptz, "000303d5f4ccfa40", "2026-11-22T06:00:00.123456Z");
        check(&timestamptz, "0000000000000000", "2000-01-01T00:00:00.000000Z");
        check(&timestamptz, "ffffffffffffffff", "1999-12-31T23:59:59.999999Z");
        check(&timestamptz, "fffca2fec4c82000", "1970-01-01T00:00:00.000000Z");
        check(&Encoding::Timestamp, "000303d5f4ccfa40", "2026-11-22T06:00:00.123456");
    }

    #[test]
    fn timestamps_reach_infinity_and_both_ends_of_time() {
        check(&Encoding::TimestampTz, "7fffffffffffffff", "infinity");
        check(&Encoding::Timestamp, "8000000000000000", "-infinity");
        check(&Encoding::TimestampTz, "ff1af9deec5b2000", "0044-03-15T00:00:00.000000Z BC");
        check(&Encoding::TimestampTz, "fd0f7cc1411fa000", "4714-11-24T00:00:00.000000Z BC");
        check(&Encoding::Timestamp, "7fffff5bb3b29fff", "294276-12-31T23:59:59.999999");
    }

    #[test]
    fn moments_that_postgres_cannot_hold_do_not_overflow() {
        check(&Encoding::Timestamp, "7ffffffffffffffe", "294277-01-09T04:00:54.775806");
        check(&Encoding::Timestamp, "8000000000000001", "290279-12-22T19:59:05.224193 BC");
        check(&Encoding::Date, "7ffffffe", "5881610-07-10");
        check(&Encoding::Date, "80000001", "5877612-06-23 BC");
    }

    #[test]
    fn dates_have_an_era_and_no_year_zero() {
        check(&Encoding::Date, "00000000", "2000-01-01");
        check(&Encoding::Date, "fff4dbf8", "0001-12-31 BC");
        check(&Encoding::Date, "fff4dbf9", "0001-01-01");
        check(&Encoding::Date, "ffda97a7", "4714-11-24 BC");
        check(&Encoding::Date, "7fda970c", "5874897-12-31");
        check(&Encoding::Date, "7fffffff", "infinity");
        check(&Encoding::Date, "80000000", "-infinity");
    }

    #[test]
    fn every_day_of_a_thousand_years_follows_the_one_before() {
        let mut before = Date::of(-182_622);
        for days in -182_621..182_622 {
            let date = Date::of(days);
            let next_day = Date { day: before.day + 1, ..before };
            let next_month = Date { month: before.month + 1, day: 1, ..before };
            let next_year = Date { year: before.year + 1, month: 1, day: 1 };
            let expected = match (before.month, before.day) {
                (12, 31) => next_year,
                (month, day) if day == days_in(before.year, month) => next_month,
                _ => next_day,
            };
            assert_eq!(date, expected);
            before = date;
        }
    }

    fn days_in(year: i64, month: u32) -> u32 {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        match month {
            2 => 28 + u32::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    #[test]
    fn times_reach_the_end_of_the_day_and_no_further() {
        check(&Encoding::Time, "0000000000000000", "00:00:00.000000");
        check(&Encoding::Time, "000000141dd75fff", "23:59:59.999999");
        check(&Encoding::Time, "000000141dd76000", "24:00:00.000000");
        assert!(encoded(&Encoding::Time, "000000141dd76001").is_err());
        assert!(encoded(&Encoding::Time, "ffffffffffffffff").is_err());
    }

    #[test]
    fn timetz_has_its_offset() {
        check(&Encoding::TimeTz, "000000036c97ca88ffffb2a8", "04:05:06.789000+05:30");
        check(&Encoding::TimeTz, "0000000c92a69c00ffff1f3c", "15:00:00.000000+15:59");
        check(&Encoding::TimeTz, "00000000000000000000e0ff", "00:00:00.000000-15:59:59");
        check(&Encoding::TimeTz, "000000000000000000000000", "00:00:00.000000+00:00");
        assert!(encoded(&Encoding::TimeTz, "000000000000000080000000").is_err());
    }

    #[test]
    fn intervals_are_what_iso_8601_style_prints() {
        let interval = Encoding::Interval;
        check(&interval, "000000036c9361a0000000030000000e", "P1Y2M3DT4H5M6.5S");
        check(&interval, "00000000000000000000000000000000", "PT0S");
        check(&interval, "fffffffffff85ee00000000000000000", "PT-0.5S");
        check(&interval, "000000036c8bc080fffffffdfffffff6", "P-10M-3DT4H5M6S");
        check(&interval, "ffffffffffffffffffffffff00000001", "P1M-1DT-0.000001S");
        check(&interval, "0000000000000000000000000000000b", "P11M");
        check(&interval, "0000000003938700ffffffff00000000", "P-1DT1M");
        check(&interval, "00000053d1ad96a00000000000000000", "PT100H0.1S");
    }

    #[test]
    fn intervals_reach_infinity_and_both_ends() {
        let interval = Encoding::Interval;
        check(&interval, "7fffffffffffffff7fffffff7fffffff", "infinity");
        check(&interval, "80000000000000008000000080000000", "-infinity");
        check(
            &interval,
            "7fffffffffffffff7fffffff7ffffffe",
            "P178956970Y6M2147483647DT2562047788H54.775807S",
        );
        check(
            &interval,
            "80000000000000008000000080000001",
            "P-178956970Y-7M-2147483648DT-2562047788H-54.775808S",
        );
    }
}
