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
use crate::report::{Outcome, Report};
use crate::request::{Action, Door};
use crate::sink::checkpoint::Checkpoint;
use crate::sink::fivetran::Inserts;
use crate::sync::sync;

/// Step Functions takes 256 KiB.
const MAX_ANSWER_BYTES: usize = 200_000;

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
pub async fn handle(app: Arc<App>, event: LambdaEvent<Box<RawValue>>) -> Result<Box<RawValue>, Error> {
    let deadline = Deadline::from_epoch_ms(event.context.deadline);
    let sync_id = Ulid::generate().to_string();
    let span = tracing::info_span!("invocation", sync_id, request_id = event.context.request_id);
    let mut task = JoinSet::new();
    task.spawn(
        async move { invocation(&app, event.payload.get(), deadline, sync_id).await }
            .instrument(span.clone()),
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
    event: &str,
    deadline: Deadline,
    sync_id: String,
) -> Result<Box<RawValue>, Error> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let request = entry::read_text(event, &config.doors)?;
    let deadline = deadline.tightened(request.limits.max_seconds);
    tracing::info!(door = request.door.name(), action = ?request.action, "invocation begins");
    let call = Call { app, config: &config, request: &request, deadline, sync_id };
    match request.action {
        Action::Sync | Action::Audit => {
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
                    let state = request.state.clone().map_or_else(|| json!({}), |state| state.0);
                    Inserts::default().into_answer(&state, &checked.tables, false)
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

/// The answer of a sync, at most `MAX_ANSWER_BYTES` where the checkpoint is the truth: a long one leaves out the copy of
/// the state first, then the tables in which nothing changed, then the rest, and says how many.
fn answer(call: &Call<'_>, outcome: &Outcome) -> Value {
    let mut answer = whole_answer(call, outcome);
    let is_too_long = |answer: &Value| answer.to_string().len() > MAX_ANSWER_BYTES;
    if call.request.state.is_some() || !is_too_long(&answer) {
        return answer;
    }
    answer["state"] = Value::Null;
    let tables = answer["tables"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let all = tables.len();
    let mut kept: Vec<Value> = tables.into_iter().filter(|table| table["rows"] != 0).collect();
    let mut byte_count: usize = kept.iter().map(|table| table.to_string().len() + 1).sum();
    while byte_count + 1_000 > MAX_ANSWER_BYTES {
        byte_count -= kept.pop().map_or(byte_count, |table| table.to_string().len() + 1);
    }
    answer["tables_left_out"] = json!(all - kept.len());
    answer["tables"] = Value::Array(kept);
    answer
}

fn whole_answer(call: &Call<'_>, outcome: &Outcome) -> Value {
    let mut answer = json!({
        "has_more": outcome.has_more,
        "sync_id": call.sync_id,
        "failed": outcome.failed_count(),
        "state": outcome.state.to_value(),
        "tables": outcome.reports.iter().map(Report::to_value).collect::<Vec<_>>(),
    });
    if !outcome.notes.is_empty() {
        answer["notes"] = json!(outcome.notes);
    }
    answer
}

fn fivetran_answer(outcome: Outcome) -> Result<Box<RawValue>, Error> {
    // Fivetran has no place for a table's error: it is an error of the sync, or the table would stand still unseen.
    if let Some(error) = outcome.reports.into_iter().find_map(|report| report.outcome.err()) {
        return Err(error);
    }
    outcome.inserts.into_answer(&outcome.state.to_value(), &outcome.tables, outcome.has_more)
}

fn raw(value: &Value) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::new(Kind::Internal, "answer").with_source(error))
}
