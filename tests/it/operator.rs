//! What an operator asks: where each table stands, which tables there are, and to begin one anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::case::{Case, invoke, sync, table};

async fn status(function: &harness::Function) -> Value {
    invoke(function, &json!({"action": "status"})).await.answer()
}

#[tokio::test]
async fn the_status_tells_where_each_table_stands_without_the_database() {
    let case = Case::with_users("status", 30).await;
    case.run("create table empty (id int primary key, modified_at timestamptz)").await;
    // Nothing of the database or the secrets is needed.
    let reader = case.function(&[("BASTION_SECRET_ID", ""), ("TABLES", "")]).await;
    let answer = status(&reader).await;
    assert_eq!((&answer["ok"], &answer["tables"]), (&json!(false), &json!([])));
    assert!(answer["notes"][0].as_str().unwrap().contains("nothing has been committed"), "{answer}");
    case.assert_nothing_is_written();

    let function = case.function(&[]).await;
    let answer = invoke(&function, &json!({"limits": {"max_rows": 20}})).await.answer();
    let before = case.objects("");
    let seen = status(&reader).await;
    let users = table(&seen, "public.sample_users");
    assert_eq!(
        (&users["seq"], &users["is_backfill"], &users["as_of"]),
        (&json!(1), &json!(true), &Value::Null)
    );
    assert_eq!(users["window"]["reads"], "scan", "it is unfinished: {users}");
    let commit = &users["last_commit"];
    assert_eq!(
        (&commit["rows"], &commit["objects"], &commit["sync_id"]),
        (&json!(20), &json!(1), &answer["sync_id"])
    );
    assert_eq!(commit["manifest"], table(&answer, "public.sample_users")["manifest"]);
    assert_eq!(before, case.objects(""), "it only reads");

    sync(&function).await;
    let seen = status(&reader).await;
    let users = table(&seen, "public.sample_users");
    assert_eq!((&users["seq"], &users["window"], &users["error"]), (&json!(2), &Value::Null, &Value::Null));
    assert!(
        users["lag_seconds"].as_f64().unwrap() < 60.0 && users["hold_back_seconds"].is_number(),
        "{users}"
    );
    assert_eq!((&table(&seen, "public.empty")["seq"], &seen["ok"]), (&json!(0), &json!(true)));
    let seen = invoke(&reader, &json!({"action": "status", "tables": ["empty"]})).await.answer();
    assert_eq!(seen["tables"].as_array().unwrap().len(), 1);
    let error = invoke(&reader, &json!({"action": "status", "tables": ["nothing"]})).await.error();
    assert_eq!(error.error_type, "InvalidRequest");
}

#[tokio::test]
async fn the_status_keeps_a_failure_until_it_is_over() {
    let case = Case::with_users("status_failure", 3).await;
    case.run("create table other (id int primary key, modified_at timestamptz default now())").await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run(&format!("revoke select on sample_users from {}", case.database.user)).await;
    assert_eq!(sync(&function).await["failed"], 1);
    let seen = status(&function).await;
    let failure = table(&seen, "public.sample_users")["error"].clone();
    assert_eq!((&seen["ok"], &failure["type"]), (&json!(false), &json!("PermissionDenied")));
    assert!(failure["message"].as_str().unwrap().contains("sample_users") && failure["since"].is_string());
    sync(&function).await;
    assert_eq!(
        table(&status(&function).await, "public.sample_users")["error"],
        failure,
        "since when it fails"
    );

    let mut configuration = case.configuration();
    configuration["db_password"] = json!("hunter2");
    let locked_out = case.function_for(&configuration, &[]).await;
    assert_eq!(invoke(&locked_out, &json!({})).await.error().error_type, "DatabaseAuthFailed");
    let seen = status(&function).await;
    assert_eq!(seen["error"]["type"], "DatabaseAuthFailed");
    assert!(!seen.to_string().contains("hunter2"), "{seen}");

    // A run of its own, in which no table succeeds, and another's success leave it as it is.
    let event = json!({"tables": ["sample_users"]});
    assert_eq!(invoke(&function, &event).await.error().error_type, "PermissionDenied");
    assert_eq!(invoke(&function, &json!({"tables": ["other"]})).await.answer()["failed"], 0);
    let seen = status(&function).await;
    assert_eq!((&seen["error"], &table(&seen, "public.sample_users")["error"]), (&Value::Null, &failure));
    // What is not configured any more is of no interest.
    let others = case.function(&[("TABLES", "other")]).await;
    let seen = status(&others).await;
    assert_eq!((&seen["ok"], seen["tables"].as_array().unwrap().len()), (&json!(true), 1));

    case.run(&format!("grant select on sample_users to {}", case.database.user)).await;
    sync(&function).await;
    let seen = status(&function).await;
    assert_eq!((&seen["ok"], &seen["error"]), (&json!(true), &Value::Null), "{seen}");
    case.assert_users_are_complete().await;
}

