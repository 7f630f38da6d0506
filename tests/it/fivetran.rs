//! Fivetran's connector, played by `harness::Fivetran`: whatever happens to its calls, its tables become the source's.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{FIVETRAN_BUCKET, Fivetran, Function, Mishap};
use serde_json::{Value, json};

use crate::case::{Case, invoke};
use crate::stress::random;

const VIA_S3: (&str, &str) = ("FIVETRAN_BUCKET", FIVETRAN_BUCKET);

impl Case {
    /// A document of Fivetran's bucket.
    fn document(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.stack.s3.root.join(FIVETRAN_BUCKET).join(key)).ok()
    }

    /// Asserts that nothing of the document's upload is left, too.
    async fn fivetran_sync(&self, fivetran: &mut Fivetran, function: &Function) {
        fivetran.sync(function, |key| self.document(key)).await;
        self.assert_no_upload_is_open(fivetran);
    }

    fn assert_no_upload_is_open(&self, fivetran: &Fivetran) {
        let open = self.stack.s3.open_uploads(FIVETRAN_BUCKET, &fivetran.folder);
        assert_eq!(open, Vec::<String>::new());
    }

    /// Asserts that Fivetran's `sample_users` are the source's.
    async fn assert_fivetran_has_users(&self, fivetran: &Fivetran) {
        let expected: BTreeMap<String, Value> =
            self.users().await.into_iter().map(|(id, row)| (format!("[{id}]"), row)).collect();
        assert_eq!(fivetran.tables.get("sample_users").cloned().unwrap_or_default(), expected);
    }
}

/// Writers, open transactions, lost answers, half-loaded answers and killed functions, in random order.
async fn any_schedule(name: &str, bucket: Option<&str>) {
    let mut random = random(name);
    let case = Case::new(name).await;
    case.run(
        "create table users (id int primary key, name text, modified_at timestamptz not null default now(), deleted_at timestamptz);
         create index on users (modified_at);
         create schema sales; create table sales.orders (a int, b text, modified_at timestamptz default now(), gone bool, primary key (b, a));
         insert into users select i, repeat(md5(i::text), 60), now() - interval '1 day' + i * interval '1 ms' from generate_series(1, 5000) i;
         insert into sales.orders select i, 'o' || i from generate_series(1, 300) i",
    )
    .await;
    case.run(&format!(
        "grant usage on schema sales to {0}; grant select on sales.orders to {0}",
        case.database.user
    ))
    .await;
    let uri = case.put_document(&json!({"tables": {
        "public.users": {"deleted_column": "deleted_at"}, "sales.orders": {"deleted_column": "gone"}}}));
    let env = [("TABLES", ""), ("CONFIG_URI", &*uri), ("DOORS", "fivetran"), ("OUTPUT_URI", ""), VIA_S3];
    let mut function = case.function(&env).await;
    let mut fivetran = Fivetran::new(json!({}), bucket);
    let mut open = Vec::new();
    let (mut mishaps, mut kills) = (0, 0);
    for step in 0..60 {
        let (id, order) = (random.below(5200), random.below(320));
        match random.below(10) {
            0 => {
                let client = case.database.admin().await;
                let sql = format!(
                    "begin; insert into users values ({id}, 'late {step}') on conflict (id) do update set name = excluded.name, modified_at = now()"
                );
                // It may wait for another's lock on the row: then there is nothing to be held open.
                let is_done = tokio::time::timeout(Duration::from_secs(1), client.batch_execute(&sql)).await;
                if is_done.is_ok_and(|outcome| outcome.is_ok()) {
                    open.push(client);
                }
            }
            1 if !open.is_empty() => {
                let client = open.swap_remove(random.index(open.len()));
                client.batch_execute(if random.below(4) == 0 { "rollback" } else { "commit" }).await.unwrap();
            }
            2 | 3 => {
                let end = order + random.below(40);
                case.run(&format!(
                    "set lock_timeout = '1s';
                     update sales.orders set gone = (a % 3 = 0), modified_at = now() where a between {order} and {end};
                     insert into sales.orders values ({step}, 'new', now(), null)"
                ))
                .await;
            }
            4 => {
                // Rows that an open transaction holds stay as they are.
                case.run(&format!(
                    "update users set deleted_at = case when deleted_at is null then now() end, modified_at = now()
                     where id in (select id from users where id between {id} and {id} + 5 for update skip locked)"
                ))
                .await;
            }
            5 => {
                let after = Duration::from_millis(random.below(150));
                let is_killed = {
                    let call = fivetran.call(&function, |key| case.document(key), Mishap::None);
                    tokio::select! {
                        outcome = call => { outcome.expect("a good answer"); false }
                        () = tokio::time::sleep(after) => true,
                    }
                };
                if is_killed {
                    function.kill().await;
                    function = case.function(&env).await;
                    kills += 1;
                }
            }
            other => {
                let mishap = match other {
                    6 => Mishap::Lost,
                    7 => Mishap::HalfLoaded,
                    _ => Mishap::None,
                };
                mishaps += usize::from(!matches!(mishap, Mishap::None));
                fivetran.call(&function, |key| case.document(key), mishap).await.expect("a good answer");
            }
        }
    }
    for client in open {
        client.batch_execute("commit").await.unwrap();
    }
    // Uploads that kills left open are for the bucket's lifecycle rule.
    fivetran.sync(&function, |key| case.document(key)).await;
    println!("{name}: {mishaps} mishaps, {kills} kills");
    for (table, sql) in [
        (
            "users",
            "select jsonb_build_array(id)::text, (to_jsonb(t) - '{modified_at,deleted_at}'::text[])::text from users t where deleted_at is null",
        ),
        (
            "sales_orders",
            "select jsonb_build_array(b, a)::text, (to_jsonb(t) - '{modified_at,gone}'::text[])::text from sales.orders t where not coalesce(gone, false)",
        ),
    ] {
        let rows = case.admin.query(sql, &[]).await.unwrap();
        let expected: BTreeMap<String, Value> = rows
            .iter()
            .map(|row| {
                let key: Value = serde_json::from_str(row.get(0)).unwrap();
                (key.to_string(), serde_json::from_str(row.get(1)).unwrap())
            })
            .collect();
        let mut loaded = fivetran.tables.remove(table).unwrap_or_default();
        for row in loaded.values_mut() {
            for column in ["modified_at", "deleted_at", "gone"] {
                row.as_object_mut().unwrap().remove(column);
            }
        }
        assert_eq!(loaded.len(), expected.len(), "{table}");
        assert!(loaded == expected, "{table} differs from the source");
    }
}

