//! The SQL of a page: table, window and bounds in, text out; and the reading of what a transaction's first query says. Pure.
//!
//! COPY takes no parameters, so values go through one typed literal function; names come from the catalog and are quoted.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use crate::cursor::{
    Condition, Doubt, Leaves, Lsn, Place, Position, Snapshot, TableCursor, ZONES, low, next,
};
use crate::encode::{Cast, SystemColumns};
use crate::error::{Error, Kind};
use crate::table::{Column, CursorKind, DeletedColumn, Table};
use crate::table_name::quoted;
use crate::text::timestamp;

/// Of a table's blocks, unless its server was built otherwise.
const BLOCK_BYTES: u64 = 8192;

/// So many ids at most are listed for a window, in one message.
pub(crate) const MOST_VISIBLE: usize = 80_000;

/// Begins a page's transaction: read-only, one snapshot, the table locked against a rewrite before the snapshot is taken;
/// and says what [`Transaction`] reads.
pub(crate) fn begin(table: &Table, cursor: &TableCursor, log: Log) -> String {
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
    let lsn = match log {
        Log::Written => "pg_current_wal_insert_lsn()",
        Log::Replayed => "pg_last_wal_replay_lsn()",
        Log::Hidden | Log::HiddenReplayed => "null",
    };
    // Of ids beyond 2³², of which a row has the lower half only, those in progress. On a standby nobody holds the locks.
    let locked = match log {
        Log::Replayed | Log::HiddenReplayed => "null",
        Log::Written | Log::Hidden => {
            "case when pg_snapshot_xmax(pg_current_snapshot())::text::numeric > 4294967296 then (select \
             coalesce(string_agg(transactionid::text, ' '), '') from pg_locks where locktype = 'transactionid' and granted \
             and mode = 'ExclusiveLock') end"
        }
    };
    format!(
        "begin isolation level repeatable read read only; {lock}\
         select c.oid, (select string_agg(attname || ' ' || atttypid, E'\\n' order by attnum) from pg_attribute \
         where attrelid = c.oid and attnum > 0 and not attisdropped), \
         pg_current_snapshot(), age('3'::xid), {lsn}, {unset}, {locked}, \
         (with recursive tree (oid) as (select c.oid union all select i.inhrelid from pg_inherits i join tree on \
         i.inhparent = tree.oid where not i.inhdetachpending) \
         select coalesce(json_agg(json_build_object('oid', l.oid::bigint, 'kind', l.relkind, 'file', pg_relation_filenode(l.oid)::bigint, \
         'bytes', coalesce(pg_relation_size(l.oid), 0), 'is_readable', coalesce(has_table_privilege(l.oid, 'select') \
         and has_schema_privilege(n.oid, 'usage') and not row_security_active(l.oid), false), \
         'name', format('%I.%I', n.nspname, l.relname)) order by l.oid), '[]'::json) from tree join pg_class l using (oid) \
         join pg_namespace n on n.oid = l.relnamespace where l.relkind <> 'p') \
         from pg_class c where c.oid = {name_literal}::regclass{path}",
        unset = unset_probe(table, cursor),
        name_literal = quoted_text(&name),
    )
}

/// Where the leaves lie now, whatever the transaction's snapshot shows: asked where the table could not be locked.
pub(crate) fn files(leaves: &[Leaf]) -> String {
    let files: Vec<String> =
        leaves.iter().map(|leaf| format!("pg_relation_filenode({})", leaf.oid)).collect();
    format!("select concat_ws(' ', {})", files.join(", "))
}

/// Whether any row without a time of its own may have to be delivered; more is asked for than `plan` knows here.
fn unset_probe(table: &Table, cursor: &TableCursor) -> String {
    let Some(column) = table.cursor_column().filter(|_| table.options.start.is_none() && table.is_indexed)
    else {
        return "null".to_owned();
    };
    let newer = cursor.snapshot.map_or_else(String::new, |snapshot| {
        format!(" and age(t.xmin) between 1 and age('{}'::xid)", low(snapshot.xmin))
    });
    format!("exists (select from {} as t where {}{newer})", table.name.to_sql(), is_unset(column))
}

