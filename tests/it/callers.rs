//! The doors: each event file, and what each caller gets.

use std::path::Path;

use serde_json::{Value, json};

use crate::case::{Case, invoke, sync, table};

fn event(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("events").join(name);
    serde_json::from_slice(
        &std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
    .unwrap()
}

#[tokio::test]
async fn every_event_file_gets_a_good_answer() {
    let case = Case::with_users("events", 20).await;
    let function =
        case.function(&[("TABLES", "SAMPLE_USERS"), ("FIVETRAN_BUCKET", harness::FIVETRAN_BUCKET)]).await;
    sync(&function).await;
    let mut names: Vec<String> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("events"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 9, "{names:?}");
    // A caller that holds the state itself writes to a prefix of its own.
    let uri = case.stack.output_uri(&format!("{}/held", case.prefix));
    let holding = case.function(&[("TABLES", "SAMPLE_USERS"), ("OUTPUT_URI", &uri)]).await;
    for name in &names {
        let function = if name.ends_with("-state.json") { &holding } else { &function };
        let answer = invoke(function, &event(name)).await.answer();
        match name.split('-').next().unwrap() {
            "fivetran" => {
                assert_eq!(answer["schema"]["sample_users"]["primary_key"], json!(["id"]), "{name}: {answer}")
            }
            _ if ["check", "resync", "status", "discover"].iter().any(|action| name.contains(action)) => {
                assert_eq!(answer["ok"], true, "{name}: {answer}")
            }
            _ => {
                assert_eq!(answer["failed"], 0, "{name}: {answer}");
                assert_eq!(table(&answer, "public.sample_users")["error"], Value::Null);
            }
        }
    }
}

#[tokio::test]
async fn ticks_that_come_twice_at_once_or_late_do_no_harm() {
    let case = Case::with_users("ticks", 50).await;
    let functions = [case.function(&[]).await, case.function(&[]).await, case.function(&[]).await];
    let ticks = [event("schedule.json"), event("schedule.json"), event("eventbridge-rule.json")];
    let mut conflicts = 0;
    for round in 0..6 {
        case.run(&format!(
            "insert into sample_users select 'r{round}-' || i, 'x' from generate_series(1, 20) i"
        ))
        .await;
        let [a, b, c] = &functions;
        let outcomes = tokio::join!(invoke(a, &ticks[0]), invoke(b, &ticks[1]), invoke(c, &ticks[2]));
        for outcome in [outcomes.0, outcomes.1, outcomes.2] {
            match outcome.outcome {
                Ok(answer) => assert_eq!(answer["failed"], 0, "{answer}"),
                Err(error) => {
                    assert_eq!(error.error_type, "CheckpointConflict", "{}", error.message);
                    conflicts += 1;
                }
            }
        }
        case.assert_users_are_complete().await;
    }
    // Of long ago.
    let mut late = ticks[2].clone();
    late["time"] = json!("2020-01-01T00:00:00Z");
    let late = invoke(&functions[0], &late).await.answer();
    assert_eq!(table(&late, "public.sample_users")["rows"], 0);
    assert_eq!(case.rows("public.sample_users").len(), 50 + 6 * 20, "each row once; {conflicts} conflicts");
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn fivetran_gets_rows_in_pages_under_its_limit_until_the_end() {
    let case = Case::with_users("fivetran", 0).await;
    case.run("insert into sample_users select i::text, repeat(md5(i::text), 10), '2026-01-01'::timestamptz + i * interval '1 s' from generate_series(1, 30000) i").await;
    let function = case.function(&[("OUTPUT_URI", ""), ("DOORS", "fivetran")]).await;
    let mut request = event("fivetran-sync.json");
    let (mut ids, mut calls) = (Vec::new(), 0);
    loop {
        let invocation = invoke(&function, &request).await;
        assert!(invocation.response_bytes < 6_291_556, "{} bytes", invocation.response_bytes);
        let answer = invocation.answer();
        assert_eq!(answer["schema"], json!({"sample_users": {"primary_key": ["id"]}}));
        assert_eq!(answer["delete"], json!({}));
        for row in answer["insert"]["sample_users"].as_array().unwrap_or(&Vec::new()) {
            assert_eq!(row.get("_seq"), None);
            ids.push(row["id"].as_str().unwrap().to_owned());
        }
        request["state"] = answer["state"].clone();
        calls += 1;
        assert!(calls < 50, "no end");
        if answer["hasMore"] == false {
            break;
        }
    }
    assert!(calls > 1, "the table should not fit into one answer");
    assert_eq!(ids.len(), 30_000);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 30_000);
    let answer = invoke(&function, &request).await.answer();
    assert_eq!((&answer["insert"], &answer["hasMore"]), (&json!({}), &json!(false)));
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn a_table_that_fails_is_fivetrans_error_and_never_a_gap() {
    let case = Case::with_users("fivetran_fails", 3).await;
    case.run("create table broken (id int primary key, modified_at timestamptz); insert into broken values (1, now())").await;
    case.run(&format!("revoke all on broken from {}", case.database.user)).await;
    let function = case.function(&[("TABLES", "sample_users,broken")]).await;
    assert_eq!(invoke(&function, &event("fivetran-sync.json")).await.error().error_type, "PermissionDenied");
    case.run(&format!("grant select on broken to {}", case.database.user)).await;
    let answer = invoke(&function, &event("fivetran-sync.json")).await.answer();
    assert_eq!(answer["insert"]["sample_users"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_row_that_fits_the_next_answer_waits_for_it() {
    let case = Case::with_users("fivetran_large_row", 0).await;
    // 21,000 small rows fill some of the first answer, and two large ones do not fit beside them.
    case.run("insert into sample_users select i::text, repeat('x', 150), '2026-01-01Z' from generate_series(1, 21000) i").await;
    case.run("insert into sample_users select 'l' || i, repeat('y', 3000000), '2026-01-02Z' from generate_series(1, 2) i").await;
    let function = case.function(&[]).await;
    let mut request = event("fivetran-sync.json");
    let mut counts = Vec::new();
    loop {
        let answer = invoke(&function, &request).await.answer();
        counts.push(answer["insert"]["sample_users"].as_array().map_or(0, Vec::len));
        request["state"] = answer["state"].clone();
        assert!(counts.len() < 50, "no end");
        if answer["hasMore"] == false {
            break;
        }
    }
    // The last looks once more, because the others were read in several transactions.
    assert_eq!(counts, [21_000, 1, 1, 0]);
}

#[tokio::test]
async fn fivetran_setup_test_leaves_the_state_as_it_is() {
    let case = Case::with_users("setup_test", 3).await;
    let function = case.function(&[]).await;
    let answer = invoke(&function, &event("fivetran-setup-test.json")).await.answer();
    assert_eq!(
        answer,
        json!({"state": {}, "insert": {}, "delete": {}, "hasMore": false,
            "schema": {"sample_users": {"primary_key": ["id"]}}})
    );
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn names_that_fivetran_would_merge_are_refused() {
    let case = Case::new("collision").await;
    case.run(
        r#"create table t (id int primary key, "userData" text, user_data text, modified_at timestamptz)"#,
    )
    .await;
    let error = invoke(&case.function(&[]).await, &event("fivetran-sync.json")).await.error();
    assert_eq!(error.error_type, "InvalidConfig");
    assert!(error.message.contains("userData") && error.message.contains("user_data"), "{}", error.message);
}

#[tokio::test]
async fn event_secrets_count_only_where_they_are_allowed() {
    let case = Case::with_users("event_secrets", 3).await;
    let mut request = event("fivetran-sync.json");
    request["secrets"] = json!({"bastion_host": "192.0.2.1"});
    // Not allowed: ignored, and the secret of the environment is used.
    let answer = invoke(&case.function(&[]).await, &request).await.answer();
    assert_eq!(answer["insert"]["sample_users"].as_array().unwrap().len(), 3);
    // Allowed: all or nothing.
    let function = case.function(&[("ALLOW_EVENT_SECRETS", "true"), ("BASTION_SECRET_ID", "")]).await;
    assert_eq!(invoke(&function, &request).await.error().error_type, "SecretMalformed");
    request["secrets"] = case.configuration();
    let answer = invoke(&function, &request).await.answer();
    assert_eq!(answer["insert"]["sample_users"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_caller_that_holds_the_state_owns_the_cursor() {
    let case = Case::with_users("own_state", 10).await;
    let function = case.function(&[]).await;
    let first = invoke(&function, &json!({"state": {}, "limits": {"max_rows": 4}})).await.answer();
    assert_eq!(first["has_more"], true);
    assert_eq!(case.checkpoint(), Value::Null, "the checkpoint is neither read nor written");
    assert_eq!(case.rows("public.sample_users").len(), 4, "objects appear before the answer");
    let second = invoke(&function, &json!({"state": first["state"]})).await.answer();
    assert_eq!(
        (&second["has_more"], &table(&second, "public.sample_users")["rows"]),
        (&json!(false), &json!(6))
    );
    // A repeat counts on: should a row have changed meanwhile, its new version must be the newest.
    case.run("update sample_users set name = 'changed', modified_at = now() where id = 'u9'").await;
    let again = invoke(&function, &json!({"state": first["state"]})).await.answer();
    assert_eq!(
        (&table(&again, "public.sample_users")["seq"], &table(&again, "public.sample_users")["rows"]),
        (&json!(4), &json!(6))
    );
    case.assert_users_are_complete().await;
}

#[tokio::test]
async fn a_state_that_begins_anew_counts_on_and_overwrites_nothing() {
    let case = Case::with_users("anew", 10).await;
    let function = case.function(&[]).await;
    let mut state = json!({});
    for seq in 1..=6 {
        let answer = invoke(&function, &json!({"state": state, "limits": {"max_rows": 1}})).await.answer();
        assert_eq!(table(&answer, "public.sample_users")["seq"], seq);
        state = answer["state"].clone();
    }
    for seq in 7..=9 {
        let answer = invoke(&function, &json!({"state": {}})).await.answer();
        assert_eq!(table(&answer, "public.sample_users")["seq"], seq);
    }
    assert_eq!(case.rows("public.sample_users").len(), 6 + 3 * 10);
}

#[tokio::test]
async fn a_call_that_is_repeated_after_a_table_was_swapped_counts_on_too() {
    let case = Case::with_users("swapped", 10).await;
    let function = case.function(&[]).await;
    let state = invoke(&function, &json!({"state": {}})).await.answer()["state"].clone();
    case.run("drop table sample_users").await;
    case.run(crate::case::SAMPLE_USERS).await;
    case.run("insert into sample_users values ('other', 'x', now())").await;
    for seq in [2, 3] {
        let answer = invoke(&function, &json!({"state": state})).await.answer();
        assert_eq!(table(&answer, "public.sample_users")["seq"], seq);
    }
}

#[tokio::test]
async fn a_prefix_with_a_checkpoint_takes_no_state_of_a_caller() {
    let case = Case::with_users("two_owners", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    let error = invoke(&function, &json!({"state": {}})).await.error();
    assert_eq!(error.error_type, "InvalidRequest");
    assert!(error.message.contains("checkpoint"), "{}", error.message);
    assert_eq!(case.rows("public.sample_users").len(), 3);
}

#[tokio::test]
async fn a_foreign_or_malformed_state_is_refused_with_the_way_out() {
    let case = Case::with_users("foreign", 3).await;
    let function = case.function(&[]).await;
    let mut state = invoke(&function, &json!({"state": {}})).await.answer()["state"].clone();
    for (broken, named) in
        [(json!({"version": 99}), "version 99"), (json!({"last_modified": "2026"}), "not a time")]
    {
        let error = invoke(&function, &json!({"state": broken})).await.error();
        assert_eq!(error.error_type, "CursorInvalid");
        assert!(error.message.contains(named), "{}", error.message);
    }
    state["database"]["system_identifier"] = json!("1");
    let error = invoke(&function, &json!({"state": state})).await.error();
    assert_eq!(error.error_type, "CursorInvalid");
    assert!(error.message.contains("ON_NEW_DATABASE"), "{}", error.message);
    let function = case.function(&[("ON_NEW_DATABASE", "resync")]).await;
    let answer = invoke(&function, &json!({"state": state})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
}

#[tokio::test]
async fn a_check_reads_nothing_and_leaves_nothing() {
    let case = Case::with_users("check", 3).await;
    let answer = invoke(&case.function(&[]).await, &json!({"action": "check"})).await.answer();
    assert_eq!(
        answer,
        json!({"ok": true, "tables": [{"table": "public.sample_users", "columns": 3, "primary_key": ["id"],
            "cursor_column": "modified_at"}]})
    );
    case.assert_nothing_is_written();
    case.assert_nothing_is_left().await;
}
