//! The state: the cursors of all tables and the identity of the database that they belong to. Pure.
//!
//! A state comes back from callers and from S3, so it is untrusted: it is parsed into typed values and refused by name
//! when it is malformed, foreign or newer. No text of it reaches SQL but through `plan`'s literal function.
//!
//! The cursor is a keyset: the position (cursor column, primary key) of the last row that was delivered. A window ends
//! at the database's own clock as read when it began, so a value of the year 2999 cannot carry the position away.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind};
use crate::table_name::TableName;

/// The version that this program writes; it reads no other.
const VERSION: u32 = 1;

/// One commit a second makes this in 300 years; beyond it object keys would no longer sort.
const MAX_SEQ: u64 = 9_999_999_999;

/// What the next run needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// `None` before the first sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<DatabaseId>,
    pub(crate) tables: BTreeMap<String, TableCursor>,
}

/// Which database this is; what was refused to us is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseId {
    /// Of the cluster, made by initdb; kept by replicas and by physical restores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_identifier: Option<String>,
    pub(crate) oid: u32,
    pub(crate) name: String,
}

/// Where one table stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableCursor {
    /// The number of the last commit; 0 before the first.
    pub(crate) seq: u64,
    /// Of the table's `pg_class` row: a table swapped by rename has another.
    pub(crate) oid: u32,
    /// What the position is made of: `"modified_at" timestamp with time zone, "id" bigint`.
    pub(crate) order: String,
    pub(crate) position: Position,
    /// t0 of the last window that was read to its end: the database's clock when it began. `None` during a backfill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watermark: Option<String>,
}

/// Up to where a table was delivered. Its `Debug` shows no value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Position {
    /// In a backfill: the rows whose cursor column is null or infinite, in the order of the primary key.
    Unset {
        /// Of the last row; `None` at the start.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<Vec<String>>,
    },
    /// The rows in the order of cursor column and primary key.
    Set {
        /// The last row's values, as PostgreSQL reads them; `None` at the start.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<After>,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    pub(crate) cursor: String,
    pub(crate) key: Vec<String>,
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset { .. } => f.write_str("Unset"),
            Self::Set { .. } => f.write_str("Set"),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, database: None, tables: BTreeMap::new() }
    }
}

impl State {
    /// Reads a state; `{}` is the empty one.
    ///
    /// # Errors
    /// `CursorInvalid`, naming what is wrong and never a value.
    pub(crate) fn parse(value: &Value) -> Result<Self, Error> {
        let object = value.as_object().ok_or_else(|| invalid("the state is not an object"))?;
        if object.is_empty() {
            return Ok(Self::default());
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
            _ => return Err(invalid("the state has no `version` of ours")),
        }
        let state: Self =
            serde_json::from_value(value.clone()).map_err(|error| invalid(shape_problem(&error)))?;
        if !state.tables.keys().all(|name| is_canonical(name)) {
            return Err(invalid("a key of the state's `tables` is not a table's name as we write it"));
        }
        if state.tables.values().any(|cursor| cursor.seq > MAX_SEQ) {
            return Err(invalid("a `seq` of the state is beyond any count of commits"));
        }
        Ok(state)
    }

    pub(crate) fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a state has string keys only")
    }

    pub(crate) fn cursor(&self, table: &TableName) -> Option<&TableCursor> {
        self.tables.get(&table.to_string())
    }
}

impl TableCursor {
    /// The cursor of a table that has never been read, or must be read again: a backfill.
    pub(crate) fn at_start(seq: u64, oid: u32, order: String, has_start: bool) -> Self {
        // With a start time, rows without a finite cursor value are out of range.
        let position = if has_start { Position::Set { after: None } } else { Position::Unset { key: None } };
        Self { seq, oid, order, position, watermark: None }
    }

    /// Of a table that must be read again from its start: no table has this oid, so that the next sync begins anew and
    /// goes on counting.
    pub(crate) fn forgotten(seq: u64) -> Self {
        Self::at_start(seq, 0, String::new(), false)
    }

    /// Whether the table has yet to be read to its end for the first time.
    pub(crate) fn is_backfill(&self) -> bool {
        self.watermark.is_none()
    }
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
        json!({"version": 1, "database": {"system_identifier": "7", "oid": 16384, "name": "app"}, "tables": {
            "public.users": {"seq": 42, "oid": 16385, "order": "modified_at timestamp with time zone, id bigint",
                "position": {"phase": "set", "after": {"cursor": "2026-11-22T06:00:00.123456Z", "key": ["17"]}},
                "watermark": "2026-11-22T06:00:01.000000Z"},
            "public.t": {"seq": 0, "oid": 1, "order": "m date, id bigint", "position": {"phase": "unset"}}}})
    }

    #[test]
    fn a_state_reads_back_to_itself() {
        assert_eq!(State::parse(&example()).expect("valid").to_value(), example());
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
            (json!({"last_modified": "hunter2"}), "no `version`"),
            (broken(&["version"], json!(2)), "version 2"),
            (broken(&["tables", "public.users", "seq"], json!("hunter2")), "expected u64"),
            (broken(&["tables", "public.users", "position"], json!({"phase": "hunter2"})), "not ours"),
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
