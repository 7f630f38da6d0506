//! The bastion's keys: every format of the user's, and the host's pins.

use harness::{BastionOptions, HostKey};
use serde_json::{Value, json};

use crate::case::{Case, invoke};

#[tokio::test]
async fn every_key_format_opens_the_bastion() {
    let case = Case::with_users("key_formats", 1).await;
    for key in case.stack.client_keys() {
        if key.name == "unauthorized" {
            continue;
        }
        let base = case.stack.configuration(&case.database, &key);
        for value in
            [base["bastion_private_key"].clone(), json!(key.pem), json!(key.pem.replace('\n', "\\n"))]
        {
            let mut configuration = base.clone();
            configuration["bastion_private_key"] = value;
            let function = case.function_for(&configuration, &[]).await;
            let invocation = invoke(&function, &json!({"action": "check"})).await;
            assert!(invocation.outcome.is_ok(), "{}: {:?}", key.name, invocation.outcome);
        }
    }
}

#[tokio::test]
async fn any_form_of_pin_is_taken_and_the_pinned_key_is_asked_for() {
    let case = Case::with_users("pins", 1).await;
    let bastion = case
        .stack
        .start_bastion(BastionOptions {
            host_keys: vec![HostKey::Ed25519, HostKey::Ecdsa, HostKey::Rsa],
            ..BastionOptions::default()
        })
        .await;
    let mut configuration = case.configuration();
    configuration["bastion_port"] = json!(bastion.address.port.to_string());
    let bare = |line: &str| line.split_once(' ').unwrap().1.to_owned();
    let mut pins: Vec<String> = bastion.address.known_hosts.clone();
    pins.extend(bastion.address.known_hosts.iter().map(|line| bare(line)));
    pins.push(bastion.address.fingerprints.join(","));
    pins.push("accept-any".to_owned());
    for pin in pins {
        configuration["bastion_host_key"] = json!(pin);
        let function = case.function_for(&configuration, &[]).await;
        let invocation = invoke(&function, &json!({"action": "check"})).await;
        assert!(invocation.outcome.is_ok(), "{pin}: {:?}", invocation.outcome);
    }
    // The environment's pins are joined with the secret's.
    configuration.as_object_mut().unwrap().remove("bastion_host_key");
    let function =
        case.function_for(&configuration, &[("BASTION_HOST_KEY", &bastion.address.known_hosts[0])]).await;
    assert!(invoke(&function, &json!({"action": "check"})).await.outcome.is_ok());
}

#[tokio::test]
async fn an_unknown_host_key_is_refused_with_the_line_to_paste_and_that_line_works() {
    let case = Case::with_users("unknown_host", 1).await;
    let mut configuration = case.configuration();
    configuration.as_object_mut().unwrap().remove("bastion_host_key");
    let error = invoke(&case.function_for(&configuration, &[]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "BastionHostKeyMismatch");
    assert!(
        error.message.contains("SHA256:") && error.message.contains("ssh-keygen -lf"),
        "{}",
        error.message
    );
    let (_, line) = error.message.split_once("add this line to bastion_host_key: ").expect("a line to paste");
    configuration["bastion_host_key"] = json!(line);
    let answer =
        invoke(&case.function_for(&configuration, &[]).await, &json!({"action": "check"})).await.answer();
    assert_eq!(answer["ok"], Value::Bool(true));
}

#[tokio::test]
async fn a_changed_host_key_is_refused_before_anything_is_sent() {
    let case = Case::with_users("changed_host", 1).await;
    let other = case.stack.start_bastion(BastionOptions::default()).await;
    let mut configuration = case.configuration();
    configuration["bastion_port"] = json!(other.address.port);
    let pinned = configuration["bastion_host_key"].as_str().unwrap().to_owned();
    let key: Vec<&str> = pinned.split_whitespace().skip(1).collect();
    configuration["bastion_host_key"] = json!(key.join(" "));
    let error = invoke(&case.function_for(&configuration, &[]).await, &json!({})).await.error();
    assert_eq!(error.error_type, "BastionHostKeyMismatch");
    let log = other.log();
    assert!(!log.contains("Accepted") && !log.contains("publickey"), "{log}");
    case.assert_nothing_is_written();
}
