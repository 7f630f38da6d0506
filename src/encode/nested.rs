//! Owns the values that hold values: arrays, composites, hstore.

use tokio_postgres::types::Oid;

use super::reader::{Reader, WRONG_LENGTH};
use super::string::{member, write_text};
use super::{Encoding, Unencodable};

/// PostgreSQL's `MAXDIM`.
const MAX_DIMENSIONS: usize = 6;

/// An array may grow to this much JSON, or to [`MAX_GROWTH`] times its binary form if that is more. Ten bytes
/// of numeric can stand for 131,072 digits, so that without a bound a small row could take all memory.
const MAX_SMALL_ARRAY_BYTES: usize = 64 * 1024 * 1024;
const MAX_GROWTH: usize = 16;

/// One attribute of a composite type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attribute {
    /// What stands before its value: `{"name":` or `,"name":`.
    key: Box<[u8]>,
    type_oid: Oid,
    encoding: Encoding,
}

impl Attribute {
    /// The attribute at `index` among those that are not dropped.
    pub(super) fn new(index: usize, name: &str, type_oid: Oid, encoding: Encoding) -> Self {
        let key = member(index, name);
        Self { key, type_oid, encoding }
    }
}

/// Writes an array as nested JSON arrays, one level a dimension. `array_send` sends the number of dimensions,
/// flags, the element's type, length and lower bound of each dimension, then the elements in row-major order.
pub(super) fn write_array(element: &Encoding, value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let dimension_count = input.int32()?;
    let _flags = input.int32()?;
    let _element_type = input.uint32()?;
    if dimension_count == 0 {
        out.extend_from_slice(b"[]");
        return input.finish();
    }
    let mut lengths = [0; MAX_DIMENSIONS];
    let lengths = usize::try_from(dimension_count)
        .ok()
        .and_then(|count| lengths.get_mut(..count))
        .ok_or(Unencodable { reason: "array has too many dimensions" })?;
    read_lengths(lengths, &mut input)?;
    let growth = MAX_SMALL_ARRAY_BYTES.max(value.len().saturating_mul(MAX_GROWTH));
    let limit = out.len().saturating_add(growth);
    write_dimension(element, lengths, limit, &mut input, out)?;
    input.finish()
}

/// Writes a composite as an object. `record_send` sends the number of attributes without the dropped ones,
/// then the type and the value of each.
pub(super) fn write_composite(
    attributes: &[Attribute],
    value: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    const CHANGED: Unencodable =
        Unencodable { reason: "composite does not have the attributes that its type had" };
    let mut input = Reader::new(value);
    if usize::try_from(input.int32()?) != Ok(attributes.len()) {
        return Err(CHANGED);
    }
    if attributes.is_empty() {
        out.push(b'{');
    }
    for attribute in attributes {
        if input.uint32()? != attribute.type_oid {
            return Err(CHANGED);
        }
        out.extend_from_slice(&attribute.key);
        write_nullable(&attribute.encoding, input.field()?, out)?;
    }
    out.push(b'}');
    input.finish()
}

/// Writes an hstore as an object of strings and nulls. `hstore_send` sends the number of pairs, then each key
/// and value; its keys are distinct.
pub(super) fn write_hstore(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let pair_count = u32::try_from(input.int32()?).map_err(|_| WRONG_LENGTH)?;
    out.push(b'{');
    for index in 0..pair_count {
        if index > 0 {
            out.push(b',');
        }
        let key = input.field()?.ok_or(Unencodable { reason: "hstore has a null key" })?;
        write_text(key, out)?;
        out.push(b':');
        write_nullable(&Encoding::Text, input.field()?, out)?;
    }
    out.push(b'}');
    input.finish()
}

/// Reads the length of each dimension and drops its lower bound, for which a JSON array has no place.
fn read_lengths(lengths: &mut [usize], input: &mut Reader<'_>) -> Result<(), Unencodable> {
    for length in lengths {
        *length = usize::try_from(input.int32()?)
            .ok()
            .filter(|length| *length > 0)
            .ok_or(Unencodable { reason: "array has a dimension without elements" })?;
        let _lower_bound = input.int32()?;
    }
    Ok(())
}

/// Writes the elements of the dimensions that are left, or one element when none is.
fn write_dimension(
    element: &Encoding,
    lengths: &[usize],
    limit: usize,
    input: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let Some((length, inner_lengths)) = lengths.split_first() else {
        return write_nullable(element, input.field()?, out);
    };
    out.push(b'[');
    for index in 0..*length {
        if index > 0 {
            out.push(b',');
        }
        write_dimension(element, inner_lengths, limit, input, out)?;
        if out.len() > limit {
            return Err(Unencodable { reason: "array is far larger as JSON than it was" });
        }
    }
    out.push(b']');
    Ok(())
}

