//! EventBridge: a rule's event, whose unknown fields are ignored, or the input that our Scheduler sends, whose are not.

use serde_json::{Map, Value};

use super::{invalid, limits, refuse_unknown, tables};
use crate::error::Error;
use crate::request::{Action, Door, Request};

pub(super) fn read(event: &Map<String, Value>) -> Result<Request, Error> {
    let is_scheduler_input = event.contains_key("trigger");
    if is_scheduler_input {
        if event.get("trigger").and_then(Value::as_str) != Some("schedule") {
            return Err(invalid("`trigger` is not \"schedule\""));
        }
        refuse_unknown(event, &["trigger", "tables", "limits"], "the schedule's input")?;
    }
    let request = Request::new(Door::EventBridge, Action::Sync);
    match is_scheduler_input {
        true => Ok(Request { tables: tables(event)?, limits: limits(event)?, ..request }),
        false => Ok(request),
    }
}
