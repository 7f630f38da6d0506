//! What one invocation is asked to do: the single shape that every door's event becomes.

use serde_json::Value;

use crate::table_name::TableName;

/// A validated request; nothing in it is checked again.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) door: Door,
    pub(crate) action: Action,
    /// The tables picked among the configured ones; `None`: all of them.
    pub(crate) tables: Option<Vec<TableName>>,
    pub(crate) limits: Limits,
    /// The caller's own state, untrusted; `None`: the checkpoint is the truth.
    pub(crate) state: Option<Hidden>,
    /// Fivetran's `secrets`, which count only with `ALLOW_EVENT_SECRETS`.
    pub(crate) secrets: Option<Hidden>,
    /// Where Fivetran wants the rows; `None`: in the answer.
    pub(crate) file: Option<File>,
    /// Whose SQL the discovery gives.
    pub(crate) warehouse: Option<Warehouse>,
}

impl Request {
    /// With nothing picked and nothing limited.
    pub(crate) fn new(door: Door, action: Action) -> Self {
        Self {
            door,
            action,
            tables: None,
            limits: Limits::default(),
            state: None,
            secrets: None,
            file: None,
            warehouse: None,
        }
    }

    /// Whether it works on the tables that are configured.
    pub(crate) fn needs_tables(&self) -> bool {
        !matches!(self.action, Action::Status | Action::Discover)
    }
}

/// An object that Fivetran names: `bucket` and `file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

/// Who called, and therefore which shape the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Direct,
    EventBridge,
    Fivetran,
}

impl Door {
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::EventBridge, Self::Fivetran];

    /// The name in `DOORS` and in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::EventBridge => "eventbridge",
            Self::Fivetran => "fivetran",
        }
    }
}

/// What to do. The names of later actions are taken: see `entry::direct`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read what changed, commit it, answer with the new cursor.
    Sync,
    /// The same, looking at every row, and report those that the cursor column would have missed.
    Audit,
    /// Try every hop without reading a row or moving a cursor.
    Check,
    /// Forget the cursors of the named tables, so that the next sync reads them whole.
    Resync,
    /// Say where each table stands, from S3 alone.
    Status,
    /// Say which tables the database has, and how to configure them.
    Discover,
}

/// Who reads the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warehouse {
    Athena,
    Snowflake,
    Redshift,
    BigQuery,
    Databricks,
    DuckDb,
}

impl Warehouse {
    pub(crate) const ALL: [Self; 6] =
        [Self::Athena, Self::Snowflake, Self::Redshift, Self::BigQuery, Self::Databricks, Self::DuckDb];

    /// As callers write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Athena => "athena",
            Self::Snowflake => "snowflake",
            Self::Redshift => "redshift",
            Self::BigQuery => "bigquery",
            Self::Databricks => "databricks",
            Self::DuckDb => "duckdb",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|warehouse| warehouse.name() == name)
    }
}

/// Bounds on one run; `None`: as configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_seconds: Option<u64>,
    pub(crate) max_rows: Option<u64>,
    /// Of NDJSON before compression.
    pub(crate) max_bytes: Option<u64>,
}

/// A value that may hold secrets or keys of rows; its `Debug` shows nothing.
#[derive(Clone)]
pub(crate) struct Hidden(pub(crate) Value);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}
