//! What a run did, before it takes the shape of a door.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cursor::{State, TableCursor};
use crate::error::Error;
use crate::sink::fivetran::Answer;
use crate::table::Table;
use crate::table_name::TableName;
use crate::text::timestamp;

/// A run's outcome.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) has_more: bool,
    pub(crate) state: State,
    pub(crate) reports: Vec<Report>,
    /// What people should know about the run.
    pub(crate) notes: Vec<String>,
    /// The tables of this run, for Fivetran's schema.
    pub(crate) tables: Vec<Arc<Table>>,
    /// Fivetran's.
    pub(crate) answer: Option<Answer>,
}

/// What a run did with one table.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) table: TableName,
    pub(crate) outcome: Result<TableDone, Error>,
}

/// What was read of a table and committed, in one commit or more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TableDone {
    /// Of the last commit.
    pub(crate) seq: u64,
    pub(crate) rows: u64,
    /// Of NDJSON before compression.
    pub(crate) bytes: u64,
    pub(crate) objects: usize,
    /// Of the last commit; `None` where no row was read.
    pub(crate) manifest: Option<String>,
    pub(crate) watermark: Option<String>,
    /// The database's clock less that of the last completed window.
    pub(crate) lag_seconds: Option<f64>,
    /// That less the watermark.
    pub(crate) hold_back_seconds: Option<f64>,
    /// Rows that the cursor column would have missed, where every row was looked at.
    pub(crate) missed: Option<u64>,
    /// For people: what was out of the ordinary.
    pub(crate) notes: Vec<String>,
}

impl TableDone {
    pub(crate) fn from(cursor: &TableCursor) -> Self {
        Self {
            seq: cursor.seq,
            rows: 0,
            bytes: 0,
            objects: 0,
            manifest: None,
            watermark: cursor.watermark.map(timestamp),
            lag_seconds: None,
            hold_back_seconds: None,
            missed: None,
            notes: Vec::new(),
        }
    }
}

impl Outcome {
    pub(crate) fn done(&self) -> impl Iterator<Item = &TableDone> {
        self.reports.iter().filter_map(|report| report.outcome.as_ref().ok())
    }

    pub(crate) fn failed_count(&self) -> usize {
        self.reports.iter().filter(|report| report.outcome.is_err()).count()
    }
}

impl Report {
    /// As it stands in an answer's `tables`.
    pub(crate) fn to_value(&self) -> Value {
        let table = self.table.to_string();
        match &self.outcome {
            Ok(done) => {
                let mut value = json!({
                    "table": table, "seq": done.seq, "rows": done.rows, "bytes": done.bytes, "objects": done.objects,
                    "manifest": done.manifest, "watermark": done.watermark, "lag_seconds": done.lag_seconds,
                    "hold_back_seconds": done.hold_back_seconds,
                });
                if let Some(missed) = done.missed {
                    value["missed"] = json!(missed);
                }
                if !done.notes.is_empty() {
                    value["notes"] = json!(done.notes);
                }
                value
            }
            Err(error) => json!({"table": table, "error": {
                "type": error.kind().name(), "message": error.to_string(), "retryable": error.kind().is_retryable(),
            }}),
        }
    }
}
