//! The cursor where it does not hold by itself: ids that wrap around, servers that crash, fail over or are restored, tables that
//! are rewritten or gain partitions, transactions that stay open. `stress` holds it against writers.

use std::time::Duration;

use harness::{Database, Function, PostgresOptions};
use serde_json::{Value, json};

use crate::case::{Case, invoke, sync, table};
use crate::stress::wait_for_replay;

const ORDERS: &str =
    "create table orders (id bigint primary key, name text, modified_at timestamptz not null default now());
    create index on orders (modified_at);";

/// `rows` of `public.orders` in an answer, without notes.
#[track_caller]
fn rows(answer: &Value) -> u64 {
    let orders = table(answer, "public.orders");
    assert_eq!(orders.get("notes"), None, "{answer}");
    orders["rows"].as_u64().unwrap()
}

fn notes(answer: &Value) -> String {
    format!("{}{}", answer["notes"], table(answer, "public.orders")["notes"])
}

/// Until the watermark is known: a transaction of unknown age in flight at the first run, be it a session that is just
/// beginning, makes the next one look at every row.
async fn until_audited(function: &Function) {
    loop {
        let answer = invoke(function, &json!({"action": "audit"})).await.answer();
        if table(&answer, "public.orders").get("missed").is_some() {
            return;
        }
    }
}