#[tokio::test]
async fn after_any_schedule_of_calls_and_failures_its_tables_are_the_source() {
    any_schedule("fivetran_any", None).await;
}

#[tokio::test]
async fn after_any_schedule_through_s3_its_tables_are_the_source() {
    any_schedule("fivetran_any_s3", Some(FIVETRAN_BUCKET)).await;
}

#[tokio::test]
async fn a_row_that_fits_no_answer_is_told_though_other_tables_have_rows() {
    let case = Case::with_users("fivetran_too_large", 3).await;
    case.run("create table zz (id int primary key, body text, modified_at timestamptz default now()); insert into zz values (1, repeat('x', 5600000))").await;
    let event = Fivetran::new(json!({}), None).event("");
    let error = invoke(&case.function(&[]).await, &event).await.error();
    assert_eq!(error.error_type, "RowTooLarge");
    assert!(error.message.contains("public.zz") || error.message.contains("zz ctid"), "{}", error.message);
}

#[tokio::test]
async fn through_s3_a_large_table_is_one_streamed_document() {
    let case = Case::with_users("fivetran_s3", 0).await;
    case.run("insert into sample_users select i::text, repeat(md5(i::text), 30), '2026-01-01'::timestamptz + i * interval '1 s' from generate_series(1, 30000) i").await;
    let function = case.function(&[("OUTPUT_URI", ""), ("DOORS", "fivetran"), VIA_S3]).await;
    let mut fivetran = Fivetran::new(json!({}), Some(FIVETRAN_BUCKET));
    assert_eq!(fivetran.call(&function, |key| case.document(key), Mishap::None).await, Ok(false));
    assert_eq!(fivetran.upserted, 30_000);
    case.assert_fivetran_has_users(&fivetran).await;
    // Nothing new: an empty document all the same, for Fivetran reads it.
    case.fivetran_sync(&mut fivetran, &function).await;
    assert_eq!(fivetran.upserted, 30_000);
    assert!(function.peak_memory_bytes() < 100 << 20, "{} bytes", function.peak_memory_bytes());
    case.assert_nothing_is_written();
    case.assert_nothing_is_left().await;
}

