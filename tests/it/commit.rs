//! The commit: overlapping runs, runs killed at its steps, replies that are lost.

use harness::Proxy;
use serde_json::{Value, json};

use crate::case::{Case, invoke, start, sync, table};

/// A function that reaches S3 through a proxy.
async fn behind_proxy(case: &Case) -> (harness::Function, Proxy) {
    let (proxy, url) = case.s3_proxy().await;
    let function = case.function(&[("AWS_ENDPOINT_URL_S3", &url)]).await;
    (function, proxy)
}

/// A run that is killed (SIGKILL) when it sends `request`, which does not arrive.
async fn run_killed_at(case: &Case, request: String) {
    let (function, proxy) = behind_proxy(case).await;
    let hold = proxy.hold_when_seen(request);
    let event = json!({});
    let run = invoke(&function, &event);
    let kill = async {
        hold.seen().await;
        function.kill().await;
        // Lest the request that is held back arrives after all.
        proxy.cut();
    };
    let (invocation, ()) = tokio::join!(run, kill);
    assert!(invocation.outcome.is_err());
}

/// The request line of a put of the checkpoint, and of a completion.
fn put_checkpoint(case: &Case) -> String {
    format!("PUT /bastion-sync/{}/_state/checkpoint.json", case.prefix)
}

fn complete(case: &Case) -> String {
    // CompleteMultipartUpload: `?uploadId=`; beginning an upload has `?uploads`, a part `?partNumber=`.
    let _ = case;
    "/0000000001-00000.ndjson.gz?uploadId=".to_owned()
}