#[tokio::test]
async fn the_status_keeps_what_fails_for_all_tables_and_forgets_what_is_gone() {
    let case = Case::with_users("status_gone", 3).await;
    case.run("create table broken (id int primary key, day date); insert into broken values (1, null); create domain odd as text;").await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run(&format!("drop table sample_users; revoke select on broken from {}", case.database.user)).await;
    assert_eq!(invoke(&function, &json!({})).await.error().error_type, "PermissionDenied");
    let seen = status(&function).await;
    assert_eq!(table(&seen, "public.broken")["error"]["type"], "PermissionDenied");
    case.run("drop table broken").await;
    assert_eq!(invoke(&function, &json!({})).await.error().error_type, "SchemaChanged");
    let seen = status(&function).await;
    assert_eq!((&seen["ok"], &seen["error"]["type"]), (&json!(false), &json!("SchemaChanged")));
    case.run("create table fresh (id int primary key)").await;
    sync(&function).await;
    let seen = status(&function).await;
    assert_eq!((&seen["ok"], &seen["error"]), (&json!(true), &Value::Null), "{seen}");
}

#[tokio::test]
async fn a_failure_is_written_once_and_not_by_each_run() {
    let case = Case::with_users("status_once", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    let mut configuration = case.configuration();
    configuration["db_password"] = json!("wrong");
    let locked_out = case.function_for(&configuration, &[]).await;
    invoke(&locked_out, &json!({})).await.error();
    let written = case.checkpoint();
    invoke(&locked_out, &json!({})).await.error();
    assert_eq!(case.checkpoint(), written);
}

#[tokio::test]
async fn the_status_of_a_callers_own_state() {
    let case = Case::with_users("status_held", 3).await;
    let function = case.function(&[]).await;
    let state = invoke(&function, &json!({"state": {}})).await.answer()["state"].clone();
    let seen = invoke(&function, &json!({"action": "status", "state": state})).await.answer();
    let users = table(&seen, "public.sample_users");
    assert_eq!((&users["seq"], &users["last_commit"]["rows"]), (&json!(1), &json!(3)));
}

#[tokio::test]
async fn a_table_that_may_not_be_read_is_no_empty_table() {
    let case = Case::with_users("unreadable", 0).await;
    case.run(&format!("revoke select on sample_users from {}", case.database.user)).await;
    let function = case.function(&[("TABLES", "sample_users")]).await;
    assert_eq!(invoke(&function, &json!({})).await.error().error_type, "PermissionDenied");
}

#[tokio::test]
async fn the_discovery_lists_what_can_be_synced_and_the_lines_to_paste() {
    let case = Case::with_users("discover", 2000).await;
    case.run(
        "create table plain (id int primary key, last_change timestamp, born date); create index on plain (last_change);
         create table keyless (a int); create view seen as select 1 as one;
         create table parted (id int, updated_at timestamptz, primary key (id)) partition by range (id);
         create table part_1 partition of parted for values from (0) to (10);
         create table secret (id int primary key); analyze sample_users;",
    )
    .await;
    case.run(&format!("revoke all on secret from {}", case.database.user)).await;
    let function = case.function(&[("TABLES", ""), ("OUTPUT_URI", "")]).await;
    let answer = invoke(&function, &json!({"action": "discover"})).await.answer();
    let names: Vec<&str> =
        answer["tables"].as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["public.keyless", "public.parted", "public.plain", "public.sample_users", "public.secret"]
    );
    let users = table(&answer, "public.sample_users");
    assert!(users["bytes"].as_u64().unwrap() > 50_000 && users["rows"] == 2000, "{users}");
    assert_eq!(
        (&users["primary_key"], &users["cursor_column"], &users["is_indexed"], users.get("index")),
        (&json!(["id"]), &json!("modified_at"), &json!(true), None)
    );
    let parted = table(&answer, "public.parted");
    case.run(parted["index"].as_str().unwrap()).await;
    assert!(table(&answer, "public.keyless")["problem"].as_str().unwrap().contains("primary key"));
    assert!(table(&answer, "public.secret")["problem"].as_str().unwrap().contains("grant SELECT"));
    assert_eq!(
        table(&answer, "public.plain")["candidates"],
        json!([{"column": "last_change", "is_indexed": true}, {"column": "born", "is_indexed": false}])
    );
    assert_eq!(answer["configuration"]["TABLES"], "public.parted,public.plain,public.sample_users");
    // What is to be pasted is taken.
    let document = &answer["configuration"]["CONFIG_URI"];
    assert_eq!(document["tables"]["public.plain"], json!({"cursor_column": "last_change"}));
    let uri = case.put_document(document);
    assert_eq!(sync(&case.function(&[("TABLES", ""), ("CONFIG_URI", &uri)]).await).await["failed"], 0);
}

