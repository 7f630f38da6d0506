//! Step Functions: moto executes state machines for real, and their Lambda tasks call a function of the test's.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    http::{self, Server},
    lambda::FunctionError,
    moto::{Moto, STEP_FUNCTIONS},
    random,
};

/// Longest wait for an execution's end. A test that waits longer has failed.
const EXECUTION_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A moto_server of its own, and Lambda for it. Dropping it stops both.
#[derive(Debug)]
pub struct StepFunctions {
    moto: Moto,
    _lambda: Server,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `ABORTED`.
    pub status: String,
    /// Null unless it succeeded.
    pub output: Value,
    /// Empty unless it failed.
    pub error: String,
    pub cause: String,
    /// The names of the states that it entered, in their order.
    pub states: Vec<String>,
}

impl StepFunctions {
    /// `function` answers the tasks of `arn:aws:states:::lambda:invoke`, whatever their function's name.
    pub async fn start<F, A>(dir: &Path, function: F) -> StepFunctions
    where
        F: Fn(Value) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Value, FunctionError>> + Send + 'static,
    {
        let lambda = Server::start(move |request| answer(function.clone(), request)).await;
        let port = lambda.address.port();
        let log = dir.join(format!("step-functions-{port}.log"));
        let moto = Moto::start(log, Some(port), STEP_FUNCTIONS, "ListStateMachines").await;
        let config = json!({"stepfunctions": {"execute_state_machine": true}}).to_string();
        let headers = [("Content-Type", "application/json")];
        let answer = http::post(&moto.address, "/moto-api/config", &headers, &config).await;
        assert!(matches!(answer, Ok((201, _))), "moto does not execute state machines: {answer:?}");
        StepFunctions { moto, _lambda: lambda }
    }

    /// Executes a state machine to its end.
    pub async fn run(&self, definition: &Value, input: &Value) -> Execution {
        let machine = json!({
            "name": random::hex(6),
            "definition": definition.to_string(),
            "roleArn": "arn:aws:iam::123456789012:role/state-machine",
        });
        let machine = self.call("CreateStateMachine", &machine).await;
        let start = json!({"stateMachineArn": machine["stateMachineArn"], "input": input.to_string()});
        let started = self.call("StartExecution", &start).await;
        let execution = json!({"executionArn": started["executionArn"]});
        let deadline = Instant::now() + EXECUTION_LIMIT;
        let ended = loop {
            let description = self.call("DescribeExecution", &execution).await;
            if description["status"] != "RUNNING" {
                break description;
            }
            assert!(Instant::now() < deadline, "the execution does not end: {description}");
            sleep(POLL_INTERVAL).await;
        };
        let text = |key: &str| ended[key].as_str().unwrap_or_default().to_owned();
        let all = json!({"executionArn": started["executionArn"], "maxResults": 1000});
        let history = self.call("GetExecutionHistory", &all).await;
        let events = history["events"].as_array().expect("a history has events");
        let states = events.iter().filter_map(|event| event["stateEnteredEventDetails"]["name"].as_str());
        Execution {
            status: text("status"),
            output: serde_json::from_str(&text("output")).unwrap_or_default(),
            error: text("error"),
            cause: text("cause"),
            states: states.map(str::to_owned).collect(),
        }
    }

    async fn call(&self, action: &str, body: &Value) -> Value {
        match STEP_FUNCTIONS.call(&self.moto.address, action, body).await {
            Ok((200, answer)) => answer,
            other => panic!("{action}: {other:?}"),
        }
    }
}

/// Lambda's Invoke: also the answer to a call that failed has status 200, and a header that says so.
async fn answer<F, A>(function: F, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error>
where
    F: Fn(Value) -> A,
    A: Future<Output = Result<Value, FunctionError>>,
{
    let body = request.into_body().collect().await?.to_bytes();
    let event = serde_json::from_slice(&body).expect("a task's payload is JSON");
    let invocation = function(event);
    let outcome = invocation.await;
    // Without a request id moto's client breaks off on an error.
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("x-amzn-requestid", random::uuid());
    let response = match outcome {
        Ok(answer) => response.body(Full::from(answer.to_string())),
        Err(FunctionError { error_type, message }) => {
            let error = json!({"errorType": as_reported(&error_type), "errorMessage": message});
            response.header("x-amz-function-error", "Unhandled").body(Full::from(error.to_string()))
        }
    };
    Ok(response.expect("the headers are valid"))
}

/// The death of the runtime, out of memory for example, is `Lambda.Unknown` in a state machine (Step Functions
/// Developer Guide, "Handle Lambda service exceptions").
fn as_reported(error_type: &str) -> &str {
    if error_type == "Runtime.ExitError" { "Lambda.Unknown" } else { error_type }
}