fn deleted(deleted: &DeletedColumn) -> String {
    let name = column(&deleted.name);
    if deleted.is_bool { format!("coalesce({name}, false)") } else { format!("{name} is not null") }
}

fn is_unset(cursor: &Column) -> String {
    let name = column(&cursor.name);
    if cursor.nullable {
        format!("({name} is null or {name} = '-infinity')")
    } else {
        format!("{name} = '-infinity'")
    }
}

/// Which end of the write-ahead log the server tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Written,
    /// By a standby.
    Replayed,
    Hidden,
    /// By a standby.
    HiddenReplayed,
}

/// What a transaction's first query says.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) snapshot: Snapshot,
    /// The next id to be given out, as `age` in this transaction has it.
    pub(crate) next: u64,
    /// Where the log ended after the snapshot.
    pub(crate) lsn: Option<Lsn>,
    pub(crate) has_unset: bool,
    pub(crate) doubt: Doubt,
    pub(crate) leaves: Vec<Leaf>,
}

/// A relation that holds rows of a table: the table itself, or a partition.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Leaf {
    pub(crate) oid: u32,
    /// `r`: a table.
    kind: String,
    file: Option<u32>,
    pub(crate) bytes: u64,
    /// Whether SELECT is granted on itself, and not through its root only.
    is_readable: bool,
    /// As SQL.
    name: String,
}

impl Leaf {
    pub(crate) fn blocks(&self) -> u32 {
        u32::try_from(self.bytes / BLOCK_BYTES).unwrap_or(u32::MAX)
    }
}

impl Transaction {
    /// Reads the answer to [`begin`].
    ///
    /// # Errors
    /// `SchemaChanged` for a table that is not the one that was found before, or has a foreign partition.
    pub(crate) fn read(
        table: &Table,
        log: Log,
        field: impl Fn(usize) -> Option<String>,
    ) -> Result<Self, Error> {
        let text = |i| field(i).unwrap_or_default();
        if text(0) != table.oid.to_string() || text(1) != table.fingerprint {
            return Err(Error::new(
                Kind::SchemaChanged,
                format!("table {} was altered meanwhile", table.name),
            )
            .with_hint("the next run reads it as it is then"));
        }
        let unreadable =
            |what: &str| Error::new(Kind::Internal, format!("the server's {what} cannot be read"));
        let (snapshot, in_progress) = Snapshot::parse(&text(2)).ok_or_else(|| unreadable("snapshot"))?;
        let age = text(3).parse().map_err(|_| unreadable("age of a transaction"))?;
        let locked: Option<Vec<u32>> = match field(6) {
            // Not asked for: no id is beyond 2³². A standby cannot say.
            None => matches!(log, Log::Written | Log::Hidden).then(Vec::new),
            Some(list) => list.split_whitespace().map(|xid| xid.parse().ok()).collect(),
        };
        let leaves: Vec<Leaf> =
            serde_json::from_str(&text(7)).map_err(|_| unreadable("list of partitions"))?;
        if let Some(foreign) = leaves.iter().find(|leaf| leaf.kind != "r") {
            let context = format!("{} has the partition {}, which is not a table", table.name, foreign.name);
            return Err(Error::new(Kind::SchemaChanged, context).with_hint(
                "what lies in another server cannot be read without loss; name the other partitions",
            ));
        }
        Ok(Self {
            snapshot,
            next: next(snapshot, age),
            lsn: field(4).and_then(|lsn| lsn.parse().ok()),
            // Not asked for is not "none".
            has_unset: text(5) != "f",
            doubt: Doubt::new(snapshot, &in_progress, locked.as_deref()),
            leaves,
        })
    }

