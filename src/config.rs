//! Configuration: the environment, and the document that `CONFIG_URI` names. Every problem is collected and reported at
//! once, by each invocation, so that an operator mends all of them in one go and the function never dies at start.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind};
use crate::request::{Action, Door, Request};
use crate::table_name::{TableName, TablePattern};
use crate::text::{hex, timestamp};

/// What the environment says, validated.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) bastion_secret_id: Option<String>,
    pub(crate) database_secret_id: Option<String>,
    /// Host keys beside those in the secret, as text.
    pub(crate) bastion_host_key: Option<String>,
    pub(crate) output: Option<S3Uri>,
    pub(crate) tables: TableSource,
    /// Columns to look for, in this order; the first that a table has is its cursor.
    pub(crate) cursor_columns: Vec<String>,
    /// How much older than its transaction a cursor value may be, and how far the server's clock may step back.
    pub(crate) cursor_slack: TimeDelta,
    /// After so many windows of a table every row of it is looked at.
    pub(crate) audit_every: Option<u64>,
    pub(crate) compression: Compression,
    /// An object is closed when it has reached this size, compressed.
    pub(crate) target_file_bytes: u64,
    pub(crate) max_transaction: Duration,
    /// Bound of one row, in PostgreSQL's binary form and as JSON.
    pub(crate) max_row_bytes: usize,
    /// Whether each row ends with `"_seq"`.
    pub(crate) has_metadata_columns: bool,
    pub(crate) on_new_database: OnNewDatabase,
    pub(crate) allows_event_secrets: bool,
    pub(crate) doors: Vec<Door>,
    /// The only bucket that Fivetran may name.
    pub(crate) fivetran_bucket: Option<String>,
    /// Whether what Fivetran gets is written to the output besides.
    pub(crate) has_fivetran_ndjson: bool,
}

/// Where the tables are named.
#[derive(Debug, Clone)]
pub(crate) enum TableSource {
    Listed(TableRules),
    Document(S3Uri),
}

/// How objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    None,
}

impl Compression {
    /// The ending of an object's key; Athena tells the compression by it.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "ndjson.gz",
            Self::Zstd => "ndjson.zst",
            Self::None => "ndjson",
        }
    }
}

/// What to do when the state belongs to another database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnNewDatabase {
    Refuse,
    Resync,
}

/// `s3://bucket/prefix`; the prefix has no slash at either end and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct S3Uri {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
}

impl S3Uri {
    fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").ok_or("is not of the form s3://bucket/prefix")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_bucket = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(is_bucket) {
            return Err("names no bucket: write s3://bucket/prefix".to_owned());
        }
        if prefix.split('/').any(|part| part == ".." || part == ".") || prefix.chars().any(char::is_control) {
            return Err("has a prefix with `.`, `..` or a control character".to_owned());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
    }
}

impl S3Uri {
    /// Whether an object lies below.
    pub(crate) fn holds(&self, object: &Self) -> bool {
        let rest = object.prefix.strip_prefix(&self.prefix);
        self.bucket == object.bucket
            && rest.is_some_and(|rest| self.prefix.is_empty() || rest.starts_with('/'))
    }

    /// Of a document's address: the place that it is in, and its key there.
    pub(crate) fn split(&self) -> (Self, String) {
        (Self { bucket: self.bucket.clone(), prefix: String::new() }, self.prefix.clone())
    }
}

impl fmt::Display for S3Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// Which tables are synced and how: patterns, the most specific of which decides for a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct TableRules {
    /// From specific to general.
    rules: Vec<TableRule>,
    /// Of the configuration document, for the manifests; `None` for `TABLES`.
    pub(crate) hash: Option<String>,
}

#[derive(Debug, Clone)]
struct TableRule {
    pattern: TablePattern,
    /// `None`: excluded.
    options: Option<TableOptions>,
}

/// How one table is synced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TableOptions {
    /// Instead of the configured ones.
    pub(crate) cursor_columns: Option<Vec<String>>,
    /// Columns left out.
    pub(crate) exclude: Vec<String>,
    /// Rows whose cursor column is older are not read.
    pub(crate) start: Option<DateTime<Utc>>,
    /// A bool or a time that says which rows the source calls deleted.
    pub(crate) deleted_column: Option<String>,
}

