//! The check: every hop is tried, and nothing is read or moved. Fivetran's setup test is this.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::{Call, open_session};
use crate::cursor::State;
use crate::error::Error;
use crate::request::Door;
use crate::sink::checkpoint::Checkpoint;
use crate::sink::fivetran;
use crate::sink::ledger::Ledger;
use crate::source::catalog::{find_tables, relations};
use crate::table::Table;

/// What the check found.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) tables: Vec<Arc<Table>>,
}

/// Tries secret, bastion, login, each table with `limit 0`, and the bucket.
///
/// # Errors
/// The kind of the first hop or table that fails.
pub(crate) async fn check(call: &Call<'_>) -> Result<Checked, Error> {
    call.document()?;
    let rules = call.rules().await?;
    let state = match &call.request.state {
        Some(state) => {
            let state = State::parse(&state.0)?;
            // Whether a caller can hold it.
            Ledger::of_caller(state.clone(), call.output()?).await?;
            state
        }
        None => Checkpoint::view(&call.storage()?).await?.unwrap_or_default().0,
    };
    let session = open_session(call).await?;
    let outcome = async {
        let mut tables = Vec::new();
        let picked = call.request.tables.as_deref();
        let relations = relations(&session, &rules, call.deadline).await?;
        let found =
            find_tables(&session, relations, call.config, &rules, picked, &state, call.deadline).await?;
        for (_, table) in found {
            let table = table?;
            let columns: Vec<String> =
                table.columns.iter().map(|column| crate::table_name::quoted(&column.name)).collect();
            let sql = format!("select {} from {} limit 0", columns.join(", "), table.name.to_sql());
            session.run(&sql, call.deadline).await?;
            tables.push(table);
        }
        if call.request.door == Door::Fivetran {
            fivetran::check_names(&tables)?;
            state.check_tables(tables.len())?;
            fivetran::room(&state, &tables)?;
        }
        Ok::<_, Error>(Checked { tables })
    }
    .await;
    session.close().await;
    let checked = outcome?;
    // An upload that is given up shows that writing is allowed, and leaves nothing behind.
    if let Some(storage) = call.output()? {
        let upload = storage.create_upload("_state/check", &call.sync_id).await?;
        storage.abort(&upload).await;
    }
    Ok(checked)
}

impl Checked {
    pub(crate) fn to_value(&self) -> Value {
        let table = |table: &Arc<Table>| {
            json!({
                "table": table.name.to_string(),
                "columns": table.columns.len(),
                "primary_key": table.key_names(),
                "cursor_column": table.cursor_column().map(|column| &column.name),
            })
        };
        json!({"ok": true, "tables": self.tables.iter().map(table).collect::<Vec<_>>()})
    }
}
