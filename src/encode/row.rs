//! Owns the row: one tuple of a binary COPY becomes one line of NDJSON.

use super::number::write_integer;
use super::reader::{Reader, exact};
use super::string::member;
use super::{Encoding, Unencodable};

/// Writes the rows of one table: everything that does not differ between rows is made once.
#[derive(Debug)]
pub(crate) struct RowEncoder {
    system_columns: SystemColumns,
    columns: Box<[Column]>,
    /// `,"_seq":42}` and the newline.
    end: Box<[u8]>,
    /// Of one line.
    max_bytes: usize,
}

#[derive(Debug)]
struct Column {
    /// What stands before its value: `{"id":` or `,"id":`.
    key: Box<[u8]>,
    encoding: Encoding,
}

/// What the query puts before a table's columns, and no line shows, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SystemColumns {
    /// `xmin`.
    pub(crate) has_xmin: bool,
    /// `ctid`.
    pub(crate) has_place: bool,
    /// A bool: whether the cursor column would have missed the row.
    pub(crate) has_missed: bool,
    /// A bool: whether the source calls the row deleted.
    pub(crate) has_deleted: bool,
}

/// Their values; zero and false where they are not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SystemValues {
    pub(crate) xmin: u32,
    /// Block, and number in the block.
    pub(crate) place: (u32, u16),
    pub(crate) is_missed: bool,
    pub(crate) is_deleted: bool,
}

impl SystemColumns {
    fn count(self) -> usize {
        let columns = [self.has_xmin, self.has_place, self.has_missed, self.has_deleted];
        columns.into_iter().map(usize::from).sum()
    }

    fn read(self, input: &mut Reader<'_>) -> Result<SystemValues, Unencodable> {
        let mut field = || input.field()?.ok_or(Unencodable { reason: "a system column is null" });
        let xmin = if self.has_xmin { u32::from_be_bytes(exact(field()?)?) } else { 0 };
        let place = match self.has_place {
            false => (0, 0),
            true => {
                let [a, b, c, d, e, f] = exact(field()?)?;
                (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]))
            }
        };
        let is_missed = self.has_missed && field()? == [1];
        let is_deleted = self.has_deleted && field()? == [1];
        Ok(SystemValues { xmin, place, is_missed, is_deleted })
    }
}

/// Why a row could not be written; never holds a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowError {
    /// The tuple is cut off, goes on after its end, or has another number of columns.
    Malformed,
    /// The value of the column at this index, counted from 0.
    Value { column: usize, reason: &'static str },
    /// It has at least so many bytes as JSON. Looked at after each column, since few bytes can become many.
    TooLarge { bytes: usize },
}

impl RowEncoder {
    /// `columns` are JSON keys, distinct and none of them `_seq` if that is written, each with the encoding of
    /// its values, in the order of the tuple. `seq` comes last in every row, or not at all. No line is longer than `max_bytes`.
    pub(crate) fn new<'a>(
        columns: impl IntoIterator<Item = (&'a str, Encoding)>,
        seq: Option<u64>,
        max_bytes: usize,
    ) -> Self {
        let system_columns = SystemColumns::default();
        let columns: Box<[Column]> = columns
            .into_iter()
            .enumerate()
            .map(|(index, (name, encoding))| Column { key: member(index, name), encoding })
            .collect();
        let end = line_end(columns.len(), seq);
        Self { system_columns, columns, end, max_bytes }
    }

    /// The same for a query with these system columns.
    pub(crate) fn set_system_columns(&mut self, system_columns: SystemColumns) {
        self.system_columns = system_columns;
    }