impl TableOptions {
    /// As the document of `CONFIG_URI` has them.
    pub(crate) fn to_value(&self) -> Value {
        let mut value = Map::new();
        if let Some(columns) = &self.cursor_columns {
            value.insert("cursor_column".to_owned(), columns.clone().into());
        }
        if !self.exclude.is_empty() {
            value.insert("exclude".to_owned(), self.exclude.clone().into());
        }
        if let Some(start) = self.start {
            value.insert("start".to_owned(), timestamp(start).into());
        }
        if let Some(column) = &self.deleted_column {
            value.insert("deleted_column".to_owned(), column.clone().into());
        }
        Value::Object(value)
    }
}

impl TableRules {
    fn new(mut rules: Vec<TableRule>) -> Self {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.pattern.specificity()));
        Self { rules, hash: None }
    }

    /// Every table.
    pub(crate) fn everything() -> Self {
        let pattern = TablePattern::parse("*.*").expect("a pattern");
        Self::new(vec![TableRule { pattern, options: Some(TableOptions::default()) }])
    }

    /// The options of a table, or `None` if it is not configured.
    pub(crate) fn options(&self, table: &TableName) -> Option<&TableOptions> {
        self.rule(table)?.options.as_ref()
    }

    /// Whether a table is left out on purpose.
    pub(crate) fn excludes(&self, table: &TableName) -> bool {
        self.rule(table).is_some_and(|rule| rule.options.is_none())
    }

    /// The most specific one.
    fn rule(&self, table: &TableName) -> Option<&TableRule> {
        self.rules.iter().find(|rule| rule.pattern.matches(table))
    }

    /// Whether no table is named at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The tables that are named outright and must therefore exist.
    pub(crate) fn outright(&self) -> impl Iterator<Item = TableName> + '_ {
        self.included().filter_map(TablePattern::outright)
    }

    /// Every pattern that may bring tables in.
    pub(crate) fn included(&self) -> impl Iterator<Item = &TablePattern> {
        self.rules.iter().filter(|rule| rule.options.is_some()).map(|rule| &rule.pattern)
    }

    /// Reads the document of `CONFIG_URI`.
    ///
    /// # Errors
    /// `InvalidConfig` with all problems at once.
    pub(crate) fn from_document(bytes: &[u8], uri: &S3Uri) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let mut rules = match serde_json::from_slice::<Value>(bytes) {
            Ok(Value::Object(document)) => document_rules(&document, &mut problems),
            Ok(_) => {
                problems.push("is not a JSON object".to_owned());
                Self::default()
            }
            Err(error) => {
                problems.push(format!("is not JSON: line {} column {}", error.line(), error.column()));
                Self::default()
            }
        };
        report(&format!("the configuration document {uri}"), &problems)?;
        rules.hash = Some(hex(&Sha256::digest(bytes)));
        Ok(rules)
    }
}

