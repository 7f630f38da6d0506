//! The state machines of docs/, as they are but for the time between tries and the size of a call, executed with the
//! real binary.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bastion_sync::error::Kind;
use harness::{Execution, Function, FunctionError, StepFunctions, process};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::case::{Case, TIMEOUT, invoke, start};

const WITH_CHECKPOINT: &str = "step-functions-sync.asl.json";
const WITH_STATE: &str = "step-functions-state.asl.json";

fn machine(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Thirty rows a call, and a second before it tries again.
fn hurried(name: &str) -> Value {
    let mut machine = machine(name);
    let task = &mut machine["States"]["Sync"];
    task["Parameters"]["Payload"]["limits"] = json!({"max_rows": 30});
    task["Retry"][0]["IntervalSeconds"] = json!(1);
    machine
}

/// The function as Lambda keeps it: where a process died, the next call gets another.
struct Lambda {
    env: Vec<(String, String)>,
    function: tokio::sync::Mutex<Function>,
    outcomes: Mutex<Vec<String>>,
}

impl Lambda {
    async fn with(env: Vec<(String, String)>) -> Arc<Self> {
        let function = tokio::sync::Mutex::new(start(env.clone()).await);
        Arc::new(Self { env, function, outcomes: Mutex::default() })
    }

    async fn call(&self, event: Value) -> Result<Value, FunctionError> {
        let mut function = self.function.lock().await;
        let outcome = invoke(&function, &event).await.outcome;
        let told = outcome.as_ref().map_or_else(|error| error.error_type.clone(), |_| "answered".to_owned());
        if told == "Runtime.ExitError" {
            *function = start(self.env.clone()).await;
        }
        self.outcomes.lock().unwrap().push(told);
        outcome
    }

    /// Of each call so far: `answered`, or the error's type.
    fn outcomes(&self) -> Vec<String> {
        self.outcomes.lock().unwrap().clone()
    }
}

async fn step_functions(case: &Case, lambda: &Arc<Lambda>) -> StepFunctions {
    let lambda = Arc::clone(lambda);
    let function = move |event| {
        let lambda = Arc::clone(&lambda);
        async move { lambda.call(event).await }
    };
    StepFunctions::start(&case.stack.dir, function).await
}

#[track_caller]
fn assert_failed(execution: &Execution, state: &str, error: &str, cause: &str) {
    assert_eq!((execution.status.as_str(), execution.error.as_str()), ("FAILED", error), "{execution:?}");
    assert_eq!(execution.states.last().map(String::as_str), Some(state), "{execution:?}");
    assert!(execution.cause.contains(cause), "{execution:?}");
}

#[tokio::test]
async fn the_machine_loops_until_all_is_delivered() {
    let case = Case::with_users("machine_loops", 100).await;
    let lambda = Lambda::with(case.env(&case.configuration(), &[]).await).await;
    let step_functions = step_functions(&case, &lambda).await;
    let execution = step_functions.run(&hurried(WITH_CHECKPOINT), &json!({})).await;
    assert_eq!(execution.status, "SUCCEEDED", "{execution:?}");
    assert_eq!(execution.output, json!({"has_more": false, "failed": 0}));
    assert!(lambda.outcomes().len() >= 4, "100 rows in calls of 30: {:?}", lambda.outcomes());
    assert_eq!(execution.states.iter().filter(|state| *state == "Sync").count(), lambda.outcomes().len());
    assert_eq!(case.rows("public.sample_users").len(), 100);
    case.assert_users_are_complete().await;
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_machine_with_the_state_hands_it_from_call_to_call_and_out_for_the_next_execution() {
    let case = Case::with_users("machine_state", 100).await;
    let lambda = Lambda::with(case.env(&case.configuration(), &[]).await).await;
    let step_functions = step_functions(&case, &lambda).await;
    let machine = hurried(WITH_STATE);
    let first = step_functions.run(&machine, &json!({})).await;
    assert_eq!((first.status.as_str(), &first.output["failed"]), ("SUCCEEDED", &json!(0)), "{first:?}");
    assert!(lambda.outcomes().len() >= 4, "100 rows in calls of 30: {:?}", lambda.outcomes());
    assert_eq!(case.rows("public.sample_users").len(), 100);
    assert_eq!(case.checkpoint(), Value::Null, "the caller holds the state");

    case.run("insert into sample_users values ('new', 'one')").await;
    let second = step_functions.run(&machine, &first.output).await;
    assert_eq!(second.status, "SUCCEEDED", "{second:?}");
    assert_eq!(case.rows("public.sample_users").len(), 101, "the new row alone");
    case.assert_users_are_complete().await;

    let mut foreign = second.output;
    foreign["state"]["database"]["system_identifier"] = json!("1");
    let third = step_functions.run(&machine, &foreign).await;
    assert_failed(&third, "Another database", "CursorInvalid", "ON_NEW_DATABASE");
}

#[tokio::test]
async fn a_retryable_error_is_tried_again_until_the_bastion_is_back() {
    let case = Case::with_users("machine_retries", 20).await;
    let proxy = case.bastion_proxy().await;
    proxy.refuse();
    let lambda = Lambda::with(case.env(&case.configuration_through(&proxy), &[]).await).await;
    let step_functions = step_functions(&case, &lambda).await;
    let back = async {
        while lambda.outcomes().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
        proxy.pass();
    };
    let (machine, input) = (hurried(WITH_CHECKPOINT), json!({}));
    let both = async { tokio::join!(step_functions.run(&machine, &input), back).0 };
    let execution = tokio::time::timeout(TIMEOUT, both).await.expect("it ends");
    assert_eq!(execution.status, "SUCCEEDED", "{execution:?}");
    let outcomes = lambda.outcomes();
    assert_eq!(outcomes[0], "BastionUnreachable");
    assert_eq!(outcomes.last().map(String::as_str), Some("answered"), "{outcomes:?}");
    case.assert_users_are_complete().await;
}

#[tokio::test]
async fn a_wrong_host_key_is_caught_by_its_name_at_once() {
    let case = Case::with_users("machine_host_key", 3).await;
    let mut configuration = case.configuration();
    configuration["bastion_host_key"] = json!(format!("SHA256:{}", "A".repeat(43)));
    let lambda = Lambda::with(case.env(&configuration, &[]).await).await;
    let step_functions = step_functions(&case, &lambda).await;
    let execution = step_functions.run(&hurried(WITH_CHECKPOINT), &json!({})).await;
    assert_failed(&execution, "Another host key", "BastionHostKeyMismatch", "bastion_host_key");
    assert_eq!(lambda.outcomes(), ["BastionHostKeyMismatch"], "one call");
    case.assert_nothing_is_written();
}

#[tokio::test]
async fn tables_that_fail_are_told_when_the_others_are_done() {
    let case = Case::with_users("machine_tables", 50).await;
    case.run("create table broken (id int primary key, modified_at timestamptz); insert into broken values (1, now())").await;
    case.run(&format!("revoke all on broken from {}", case.database.user)).await;
    let env = case.env(&case.configuration(), &[("TABLES", "sample_users,broken")]).await;
    let lambda = Lambda::with(env).await;
    let step_functions = step_functions(&case, &lambda).await;
    let machine = hurried(WITH_CHECKPOINT);
    let execution = step_functions.run(&machine, &json!({})).await;
    assert_failed(&execution, "Tables failed", "TablesFailed", "tables that failed: 1");
    case.assert_users_are_complete().await;

    case.run(&format!("revoke all on sample_users from {}", case.database.user)).await;
    let execution = step_functions.run(&machine, &json!({})).await;
    assert_failed(&execution, "Failed", "PermissionDenied", "grant SELECT");
}

#[tokio::test]
async fn a_crash_is_tried_again_and_loses_nothing() {
    let case = Case::with_users("machine_crash", 100).await;
    let (proxy, url) = case.s3_proxy().await;
    let lambda = Lambda::with(case.env(&case.configuration(), &[("AWS_ENDPOINT_URL_S3", &url)]).await).await;
    let pid = lambda.function.lock().await.pid();
    let step_functions = step_functions(&case, &lambda).await;
    let hold = proxy.hold_when_seen(format!("PUT /bastion-sync/{}/_state/checkpoint.json", case.prefix));
    let kill = async {
        hold.seen().await;
        process::signal(&[pid], "KILL");
        // Lest the request that is held back arrives after all.
        proxy.cut();
    };
    let (machine, input) = (hurried(WITH_CHECKPOINT), json!({}));
    let (execution, ()) = tokio::join!(step_functions.run(&machine, &input), kill);
    assert_eq!(execution.status, "SUCCEEDED", "{execution:?}");
    let outcomes = lambda.outcomes();
    assert_eq!(outcomes[0], "Runtime.ExitError");
    assert!(outcomes[1..].iter().all(|outcome| outcome == "answered"), "{outcomes:?}");
    assert_eq!(case.rows("public.sample_users").len(), 100);
    case.assert_users_are_complete().await;
}

#[test]
fn the_machines_retry_exactly_what_the_code_calls_retryable() {
    for name in [WITH_CHECKPOINT, WITH_STATE] {
        let machine = machine(name);
        let retry = machine["States"]["Sync"]["Retry"].as_array().unwrap();
        let mut retried: Vec<&str> = retry
            .iter()
            .flat_map(|retrier| retrier["ErrorEquals"].as_array().unwrap())
            .map(|kind| kind.as_str().unwrap())
            .collect();
        let kinds: Vec<String> =
            Kind::ALL.into_iter().filter(|kind| kind.is_retryable()).map(Kind::name).collect();
        let mut expected: Vec<&str> = kinds.iter().map(String::as_str).collect();
        // What Lambda and Step Functions say when the function itself cannot.
        expected.extend([
            "Sandbox.Timedout",
            "Runtime.ExitError",
            "Lambda.Unknown",
            "Lambda.TooManyRequestsException",
            "Lambda.ServiceException",
            "Lambda.AWSLambdaException",
            "Lambda.SdkClientException",
        ]);
        // The call may still run: with the checkpoint that does no harm.
        expected.extend((name == WITH_CHECKPOINT).then_some("Lambda.ClientExecutionTimeoutException"));
        retried.sort();
        expected.sort();
        assert_eq!(retried, expected, "{name}");
    }
}
