//! A table as the rest of the program knows it: what the catalog says, as far as queries, rows and schema files need it.

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::TableOptions;
use crate::encode::{Cast, Encoding};
use crate::table_name::{TableName, quoted};
use crate::text::hex;

/// A table that can be synced: everything that a query over it needs.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: TableName,
    pub(crate) oid: u32,
    /// Those that are delivered, in the table's order.
    pub(crate) columns: Vec<Column>,
    /// The primary key's columns: indices into `columns`, in the key's order.
    pub(crate) key: Vec<usize>,
    /// The cursor column: an index into `columns`. Without one every run looks at each row.
    pub(crate) cursor: Option<usize>,
    pub(crate) cursor_kind: CursorKind,
    /// What says that the source calls a row deleted.
    pub(crate) deleted: Option<DeletedColumn>,
    /// Whether an index begins with the cursor column.
    pub(crate) is_indexed: bool,
    /// Whether a logical subscription writes it, whose rows are older than their arrival.
    pub(crate) is_subscribed: bool,
    /// Schemas other than `pg_catalog` where the key's types, and so their operators, live.
    pub(crate) operator_schemas: Vec<String>,
    /// All columns with their types' oids, a line each: binary COPY does not say what it sends.
    pub(crate) fingerprint: String,
    /// `LOCK TABLE` wants SELECT on the whole table; a grant on single columns is not enough for it.
    pub(crate) is_lockable: bool,
    pub(crate) options: TableOptions,
}

/// One column as it is selected and delivered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// As PostgreSQL writes it, with modifiers: `numeric(10,2)`.
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    pub(crate) nullable: bool,
    /// The type without modifiers, for literals of the key.
    #[serde(skip)]
    pub(crate) literal_type: String,
    #[serde(skip)]
    pub(crate) cast: Cast,
    #[serde(skip)]
    pub(crate) encoding: Encoding,
}

/// A column that is true, or set, in deleted rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeletedColumn {
    pub(crate) name: String,
    /// Else a time.
    pub(crate) is_bool: bool,
}

/// What a cursor column may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CursorKind {
    Timestamptz,
    Timestamp,
    Date,
}

impl Table {
    /// What a position in this table is made of; a state made for another order does not fit.
    pub(crate) fn order(&self) -> String {
        let columns = self.cursor.iter().chain(&self.key).map(|i| &self.columns[*i]);
        columns
            .map(|column| format!("{} {}", quoted(&column.name), column.literal_type))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(crate) fn cursor_column(&self) -> Option<&Column> {
        self.cursor.map(|i| &self.columns[i])
    }

    /// What to do about a table without a cursor column.
    pub(crate) fn cursor_advice(&self) -> String {
        let is_time =
            |column: &&Column| ["timestamp", "date"].iter().any(|ty| column.literal_type.starts_with(ty));
        let candidates: Vec<&str> =
            self.columns.iter().filter(is_time).map(|column| column.name.as_str()).collect();
        match candidates.is_empty() {
            true => "add a column that every write sets to now(), and name it in CURSOR_COLUMN".to_owned(),
            false => {
                let list = candidates.join(", ");
                format!("set CURSOR_COLUMN to the one that every write sets; candidates: {list}")
            }
        }
    }

    pub(crate) fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|i| self.columns[*i].name.as_str()).collect()
    }

    /// The schema file: columns, PostgreSQL's types, primary key; and its hash, which names it.
    pub(crate) fn schema(&self) -> (Value, String) {
        let schema = json!({
            "table": self.name.to_string(),
            "columns": self.columns,
            "primary_key": self.key_names(),
            "cursor_column": self.cursor_column().map(|column| &column.name),
        });
        let hash = hex(&Sha256::digest(schema.to_string())[..8]);
        (schema, hash)
    }
}