    /// Appends one line (`{…}` and a newline) for one tuple of a binary COPY: an int16 field count, then an
    /// int32 length and the bytes of each field. Gives the values of its system columns.
    ///
    /// # Errors
    /// `out` is then as long as it was.
    #[inline]
    pub(crate) fn write(&self, tuple: &[u8], out: &mut Vec<u8>) -> Result<SystemValues, RowError> {
        let start = out.len();
        let result = self.write_line(tuple, out);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    #[inline]
    fn write_line(&self, tuple: &[u8], out: &mut Vec<u8>) -> Result<SystemValues, RowError> {
        let start = out.len();
        let mut input = Reader::new(tuple);
        let field_count = input.int16().map_err(malformed)?;
        if usize::try_from(field_count) != Ok(self.system_columns.count() + self.columns.len()) {
            return Err(RowError::Malformed);
        }
        let system = self.system_columns.read(&mut input).map_err(malformed)?;
        for (index, column) in self.columns.iter().enumerate() {
            out.extend_from_slice(&column.key);
            match input.field().map_err(malformed)? {
                None => out.extend_from_slice(b"null"),
                Some(value) => column
                    .encoding
                    .write(value, out)
                    .map_err(|Unencodable { reason }| RowError::Value { column: index, reason })?,
            }
            let bytes = out.len() - start + self.end.len();
            if bytes > self.max_bytes {
                return Err(RowError::TooLarge { bytes });
            }
        }
        input.finish().map_err(malformed)?;
        out.extend_from_slice(&self.end);
        Ok(system)
    }
}

fn malformed(_: Unencodable) -> RowError {
    RowError::Malformed
}

/// What stands after the last of `column_count` values.
fn line_end(column_count: usize, seq: Option<u64>) -> Box<[u8]> {
    let mut text = Vec::new();
    if let Some(seq) = seq {
        text.extend_from_slice(&member(column_count, "_seq"));
        write_integer(seq, &mut text);
    } else if column_count == 0 {
        text.push(b'{');
    }
    text.extend_from_slice(b"}\n");
    text.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::super::tests::bytes;
    use super::*;

    fn users() -> RowEncoder {
        with_xmin(&[("id", Encoding::Int8), ("full \"name\"", Encoding::Text)], Some(42))
    }

    fn with_xmin(columns: &[(&str, Encoding)], seq: Option<u64>) -> RowEncoder {
        let mut encoder = RowEncoder::new(columns.iter().cloned(), seq, 1 << 20);
        encoder.set_system_columns(SystemColumns { has_xmin: true, ..SystemColumns::default() });
        encoder
    }

    fn line(encoder: &RowEncoder, hex: &str) -> Result<String, RowError> {
        let mut out = b"before\n".to_vec();
        let result = encoder.write(&bytes(hex), &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        let line = text.strip_prefix("before\n").expect("what was there stays");
        match result {
            Ok(_) => Ok(line.to_owned()),
            Err(error) => {
                assert_eq!(line, "", "nothing is left of a row that failed");
                Err(error)
            }
        }
    }

    #[test]
    fn a_row_is_one_line_in_column_order_with_seq_last() {
        assert_eq!(
            line(&users(), "0003 00000004 00000007 00000008 0000000000000007 00000003 61220a"),
            Ok("{\"id\":7,\"full \\\"name\\\"\":\"a\\\"\\n\",\"_seq\":42}\n".to_owned())
        );
    }

    #[test]
    fn nulls_are_explicit() {
        assert_eq!(
            line(&users(), "0003 00000004 00000007 ffffffff ffffffff"),
            Ok("{\"id\":null,\"full \\\"name\\\"\":null,\"_seq\":42}\n".to_owned())
        );
    }

    #[test]
    fn a_row_may_be_without_seq_or_columns() {
        let encoder = with_xmin(&[("id", Encoding::Bool)], None);
        assert_eq!(line(&encoder, "0002 00000004 00000007 00000001 01"), Ok("{\"id\":true}\n".to_owned()));
        assert_eq!(line(&with_xmin(&[], None), "0001 00000004 00000007"), Ok("{}\n".to_owned()));
        assert_eq!(line(&with_xmin(&[], Some(0)), "0001 00000004 00000007"), Ok("{\"_seq\":0}\n".to_owned()));
    }

    #[test]
    fn a_tuple_of_another_shape_is_malformed() {
        for hex in [
            "",
            "00",
            "0002 00000004 00000007 ffffffff",
            "0004 00000004 00000007 ffffffff ffffffff ffffffff",
            "ffff",                            // the end of the COPY, which is not a row
            "0003 ffffffff ffffffff ffffffff", // no row is without an xmin
            "0003 00000004 00000007 ffffffff",
            "0003 00000004 00000007 ffffffff ffff",
            "0003 00000004 00000007 ffffffff 00000002 61",
            "0003 00000004 00000007 ffffffff fffffffe 61",
            "0003 00000004 00000007 ffffffff ffffffff 00",
        ] {
            assert_eq!(line(&users(), hex), Err(RowError::Malformed), "{hex}");
        }
    }

    #[test]
    fn system_columns_are_read_and_not_written() {
        let mut encoder = RowEncoder::new([("id", Encoding::Bool)], None, 1 << 20);
        encoder.set_system_columns(SystemColumns {
            has_xmin: true,
            has_place: true,
            has_missed: true,
            has_deleted: true,
        });
        let hex = "0005 00000004 00000007 00000006 000000050002 00000001 01 00000001 01 00000001 01";
        assert_eq!(line(&encoder, hex), Ok("{\"id\":true}\n".to_owned()));
        let values = SystemValues { xmin: 7, place: (5, 2), is_missed: true, is_deleted: true };
        assert_eq!(encoder.write(&bytes(hex), &mut Vec::new()), Ok(values));
    }

    #[test]
    fn a_value_that_cannot_be_written_names_its_column() {
        assert_eq!(
            line(&users(), "0003 00000004 00000007 ffffffff 00000001 ff"),
            Err(RowError::Value { column: 1, reason: "text is not valid UTF-8" })
        );
    }
}
