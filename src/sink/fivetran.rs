//! Fivetran's answer, where rows travel in the answer itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::error::{Error, Kind};
use crate::table::Table;
use crate::table_name::TableName;

/// An answer may have 6,291,556 bytes (Lambda); the rest is for state and schema.
const MAX_ROW_BYTES: usize = 5_500_000;

/// Rows as they will be sent, by Fivetran's name of their table.
#[derive(Default)]
pub(crate) struct Inserts {
    tables: BTreeMap<String, Vec<u8>>,
    byte_count: usize,
}

impl std::fmt::Debug for Inserts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inserts({} bytes)", self.byte_count)
    }
}

/// Where a table's rows stood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    table_bytes: usize,
    byte_count: usize,
}

impl Inserts {
    /// How many bytes of rows still fit.
    pub(crate) fn room(&self) -> usize {
        MAX_ROW_BYTES.saturating_sub(self.byte_count)
    }

    /// Appends NDJSON lines.
    pub(crate) fn write(&mut self, table: &TableName, rows: &[u8]) {
        let list = self.tables.entry(name(table)).or_default();
        for row in rows.split(|byte| *byte == b'\n').filter(|row| !row.is_empty()) {
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(row);
        }
        self.byte_count += rows.len();
    }

    pub(crate) fn mark(&self, table: &TableName) -> Mark {
        Mark { table_bytes: self.tables.get(&name(table)).map_or(0, Vec::len), byte_count: self.byte_count }
    }

    /// Takes back what a table's failed read has written since the mark.
    pub(crate) fn rewind(&mut self, table: &TableName, mark: Mark) {
        if let Some(rows) = self.tables.get_mut(&name(table)) {
            rows.truncate(mark.table_bytes);
        }
        self.tables.retain(|_, rows| !rows.is_empty());
        self.byte_count = mark.byte_count;
    }

    /// The answer; `schema` stands in every one, in empty ones too.
    ///
    /// # Errors
    /// `Internal`.
    pub(crate) fn into_answer(
        self,
        state: &Value,
        tables: &[Arc<Table>],
        has_more: bool,
    ) -> Result<Box<RawValue>, Error> {
        let schema: BTreeMap<String, Value> = tables
            .iter()
            .map(|table| (name(&table.name), json!({"primary_key": table.key_names()})))
            .collect();
        let mut answer = format!(
            r#"{{"state":{state},"schema":{},"hasMore":{has_more},"delete":{{}},"insert":{{"#,
            json!(schema)
        )
        .into_bytes();
        for (i, (table, rows)) in self.tables.into_iter().enumerate() {
            if i > 0 {
                answer.push(b',');
            }
            answer.extend_from_slice(json!(table).to_string().as_bytes());
            answer.extend_from_slice(b":[");
            answer.extend_from_slice(&rows);
            answer.push(b']');
        }
        answer.extend_from_slice(b"}}");
        let internal =
            |error: &dyn std::fmt::Display| Error::new(Kind::Internal, format!("fivetran answer: {error}"));
        let text = String::from_utf8(answer).map_err(|error| internal(&error.utf8_error()))?;
        RawValue::from_string(text).map_err(|error| internal(&error))
    }
}

/// `{table}` in schema public, else `{schema}_{table}`.
fn name(table: &TableName) -> String {
    if table.schema == "public" { table.name.clone() } else { format!("{}_{}", table.schema, table.name) }
}

/// Fivetran lower-snake-cases names: two tables, or two columns, that fall together would be mixed.
///
/// # Errors
/// `InvalidConfig`, naming both.
pub(crate) fn check_names(tables: &[Arc<Table>]) -> Result<(), Error> {
    let names: Vec<String> = tables.iter().map(|table| name(&table.name)).collect();
    check_distinct("tables", &names)?;
    for table in tables {
        let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        check_distinct(&format!("columns of {}", table.name), &columns)?;
    }
    Ok(())
}

fn check_distinct(what: &str, names: &[String]) -> Result<(), Error> {
    let mut seen: BTreeMap<String, &String> = BTreeMap::new();
    for name in names {
        if let Some(other) = seen.insert(snake_cased(name), name) {
            return Err(Error::new(
                Kind::InvalidConfig,
                format!("the {what} `{other}` and `{name}` get one name in Fivetran"),
            )
            .with_hint("leave one of them out"));
        }
    }
    Ok(())
}

fn snake_cased(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let mut was_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && was_lower {
            snake.push('_');
        }
        was_lower = c.is_lowercase() || c.is_numeric();
        if c.is_alphanumeric() {
            snake.extend(c.to_lowercase());
        } else if !snake.ends_with('_') {
            snake.push('_');
        }
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> TableName {
        TableName::parse(text).expect("a name")
    }

    #[test]
    fn rows_become_lists_by_table() {
        let mut inserts = Inserts::default();
        inserts.write(&table("users"), b"{\"id\":1}\n{\"id\":2}\n");
        inserts.write(&table("sales.orders"), b"{\"id\":3}\n");
        let (users, gone) = (inserts.mark(&table("users")), inserts.mark(&table("gone")));
        inserts.write(&table("gone"), b"{\"id\":4}\n");
        inserts.rewind(&table("gone"), gone);
        inserts.write(&table("users"), b"{\"id\":5}\n");
        inserts.rewind(&table("users"), users);
        let answer = inserts.into_answer(&json!({"version": 1}), &[], true).expect("an answer");
        let answer: Value = serde_json::from_str(answer.get()).expect("JSON");
        assert_eq!(
            answer,
            json!({"state": {"version": 1}, "schema": {}, "hasMore": true, "delete": {},
                "insert": {"users": [{"id": 1}, {"id": 2}], "sales_orders": [{"id": 3}]}})
        );
    }

    #[test]
    fn names_that_fall_together_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(check_distinct("columns", &names(&["userData", "user_data"])).is_err());
        assert!(check_distinct("columns", &names(&["user data", "user-data"])).is_err());
        assert!(check_distinct("columns", &names(&["user1", "user_1", "id"])).is_ok());
    }
}
