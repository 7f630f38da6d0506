//! Cold start: the log, the AWS clients, the runtime's loop.

use std::sync::Arc;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use bastion_sync::{App, handle};
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    log();
    // The SDK has no time-outs of its own. An attempt carries a part of 8 MiB at most.
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(20))
        .operation_timeout(Duration::from_secs(60))
        .build();
    let config = aws_config::from_env().timeout_config(timeouts).load().await;
    let app = Arc::new(App::new(&config));
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| handle(Arc::clone(&app), event))).await
}

/// One JSON object a line, flat, with timestamp and level: without a timestamp Lambda files every line as INFO. TRACE,
/// which would log whole events, is compiled out.
fn log() {
    let level = std::env::var("AWS_LAMBDA_LOG_LEVEL").unwrap_or_else(|_| "INFO".to_owned());
    let filter =
        EnvFilter::try_new(format!("warn,bastion_sync={level}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    if std::env::var("AWS_LAMBDA_LOG_FORMAT").is_ok_and(|format| format.eq_ignore_ascii_case("text")) {
        subscriber.init();
    } else {
        subscriber.json().flatten_event(true).with_span_list(false).init();
    }
}
