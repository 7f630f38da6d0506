//! What Fivetran gets: rows in the answer itself, or in one JSON document in the bucket that it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::batch::{self, Batch};
use super::buffers::{MAX_PARTS, PART_BYTES};
use super::storage::{self, Completion, Storage};
use crate::config::Compression;
use crate::cursor::State;
use crate::error::{Error, Kind};
use crate::table::Table;
use crate::table_name::TableName;

/// Lambda's bound.
const MAX_ANSWER_BYTES: usize = 6_291_556;

/// What rows, state and schema may have together.
const TARGET_BYTES: usize = 5_500_000;

/// Fivetran ends a connection after ten answers in a row that have no rows and promise more.
const MOST_EMPTY_ANSWERS: u32 = 8;

/// By so much a state may grow in one run: for each new table, for each that it knows, and for all sets of transactions together.
const GROWTH_BYTES_OF_TABLE: usize = 512;
const GROWTH_BYTES_OF_CURSOR: usize = 128;
const GROWTH_BYTES: usize = 128 << 10;

/// Rows must have at least this room, or an answer would hold next to nothing.
const LEAST_ROW_BYTES: usize = 1_000_000;

/// Keys of deleted rows stand at the end of a document, and are kept until then.
const MAX_DELETE_BYTES: usize = 1 << 20;

/// Of a document, which is one object: room is left for its last rows and its end.
const MAX_DOCUMENT_BYTES: u64 = (MAX_PARTS - 1000) * PART_BYTES as u64;

/// An open answer. It is finished or aborted, never just dropped.
pub(crate) struct Answer {
    inserts: Inserts,
    /// Keys of deleted rows, by Fivetran's name of their table: JSON objects with commas between.
    deletes: Lists,
}

enum Inserts {
    Inline { lists: Lists, room: usize },
    Document(Box<Document>),
}

#[derive(Default)]
struct Lists {
    tables: BTreeMap<String, Vec<u8>>,
    byte_count: usize,
}

/// `{"insert":{"t":[…]},"delete":{…}}`, uploaded as it is written.
struct Document {
    storage: Storage,
    key: String,
    /// `None` before the first row.
    batch: Option<Batch>,
    /// The table whose list is open.
    table: Option<String>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// Where an answer stood.
#[derive(Debug)]
pub(crate) struct Mark {
    insert: InsertMark,
    delete: ListMark,
}

#[derive(Debug)]
enum InsertMark {
    Inline(ListMark),
    /// The upload, and the table whose list is open.
    Document(Option<Box<batch::Mark>>, Option<String>),
}

#[derive(Debug, Clone, Copy)]
struct ListMark {
    table_bytes: usize,
    byte_count: usize,
}

impl Lists {
    fn add(&mut self, table: &str, rows: &[&[u8]]) {
        if rows.is_empty() {
            return;
        }
        let list = self.tables.entry(table.to_owned()).or_default();
        for row in rows {
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(row);
            self.byte_count += row.len() + 1;
        }
    }

    fn mark(&self, table: &str) -> ListMark {
        ListMark { table_bytes: self.tables.get(table).map_or(0, Vec::len), byte_count: self.byte_count }
    }

    fn rewind(&mut self, table: &str, mark: ListMark) {
        if let Some(list) = self.tables.get_mut(table) {
            list.truncate(mark.table_bytes);
        }
        self.tables.retain(|_, list| !list.is_empty());
        self.byte_count = mark.byte_count;
    }

    /// `{"t":[…]}`.
    fn to_json(&self) -> Vec<u8> {
        let mut json = vec![b'{'];
        for (i, (table, list)) in self.tables.iter().enumerate() {
            if i > 0 {
                json.push(b',');
            }
            json.extend_from_slice(json!(table).to_string().as_bytes());
            json.extend_from_slice(b":[");
            json.extend_from_slice(list);
            json.push(b']');
        }
        json.push(b'}');
        json
    }
}

impl Document {
    async fn batch(&mut self) -> Result<&mut Batch, Error> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => {
                let mut batch = Batch::begin(&self.storage, &self.key, Compression::None).await?;
                batch.write(Bytes::from_static(br#"{"insert":{"#), 0).await?;
                batch
            }
        };
        Ok(self.batch.insert(batch))
    }

