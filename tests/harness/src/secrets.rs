//! Secrets Manager, by moto.

use std::{io, path::Path};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    process::{self, Daemon},
    random, tools,
};

/// A running moto_server; dropping it stops it.
#[derive(Debug)]
pub struct Secrets {
    pub endpoint: String,
    _daemon: Daemon,
}

impl Secrets {
    pub async fn start(dir: &Path) -> Secrets {
        let server =
            tools::moto_server().unwrap_or_else(|| panic!("{}", tools::missing().unwrap_or_default()));
        let port = random::port().to_string();
        let mut command = process::command(server);
        // Where moto's Step Functions would look for moto's Lambda.
        command.env("MOTO_PORT", &port).args(["-H", "127.0.0.1", "-p", &port]);
        let mut daemon = Daemon::spawn("moto_server", "TERM", command, dir.join("moto.log"));
        let endpoint = format!("http://127.0.0.1:{port}");
        // A real call, since the first one makes moto import its service, and tests should not wait for that.
        while !matches!(call(&endpoint, "ListSecrets", &json!({})).await, Ok((200, _))) {
            daemon.keep_waiting().await;
        }
        Secrets { endpoint, _daemon: daemon }
    }
}

/// Creates a secret, or gives it a new current version, as a rotation does. A JSON string is stored as its text, so
/// that a secret can be something else than JSON. Returns the ARN.
pub async fn put(endpoint: &str, name: &str, value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let create = json!({"Name": name, "SecretString": text});
    let mut answer = call(endpoint, "CreateSecret", &create).await;
    if matches!(&answer, Ok((400, body)) if body["__type"] == "ResourceExistsException") {
        let update = json!({"SecretId": name, "SecretString": text});
        answer = call(endpoint, "PutSecretValue", &update).await;
    }
    match answer {
        Ok((200, body)) => body["ARN"].as_str().expect("the answer has an ARN").to_owned(),
        other => panic!("moto did not store the secret {name}: {other:?}"),
    }
}

/// One call by hand: the SDK would be another hundred crates. moto takes any signature.
async fn call(endpoint: &str, action: &str, body: &Value) -> io::Result<(u16, Value)> {
    let host = endpoint.trim_start_matches("http://");
    let body = body.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\n\
         Host: {host}\r\n\
         Content-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: secretsmanager.{action}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, \
         SignedHeaders=host, Signature=0\r\n\
         Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("no HTTP status"))?;
    Ok((status, serde_json::from_str(body)?))
}
