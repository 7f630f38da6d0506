//! Owns JSON strings: the escaping of text, and the types whose text is made here (`"char"`, bytea, uuid).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Unencodable;
use super::reader::exact;

pub(super) const HEX: &[u8; 16] = b"0123456789abcdef";

/// What stands after the backslash for each byte: 0 is written as it is, `u` is `\u00XX`.
const ESCAPES: [u8; 256] = escapes();

const fn escapes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[b'\t' as usize] = b't';
    table[b'\n' as usize] = b'n';
    table[0x0c] = b'f';
    table[b'\r' as usize] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
}

/// Writes `text` as a JSON string, quotes included.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    write_quoted(text.as_bytes(), out);
}

/// Writes a text value; any type whose binary form is its text.
#[inline]
pub(super) fn write_text(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    check_utf8(value)?;
    write_quoted(value, out);
    Ok(())
}

/// Writes a `"char"`: one byte without an encoding. NUL is the empty string and bytes past ASCII are
/// `\ooo`, as PostgreSQL 16 and later print and read them (`charout`).
pub(super) fn write_char(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let [byte] = exact::<1>(value)?;
    match byte {
        0 => out.extend_from_slice(b"\"\""),
        1..=0x7f => write_quoted(&[byte], out),
        0x80..=0xff => {
            let [high, middle, low] = [byte >> 6, (byte >> 3) & 7, byte & 7].map(|digit| b'0' + digit);
            out.extend_from_slice(&[b'"', b'\\', b'\\', high, middle, low, b'"']);
        }
    }
    Ok(())
}

/// Writes a bytea as base64 (the standard alphabet, padded).
pub(super) fn write_bytea(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    const TOO_LONG: Unencodable = Unencodable { reason: "bytea is too long for base64" };
    let length = base64::encoded_len(value.len(), true).ok_or(TOO_LONG)?;
    out.push(b'"');
    let start = out.len();
    out.resize(start + length, 0);
    STANDARD.encode_slice(value, &mut out[start..]).map_err(|_| TOO_LONG)?;
    out.push(b'"');
    Ok(())
}

/// Writes a uuid in lower case with hyphens.
pub(super) fn write_uuid(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    /// Where the two digits of each byte begin.
    const PLACES: [usize; 16] = [1, 3, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 29, 31, 33, 35];
    let bytes: [u8; 16] = exact(value)?;
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    for (byte, place) in bytes.into_iter().zip(PLACES) {
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 15)];
    }
    out.extend_from_slice(&text);
    Ok(())
}

/// What stands before a member's value: `{"name":` for the first, `,"name":` for the others.
pub(super) fn member(index: usize, name: &str) -> Box<[u8]> {
    let mut text = vec![if index == 0 { b'{' } else { b',' }];
    write_string(name, &mut text);
    text.push(b':');
    text.into_boxed_slice()
}

/// # Errors
/// The text is not UTF-8, which a SQL_ASCII database can send whatever the client's encoding.
#[inline]
pub(super) fn check_utf8(text: &[u8]) -> Result<(), Unencodable> {
    // Most values are ASCII, and asking for that alone is several times faster on short ones.
    if text.is_ascii() || std::str::from_utf8(text).is_ok() {
        return Ok(());
    }
    Err(Unencodable { reason: "text is not valid UTF-8" })
}

/// The length of the longest prefix without a control character, a quote or a backslash.
#[inline]
pub(super) fn clean_length(text: &[u8]) -> usize {
    let Some(last) = text.last_chunk::<8>() else {
        let special = |byte: &u8| ESCAPES[usize::from(*byte)] != 0;
        return text.iter().position(special).unwrap_or(text.len());
    };
    let (words, _) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = special_bytes(*word);
        if special != 0 {
            return index * 8 + lowest_byte(special);
        }
    }
    // The last word overlaps the one before it, which is known to be clean. Without a special byte
    // the lowest one is 8, which makes this the whole length.
    text.len() - 8 + lowest_byte(special_bytes(*last))
}

/// The high bit of every byte that is a control character, a quote or a backslash. A byte above such a
/// byte can be marked wrongly, through the borrow; the lowest mark is always right.
#[inline]
fn special_bytes(word: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(word);
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (control | quote | backslash) & (ONES << 7)
}

fn lowest_byte(marks: u64) -> usize {
    (marks.trailing_zeros() / 8) as usize
}

