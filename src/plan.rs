//! The SQL of a page: table, position and bounds in, text out. Pure.
//!
//! COPY takes no parameters, so values go through one typed literal function; names come from the catalog and are quoted.

use chrono::{DateTime, Utc};

use crate::cursor::Position;
use crate::encode::Cast;
use crate::error::{Error, Kind};
use crate::table::{Column, CursorKind, Table};
use crate::table_name::quoted;
use crate::text::timestamp;

/// One page: the next `max_rows` rows of a table after `position`, up to the window's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    pub(crate) table: &'a Table,
    pub(crate) position: &'a Position,
    /// t0 of the window, by the database's clock.
    pub(crate) until: DateTime<Utc>,
    pub(crate) max_rows: u64,
}

/// Begins a page's transaction: read-only, one snapshot, the table locked against a rewrite before the snapshot is taken;
/// gives the database's clock, and the oid and columns of what the name now means.
pub(crate) fn begin(table: &Table) -> String {
    let name = table.name.to_sql();
    let lock =
        if table.is_lockable { format!("lock table {name} in access share mode; ") } else { String::new() };
    // A comparison of keys must find the operators that `order by` sorts with. `pg_catalog` stays first, and our own query
    // runs before: nobody else's operator is to serve it.
    let schemas: String =
        table.operator_schemas.iter().map(|schema| format!(", {}", quoted(schema))).collect();
    let path = if schemas.is_empty() {
        String::new()
    } else {
        format!("; set local search_path = pg_catalog{schemas}")
    };
    format!(
        "begin isolation level repeatable read read only; {lock}\
         select now(), c.oid, (select string_agg(attname || ' ' || atttypid, E'\\n' order by attnum) from pg_attribute \
         where attrelid = c.oid and attnum > 0 and not attisdropped) \
         from pg_class c where c.oid = '{}'::regclass{path}",
        name.replace('\'', "''")
    )
}

impl Page<'_> {
    /// The page's rows with all their columns.
    ///
    /// # Errors
    /// `CursorInvalid` for a position that does not fit the table.
    pub(crate) fn rows(&self) -> Result<String, Error> {
        let columns: Vec<String> = self.table.columns.iter().map(selected).collect();
        Ok(format!("select {} {}", columns.join(", "), self.body()?))
    }

    /// The place of the page's `offset`-th row, for an error that must name it without its key.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(crate) fn place(&self, offset: u64) -> Result<String, Error> {
        Ok(format!(
            "select place from (select tableoid::regclass::text || ' ctid ' || ctid::text as place {}) as page \
             offset {offset} limit 1",
            self.body()?
        ))
    }

    fn body(&self) -> Result<String, Error> {
        let table = self.table;
        let cursor = column(&table.columns[table.cursor].name);
        let key: Vec<String> = table.key.iter().map(|i| column(&table.columns[*i].name)).collect();
        let key = key.join(", ");
        let (condition, order) = match self.position {
            Position::Unset { key: last } => {
                let unset = format!("({cursor} is null or not isfinite({cursor}))");
                let condition = match last {
                    None => unset,
                    Some(last) => format!("{unset} and ({key}) > ({})", self.key_literals(last)?),
                };
                (condition, key)
            }
            Position::Set { after } => {
                let from = match (after, table.options.start) {
                    (Some(after), _) => {
                        let value = literal(&after.cursor, &table.columns[table.cursor].literal_type)?;
                        format!("({cursor}, {key}) > ({value}, {})", self.key_literals(&after.key)?)
                    }
                    (None, Some(start)) => format!("{cursor} >= {}", self.cursor_time(start, "")),
                    (None, None) => format!("{cursor} > '-infinity'"),
                };
                (format!("{from} and {cursor} {}", self.until()), format!("{cursor}, {key}"))
            }
        };
        Ok(format!(
            "from {} as t where {condition} order by {order} limit {}",
            table.name.to_sql(),
            self.max_rows
        ))
    }

    /// The window's upper bound. A timestamp without a zone is taken for UTC: where it is ahead of that it comes later by as
    /// much, whereas a bound in the future would let a single row carry the position past those to come. A date stays the
    /// same for a whole day, so a position inside it would pass over later changes: only days that are over everywhere are
    /// read.
    fn until(&self) -> String {
        match self.table.cursor_kind {
            CursorKind::Timestamptz | CursorKind::Timestamp => {
                format!("<= {}", self.cursor_time(self.until, ""))
            }
            CursorKind::Date => format!("< {}", self.cursor_time(self.until, " - interval '12 hours'")),
        }
    }

    /// A time, shifted, as the cursor column's type.
    fn cursor_time(&self, time: DateTime<Utc>, shift: &str) -> String {
        let time = timestamp(time);
        match self.table.cursor_kind {
            CursorKind::Timestamptz => format!("'{time}'::timestamptz"),
            CursorKind::Timestamp => format!("('{time}'::timestamptz at time zone 'UTC'{shift})"),
            CursorKind::Date => format!("('{time}'::timestamptz at time zone 'UTC'{shift})::date"),
        }
    }

    fn key_literals(&self, values: &[String]) -> Result<String, Error> {
        if values.len() != self.table.key.len() {
            return Err(Error::new(
                Kind::CursorInvalid,
                format!("the state's position in {} has another number of key columns", self.table.name),
            )
            .with_hint("resync the table"));
        }
        let literals: Result<Vec<String>, Error> = values
            .iter()
            .zip(&self.table.key)
            .map(|(value, i)| literal(value, &self.table.columns[*i].literal_type))
            .collect();
        Ok(literals?.join(", "))
    }
}

