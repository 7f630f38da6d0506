//! What goes wrong, and what an operator is told: a named error with the way out, within 15 seconds, nothing written.

use std::time::Duration;

use harness::{BastionOptions, FunctionError};
use serde_json::{Value, json};

use crate::case::{Case, invoke, start, sync, table};

async fn failure(case: &Case, configuration: &Value, extra: &[(&str, &str)], event: &Value) -> FunctionError {
    let function = case.function_for(configuration, extra).await;
    let invocation = invoke(&function, event).await;
    assert!(invocation.elapsed < Duration::from_secs(15), "took {:?}", invocation.elapsed);
    let error = invocation.error();
    let logs = function.logs().join("\n");
    for secret in secrets(configuration) {
        assert!(
            !error.message.contains(&secret) && !logs.contains(&secret),
            "a secret is shown: {}",
            error.message
        );
    }
    assert!(
        logs.lines().any(|line| line.contains(&format!("\"error_type\":\"{}\"", error.error_type))),
        "{logs}"
    );
    case.assert_nothing_is_written();
    error
}

/// Passwords, and the private key in any piece that would be recognised: as it stands, and each line of its PEM.
fn secrets(configuration: &Value) -> Vec<String> {
    use base64::Engine;
    let text = |key: &str| configuration[key].as_str().unwrap_or_default().to_owned();
    let key = text("bastion_private_key");
    let pem = base64::engine::general_purpose::STANDARD.decode(&key).unwrap_or_default();
    let pem = String::from_utf8(pem).unwrap_or_default();
    let mut secrets = vec![text("bastion_passphrase"), text("db_password")];
    secrets.extend(key.as_bytes().chunks(20).map(|piece| String::from_utf8_lossy(piece).into_owned()));
    secrets.extend(pem.lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    secrets.retain(|secret| secret.len() > 3);
    secrets
}

fn assert_error(error: &FunctionError, error_type: &str, told: &[&str]) {
    assert_eq!(error.error_type, error_type, "{}", error.message);
    for words in told {
        assert!(error.message.contains(words), "{words:?} is not in: {}", error.message);
    }
}

#[tokio::test]
async fn a_wrong_passphrase_is_told() {
    let case = Case::with_users("passphrase", 1).await;
    let mut configuration =
        case.stack.configuration(&case.database, &case.stack.client_key("ed25519-passphrase"));
    configuration["bastion_passphrase"] = json!("not the passphrase");
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "SecretMalformed", &["bastion_passphrase"]);
}

#[tokio::test]
async fn an_unauthorized_key_is_told_after_one_attempt() {
    let case = Case::with_users("unauthorized", 1).await;
    let configuration = case.stack.configuration(&case.database, &case.stack.client_key("unauthorized"));
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "BastionAuthFailed", &["authorized_keys"]);
}

#[tokio::test]
async fn a_wrong_database_password_is_told() {
    let case = Case::with_users("password", 1).await;
    let mut configuration = case.configuration();
    configuration["db_password"] = json!("not the password");
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "DatabaseAuthFailed", &["db_password", "28P01"]);
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_wrong_database_name_is_told() {
    let case = Case::with_users("dbname", 1).await;
    let mut configuration = case.configuration();
    configuration["db_name"] = json!("nowhere");
    assert_error(&failure(&case, &configuration, &[], &json!({})).await, "DatabaseAuthFailed", &["db_name"]);
}

#[tokio::test]
async fn an_unknown_table_is_told() {
    let case = Case::with_users("unknown_table", 1).await;
    let error = failure(&case, &case.configuration(), &[("TABLES", "sampel_users")], &json!({})).await;
    assert_error(&error, "SchemaChanged", &["public.sampel_users does not exist"]);
    let error = failure(&case, &case.configuration(), &[], &json!({"tables": ["other.users"]})).await;
    assert_error(&error, "InvalidRequest", &["other.users is not configured"]);
}

#[tokio::test]
async fn a_missing_cursor_column_is_told_with_the_candidates() {
    let case = Case::new("missing_cursor").await;
    case.run("create table t (id int primary key, changed timestamptz, born date, text text)").await;
    let error =
        failure(&case, &case.configuration(), &[("TABLES", "t"), ("CURSOR_COLUMN", "text")], &json!({}))
            .await;
    assert_error(&error, "SchemaChanged", &["cursor column text", "of type text"]);
    let answer = sync(&case.function(&[("TABLES", "t")]).await).await;
    let notes = answer["tables"][0]["notes"].to_string();
    assert!(notes.contains("no cursor column") && notes.contains("candidates: changed, born"), "{notes}");
}

