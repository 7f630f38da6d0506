//! Owns json and jsonb: embedded as the server sent them, without the white space between their tokens (a raw
//! newline would end the NDJSON line). Digits, keys, their order and their doubles stay.

use super::Unencodable;
use super::string::{check_utf8, clean_length};

/// The only version of jsonb's binary form: text follows.
const JSONB_VERSION: u8 = 1;

/// Writes a json value: its text as it was stored.
pub(super) fn write_json(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    check_utf8(value)?;
    let start = out.len();
    let mut rest = value;
    loop {
        let (tokens, space) = rest.split_at(tokens_length(rest)?);
        out.extend_from_slice(tokens);
        let Some(next) = space.iter().position(|byte| !is_space(*byte)) else {
            break;
        };
        rest = &space[next..];
    }
    if out.len() == start {
        return Err(Unencodable { reason: "json is empty" });
    }
    Ok(())
}

/// Writes a jsonb value: a version byte, then text.
pub(super) fn write_jsonb(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    match value {
        [JSONB_VERSION, text @ ..] => write_json(text, out),
        _ => Err(Unencodable { reason: "jsonb has an unknown version" }),
    }
}

/// The length of what comes before the first white space outside a string.
#[inline]
fn tokens_length(text: &[u8]) -> Result<usize, Unencodable> {
    let mut length = 0;
    loop {
        let rest = &text[length..];
        let is_stop = |byte: &u8| *byte == b'"' || is_space(*byte);
        let Some(stop) = rest.iter().position(is_stop) else {
            return Ok(text.len());
        };
        length += stop;
        if rest[stop] != b'"' {
            return Ok(length);
        }
        length += string_length(&rest[stop..])?;
    }
}

/// The length of the string that begins with the quote at the start of `text`, both quotes included.
///
/// # Errors
/// The string does not end, or holds a bare control character, which could end the NDJSON line. PostgreSQL
/// accepts neither as json.
#[inline]
fn string_length(text: &[u8]) -> Result<usize, Unencodable> {
    let mut length = 1;
    while let Some(rest) = text.get(length..) {
        length += clean_length(rest);
        match text.get(length) {
            Some(b'"') => return Ok(length + 1),
            Some(b'\\') if text.get(length + 1).is_some_and(|byte| *byte >= b' ') => length += 2,
            _ => break,
        }
    }
    Err(Unencodable { reason: "json has a string that does not end or holds a control character" })
}

#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(text: &str) -> Result<String, Unencodable> {
        let mut out = Vec::new();
        write_json(text.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[track_caller]
    fn check(text: &str, json: &str) {
        assert_eq!(compact(text), Ok(json.to_owned()));
    }

    #[test]
    fn white_space_goes_between_tokens_and_stays_within_strings() {
        check("{\"a b\" :\n\t[ 1 ,\r\n 2.50,  \"x  y\" ] }", r#"{"a b":[1,2.50,"x  y"]}"#);
        check(" \n null \t", "null");
        check("  \"  \"  ", r#""  ""#);
        check(r#"{"a":1}"#, r#"{"a":1}"#);
    }

    #[test]
    fn escapes_do_not_end_a_string() {
        check(r#" "a\" b" "#, r#""a\" b""#);
        check(r#"[ "\\" , "\\\" " ]"#, r#"["\\","\\\" "]"#);
        check(r#"[ "\u0000 \ud800" , 1 ]"#, r#"["\u0000 \ud800",1]"#);
    }

    #[test]
    fn digits_and_doubled_keys_stay() {
        check("  1e400000 ", "1e400000");
        check(r#"{"a": 1.00, "a": -0}"#, r#"{"a":1.00,"a":-0}"#);
        check("12345678901234567890123.4567890", "12345678901234567890123.4567890");
    }

    #[test]
    fn space_and_quotes_are_found_at_every_place() {
        for length in 0..40 {
            let inner = "é ".repeat(length);
            let text = format!("{{ \"{inner}\" : [ \"{inner}\\\"\" , 1 ] }}");
            check(&text, &format!("{{\"{inner}\":[\"{inner}\\\"\",1]}}"));
        }
    }

    #[test]
    fn what_would_break_the_line_or_the_object_is_refused() {
        for text in ["", "  ", "\"a", "\"a\\", "\"a\\\"", "[\"a\nb\"]", "\""] {
            assert!(compact(text).is_err(), "{text:?}");
        }
        assert!(write_json(b"\"\xff\"", &mut Vec::new()).is_err());
    }

    #[test]
    fn jsonb_is_text_after_its_version() {
        let mut out = Vec::new();
        assert_eq!(write_jsonb(b"\x01{\"a\": [1, 2]}", &mut out), Ok(()));
        assert_eq!(out, br#"{"a":[1,2]}"#);
        assert!(write_jsonb(b"\x02{}", &mut out).is_err());
        assert!(write_jsonb(b"\x01", &mut out).is_err());
        assert!(write_jsonb(b"", &mut out).is_err());
    }
}
