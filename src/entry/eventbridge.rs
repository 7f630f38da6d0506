//! EventBridge: a rule's event, whose unknown fields are ignored, or the input that our Scheduler sends, whose are not.

use serde_json::{Map, Value};

use super::{invalid, limits, refuse_unknown, tables};
use crate::error::Error;
use crate::request::{Action, Door, Limits, Request};

pub(super) fn read(event: &Map<String, Value>) -> Result<Request, Error> {
    let is_scheduler_input = event.contains_key("trigger");
    if is_scheduler_input {
        if event.get("trigger").and_then(Value::as_str) != Some("schedule") {
            return Err(invalid("`trigger` is not \"schedule\""));
        }
        refuse_unknown(event, &["trigger", "tables", "limits"], "the schedule's input")?;
    }
    Ok(Request {
        door: Door::EventBridge,
        action: Action::Sync,
        tables: if is_scheduler_input { tables(event)? } else { None },
        limits: if is_scheduler_input { limits(event)? } else { Limits::default() },
        state: None,
        secrets: None,
    })
}