async fn run(database: &Database, sql: &str) {
    database.admin().await.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_comes_late_is_not_lost() {
    let case = Case::new("late_commit").await;
    case.run(ORDERS).await;
    let function = case.function(&[("CURSOR_SLACK_SECONDS", "5")]).await;
    assert_eq!(rows(&sync(&function).await), 0);
    let late = case.database.admin().await;
    late.batch_execute("begin; insert into orders values (1)").await.unwrap();
    // Far behind, as if the transaction had begun ten minutes ago: its own start holds the watermark, not the slack.
    for id in 2..5 {
        case.run(&format!("insert into orders values ({id})")).await;
        let answer = sync(&function).await;
        assert_eq!(rows(&answer), 1);
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    case.run("insert into orders values (5)").await;
    let answer = sync(&function).await;
    assert_eq!(rows(&answer), 1, "one open transaction delays nothing but its own rows");
    assert!(table(&answer, "public.orders")["hold_back_seconds"].as_f64().unwrap() >= 6.0, "{answer}");
    late.batch_execute("commit").await.unwrap();
    assert_eq!(rows(&sync(&function).await), 1);
    assert_eq!(case.counts("public.orders", "id"), (1..=5).map(|id| (id, 1)).collect());
    let receipt = &case.manifests()[4]["receipt"];
    assert_eq!(
        (&receipt["window"], &receipt["scope"], &receipt["fence"]),
        (&json!("range"), &json!("whole"), &json!("passed"))
    );
}

#[tokio::test]
async fn a_hundred_thousand_rows_of_one_time_come_once_in_pages_of_a_thousand() {
    let case = Case::new("one_time").await;
    case.run(ORDERS).await;
    let function = case.function(&[("COMPRESSION", "none")]).await;
    assert_eq!(rows(&sync(&function).await), 0);
    case.run("insert into orders select i from generate_series(1, 100000) i; analyze orders").await;
    let mut calls = 0;
    loop {
        let answer = invoke(&function, &json!({"limits": {"max_rows": 1000}})).await.answer();
        calls += 1;
        if answer["has_more"] == false {
            break;
        }
    }
    assert!(calls >= 100, "{calls}");
    let counts = case.counts("public.orders", "id");
    assert_eq!((counts.len(), counts.values().max()), (100_000, Some(&1)));
}

#[tokio::test]
async fn an_audit_delivers_and_counts_what_the_cursor_column_would_have_missed() {
    let case = Case::new("audit").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i from generate_series(1, 50) i").await;
    let function = case.function(&[]).await;
    until_audited(&function).await;
    // An update that leaves the time alone, a load of old rows, and one as it should be.
    let old = "now() - interval '1 day'";
    case.run(&format!(
        "update orders set modified_at = {old} where id = 1; insert into orders values (60, 'x', {old})"
    ))
    .await;
    assert_eq!(rows(&sync(&function).await), 0);
    case.run(&format!(
        "insert into orders values (61), (62); update orders set modified_at = {old} where id = 2"
    ))
    .await;
    let answer = invoke(&function, &json!({"action": "audit"})).await.answer();
    let orders = table(&answer, "public.orders");
    // Those that a sync has passed over, too.
    assert_eq!((&orders["rows"], &orders["missed"]), (&json!(5), &json!(3)), "{answer}");
    assert_eq!(case.manifests().last().unwrap()["receipt"]["rows_missed"], 3);
    let answer = invoke(&function, &json!({"action": "audit"})).await.answer();
    assert_eq!(
        (&table(&answer, "public.orders")["rows"], &table(&answer, "public.orders")["missed"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(case.newest("public.orders", "id").len(), 53);
}

#[tokio::test]
async fn every_nth_run_looks_at_every_row_where_that_is_configured() {
    let case = Case::new("audit_every").await;
    case.run(ORDERS).await;
    let function = case.function(&[("AUDIT_EVERY", "3")]).await;
    until_audited(&function).await;
    let mut audits = Vec::new();
    for _ in 0..8 {
        audits.push(table(&sync(&function).await, "public.orders").get("missed").is_some());
    }
    assert_eq!(audits, [false, false, true, false, false, true, false, false]);
}

#[tokio::test]
async fn a_rewritten_table_is_looked_at_whole_and_delivered_as_far_as_its_rows_changed() {
    let case = Case::new("rewritten").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i, 'n', '2026-01-01Z' from generate_series(1, 50) i").await;
    let function = case.function(&[]).await;
    assert_eq!(rows(&sync(&function).await), 50);
    // The same rows in another file.
    case.run("vacuum full orders").await;
    let answer = sync(&function).await;
    assert!(notes(&answer).contains("rewritten"), "{answer}");
    assert_eq!(table(&answer, "public.orders")["rows"], 0);
    // Every row has changed, and no row's time.
    case.run("alter table orders alter name type int using 7").await;
    let answer = sync(&function).await;
    assert_eq!(table(&answer, "public.orders")["rows"], 50);
    assert_eq!(case.newest("public.orders", "id")["50"]["name"], 7);
    case.run("truncate orders; insert into orders values (99, 1, '2026-01-01Z')").await;
    assert_eq!(table(&sync(&function).await, "public.orders")["rows"], 1);
    assert_eq!(rows(&sync(&function).await), 0);
}

#[tokio::test]
async fn a_partition_that_is_attached_is_delivered_whole() {
    let case = Case::new("attached").await;
    case.run(
        "create table orders (id bigint, modified_at timestamptz, primary key (id)) partition by range (id)",
    )
    .await;
    case.run("create table orders_1 partition of orders for values from (0) to (100); create index on orders (modified_at)").await;
    case.run("insert into orders select i, '2026-01-01Z' from generate_series(1, 50) i").await;
    // Loaded long before it is attached: its times and its ids are old.
    case.run("create table later (id bigint primary key, modified_at timestamptz); insert into later select i, '2026-01-01Z' from generate_series(100, 149) i").await;
    let function = case.function(&[("TABLES", "orders")]).await;
    assert_eq!(rows(&sync(&function).await), 50);
    case.run("alter table orders attach partition later for values from (100) to (200)").await;
    // SELECT on the root is enough.
    case.run(&format!("revoke all on later from {}", case.database.user)).await;
    let answer = sync(&function).await;
    assert!(notes(&answer).contains("new partition"), "{answer}");
    assert_eq!(table(&answer, "public.orders")["rows"], 50);
    case.run("alter table orders detach partition orders_1; insert into orders values (150, now())").await;
    assert_eq!(rows(&sync(&function).await), 1);
    assert_eq!(case.counts("public.orders", "id").values().max(), Some(&1));
}

#[tokio::test]
async fn a_partitioned_table_is_paged_leaf_by_leaf() {
    let case = Case::new("leaves").await;
    case.run(
        "create table orders (id bigint, modified_at timestamptz, primary key (id)) partition by hash (id)",
    )
    .await;
    for i in 0..4 {
        case.run(&format!(
            "create table orders_{i} partition of orders for values with (modulus 4, remainder {i})"
        ))
        .await;
    }
    case.run(&format!("revoke all on orders_2 from {}", case.database.user)).await;
    case.run("insert into orders select i, '2026-01-01Z' from generate_series(1, 3000) i").await;
    let function = case.function(&[("TABLES", "orders")]).await;
    while invoke(&function, &json!({"limits": {"max_rows": 290}})).await.answer()["has_more"] == true {}
    assert_eq!(case.counts("public.orders", "id"), (1..=3000).map(|id| (id, 1)).collect());
}

#[tokio::test]
async fn a_row_that_is_updated_all_the_time_arrives_although_the_table_is_read_in_pages() {
    let case = Case::new("hot_row").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i from generate_series(1, 2000) i").await;
    let function = case.function(&[]).await;
    let hot = async {
        loop {
            case.run("update orders set name = clock_timestamp()::text, modified_at = now() where id = 1000")
                .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let paged = async {
        while invoke(&function, &json!({"limits": {"max_rows": 300}})).await.answer()["has_more"] == true {}
    };
    tokio::select! {
        () = hot => {}
        done = tokio::time::timeout(Duration::from_secs(50), paged) => done.expect("it ends"),
    }
    let counts = case.counts("public.orders", "id");
    assert_eq!(counts.len(), 2000);
    assert!(
        counts.iter().all(|(id, count)| *count == 1 || *id == 1000),
        "only the one that changed came again"
    );
}

#[tokio::test]
async fn ids_cross_two_to_the_thirty_second_and_every_row_comes_once() {
    let case = Case::new("wraparound").await;
    let mut postgres = case.stack.start_postgres(PostgresOptions::default()).await;
    let database = postgres.address.database("wraparound").await;
    run(&database, ORDERS).await;
    for name in ["template1", "postgres", &database.name] {
        postgres.address.admin(name).await.batch_execute("vacuum freeze").await.unwrap();
    }
    let admin = postgres.address.admin("postgres").await;
    admin
        .batch_execute("update pg_database set datallowconn = true where datname = 'template0'")
        .await
        .unwrap();
    postgres.address.admin("template0").await.batch_execute("vacuum freeze").await.unwrap();
    postgres.stop().await;
    postgres.set_next_xid((1 << 32) - 300).await;
    postgres.start_again().await;
    let (configuration, _bastion) = case.configuration_of(&database, postgres.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    let admin = database.admin().await;
    let (long, mut id) = (database.admin().await, 0);
    for round in 0..12 {
        for _ in 0..50 {
            id += 1;
            admin.batch_execute(&format!("insert into orders values ({id})")).await.unwrap();
        }
        match round {
            // Open across the border, with a subtransaction on either side.
            3 => long
                .batch_execute(
                    "begin; insert into orders values (-1); savepoint a; insert into orders values (-2)",
                )
                .await
                .unwrap(),
            8 => long.batch_execute("savepoint b; insert into orders values (-3); commit").await.unwrap(),
            _ => {}
        }
        let event = if round % 2 == 0 { json!({}) } else { json!({"limits": {"max_rows": 20}}) };
        while invoke(&function, &event).await.answer()["has_more"] == true {}
    }
    let next: i64 = admin
        .query_one("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint", &[])
        .await
        .unwrap()
        .get(0);
    assert!(next > 1 << 32, "{next}");
    let expected = (1..=id).chain([-1, -2, -3]).map(|id| (id, 1)).collect();
    assert_eq!(case.counts("public.orders", "id"), expected);
}

#[tokio::test]
async fn a_standby_that_is_promoted_is_read_on_from_its_cursor_column() {
    let case = Case::new("promoted").await;
    let mut primary = case.stack.start_postgres(PostgresOptions::default()).await;
    let database = primary.address.database("promoted").await;
    run(&database, ORDERS).await;
    run(&database, "insert into orders select i from generate_series(1, 50) i").await;
    let standby = primary.start_standby().await;
    let (configuration, _primary_bastion) = case.configuration_of(&database, primary.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    assert_eq!(rows(&sync(&function).await), 50);
    run(&database, "insert into orders values (51)").await;
    wait_for_replay(&database.admin().await).await;

    // Read as a standby first: by ids alone.
    let (configuration, _standby_bastion) = case.configuration_of(&database, standby.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    assert_eq!(rows(&sync(&function).await), 1);
    primary.crash();
    let there = standby.address.admin(&database.name).await;
    there.batch_execute("select pg_promote()").await.unwrap();
    there.batch_execute("insert into orders values (52)").await.unwrap();
    let answer = sync(&function).await;
    assert!(notes(&answer).contains("another server has taken over"), "{answer}");
    assert_eq!(case.newest("public.orders", "id").len(), 52);
    there.batch_execute("insert into orders values (53)").await.unwrap();
    assert_eq!(rows(&sync(&function).await), 1, "and nothing of it again");
}

#[tokio::test]
async fn a_standby_behind_what_was_read_is_waited_for() {
    let case = Case::new("behind").await;
    let primary = case.stack.start_postgres(PostgresOptions::default()).await;
    let database = primary.address.database("behind").await;
    run(&database, ORDERS).await;
    let standby = primary.start_standby().await;
    let there = standby.address.admin(&database.name).await;
    wait_for_replay(&database.admin().await).await;
    there.batch_execute("select pg_wal_replay_pause()").await.unwrap();
    run(&database, "insert into orders values (1); checkpoint").await;
    let (configuration, _primary_bastion) = case.configuration_of(&database, primary.address.port).await;
    assert_eq!(rows(&sync(&case.function_for(&configuration, &[]).await).await), 1);
    let (configuration, _standby_bastion) = case.configuration_of(&database, standby.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    let error = invoke(&function, &json!({})).await.error();
    assert_eq!(error.error_type, "DatabaseUnavailable", "{}", error.message);
    assert!(error.message.contains("has not replayed yet"), "{}", error.message);
    there.batch_execute("select pg_wal_replay_resume()").await.unwrap();
    wait_for_replay(&database.admin().await).await;
    assert_eq!(rows(&sync(&function).await), 0);
}

#[tokio::test]
async fn a_restored_database_is_refused_or_read_anew_as_configured() {
    let case = Case::new("restored").await;
    let server = case.stack.postgres.admin("postgres").await;
    let database = case.database.clone();
    case.run(ORDERS).await;
    case.run("insert into orders values (1), (2)").await;
    let function = case.function(&[("TABLES", "orders")]).await;
    assert_eq!(rows(&sync(&function).await), 2);
    // A dump restored under the same name.
    drop(function);
    let name = &database.name;
    server.batch_execute(&format!("drop database \"{name}\" with (force)")).await.unwrap();
    server.batch_execute(&format!("create database \"{name}\"")).await.unwrap();
    let user = &database.user;
    run(&database, &format!("{ORDERS} grant select on all tables in schema public to \"{user}\"; insert into orders values (1)")).await;
    let error = invoke(&case.function(&[("TABLES", "orders")]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "CursorInvalid");
    assert!(error.message.contains("ON_NEW_DATABASE=resync"), "{}", error.message);
    let function = case.function(&[("TABLES", "orders"), ("ON_NEW_DATABASE", "resync")]).await;
    let answer = sync(&function).await;
    assert_eq!(
        (&table(&answer, "public.orders")["rows"], &table(&answer, "public.orders")["seq"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(rows(&sync(&function).await), 0);
}

#[tokio::test]
async fn a_server_restored_to_an_earlier_time_is_noticed() {
    let case = Case::new("went_back").await;
    let mut primary = case.stack.start_postgres(PostgresOptions::default()).await;
    let database = primary.address.database("went_back").await;
    run(&database, ORDERS).await;
    // Its copy, taken now, is brought up later under the same address.
    let mut copy = primary.start_standby().await;
    copy.crash();
    run(&database, "insert into orders select i from generate_series(1, 50) i").await;
    let (configuration, _bastion) = case.configuration_of(&database, primary.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    assert_eq!(rows(&sync(&function).await), 50);
    primary.crash();
    let there = copy.start_again().await;
    there.batch_execute("select pg_promote()").await.unwrap();
    let (configuration, _bastion) = case.configuration_of(&database, copy.address.port).await;
    let error = invoke(&case.function_for(&configuration, &[]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "CursorInvalid", "{}", error.message);
    assert!(error.message.contains("at an earlier time"), "{}", error.message);
}

#[tokio::test]
async fn what_a_crash_takes_back_from_asynchronous_commits_had_not_been_delivered_as_safe() {
    let case = Case::new("async_crash").await;
    let config = vec!["synchronous_commit = off".into(), "wal_writer_delay = 10s".into()];
    let mut postgres =
        case.stack.start_postgres(PostgresOptions { config, ..PostgresOptions::default() }).await;
    let database = postgres.address.database("async_crash").await;
    run(&database, ORDERS).await;
    run(&database, "insert into orders select i, 'before' from generate_series(1, 20) i").await;
    run(&database, "checkpoint").await;
    let (configuration, _bastion) = case.configuration_of(&database, postgres.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    assert_eq!(rows(&sync(&function).await), 20);
    let fence = |case: &Case| case.checkpoint()["state"]["tables"]["public.orders"]["fence"].clone();
    assert_eq!(fence(&case), "passed");
    // Committed, seen, and never written.
    run(&database, "update orders set name = 'lost', modified_at = now() where id = 1; insert into orders values (21, 'lost')").await;
    assert_eq!(rows(&sync(&function).await), 2);
    let was_in_time = fence(&case) == "passed";
    postgres.crash();
    postgres.start_again().await;
    // The ids are given out again.
    run(&database, "set synchronous_commit = on; insert into orders values (22, 'after'), (23, 'after')")
        .await;
    let answer = sync(&function).await;
    let lost = database
        .admin()
        .await
        .query_one("select count(*) from orders where name = 'lost'", &[])
        .await
        .unwrap();
    assert!(was_in_time || notes(&answer).contains("restarted"), "{answer}");
    assert!(!was_in_time || lost.get::<_, i64>(0) == 2, "the fence said that it was on disk");
    let newest = case.newest("public.orders", "id");
    for row in database.admin().await.query("select id, name from orders", &[]).await.unwrap() {
        assert_eq!(newest[&row.get::<_, i64>(0).to_string()]["name"], row.get::<_, String>(1));
    }
}

#[tokio::test]
async fn a_role_with_some_columns_only_reads_those() {
    let case = Case::new("columns_only").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i from generate_series(1, 5) i; alter table orders add secret text")
        .await;
    let user = &case.database.user;
    case.run(&format!("revoke all on orders from {user}; grant select (id, name, modified_at, xmin, ctid, tableoid) on orders to {user}")).await;
    let document = json!({"tables": {"orders": {"exclude": ["secret"]}}});
    let uri = case.put_document(&document);
    let function = case.function(&[("TABLES", ""), ("CONFIG_URI", &uri)]).await;
    assert_eq!(rows(&sync(&function).await), 5);
    case.run("insert into orders values (6)").await;
    assert_eq!(rows(&sync(&function).await), 1);
}

#[tokio::test]
async fn a_state_that_a_caller_holds_stays_small_and_loses_nothing_for_it() {
    let case = Case::new("thinned").await;
    case.run(ORDERS).await;
    let function = case.function(&[]).await;
    let call = |state: Value| {
        let function = &function;
        async move { invoke(function, &json!({"state": state})).await.answer() }
    };
    let mut answer = call(json!({})).await;
    let open = case.database.admin().await;
    open.batch_execute("begin; insert into orders values (-1)").await.unwrap();
    // Every second id is of a transaction that writes elsewhere, so that there are no runs: two bytes and more for each.
    case.run("create table elsewhere (id int)").await;
    case.run(
        "do $$ begin for i in 1..60000 loop begin insert into orders values (i); exception when others then null; end; \
         begin insert into elsewhere values (i); exception when others then null; end; end loop; end $$",
    )
    .await;
    answer = call(answer["state"].clone()).await;
    assert_eq!(table(&answer, "public.orders")["rows"], 60_000);
    assert!(answer["state"].to_string().len() < 110_000, "{}", answer["state"].to_string().len());
    assert!(notes(&answer).contains("open for very long"), "{}", notes(&answer));
    case.run("insert into orders values (60001)").await;
    open.batch_execute("commit").await.unwrap();
    call(answer["state"].clone()).await;
    let counts = case.counts("public.orders", "id");
    assert_eq!((counts.len(), counts[&-1], counts[&60001]), (60_002, 1, 1));
}

#[tokio::test]
async fn a_run_without_changes_reads_no_more_than_the_rows_of_the_slack() {
    let case = Case::new("no_change").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i, 'n', now() - i * interval '1 s' from generate_series(1, 100000) i; analyze orders").await;
    let function = case.function(&[]).await;
    assert_eq!(rows(&sync(&function).await), 100_000);
    assert_eq!(rows(&sync(&function).await), 0);
    let read = async || {
        let sql = "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'orders'";
        case.run("select pg_stat_clear_snapshot()").await;
        case.admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    case.run("select pg_stat_reset()").await;
    assert_eq!(rows(&sync(&function).await), 0);
    case.assert_nothing_is_left().await;
    assert!(read().await <= 310, "{} rows were read, and the slack has 300", read().await);
}

#[tokio::test]
async fn a_crash_that_the_postmaster_survives_is_noticed() {
    let case = Case::new("backend_killed").await;
    let config = vec!["synchronous_commit = off".into(), "wal_writer_delay = 10s".into()];
    let postgres = case.stack.start_postgres(PostgresOptions { config, ..PostgresOptions::default() }).await;
    let database = postgres.address.database("backend_killed").await;
    run(&database, ORDERS).await;
    run(&database, "checkpoint").await;
    let (configuration, _bastion) = case.configuration_of(&database, postgres.address.port).await;
    let function = case.function_for(&configuration, &[]).await;
    sync(&function).await;
    run(&database, "insert into orders values (1, 'lost')").await;
    assert_eq!(rows(&sync(&function).await), 1);
    let was_in_time = case.checkpoint()["state"]["tables"]["public.orders"]["fence"] == "passed";
    let victim = database.admin().await;
    let pid: i32 = victim.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    // Until it has recovered.
    while victim.simple_query("select 1").await.is_ok() {}
    let answer = loop {
        match invoke(&function, &json!({})).await.outcome {
            Ok(answer) => break answer,
            Err(error) => assert!(
                error.error_type.starts_with("Database") || error.error_type == "TunnelLost",
                "{error:?}"
            ),
        }
    };
    assert!(was_in_time || notes(&answer).contains("restarted"), "{answer}");
}

#[tokio::test]
async fn what_was_read_before_a_fault_is_kept_and_not_read_again() {
    let case = Case::new("kept").await;
    case.run(ORDERS).await;
    case.run("insert into orders select i, case when i = 130000 then repeat('x', 5000) else 'n' end from generate_series(1, 130000) i").await;
    let function = case.function(&[("MAX_ROW_BYTES", "2048")]).await;
    let answer = invoke(&function, &json!({"limits": {"max_rows": 100_000}})).await.answer();
    assert_eq!((rows(&answer), &answer["has_more"]), (100_000, &json!(true)));
    let error = invoke(&function, &json!({})).await.error();
    assert_eq!(error.error_type, "RowTooLarge");
    assert!(
        error.message.contains("public.orders") || error.message.contains("orders ctid"),
        "{}",
        error.message
    );
    assert_eq!(case.counts("public.orders", "id").len(), 100_000);
    case.run("update orders set name = 'short', modified_at = now() where id = 130000").await;
    assert_eq!(rows(&sync(&function).await), 30_000);
    let counts = case.counts("public.orders", "id");
    assert_eq!((counts.len(), counts.values().max()), (130_000, Some(&1)));
}

#[tokio::test]
async fn a_partitioned_table_without_partitions_is_empty() {
    let case = Case::new("no_partitions").await;
    case.run(
        "create table orders (id bigint, modified_at timestamptz, primary key (id)) partition by range (id)",
    )
    .await;
    let function = case.function(&[("TABLES", "orders")]).await;
    assert_eq!(rows(&sync(&function).await), 0);
    case.run("create table orders_1 partition of orders for values from (0) to (100); insert into orders values (1, now())").await;
    assert_eq!(table(&sync(&function).await, "public.orders")["rows"], 1);
}

#[tokio::test]
async fn an_audit_waits_for_the_window_that_is_open_and_then_looks_at_every_row() {
    let case = Case::new("audit_pending").await;
    case.run(ORDERS).await;
    let function = case.function(&[]).await;
    until_audited(&function).await;
    case.run("insert into orders select i from generate_series(1, 100) i").await;
    let answer = invoke(&function, &json!({"limits": {"max_rows": 30}})).await.answer();
    assert_eq!(answer["has_more"], true);
    let answer = invoke(&function, &json!({"action": "audit"})).await.answer();
    let orders = table(&answer, "public.orders");
    assert_eq!((&orders["rows"], &orders["missed"]), (&json!(70), &json!(0)), "{answer}");
}

#[tokio::test]
async fn tables_that_inherit_and_times_of_any_kind_are_read() {
    let case = Case::new("oddities").await;
    case.run("create domain moment as timestamptz; create table orders (id bigint primary key, modified_at moment not null)").await;
    case.run("create index on orders (modified_at); insert into orders values (1, '4713-01-01 BC'), (2, '200000-01-01'), (3, now())").await;
    case.run("create table child () inherits (orders); insert into child values (1, '2026-01-01Z')").await;
    let function = case.function(&[("TABLES", "orders")]).await;
    assert_eq!(rows(&sync(&function).await), 4);
    case.run("insert into child values (2, '2026-01-01Z'); insert into orders values (4, '100000-01-01')")
        .await;
    assert_eq!(rows(&sync(&function).await), 2);
    assert_eq!(rows(&sync(&function).await), 0);
}
