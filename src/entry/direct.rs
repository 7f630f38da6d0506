//! Direct invocation: Step Functions, `cargo lambda invoke`, the CLI. Unknown fields are refused by name.

use serde_json::{Map, Value};

use super::{clipped, invalid, limits, refuse_unknown, tables};
use crate::error::Error;
use crate::request::{Action, Door, Hidden, Request, Warehouse};

pub(super) const EXAMPLE: &str =
    r#"send {"action":"sync"}, or {"action":"sync","tables":["public.users"],"limits":{"max_seconds":240}}"#;

pub(super) fn read(event: &Map<String, Value>) -> Result<Request, Error> {
    refuse_unknown(event, &["action", "tables", "limits", "state", "warehouse"], "the event")?;
    let request = Request {
        tables: tables(event)?,
        limits: limits(event)?,
        state: state(event)?,
        warehouse: warehouse(event)?,
        ..Request::new(Door::Direct, action(event)?)
    };
    if request.action == Action::Resync && request.tables.is_none() {
        return Err(invalid("`resync` names no `tables`").with_hint("name the tables to be read again"));
    }
    if request.action == Action::Resync && request.state.is_some() {
        return Err(invalid("`resync` works on the checkpoint, and takes no `state`")
            .with_hint("to read again with a state of your own, send {} as `state`"));
    }
    Ok(request)
}

fn warehouse(event: &Map<String, Value>) -> Result<Option<Warehouse>, Error> {
    let Some(value) = event.get("warehouse") else { return Ok(None) };
    if event.get("action").and_then(Value::as_str) != Some("discover") {
        return Err(invalid("`warehouse` is for the action `discover`"));
    }
    let warehouse = value.as_str().and_then(Warehouse::parse);
    warehouse.map(Some).ok_or_else(|| {
        let names: Vec<&str> = Warehouse::ALL.into_iter().map(Warehouse::name).collect();
        invalid("unknown `warehouse`").with_hint(format!("known: {}", names.join(", ")))
    })
}

fn action(event: &Map<String, Value>) -> Result<Action, Error> {
    match event.get("action") {
        None => Ok(Action::Sync),
        Some(Value::String(action)) => match action.as_str() {
            "sync" => Ok(Action::Sync),
            "check" => Ok(Action::Check),
            "resync" => Ok(Action::Resync),
            "audit" => Ok(Action::Audit),
            "status" => Ok(Action::Status),
            "discover" => Ok(Action::Discover),
            "plan" | "export" | "commit" => {
                Err(invalid(format!("the action `{action}` is not in this version")))
            }
            other => Err(invalid(format!("unknown `action` `{}`", clipped(other)))
                .with_hint("known actions: sync, audit, check, status, resync, discover")),
        },
        Some(_) => Err(invalid("`action` is not a string")),
    }
}

fn state(event: &Map<String, Value>) -> Result<Option<Hidden>, Error> {
    match event.get("state") {
        None => Ok(None),
        Some(state @ Value::Object(_)) => Ok(Some(Hidden(state.clone()))),
        Some(_) => Err(invalid("`state` is not an object")
            .with_hint("pass what the last answer held, {} at first, or leave it out to use the checkpoint")),
    }
}
