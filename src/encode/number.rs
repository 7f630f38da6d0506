//! Owns booleans and numbers.

use super::Unencodable;
use super::reader::{Reader, WRONG_LENGTH, exact};

/// One digit of a numeric stands for this many decimal ones.
const GROUP_DIGITS: usize = 4;

pub(super) fn write_bool(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    match exact::<1>(value)? {
        [0] => out.extend_from_slice(b"false"),
        [1] => out.extend_from_slice(b"true"),
        [2..=255] => {
            return Err(Unencodable { reason: "boolean is neither true nor false" });
        }
    }
    Ok(())
}

#[inline]
pub(super) fn write_int2(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_integer(i16::from_be_bytes(exact(value)?), out);
    Ok(())
}

#[inline]
pub(super) fn write_int4(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_integer(i32::from_be_bytes(exact(value)?), out);
    Ok(())
}

#[inline]
pub(super) fn write_int8(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_integer(i64::from_be_bytes(exact(value)?), out);
    Ok(())
}

pub(super) fn write_oid(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    write_integer(u32::from_be_bytes(exact(value)?), out);
    Ok(())
}

pub(super) fn write_float4(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let number = f32::from_be_bytes(exact(value)?);
    if number.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(number).as_bytes());
    } else {
        write_not_finite(f64::from(number), out);
    }
    Ok(())
}

/// Writes the shortest number that reads back as the same one. Whole numbers keep their `.0` (or an
/// exponent), so that a reader that infers types sees floats in every row, and -0.0 stays negative.
pub(super) fn write_float8(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let number = f64::from_be_bytes(exact(value)?);
    if number.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(number).as_bytes());
    } else {
        write_not_finite(number, out);
    }
    Ok(())
}

/// Writes a numeric as a string with every digit of its scale. `numeric_send` sends how many base-10000
/// groups follow, the weight of the first (a power of 10000), the sign, the scale (decimal places), then
/// the groups, without those that are zero at either end.
pub(super) fn write_numeric(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let group_count = usize::from(input.uint16()?);
    let weight = i32::from(input.int16()?);
    let sign = input.uint16()?;
    let scale = usize::from(input.uint16()?);
    let (groups, odd) = input.rest().as_chunks::<2>();
    if groups.len() != group_count || !odd.is_empty() {
        return Err(WRONG_LENGTH);
    }
    let opening: &[u8] = match sign {
        0x0000 => b"\"",
        0x4000 => b"\"-",
        0xc000 => b"\"NaN",
        0xd000 => b"\"Infinity",
        0xf000 => b"\"-Infinity",
        _ => {
            return Err(Unencodable { reason: "numeric has an unknown sign" });
        }
    };
    out.extend_from_slice(opening);
    if sign == 0x0000 || sign == 0x4000 {
        write_whole_part(groups, weight, out)?;
        write_fraction(groups, weight, scale, out)?;
    }
    out.push(b'"');
    Ok(())
}

#[inline]
pub(super) fn write_integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_not_finite(number: f64, out: &mut Vec<u8>) {
    let text: &[u8] = if number.is_nan() {
        b"\"NaN\""
    } else if number > 0.0 {
        b"\"Infinity\""
    } else {
        b"\"-Infinity\""
    };
    out.extend_from_slice(text);
}

fn write_whole_part(groups: &[[u8; 2]], weight: i32, out: &mut Vec<u8>) -> Result<(), Unencodable> {
    if weight < 0 {
        out.push(b'0');
        return Ok(());
    }
    write_integer(group(groups, 0)?, out);
    for index in 1..=weight {
        out.extend_from_slice(&decimal_digits(group(groups, index)?));
    }
    Ok(())
}

fn write_fraction(
    groups: &[[u8; 2]],
    weight: i32,
    scale: usize,
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    if scale == 0 {
        return Ok(());
    }
    out.push(b'.');
    let mut index = weight + 1;
    let mut missing = scale;
    while missing > 0 {
        let digits = decimal_digits(group(groups, index)?);
        let wanted = missing.min(GROUP_DIGITS);
        out.extend_from_slice(&digits[..wanted]);
        missing -= wanted;
        index += 1;
    }
    Ok(())
}

/// The group at `index`, where 0 is the first that was sent; groups on either side of those are zero.
#[inline]
fn group(groups: &[[u8; 2]], index: i32) -> Result<u16, Unencodable> {
    let sent = usize::try_from(index).ok().and_then(|index| groups.get(index));
    match sent.map_or(0, |bytes| u16::from_be_bytes(*bytes)) {
        group @ 0..=9999 => Ok(group),
        _ => Err(Unencodable { reason: "numeric has a digit past 9999" }),
    }
}

