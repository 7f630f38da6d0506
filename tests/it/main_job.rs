//! The main job: first, incremental and no-change syncs, pages, limits, shapes of tables.

use std::time::Duration;

use harness::{BastionOptions, Proxy};
use serde_json::{Value, json};

use crate::case::{Case, invoke, sync, table};

#[tokio::test]
async fn first_incremental_and_no_change_syncs_are_right_row_by_row() {
    let case = Case::with_users("main_job", 10_000).await;
    let function = case.function(&[]).await;

    let first = sync(&function).await;
    assert_eq!(first["failed"], 0);
    assert_eq!(first["has_more"], false);
    let users = table(&first, "public.sample_users");
    assert_eq!((&users["seq"], &users["rows"], &users["objects"]), (&json!(1), &json!(10_000), &json!(1)));
    case.assert_users_are_complete().await;

    case.run(
        "update sample_users set name = 'new', modified_at = clock_timestamp() where id in ('u1', 'u77')",
    )
    .await;
    case.run(
        "insert into sample_users values ('v1', null), ('v2', 'quo\"te\\ and \u{1F600} and \n newline')",
    )
    .await;
    let second = sync(&function).await;
    let users = table(&second, "public.sample_users");
    assert_eq!((&users["seq"], &users["rows"]), (&json!(2), &json!(4)));
    case.assert_users_are_complete().await;

    let before: Vec<String> = case.objects("").into_iter().map(|(key, _)| key).collect();
    let third = sync(&function).await;
    let users = table(&third, "public.sample_users");
    assert_eq!((&users["seq"], &users["rows"], &users["manifest"]), (&json!(2), &json!(0), &Value::Null));
    let after: Vec<String> = case.objects("").into_iter().map(|(key, _)| key).collect();
    assert_eq!(before, after, "a run that finds nothing writes nothing but the checkpoint");
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_layout_in_s3_is_as_documented() {
    let case = Case::with_users("layout", 3).await;
    let answer = sync(&case.function(&[]).await).await;
    let keys: Vec<String> = case.objects("").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert_eq!(keys[0], "_state/checkpoint.json");
    // Today's or, around midnight, yesterday's.
    let days = [0, 1]
        .map(|ago| (chrono::Utc::now() - Duration::from_secs(ago * 86_400)).format("%Y-%m-%d").to_string());
    let key = |day: &String| format!("data/public.sample_users/sync_date={day}/0000000001-00000.ndjson.gz");
    assert!(days.iter().any(|day| keys[1] == key(day)), "{keys:?}");
    assert_eq!(keys[2], "manifests/public.sample_users/0000000001.json");
    assert!(keys[3].starts_with("schemas/public.sample_users/"), "{keys:?}");

    let rows = case.rows("public.sample_users");
    assert_eq!(rows[0].as_object().unwrap().keys().collect::<Vec<_>>().len(), 4);
    assert_eq!(rows[0]["_seq"], 1);

    let manifest = &case.manifests()[0];
    assert_eq!(manifest["entries"][0]["mandatory"], true);
    assert!(manifest["entries"][0]["url"].as_str().unwrap().ends_with(&keys[1]));
    let (_, body) = &case.objects("data/")[0];
    assert_eq!(manifest["entries"][0]["meta"]["content_length"], body.len());
    let hash: String = {
        use sha2::Digest;
        sha2::Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(manifest["objects"][0]["sha256"], hash);
    assert_eq!(manifest["rows"], 3);
    assert!(!manifest.to_string().contains("name 1"), "a manifest holds no row value");

    let schema: Value = serde_json::from_slice(&case.objects("schemas/")[0].1).unwrap();
    assert_eq!(schema["primary_key"], json!(["id"]));
    assert_eq!(
        schema["columns"][2],
        json!({"name": "modified_at", "type": "timestamp with time zone", "nullable": false})
    );

    let checkpoint = case.checkpoint();
    assert_eq!(checkpoint["state"], answer["state"]);
    assert_eq!(checkpoint.get("pending"), None);
}

#[tokio::test]
async fn rows_sharing_a_timestamp_are_not_skipped_across_pages_or_runs() {
    let case = Case::new("ties").await;
    case.run("create table ties (a int, b text, modified_at timestamptz not null, primary key (b, a))").await;
    case.run("insert into ties select i, 'k' || i % 7, '2026-01-01' from generate_series(1, 2500) i").await;
    let function = case.function(&[]).await;
    let mut rows = 0;
    for run in 1..20 {
        let answer = invoke(&function, &json!({"limits": {"max_rows": 400}})).await.answer();
        rows += table(&answer, "public.ties")["rows"].as_u64().unwrap();
        assert_eq!(answer["has_more"].as_bool().unwrap(), rows < 2500, "after {rows} rows in run {run}");
        if !answer["has_more"].as_bool().unwrap() {
            break;
        }
    }
    assert_eq!(rows, 2500);
    let mut keys: Vec<String> =
        case.rows("public.ties").iter().map(|row| format!("{}{}", row["a"], row["b"])).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2500, "each row once");
}

#[tokio::test]
async fn null_and_infinite_and_future_cursor_values_neither_stop_nor_poison() {
    let case = Case::new("odd_times").await;
    case.run("create table odd (id int primary key, updated_at timestamptz)").await;
    case.run(
        "insert into odd values (1, null), (2, 'infinity'), (3, '-infinity'), (4, '2999-01-01'), (5, '2020-01-01Z')",
    )
    .await;
    let function = case.function(&[]).await;
    let answer = sync(&function).await;
    assert_eq!(table(&answer, "public.odd")["rows"], 5);
    for indexed in [false, true] {
        if indexed {
            case.run("create index on odd (updated_at)").await;
        }
        case.run("delete from odd where id > 5; insert into odd values (6, now()), (7, null), (8, '-infinity'), (9, 'infinity'), (10, '2999-01-01')").await;
        assert_eq!(table(&sync(&function).await, "public.odd")["rows"], 5, "indexed: {indexed}");
        case.run("update odd set updated_at = null where id = 1").await;
        assert_eq!(table(&sync(&function).await, "public.odd")["rows"], 1, "indexed: {indexed}");
        assert_eq!(table(&sync(&function).await, "public.odd")["rows"], 0, "indexed: {indexed}");
    }
    let rows = case.newest("public.odd", "id");
    let time = |id: &str| &rows[id]["updated_at"];
    assert_eq!([time("2"), time("3"), time("1")], [&json!("infinity"), &json!("-infinity"), &Value::Null]);
}

#[tokio::test]
async fn columns_without_a_time_zone_and_dates_serve_as_cursors() {
    let case = Case::new("zoneless").await;
    case.run("create table stamps (id int primary key, modified_at timestamp); create table days (id int primary key, modified_at date)").await;
    case.run("insert into stamps select i, (now() at time zone 'UTC') - i * interval '1 min' from generate_series(1, 50) i").await;
    case.run("insert into days values (1, current_date - 3), (2, current_date - 2), (3, current_date + 1)")
        .await;
    let function = case.function(&[]).await;
    let answer = sync(&function).await;
    assert_eq!(
        (&table(&answer, "public.stamps")["rows"], &table(&answer, "public.days")["rows"]),
        (&json!(50), &json!(3))
    );
    case.run("create index on stamps (modified_at); create index on days (modified_at)").await;
    // Written in the zone that is furthest behind, and a day that has begun only just.
    case.run("insert into stamps values (51, now() at time zone '+12'); insert into days values (4, current_date - 1)").await;
    let answer = sync(&function).await;
    assert_eq!(
        (&table(&answer, "public.stamps")["rows"], &table(&answer, "public.days")["rows"]),
        (&json!(1), &json!(1))
    );
    let answer = sync(&function).await;
    assert_eq!(
        (&table(&answer, "public.stamps")["rows"], &table(&answer, "public.days")["rows"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn several_tables_by_pattern_are_independent_of_one_another() {
    let case = Case::with_users("several", 5).await;
    case.run("create table orders (id int primary key, updated_at timestamptz default now()); insert into orders values (1), (2)").await;
    case.run(
        "create table no_key (id int, modified_at timestamptz); create view a_view as select * from orders",
    )
    .await;
    case.run("create table no_cursor (id int primary key)").await;
    case.run("create table denied (id int primary key, modified_at timestamptz); insert into denied values (1, now())").await;
    case.run(&format!("revoke all on denied from {}", case.database.user)).await;
    case.run("create table unasked (id int primary key)").await;
    case.run(&format!("revoke all on unasked from {}", case.database.user)).await;
    // What is named outright must be there for us.
    let function = case.function(&[("TABLES", "public.*,denied")]).await;
    let answer = sync(&function).await;
    assert_eq!(answer["failed"], 1, "{answer}");
    assert_eq!(table(&answer, "public.denied")["error"]["type"], "PermissionDenied");
    assert_eq!(table(&answer, "public.sample_users")["rows"], 5);
    assert_eq!(table(&answer, "public.orders")["rows"], 2);
    assert_eq!(
        answer["tables"].as_array().unwrap().len(),
        4,
        "a pattern skips what cannot be used: {answer}"
    );
    let logs = function.logs().join("\n");
    assert!(logs.contains("public.no_key has no primary key"), "{logs}");
    assert!(logs.contains("grant SELECT on public.unasked"), "{logs}");
}

#[tokio::test]
async fn partitioned_tables_are_read_through_their_root() {
    let case = Case::new("partitions").await;
    case.run("create table events (id int, modified_at timestamptz, primary key (id, modified_at)) partition by range (modified_at)").await;
    case.run("create table events_old partition of events for values from (minvalue) to ('2026-01-01')")
        .await;
    case.run("create table events_new partition of events for values from ('2026-01-01') to (maxvalue)")
        .await;
    case.run("insert into events values (1, '2025-06-01'), (2, '2026-02-01'), (3, '2026-03-01')").await;
    let answer = sync(&case.function(&[]).await).await;
    assert_eq!(answer["tables"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(table(&answer, "public.events")["rows"], 3);
}

#[tokio::test]
async fn a_primary_key_that_includes_other_columns_is_still_the_key() {
    let case = Case::new("include").await;
    case.run("create table t (id int, extra text, modified_at timestamptz, primary key (id) include (extra)); insert into t values (1, null, now())").await;
    let answer = invoke(&case.function(&[]).await, &json!({"action": "check"})).await.answer();
    assert_eq!(answer["tables"][0]["primary_key"], json!(["id"]));
}

#[tokio::test]
async fn keys_of_extension_types_are_paged_in_their_own_order() {
    let case = Case::new("extension_keys").await;
    case.run("create schema ext; create extension citext schema ext; create extension ltree schema public")
        .await;
    case.run(&format!("grant usage on schema ext to {}", case.database.user)).await;
    case.run("create table c (id ext.citext primary key, modified_at timestamptz); insert into c select v, '2026-01-01Z' from unnest(array['a','B','c','D','e','F']) v").await;
    case.run("create table l (id ltree primary key, modified_at timestamptz); insert into l select ('a.' || i)::ltree, '2026-01-01Z' from generate_series(1, 6) i").await;
    let function = case.function(&[]).await;
    let mut rows = 0;
    for _ in 0..20 {
        let answer = invoke(&function, &json!({"limits": {"max_rows": 2}})).await.answer();
        assert_eq!(answer["failed"], 0, "{answer}");
        rows += answer["tables"]
            .as_array()
            .unwrap()
            .iter()
            .map(|table| table["rows"].as_u64().unwrap())
            .sum::<u64>();
        if answer["has_more"] == false {
            break;
        }
    }
    assert_eq!((rows, case.newest("public.c", "id").len(), case.newest("public.l", "id").len()), (12, 6, 6));
}

#[tokio::test]
async fn keys_that_cannot_be_paged_are_refused_before_a_row_is_read() {
    let case = Case::new("array_key").await;
    case.run(
        "create table t (id int[] primary key, modified_at timestamptz); insert into t values ('{1}', now())",
    )
    .await;
    let error = invoke(&case.function(&[("TABLES", "t")]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "SchemaChanged");
    assert!(error.message.contains("column id of the primary key"), "{}", error.message);
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn a_locked_table_is_reported_and_the_others_go_on() {
    let case = Case::with_users("locked", 3).await;
    case.run("create table locked (id int primary key, modified_at timestamptz); insert into locked values (1, now())").await;
    let function = case.function(&[]).await;
    let mut admin = case.database.admin().await;
    let lock = admin.transaction().await.unwrap();
    lock.batch_execute("lock table locked in access exclusive mode").await.unwrap();
    let answer = sync(&function).await;
    assert_eq!(table(&answer, "public.locked")["error"]["type"], "DatabaseUnavailable", "{answer}");
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
    lock.rollback().await.unwrap();
    let answer = sync(&function).await;
    assert_eq!((&answer["failed"], &table(&answer, "public.locked")["rows"]), (&json!(0), &json!(1)));
}

#[tokio::test]
async fn a_long_read_makes_way_for_who_waits_for_its_lock() {
    let case = Case::new("make_way").await;
    // Small on disk, and 200 MB on the wire, which takes some ten seconds at this round trip.
    case.run("create table wide (id int primary key, modified_at timestamptz, body text); insert into wide select i, now(), repeat('x', 100000) from generate_series(1, 2000) i").await;
    let proxy = case.bastion_proxy().await;
    proxy.delay(Duration::from_millis(100), Duration::from_millis(100));
    let function = case.function_for(&case.configuration_through(&proxy), &[("COMPRESSION", "zstd")]).await;
    let event = json!({});
    let run = invoke(&function, &event);
    let other = async {
        let copies =
            "select count(*) from pg_stat_activity where datname = current_database() and query like 'copy%'";
        while case.admin.query_one(copies, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let began = std::time::Instant::now();
        case.run("begin; lock table wide in access exclusive mode; commit").await;
        began.elapsed()
    };
    let (invocation, waited) = tokio::join!(run, other);
    let answer = invocation.answer();
    assert!(waited < Duration::from_secs(7), "it waited for {waited:?}");
    assert_eq!((&answer["failed"], &table(&answer, "public.wide")["rows"]), (&json!(0), &json!(2000)));
    assert_eq!(case.counts("public.wide", "id").values().max(), Some(&1));
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn unusual_names_come_through_exactly() {
    let case = Case::new("names").await;
    case.run(r#"create schema "Weird Sch"; create table "Weird Sch"."Tab.le/""x""" ("Id é" int primary key, "a""b" text, modified_at timestamptz default now())"#).await;
    case.run(r#"insert into "Weird Sch"."Tab.le/""x""" values (1, 'v')"#).await;
    case.run(&format!(r#"grant usage on schema "Weird Sch" to {0}; grant select on all tables in schema "Weird Sch" to {0}"#, case.database.user)).await;
    let name = r#""Weird Sch"."Tab.le/""x""""#;
    let answer = sync(&case.function(&[("TABLES", name)]).await).await;
    assert_eq!(table(&answer, name)["rows"], 1);
    let (key, _) = &case.objects("data/")[0];
    assert!(key.starts_with("data/Weird%20Sch.Tab%2Ele%2F%22x%22/"), "{key}");
    let rows = case.rows("Weird%20Sch.Tab%2Ele%2F%22x%22");
    assert_eq!((&rows[0]["Id é"], &rows[0]["a\"b"]), (&json!(1), &json!("v")));
}

#[tokio::test]
async fn every_compression_gives_the_same_rows_and_large_tables_become_several_objects() {
    let case = Case::with_users("compression", 0).await;
    case.run("insert into sample_users select i::text, string_agg(md5(i::text || j), ''), '2026-01-01' from generate_series(1, 12000) i, generate_series(1, 8) j group by i").await;
    for (compression, extension) in [("gzip", "ndjson.gz"), ("zstd", "ndjson.zst"), ("none", "ndjson")] {
        let prefix = format!("{}/{compression}", case.prefix);
        let uri = case.stack.output_uri(&prefix);
        let function = case
            .function(&[("COMPRESSION", compression), ("TARGET_FILE_MB", "1"), ("OUTPUT_URI", &uri)])
            .await;
        let answer = sync(&function).await;
        let users = table(&answer, "public.sample_users");
        assert_eq!(users["rows"], 12_000);
        assert!(users["objects"].as_u64().unwrap() > 1, "{users}");
        let case = Case { prefix, ..Case::new("compression_view").await };
        assert!(case.objects("data/").iter().all(|(key, _)| key.ends_with(extension)));
        assert_eq!(case.newest("public.sample_users", "id").len(), 12_000);
    }
}

#[tokio::test]
async fn a_column_added_between_runs_is_delivered_and_has_a_schema_file() {
    let case = Case::with_users("add_column", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run("alter table sample_users add column email text; insert into sample_users values ('n', 'x', now(), 'a@b')").await;
    let answer = sync(&function).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 1);
    assert_eq!(case.newest("public.sample_users", "id")["\"n\""]["email"], "a@b");
    assert_eq!(case.objects("schemas/").len(), 2);
}

#[tokio::test]
async fn a_changed_cursor_is_refused_and_resync_reads_the_table_again() {
    let case = Case::with_users("retyped", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run("alter table sample_users alter modified_at type timestamp").await;
    let error = invoke(&function, &json!({})).await.error();
    assert_eq!(error.error_type, "SchemaChanged");
    assert!(error.message.contains(r#""action":"resync""#), "{}", error.message);
    let answer = invoke(&function, &json!({"action": "resync", "tables": ["sample_users"]})).await.answer();
    assert_eq!(answer["ok"], true);
    let answer = sync(&function).await;
    let users = table(&answer, "public.sample_users");
    assert_eq!((&users["rows"], &users["seq"]), (&json!(3), &json!(2)));
}

#[tokio::test]
async fn a_table_swapped_by_rename_is_read_whole() {
    let case = Case::with_users("swapped", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    case.run("alter table sample_users rename to old_users; create table sample_users (like old_users including all); insert into sample_users select * from old_users").await;
    let answer = invoke(&function, &json!({"tables": ["sample_users"]})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
}

#[tokio::test]
async fn large_rows_are_in_memory_one_after_the_other() {
    let case = Case::new("large_rows").await;
    case.run("create table large (id int primary key, modified_at timestamptz not null default now(), body text not null)").await;
    case.run("alter table large alter body set storage external").await;
    // Each third is small; the others have 8 MB, as the default bound just allows.
    case.run("insert into large select i, now(), repeat(md5(i::text), case when i % 3 = 0 then 1 else 250000 end) from generate_series(1, 7) i").await;
    let function = case.function(&[("TABLES", "public.large"), ("COMPRESSION", "gzip")]).await;
    let answer = sync(&function).await;
    assert_eq!((&answer["failed"], &answer["has_more"]), (&json!(0), &json!(false)), "{answer}");
    let rows = case.rows("public.large");
    let lengths: Vec<usize> = rows.iter().map(|row| row["body"].as_str().unwrap().len()).collect();
    let expected: Vec<usize> = (1..=7).map(|i| if i % 3 == 0 { 32 } else { 8_000_000 }).collect();
    assert_eq!(lengths, expected);
    // With all that the libraries would hold it was twice as much; 65 MB unoptimised.
    let peak = function.peak_memory_bytes();
    assert!(peak < 80_000_000, "{peak} bytes");
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_configuration_document_excludes_columns_and_tables_and_sets_a_start() {
    let case = Case::with_users("document", 0).await;
    case.run("alter table sample_users add card_no text; create table audit_log (id int primary key, modified_at timestamptz)").await;
    case.run("insert into sample_users values ('old', 'x', '2019-01-01', '4711'), ('new', 'y', '2026-01-01', '4712')").await;
    case.run("create table plain (id int primary key, modified_at timestamptz); insert into plain values (1, '2026-01-01')").await;
    // Under a pattern a column is left out wherever it is.
    let document = json!({"tables": {"public.*": {"exclude": ["card_no"], "start": "2024-01-01T00:00:00Z"}, "public.audit_*": false}});
    let uri = case.put_document(&document);
    let answer = sync(&case.function(&[("TABLES", ""), ("CONFIG_URI", &uri)]).await).await;
    assert_eq!((answer["tables"].as_array().unwrap().len(), &answer["failed"]), (2, &json!(0)));
    let rows = case.rows("public.sample_users");
    assert_eq!((rows.len(), &rows[0]["id"], rows[0].get("card_no")), (1, &json!("new"), None));
    assert_eq!(case.manifests()[0]["config_hash"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn the_time_limit_ends_the_page_and_the_next_run_goes_on() {
    let case = Case::new("deadline").await;
    case.run("create table slow (id int primary key, modified_at timestamptz not null, body text)").await;
    case.run("insert into slow select i, '2026-01-01'::timestamptz + i * interval '1 s', repeat(md5(i::text), 40) from generate_series(1, 60000) i").await;
    // With a round trip of 200 ms the tunnel's window of 8 MB lets about 20 MB a second through, of 80, and 60 once it is known.
    case.run("create index on slow (modified_at, id)").await;
    let proxy = case.bastion_proxy().await;
    proxy.delay(Duration::from_millis(100), Duration::from_millis(100));
    let configuration = case.configuration_through(&proxy);
    let function = case.function_for(&configuration, &[("COMPRESSION", "none")]).await;
    let (mut runs, mut rows) = (0, 0);
    loop {
        let answer = invoke(&function, &json!({"limits": {"max_seconds": 7}})).await.answer();
        rows += table(&answer, "public.slow")["rows"].as_u64().unwrap();
        runs += 1;
        if answer["has_more"] == false {
            break;
        }
        assert!(runs < 100, "no end");
    }
    assert_eq!(rows, 60_000);
    assert_eq!(case.newest("public.slow", "id").len(), 60_000);
    let peak = function.peak_memory_bytes();
    assert!(peak < 100 << 20, "memory must not grow with the table, and had a peak of {peak} bytes");
    assert!(runs > 1, "the deadline should have cut the sync");
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn no_session_is_left_at_the_bastion_after_success_or_failure() {
    let case = Case::with_users("sessions", 3).await;
    let bastion = case.stack.start_bastion(harness::BastionOptions::default()).await;
    let mut configuration = case.configuration_for(&bastion.address);
    let good = case.function_for(&configuration, &[]).await;
    configuration["db_password"] = json!("not the password");
    let bad = case.function_for(&configuration, &[]).await;
    sync(&good).await;
    invoke(&bad, &json!({})).await.error();
    // Both processes are alive, so that it is their doing.
    for _ in 0..200 {
        if bastion.session_count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} sessions are left", bastion.session_count());
}

#[tokio::test]
async fn an_s3_that_stands_still_for_a_minute_ends_the_page_and_neither_the_tunnel_nor_the_sync() {
    let case = Case::new("stalled_s3").await;
    case.run("create table big (id int primary key, modified_at timestamptz not null, body text)").await;
    case.run(
        "insert into big select i, '2026-01-01Z', repeat(md5(i::text), 60) from generate_series(1, 50000) i",
    )
    .await;
    // A bastion that hangs up on a client which does not answer for six seconds.
    let config = vec!["ClientAliveInterval 3".into(), "ClientAliveCountMax 2".into()];
    let bastion = case.stack.start_bastion(BastionOptions { config, ..BastionOptions::default() }).await;
    let (proxy, url) = case.s3_proxy().await;
    let extra = [("AWS_ENDPOINT_URL_S3", url.as_str()), ("COMPRESSION", "none")];
    let function = case.function_for(&case.configuration_for(&bastion.address), &extra).await;
    let event = json!({});
    let run = function.invoke(&event, Duration::from_secs(180));
    let copies = "select count(*) from pg_stat_activity where datname = current_database() and query like 'copy%' \
                  and application_name like 'bastion-sync/%'";
    let stall = async {
        // The first part has begun.
        while proxy.bytes_up() < 1_000_000 {
            tokio::task::yield_now().await;
        }
        proxy.stall();
        let began = tokio::time::Instant::now();
        // Until the page is given up, which takes 5 s of standing still.
        while case.admin.query_one(copies, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let given_up = began.elapsed();
        tokio::time::sleep_until(began + Duration::from_secs(60)).await;
        proxy.pass();
        given_up
    };
    let (invocation, given_up) = tokio::join!(run, stall);
    assert!(
        given_up < Duration::from_secs(30),
        "a transaction stayed open for {given_up:?} while S3 stood still"
    );
    let answer = invocation.answer();
    assert_eq!((&answer["failed"], &table(&answer, "public.big")["rows"]), (&json!(0), &json!(50_000)));
    assert_eq!(case.newest("public.big", "id").len(), 50_000);
    assert!(
        function.logs().iter().any(|line| line.contains("ending the page")),
        "the page should have ended"
    );
    assert_eq!(
        bastion.log().matches("Accepted publickey").count(),
        1,
        "the tunnel has lived: {}",
        bastion.log()
    );
    case.assert_nothing_is_left().await;
}

/// From the end of the login, PostgreSQL's first ReadyForQuery, to the last row.
#[tokio::test]
async fn ten_rows_take_six_round_trips_at_most() {
    let case = Case::with_users("round_trips", 100).await;
    let postgres = &case.stack.postgres;
    let proxy = Proxy::start(format!("{}:{}", postgres.host, postgres.port).parse().unwrap()).await;
    let (mut configuration, _bastion) = case.configuration_of(&case.database, proxy.addr.port()).await;
    configuration["db_sslmode"] = json!("disable");
    let function = case.function_for(&configuration, &[]).await;
    sync(&function).await;
    case.run("update sample_users set modified_at = clock_timestamp() where id in (select 'u' || i from generate_series(1, 10) i)").await;
    let before = proxy.turns().len();
    proxy.delay(Duration::ZERO, Duration::from_millis(50));
    assert_eq!(table(&sync(&function).await, "public.sample_users")["rows"], 10);
    let turns = proxy.turns().split_off(before);
    let told: Vec<String> = turns.iter().map(|turn| String::from_utf8_lossy(turn).into_owned()).collect();
    // A `p` is a password's message; the COPY is prepared first, and then run.
    let login = told.iter().rposition(|turn| turn.starts_with('p')).unwrap();
    let copy = told.iter().position(|turn| turn.contains("copy (select")).unwrap() + 1;
    assert!(copy - login <= 6, "{} round trips: {told:#?}", copy - login);
}

#[tokio::test]
async fn bastion_host_null_goes_straight() {
    let case = Case::with_users("straight", 3).await;
    let mut configuration = case.configuration();
    configuration["bastion_host"] = Value::Null;
    let answer = sync(&case.function_for(&configuration, &[]).await).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
}

#[tokio::test]
async fn a_second_secret_in_the_shape_of_rds_gives_the_login() {
    let case = Case::with_users("rds", 3).await;
    let mut configuration = case.configuration();
    for key in ["db_user", "db_password"] {
        configuration.as_object_mut().unwrap().remove(key);
    }
    let rds = json!({"engine": "postgres", "username": case.database.user, "password": case.database.password,
        "dbname": case.database.name});
    let secret = case.stack.secret(&rds).await;
    let answer = sync(&case.function_for(&configuration, &[("DATABASE_SECRET_ID", &secret)]).await).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
}

#[tokio::test]
async fn a_rotated_password_is_noticed_by_a_warm_container() {
    let case = Case::with_users("rotation", 3).await;
    let name = format!("rotation-{}", case.database.name);
    case.stack.put_secret(&name, &case.configuration()).await;
    let mut env = case.env(&case.configuration(), &[]).await;
    env.retain(|(key, _)| key != "BASTION_SECRET_ID");
    env.push(("BASTION_SECRET_ID".into(), name.clone()));
    let function = crate::case::start(env).await;
    sync(&function).await;
    case.run(&format!("alter role {} password 'rotated'", case.database.user)).await;
    let mut configuration = case.configuration();
    configuration["db_password"] = json!("rotated");
    case.stack.put_secret(&name, &configuration).await;
    assert_eq!(table(&sync(&function).await, "public.sample_users")["rows"], 0);
}

#[tokio::test]
async fn tls_is_verified_as_sslmode_says() {
    let case = Case::with_users("tls", 1).await;
    let ca = std::fs::read_to_string(&case.stack.postgres.ca_pem).unwrap();
    let with = |mode: &str, ca: Option<&str>| {
        let mut configuration = case.configuration();
        configuration["db_sslmode"] = json!(mode);
        if let Some(ca) = ca {
            configuration["db_ca_certificate"] = json!(ca);
        }
        configuration
    };
    for (mode, ca) in [
        ("disable", None),
        ("prefer", None),
        ("require", None),
        ("require", Some(ca.as_str())),
        ("verify-ca", Some(ca.as_str())),
        ("verify-full", Some(ca.as_str())),
    ] {
        let function = case.function_for(&with(mode, ca), &[]).await;
        let answer = invoke(&function, &json!({"action": "check"})).await.answer();
        assert_eq!(answer["ok"], true, "{mode}");
    }
    let backends =
        "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and usename = $1";
    assert_eq!(case.admin.query_one(backends, &[&case.database.user]).await.unwrap().get::<_, i64>(0), 0);
    // A certificate of another authority, and a name that is not in the certificate.
    let other = case.stack.start_postgres(harness::PostgresOptions::default()).await;
    let foreign = std::fs::read_to_string(&other.address.ca_pem).unwrap();
    for mode in ["require", "verify-ca", "verify-full"] {
        let function = case.function_for(&with(mode, Some(&foreign)), &[]).await;
        assert_eq!(
            invoke(&function, &json!({"action": "check"})).await.error().error_type,
            "DatabaseTls",
            "{mode}"
        );
    }
    let mut misnamed = with("verify-full", Some(&ca));
    misnamed["bastion_host"] = Value::Null;
    misnamed["private_host"] = json!("127.1");
    let error = invoke(&case.function_for(&misnamed, &[]).await, &json!({"action": "check"})).await.error();
    assert_eq!(error.error_type, "DatabaseTls", "{}", error.message);
    // Not signed by an authority of the system.
    let error = invoke(&case.function_for(&with("verify-full", None), &[]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "DatabaseTls", "{}", error.message);
    case.assert_nothing_is_written();
}
