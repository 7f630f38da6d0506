//! Cold start: the log, the AWS clients, the runtime's loop.

use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use bastion_sync::{App, handle};
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::value::RawValue;

/// On one thread, which is faster than several that hand each row's bytes around; what compresses has others.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    bastion_sync::log::init();
    // The SDK has no time-outs of its own. An attempt carries a part of 9 MiB at most; five outlast an S3 that stands still
    // for a minute.
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(20))
        .operation_timeout(Duration::from_secs(120))
        .build();
    let retries = RetryConfig::standard().with_max_attempts(5);
    let config = aws_config::from_env().timeout_config(timeouts).retry_config(retries).load().await;
    let app = Arc::new(App::new(&config));
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Box<RawValue>>| handle(Arc::clone(&app), event)))
        .await
}
