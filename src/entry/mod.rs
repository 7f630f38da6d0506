//! The doors: three foreign event shapes, one [`Request`]. Nothing outside this module knows a foreign shape of event.

mod direct;
mod eventbridge;
mod fivetran;

use serde_json::{Map, Value};

use crate::error::{Error, Kind};
use crate::request::{Door, Limits, Request};
use crate::table_name::TableName;

/// Lambda takes no larger ones. A state that was answered must be taken back.
const MAX_EVENT_BYTES: usize = 6 << 20;

/// Of schema and table, 63 bytes each, quoted however.
const MAX_NAME_BYTES: usize = 300;

/// As many as an event may name; a pattern in the configuration takes any number.
const MAX_TABLES: usize = 1000;

/// Reads an event as it came. The runtime hands it over unparsed: what it cannot parse itself it reports under the name
/// of a Rust type.
///
/// # Errors
/// `InvalidRequest`, naming the field.
pub(crate) fn read_text(event: &str) -> Result<Request, Error> {
    if event.len() > MAX_EVENT_BYTES {
        return Err(invalid(format!("the event has {} bytes, more than {MAX_EVENT_BYTES}", event.len())));
    }
    let event = serde_json::from_str(event).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        invalid(format!("the event cannot be read at {place}: it is nested too deep, or holds a number or a text that is none"))
    })?;
    read(&event)
}

/// Tells whose event it is and reads it. Does no I/O.
///
/// # Errors
/// `InvalidRequest`, naming the field.
fn read(event: &Value) -> Result<Request, Error> {
    let Some(object) = event.as_object() else {
        return Err(invalid("the event is not a JSON object").with_hint(direct::EXAMPLE));
    };
    match door_of(object) {
        Door::Direct => direct::read(object),
        Door::EventBridge => eventbridge::read(object),
        Door::Fivetran => fivetran::read(object),
    }
}

fn door_of(event: &Map<String, Value>) -> Door {
    let has = |field| event.contains_key(field);
    if has("agent") || has("setup_test") || (has("state") && has("secrets")) {
        Door::Fivetran
    } else if has("trigger") || (has("source") && has("detail-type")) {
        Door::EventBridge
    } else {
        Door::Direct
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(Kind::InvalidRequest, context)
}

fn refuse_unknown(object: &Map<String, Value>, known: &[&str], place: &str) -> Result<(), Error> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(field) => Err(invalid(format!("unknown field `{}` in {place}", clipped(field)))
            .with_hint(format!("known fields: {}", known.join(", ")))),
    }
}

fn tables(object: &Map<String, Value>) -> Result<Option<Vec<TableName>>, Error> {
    let Some(value) = object.get("tables").filter(|value| !value.is_null()) else { return Ok(None) };
    let names = value.as_array().ok_or_else(|| invalid("`tables` is not a list of names"))?;
    if names.is_empty() {
        return Err(invalid("`tables` is empty").with_hint("leave it out to take all configured tables"));
    }
    if names.len() > MAX_TABLES {
        return Err(invalid(format!("`tables` has {} names, more than {MAX_TABLES}", names.len())));
    }
    let mut tables = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        let text = name.as_str().ok_or_else(|| invalid(format!("`tables[{i}]` is not a string")))?;
        if text.len() > MAX_NAME_BYTES {
            return Err(invalid(format!("`tables[{i}]` is longer than any table's name")));
        }
        let table = TableName::parse(text)
            .map_err(|problem| invalid(format!("`tables[{i}]`: {}", clipped(&problem))))?;
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    Ok(Some(tables))
}

fn limits(object: &Map<String, Value>) -> Result<Limits, Error> {
    let Some(value) = object.get("limits").filter(|value| !value.is_null()) else {
        return Ok(Limits::default());
    };
    let limits = value.as_object().ok_or_else(|| invalid("`limits` is not an object"))?;
    refuse_unknown(limits, &["max_seconds", "max_rows", "max_bytes"], "`limits`")?;
    let limit = |field: &str| match limits.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(invalid(format!("`limits.{field}` is not a whole number above 0"))),
        },
    };
    Ok(Limits {
        max_seconds: limit("max_seconds")?,
        max_rows: limit("max_rows")?,
        max_bytes: limit("max_bytes")?,
    })
}

/// Foreign text in an error: short, and on one line.
fn clipped(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match clean.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Action;
    use serde_json::json;

    #[test]
    fn an_empty_event_syncs_all_tables() {
        let request = read(&json!({})).expect("a request");
        assert_eq!((request.door, request.action), (Door::Direct, Action::Sync));
        assert!(request.tables.is_none() && request.state.is_none());
    }

    #[test]
    fn each_event_reaches_its_door() {
        for (event, door) in [
            (json!({"action": "check"}), Door::Direct),
            (json!({"state": {}}), Door::Direct),
            (json!({"trigger": "schedule", "tables": ["users"]}), Door::EventBridge),
            (
                json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
                Door::EventBridge,
            ),
            (
                json!({"agent": "Fivetran AWS Lambda Connector/x/y", "state": {}, "new_field": 1}),
                Door::Fivetran,
            ),
            (json!({"setup_test": true}), Door::Fivetran),
            (json!({"state": {}, "secrets": {}}), Door::Fivetran),
        ] {
            assert_eq!(read(&event).expect("a request").door, door, "{event}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (event, named) in [
            (json!([]), "not a JSON object"),
            (json!({"tabels": []}), "`tabels`"),
            (json!({"action": "drop"}), "`drop`"),
            (json!({"action": 1}), "`action`"),
            (json!({"tables": "users"}), "`tables`"),
            (json!({"tables": []}), "`tables`"),
            (json!({"tables": ["a", 1]}), "`tables[1]`"),
            (json!({"tables": ["users; drop table users"]}), "`tables[0]`"),
            (json!({"tables": ["../x"]}), "`tables[0]`"),
            (json!({"limits": {"max_row": 1}}), "`max_row`"),
            (json!({"limits": {"max_rows": 0}}), "`limits.max_rows`"),
            (json!({"limits": {"max_rows": -1}}), "`limits.max_rows`"),
            (json!({"limits": 1}), "`limits`"),
            (json!({"trigger": "schedule", "host": "evil"}), "`host`"),
            (json!({"trigger": "other"}), "`trigger`"),
            (json!({"state": []}), "`state`"),
            (json!({"agent": "x", "bucket": "b"}), "`file`"),
            (json!({"agent": "x", "bucket": 1, "file": "f"}), "`bucket`"),
            (json!({"agent": "x", "bucket": "b", "file": "../f"}), "`file`"),
        ] {
            let error = read(&event).expect_err("invalid");
            assert_eq!(error.kind(), Kind::InvalidRequest);
            assert!(error.to_string().contains(named), "{event}: {error}");
        }
    }
}
