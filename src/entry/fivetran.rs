//! Fivetran's AWS Lambda connector. Unknown fields are ignored, because Fivetran adds them.

use serde_json::{Map, Value};

use super::invalid;
use crate::error::Error;
use crate::request::{Action, Door, File, Hidden, Request};

/// S3's bound.
const MAX_KEY_BYTES: usize = 1024;

pub(super) fn read(event: &Map<String, Value>) -> Result<Request, Error> {
    let state = match event.get("state") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(state @ Value::Object(_)) => state.clone(),
        Some(_) => return Err(invalid("`state` is not an object").with_hint("re-sync the connection")),
    };
    let is_setup_test = event.get("setup_test").and_then(Value::as_bool).unwrap_or(false);
    let action = if is_setup_test { Action::Check } else { Action::Sync };
    Ok(Request {
        state: Some(Hidden(state)),
        secrets: event.get("secrets").filter(|_| has_secrets(event)).cloned().map(Hidden),
        file: file(event)?,
        ..Request::new(Door::Fivetran, action)
    })
}

/// `bucket` and `file`, which come where the connection syncs through S3.
fn file(event: &Map<String, Value>) -> Result<Option<File>, Error> {
    let text = |field: &str| match event.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("`{field}` is not a string"))),
    };
    let (bucket, key) = match (text("bucket")?, text("file")?) {
        (None, None) => return Ok(None),
        (Some(bucket), Some(key)) => (bucket, key),
        _ => return Err(invalid("only one of `bucket` and `file` is there")),
    };
    let is_key = !key.is_empty()
        && key.len() <= MAX_KEY_BYTES
        && !key.chars().any(char::is_control)
        && !key.split('/').any(|part| part == "." || part == "..");
    if is_key { Ok(Some(File { bucket, key })) } else { Err(invalid("`file` is not the key of an object")) }
}

fn has_secrets(event: &Map<String, Value>) -> bool {
    event.get("secrets").and_then(Value::as_object).is_some_and(|secrets| !secrets.is_empty())
}
