//! Fivetran's AWS Lambda connector. Unknown fields are ignored, because Fivetran adds them.

use serde_json::{Map, Value};

use super::invalid;
use crate::error::Error;
use crate::request::{Action, Door, Hidden, Limits, Request};

pub(super) fn read(event: &Map<String, Value>) -> Result<Request, Error> {
    if is_given(event, "bucket") || is_given(event, "file") {
        return Err(invalid("`bucket` and `file`: syncing through S3 is not in this version")
            .with_hint("set the connection's sync method to direct"));
    }
    let state = match event.get("state") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(state @ Value::Object(_)) => state.clone(),
        Some(_) => return Err(invalid("`state` is not an object").with_hint("re-sync the connection")),
    };
    let is_setup_test = event.get("setup_test").and_then(Value::as_bool).unwrap_or(false);
    Ok(Request {
        door: Door::Fivetran,
        action: if is_setup_test { Action::Check } else { Action::Sync },
        tables: None,
        limits: Limits::default(),
        state: Some(Hidden(state)),
        secrets: event.get("secrets").filter(|_| has_secrets(event)).cloned().map(Hidden),
    })
}

fn is_given(event: &Map<String, Value>, field: &str) -> bool {
    !matches!(event.get(field), None | Some(Value::Null))
}

fn has_secrets(event: &Map<String, Value>) -> bool {
    event.get("secrets").and_then(Value::as_object).is_some_and(|secrets| !secrets.is_empty())
}