/// Two tables, the second of which does not fit one transaction, so that what was written of it is taken back; `before`: rows
/// of the first.
async fn rewind(name: &str, before: usize) {
    let case = Case::new(name).await;
    // Each row costs the server a millisecond, so that they take longer than a transaction may, and is so large that parts are
    // full by then.
    case.run(&format!(
        "create type pause as (moment int4range);
         create function text_of(pause) returns text language plpgsql as
             $$ begin perform pg_sleep(0.001); return repeat(md5(clock_timestamp()::text), 940); end $$;
         create cast (pause as text) with function text_of(pause);
         create table a_first (id int primary key, name text, modified_at timestamptz default now());
         create table b_large (id int primary key, pause pause, modified_at timestamptz default now());
         create index on b_large (modified_at);
         insert into a_first select i, repeat(md5(i::text), 16) from generate_series(1, {before}) i;
         insert into b_large select i, row(int4range(1, 2))::pause from generate_series(1, 2500) i"
    ))
    .await;
    let function = case.function(&[("MAX_TRANSACTION_SECONDS", "2"), VIA_S3]).await;
    let mut fivetran = Fivetran::new(json!({}), Some(FIVETRAN_BUCKET));
    // The player refuses a key that comes twice in one answer.
    case.fivetran_sync(&mut fivetran, &function).await;
    let logs = function.logs();
    assert!(logs.iter().any(|line| line.contains("does not fit into one transaction")), "{logs:#?}");
    assert_eq!(fivetran.upserted, 2500 + before);
    let count = |table: &str| fivetran.tables.get(table).map_or(0, |rows| rows.len());
    assert_eq!((count("a_first"), count("b_large")), (before, 2500));
}

#[tokio::test]
async fn a_document_is_taken_back_to_after_the_table_before() {
    // More than a part of 5 MiB.
    rewind("fivetran_rewind", 20_000).await;
}

#[tokio::test]
async fn a_document_is_taken_back_to_its_start() {
    rewind("fivetran_rewind_0", 0).await;
}