impl Config {
    /// Reads the environment through `variable`, and sees that it has what the request needs.
    ///
    /// # Errors
    /// `InvalidConfig` with all problems at once; `InvalidRequest` where the request's door is closed.
    pub(crate) fn from_env(
        variable: impl Fn(&str) -> Option<String>,
        request: &Request,
    ) -> Result<Self, Error> {
        let mut env = Env { variable, problems: Vec::new() };
        let config = Self {
            bastion_secret_id: env.text("BASTION_SECRET_ID"),
            database_secret_id: env.text("DATABASE_SECRET_ID"),
            bastion_host_key: env.text("BASTION_HOST_KEY"),
            output: env.parsed("OUTPUT_URI", S3Uri::parse),
            tables: env.tables(request.needs_tables()),
            cursor_columns: env
                .parsed("CURSOR_COLUMN", parse_columns)
                .unwrap_or_else(|| vec!["modified_at".to_owned(), "updated_at".to_owned()]),
            cursor_slack: TimeDelta::seconds(
                env.number("CURSOR_SLACK_SECONDS", 5..=31_536_000).unwrap_or(300).cast_signed(),
            ),
            audit_every: env.number("AUDIT_EVERY", 1..=1_000_000),
            compression: env.parsed("COMPRESSION", parse_compression).unwrap_or(Compression::Gzip),
            target_file_bytes: env.number("TARGET_FILE_MB", 1..=4096).unwrap_or(64) << 20,
            max_transaction: Duration::from_secs(
                env.number("MAX_TRANSACTION_SECONDS", 1..=600).unwrap_or(60),
            ),
            max_row_bytes: usize::try_from(env.number("MAX_ROW_BYTES", 1024..=1 << 26).unwrap_or(8 << 20))
                .unwrap_or(usize::MAX),
            has_metadata_columns: env.switch("METADATA_COLUMNS").unwrap_or(true),
            on_new_database: env
                .parsed("ON_NEW_DATABASE", parse_on_new_database)
                .unwrap_or(OnNewDatabase::Refuse),
            allows_event_secrets: env.switch("ALLOW_EVENT_SECRETS").unwrap_or(false),
            doors: match env.text("DOORS") {
                None => vec![Door::Direct, Door::EventBridge],
                // A list that cannot be read closes no door: it is told with the other problems.
                Some(_) => env.parsed("DOORS", parse_doors).unwrap_or_else(|| Door::ALL.to_vec()),
            },
            fivetran_bucket: env.text("FIVETRAN_BUCKET"),
            has_fivetran_ndjson: env.switch("FIVETRAN_NDJSON").unwrap_or(false),
        };
        let door = request.door;
        if !config.doors.contains(&door) {
            let context = format!("the door `{}` is not open", door.name());
            return Err(Error::new(Kind::InvalidRequest, context)
                .with_hint(format!("add `{}` to the environment variable DOORS to open it", door.name())));
        }
        if request.action != Action::Status
            && config.bastion_secret_id.is_none()
            && !config.allows_event_secrets
        {
            env.problems.push(
                "BASTION_SECRET_ID is not set: the name or ARN of the secret with the bastion's key"
                    .to_owned(),
            );
        }
        let needs_output = match request.door {
            Door::Fivetran => config.has_fivetran_ndjson,
            Door::Direct | Door::EventBridge => {
                request.action != Action::Discover || request.warehouse.is_some()
            }
        };
        if needs_output && env.text("OUTPUT_URI").is_none() {
            env.problems.push("OUTPUT_URI is not set: where to write, s3://bucket/prefix".to_owned());
        }
        report("the environment", &env.problems)?;
        Ok(config)
    }
}

fn report(place: &str, problems: &[String]) -> Result<(), Error> {
    match problems {
        [] => Ok(()),
        [one] => Err(Error::new(Kind::InvalidConfig, format!("{place}: {one}"))),
        many => {
            let list: Vec<_> = many.iter().enumerate().map(|(i, p)| format!("({}) {p}", i + 1)).collect();
            let context = format!("{place} has {} problems: {}", many.len(), list.join("; "));
            Err(Error::new(Kind::InvalidConfig, context))
        }
    }
}

struct Env<F> {
    variable: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Env<F> {
    /// Empty counts as not set: a template's parameter left blank arrives as the empty string.
    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.text(name)?;
        parse(&value).map_err(|problem| self.problems.push(format!("{name} {problem}"))).ok()
    }

    fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        self.parsed(name, |value| match value.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("is not a whole number from {} to {}", range.start(), range.end())),
        })
    }

    fn switch(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, |value| match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" | "yes" => Ok(true),
            "false" | "off" | "0" | "no" => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        })
    }

    fn tables(&mut self, is_needed: bool) -> TableSource {
        let listed = self.parsed("TABLES", parse_tables);
        let document = self.parsed("CONFIG_URI", S3Uri::parse);
        match (self.text("TABLES").is_some(), self.text("CONFIG_URI").is_some()) {
            (true, true) => self.problems.push("TABLES and CONFIG_URI are both set: keep one".to_owned()),
            (false, false) if is_needed => self.problems.push(
                "TABLES is not set: the tables to sync, as in public.users,sales.* (or CONFIG_URI)"
                    .to_owned(),
            ),
            _ => {}
        }
        document.map_or_else(|| TableSource::Listed(listed.unwrap_or_default()), TableSource::Document)
    }
}

fn parse_tables(text: &str) -> Result<TableRules, String> {
    let mut rules = Vec::new();
    for entry in split_outside_quotes(text).iter().map(|entry| entry.trim()).filter(|e| !e.is_empty()) {
        let pattern = TablePattern::parse(entry)?;
        rules.push(TableRule { pattern, options: Some(TableOptions::default()) });
    }
    if rules.is_empty() { Err("names no table".to_owned()) } else { Ok(TableRules::new(rules)) }
}

