//! The cursor that loses nothing and repeats nothing. Pure: no clock, no I/O.
//!
//! `modified_at > last` loses rows: `now()` is a transaction's start, and a transaction that starts before a sync and commits
//! after it leaves rows behind the cursor. So a table's cursor ([`TableCursor`]) keeps, of the last completed window:
//!
//! - **W**, the watermark: no row version invisible to the window's snapshot has a cursor value before W - δ, where δ is
//!   `CURSOR_SLACK_SECONDS`;
//! - **S**, the snapshot: every transaction with an id below `S.xmin` had finished;
//! - **D**, the delivered set: the ids from `S.xmin` on whose rows were delivered.
//!
//! A row version *is delivered* exactly when its id is below `S.xmin` or in D. The time only picks a range of the index; ids
//! decide. Values of rows never move W: it comes from the server's clock and its transactions in flight ([`Observation`]), so
//! that NULL, infinity and the year 2999 cannot poison it.
//!
//! # Why it holds
//!
//! L1. An id below `S.xmin` belongs to a transaction that had finished: a subtransaction's id is above that of its top-level
//! transaction, which is at least `S.xmin` while it runs. L2. An id in D belongs to a transaction that S showed, and one
//! becomes visible as a whole. L3. A row's 32-bit id is rebuilt to the largest 64-bit id possible, so never too small: the ids of
//! rows frozen 2³² ids ago can come out too large, and their rows come again ([`Doubt`] keeps such ids out of D, where they
//! would hide another transaction's rows). L4. A version that S does not show belongs to a transaction that was in flight when
//! we looked, before S, or that began after: its cursor value is not below W - δ.
//!
//! *No loss*: what is visible now and not delivered was not visible to S, so it is in range (L4) and is not filtered (L1, L2).
//! *No repeat*: what was delivered has an id below `S.xmin` or in D.
//!
//! A window is read in its snapshot's own transaction where it fits ([`Scope::Whole`]). Else the set of ids that the snapshot
//! showed is kept with it ([`Scope::Frozen`]), and later transactions deliver only those. Rows that change in between are the
//! next window's, so a table is caught up only after a window that was read in its own transaction. What is too large even for
//! listing the ids is read with none of them: all from S0's `xmin` on is the next window's.
//!
//! Assumed: writers set the cursor column no earlier than their transaction's start less δ; the server's clock steps back by δ
//! at most; every write touches the cursor column (`audit` measures it); it is the same incarnation of the database
//! ([`Incarnation`]); and a message of several transactions lasts less than δ, where the role cannot see when it began.
//!
//! A state comes back from callers and from S3, so it is untrusted: it is parsed into typed values and refused by name
//! when it is malformed, foreign or newer. No text of it reaches SQL but through `plan`'s literal function.

mod filter;
mod identity;
mod leaves;
mod looks;
#[cfg(test)]
mod model;
mod observation;
mod varint;
mod window;
mod xid;
mod xid_set;

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::filter::{Condition, Filter};
pub(crate) use self::identity::{DatabaseId, Incarnation, Lsn};
pub(crate) use self::leaves::Leaves;
pub(crate) use self::observation::{Listing, Observation};
pub(crate) use self::window::{After, Doubt, Fence, Place, Position, Scope, TableCursor, Window};
pub(crate) use self::xid::{Snapshot, distance, low, next, rebuilt};
pub(crate) use self::xid_set::XidSet;
use crate::error::{Error, Kind};
use crate::table_name::TableName;

/// The version that this program writes; it reads no other.
const VERSION: u32 = 2;

/// One commit a second makes this in 300 years; beyond it object keys would no longer sort.
const MAX_SEQ: u64 = 9_999_999_999;

/// So far apart are the clocks of all time zones.
pub(crate) const ZONES: TimeDelta = TimeDelta::hours(26);

/// What the next run needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// `None` before the first sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<DatabaseId>,
    /// What was in flight when the last run looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) observed: Option<Observation>,
    pub(crate) tables: BTreeMap<String, TableCursor>,
    /// Answers in a row that had no rows and promised more, where Fivetran holds the state.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) empty_answers: u32,
    /// From where the Python connector, whose state this was, would have gone on.
    #[serde(skip)]
    pub(crate) last_modified: Option<DateTime<Utc>>,
}

/// For serde.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            database: None,
            observed: None,
            tables: BTreeMap::new(),
            empty_answers: 0,
            last_modified: None,
        }
    }
}