    pub(crate) fn files(&self) -> Leaves {
        self.leaves.iter().map(|leaf| (leaf.oid, leaf.file.unwrap_or(0))).collect()
    }

    /// Whether the answer to [`files`] is that nothing was rewritten since.
    pub(crate) fn is_unmoved(&self, answer: &str) -> bool {
        let files = self.leaves.iter().filter_map(|leaf| leaf.file);
        files.map(|file| file.to_string()).eq(answer.split(' ').map(str::to_owned))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.leaves.iter().map(|leaf| leaf.bytes).sum()
    }
}

/// One page: the next rows after `position`.
#[derive(Debug, Clone)]
pub(crate) struct Page<'a> {
    pub(crate) table: &'a Table,
    pub(crate) position: &'a Position,
    /// What the server can leave out.
    pub(crate) condition: Condition,
    /// Of a range: from here on.
    pub(crate) bound: Option<DateTime<Utc>>,
    /// Of a scan: rows with `age(xmin)` from 1 to the distance, and none before, were looked for from that time on. Empty where
    /// a cursor column finds nothing.
    pub(crate) looked_from: Vec<(u64, DateTime<Utc>)>,
    /// Of a scan: the leaf, and the block where the page ends.
    pub(crate) leaf: Option<(&'a Leaf, u32)>,
    /// Whether the rows' transactions matter, and in a scan their places: each costs the server a sixth of a narrow row.
    pub(crate) needs_xmin: bool,
    pub(crate) needs_place: bool,
    pub(crate) max_rows: Option<u64>,
}