#[tokio::test]
async fn views_are_refused_by_name() {
    let case = Case::with_users("views", 1).await;
    case.run("create view v as select * from sample_users").await;
    let error = failure(&case, &case.configuration(), &[("TABLES", "v")], &json!({})).await;
    assert_error(&error, "SchemaChanged", &["public.v is a view"]);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_told() {
    let case = Case::with_users("bucket", 1).await;
    let error =
        failure(&case, &case.configuration(), &[("OUTPUT_URI", "s3://nobodys-bucket/p")], &json!({})).await;
    assert_error(&error, "StorageDenied", &["s3://nobodys-bucket/p", "NoSuchBucket", "s3:PutObject"]);
}

#[tokio::test]
async fn a_bucket_that_refuses_us_is_told() {
    let case = Case::with_users("denied", 1).await;
    let error =
        failure(&case, &case.configuration(), &[("AWS_SECRET_ACCESS_KEY", "not the key")], &json!({})).await;
    assert_error(&error, "StorageDenied", &["checkpoint.json", "s3:PutObject"]);
}

#[tokio::test]
async fn s3_out_of_reach_is_told() {
    let case = Case::with_users("s3_down", 1).await;
    let error =
        failure(&case, &case.configuration(), &[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")], &json!({}))
            .await;
    assert_error(&error, "StorageUnavailable", &[]);
}

#[tokio::test]
async fn a_secret_that_is_missing_or_malformed_is_told() {
    let case = Case::with_users("secrets", 1).await;
    let error =
        failure(&case, &case.configuration(), &[("BASTION_SECRET_ID", "no-such-secret")], &json!({})).await;
    assert_error(&error, "SecretDenied", &["no-such-secret", "secretsmanager:GetSecretValue"]);
    let error = failure(&case, &json!("hunter2 is not JSON"), &[], &json!({})).await;
    assert_error(&error, "SecretMalformed", &["not JSON"]);
    assert!(!error.message.contains("hunter2"));
    let mut configuration = case.configuration();
    configuration["bastion_private_key"] = json!("aHVudGVyMg==");
    assert_error(
        &failure(&case, &configuration, &[], &json!({})).await,
        "SecretMalformed",
        &["bastion_private_key"],
    );
}

#[tokio::test]
async fn malformed_events_are_told_before_any_io() {
    let case = Case::with_users("malformed", 1).await;
    // Nothing answers there: an attempt to reach it would be another error.
    let env = [
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
    ];
    let function = case.function(&env).await;
    let mut nested = json!(1);
    for _ in 0..1000 {
        nested = json!([nested]);
    }
    for event in [
        json!([]),
        json!("sync"),
        json!({"action": "sync", "tabels": ["x"]}),
        json!({"tables": ["users; drop table users"]}),
        json!({"tables": ["../../etc/passwd"]}),
        json!({"tables": ["a\u{0}b"]}),
        json!({"limits": {"max_rows": "many"}}),
        json!({"state": nested}),
        json!({"host": "192.0.2.1"}),
        json!({"prefix": "s3://other"}),
        json!({"tables": ["x".repeat(2 << 20)]}),
    ] {
        let invocation = invoke(&function, &event).await;
        assert!(invocation.elapsed < Duration::from_secs(2), "took {:?}", invocation.elapsed);
        assert_eq!(invocation.error().error_type, "InvalidRequest");
    }
}

#[tokio::test]
async fn a_bad_environment_is_told_by_each_invocation_with_all_problems() {
    let case = Case::with_users("environment", 1).await;
    let extra = [("TABLES", ""), ("COMPRESSION", "rar"), ("BASTION_SECRET_ID", "")];
    let error = failure(&case, &case.configuration(), &extra, &json!({})).await;
    assert_error(&error, "InvalidConfig", &["3 problems", "TABLES", "COMPRESSION", "BASTION_SECRET_ID"]);
}

#[tokio::test]
async fn a_dead_bastion_is_told() {
    let case = Case::with_users("dead_bastion", 1).await;
    let mut configuration = case.configuration();
    configuration["bastion_port"] = json!(9);
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "BastionUnreachable", &["bastion 127.0.0.1:9", "bastion_port"]);
    // Something that accepts and says nothing.
    let proxy = case.bastion_proxy().await;
    proxy.stall();
    configuration["bastion_port"] = json!(proxy.addr.port());
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "BastionUnreachable", &["handshake", "timed out after 5000 ms"]);
}

#[tokio::test]
async fn a_bastion_that_prohibits_forwarding_is_told() {
    let case = Case::with_users("prohibited", 1).await;
    let bastion = case
        .stack
        .start_bastion(BastionOptions {
            permit_open: vec!["127.0.0.1:1".into()],
            ..BastionOptions::default()
        })
        .await;
    let configuration = case.configuration_for(&bastion.address);
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "BastionPolicy", &["prohibits forwarding", "PermitOpen 127.0.0.1:"]);
}

#[tokio::test]
async fn a_bastion_without_a_safe_algorithm_is_told_with_both_lists() {
    let case = Case::with_users("algorithms", 1).await;
    let config = vec!["Ciphers aes256-cbc".to_owned()];
    let bastion = case.stack.start_bastion(BastionOptions { config, ..BastionOptions::default() }).await;
    let configuration = case.configuration_for(&bastion.address);
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "BastionPolicy", &["aes128-gcm@openssh.com", "aes256-cbc"]);
}

