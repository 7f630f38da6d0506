//! Every type, through the whole function: `(type, literal) -> JSON` as it lies in S3.

use crate::case::{Case, sync, table};
use crate::types_matrix::{EXTENSION_MATRIX, MATRIX, SETUP};

/// One table with one row and a column for each literal, so that one sync covers the matrix.
async fn assert_matrix(case: &Case, rows: &[(&str, &str, &str)]) {
    // A table has at most 1,600 columns, and a row's fixed part must fit a page.
    for (i, chunk) in rows.chunks(100).enumerate() {
        let columns: Vec<String> =
            chunk.iter().enumerate().map(|(c, (ty, _, _))| format!("c{c} {ty}")).collect();
        let values: Vec<&str> = chunk.iter().map(|(_, literal, _)| *literal).collect();
        case.run(&format!(
            "create table m{i} (id int primary key, modified_at timestamptz, {})",
            columns.join(", ")
        ))
        .await;
        case.run(&format!("insert into m{i} values (1, now(), {})", values.join(", "))).await;
    }
    let answer = sync(&case.function(&[("COMPRESSION", "none")]).await).await;
    assert_eq!(answer["failed"], 0, "{answer}");
    for (i, chunk) in rows.chunks(100).enumerate() {
        let name = format!("public.m{i}");
        assert_eq!(table(&answer, &name)["rows"], 1);
        let objects = case.objects(&format!("data/{name}/"));
        let line = std::str::from_utf8(&objects[0].1).unwrap();
        let row: std::collections::HashMap<String, &serde_json::value::RawValue> =
            serde_json::from_str(line).unwrap();
        for (c, (ty, literal, expected)) in chunk.iter().enumerate() {
            assert_eq!(row[&format!("c{c}")].get(), *expected, "{ty}: {literal}");
        }
    }
}

#[tokio::test]
async fn every_type_is_written_as_documented() {
    let case = Case::new("types").await;
    for statement in SETUP {
        case.run(statement).await;
    }
    assert_matrix(&case, MATRIX).await;
}

#[tokio::test]
async fn types_of_extensions_are_written_as_documented() {
    let case = Case::new("extensions").await;
    let mut extensions: Vec<&str> = EXTENSION_MATRIX.iter().map(|(extension, ..)| *extension).collect();
    extensions.dedup();
    for extension in extensions {
        case.run(&format!("create extension if not exists {extension}")).await;
    }
    let rows: Vec<_> = EXTENSION_MATRIX.iter().map(|(_, ty, literal, json)| (*ty, *literal, *json)).collect();
    assert_matrix(&case, &rows).await;
}

#[tokio::test]
async fn positions_of_every_kind_of_key_continue_where_they_stopped() {
    let case = Case::new("key_types").await;
    let keys = [
        ("k_uuid", "uuid", "md5(i::text)::uuid"),
        ("k_bytea", "bytea", "decode(md5(i::text), 'hex')"),
        ("k_numeric", "numeric(20,3)", "i / 7.0"),
        ("k_bool_int", "int, b bool", "i, i % 2 = 0"),
        ("k_float", "float8", "i / 3.0"),
        ("k_char", "char(5)", "i::text"),
        ("k_varchar", "varchar(9)", "'a''\"\\' || i"),
        ("k_date", "date", "'2020-01-01'::date + i"),
        ("k_interval", "interval", "i * interval '7 min'"),
        ("k_inet", "inet", "'10.0.0.0'::inet + i"),
        ("k_time", "timestamptz", "'0044-03-15 BC'::timestamptz + i * interval '100 years'"),
        ("k_int8range", "int8range", "int8range(i, i + 2)"),
    ];
    for (name, ty, expression) in keys {
        let primary = if ty.contains(" b ") { "k, b" } else { "k" };
        case.run(&format!("create table {name} (k {ty}, modified_at timestamptz, primary key ({primary}))"))
            .await;
        case.run(&format!(
            "insert into {name} select {expression}, '2026-01-01' from generate_series(1, 60) i"
        ))
        .await;
        // Half of the rows are in the phase without a cursor value.
        case.run(&format!(
            "update {name} set modified_at = null where ctid in (select ctid from {name} limit 30)"
        ))
        .await;
    }
    let function = case.function(&[]).await;
    let mut calls = 0;
    loop {
        let answer =
            crate::case::invoke(&function, &serde_json::json!({"limits": {"max_rows": 17}})).await.answer();
        assert_eq!(answer["failed"], 0, "{answer}");
        calls += 1;
        if answer["has_more"] == false {
            break;
        }
        assert!(calls < 200, "no end");
    }
    for (name, ..) in keys {
        let mut rows: Vec<String> = case
            .rows(&format!("public.{name}"))
            .iter()
            .map(|row| format!("{}{}", row["k"], row["b"]))
            .collect();
        assert_eq!(rows.len(), 60, "{name}");
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), 60, "{name}: each row once");
    }
}
