//! AWS's own runtime interface emulator, with the real binary under it: what Lambda does around a function, from the
//! deadline to the kill, without any of our assumptions. Its executables are for Linux.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    http,
    lambda::{FunctionError, Invocation, parse_error},
    process::{self, Daemon},
    random, tools,
};

/// Longest wait for an answer beyond the function's own time: the emulator kills in a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    pub binary: PathBuf,
    /// In addition to what Lambda sets. The environment of the tests is not passed on.
    pub env: Vec<(String, String)>,
    /// The function's, which includes a cold start. The emulator knows whole seconds only.
    pub timeout_seconds: u32,
}

/// A running emulator. It starts the function's process with the first event, and another with the next event after a
/// time-out or the process's death. Dropping it stops both.
#[derive(Debug)]
pub struct Emulator {
    address: String,
    limit: Duration,
    /// A second event at once ends the emulator.
    turn: Mutex<()>,
    daemon: Daemon,
}

impl Emulator {
    pub async fn start(dir: &Path, options: EmulatorOptions) -> Emulator {
        let program = tools::runtime_interface_emulator()
            .expect("tests/setup.sh installs aws-sam-cli, which brings the emulator");
        let address = format!("127.0.0.1:{}", random::port());
        let runtime_api = format!("127.0.0.1:{}", random::port());
        // TERM, at which it kills the function: that is a process group of its own.
        let mut command = process::command_ended_by("TERM", program);
        command
            .args(["--runtime-interface-emulator-address", &address, "--runtime-api-address", &runtime_api])
            .arg(&options.binary)
            .env_clear()
            .envs(["PATH", "HOME"].into_iter().filter_map(|name| Some((name, env::var_os(name)?))))
            .env("AWS_LAMBDA_FUNCTION_TIMEOUT", options.timeout_seconds.to_string())
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_LOG_FORMAT", "JSON")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(options.env);
        let log = dir.join(format!("emulator-{}.log", random::hex(4)));
        let mut daemon = Daemon::spawn("aws-lambda-rie", "TERM", command, log);
        while TcpStream::connect(&address).await.is_err() {
            daemon.keep_waiting().await;
        }
        let limit = Duration::from_secs(options.timeout_seconds.into()) + PATIENCE;
        Emulator { address, limit, turn: Mutex::default(), daemon }
    }

    /// Invokes the function; `elapsed` includes a cold start.
    pub async fn invoke(&self, event: &Value) -> Invocation {
        let _turn = self.turn.lock().await;
        let began = Instant::now();
        let event = event.to_string();
        let answer = http::post(&self.address, "/2015-03-31/functions/function/invocations", &[], &event);
        let answer = timeout(self.limit, answer).await.expect("the emulator answers in time");
        let (status, body) =
            answer.unwrap_or_else(|error| panic!("the emulator: {error}\n{}", self.daemon.log()));
        Invocation {
            request_id: self.last_request_id(),
            outcome: outcome(status, &body),
            elapsed: began.elapsed(),
            response_bytes: body.len(),
        }
    }

    /// Lines of the function and of the emulator, Lambda's START, END and REPORT among them, in the order of arrival.
    pub fn logs(&self) -> Vec<String> {
        self.daemon.log().lines().map(str::to_owned).collect()
    }

    /// The function's process, if there is one.
    pub fn function_pid(&self) -> Option<u32> {
        process::children(self.daemon.pid()).first().copied()
    }

    fn last_request_id(&self) -> String {
        let log = self.daemon.log();
        let mut lines = log.lines().rev();
        let id = lines.find_map(|line| line.strip_prefix("START RequestId: ")?.split(' ').next());
        id.unwrap_or_default().to_owned()
    }
}

/// The emulator sends no header that tells an error from an answer; both have status 200, and only a process that died
/// has 502.
fn outcome(status: u16, body: &[u8]) -> Result<Value, FunctionError> {
    let text = String::from_utf8_lossy(body);
    if text.starts_with("Task timed out after ") {
        let error_type = "Sandbox.Timedout".to_owned();
        return Err(FunctionError { error_type, message: text.into_owned() });
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(answer) if status == 200 && answer.get("errorType").is_none() => Ok(answer),
        Ok(_) | Err(_) => Err(parse_error(body)),
    }
}