#[tokio::test]
async fn a_dead_database_behind_the_bastion_is_told() {
    let case = Case::with_users("dead_database", 1).await;
    let bastion = case
        .stack
        .start_bastion(BastionOptions {
            permit_open: vec!["127.0.0.1:9".into()],
            ..BastionOptions::default()
        })
        .await;
    let mut configuration = case.configuration_for(&bastion.address);
    configuration["private_port"] = json!("9");
    let error = failure(&case, &configuration, &[], &json!({})).await;
    assert_error(&error, "DatabaseUnreachable", &["127.0.0.1:9", "private_port"]);
}

#[tokio::test]
async fn a_row_beyond_the_bound_is_refused_by_place_and_the_other_tables_go_on() {
    let case = Case::with_users("row_too_large", 3).await;
    case.run("create table large (id text primary key, modified_at timestamptz, body text)").await;
    case.run("insert into large values ('hunter1', '2026-01-01', 'x'), ('hunter2', '2026-01-02', repeat('y', 3000000))").await;
    for bound in ["1000000", "2500000"] {
        let prefix = case.stack.output_uri(&format!("{}/{bound}", case.prefix));
        let function = case.function(&[("MAX_ROW_BYTES", bound), ("OUTPUT_URI", &prefix)]).await;
        let answer = sync(&function).await;
        let error = &table(&answer, "public.large")["error"];
        assert_eq!(error["type"], "RowTooLarge", "{answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("ctid (0,2)") && message.contains("MAX_ROW_BYTES"), "{message}");
        assert!(!answer.to_string().contains("hunter") && !function.logs().join("").contains("hunter"));
        assert_eq!(table(&answer, "public.sample_users")["rows"], 3);
    }
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_tunnel_that_dies_midway_loses_nothing_and_leaves_nothing() {
    let case = Case::new("tunnel_dies").await;
    case.run("create table big (id int primary key, modified_at timestamptz, body text)").await;
    case.run(
        "insert into big select i, '2026-01-01', repeat(md5(i::text), 60) from generate_series(1, 20000) i",
    )
    .await;
    let proxy = case.bastion_proxy().await;
    let configuration = case.configuration_through(&proxy);
    let function = case.function_for(&configuration, &[]).await;
    let run = async {
        let error = invoke(&function, &json!({})).await.error();
        assert_error(&error, "TunnelLost", &[]);
    };
    let cut = async {
        let is_reading = async {
            while proxy.bytes_down() < 5_000_000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), is_reading).await.expect("the table is read");
        proxy.cut();
    };
    tokio::join!(run, cut);
    case.assert_nothing_is_written();
    proxy.pass();
    assert_eq!(table(&sync(&function).await, "public.big")["rows"], 20_000);
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_server_without_tls_is_never_given_a_password() {
    let case = Case::with_users("no_tls", 1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut configuration = case.configuration();
    configuration["bastion_host"] = Value::Null;
    configuration["private_port"] = json!(listener.local_addr().unwrap().port());
    for mode in ["require", "verify-ca", "verify-full"] {
        configuration["db_sslmode"] = json!(mode);
        let function = start(case.env(&configuration, &[]).await).await;
        let server = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            socket.read_exact(&mut request).await.unwrap();
            socket.write_all(b"N").await.unwrap();
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest).await;
            rest
        };
        let event = json!({});
        let (sent, invocation) = tokio::join!(server, invoke(&function, &event));
        assert_error(&invocation.error(), "DatabaseTls", &["no TLS"]);
        assert_eq!(sent, Vec::<u8>::new(), "{mode}: nothing is sent after the refusal");
    }
}

#[tokio::test]
async fn a_refused_plain_password_request_never_sends_the_password() {
    let case = Case::with_users("plain_password", 1).await;
    // A false server: no TLS, then a request for the password in clear text.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut configuration = case.configuration();
    configuration["bastion_host"] = Value::Null;
    configuration["private_port"] = json!(listener.local_addr().unwrap().port());
    configuration["db_sslmode"] = json!("prefer");
    let password = configuration["db_password"].as_str().unwrap().to_owned();
    let function = start(case.env(&configuration, &[]).await).await;
    let server = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        socket.read_exact(&mut buffer[..8]).await.unwrap();
        socket.write_all(b"N").await.unwrap();
        let _ = socket.read(&mut buffer).await.unwrap();
        socket.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await.unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        rest
    };
    let event = json!({});
    let (sent, invocation) = tokio::join!(server, invoke(&function, &event));
    assert_error(&invocation.error(), "DatabaseAuthFailed", &["clear text"]);
    assert!(!String::from_utf8_lossy(&sent).contains(&password));
}