/// At commas, but not inside double quotes.
fn split_outside_quotes(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    for c in text.chars() {
        is_quoted ^= c == '"';
        if c == ',' && !is_quoted {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn parse_columns(text: &str) -> Result<Vec<String>, String> {
    let columns: Vec<String> = text.split(',').map(|column| column.trim().to_owned()).collect();
    if columns.iter().any(String::is_empty) { Err("has an empty name".to_owned()) } else { Ok(columns) }
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "none" => Ok(Compression::None),
        _ => Err("is not one of gzip, zstd, none".to_owned()),
    }
}

fn parse_on_new_database(text: &str) -> Result<OnNewDatabase, String> {
    match text {
        "refuse" => Ok(OnNewDatabase::Refuse),
        "resync" => Ok(OnNewDatabase::Resync),
        _ => Err("is not one of refuse, resync".to_owned()),
    }
}

fn parse_doors(text: &str) -> Result<Vec<Door>, String> {
    let find = |name: &str| Door::ALL.into_iter().find(|door| door.name() == name);
    text.split(',')
        .map(|name| {
            find(name.trim()).ok_or_else(|| "is not a list of direct, eventbridge, fivetran".to_owned())
        })
        .collect()
}

fn document_rules(document: &Map<String, Value>, problems: &mut Vec<String>) -> TableRules {
    for key in document.keys().filter(|key| !["defaults", "tables"].contains(&key.as_str())) {
        problems.push(format!("unknown key `{key}`"));
    }
    let defaults = match document.get("defaults") {
        None => TableOptions::default(),
        Some(value) => options(value, "`defaults`", &TableOptions::default(), problems),
    };
    let Some(tables) = document.get("tables").and_then(Value::as_object).filter(|tables| !tables.is_empty())
    else {
        problems.push("`tables` is not an object with at least one table".to_owned());
        return TableRules::default();
    };
    let mut rules = Vec::new();
    for (name, value) in tables {
        let place = format!("`tables.{name}`");
        let options = match value {
            Value::Bool(false) => None,
            value => Some(options(value, &place, &defaults, problems)),
        };
        match TablePattern::parse(name) {
            Ok(pattern) if rules.iter().any(|rule: &TableRule| rule.pattern.is_same(&pattern)) => {
                problems.push(format!("{place} is there twice, in two spellings"));
            }
            Ok(pattern) => rules.push(TableRule { pattern, options }),
            Err(problem) => problems.push(format!("{place}: {problem}")),
        }
    }
    TableRules::new(rules)
}

fn options(value: &Value, place: &str, defaults: &TableOptions, problems: &mut Vec<String>) -> TableOptions {
    let mut options = defaults.clone();
    let Some(object) = value.as_object() else {
        problems.push(format!("{place} is neither an object nor false"));
        return options;
    };
    for (key, value) in object {
        let outcome = match key.as_str() {
            "cursor_column" => columns(value).map(|columns| options.cursor_columns = Some(columns)),
            "exclude" => columns(value).map(|columns| options.exclude = columns),
            "start" => start(value).map(|start| options.start = Some(start)),
            "deleted_column" => {
                let column = value.as_str().ok_or("is not a column's name");
                column.map(|column| options.deleted_column = Some(column.to_owned()))
            }
            _ => Err("is not known; known: cursor_column, exclude, start, deleted_column"),
        };
        if let Err(problem) = outcome {
            problems.push(format!("{place}: `{key}` {problem}"));
        }
    }
    options
}

fn columns(value: &Value) -> Result<Vec<String>, &'static str> {
    const PROBLEM: &str = "is not a column's name or a list of them";
    match value {
        Value::String(column) => Ok(vec![column.clone()]),
        Value::Array(columns) => {
            columns.iter().map(|column| column.as_str().map(str::to_owned).ok_or(PROBLEM)).collect()
        }
        _ => Err(PROBLEM),
    }
}

fn start(value: &Value) -> Result<DateTime<Utc>, &'static str> {
    let text = value.as_str().ok_or("is not a string")?;
    let start = DateTime::parse_from_rfc3339(text).map_err(|_| "is not a time like 2024-01-01T00:00:00Z")?;
    Ok(start.with_timezone(&Utc))
}

