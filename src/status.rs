//! The status: where each table stands, from S3 alone. Reads, and never writes.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::app::Call;
use crate::cursor::{State, TableCursor};
use crate::error::{Error, Kind};
use crate::sink::checkpoint::{Checkpoint, Failures};
use crate::sink::manifest::Manifest;
use crate::sink::storage::Storage;
use crate::table_name::TableName;
use crate::text::{seconds, timestamp};

const READ_AT_ONCE: usize = 16;

const NOTHING: &str =
    "nothing has been committed here: no sync has succeeded, or its callers hold the state themselves";

/// Where each table of the checkpoint, or of the caller's own state, stands; `tables` picks some.
///
/// # Errors
/// `CursorInvalid`, `StorageDenied`, `StorageUnavailable`; `InvalidRequest` for a table that is not there.
pub(crate) async fn status(call: &Call<'_>) -> Result<Value, Error> {
    let storage = call.storage()?;
    let (state, mut failures, pending) = match &call.request.state {
        Some(state) => (State::parse(&state.0)?, Failures::default(), BTreeSet::new()),
        None => match Checkpoint::view(&storage).await? {
            Some(view) => view,
            None => {
                return Ok(json!({"ok": false, "output": storage.uri(""), "tables": [], "notes": [NOTHING]}));
            }
        },
    };
    let rules = call.rules().await?;
    let picked: Option<Vec<String>> =
        call.request.tables.as_ref().map(|tables| tables.iter().map(TableName::to_string).collect());
    // What is not configured any more is of no interest.
    let is_configured = |table: TableName| rules.is_empty() || rules.options(&table).is_some();
    let is_wanted = |name: &String| match &picked {
        Some(picked) => picked.contains(name),
        None => TableName::parse(name).is_ok_and(is_configured),
    };
    failures.tables.retain(|name, _| is_wanted(name));
    let names: BTreeSet<&String> =
        state.tables.keys().chain(failures.tables.keys()).filter(|name| is_wanted(name)).collect();
    if let Some(unknown) = picked.iter().flatten().find(|name| !names.contains(name)) {
        return Err(Error::new(Kind::InvalidRequest, format!("table {unknown} has not been synced yet")));
    }
    let now = Utc::now();
    let tables = names.into_iter().map(|name| {
        let (storage, cursor) = (&storage, state.tables.get(name));
        let (error, is_pending) = (json!(failures.tables.get(name)), pending.contains(name));
        async move {
            let mut table = match cursor {
                Some(cursor) => table(storage, name, cursor, now).await?,
                None => json!({"table": name, "seq": 0}),
            };
            (table["error"], table["is_pending"]) = (error, json!(is_pending));
            Ok::<_, Error>(table)
        }
    });
    let tables: Vec<Value> =
        stream::iter(tables.collect::<Vec<_>>()).buffered(READ_AT_ONCE).try_collect().await?;
    Ok(json!({
        "ok": failures.run.is_none() && failures.tables.is_empty(),
        "output": storage.uri(""),
        "database": state.database.as_ref().map(|database| &database.name),
        "error": failures.run,
        "tables": tables,
    }))
}

async fn table(
    storage: &Storage,
    name: &str,
    cursor: &TableCursor,
    now: DateTime<Utc>,
) -> Result<Value, Error> {
    let mut table = json!({
        "table": name,
        "seq": cursor.seq,
        "as_of": cursor.as_of.map(timestamp),
        "lag_seconds": cursor.as_of.map(|as_of| seconds(now - as_of)),
        "hold_back_seconds": cursor.as_of.zip(cursor.watermark).map(|(as_of, watermark)| seconds(as_of - watermark)),
        "is_backfill": cursor.is_backfill(),
        "window": cursor.window.as_ref().map(|window| json!({
            "as_of": timestamp(window.as_of),
            "reads": if window.position.is_scan() { "scan" } else { "range" },
        })),
    });
    let Ok(name) = TableName::parse(name) else { return Ok(table) };
    let key = Manifest::key(&name.to_key(), cursor.seq);
    if cursor.seq > 0
        && let Some((bytes, _)) = storage.get(&key).await?
    {
        table["last_commit"] = match serde_json::from_slice::<Manifest>(&bytes) {
            Ok(manifest) => json!({
                "at": manifest.committed_at, "rows": manifest.rows, "bytes": manifest.bytes,
                "objects": manifest.objects.len(), "manifest": storage.uri(&key), "sync_id": manifest.sync_id,
            }),
            Err(_) => json!({"manifest": storage.uri(&key), "problem": "it is not a manifest of ours"}),
        };
    }
    Ok(table)
}
