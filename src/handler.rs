//! One invocation: the runtime's event in, a door's answer or a named error out.

use std::sync::Arc;

use lambda_runtime::{Diagnostic, LambdaEvent};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tracing::Instrument;
use ulid::Ulid;

use crate::app::{App, Call};
use crate::check::check;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::discover::discover;
use crate::entry;
use crate::error::{Error, Kind};
use crate::metrics;
use crate::report::{Outcome, Report};
use crate::request::{Action, Door};
use crate::sink::checkpoint::Checkpoint;
use crate::sink::fivetran::Answer;
use crate::status::status;
use crate::sync::sync;

/// Step Functions takes 256 KiB.
const MAX_ANSWER_BYTES: usize = 200_000;

/// Fivetran's test may have an answer of 64 KiB, which the schemas of so many tables with long names stay under.
const MOST_TABLES_OF_A_TEST: usize = 200;

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
        async move { Box::pin(invocation(&app, event.payload.get(), deadline, sync_id)).await }
            .instrument(span.clone()),
    );
    let outcome = match timeout_at(deadline.last_call().into(), task.join_next()).await {
        Ok(Some(Ok(outcome))) => outcome,
        Ok(Some(Err(_)) | None) => {
            Err(Error::new(Kind::Internal, "the program panicked; its log shows where")
                .with_hint("please report it with the log"))
        }
        // All hops but S3 have time-outs that end before.
        Err(_) => {
            task.shutdown().await;
            Err(Error::new(Kind::StorageUnavailable, "S3 did not take what was read before the time was over")
                .with_hint("nothing is lost, the next run goes on; should it happen again, give the function a longer timeout"))
        }
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
    let request = entry::read_text(event)?;
    let config = Config::from_env(|name| std::env::var(name).ok(), &request)?;
    let deadline = deadline.tightened(request.limits.max_seconds);
    tracing::info!(door = request.door.name(), action = ?request.action, "invocation begins");
    let call = Call { app, config: &config, request: &request, deadline, sync_id };
    match request.action {
        Action::Sync | Action::Audit => {
            let mut outcome = Box::pin(sync(&call)).await?;
            let answer = match outcome.answer.take() {
                Some(answer) => {
                    answer.finish(&outcome.state.to_value(), &outcome.tables, outcome.has_more).await?
                }
                None => raw(&answer(&call, &outcome))?,
            };
            metrics::emit(&outcome);
            Ok(answer)
        }
        Action::Check => {
            let checked = check(&call).await?;
            match request.door {
                Door::Fivetran => {
                    let state = request.state.clone().map_or_else(|| json!({}), |state| state.0);
                    let answer = Answer::new(call.document()?, 0);
                    // The answer to a test may have 64 KiB.
                    let is_long = checked.tables.len() > MOST_TABLES_OF_A_TEST;
                    let tables = if is_long { &[][..] } else { &checked.tables };
                    answer.finish(&state, tables, false).await
                }
                Door::Direct | Door::EventBridge => raw(&checked.to_value()),
            }
        }
        Action::Resync => resync(&call).await,
        Action::Status => {
            let mut status = status(&call).await?;
            shorten(&mut status, |table| !table["error"].is_null());
            raw(&status)
        }
        Action::Discover => {
            let mut discovered = discover(&call).await?;
            shorten(&mut discovered, |table| table["problem"].is_null());
            raw(&discovered)
        }
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
    shorten(&mut answer, |table| table["rows"] != 0);
    answer
}

/// Leaves tables out of an answer that is too long, first those that say little.
fn shorten(answer: &mut Value, says_much: impl Fn(&Value) -> bool) {
    if answer.to_string().len() <= MAX_ANSWER_BYTES {
        return;
    }
    let tables = answer["tables"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let all = tables.len();
    let (mut kept, others): (Vec<Value>, Vec<Value>) = tables.into_iter().partition(says_much);
    kept.extend(others);
    let mut room = MAX_ANSWER_BYTES.saturating_sub(answer.to_string().len() + 100);
    kept.retain(|table| {
        let bytes = table.to_string().len() + 1;
        let fits = bytes <= room;
        room = if fits { room - bytes } else { 0 };
        fits
    });
    answer["tables_left_out"] = json!(all - kept.len());
    answer["tables"] = Value::Array(kept);
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

fn raw(value: &Value) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::new(Kind::Internal, "answer").with_source(error))
}
