//! What surrounds the function: AWS's own emulator, with its deadlines, kills and limits, and `cargo lambda watch`.

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{Emulator, EmulatorOptions, FunctionOptions, Proxy, Watch, process};
use serde_json::{Value, json};

use crate::case::{Case, TIMEOUT, table};

/// How many rows `slow_rows` makes: more than can be read in a second, and less than in ten.
const SLOW_COUNT: usize = 1500;

/// The release binary, where there is one: it is what Lambda runs.
fn binary() -> PathBuf {
    env::var_os("BASTION_SYNC_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_bastion-sync")), PathBuf::from)
}

async fn emulator(case: &Case, extra: &[(&str, &str)], timeout_seconds: u32) -> Emulator {
    let env = case.env(&case.configuration(), extra).await;
    Emulator::start(&case.stack.dir, EmulatorOptions { binary: binary(), env, timeout_seconds }).await
}

/// Rows that cost the server a millisecond each, on whatever machine: the text of one column takes so long.
async fn slow_rows(case: &Case) {
    case.run(&format!(
        "create type pause as (moment int4range);
         create function text_of(pause) returns text language plpgsql as
             $$ begin perform pg_sleep(0.001); return repeat('x', 400); end $$;
         create cast (pause as text) with function text_of(pause);
         create table slow (id int primary key, modified_at timestamptz not null, pause pause);
         create index on slow (modified_at);
         insert into slow select i, '2026-01-01Z'::timestamptz + i / 10 * interval '1 ms', row(int4range(1, 2))::pause \
             from generate_series(1, {SLOW_COUNT}) i"
    ))
    .await;
}

fn assert_slow_rows_came_once(case: &Case) {
    let counts = case.counts("public.slow", "id");
    assert_eq!((counts.len(), counts.values().max()), (SLOW_COUNT, Some(&1)));
}

#[tokio::test]
async fn a_warm_invocation_is_of_the_same_process_and_has_no_second_init() {
    let case = Case::with_users("warm", 100).await;
    let emulator = emulator(&case, &[], 30).await;
    assert_eq!(emulator.function_pid(), None, "it starts with the first event");
    let first = emulator.invoke(&json!({})).await;
    let pid = emulator.function_pid();
    case.run("insert into sample_users values ('new', 'one')").await;
    let second = emulator.invoke(&json!({})).await;
    assert!(pid.is_some() && emulator.function_pid() == pid);
    assert_ne!(first.request_id, second.request_id);

    let logs = emulator.logs();
    let count = |words: &str| logs.iter().filter(|line| line.contains(words)).count();
    assert_eq!((count("INIT START("), count("Init Duration: ")), (1, 1), "{logs:?}");
    for request_id in [&first.request_id, &second.request_id] {
        for line in ["START", "END", "REPORT"] {
            assert!(logs.iter().any(|logged| logged.starts_with(&format!("{line} RequestId: {request_id}"))));
        }
        // The function's own lines name it as well.
        assert!(count(&format!("\"request_id\":\"{request_id}\"")) > 0, "{logs:?}");
    }
    assert_eq!(table(&first.answer(), "public.sample_users")["rows"], 100);
    assert_eq!(table(&second.answer(), "public.sample_users")["rows"], 1);
    case.assert_users_are_complete().await;
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_deadline_cuts_a_sync_and_the_next_invocations_go_on_until_the_end() {
    let case = Case::new("cut_short").await;
    slow_rows(&case).await;
    let emulator = emulator(&case, &[], 4).await;
    let mut rows = Vec::new();
    loop {
        let invocation = emulator.invoke(&json!({})).await;
        assert!(invocation.elapsed < Duration::from_secs(4), "took {:?}", invocation.elapsed);
        let answer = invocation.answer();
        rows.push(table(&answer, "public.slow")["rows"].as_u64().unwrap());
        if answer["has_more"] == false {
            break;
        }
        assert!(rows.len() < 30, "no end: {rows:?}");
    }
    assert!(rows.len() > 1, "the deadline should have cut the sync: {rows:?}");
    assert_slow_rows_came_once(&case);
    case.assert_nothing_is_left().await;
}

/// Invokes a function that stops (SIGSTOP) in sending `request`, so that Lambda kills it when its time is over. The
/// request does not arrive.
async fn run_timed_out_at(case: &Case, request: &str) -> (Emulator, Proxy) {
    let (proxy, url) = case.s3_proxy().await;
    let emulator = emulator(case, &[("AWS_ENDPOINT_URL_S3", &url)], 5).await;
    let hold = proxy.hold_when_seen(request);
    let stop = async {
        hold.seen().await;
        let pid = emulator.function_pid().unwrap();
        process::signal(&[pid], "STOP");
        // Now that the function does not notice.
        proxy.cut();
        pid
    };
    let event = json!({});
    let (invocation, pid) = tokio::join!(emulator.invoke(&event), stop);
    let elapsed = invocation.elapsed;
    let error = invocation.error();
    assert_eq!(error.error_type, "Sandbox.Timedout", "{}", error.message);
    assert!(error.message.contains("Task timed out after 5.00 seconds"), "{}", error.message);
    assert!(elapsed >= Duration::from_secs(5), "took {elapsed:?}");
    assert_ne!(emulator.function_pid(), Some(pid), "the stopped process is gone");
    (emulator, proxy)
}

#[tokio::test]
async fn an_s3_that_hangs_is_told_before_the_time_is_over_and_the_process_serves_on() {
    let case = Case::with_users("s3_hangs", 100).await;
    let (proxy, url) = case.s3_proxy().await;
    let emulator = emulator(&case, &[("AWS_ENDPOINT_URL_S3", &url)], 5).await;
    let hold = proxy.hold_when_seen(format!("PUT /bastion-sync/{}/_state/checkpoint.json", case.prefix));
    let error = emulator.invoke(&json!({})).await.error();
    assert_eq!(error.error_type, "StorageUnavailable", "{}", error.message);
    case.assert_no_backend_is_left().await;
    let pid = emulator.function_pid();
    // In this order, or the checkpoint arrives after all.
    proxy.cut();
    drop(hold);
    let answer = emulator.invoke(&json!({})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 100);
    assert_eq!(emulator.function_pid(), pid);
    case.assert_users_are_complete().await;
    // The upload of the run that was given up is for the bucket's lifecycle rule.
    case.assert_no_backend_is_left().await;
}

#[tokio::test]
async fn a_time_out_before_the_commit_publishes_nothing_and_the_next_invocation_reads_again() {
    let case = Case::with_users("timed_out_before", 100).await;
    let request = format!("PUT /bastion-sync/{}/_state/checkpoint.json", case.prefix);
    let (emulator, _proxy) = run_timed_out_at(&case, &request).await;
    assert!(case.objects("").is_empty(), "nothing is visible before the commit");
    let answer = emulator.invoke(&json!({})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 100);
    assert_eq!(case.rows("public.sample_users").len(), 100);
    case.assert_users_are_complete().await;
}

#[tokio::test]
async fn a_time_out_after_the_commit_loses_nothing_and_the_next_invocation_publishes_it() {
    let case = Case::with_users("timed_out_after", 100).await;
    let (emulator, _proxy) = run_timed_out_at(&case, "/0000000001-00000.ndjson.gz?uploadId=").await;
    assert_eq!(case.rows("public.sample_users").len(), 0, "committed, and not visible yet");
    let answer = emulator.invoke(&json!({})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 0, "nothing is read again");
    assert_eq!(case.rows("public.sample_users").len(), 100);
    case.assert_users_are_complete().await;
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_largest_answer_to_fivetran_passes_lambdas_limit() {
    let case = Case::with_users("largest_answer", 0).await;
    case.run(
        "insert into sample_users select i::text, repeat(md5(i::text), 10), '2026-01-01Z'::timestamptz + i * interval '1 s' \
         from generate_series(1, 20000) i",
    )
    .await;
    let emulator = emulator(&case, &[("OUTPUT_URI", ""), ("DOORS", "fivetran")], 30).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("events/fivetran-sync.json");
    let mut event: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut ids, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let invocation = emulator.invoke(&event).await;
        sizes.push(invocation.response_bytes);
        let answer = invocation.answer();
        let rows = answer["insert"]["sample_users"].as_array();
        ids.extend(rows.into_iter().flatten().map(|row| row["id"].as_str().unwrap().to_owned()));
        event["state"] = answer["state"].clone();
        if answer["hasMore"] == false {
            break;
        }
        assert!(sizes.len() < 20, "no end: {sizes:?}");
    }
    assert!(sizes.iter().any(|size| *size > 5_300_000), "no answer was full: {sizes:?}");
    assert_eq!(ids.len(), 20_000);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20_000);
}