impl Page<'_> {
    /// What stands before the table's columns.
    pub(crate) fn system_columns(&self) -> SystemColumns {
        SystemColumns {
            has_xmin: self.needs_xmin,
            has_place: self.needs_place,
            has_missed: self.missed().is_some(),
            has_deleted: self.table.deleted.is_some(),
        }
    }

    /// The page's rows: system columns, then the table's.
    ///
    /// # Errors
    /// `CursorInvalid` for a position that does not fit the table.
    pub(crate) fn rows(&self) -> Result<String, Error> {
        let mut columns = Vec::new();
        columns.extend(self.needs_xmin.then(|| "t.xmin".to_owned()));
        columns.extend(self.needs_place.then(|| "t.ctid".to_owned()));
        columns.extend(self.missed());
        columns.extend(self.table.deleted.as_ref().map(deleted));
        columns.extend(self.table.columns.iter().map(selected));
        Ok(format!("select {} {}", columns.join(", "), self.body()?))
    }

    /// The place of the page's `offset`-th row, for an error that must name it without its key.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(crate) fn place(&self, offset: u64) -> Result<String, Error> {
        Ok(format!(
            "select place from (select t.tableoid::regclass::text || ' ctid ' || t.ctid::text as place {}) as page \
             offset {offset} limit 1",
            self.body()?
        ))
    }

    /// In a scan, whether a row is one that the cursor column has missed, or would: it has a time, and it is before the range
    /// of the window that met the row.
    fn missed(&self) -> Option<String> {
        let cursor = self.table.cursor_column().filter(|_| !self.looked_from.is_empty())?;
        let name = column(&cursor.name);
        let cases = self.looked_from.iter().map(|(distance, bound)| {
            format!(" when age(t.xmin) between 1 and {distance} then {name} < {}", self.table.bound(*bound))
        });
        Some(format!("coalesce(case{} end and {name} > '-infinity', false)", cases.collect::<String>()))
    }

    fn body(&self) -> Result<String, Error> {
        let table = self.table;
        let key: Vec<String> = table.key.iter().map(|i| column(&table.columns[*i].name)).collect();
        let key = key.join(", ");
        let mut source = table.name.to_sql();
        let mut conditions = Vec::new();
        let mut order = String::new();
        if let (Some(cursor), Some(start)) = (table.cursor_column(), table.options.start) {
            let start = format!("{} >= {}", column(&cursor.name), table.time(start, TimeDelta::zero()));
            // An index would lead to the rows of a scan in its own order, and not in that of their places.
            conditions.push(if self.position.is_scan() { format!("({start}) is true") } else { start });
        }
        match (self.position, table.cursor_column()) {
            (Position::Range { after }, Some(cursor)) => {
                let name = column(&cursor.name);
                let bound = self.bound.map_or_else(|| "'-infinity'".to_owned(), |bound| table.bound(bound));
                conditions.push(format!("{name} >= {bound}"));
                if let Some(after) = after {
                    let value = literal(&after.cursor, &cursor.literal_type)?;
                    conditions
                        .push(format!("({name}, {key}) > ({value}, {})", self.key_literals(&after.key)?));
                }
                order = format!(" order by {name}, {key}");
            }
            (Position::Unset { key: last }, Some(cursor)) => {
                conditions.push(is_unset(cursor));
                if let Some(last) = last {
                    conditions.push(format!("({key}) > ({})", self.key_literals(last)?));
                }
                order = format!(" order by {key}");
            }
            (Position::Scan { after: Place(block, offset), .. }, _) => {
                if let Some((leaf, end)) = self.leaf {
                    match leaf.is_readable {
                        true => source = format!("only {}", leaf.name),
                        // Through the root, whose other partitions are then looked at in vain.
                        false => conditions.push(format!("t.tableoid = {}", leaf.oid)),
                    }
                    // A scan of the whole leaf comes in the same order, and is faster.
                    if (*block, *offset) != (0, 0) || end < leaf.blocks() {
                        conditions.push(format!("t.ctid > '({block},{offset})' and t.ctid < '({end},0)'"));
                    }
                }
            }
            (Position::Range { .. } | Position::Unset { .. }, None) => {
                return Err(misfit(format!("the state's position in {} needs a cursor column", table.name)));
            }
        }
        let mut undelivered = undelivered(&self.condition);
        if let Some(missed) = self.missed().filter(|_| !undelivered.is_empty()) {
            undelivered = vec![format!("(({}) or {missed})", undelivered.join(" and "))];
        }
        conditions.append(&mut undelivered);
        conditions
            .extend(self.condition.frozen.as_ref().map(|(distance, visible)| of_window(*distance, visible)));
        let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
        let limit = self.max_rows.map_or_else(String::new, |max| format!(" limit {max}"));
        Ok(format!("from {source} as t where {conditions}{order}{limit}"))
    }

    fn key_literals(&self, values: &[String]) -> Result<String, Error> {
        if values.len() != self.table.key.len() {
            let context =
                format!("the state's position in {} has another number of key columns", self.table.name);
            return Err(misfit(context));
        }
        let literals: Result<Vec<String>, Error> = values
            .iter()
            .zip(&self.table.key)
            .map(|(value, i)| literal(value, &self.table.columns[*i].literal_type))
            .collect();
        Ok(literals?.join(", "))
    }
}

/// The ids from the snapshot's `xmin` on among the rows that a window may deliver, as one text. `bound`: of a range.
pub(crate) fn visible(table: &Table, bound: Option<DateTime<Utc>>, is_scan: bool, distance: u64) -> String {
    let name = table.name.to_sql();
    let from = |condition: &str| {
        format!("select t.xmin from {name} as t where {condition}age(t.xmin) between 1 and {distance}")
    };
    let rows = match (table.cursor_column().filter(|_| !is_scan), bound) {
        (Some(cursor), Some(bound)) => {
            let in_range = format!("{} >= {} and ", column(&cursor.name), table.bound(bound));
            let unset = format!("{} and ", is_unset(cursor));
            format!("{} union all {}", from(&in_range), from(&unset))
        }
        _ => from(""),
    };
    format!(
        "select string_agg(xmin::text, ' ') from (select distinct xmin from ({rows}) as t limit {MOST_VISIBLE}) as t"
    )
}