#[inline]
fn write_nullable(encoding: &Encoding, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), Unencodable> {
    match value {
        Some(value) => encoding.write(value, out),
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::encoded;
    use super::*;

    const INT4: Oid = 23;
    const TEXT: Oid = 25;

    fn array_of(element: Encoding) -> Encoding {
        Encoding::Array(Box::new(element))
    }

    fn pair() -> Encoding {
        Encoding::Composite(vec![
            Attribute::new(0, "a", INT4, Encoding::Int4),
            Attribute::new(1, "b \"x\"", TEXT, Encoding::Text),
        ])
    }

    #[track_caller]
    fn check(encoding: &Encoding, hex: &str, json: &str) {
        assert_eq!(encoded(encoding, hex), Ok(json.to_owned()));
    }

    #[test]
    fn arrays_keep_their_nulls_and_may_be_empty() {
        let ints = array_of(Encoding::Int4);
        check(&ints, "000000000000000000000017", "[]");
        check(&ints, "00000001000000010000001700000002000000010000000400000001ffffffff", "[1,null]");
    }

    #[test]
    fn dimensions_are_nested_arrays() {
        check(
            &array_of(Encoding::Int4),
            concat!(
                "00000002000000000000001700000002000000010000000200000001",
                "00000004000000010000000400000002",
                "00000004000000030000000400000004",
            ),
            "[[1,2],[3,4]]",
        );
    }

    #[test]
    fn lower_bounds_do_not_show() {
        check(
            &array_of(Encoding::Int4),
            "000000010000000000000017000000020000000000000004000000010000000400000002",
            "[1,2]",
        );
    }

    #[test]
    fn arrays_of_a_domain_over_arrays_are_nested() {
        check(
            &array_of(array_of(Encoding::Int4)),
            concat!(
                "0000000100000000000041b5000000010000000100000024",
                "000000010000000000000017000000020000000100000004000000010000000400000002",
            ),
            "[[1,2]]",
        );
    }

    #[test]
    fn arrays_that_cannot_be_are_refused() {
        let ints = array_of(Encoding::Int4);
        for hex in [
            "",
            "00000000000000000000001700",               // bytes after the end
            "000000070000000000000017",                 // seven dimensions
            "ffffffff0000000000000017",                 // minus one dimension
            "0000000100000000000000170000000000000001", // no element
            "000000010000000000000017ffffffff00000001", // minus one element
            "0000000100000000000000177fffffff00000001", // truncated
            "000000010000000000000017000000010000000100000002ff", // truncated element
        ] {
            assert!(encoded(&ints, hex).is_err(), "{hex}");
        }
    }

    #[test]
    fn an_array_of_numerics_cannot_grow_without_bound() {
        let mut value = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6, 164];
        let element = [0, 0, 0, 10, 0, 1, 0x7f, 0xff, 0, 0, 0, 0, 0, 1];
        value.extend_from_slice(&600_i32.to_be_bytes());
        value.extend_from_slice(&1_i32.to_be_bytes());
        value.extend_from_slice(&element.repeat(600));
        let mut out = Vec::new();
        assert!(array_of(Encoding::Numeric).write(&value, &mut out).is_err());
        assert!(out.len() < MAX_SMALL_ARRAY_BYTES + 200_000);
    }

    #[test]
    fn composites_are_objects_in_attribute_order() {
        check(&pair(), "000000020000001700000004000000010000001900000001 78", r#"{"a":1,"b \"x\"":"x"}"#);
        check(&pair(), "00000002 00000017ffffffff 00000019ffffffff", r#"{"a":null,"b \"x\"":null}"#);
        check(&Encoding::Composite(Vec::new()), "00000000", "{}");
    }

    #[test]
    fn composites_that_changed_are_refused() {
        for hex in [
            "",
            "00000001 00000017ffffffff",
            "00000003 00000017ffffffff 00000019ffffffff 00000017ffffffff",
            "00000002 00000019ffffffff 00000019ffffffff",
            "00000002 00000017ffffffff 00000019",
            "00000002 00000017ffffffff 00000019ffffffff 00",
            "ffffffff",
        ] {
            assert!(encoded(&pair(), hex).is_err(), "{hex}");
        }
    }

    #[test]
    fn hstores_are_objects_of_strings_and_nulls() {
        check(
            &Encoding::Hstore,
            "000000020000000161000000022278000000016bffffffff",
            r#"{"a":"\"x","k":null}"#,
        );
        check(&Encoding::Hstore, "00000000", "{}");
        assert!(encoded(&Encoding::Hstore, "00000001ffffffffffffffff").is_err());
        assert!(encoded(&Encoding::Hstore, "7fffffff").is_err());
        assert!(encoded(&Encoding::Hstore, "ffffffff").is_err());
    }
}