#[inline]
fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    loop {
        let (clean, special) = rest.split_at(clean_length(rest));
        out.extend_from_slice(clean);
        let Some((byte, after)) = special.split_first() else {
            break;
        };
        write_escape(*byte, out);
        rest = after;
    }
    out.push(b'"');
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    match ESCAPES[usize::from(byte)] {
        b'u' => {
            let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
        letter => out.extend_from_slice(&[b'\\', letter]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::super::tests::encoded;
    use super::*;

    fn quoted(text: &str) -> String {
        let mut out = Vec::new();
        write_string(text, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn text_is_copied_and_only_what_json_demands_is_escaped() {
        assert_eq!(quoted(""), r#""""#);
        assert_eq!(quoted("a/b é 漢 🦀 \u{7f}\u{2028}"), "\"a/b é 漢 🦀 \u{7f}\u{2028}\"");
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
        assert_eq!(quoted("\u{8}\t\n\u{c}\r"), r#""\b\t\n\f\r""#);
        assert_eq!(quoted("\0\u{1}\u{b}\u{1f} "), "\"\\u0000\\u0001\\u000b\\u001f \"");
    }

    #[test]
    fn a_special_byte_is_found_at_every_place_of_every_length() {
        for special in [0, b'\n', 0x1f, b'"', b'\\'] {
            for length in 0..40 {
                for place in 0..length {
                    let mut text = vec![b'x'; length];
                    text[place] = special;
                    assert_eq!(clean_length(&text), place, "{special} in {length}");
                    text[place..].fill(special);
                    assert_eq!(clean_length(&text), place, "{special} to {length}");
                }
            }
        }
    }

    #[test]
    fn clean_bytes_are_never_taken_for_special_ones() {
        for byte in (0x20..=0xff).filter(|byte| !b"\"\\".contains(byte)) {
            for length in 0..20 {
                assert_eq!(clean_length(&vec![byte; length]), length, "{byte}");
            }
        }
    }

    #[test]
    fn strings_of_every_length_read_back_as_they_were() {
        let pattern: Vec<char> = "ab\"c\\d\ne\u{1}fé漢🦀 ghij".chars().collect();
        for length in 0..100 {
            let text: String = (0..length).map(|at| pattern[at * 7 % pattern.len()]).collect();
            let read: String = serde_json::from_str(&quoted(&text)).expect("JSON");
            assert_eq!(read, text);
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        for text in [&b"\xff"[..], b"abc\xc3", b"\xed\xa0\x80", b"0123456789\xe9 "] {
            assert!(write_text(text, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn char_is_empty_ascii_or_octal() {
        assert_eq!(encoded(&Encoding::Char, "61"), Ok(r#""a""#.to_owned()));
        assert_eq!(encoded(&Encoding::Char, "22"), Ok(r#""\"""#.to_owned()));
        assert_eq!(encoded(&Encoding::Char, "00"), Ok(r#""""#.to_owned()));
        assert_eq!(encoded(&Encoding::Char, "80"), Ok(r#""\\200""#.to_owned()));
        assert_eq!(encoded(&Encoding::Char, "ff"), Ok(r#""\\377""#.to_owned()));
        assert!(encoded(&Encoding::Char, "").is_err());
    }

    #[test]
    fn bytea_is_padded_base64() {
        assert_eq!(encoded(&Encoding::Bytea, ""), Ok(r#""""#.to_owned()));
        assert_eq!(encoded(&Encoding::Bytea, "00ff"), Ok(r#""AP8=""#.to_owned()));
        assert_eq!(encoded(&Encoding::Bytea, "fbefff"), Ok(r#""++//""#.to_owned()));
        assert_eq!(encoded(&Encoding::Bytea, "666f6f6261"), Ok(r#""Zm9vYmE=""#.to_owned()));
    }

    #[test]
    fn uuid_has_its_hyphens() {
        assert_eq!(
            encoded(&Encoding::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
            Ok(r#""a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11""#.to_owned())
        );
        assert!(encoded(&Encoding::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a").is_err());
    }

    #[test]
    fn a_member_opens_the_object_or_follows_another() {
        assert_eq!(&*member(0, "id"), b"{\"id\":");
        assert_eq!(&*member(1, "a \"b\""), b",\"a \\\"b\\\"\":");
    }
}