#[inline]
fn decimal_digits(group: u16) -> [u8; GROUP_DIGITS] {
    [group / 1000, group / 100 % 10, group / 10 % 10, group % 10].map(|digit| b'0' + digit as u8)
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::super::tests::encoded;

    #[track_caller]
    fn check(encoding: &Encoding, hex: &str, json: &str) {
        assert_eq!(encoded(encoding, hex), Ok(json.to_owned()));
    }

    #[test]
    fn booleans_are_bare() {
        check(&Encoding::Bool, "00", "false");
        check(&Encoding::Bool, "01", "true");
        assert!(encoded(&Encoding::Bool, "02").is_err());
    }

    #[test]
    fn integers_reach_both_ends() {
        check(&Encoding::Int2, "8000", "-32768");
        check(&Encoding::Int2, "7fff", "32767");
        check(&Encoding::Int4, "80000000", "-2147483648");
        check(&Encoding::Int4, "00000000", "0");
        check(&Encoding::Int8, "8000000000000000", "-9223372036854775808");
        check(&Encoding::Int8, "7fffffffffffffff", "9223372036854775807");
        check(&Encoding::Oid, "ffffffff", "4294967295");
    }

    #[test]
    fn an_integer_of_another_width_is_refused() {
        assert!(encoded(&Encoding::Int4, "0001").is_err());
        assert!(encoded(&Encoding::Int2, "00000001").is_err());
    }

    #[test]
    fn floats_are_the_shortest_json_that_reads_back() {
        check(&Encoding::Float8, "3ff8000000000000", "1.5");
        check(&Encoding::Float8, "3fb999999999999a", "0.1");
        check(&Encoding::Float8, "4059000000000000", "100.0");
        check(&Encoding::Float8, "4480f0cf064dd592", "1e+22");
        check(&Encoding::Float8, "0000000000000001", "5e-324");
        check(&Encoding::Float8, "7fefffffffffffff", "1.7976931348623157e+308");
        check(&Encoding::Float8, "8000000000000000", "-0.0");
        check(&Encoding::Float4, "3dcccccd", "0.1");
        check(&Encoding::Float4, "7f7fffff", "3.4028235e+38");
    }

    #[test]
    fn every_power_of_two_is_a_json_number_that_round_trips() {
        for exponent in 0..2047_u64 {
            let number = f64::from_bits((exponent << 52) | exponent);
            let mut out = Vec::new();
            super::write_float8(&number.to_be_bytes(), &mut out).expect("finite");
            let text = String::from_utf8(out).expect("UTF-8");
            serde_json::from_str::<serde::de::IgnoredAny>(&text).expect("JSON");
            assert_eq!(text.parse::<f64>(), Ok(number));
        }
    }

    #[test]
    fn floats_that_are_not_finite_are_strings() {
        check(&Encoding::Float8, "7ff8000000000000", r#""NaN""#);
        check(&Encoding::Float8, "7ff0000000000000", r#""Infinity""#);
        check(&Encoding::Float8, "fff0000000000000", r#""-Infinity""#);
        check(&Encoding::Float4, "7fc00000", r#""NaN""#);
        check(&Encoding::Float4, "7f800000", r#""Infinity""#);
        check(&Encoding::Float4, "ff800000", r#""-Infinity""#);
    }

    #[test]
    fn numerics_keep_every_digit_and_their_scale() {
        let numeric = Encoding::Numeric;
        check(&numeric, "000200000000000204d21388", r#""1234.50""#);
        check(&numeric, "0001fffe0000000804d2", r#""0.00001234""#);
        check(&numeric, "0001ffff400000011388", r#""-0.5""#);
        check(&numeric, "0000000000000002", r#""0.00""#);
        check(&numeric, "0000000000000000", r#""0""#);
        check(&numeric, "0001fffd0000000a0064", r#""0.0000000001""#);
        check(&numeric, "00010005000000000001", r#""100000000000000000000""#);
        check(&numeric, "00010001000000030001", r#""10000.000""#);
        check(&numeric, "0001ffff000000070001", r#""0.0001000""#);
        check(&numeric, "0003000140000004270f270f270f", r#""-99999999.9999""#);
        check(
            &numeric,
            "000800040000000904d2162e23340d801ed204d2162e2328",
            r#""12345678901234567890.123456789""#,
        );
        check(
            &numeric,
            "000a0008000000010001000000000000000000000000000000001388",
            r#""100000000000000000000000000000000.5""#,
        );
    }

    #[test]
    fn numerics_that_are_no_numbers_are_strings() {
        check(&Encoding::Numeric, "00000000c0000000", r#""NaN""#);
        check(&Encoding::Numeric, "00000000d0000020", r#""Infinity""#);
        check(&Encoding::Numeric, "00000000f0000020", r#""-Infinity""#);
    }

    #[test]
    fn the_largest_numeric_has_all_its_digits() {
        let json = encoded(&Encoding::Numeric, "00017fff00003fff270f").expect("encoded");
        let (whole, fraction) = json.trim_matches('"').split_once('.').expect("a point");
        assert_eq!((whole.len(), fraction.len()), (131_072, 16_383));
        assert!(whole.starts_with("99990000") && fraction.bytes().all(|digit| digit == b'0'));
    }

    #[test]
    fn numerics_that_cannot_be_are_refused() {
        for hex in [
            "",
            "00010000000000",
            "0001000000000000",         // a group announced, none sent
            "000100000000000004d2ff",   // half a group
            "000100000000000004d204d2", // one too many
            "00010000000000002710",     // 10000
            "000100001000000004d2",     // sign
        ] {
            assert!(encoded(&Encoding::Numeric, hex).is_err(), "{hex}");
        }
    }
}