    async fn write(&mut self, table: &str, rows: &[&[u8]]) -> Result<(), Error> {
        let mut text = Vec::new();
        for row in rows {
            if self.table.as_deref() == Some(table) {
                text.push(b',');
            } else {
                text.extend_from_slice(if self.table.is_some() { b"]," } else { b"" });
                text.extend_from_slice(json!(table).to_string().as_bytes());
                text.extend_from_slice(b":[");
                self.table = Some(table.to_owned());
            }
            text.extend_from_slice(row);
        }
        if text.is_empty() { Ok(()) } else { self.batch().await?.write(text.into(), rows.len() as u64).await }
    }

    async fn abort(self) {
        if let Some(batch) = self.batch {
            batch.abort().await;
        }
    }

    /// Makes the document visible.
    async fn finish(mut self, deletes: &Lists) -> Result<(), Error> {
        let is_open = self.table.is_some();
        let outcome = async {
            let batch = self.batch().await?;
            let end: &'static [u8] = if is_open { br#"]},"delete":"# } else { br#"},"delete":"# };
            batch.write(Bytes::from_static(end), 0).await?;
            batch.write(deletes.to_json().into(), 0).await?;
            batch.write(Bytes::from_static(b"}"), 0).await
        }
        .await;
        let Some(batch) = self.batch.take() else { return outcome };
        if let Err(error) = outcome {
            batch.abort().await;
            return Err(error);
        }
        let sealed = batch.seal().await?;
        let error = match self.storage.complete(&sealed.upload, &sealed.parts).await {
            Ok(Completion::Done) => return Ok(()),
            Ok(Completion::Gone) => storage::vanished(),
            Err(error) => error,
        };
        self.storage.abort(&sealed.upload).await;
        Err(error)
    }
}

impl Answer {
    /// An answer whose rows go into one document, or else, up to so many bytes, into itself.
    pub(crate) fn new(document: Option<(Storage, String)>, room: usize) -> Self {
        let inserts = match document {
            Some((storage, key)) => {
                Inserts::Document(Box::new(Document { storage, key, batch: None, table: None }))
            }
            None => Inserts::Inline { lists: Lists::default(), room },
        };
        Self { inserts, deletes: Lists::default() }
    }

    /// How many bytes of rows fit into an empty one.
    pub(crate) fn capacity(&self) -> usize {
        match &self.inserts {
            Inserts::Inline { room, .. } => *room,
            Inserts::Document(_) => usize::MAX,
        }
    }

    /// How many bytes of rows still fit.
    pub(crate) fn room(&self) -> usize {
        match &self.inserts {
            Inserts::Inline { lists, room } => {
                room.saturating_sub(lists.byte_count + self.deletes.byte_count)
            }
            Inserts::Document(document) => {
                let byte_count = document.batch.as_ref().map_or(0, Batch::byte_count);
                let is_full = byte_count >= MAX_DOCUMENT_BYTES || self.deletes.byte_count >= MAX_DELETE_BYTES;
                if is_full { 0 } else { usize::MAX }
            }
        }
    }

    /// Appends NDJSON lines. Those at the indices `deleted` are deletes: only their key goes in.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`; `Internal`.
    pub(crate) async fn write(
        &mut self,
        table: &Table,
        lines: &[u8],
        deleted: &[usize],
    ) -> Result<(), Error> {
        let name = table.name.to_flat();
        let mut deleted = deleted.iter().copied().peekable();
        let mut inserted = Vec::new();
        for (i, line) in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            if deleted.next_if_eq(&i).is_some() {
                self.deletes.add(&name, &[&key(table, line)?]);
            } else {
                inserted.push(line);
            }
        }
        match &mut self.inserts {
            Inserts::Inline { lists, .. } => {
                lists.add(&name, &inserted);
                Ok(())
            }
            Inserts::Document(document) => document.write(&name, &inserted).await,
        }
    }