#[tokio::test]
async fn a_table_that_is_rewritten_meanwhile_does_not_come_twice_in_one_document() {
    let case = Case::with_users("fivetran_rewrite", 0).await;
    case.run("insert into sample_users select i::text, repeat(md5(i::text), 40), now() from generate_series(1, 60000) i").await;
    let function = case.function(&[("MAX_TRANSACTION_SECONDS", "1"), VIA_S3]).await;
    let mut fivetran = Fivetran::new(json!({}), Some(FIVETRAN_BUCKET));
    let rewrite = async {
        while !function.logs().iter().any(|line| line.contains("share read")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        case.run(
            "begin; create temp table kept as select * from sample_users; truncate sample_users;
            insert into sample_users select id, 'new', now() from kept; commit",
        )
        .await;
    };
    let (outcome, ()) =
        tokio::join!(fivetran.call(&function, |key| case.document(key), Mishap::None), rewrite);
    assert_eq!(outcome, Ok(true));
    case.fivetran_sync(&mut fivetran, &function).await;
    case.assert_fivetran_has_users(&fivetran).await;
}

#[tokio::test]
async fn only_the_configured_bucket_and_no_object_of_ours_can_be_written() {
    let case = Case::with_users("fivetran_bucket", 3).await;
    let mut event = Fivetran::new(json!({}), Some(FIVETRAN_BUCKET)).event("f.json");
    let error = invoke(&case.function(&[]).await, &event).await.error();
    assert_eq!(error.error_type, "InvalidRequest");
    assert!(error.message.contains("FIVETRAN_BUCKET"), "{}", error.message);
    let function = case.function(&[("FIVETRAN_BUCKET", "bastion-sync")]).await;
    event["bucket"] = json!("bastion-sync");
    event["file"] = json!(format!("{}/_state/checkpoint.json", case.prefix));
    let error = invoke(&function, &event).await.error();
    assert!(error.message.contains("OUTPUT_URI"), "{}", error.message);
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn a_setup_test_through_s3_writes_an_empty_document() {
    let case = Case::with_users("fivetran_setup", 3).await;
    let function = case.function(&[VIA_S3]).await;
    let fivetran = Fivetran::new(json!({"last_modified": "2026-01-01T00:00:00Z"}), Some(FIVETRAN_BUCKET));
    let mut event = fivetran.event(&format!("{}.json", case.prefix));
    event["setup_test"] = json!(true);
    let answer = invoke(&function, &event).await.answer();
    assert_eq!(
        answer,
        json!({"state": {"last_modified": "2026-01-01T00:00:00Z"}, "hasMore": false,
            "schema": {"sample_users": {"primary_key": ["id"]}}})
    );
    let document = case.document(&format!("{}.json", case.prefix)).expect("a document");
    assert_eq!(String::from_utf8(document).unwrap(), r#"{"insert":{},"delete":{}}"#);
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn a_setup_test_says_which_step_fails() {
    let case = Case::with_users("fivetran_steps", 1).await;
    let mut event = Fivetran::new(json!({}), None).event("");
    event["setup_test"] = json!(true);
    let with = |key: &str, value: Value| {
        let mut configuration = case.configuration();
        configuration[key] = value;
        configuration
    };
    for (configuration, expected) in [
        (with("bastion_port", json!(1)), "BastionUnreachable"),
        (with("bastion_user", json!("nobody-here")), "BastionAuthFailed"),
        (
            with("bastion_host_key", json!("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
            "BastionHostKeyMismatch",
        ),
        (with("db_password", json!("hunter2")), "DatabaseAuthFailed"),
        (with("db_name", json!("no_such_database")), "DatabaseAuthFailed"),
    ] {
        let error = invoke(&case.function_for(&configuration, &[]).await, &event).await.error();
        assert_eq!(error.error_type, expected, "{}", error.message);
        assert!(error.message.contains("Hint: ") && !error.message.contains("hunter2"), "{}", error.message);
    }
    case.run(&format!("revoke select on sample_users from {}", case.database.user)).await;
    for (tables, expected) in [("sample_users", "PermissionDenied"), ("public.*", "SchemaChanged")] {
        let error = invoke(&case.function(&[("TABLES", tables)]).await, &event).await.error();
        assert_eq!(error.error_type, expected, "{}", error.message);
    }
}

#[tokio::test]
async fn ndjson_is_written_besides_where_that_is_asked_for() {
    let case = Case::with_users("fivetran_ndjson", 30).await;
    let function = case.function(&[("FIVETRAN_NDJSON", "true"), VIA_S3]).await;
    for bucket in [None, Some(FIVETRAN_BUCKET)] {
        let mut fivetran = Fivetran::new(json!({}), bucket);
        case.fivetran_sync(&mut fivetran, &function).await;
        case.assert_fivetran_has_users(&fivetran).await;
    }
    case.assert_users_are_complete().await;
    assert_eq!(case.manifests().len(), 2);
    assert!(case.rows("public.sample_users").iter().all(|row| row["_seq"].is_u64()));
    // It is a state of a caller: no checkpoint.
    assert_eq!(case.checkpoint(), Value::Null);
    let function = case.function(&[("FIVETRAN_NDJSON", "true"), ("OUTPUT_URI", "")]).await;
    let error = invoke(&function, &Fivetran::new(json!({}), None).event("")).await.error();
    assert!(error.message.contains("OUTPUT_URI"), "{}", error.message);
}

#[tokio::test]
async fn what_is_written_besides_stays_right_though_answers_are_lost() {
    let case = Case::with_users("fivetran_ndjson_lost", 30).await;
    let function = case.function(&[("FIVETRAN_NDJSON", "true")]).await;
    let mut fivetran = Fivetran::new(json!({}), None);
    for round in 0..4 {
        case.run(&format!(
            "update sample_users set name = 'round {round}', modified_at = now() where id < 'u2'"
        ))
        .await;
        fivetran.call(&function, |_| None, Mishap::Lost).await.expect("a good answer");
        case.assert_users_are_complete().await;
    }
    case.fivetran_sync(&mut fivetran, &function).await;
    case.assert_users_are_complete().await;
    case.assert_fivetran_has_users(&fivetran).await;
    for manifest in case.manifests() {
        let sum: u64 = manifest["objects"]
            .as_array()
            .unwrap()
            .iter()
            .map(|object| object["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(manifest["bytes"], sum);
    }
}

#[tokio::test]
async fn a_failed_sync_leaves_no_document_and_no_upload() {
    let case = Case::with_users("fivetran_fail_s3", 0).await;
    case.run("insert into sample_users select i::text, repeat(md5(i::text), 30), now() from generate_series(1, 30000) i").await;
    // The second table fails when the first has uploaded parts.
    case.run("create table zz (id int primary key, body text, modified_at timestamptz default now()); insert into zz values (1, repeat('x', 100000))").await;
    let function = case.function(&[("MAX_ROW_BYTES", "50000"), VIA_S3]).await;
    let mut fivetran = Fivetran::new(json!({}), Some(FIVETRAN_BUCKET));
    let outcome = fivetran.call(&function, |key| case.document(key), Mishap::None).await;
    assert_eq!(outcome, Err("RowTooLarge".to_owned()));
    assert_eq!(case.stack.s3.objects(FIVETRAN_BUCKET, &fivetran.folder), Vec::new());
    case.assert_no_upload_is_open(&fivetran);
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_python_connectors_state_is_where_the_first_sync_begins() {
    let case = Case::with_users("fivetran_python", 0).await;
    case.run(
        "insert into sample_users values ('old', 'x', '2026-01-01Z'), ('late', 'x', '2026-01-31T11:59:00Z'),
        ('tie', 'x', '2026-01-31T12:00:00Z'), ('new', 'x', '2026-02-01Z')",
    )
    .await;
    let function = case.function(&[]).await;
    let mut fivetran = Fivetran::new(json!({"last_modified": "2026-01-31T13:00:00+01:00"}), None);
    case.fivetran_sync(&mut fivetran, &function).await;
    // Not what it had; but what shares its last time, or was committed behind it within the slack.
    let ids: Vec<&str> =
        fivetran.tables["sample_users"].values().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["late", "new", "tie"]);
    case.run("update sample_users set name = 'y', modified_at = now() where id = 'old'").await;
    case.fivetran_sync(&mut fivetran, &function).await;
    assert_eq!(fivetran.upserted, 4, "from there on it is a state of ours");
    case.assert_fivetran_has_users(&fivetran).await;
}

#[tokio::test]
async fn a_transaction_that_is_open_when_the_python_state_is_taken_over_is_not_lost() {
    let case = Case::with_users("fivetran_python_open", 0).await;
    case.run("insert into sample_users values ('last', 'x', now())").await;
    let late = case.database.admin().await;
    // A job that sets the time of its start, long before the last row that Python saw.
    late.batch_execute("begin; insert into sample_users values ('late', 'x', now())").await.unwrap();
    let last: String = case
        .admin
        .query_one(
            "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let function = case.function(&[("CURSOR_SLACK_SECONDS", "5")]).await;
    // Later than the job's start by more than the slack.
    let ahead = chrono::DateTime::parse_from_rfc3339(&last).unwrap() + chrono::TimeDelta::seconds(7);
    let mut fivetran = Fivetran::new(json!({"last_modified": ahead.to_rfc3339()}), None);
    while chrono::Utc::now() <= ahead {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    case.run("insert into sample_users values ('after', 'x', clock_timestamp())").await;
    case.fivetran_sync(&mut fivetran, &function).await;
    late.batch_execute("commit").await.unwrap();
    case.fivetran_sync(&mut fivetran, &function).await;
    let ids: Vec<&str> =
        fivetran.tables["sample_users"].values().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["after", "late"]);
}

#[tokio::test]
async fn a_python_state_that_tells_nothing_reads_everything() {
    let case = Case::with_users("fivetran_python_2", 5).await;
    // psycopg2 made this of 'infinity'.
    let mut poisoned = Fivetran::new(json!({"last_modified": "9999-12-31T23:59:59.999999+00:00"}), None);
    case.fivetran_sync(&mut poisoned, &case.function(&[]).await).await;
    case.assert_fivetran_has_users(&poisoned).await;
    case.run("drop index sample_users_modified_at_idx").await;
    let mut unindexed = Fivetran::new(json!({"last_modified": "2026-01-01T00:00:00Z"}), None);
    case.fivetran_sync(&mut unindexed, &case.function(&[]).await).await;
    case.assert_fivetran_has_users(&unindexed).await;
    // It is of one table.
    case.run("create table other (id int primary key, modified_at timestamptz)").await;
    let event = Fivetran::new(json!({"last_modified": "2026-01-01T00:00:00Z"}), None).event("");
    let error = invoke(&case.function(&[]).await, &event).await.error();
    assert_eq!(error.error_type, "CursorInvalid");
    assert!(error.message.contains("TABLES"), "{}", error.message);
}

#[tokio::test]
async fn a_state_that_was_edited_is_refused_or_loses_nothing() {
    let case = Case::with_users("fivetran_edited", 0).await;
    case.run("insert into sample_users select i::text, repeat(md5(i::text), 60), '2026-01-01'::timestamptz + i * interval '1 s' from generate_series(1, 6000) i").await;
    let function = case.function(&[]).await;
    let mut fivetran = Fivetran::new(json!({}), None);
    assert_eq!(fivetran.call(&function, |_| None, Mishap::None).await, Ok(true));
    let good = fivetran.state.clone();
    let mut edits = vec![json!({"version": 2}), json!([]), json!("text"), json!({"tables": {}})];
    edit(&good, &mut |edited| edits.push(edited));
    assert!(edits.len() > 100, "{}", edits.len());
    let mut random = random("fivetran_edited");
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..40 {
        let state = edits.swap_remove(random.index(edits.len()));
        let mut edited = Fivetran::new(state.clone(), None);
        edited.tables = fivetran.tables.clone();
        match edited.call(&function, |_| None, Mishap::None).await {
            Ok(has_more) => {
                if has_more {
                    case.fivetran_sync(&mut edited, &function).await;
                }
                let rows = edited.tables["sample_users"].len();
                assert_eq!(rows, 6000, "rows are lost by {state}");
                taken += 1;
            }
            Err(error) => {
                let known = ["CursorInvalid", "InvalidRequest", "SchemaChanged"];
                assert!(known.contains(&error.as_str()), "{error}: {state}");
                refused += 1;
            }
        }
    }
    println!("fivetran_edited: {taken} taken, {refused} refused");
    case.fivetran_sync(&mut fivetran, &function).await;
    case.assert_fivetran_has_users(&fivetran).await;
}

/// Each value of a state in turn taken out, or replaced by something else.
fn edit(state: &Value, found: &mut impl FnMut(Value)) {
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            found.push(at.clone());
            places(value, &at, found);
        }
    }
    let mut all = Vec::new();
    places(state, "", &mut all);
    for place in all {
        for value in [
            Value::Null,
            json!(""),
            json!(-1),
            json!(u64::MAX),
            json!("x".repeat(1000)),
            json!([]),
            json!({}),
            json!("'; drop table x; --"),
        ] {
            let mut edited = state.clone();
            *edited.pointer_mut(&place).unwrap() = value;
            found(edited);
        }
        let (parent, key) = place.rsplit_once('/').unwrap();
        let mut edited = state.clone();
        edited
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(&key.replace("~1", "/").replace("~0", "~"));
        found(edited);
    }
}

#[tokio::test]
async fn what_fivetran_cannot_hold_is_refused_by_name() {
    for (name, sql, error_type, named) in [
        (
            "fivetran_names",
            "create table a_b (id int primary key, modified_at timestamptz); create schema a; grant usage on schema a to public; create table a.b (id int primary key, modified_at timestamptz); grant select on a.b to public",
            "InvalidConfig",
            "a_b",
        ),
        (
            "fivetran_reserved",
            "create table r (id int primary key, _fivetran_synced timestamptz, modified_at timestamptz)",
            "InvalidConfig",
            "_fivetran_synced",
        ),
        (
            "fivetran_keyless",
            "create table k (id int, modified_at timestamptz)",
            "SchemaChanged",
            "primary key",
        ),
    ] {
        let case = Case::new(name).await;
        case.run(sql).await;
        let tables = if name == "fivetran_keyless" { "k" } else { "*.*" };
        let function = case.function(&[("TABLES", tables), VIA_S3]).await;
        let error = invoke(&function, &Fivetran::new(json!({}), None).event("")).await.error();
        assert_eq!(error.error_type, error_type, "{}", error.message);
        assert!(error.message.contains(named) && error.message.contains("Hint: "), "{}", error.message);
        case.assert_nothing_is_written();
    }
}
