//! The record of one table's commit, as it stands in S3 beside the objects that it names.

use serde::{Deserialize, Serialize};

use super::batch::Sealed;
use super::storage::Storage;

/// A superset of Redshift's manifest: `entries` is what COPY reads, the rest is for people and programs. It holds no row
/// value; positions stand in the state only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What was read and up to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// How changes were told: by keyset over cursor column and primary key.
    pub(crate) cursor: String,
    pub(crate) is_backfill: bool,
    /// Whether the window was read to its end.
    pub(crate) is_complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watermark_before: Option<String>,
    /// t0 of the window: the database's clock when it began.
    pub(crate) watermark: String,
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
