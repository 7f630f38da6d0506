//! moto_server, which stands in for AWS's smaller services.

use std::{io, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    http,
    process::{self, Daemon},
    random, tools,
};

/// A running moto_server; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Moto {
    pub(crate) address: String,
    _daemon: Daemon,
}

/// A service of moto's, as its protocol names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    name: &'static str,
    target: &'static str,
    json_version: &'static str,
}

pub(crate) const SECRETS_MANAGER: Service =
    Service { name: "secretsmanager", target: "secretsmanager", json_version: "1.1" };
pub(crate) const STEP_FUNCTIONS: Service =
    Service { name: "states", target: "AWSStepFunctions", json_version: "1.0" };

impl Moto {
    /// `lambda_port`: where its Step Functions find Lambda, on localhost.
    pub(crate) async fn start(
        log: PathBuf,
        lambda_port: Option<u16>,
        service: Service,
        first_action: &str,
    ) -> Moto {
        let server =
            tools::moto_server().unwrap_or_else(|| panic!("{}", tools::missing().unwrap_or_default()));
        let port = random::port();
        let address = format!("127.0.0.1:{port}");
        let mut command = process::command(server);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.env("MOTO_PORT", lambda_port.unwrap_or(port).to_string());
        // What is set for the way out would lead moto's own calls away from localhost.
        command.env("NO_PROXY", "localhost,127.0.0.1").env("no_proxy", "localhost,127.0.0.1");
        let mut daemon = Daemon::spawn("moto_server", "TERM", command, log);
        // A real call, since the first one makes moto import its service, and tests should not wait for that.
        while !matches!(service.call(&address, first_action, &json!({})).await, Ok((200, _))) {
            daemon.keep_waiting().await;
        }
        Moto { address, _daemon: daemon }
    }
}

impl Service {
    /// One call: status and answer. moto takes any signature.
    pub(crate) async fn call(self, address: &str, action: &str, body: &Value) -> io::Result<(u16, Value)> {
        let Service { name, target, json_version } = self;
        let headers = [
            ("Content-Type", format!("application/x-amz-json-{json_version}")),
            ("X-Amz-Target", format!("{target}.{action}")),
            (
                "Authorization",
                format!(
                    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{name}/aws4_request, \
                     SignedHeaders=host, Signature=0"
                ),
            ),
        ];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (status, body) = http::post(address, "/", &headers, &body.to_string()).await?;
        Ok((status, serde_json::from_slice(&body)?))
    }
}