#[tokio::test]
async fn two_runs_started_at_once_leave_exactly_one_runs_objects() {
    let case = Case::with_users("overlap", 500).await;
    let (slow, proxy) = behind_proxy(&case).await;
    let hold = proxy.hold_when_seen(put_checkpoint(&case));
    let fast = case.function(&[]).await;
    let slow_run = async { invoke(&slow, &json!({})).await };
    let fast_run = async {
        hold.seen().await;
        let answer = sync(&fast).await;
        hold.release();
        answer
    };
    let (slow_outcome, fast_answer) = tokio::join!(slow_run, fast_run);
    assert_eq!(table(&fast_answer, "public.sample_users")["rows"], 500);
    let error = slow_outcome.error();
    assert_eq!(error.error_type, "CheckpointConflict", "{}", error.message);
    assert_eq!(case.rows("public.sample_users").len(), 500, "one run's rows");
    assert_eq!(case.manifests().len(), 1);
    case.assert_users_are_complete().await;
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn runs_over_different_tables_merge() {
    let case = Case::with_users("merge", 10).await;
    case.run("create table orders (id int primary key, modified_at timestamptz default now()); insert into orders values (1)").await;
    let (slow, proxy) = behind_proxy(&case).await;
    let hold = proxy.hold_when_seen(put_checkpoint(&case));
    let fast = case.function(&[]).await;
    let users = json!({"tables": ["sample_users"]});
    let slow_run = invoke(&slow, &users);
    let fast_run = async {
        hold.seen().await;
        invoke(&fast, &json!({"tables": ["orders"]})).await.answer();
        hold.release();
    };
    let (outcome, ()) = tokio::join!(slow_run, fast_run);
    assert_eq!(table(&outcome.answer(), "public.sample_users")["rows"], 10);
    let tables = &case.checkpoint()["state"]["tables"];
    assert_eq!(
        (&tables["public.sample_users"]["seq"], &tables["public.orders"]["seq"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(sync(&fast).await["tables"].as_array().unwrap().iter().filter(|t| t["rows"] != 0).count(), 0);
}

#[tokio::test]
async fn a_run_killed_before_the_commit_publishes_nothing_and_the_next_reads_again() {
    let case = Case::with_users("killed_before", 100).await;
    run_killed_at(&case, put_checkpoint(&case)).await;
    assert!(case.objects("").is_empty(), "nothing is visible before the commit");
    let answer = sync(&case.function(&[]).await).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 100);
    assert_eq!(case.rows("public.sample_users").len(), 100);
}

#[tokio::test]
async fn a_run_killed_between_commit_and_completing_is_finished_by_the_next() {
    let case = Case::with_users("killed_between", 100).await;
    run_killed_at(&case, complete(&case)).await;
    let keys: Vec<String> = case.objects("").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["_state/checkpoint.json"], "committed, and not visible yet");
    assert_eq!(case.checkpoint()["pending"].as_array().unwrap().len(), 1);

    let answer = sync(&case.function(&[]).await).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 0, "nothing is read again");
    assert_eq!(case.rows("public.sample_users").len(), 100);
    assert_eq!(case.manifests().len(), 1);
    assert_eq!(case.checkpoint().get("pending"), None);
    case.assert_users_are_complete().await;
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_run_killed_after_completing_leaves_nothing_to_do() {
    let case = Case::with_users("killed_after", 100).await;
    run_killed_at(&case, format!("PUT /bastion-sync/{}/manifests/", case.prefix)).await;
    assert_eq!(case.rows("public.sample_users").len(), 100);
    let answer = sync(&case.function(&[]).await).await;
    assert_eq!(table(&answer, "public.sample_users")["rows"], 0);
    assert_eq!((case.rows("public.sample_users").len(), case.manifests().len()), (100, 1));
}

#[tokio::test]
async fn runs_killed_at_every_kind_of_request_lose_nothing_and_leave_no_half_commit() {
    let case = Case::with_users("killed_anywhere", 200).await;
    let path = |below: &str| format!("PUT /bastion-sync/{}/{below}", case.prefix);
    for (round, request) in [
        "?uploads ".to_owned(),
        "partNumber=1".to_owned(),
        put_checkpoint(&case),
        "-00000.ndjson.gz?uploadId=".to_owned(),
        path("schemas/"),
        path("manifests/"),
    ]
    .into_iter()
    .enumerate()
    {
        let change = format!("name = 'round {round}', modified_at = clock_timestamp()");
        case.run(&format!("update sample_users set {change} where id in ('u{round}', 'u50')")).await;
        case.run(&format!("insert into sample_users values ('n{round}', 'new')")).await;
        run_killed_at(&case, request).await;
        assert_manifests_name_complete_objects(&case);
    }
    sync(&case.function(&[]).await).await;
    case.assert_users_are_complete().await;
    // And nothing is visible that no commit names.
    let named = assert_manifests_name_complete_objects(&case);
    let visible: Vec<String> = case.objects("data/").into_iter().map(|(key, _)| key).collect();
    assert_eq!(named, visible);
}

/// Asserts the second half of I3; the objects that are named, in the order of their keys.
fn assert_manifests_name_complete_objects(case: &Case) -> Vec<String> {
    let objects = case.objects("data/");
    let mut named = Vec::new();
    for manifest in case.manifests() {
        for object in manifest["objects"].as_array().unwrap() {
            let (key, bytes) = (object["key"].as_str().unwrap(), object["object_bytes"].as_u64().unwrap());
            let body = objects.iter().find(|(known, _)| known == key).map(|(_, body)| body.len() as u64);
            assert_eq!(body, Some(bytes), "{key}");
            named.push(key.to_owned());
        }
    }
    named.sort();
    named
}

#[tokio::test]
async fn uploads_that_vanished_after_the_commit_are_read_again() {
    let case = Case::with_users("vanished", 100).await;
    run_killed_at(&case, complete(&case)).await;
    abort_uploads(&case).await;
    let answer = sync(&case.function(&[]).await).await;
    let users = table(&answer, "public.sample_users");
    assert_eq!((&users["rows"], &users["seq"]), (&json!(100), &json!(2)), "a number is never used twice");
    case.assert_users_are_complete().await;
}

#[tokio::test]
async fn lost_replies_of_the_commit_and_of_a_completion_are_settled() {
    for (name, pattern) in [
        ("lost_commit", put_checkpoint as fn(&Case) -> String),
        ("lost_complete", complete as fn(&Case) -> String),
    ] {
        let case = Case::with_users(name, 100).await;
        let (function, proxy) = behind_proxy(&case).await;
        let lost = proxy.drop_reply_when_seen(pattern(&case));
        let answer = sync(&function).await;
        assert!(lost.has_fired());
        assert_eq!(table(&answer, "public.sample_users")["rows"], 100, "{name}");
        assert_eq!(case.rows("public.sample_users").len(), 100);
        assert_eq!(case.checkpoint().get("pending"), None);
        case.assert_nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_missing_checkpoint_is_not_guessed() {
    let case = Case::with_users("missing_checkpoint", 3).await;
    let function = case.function(&[]).await;
    sync(&function).await;
    let path = case.stack.s3.root.join("bastion-sync").join(&case.prefix).join("_state/checkpoint.json");
    std::fs::remove_file(path).unwrap();
    let error = invoke(&function, &json!({})).await.error();
    assert_eq!(error.error_type, "CursorInvalid");
    assert!(error.message.contains("manifests"), "{}", error.message);
}

#[tokio::test]
async fn replaying_an_event_does_no_harm() {
    let case = Case::with_users("replay", 50).await;
    let function = case.function(&[]).await;
    let event: Value = json!({"trigger": "schedule", "tables": ["sample_users"]});
    for run in 0..4 {
        let answer = invoke(&function, &event).await.answer();
        assert_eq!(table(&answer, "public.sample_users")["rows"], if run == 0 { 50 } else { 0 });
    }
    assert_eq!(case.rows("public.sample_users").len(), 50);
}

/// As a lifecycle rule would.
async fn abort_uploads(case: &Case) {
    let s3 = &case.stack.s3;
    let credentials =
        aws_sdk_s3::config::Credentials::new(&s3.access_key, &s3.secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .credentials_provider(credentials)
        .endpoint_url(&s3.endpoint)
        .force_path_style(true)
        .region(aws_sdk_s3::config::Region::new("eu-central-1"))
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    for pending in case.checkpoint()["pending"].as_array().unwrap() {
        for batch in pending["publication"]["batches"].as_array().unwrap() {
            let key = format!("{}/{}", case.prefix, batch["key"].as_str().unwrap());
            let abort = client.abort_multipart_upload().bucket("bastion-sync").key(key);
            abort.upload_id(batch["upload_id"].as_str().unwrap()).send().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_function_that_starts_without_configuration_stays_alive_and_says_what_is_missing() {
    let function = start(Vec::new()).await;
    for _ in 0..2 {
        let error = invoke(&function, &json!({})).await.error();
        assert_eq!(error.error_type, "InvalidConfig");
    }
}