impl State {
    /// Reads a state; `{}` is the empty one. That of the Python connector, `{"last_modified":"…"}`, says from where on to read.
    ///
    /// # Errors
    /// `CursorInvalid`, naming what is wrong and never a value.
    pub(crate) fn parse(value: &Value) -> Result<Self, Error> {
        let object = value.as_object().ok_or_else(|| invalid("the state is not an object"))?;
        if object.is_empty() {
            return Ok(Self::default());
        }
        if let (1, Some(last_modified)) = (object.len(), object.get("last_modified")) {
            let time = last_modified.as_str().and_then(python_time).ok_or_else(|| {
                invalid("`last_modified` of the Python connector's state is not a time like 2026-01-31T12:00:00+00:00")
            })?;
            return Ok(Self { last_modified: Some(time), ..Self::default() });
        }
        match object.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) if version > u64::from(VERSION) => {
                return Err(Error::new(
                    Kind::CursorInvalid,
                    format!("the state has version {version}, and this program knows up to {VERSION}"),
                )
                .with_hint("deploy the version that wrote it, or a later one"));
            }
            Some(version) => {
                return Err(invalid(format!("the state has version {version}, older than any release")));
            }
            None => return Err(invalid("the state has no `version` of ours")),
        }
        let state: Self =
            serde_json::from_value(value.clone()).map_err(|error| invalid(shape_problem(&error)))?;
        if !state.tables.keys().all(|name| is_canonical(name)) {
            return Err(invalid("a key of the state's `tables` is not a table's name as we write it"));
        }
        if state.tables.values().any(|cursor| cursor.seq >= MAX_SEQ) {
            return Err(invalid("a `seq` of the state is beyond any count of commits"));
        }
        let seen_at = state.observed.as_ref().map(|observed| observed.at);
        let is_ahead = |cursor: &TableCursor| {
            cursor
                .watermark
                .zip(cursor.as_of.or(seen_at))
                .is_some_and(|(watermark, as_of)| watermark - as_of > TimeDelta::days(1))
        };
        if state.tables.values().any(is_ahead) {
            return Err(invalid("a watermark of the state is later than the window that it is from"));
        }
        // What only its own transaction can go on with.
        let is_whole = |window: &Window| window.scope == Scope::Whole;
        if state.tables.values().any(|cursor| cursor.window.as_ref().is_some_and(is_whole)) {
            return Err(invalid("a window of the state cannot be continued"));
        }
        Ok(state)
    }

    /// Whether the state is for so many tables.
    ///
    /// # Errors
    /// `CursorInvalid` for the Python connector's, which is of one.
    pub(crate) fn check_tables(&self, count: usize) -> Result<(), Error> {
        if self.last_modified.is_none() || count == 1 {
            return Ok(());
        }
        let context = format!("the Python connector's state is of one table, and {count} are configured");
        Err(Error::new(Kind::CursorInvalid, context)
            .with_hint("begin with that table alone in TABLES, and add the others once it has been synced"))
    }

    pub(crate) fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a state has string keys only")
    }

    pub(crate) fn cursor(&self, table: &TableName) -> Option<&TableCursor> {
        self.tables.get(&table.to_string())
    }

    /// The highest id that the state's snapshots know of and that no crash can take back.
    pub(crate) fn newest_xid(&self) -> u64 {
        let safe = self.tables.values().filter(|cursor| cursor.fence == Fence::Passed);
        let known =
            safe.flat_map(|cursor| [cursor.snapshot, cursor.window.as_ref().map(|window| window.snapshot)]);
        known.flatten().map(|snapshot| snapshot.xmax).max().unwrap_or(0)
    }
}

/// What `datetime.isoformat()` writes. Without a zone it was the session's, which may be any.
fn python_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().map(Into::into))?;
    naive.and_utc().checked_sub_signed(ZONES)
}

fn is_canonical(name: &str) -> bool {
    TableName::parse(name).is_ok_and(|table| table.to_string() == name)
}

