//! `cargo lambda watch`, a laptop's Lambda. Its deadlines lie in 1970, and no answer is too long for it.

use std::{env, path::Path};

use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    http,
    lambda::FunctionOptions,
    process::{self, Daemon},
    random, tools,
};

/// Its server and the function. Dropping it stops both.
#[derive(Debug)]
pub struct Watch {
    address: String,
    _function: Daemon,
    _server: Daemon,
}

impl Watch {
    /// Starts the server alone, which would build the function again, and the binary as its function.
    pub async fn start(dir: &Path, options: FunctionOptions) -> Watch {
        let program = tools::cargo_lambda().expect("tests/setup.sh installs cargo-lambda");
        let port = random::port();
        let address = format!("127.0.0.1:{port}");
        let mut command = process::command(program);
        command
            .args(["lambda", "watch", "--only-lambda-apis", "--ignore-changes", "-A", "127.0.0.1"])
            .args(["-P", &port.to_string()])
            // It asks cargo about the package that it stands in.
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let mut server =
            Daemon::spawn("cargo lambda watch", "TERM", command, dir.join(format!("watch-{port}.log")));
        while TcpStream::connect(&address).await.is_err() {
            server.keep_waiting().await;
        }

        let mut command = process::command(options.binary);
        command
            .env_clear()
            .envs(["PATH", "HOME"].into_iter().filter_map(|name| Some((name, env::var_os(name)?))))
            .env("AWS_LAMBDA_RUNTIME_API", format!("http://{address}/.rt/bastion-sync"))
            .env("AWS_LAMBDA_FUNCTION_NAME", "bastion-sync")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .envs(options.env);
        let log = dir.join(format!("watched-function-{port}.log"));
        let function = Daemon::spawn("the function", "KILL", command, log);
        Watch { address, _function: function, _server: server }
    }

    /// What `cargo lambda invoke` does: HTTP status and body.
    pub async fn invoke(&self, event: &Value) -> (u16, Value) {
        let path = "/2015-03-31/functions/bastion-sync/invocations";
        let answer = http::post(&self.address, path, &[], &event.to_string()).await;
        let (status, body) = answer.unwrap_or_else(|error| panic!("cargo lambda watch: {error}"));
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)));
        (status, body)
    }
}
