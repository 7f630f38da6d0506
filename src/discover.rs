//! The discovery: which tables the database has, how each would be synced, the lines of configuration to paste, and a
//! warehouse's SQL.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::app::{Call, open_session};
use crate::config::{TableOptions, TableRules};
use crate::error::{Error, Kind};
use crate::source::catalog::{Listed, list_tables};
use crate::table::Table;
use crate::table_name::{quoted, quoted_if_needed};
use crate::warehouse;

/// With so many names the configuration takes a quarter of an answer.
const MOST_NAMED_TABLES: usize = 500;

/// What a column that every write sets is often called.
const WORDS: [&str; 5] = ["modif", "updat", "chang", "last_", "mtime"];

/// Lists the tables of the database, or those that the request names, configured or not.
///
/// # Errors
/// The kinds of secrets, bastion and database.
pub(crate) async fn discover(call: &Call<'_>) -> Result<Value, Error> {
    // What is configured already shows as it is.
    let rules = call.rules().await?;
    let statements = match call.request.warehouse {
        Some(_) if !call.config.has_metadata_columns => {
            return Err(Error::new(
                Kind::InvalidConfig,
                "without METADATA_COLUMNS no warehouse can tell a row's newest version",
            ));
        }
        Some(warehouse) => Some((warehouse, call.storage()?, call.config.compression.extension())),
        None => None,
    };
    let sql = |table: &Table| {
        let (warehouse, storage, extension) = statements.as_ref()?;
        let uri = storage.uri(&format!("data/{}/", table.name.to_key()));
        let statements = warehouse::statements(*warehouse, table, &uri, extension).into_iter();
        Some(statements.map(|(name, sql)| json!({"name": name, "sql": sql})).collect::<Vec<_>>())
    };
    let session = open_session(call).await?;
    let picked = call.request.tables.as_deref();
    let listed = list_tables(&session, call.config, &rules, picked, call.deadline).await;
    let database = session.database_id.name.clone();
    session.close().await;
    let listed = listed?;
    Ok(json!({
        "ok": true,
        "database": database,
        "configuration": configuration(&listed, &rules),
        "tables": listed.iter().map(|listed| table(listed, sql)).collect::<Vec<_>>(),
    }))
}

/// `TABLES`, and where a table needs options of its own, or has some, the document of `CONFIG_URI`. Of very many tables only their
/// schemas, so that an answer has room for them.
fn configuration(listed: &[Listed], rules: &TableRules) -> Value {
    let usable = || listed.iter().filter_map(|listed| Some((listed, listed.table.as_ref().ok()?)));
    if usable().count() > MOST_NAMED_TABLES {
        let schemas: BTreeSet<String> =
            usable().map(|(listed, _)| format!("{}.*", quoted_if_needed(&listed.name.schema))).collect();
        return json!({"TABLES": schemas.into_iter().collect::<Vec<_>>().join(",")});
    }
    let is_wanted = |listed: &Listed| !rules.excludes(&listed.name);
    let names: Vec<String> =
        usable().filter(|(listed, _)| is_wanted(listed)).map(|(listed, _)| listed.name.to_string()).collect();
    let tables: Map<String, Value> = usable()
        .map(|(listed, table)| {
            let mut options = rules.options(&listed.name).map_or_else(|| json!({}), TableOptions::to_value);
            if let Some(column) = table.cursor.is_none().then(|| suggested(listed)).flatten() {
                options["cursor_column"] = json!(column);
            }
            (listed.name.to_string(), if is_wanted(listed) { options } else { json!(false) })
        })
        .collect();
    match tables.values().any(|options| *options != json!({})) {
        true => json!({"TABLES": names.join(","), "CONFIG_URI": {"tables": tables}}),
        false => json!({"TABLES": names.join(",")}),
    }
}

/// The column that every write may set, to judge by its name.
fn suggested(listed: &Listed) -> Option<&String> {
    let is_likely = |name: &str| WORDS.iter().any(|word| name.to_lowercase().contains(word));
    let mut likely: Vec<&(String, bool)> = listed.times.iter().filter(|(name, _)| is_likely(name)).collect();
    likely.sort_by_key(|(_, is_indexed)| !is_indexed);
    likely.first().map(|(name, _)| name)
}

fn table(listed: &Listed, sql: impl Fn(&Table) -> Option<Vec<Value>>) -> Value {
    let times = listed.times.iter();
    let mut value = json!({
        "table": listed.name.to_string(),
        "bytes": listed.bytes,
        "rows": listed.rows,
        "candidates": times.map(|(name, is_indexed)| json!({"column": name, "is_indexed": is_indexed})).collect::<Vec<_>>(),
    });
    match &listed.table {
        Err(error) => value["problem"] = json!(error.to_string()),
        Ok(table) => {
            value["primary_key"] = json!(table.key_names());
            value["cursor_column"] = json!(table.cursor_column().map(|column| &column.name));
            value["is_indexed"] = json!(table.is_indexed);
            if let Some(sql) = sql(table) {
                value["sql"] = json!(sql);
            }
            if let Some(index) = missing_index(table, listed.is_partitioned) {
                value["index"] = json!(index);
            }
        }
    }
    value
}

/// The statement that makes the index which spares every run a look at each row.
fn missing_index(table: &Table, is_partitioned: bool) -> Option<String> {
    let column = table.cursor_column().filter(|_| !table.is_indexed)?;
    // On partitions at once there is none that lets writers go on.
    let how = if is_partitioned { "" } else { " concurrently" };
    Some(format!("create index{how} on {} ({})", table.name.to_sql(), quoted(&column.name)))
}