fn newer(distance: u64) -> String {
    format!("age(t.xmin) between 1 and {distance}")
}

fn any(xids: &[u32]) -> String {
    let xids: Vec<String> = xids.iter().map(u32::to_string).collect();
    format!("t.xmin = any('{{{}}}'::xid[])", xids.join(","))
}

fn undelivered(condition: &Condition) -> Vec<String> {
    let mut sql = Vec::new();
    sql.extend(condition.newer.map(newer));
    if !condition.except.is_empty() {
        // As `not`, it would become `<> all`, which PostgreSQL 14 does not hash.
        sql.push(format!("({}) is not true", any(&condition.except)));
    }
    sql
}

/// `age` is int4 and turns negative beyond 2³¹, as it is for rows long frozen: so older is always "not newer".
fn of_window(distance: u64, visible: &[u32]) -> String {
    let older = format!("not ({})", newer(distance));
    if visible.is_empty() { older } else { format!("({older} or {})", any(visible)) }
}

impl Table {
    /// Where a range begins. A column without a time zone is looked at from more than a day before: what was delivered is not
    /// delivered again.
    fn bound(&self, bound: DateTime<Utc>) -> String {
        // It may have been written in any zone.
        self.time(bound, ZONES)
    }

    /// A time as the cursor column's type, less `zones` where that has no time zone.
    fn time(&self, time: DateTime<Utc>, zones: TimeDelta) -> String {
        let in_utc = || timestamp(time.checked_sub_signed(zones).unwrap_or(time)).replace('Z', "");
        match self.cursor_kind {
            CursorKind::Timestamptz => format!("'{}'::timestamptz", timestamp(time)),
            CursorKind::Timestamp => format!("'{}'::timestamp", in_utc()),
            CursorKind::Date => format!("'{}'::date", &in_utc()[..10]),
        }
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

/// A value of the state as SQL; `type_name` comes from the catalog.
fn literal(value: &str, type_name: &str) -> Result<String, Error> {
    if value.contains('\0') {
        return Err(misfit("a position in the state holds a NUL character"));
    }
    Ok(format!("{}::{type_name}", quoted_text(value)))
}

/// `standard_conforming_strings` is on in our sessions, so a quote is all that ends a string.
fn quoted_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn misfit(context: impl Into<String>) -> Error {
    Error::new(Kind::CursorInvalid, context).with_hint("resync the table")
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
                nullable: name == "at",
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
            cursor: Some(2),
            cursor_kind,
            deleted: None,
            is_indexed: true,
            is_subscribed: false,
            operator_schemas: Vec::new(),
            fingerprint: String::new(),
            is_lockable: true,
            options: crate::config::TableOptions::default(),
        }
    }

    fn rows(table: &Table, position: &Position, condition: Condition) -> Result<String, Error> {
        let bound = DateTime::from_timestamp(1_800_000_000, 0);
        Page {
            table,
            position,
            condition,
            bound,
            looked_from: Vec::new(),
            leaf: None,
            needs_xmin: true,
            needs_place: false,
            max_rows: Some(10),
        }
        .rows()
    }

    #[test]
    fn a_page_continues_after_the_last_row_in_the_order_of_cursor_and_key() {
        let after = After { cursor: "2027-01-15T09:00:00.000000Z".into(), key: vec!["17".into()] };
        let position = Position::Range { after: Some(after) };
        let condition = Condition { newer: Some(9), except: vec![7, 8], frozen: Some((5, vec![6])) };
        let sql = rows(&table(CursorKind::Timestamptz), &position, condition).expect("fits");
        assert_eq!(
            sql,
            "select t.xmin, t.\"id\", t.\"cash\"::text, t.\"at\" from \"public\".\"users\" as t where \
             t.\"at\" >= '2027-01-15T08:00:00.000000Z'::timestamptz and (t.\"at\", t.\"id\") > \
             ('2027-01-15T09:00:00.000000Z'::timestamp with time zone, '17'::bigint) and \
             age(t.xmin) between 1 and 9 and (t.xmin = any('{7,8}'::xid[])) is not true and \
             (not (age(t.xmin) between 1 and 5) or t.xmin = any('{6}'::xid[])) order by t.\"at\", t.\"id\" limit 10"
        );
    }