/// serde's message without what it quotes of the input: `invalid type: string "…", expected u64`.
fn shape_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let is_about_names =
        ["missing field", "unknown field", "unknown variant"].iter().any(|p| text.starts_with(p));
    let expected = text.rsplit_once("expected ").map(|(_, expected)| expected);
    match (is_about_names, expected) {
        (true, _) if text.starts_with("missing field") => format!("the state has a {text}"),
        (true, _) => "the state has a field that is not ours".to_owned(),
        (false, Some(expected)) => format!("the state has a value of another type, expected {expected}"),
        (false, None) => "the state is malformed".to_owned(),
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(Kind::CursorInvalid, context)
        .with_hint("pass back what the last good answer held, or {} to read everything again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Value {
        let xids = |xids: &[u64]| xids.iter().copied().collect::<XidSet>();
        let leaves = Leaves::from_iter([(16385, 16390)]);
        json!({"version": 2,
            "database": {"system_identifier": "7", "oid": 16384, "name": "app", "timeline": 1, "started": "2026-11-20 06:00:00+00",
                "lsn": "0/16B3748"},
            "observed": {"at": "2026-11-22T06:00:01Z", "started": "2026-11-20 06:00:00+00", "in_flight": {"3/7": null},
                "xmax": 760},
            "tables": {
                "public.users": {"seq": 42, "oid": 16385, "order": "modified_at timestamp with time zone, id bigint",
                    "watermark": "2026-11-22T06:00:01Z", "as_of": "2026-11-22T06:00:01Z", "snapshot": "753:760:",
                    "delivered": xids(&[754, 755, 759]), "leaves": leaves, "fence": "passed", "unaudited": 7,
                    "window": {"as_of": "2026-11-22T06:05:01Z", "watermark": "2026-11-22T06:05:01Z", "snapshot": "763:770:",
                        "scope": {"kind": "frozen", "visible": xids(&[764])}, "leaves": leaves, "lsn": "0/16B3750",
                        "position": {"phase": "range", "after": {"cursor": "2026-11-22T06:00:00.123456Z", "key": ["17"]}}}},
                "public.t": {"seq": 0, "oid": 1, "order": "m date, id bigint", "leaves": "", "fence": "none"}}})
    }

    #[test]
    fn a_state_reads_back_to_itself() {
        assert_eq!(State::parse(&example()).expect("valid").to_value(), example());
    }

    #[test]
    fn the_python_connectors_state_is_a_time() {
        for (text, expected) in [
            ("2026-01-31T12:00:00.123456+02:00", "2026-01-31T10:00:00.123456Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            // Of no zone: of any.
            ("2026-01-31T12:00:00", "2026-01-30T10:00:00Z"),
            ("2026-01-31", "2026-01-29T22:00:00Z"),
        ] {
            let state = State::parse(&json!({"last_modified": text})).expect("a state");
            let expected: DateTime<Utc> = expected.parse().expect("a time");
            assert_eq!(state.last_modified, Some(expected), "{text}");
        }
    }

    #[test]
    fn an_empty_object_is_the_empty_state() {
        assert_eq!(State::parse(&json!({})).expect("valid"), State::default());
    }

    #[test]
    fn what_is_wrong_with_a_state_is_named_and_no_value_is_shown() {
        let broken = |path: &[&str], value: Value| {
            let mut state = example();
            let mut place = &mut state;
            for key in path {
                place = &mut place[*key];
            }
            *place = value;
            state
        };
        for (state, named) in [
            (json!([]), "not an object"),
            (json!({"last_modified": "hunter2"}), "not a time"),
            (json!({"last_modified": 7}), "not a time"),
            (json!({"last_modified": "2026-01-31T12:00:00Z", "x": 1}), "no `version`"),
            (broken(&["version"], json!(3)), "version 3"),
            (broken(&["version"], json!(1)), "older than"),
            (broken(&["tables", "public.users", "seq"], json!("hunter2")), "expected u64"),
            (
                broken(&["tables", "public.users", "window", "position"], json!({"phase": "hunter2"})),
                "not ours",
            ),
            (
                broken(&["tables", "public.users", "window", "scope"], json!({"kind": "whole"})),
                "cannot be continued",
            ),
            (broken(&["tables", "public.users", "snapshot"], json!("hunter2")), "a snapshot"),
            (broken(&["tables", "public.users", "delivered"], json!("hunter2")), "set of transaction ids"),
            (broken(&["tables", "public.users", "watermark"], json!("hunter2")), "malformed"),
            (broken(&["tables", "public.users", "seq"], json!(u64::MAX)), "beyond any count"),
            (broken(&["tables", "public.users", "hunter2"], json!(1)), "not ours"),
            (
                broken(&["tables", "hunter2; drop"], example()["tables"]["public.users"].clone()),
                "table's name",
            ),
        ] {
            let error = State::parse(&state).expect_err("invalid");
            let text = error.to_string();
            assert_eq!(error.kind(), Kind::CursorInvalid);
            assert!(text.contains(named) && !text.contains("hunter2"), "{text}");
        }
    }
}
