//! Secrets Manager, by moto.

use std::path::Path;

use serde_json::{Value, json};

use crate::moto::{Moto, SECRETS_MANAGER};

/// A running Secrets Manager; dropping it stops it.
#[derive(Debug)]
pub struct Secrets {
    pub endpoint: String,
    _moto: Moto,
}

impl Secrets {
    pub async fn start(dir: &Path) -> Secrets {
        let moto = Moto::start(dir.join("moto.log"), None, SECRETS_MANAGER, "ListSecrets").await;
        Secrets { endpoint: format!("http://{}", moto.address), _moto: moto }
    }
}

/// Creates a secret, or gives it a new current version, as a rotation does. A JSON string is stored as its text, so
/// that a secret can be something else than JSON. Returns the ARN.
pub async fn put(endpoint: &str, name: &str, value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let address = endpoint.trim_start_matches("http://");
    let create = json!({"Name": name, "SecretString": text});
    let mut answer = SECRETS_MANAGER.call(address, "CreateSecret", &create).await;
    if matches!(&answer, Ok((400, body)) if body["__type"] == "ResourceExistsException") {
        let update = json!({"SecretId": name, "SecretString": text});
        answer = SECRETS_MANAGER.call(address, "PutSecretValue", &update).await;
    }
    match answer {
        Ok((200, body)) => body["ARN"].as_str().expect("the answer has an ARN").to_owned(),
        other => panic!("moto did not store the secret {name}: {other:?}"),
    }
}