#[tokio::test]
async fn a_table_to_discover_need_not_be_configured() {
    let case = Case::with_users("discover_one", 1).await;
    case.run("create table other (id int primary key)").await;
    let function = case.function(&[("TABLES", "sample_users")]).await;
    let answer = invoke(&function, &json!({"action": "discover", "tables": ["other"]})).await.answer();
    assert_eq!(answer["tables"].as_array().unwrap().len(), 1);
    assert_eq!(answer["configuration"], json!({"TABLES": "public.other"}));
    let error = invoke(&function, &json!({"action": "discover", "tables": ["nothing"]})).await.error();
    assert!(error.message.contains("public.nothing does not exist"), "{}", error.message);
}

#[tokio::test]
async fn the_lines_to_paste_keep_what_is_configured() {
    let case = Case::with_users("discover_kept", 1).await;
    case.run("alter table sample_users add card_no text; create table audit (id int primary key); create table fresh (id int primary key, changed_at timestamptz)").await;
    let uri = case.put_document(&json!({"tables": {"public.audit": false,
        "public.sample_users": {"exclude": ["card_no"], "start": "2020-01-01T00:00:00Z"}}}));
    let function = case.function(&[("TABLES", ""), ("CONFIG_URI", &uri)]).await;
    let answer = invoke(&function, &json!({"action": "discover"})).await.answer();
    assert_eq!(
        answer["configuration"]["CONFIG_URI"]["tables"],
        json!({"public.audit": false, "public.fresh": {"cursor_column": "changed_at"},
            "public.sample_users": {"exclude": ["card_no"], "start": "2020-01-01T00:00:00.000000Z"}})
    );
    assert_eq!(answer["configuration"]["TABLES"], "public.fresh,public.sample_users");
}

const WAREHOUSES: [&str; 6] = ["athena", "snowflake", "redshift", "bigquery", "databricks", "duckdb"];

/// A table's SQL for a warehouse, as tests/warehouse.py takes it.
async fn statements(function: &harness::Function, name: &str, warehouse: &str) -> Value {
    let event = json!({"action": "discover", "tables": [name], "warehouse": warehouse});
    let answer = invoke(function, &event).await.answer();
    let sql = answer["tables"][0]["sql"].as_array().unwrap_or_else(|| panic!("no SQL: {answer}")).clone();
    let statements: Vec<Value> =
        sql.iter().map(|statement| json!([statement["name"], statement["sql"]])).collect();
    json!({"warehouse": warehouse, "statements": statements})
}

