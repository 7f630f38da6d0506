//! Fivetran, played: it calls until nothing more is promised, keeps the state of good answers only, and upserts and deletes by
//! primary key in tables of its own. It is stricter than the real one: whatever breaks the contract panics.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Value, json};

use crate::{Function, random};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Lambda's bound of an answer.
const MAX_ANSWER_BYTES: usize = 6_291_556;
/// More in a row end a connection.
const MAX_EMPTY_ANSWERS: u32 = 10;
/// No sync of a test has so many calls.
const MAX_CALLS: u32 = 500;

/// Rows by the JSON of their primary key.
pub type Rows = BTreeMap<String, Value>;

/// A connection and its destination.
#[derive(Debug)]
pub struct Fivetran {
    /// Of the last good answer.
    pub state: Value,
    pub tables: BTreeMap<String, Rows>,
    /// How many rows were upserted, repetitions included.
    pub upserted: usize,
    /// The bucket that it syncs through; `None`: rows come in the answer.
    bucket: Option<String>,
    /// Where its documents lie there.
    pub folder: String,
    empty_answers: u32,
    calls: u32,
}

/// What may go wrong between Fivetran and the function.
#[derive(Debug, Clone, Copy)]
pub enum Mishap {
    None,
    /// The answer is lost.
    Lost,
    /// Its rows are loaded, and then its state is lost.
    HalfLoaded,
}

impl Fivetran {
    /// `bucket`: `None` for rows in the answer.
    pub fn new(state: Value, bucket: Option<&str>) -> Fivetran {
        let bucket = bucket.map(str::to_owned);
        let folder = format!("f{}", random::hex(4));
        Fivetran { state, tables: BTreeMap::new(), upserted: 0, bucket, folder, empty_answers: 0, calls: 0 }
    }

    /// The event of the next call; `file` names its document.
    pub fn event(&self, file: &str) -> Value {
        let mut event = json!({
            "agent": "Fivetran AWS Lambda Connector/external_id/schema",
            "state": self.state, "secrets": {}, "sync_id": "468b681-c376-4117-bbc0-25d8ae02ace1",
            "customPayload": {}, "something_new": [1],
        });
        if let Some(bucket) = &self.bucket {
            (event["bucket"], event["file"]) = (json!(bucket), json!(file));
        }
        event
    }

    /// One sync: calls until the answer promises no more. `fetch` reads the document of that key.
    pub async fn sync(&mut self, function: &Function, fetch: impl Fn(&str) -> Option<Vec<u8>>) {
        for _ in 0..MAX_CALLS {
            if !self.call(function, &fetch, Mishap::None).await.expect("a good answer") {
                return;
            }
        }
        panic!("no end after {MAX_CALLS} calls");
    }

    /// One call, and whether more is promised; the error's type if the function failed, of which nothing is kept.
    pub async fn call(
        &mut self,
        function: &Function,
        fetch: impl Fn(&str) -> Option<Vec<u8>>,
        mishap: Mishap,
    ) -> Result<bool, String> {
        self.calls += 1;
        let file = format!("{}/{}.json", self.folder, self.calls);
        let event = self.event(&file);
        let invocation = function.invoke(&event, TIMEOUT).await;
        let bytes = invocation.response_bytes;
        assert!(bytes <= MAX_ANSWER_BYTES, "an answer of {bytes} bytes");
        let mut answer = invocation.outcome.map_err(|error| error.error_type)?;
        if self.bucket.is_some() {
            let document = fetch(&file).expect("the document is there before the answer");
            let document: Document = serde_json::from_slice(&document).expect("one JSON document");
            assert_eq!(fields(&answer), ["hasMore", "schema", "state"]);
            (answer["insert"], answer["delete"]) = (json!(document.insert.0), json!(document.delete.0));
        }
        if matches!(mishap, Mishap::Lost) {
            return Ok(true);
        }
        let row_count = self.load(&answer);
        if matches!(mishap, Mishap::HalfLoaded) {
            return Ok(true);
        }
        self.state = answer["state"].clone();
        let has_more = answer["hasMore"].as_bool().expect("hasMore is a bool");
        self.empty_answers = if has_more && row_count == 0 { self.empty_answers + 1 } else { 0 };
        assert!(
            self.empty_answers <= MAX_EMPTY_ANSWERS,
            "more than {MAX_EMPTY_ANSWERS} empty answers in a row"
        );
        Ok(has_more)
    }

    fn load(&mut self, answer: &Value) -> usize {
        assert!(answer["state"].is_object() && answer["hasMore"].is_boolean(), "{answer}");
        assert_eq!(fields(answer), ["delete", "hasMore", "insert", "schema", "state"]);
        let mut row_count = 0;
        let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
        for field in ["insert", "delete"] {
            for (table, rows) in answer[field].as_object().unwrap_or_else(|| panic!("no {field}: {answer}")) {
                let key = answer["schema"][table]["primary_key"].as_array();
                let key = key.unwrap_or_else(|| panic!("{table} has no schema in {}", answer["schema"]));
                for row in rows.as_array().expect("a list of rows") {
                    let id: Vec<&Value> = key
                        .iter()
                        .map(|column| row.get(column.as_str().expect("a name")).expect("the key is there"))
                        .collect();
                    let id = json!(id).to_string();
                    assert!(
                        seen.insert((table.clone(), id.clone())),
                        "{table} {id} comes twice in one answer"
                    );
                    let rows = self.tables.entry(table.clone()).or_default();
                    match field {
                        "insert" => rows.insert(id, row.clone()),
                        _ => rows.remove(&id),
                    };
                    row_count += 1;
                }
            }
        }
        self.upserted += row_count;
        row_count
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    insert: Lists,
    delete: Lists,
}

/// Rows by table. Readers disagree on what a table that is named twice means, so it is an error.
struct Lists(BTreeMap<String, Vec<Value>>);

impl<'de> Deserialize<'de> for Lists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Lists;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("rows by table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lists, A::Error> {
                let mut lists = BTreeMap::new();
                while let Some((table, rows)) = map.next_entry::<String, Vec<Value>>()? {
                    if lists.insert(table.clone(), rows).is_some() {
                        return Err(A::Error::custom(format!("table {table} is there twice")));
                    }
                }
                Ok(Lists(lists))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

fn fields(object: &Value) -> Vec<&str> {
    let mut fields: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}