/// The environment as tests write it.
#[cfg(test)]
pub(crate) fn config_of(variables: &[(&str, &str)]) -> Result<Config, Error> {
    let variables: std::collections::BTreeMap<&str, &str> = variables.iter().copied().collect();
    let request = Request::new(Door::Direct, Action::Sync);
    Config::from_env(|name| variables.get(name).map(|value| (*value).to_owned()), &request)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: [(&str, &str); 3] =
        [("BASTION_SECRET_ID", "s"), ("OUTPUT_URI", "s3://b/p/"), ("TABLES", "SAMPLE_USERS")];

    fn with(extra: &[(&str, &str)]) -> Result<Config, Error> {
        config_of(&[&MINIMAL[..], extra].concat())
    }

    fn table(text: &str) -> TableName {
        TableName::parse(text).expect("a name")
    }

    #[test]
    fn three_variables_are_enough() {
        let config = with(&[]).expect("valid");
        assert_eq!(config.output, Some(S3Uri { bucket: "b".into(), prefix: "p".into() }));
        assert_eq!(config.cursor_columns, ["modified_at", "updated_at"]);
        assert_eq!(config.doors, [Door::Direct, Door::EventBridge]);
        let TableSource::Listed(rules) = config.tables else { panic!("listed") };
        assert!(rules.options(&table("public.sample_users")).is_some());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = config_of(&[
            ("OUTPUT_URI", "/tmp/x"),
            ("COMPRESSION", "lz4"),
            ("TARGET_FILE_MB", "0"),
            ("DOORS", "front"),
            ("METADATA_COLUMNS", "maybe"),
        ])
        .expect_err("invalid");
        let text = error.to_string();
        for name in [
            "BASTION_SECRET_ID",
            "OUTPUT_URI",
            "COMPRESSION",
            "TARGET_FILE_MB",
            "DOORS",
            "METADATA_COLUMNS",
            "TABLES",
        ] {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert_eq!(error.kind(), Kind::InvalidConfig);
    }

    #[test]
    fn a_closed_door_says_how_to_open_it() {
        let error = with(&[("DOORS", "eventbridge")]).expect_err("closed");
        assert!(error.kind() == Kind::InvalidRequest && error.to_string().contains("DOORS"), "{error}");
    }

    #[test]
    fn tables_and_a_document_exclude_each_other() {
        assert!(with(&[("CONFIG_URI", "s3://b/c.json")]).is_err());
    }

    #[test]
    fn an_output_cannot_climb_out_of_its_prefix() {
        for uri in ["s3://b/../x", "s3://b/a/./b", "s3:///p", "s3://b b/p", "http://b/p"] {
            assert!(S3Uri::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn the_most_specific_rule_decides() {
        let document = br#"{"defaults":{"cursor_column":"changed"},
            "tables":{"public.*":{},"public.audit_*":false,"public.audit_log":{"exclude":["card_no"],
            "start":"2024-01-01T00:00:00Z","cursor_column":["at"]}}}"#;
        let uri = S3Uri::parse("s3://b/c.json").expect("valid");
        let rules = TableRules::from_document(document, &uri).expect("valid");
        assert_eq!(
            rules.options(&table("public.users")).expect("included").cursor_columns,
            Some(vec!["changed".to_owned()])
        );
        assert!(rules.options(&table("public.audit_x")).is_none());
        let log = rules.options(&table("public.audit_log")).expect("included");
        assert_eq!((log.exclude.as_slice(), log.start.is_some()), (&["card_no".to_owned()][..], true));
        assert!(rules.options(&table("other.users")).is_none());
        assert!(rules.hash.is_some());
    }

    #[test]
    fn a_document_names_all_its_problems() {
        let uri = S3Uri::parse("s3://b/c.json").expect("valid");
        let document = br#"{"table":{},"tables":{"a b":{},"c":{"exlude":[]},"d":1,"e":{"start":"soon"},"F":{},"public.f":{}}}"#;
        let text = TableRules::from_document(document, &uri).expect_err("invalid").to_string();
        for named in [
            "`table`",
            "`tables.a b`",
            "`exlude`",
            "`tables.d`",
            "`start`",
            "`tables.public.f` is there twice",
        ] {
            assert!(text.contains(named), "{named} in {text}");
        }
        assert!(TableRules::from_document(b"{", &uri).expect_err("invalid").to_string().contains("line 1"));
    }
}
