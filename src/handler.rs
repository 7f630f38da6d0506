//! One invocation: the runtime's event in, a door's answer or a named error out.

use std::sync::Arc;

use lambda_runtime::{Diagnostic, LambdaEvent};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::Instrument;
use ulid::Ulid;

use crate::app::{App, Call};
use crate::check::check;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::entry;
use crate::error::{Error, Kind};
use crate::metrics;
use crate::request::{Action, Door};
use crate::sink::checkpoint::Checkpoint;
use crate::sink::fivetran::Inserts;
use crate::sync::{Outcome, sync};
use crate::table::Table;

impl From<Error> for Diagnostic {
    /// Step Functions matches the type exactly.
    fn from(error: Error) -> Self {
        Self { error_type: error.kind().name(), error_message: error.to_string() }
    }
}

/// Answers one invocation. It runs as a task of its own, so that a panic becomes `Internal` and all that it spawned ends
/// with it.
///
/// # Errors
/// Every kind.
pub async fn handle(app: Arc<App>, event: LambdaEvent<Value>) -> Result<Box<RawValue>, Error> {
    let deadline = Deadline::from_epoch_ms(event.context.deadline);
    let sync_id = Ulid::generate().to_string();
    let span = tracing::info_span!("invocation", sync_id, request_id = event.context.request_id);
    let mut task = JoinSet::new();
    task.spawn(
        async move { invocation(&app, &event.payload, deadline, sync_id).await }.instrument(span.clone()),
    );
    let outcome = match task.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) | None => Err(Error::new(Kind::Internal, "the program panicked; its log shows where")
            .with_hint("please report it with the log")),
    };
    if let Err(error) = &outcome {
        span.in_scope(|| {
            let (error_type, retryable) = (error.kind().name(), error.kind().is_retryable());
            tracing::error!(error_type, retryable, error = %error, "invocation failed");
        });
    }
    outcome
}

async fn invocation(
    app: &App,
    event: &Value,
    deadline: Deadline,
    sync_id: String,
) -> Result<Box<RawValue>, Error> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let request = entry::read(event, &config.doors)?;
    let deadline = deadline.tightened(request.limits.max_seconds);
    tracing::info!(door = request.door.name(), action = ?request.action, "invocation begins");
    let call = Call { app, config: &config, request: &request, deadline, sync_id };
    match request.action {
        Action::Sync => {
            let outcome = sync(&call).await?;
            metrics::emit(&outcome);
            match request.door {
                Door::Fivetran => fivetran_answer(outcome),
                Door::Direct | Door::EventBridge => raw(&answer(&call, &outcome)),
            }
        }
        Action::Check => {
            let checked = check(&call).await?;
            match request.door {
                Door::Fivetran => {
                    let state = request.state.clone().unwrap_or_else(|| json!({}));
                    let tables: Vec<&Table> = checked.tables.iter().map(Arc::as_ref).collect();
                    Inserts::default().into_answer(&state, &tables, false)
                }
                Door::Direct | Door::EventBridge => raw(&checked.to_value()),
            }
        }
        Action::Resync => resync(&call).await,
    }
}

async fn resync(call: &Call<'_>) -> Result<Box<RawValue>, Error> {
    call.rules().await?;
    let tables: Vec<String> = call.request.tables.iter().flatten().map(ToString::to_string).collect();
    let mut checkpoint = Checkpoint::load(&call.storage()?).await?;
    checkpoint.forget(&tables).await?;
    raw(&json!({"ok": true, "resync": tables}))
}

fn answer(call: &Call<'_>, outcome: &Outcome) -> Value {
    json!({
        "has_more": outcome.has_more,
        "sync_id": call.sync_id,
        "failed": outcome.failed_count(),
        "state": outcome.state.to_value(),
        "tables": outcome.reports.iter().map(crate::sync::Report::to_value).collect::<Vec<_>>(),
    })
}

fn fivetran_answer(outcome: Outcome) -> Result<Box<RawValue>, Error> {
    // Fivetran has no place for a table's error: it is an error of the sync, or the table would stand still unseen.
    if let Some(report) = outcome.reports.into_iter().find(|report| report.error.is_some()) {
        return Err(report.error.expect("just found"));
    }
    let tables: Vec<&Table> = outcome.tables.iter().map(Arc::as_ref).collect();
    outcome.inserts.into_answer(&outcome.state.to_value(), &tables, outcome.has_more)
}

fn raw(value: &Value) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::new(Kind::Internal, "answer").with_source(error))
}
