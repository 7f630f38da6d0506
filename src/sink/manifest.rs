//! The record of one table's commit, as it stands in S3 beside the objects that it names.

use serde::{Deserialize, Serialize};

use super::batch::Sealed;
use super::storage::Storage;
use crate::cursor::{Fence, Snapshot};

/// A superset of Redshift's manifest: `entries` is what COPY reads, the rest is for people and programs. It holds no row
/// value; positions stand in the state only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
    pub(crate) table: String,
    pub(crate) seq: u64,
    pub(crate) sync_id: String,
    pub(crate) committed_at: String,
    pub(crate) rows: u64,
    /// Of NDJSON before compression.
    pub(crate) bytes: u64,
    pub(crate) objects: Vec<Object>,
    /// The schema file's address.
    pub(crate) schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config_hash: Option<String>,
    pub(crate) receipt: Receipt,
}

/// What COPY reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) url: String,
    pub(crate) mandatory: bool,
    pub(crate) meta: EntryMeta,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryMeta {
    pub(crate) content_length: u64,
}

/// One object, for whoever checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Object {
    pub(crate) key: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) object_bytes: u64,
    pub(crate) sha256: String,
}

/// What was read, and what makes it complete. Times are the database's, ids its 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// `range`: an index led to what is new. `scan`: every row was looked at.
    pub(crate) window: String,
    /// `whole`: in the snapshot's own transaction. `frozen`: in later ones, too, what the snapshot showed. `partial`: of
    /// that, what is older than its `xmin`; the rest is the next window's.
    pub(crate) scope: String,
    pub(crate) is_backfill: bool,
    /// Whether the window was read to its end.
    pub(crate) is_complete: bool,
    /// The window's: `xmin:xmax:`.
    pub(crate) snapshot: Snapshot,
    /// The clock before the snapshot: what was committed before is delivered when the window is complete.
    pub(crate) as_of: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watermark_before: Option<String>,
    /// From where the next window reads, less the slack; none while that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watermark: Option<String>,
    /// By how much the oldest transaction in flight holds the watermark back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold_back_seconds: Option<f64>,
    /// Transactions in flight when the window was opened.
    pub(crate) in_flight: usize,
    /// Rows that the server sent, and those of them that had been delivered before or are not the window's.
    pub(crate) rows_received: u64,
    pub(crate) rows_filtered: u64,
    /// Rows that the cursor column would have missed, where every row was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rows_missed: Option<u64>,
    /// Whether what was read is safe from a crash of the server.
    pub(crate) fence: Fence,
    /// What told that it is still the same database.
    pub(crate) identity_checks: Vec<String>,
    /// Assumed: a cursor value is no older than its transaction by more than this, and the clock never steps back further.
    pub(crate) slack_seconds: i64,
}

impl Manifest {
    pub(crate) fn key(table_key: &str, seq: u64) -> String {
        format!("manifests/{table_key}/{seq:010}.json")
    }

    /// `entries` and `objects` of sealed batches.
    pub(crate) fn listing(storage: &Storage, sealed: &[Sealed]) -> (Vec<Entry>, Vec<Object>) {
        let entry = |batch: &Sealed| Entry {
            url: storage.uri(&batch.upload.key),
            mandatory: true,
            meta: EntryMeta { content_length: batch.object_bytes },
        };
        let object = |batch: &Sealed| Object {
            key: batch.upload.key.clone(),
            rows: batch.rows,
            bytes: batch.bytes,
            object_bytes: batch.object_bytes,
            sha256: batch.sha256.clone(),
        };
        (sealed.iter().map(entry).collect(), sealed.iter().map(object).collect())
    }
}