/// Runs tests/warehouse.py; its standard output.
fn warehouse_py(mode: &str, input: &Value) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/warehouse.py");
    let mut child = Command::new(harness::tools::python())
        .arg(script)
        .arg(mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_sql_for_each_warehouse_is_sql_whatever_the_types_and_names() {
    let case = Case::new("warehouses").await;
    for statement in crate::types_matrix::SETUP {
        case.run(statement).await;
    }
    let columns: Vec<String> = crate::types_matrix::MATRIX
        .iter()
        .take(300)
        .enumerate()
        .map(|(i, (ty, ..))| format!("c{i} {ty}"))
        .collect();
    case.run(&format!(
        "create table types (id int primary key, modified_at timestamptz, {})",
        columns.join(", ")
    ))
    .await;
    case.run(
        r#"create schema "My Sales";
           create table "My Sales"."Order ""1"" é" ("Id" uuid, "order" int, "Order" text, "it's; -- `x`" numeric(12,2),
               "a.b" jsonb, "_x" bytea, "sync_date" date, modified_at timestamptz, primary key ("Id", "order"))"#,
    )
    .await;
    case.run(&format!(
        r#"grant usage on schema "My Sales" to {0}; grant select on all tables in schema "My Sales" to {0}"#,
        case.database.user
    ))
    .await;
    let function = case.function(&[("TABLES", "")]).await;
    let mut all = Vec::new();
    for name in ["types", r#""My Sales"."Order ""1"" é""#] {
        for warehouse in WAREHOUSES {
            all.push(statements(&function, name, warehouse).await);
        }
    }
    let count: usize = warehouse_py("parse", &json!(all)).trim().parse().unwrap();
    assert!(count >= 2 * WAREHOUSES.len() * 4, "{count} statements");
}

#[tokio::test]
async fn duckdb_merges_what_was_delivered_into_the_table() {
    let case = Case::new("duckdb").await;
    case.run(
        r#"create table things (id int8 primary key, "Full ""Name""" text, price numeric(10,2), ratio float8, doc jsonb,
               tags text[], at timestamptz, day date, raw bytea, is_on bool, modified_at timestamptz not null default clock_timestamp());
           create index on things (modified_at);
           insert into things select i, 'Łukasz "🦀" ' || i, i / 7.0, 'NaN', jsonb_build_object('a', i), array['x', null], now(),
               '2026-01-31', decode(md5(i::text), 'hex'), i % 2 = 0 from generate_series(1, 1000) i;
           insert into things (id) values (9007199254740993)"#,
    )
    .await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run(
        "update things set price = 0.01, is_on = null, modified_at = clock_timestamp() where id % 3 = 0",
    )
    .await;
    sync(&function).await;
    case.run("insert into things (id, price) values (-1, 1)").await;
    sync(&function).await;
    let sql = statements(&function, "things", "duckdb").await.to_string();
    let root = case.stack.s3.root.join("bastion-sync");
    let local: Value =
        serde_json::from_str(&sql.replace("s3://bastion-sync", root.to_str().unwrap())).unwrap();
    let merged: std::collections::BTreeMap<String, Value> = warehouse_py("run", &json!([local]))
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            (row["id"].to_string(), row)
        })
        .collect();
    let newest = case.newest("public.things", "id");
    assert_eq!(merged.len(), 1002);
    for (id, row) in &newest {
        assert_eq!(merged.get(id), Some(row), "{id}");
    }
}

#[tokio::test]
async fn the_sql_needs_seq_and_a_known_warehouse() {
    let case = Case::with_users("warehouse_off", 1).await;
    let function = case.function(&[("METADATA_COLUMNS", "off")]).await;
    let error = invoke(&function, &json!({"action": "discover", "warehouse": "duckdb"})).await.error();
    assert!(error.message.contains("METADATA_COLUMNS"), "{}", error.message);
    for event in [json!({"action": "discover", "warehouse": "oracle"}), json!({"warehouse": "duckdb"})] {
        assert_eq!(invoke(&function, &event).await.error().error_type, "InvalidRequest");
    }
}