    #[test]
    fn a_scan_reads_blocks_of_a_leaf_and_tells_what_the_cursor_column_would_have_missed() {
        let table = table(CursorKind::Timestamptz);
        let leaf = |is_readable| Leaf {
            oid: 5,
            kind: "r".into(),
            file: Some(5),
            bytes: BLOCK_BYTES * 9,
            is_readable,
            name: "public.\"Part\"".into(),
        };
        let position = Position::Scan { leaf: 5, after: Place(3, 7) };
        let sql = |leaf: &Leaf, looked_from| {
            let page = Page {
                table: &table,
                position: &position,
                condition: Condition { newer: Some(4), ..Condition::default() },
                bound: None,
                looked_from,
                leaf: Some((leaf, 9)),
                needs_xmin: true,
                needs_place: true,
                max_rows: Some(10),
            };
            page.rows().expect("fits")
        };
        assert_eq!(
            sql(&leaf(true), Vec::new()),
            "select t.xmin, t.ctid, t.\"id\", t.\"cash\"::text, t.\"at\" from only public.\"Part\" as t where \
             t.ctid > '(3,7)' and t.ctid < '(9,0)' and age(t.xmin) between 1 and 4 limit 10"
        );
        let time = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let through_root = sql(&leaf(false), vec![(4, time(60)), (9, time(0))]);
        assert!(
            through_root.contains("from \"public\".\"users\" as t where t.tableoid = 5 and"),
            "{through_root}"
        );
        let missed = "coalesce(case when age(t.xmin) between 1 and 4 then t.\"at\" < \
             '1970-01-01T00:01:00.000000Z'::timestamptz when age(t.xmin) between 1 and 9 then t.\"at\" < \
             '1970-01-01T00:00:00.000000Z'::timestamptz end and t.\"at\" > '-infinity', false)";
        assert!(through_root.contains(&format!("t.ctid, {missed}, ")), "{through_root}");
        assert!(
            through_root.contains(&format!("and ((age(t.xmin) between 1 and 4) or {missed})")),
            "{through_root}"
        );
    }

    #[test]
    fn times_without_a_zone_are_looked_at_from_a_day_before() {
        let sql =
            |kind| rows(&table(kind), &Position::Range { after: None }, Condition::default()).expect("fits");
        assert!(sql(CursorKind::Timestamp).contains("t.\"at\" >= '2027-01-14T06:00:00.000000'::timestamp "));
        assert!(sql(CursorKind::Date).contains("t.\"at\" >= '2027-01-14'::date "));
    }

    #[test]
    fn rows_without_a_time_are_a_phase_of_their_own() {
        let sql = rows(&table(CursorKind::Date), &Position::Unset { key: None }, Condition::default())
            .expect("fits");
        assert!(
            sql.contains("where (t.\"at\" is null or t.\"at\" = '-infinity') order by t.\"id\""),
            "{sql}"
        );
    }

    #[test]
    fn hostile_positions_stay_inside_their_literal() {
        let rows = |keys: &[&str]| {
            let key = Some(keys.iter().map(|key| (*key).to_owned()).collect());
            rows(&table(CursorKind::Date), &Position::Unset { key }, Condition::default())
        };
        let sql = rows(&["1'; drop table users; --\\"]).expect("fits");
        assert!(sql.contains(r"> ('1''; drop table users; --\'::bigint)"), "{sql}");
        assert!(rows(&["1\0"]).is_err());
        assert_eq!(rows(&["1", "2"]).expect_err("two").kind(), Kind::CursorInvalid);
    }
}
