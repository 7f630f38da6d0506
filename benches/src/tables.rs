//! The tables that are read, and the comparison of what came out with what is in them.

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures_util::SinkExt;
use harness::Database;
use std::io::Read;
use tokio_postgres::Client;

/// A table of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) rows: u64,
}

pub(crate) const USERS: Table = Table { name: "users", rows: 2_000_000 };
pub(crate) const WIDE: Table = Table { name: "wide", rows: 500_000 };
/// Rows of nearly as many bytes as they may have.
pub(crate) const LARGE: Table = Table { name: "large", rows: 40 };
/// Of `part_01` to `part_16`.
pub(crate) const PART_COUNT: u64 = 16;
pub(crate) const PART_ROWS: u64 = 100_000;

/// Makes and fills the tables: `users` as the Python example has it, 20 columns of everyday types, sixteen of them, and large
/// rows.
pub(crate) async fn create(database: &Database) {
    let admin = database.admin().await;
    let (users, wide, large) = (USERS.rows, WIDE.rows, LARGE.rows);
    for statement in [
        "create table users (id text primary key, name text not null, modified_at timestamptz not null)".to_owned(),
        format!(
            "insert into users select md5(i::text)::uuid::text, 'Name ' || i % 1000 || ' Surname ' || i,
             timestamptz '2025-01-01 00:00Z' + i * interval '13.123457 s' from generate_series(1, {users}) i"
        ),
        "create index on users (modified_at)".to_owned(),
        "create table wide (id bigint primary key, account uuid, name text, email text, city text, status text,
         quantity int, visits bigint, price numeric(12,2), tax numeric(12,4), ratio float8, score float4, is_active bool,
         created_at timestamptz, modified_at timestamptz not null, opened timestamp, born date, attributes jsonb,
         tags text[], note text)"
            .to_owned(),
        format!(
            "insert into wide select i, md5(i::text)::uuid, 'Name ' || i % 5000, 'user' || i || '@example.com',
             (array['Paris', 'Kraków', 'São Paulo', 'Springfield', '東京'])[i % 5 + 1],
             (array['new', 'active', 'blocked'])[i % 3 + 1], i % 1000, i * 7919::bigint, (i % 1000000) / 100.0, (i % 777777) / 10000.0,
             i / 7.0, i / 3.0, i % 2 = 0, timestamptz '2020-01-01 00:00Z' + i * interval '61 s',
             timestamptz '2025-01-01 00:00Z' + i * interval '53.123457 s', timestamp '2020-01-01' + i * interval '59 s',
             date '1950-01-01' + i % 20000, jsonb_build_object('plan', 'basic', 'seats', i % 50),
             array['a' || i % 10, 'b'], case when i % 3 = 0 then null else 'Said \"hello\" to number ' || i end
             from generate_series(1, {wide}) i"
        ),
        "create index on wide (modified_at)".to_owned(),
        "create table large (id bigint primary key, modified_at timestamptz not null, body text not null)".to_owned(),
        "alter table large alter body set storage external".to_owned(),
        format!(
            "insert into large select i, now(), md5(i::text) || body from generate_series(1, {large}) i,
             (select string_agg(md5(i::text), '') body from generate_series(1, 250000) i) b"
        ),
    ] {
        execute(&admin, &statement).await;
    }
    for part in 1..=PART_COUNT {
        let name = format!("part_{part:02}");
        execute(&admin, &format!("create table {name} (like wide including indexes)")).await;
        execute(&admin, &format!("insert into {name} select * from wide where id <= {PART_ROWS}")).await;
    }
    execute(&admin, "vacuum analyze").await;
    execute(&admin, "checkpoint").await;
}

/// Changes so many rows, spread over the table: the same at each call.
pub(crate) async fn change(admin: &Client, table: Table, rows: u64) {
    let (name, step) = (table.name, table.rows / rows);
    let id =
        if table == USERS { format!("md5((i * {step})::text)::uuid::text") } else { format!("i * {step}") };
    execute(
        admin,
        &format!(
            "update {name} set modified_at = clock_timestamp() where id in (select {id} from generate_series(1, {rows}) i)"
        ),
    )
    .await;
    execute(admin, &format!("vacuum {name}")).await;
}

/// How many rows there are in one of `source` (a query of the table) and the objects (NDJSON, plain or gzip) and not in the other. PostgreSQL
/// reads the objects back and compares.
pub(crate) async fn differences(admin: &Client, table: &str, source: &str, objects: &[Vec<u8>]) -> i64 {
    execute(admin, "drop table if exists lines").await;
    execute(admin, "create unlogged table lines (line text)").await;
    let sql = "copy lines from stdin (format csv, quote e'\\x01', delimiter e'\\x02')";
    let sink = admin.copy_in(sql).await.expect("a COPY begins");
    let mut sink = std::pin::pin!(sink);
    for object in objects {
        let mut text = Vec::new();
        if object.starts_with(&[0x1f, 0x8b]) {
            MultiGzDecoder::new(object.as_slice()).read_to_end(&mut text).expect("gzip");
        } else {
            text.clone_from(object);
        }
        for chunk in text.chunks(1 << 20) {
            sink.send(Bytes::copy_from_slice(chunk)).await.expect("the server takes it");
        }
    }
    sink.finish().await.expect("the COPY ends");
    let read = format!("select (jsonb_populate_record(null::{table}, line::jsonb)).* from lines");
    // jsonb has an equality, and all the other types of these tables have, too.
    let row = admin
        .query_one(
            &format!(
                "with read as materialized ({read}) select (select count(*) from (select * from read except all {source}) a)
                 + (select count(*) from ({source} except all select * from read) b)"
            ),
            &[],
        )
        .await
        .expect("the comparison runs");
    execute(admin, "drop table lines").await;
    row.get(0)
}

pub(crate) async fn execute(admin: &Client, sql: &str) {
    admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}