    /// Where the answer stands before a table's share.
    pub(crate) fn mark(&self, table: &TableName) -> Mark {
        let table = table.to_flat();
        let insert = match &self.inserts {
            Inserts::Inline { lists, .. } => InsertMark::Inline(lists.mark(&table)),
            Inserts::Document(document) => {
                let batch = document.batch.as_ref().map(Batch::mark);
                InsertMark::Document(batch.map(Box::new), document.table.clone())
            }
        };
        Mark { insert, delete: self.deletes.mark(&table) }
    }

    /// Takes back what was written of a table since the mark.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn rewind(&mut self, table: &TableName, mark: Mark) -> Result<(), Error> {
        let table = table.to_flat();
        self.deletes.rewind(&table, mark.delete);
        match (&mut self.inserts, mark.insert) {
            (Inserts::Inline { lists, .. }, InsertMark::Inline(mark)) => lists.rewind(&table, mark),
            (Inserts::Document(document), InsertMark::Document(mark, table)) => {
                document.table = table;
                match (document.batch.take(), mark) {
                    (Some(batch), Some(mark)) => document.batch = Some(batch.rewound(*mark).await?),
                    (Some(batch), None) => batch.abort().await,
                    (None, _) => {}
                }
            }
            (Inserts::Inline { .. }, _) | (Inserts::Document(_), _) => {
                unreachable!("an answer does not change its kind")
            }
        }
        Ok(())
    }

    /// The answer, once its document, if any, is visible. `schema` stands in every answer, in empty ones too.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`; `InvalidConfig` for a state that fits no answer.
    pub(crate) async fn finish(
        self,
        state: &Value,
        tables: &[Arc<Table>],
        has_more: bool,
    ) -> Result<Box<RawValue>, Error> {
        let head = format!(r#"{{"state":{state},"schema":{},"hasMore":{has_more}"#, schema(tables));
        let mut answer = head.into_bytes();
        match self.inserts {
            Inserts::Inline { lists, .. } => {
                for (field, lists) in [("delete", &self.deletes), ("insert", &lists)] {
                    answer.extend_from_slice(format!(r#","{field}":"#).as_bytes());
                    answer.extend_from_slice(&lists.to_json());
                }
            }
            Inserts::Document(document) => {
                if answer.len() >= MAX_ANSWER_BYTES {
                    document.abort().await;
                    return Err(no_room(tables.len()));
                }
                document.finish(&self.deletes).await?;
            }
        }
        answer.push(b'}');
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(no_room(tables.len()));
        }
        let internal =
            |error: &dyn std::fmt::Display| Error::new(Kind::Internal, format!("fivetran answer: {error}"));
        let text = String::from_utf8(answer).map_err(|error| internal(&error.utf8_error()))?;
        RawValue::from_string(text).map_err(|error| internal(&error))
    }

    /// Gives the answer up.
    pub(crate) async fn abort(self) {
        if let Inserts::Document(document) = self.inserts {
            document.abort().await;
        }
    }
}

/// How many bytes of rows an answer has room for, beside the state and these tables' schema.
///
/// # Errors
/// `InvalidConfig` where that is too little.
pub(crate) fn room(state: &State, tables: &[Arc<Table>]) -> Result<usize, Error> {
    let growth = |table: &Arc<Table>| match state.cursor(&table.name) {
        Some(_) => GROWTH_BYTES_OF_CURSOR,
        None => GROWTH_BYTES_OF_TABLE,
    };
    let growth: usize = GROWTH_BYTES + tables.iter().map(growth).sum::<usize>();
    let taken = state.to_value().to_string().len() + schema(tables).to_string().len() + growth;
    let room = TARGET_BYTES.saturating_sub(taken);
    if room < LEAST_ROW_BYTES { Err(no_room(tables.len())) } else { Ok(room) }
}

/// Whether an answer promises more, and how many in a row have done so without rows, this one included. After too many the
/// next sync goes on.
pub(crate) fn promise(is_unfinished: bool, row_count: u64, empty_answers: u32) -> (bool, u32) {
    match (is_unfinished, row_count) {
        (true, 0) if empty_answers < MOST_EMPTY_ANSWERS => (true, empty_answers + 1),
        (true, 1..) => (true, 0),
        (true | false, _) => (false, 0),
    }
}

fn no_room(table_count: usize) -> Error {
    let context = format!("state and schema of {table_count} tables leave no room for rows in an answer");
    Error::new(Kind::InvalidConfig, context)
        .with_hint("divide TABLES among several connections, or let Fivetran sync through S3")
}

fn schema(tables: &[Arc<Table>]) -> Value {
    tables.iter().map(|table| (table.name.to_flat(), json!({"primary_key": table.key_names()}))).collect()
}

/// A row's primary key, as an object.
fn key(table: &Table, line: &[u8]) -> Result<Vec<u8>, Error> {
    let internal =
        |_| Error::new(Kind::Internal, format!("a row of table {} cannot be read back", table.name));
    let row: BTreeMap<String, &RawValue> = serde_json::from_slice(line).map_err(internal)?;
    let key: BTreeMap<&str, &&RawValue> =
        table.key_names().into_iter().filter_map(|name| Some((name, row.get(name)?))).collect();
    serde_json::to_vec(&key).map_err(internal)
}

/// Fivetran lower-snake-cases names: two tables, or two columns, that fall together would be mixed. Some names it keeps for
/// itself.
///
/// # Errors
/// `InvalidConfig`, naming them.
pub(crate) fn check_names(tables: &[Arc<Table>]) -> Result<(), Error> {
    let names: Vec<String> = tables.iter().map(|table| table.name.to_flat()).collect();
    check_distinct("tables", &names)?;
    for table in tables {
        let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        check_distinct(&format!("columns of {}", table.name), &columns)?;
        if let Some(column) = columns.iter().find(|column| snake_cased(column).starts_with("_fivetran_")) {
            let context =
                format!("the column `{column}` of {} has a name that Fivetran keeps for itself", table.name);
            return Err(Error::new(Kind::InvalidConfig, context)
                .with_hint("`exclude` it in the configuration document"));
        }
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

    #[test]
    fn rows_become_lists_by_table() {
        let mut lists = Lists::default();
        lists.add("users", &[b"{\"id\":1}", b"{\"id\":2}"]);
        lists.add("sales_orders", &[b"{\"id\":3}"]);
        let (users, gone) = (lists.mark("users"), lists.mark("gone"));
        lists.add("gone", &[b"{\"id\":4}"]);
        lists.rewind("gone", gone);
        lists.add("users", &[b"{\"id\":5}"]);
        lists.rewind("users", users);
        let json: Value = serde_json::from_slice(&lists.to_json()).expect("JSON");
        assert_eq!(json, json!({"users": [{"id": 1}, {"id": 2}], "sales_orders": [{"id": 3}]}));
    }

    #[test]
    fn ten_empty_answers_in_a_row_never_promise_more() {
        let (mut promised, mut empty_answers) = (Vec::new(), 0);
        for _ in 0..10 {
            let (has_more, empty) = promise(true, 0, empty_answers);
            promised.push(has_more);
            empty_answers = empty;
        }
        assert_eq!(promised, [[true; 8].as_slice(), &[false, true]].concat());
        assert_eq!((promise(true, 1, 8), promise(false, 0, 3)), ((true, 0), (false, 0)));
    }

    #[test]
    fn names_that_fall_together_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(check_distinct("columns", &names(&["userData", "user_data"])).is_err());
        assert!(check_distinct("columns", &names(&["user data", "user-data"])).is_err());
        assert!(check_distinct("columns", &names(&["user1", "user_1", "id"])).is_ok());
    }
}