/// Qualified: a bare name in `order by` would mean the output column, which may be a cast to text.
fn column(name: &str) -> String {
    format!("t.{}", quoted(name))
}

fn selected(selected: &Column) -> String {
    let name = column(&selected.name);
    match selected.cast {
        Cast::None => name,
        Cast::Text => format!("{name}::text"),
        Cast::TextArray => format!("{name}::text[]"),
    }
}

/// A value of the state as SQL. `standard_conforming_strings` is on in our sessions, so a quote is all that ends a string;
/// `type_name` comes from the catalog.
fn literal(value: &str, type_name: &str) -> Result<String, Error> {
    if value.contains('\0') {
        return Err(Error::new(Kind::CursorInvalid, "a position in the state holds a NUL character")
            .with_hint("resync the table"));
    }
    Ok(format!("'{}'::{type_name}", value.replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::After;
    use crate::encode::Encoding;
    use crate::table_name::TableName;
    use tokio_postgres::types::Type;

    fn table(cursor_kind: CursorKind) -> Table {
        let made = |name: &str, literal_type: &str, ty: &Type| {
            let (cast, encoding) = Encoding::select(ty);
            Column {
                name: name.into(),
                type_name: literal_type.into(),
                nullable: false,
                literal_type: literal_type.into(),
                cast,
                encoding,
            }
        };
        Table {
            name: TableName::parse("public.users").expect("a name"),
            oid: 1,
            columns: vec![
                made("id", "bigint", &Type::INT8),
                made("cash", "money", &Type::MONEY),
                made("at", "timestamp with time zone", &Type::TIMESTAMPTZ),
            ],
            key: vec![0],
            cursor: 2,
            cursor_kind,
            operator_schemas: Vec::new(),
            fingerprint: String::new(),
            is_lockable: true,
            options: crate::config::TableOptions::default(),
        }
    }

    fn rows(table: &Table, position: &Position) -> Result<String, Error> {
        let until = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        Page { table, position, until, max_rows: 10 }.rows()
    }

    #[test]
    fn a_page_continues_after_the_last_row_in_the_order_of_cursor_and_key() {
        let after = After { cursor: "2026-01-01T00:00:00.000000Z".into(), key: vec!["17".into()] };
        let sql = rows(&table(CursorKind::Timestamptz), &Position::Set { after: Some(after) }).expect("fits");
        assert_eq!(
            sql,
            "select t.\"id\", t.\"cash\"::text, t.\"at\" from \"public\".\"users\" as t where (t.\"at\", t.\"id\") > \
             ('2026-01-01T00:00:00.000000Z'::timestamp with time zone, '17'::bigint) and t.\"at\" <= \
             '2027-01-15T08:00:00.000000Z'::timestamptz order by t.\"at\", t.\"id\" limit 10"
        );
    }

    #[test]
    fn a_backfill_takes_null_and_infinite_values_first() {
        let sql = rows(&table(CursorKind::Date), &Position::Unset { key: None }).expect("fits");
        assert!(
            sql.contains("where (t.\"at\" is null or not isfinite(t.\"at\")) order by t.\"id\""),
            "{sql}"
        );
    }

    #[test]
    fn hostile_positions_stay_inside_their_literal() {
        let position = |key: &str| Position::Unset { key: Some(vec![key.to_owned()]) };
        let sql = rows(&table(CursorKind::Date), &position("1'; drop table users; --\\")).expect("fits");
        assert!(sql.contains(r"> ('1''; drop table users; --\'::bigint)"), "{sql}");
        assert!(rows(&table(CursorKind::Date), &position("1\0")).is_err());
        let two = Position::Unset { key: Some(vec!["1".into(), "2".into()]) };
        assert_eq!(rows(&table(CursorKind::Date), &two).expect_err("two").kind(), Kind::CursorInvalid);
    }
}