#[tokio::test]
async fn an_error_has_our_kinds_name_and_the_process_serves_on() {
    let case = Case::with_users("error_shape", 3).await;
    let emulator = emulator(&case, &[], 30).await;
    let error = emulator.invoke(&json!({"action": "nonsense"})).await.error();
    assert_eq!(error.error_type, "InvalidRequest");
    assert!(error.message.contains("nonsense"), "{}", error.message);
    let pid = emulator.function_pid();
    let answer = emulator.invoke(&json!({})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
    assert!(pid.is_some() && emulator.function_pid() == pid);

    // And when it is killed, as for want of memory, the next event gets another.
    process::signal(&[pid.unwrap()], "KILL");
    let error = emulator.invoke(&json!({})).await.error();
    assert_eq!(error.error_type, "Runtime.ExitError", "{}", error.message);
    let answer = emulator.invoke(&json!({})).await.answer();
    assert_eq!(table(&answer, "public.sample_users")["rows"], 0);
}

#[tokio::test]
async fn under_cargo_lambda_watch_a_sync_has_its_configured_time_though_the_deadline_lies_in_1970() {
    let case = Case::new("watch").await;
    slow_rows(&case).await;
    let env = case.env(&case.configuration(), &[]).await;
    let watch = Watch::start(&case.stack.dir, FunctionOptions { binary: binary(), env }).await;
    let invoke = async |event: Value| {
        tokio::time::timeout(TIMEOUT, watch.invoke(&event)).await.expect("an answer in time")
    };
    let began = Instant::now();
    let (status, answer) = invoke(json!({"limits": {"max_seconds": 2}})).await;
    let elapsed = began.elapsed();
    assert_eq!((status, &answer["has_more"]), (200, &json!(true)), "{answer}");
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&elapsed), "took {elapsed:?}");
    let (status, answer) = invoke(json!({})).await;
    assert_eq!((status, &answer["has_more"]), (200, &json!(false)), "{answer}");
    assert_slow_rows_came_once(&case);

    let (status, error) = invoke(json!({"action": "nonsense"})).await;
    assert_eq!((status, &error["errorType"]), (500, &json!("InvalidRequest")), "{error}");
    assert!(error["errorMessage"].as_str().is_some_and(|message| message.contains("nonsense")), "{error}");
    case.assert_nothing_is_left().await;
}
