//! The SQL that keeps a copy of a table in a warehouse, from the objects that were delivered. Pure.
//!
//! `changes` holds every delivered version of every row, `newest` is a view of one typed row a key, and `merge` brings it
//! into `table`. Where the warehouse does not read the objects in place, `load` brings them in. Each can be run again: a
//! version that is there twice changes nothing, since only the newest `_seq` of a key counts.
//!
//! Objects are taken in without any cast that could fail; the view casts. There a value that the type cannot hold (NaN in a
//! numeric, `infinity`, years BC) is null, but in the key it is an error: two keys that became null would be one row.

use std::collections::HashSet;

use crate::encode::Encoding;
use crate::request::Warehouse;
use crate::table::{Column, Table};
use crate::table_name;

/// The commit's number, last in every line.
const SEQ: &str = "_seq";

/// What the folders of a day's objects begin with, before `=`.
const DAY: &str = "sync_date";

/// No object is older. Athena looks into every day's folder from then on.
const FIRST_DAY: &str = "2026-01-01";

/// What a column becomes, as far as warehouses differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Bool,
    Int,
    BigInt,
    Float,
    /// Precision and scale, such as every warehouse has.
    Decimal(u32, u32),
    TimestampTz,
    Timestamp,
    Date,
    /// Base64.
    Bytes,
    Json,
    Text,
}

/// The statements for a table, named, in the order in which to run them; one may be several, with semicolons between.
///
/// `data_uri`: `s3://bucket/prefix/data/public.users/`, whose objects lie in folders `sync_date=YYYY-MM-DD/`, every line with a
/// `_seq`. `extension`: theirs, `ndjson.gz`.
pub(crate) fn statements(
    warehouse: Warehouse,
    table: &Table,
    data_uri: &str,
    extension: &str,
) -> Vec<(&'static str, String)> {
    let sql = Sql::new(warehouse, table, data_uri);
    let mut statements = vec![("changes", sql.changes())];
    if warehouse == Warehouse::Snowflake {
        statements.push(("stage", sql.stage()));
    }
    statements.extend(sql.load(extension).map(|load| ("load", load)));
    statements.extend([("newest", sql.newest()), ("table", sql.table()), ("merge", sql.merge())]);
    statements
}

impl Warehouse {
    fn type_name(self, shape: Shape) -> String {
        let name = match (shape, self) {
            (Shape::Bool, Self::BigQuery) => "BOOL",
            (Shape::Bool, _) => "BOOLEAN",
            (Shape::Int | Shape::BigInt, Self::BigQuery) => "INT64",
            (Shape::Int, Self::Athena | Self::Databricks) => "INT",
            (Shape::Int, _) => "INTEGER",
            (Shape::BigInt, _) => "BIGINT",
            (Shape::Float, Self::Snowflake) => "FLOAT",
            (Shape::Float, Self::Redshift) => "DOUBLE PRECISION",
            (Shape::Float, Self::BigQuery) => "FLOAT64",
            (Shape::Float, _) => "DOUBLE",
            (Shape::Decimal(precision, scale), Self::BigQuery) => {
                return format!("{}({precision}, {scale})", bigquery_decimal(precision, scale));
            }
            (Shape::Decimal(precision, scale), _) => return format!("DECIMAL({precision}, {scale})"),
            (Shape::TimestampTz, Self::Snowflake) => "TIMESTAMP_TZ(6)",
            (Shape::TimestampTz, Self::Redshift | Self::DuckDb) => "TIMESTAMPTZ",
            (Shape::Timestamp, Self::Snowflake) => "TIMESTAMP_NTZ(6)",
            (Shape::Timestamp, Self::BigQuery) => "DATETIME",
            (Shape::Timestamp, Self::Databricks) => "TIMESTAMP_NTZ",
            // Athena's has no zone: it is UTC's.
            (Shape::TimestampTz | Shape::Timestamp, _) => "TIMESTAMP",
            (Shape::Date, _) => "DATE",
            (Shape::Bytes, Self::BigQuery) => "BYTES",
            (Shape::Bytes, Self::DuckDb) => "BLOB",
            (Shape::Bytes, Self::Athena | Self::Snowflake | Self::Databricks) => "BINARY",
            (Shape::Json, Self::Snowflake | Self::Databricks) => "VARIANT",
            (Shape::Json, Self::Redshift) => "SUPER",
            (Shape::Json, Self::BigQuery | Self::DuckDb) => "JSON",
            (Shape::Text, Self::Snowflake | Self::DuckDb) => "VARCHAR",
            (Shape::Text | Shape::Bytes, Self::Redshift) => "VARCHAR(65535)",
            (Shape::Text, Self::Athena | Self::BigQuery | Self::Databricks) | (Shape::Json, Self::Athena) => {
                "STRING"
            }
        };
        name.to_owned()
    }

    /// The type in which a value is taken in: one that every value fits.
    fn landing_type(self, shape: Shape) -> String {
        match shape {
            Shape::Bool | Shape::Int | Shape::BigInt | Shape::Json => self.type_name(shape),
            _ => self.type_name(Shape::Text),
        }
    }

    /// A name as it is found in the warehouse, before quoting: folded as unquoted names are, and with `_` for what cannot be in
    /// a name.
    fn folded(self, name: &str) -> String {
        let is_kept = |c: char| match self {
            Self::Athena => c.is_ascii_alphanumeric(),
            Self::BigQuery | Self::Databricks => c.is_alphanumeric(),
            Self::Snowflake | Self::Redshift => !c.is_control(),
            Self::DuckDb => true,
        };
        let name: String = name.chars().map(|c| if c == '_' || is_kept(c) { c } else { '_' }).collect();
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        match self {
            Self::Athena | Self::Redshift => name.to_ascii_lowercase(),
            Self::Snowflake if name.chars().all(is_plain) => name.to_ascii_uppercase(),
            _ => name,
        }
    }

    /// A folded name as SQL. Athena's `create table`, which is Hive's, has backticks instead.
    fn quoted(self, name: &str) -> String {
        match self {
            Self::BigQuery | Self::Databricks => format!("`{name}`"),
            _ => table_name::quoted(name),
        }
    }

    /// A string; of Athena's only in `create table`.
    fn literal(self, text: &str) -> String {
        match self {
            Self::Redshift | Self::DuckDb => format!("'{}'", text.replace('\'', "''")),
            _ => {
                let text = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
                format!("'{text}'")
            }
        }
    }

    /// Whether `changes` has the table's columns, and not one record a row.
    fn has_columns(self) -> bool {
        matches!(self, Self::Athena | Self::Redshift | Self::DuckDb)
    }
}

impl Shape {
    fn of(column: &Column) -> Self {
        match &column.encoding {
            Encoding::Bool => Self::Bool,
            Encoding::Int2 | Encoding::Int4 => Self::Int,
            Encoding::Int8 | Encoding::Oid => Self::BigInt,
            Encoding::Float4 | Encoding::Float8 => Self::Float,
            Encoding::Numeric => decimal(&column.type_name).unwrap_or(Self::Text),
            Encoding::TimestampTz => Self::TimestampTz,
            Encoding::Timestamp => Self::Timestamp,
            Encoding::Date => Self::Date,
            Encoding::Bytea => Self::Bytes,
            encoding if !encoding.is_scalar() => Self::Json,
            // Times of day, too: not every warehouse has them, or has 24:00.
            _ => Self::Text,
        }
    }

    fn is_time(self) -> bool {
        matches!(self, Self::TimestampTz | Self::Timestamp | Self::Date)
    }
}

/// `numeric(10,2)`, if every warehouse can hold it. A numeric without a precision, or a domain over one, is text.
fn decimal(type_name: &str) -> Option<Shape> {
    let (precision, scale) = type_name.strip_prefix("numeric(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale) = (precision.parse().ok()?, scale.parse().ok()?);
    // Redshift's scale ends at 37.
    (precision <= 38 && scale <= precision && scale <= 37).then_some(Shape::Decimal(precision, scale))
}

fn bigquery_decimal(precision: u32, scale: u32) -> &'static str {
    if scale <= 9 && precision - scale <= 29 { "NUMERIC" } else { "BIGNUMERIC" }
}

/// A column as the warehouse has it.
#[derive(Debug)]
struct Target<'a> {
    /// What its values are called in a line.
    member: &'a str,
    name: String,
    shape: Shape,
    is_key: bool,
}

/// What the statements of one table are made from.
#[derive(Debug)]
struct Sql<'a> {
    warehouse: Warehouse,
    data_uri: &'a str,
    /// The table's name there, as far as its statements' names agree.
    base: String,
    /// `_seq` comes last.
    columns: Vec<Target<'a>>,
    left_out: Vec<Target<'a>>,
    /// Names that no column has.
    row: String,
    day: String,
}

impl<'a> Sql<'a> {
    fn new(warehouse: Warehouse, table: &'a Table, data_uri: &'a str) -> Self {
        let mut taken = HashSet::new();
        let mut claim = |name: &str| {
            let folded = warehouse.folded(name);
            let mut name = folded.clone();
            let mut count = 1;
            while !taken.insert(name.to_lowercase()) {
                count += 1;
                name = format!("{folded}_{count}");
            }
            name
        };
        let seq = Target { member: SEQ, name: claim(SEQ), shape: Shape::BigInt, is_key: false };
        let target = |(i, column): (usize, &'a Column)| Target {
            member: &column.name,
            name: String::new(),
            shape: Shape::of(column),
            is_key: table.key.contains(&i),
        };
        let mut columns: Vec<Target<'a>> = table.columns.iter().enumerate().map(target).collect();
        // Those of the primary key choose first.
        for is_key in [true, false] {
            for column in columns.iter_mut().filter(|column| column.is_key == is_key) {
                column.name = claim(column.member);
            }
        }
        columns.push(seq);
        let (row, day) = (claim("_row"), claim(DAY));
        // They find a value by the column's name only.
        let is_found = |column: &Target<'a>| {
            !matches!(warehouse, Warehouse::Redshift | Warehouse::DuckDb)
                || column.name.eq_ignore_ascii_case(column.member)
        };
        let (columns, left_out) = columns.into_iter().partition(is_found);
        Self { warehouse, data_uri, base: table.name.to_flat(), columns, left_out, row, day }
    }

    fn changes(&self) -> String {
        let (name, record) = (self.object("_changes"), self.record());
        let sql = match self.warehouse {
            Warehouse::Athena => self.external_table(),
            Warehouse::Snowflake => format!("CREATE TABLE IF NOT EXISTS {name} ({record} VARIANT)"),
            Warehouse::BigQuery | Warehouse::Databricks => {
                format!("CREATE TABLE IF NOT EXISTS {name} ({record} STRING)")
            }
            Warehouse::Redshift => {
                let columns = self
                    .list("  ", |column| format!("{} {}", self.column(column), self.landing_type(column)));
                format!("CREATE TABLE IF NOT EXISTS {name} (\n{columns}\n)")
            }
            Warehouse::DuckDb => {
                let columns = self.list("    ", |column| {
                    format!("{}: '{}'", self.literal(column.member), self.landing_type(column))
                });
                let files = self.literal(&format!("{}*/*.ndjson*", self.data_uri));
                format!(
                    "CREATE OR REPLACE VIEW {name} AS\nSELECT *\nFROM read_json(\n  {files},\n  \
                     format = 'newline_delimited',\n  hive_partitioning = false,\n  columns = {{\n{columns}\n  }}\n)"
                )
            }
        };
        if self.left_out.is_empty() {
            return sql;
        }
        // `Debug` leaves no newline in them that would end the comment.
        let names: Vec<String> = self.left_out.iter().map(|column| format!("{:?}", column.member)).collect();
        format!("-- Left out, for their names are taken or cannot be had here: {}\n{sql}", names.join(", "))
    }

    /// Case and odd characters are lost in Athena's names, so that each such column says where its values are.
    fn external_table(&self) -> String {
        let columns = self.list("  ", |column| format!("`{}` {}", column.name, self.landing_type(column)));
        let mappings: String = self
            .columns
            .iter()
            .filter(|column| column.name != column.member)
            .map(|column| format!(",\n  'mapping.{}' = {}", column.name, self.literal(column.member)))
            .collect();
        let name = self.warehouse.folded(&format!("{}_changes", self.base));
        let day = &self.day;
        let location = self.literal(self.data_uri);
        let template = self.literal(&format!("{}{DAY}=${{{day}}}/", self.data_uri));
        format!(
            "CREATE EXTERNAL TABLE IF NOT EXISTS `{name}` (\n{columns}\n)\nPARTITIONED BY (`{day}` STRING)\n\
             ROW FORMAT SERDE 'org.openx.data.jsonserde.JsonSerDe'\n\
             WITH SERDEPROPERTIES (\n  'case.insensitive' = 'FALSE'{mappings}\n)\nLOCATION {location}\n\
             TBLPROPERTIES (\n  'projection.enabled' = 'true',\n  'projection.{day}.type' = 'date',\n  \
             'projection.{day}.format' = 'yyyy-MM-dd',\n  'projection.{day}.range' = '{FIRST_DAY},NOW',\n  \
             'storage.location.template' = {template}\n)"
        )
    }

    fn stage(&self) -> String {
        format!(
            "-- my_integration stands for your storage integration, which may read the bucket.\n\
             CREATE STAGE IF NOT EXISTS {}\nURL = {}\nSTORAGE_INTEGRATION = my_integration",
            self.object("_stage"),
            self.literal(self.data_uri)
        )
    }

    fn load(&self, extension: &str) -> Option<String> {
        let (name, record, uri) = (self.object("_changes"), self.record(), self.literal(self.data_uri));
        match self.warehouse {
            Warehouse::Athena | Warehouse::DuckDb => None,
            Warehouse::Snowflake => Some(format!(
                "-- Only objects that were not loaded before.\nCOPY INTO {name}\nFROM @{}\n\
                 FILE_FORMAT = (TYPE = JSON COMPRESSION = AUTO ALLOW_DUPLICATE = TRUE)",
                self.object("_stage")
            )),
            Warehouse::Redshift => {
                let is_exact = self.columns.iter().all(|column| column.member == column.name);
                let option = if is_exact { "auto" } else { "auto ignorecase" };
                let compression = match extension {
                    "ndjson.gz" => "\nGZIP",
                    "ndjson.zst" => "\nZSTD",
                    _ => "",
                };
                Some(format!(
                    "-- All objects anew: COPY keeps no account of those that it has loaded.\n\
                     BEGIN;\nDELETE FROM {name};\nCOPY {name}\nFROM {uri}\nIAM_ROLE default\n\
                     FORMAT JSON '{option}'{compression};\nCOMMIT"
                ))
            }
            // A line is one field: JSON has no bare tab, and there are no quotes to CSV then.
            Warehouse::BigQuery => {
                let hint = match extension {
                    "ndjson.zst" => "-- BigQuery reads no zstd: set COMPRESSION=gzip.\n",
                    _ => "",
                };
                let files = self.literal(&format!("{}*", self.data_uri));
                Some(format!(
                    "{hint}-- All objects anew. From S3 this needs a connection of BigQuery Omni (WITH CONNECTION at the end); or \
                     let\n-- Storage Transfer Service copy the objects to Cloud Storage, and name that.\n\
                     LOAD DATA OVERWRITE {name} ({record} STRING)\nFROM FILES (\n  format = 'CSV',\n  \
                     field_delimiter = '\\t',\n  quote = '',\n  uris = [{files}]\n)"
                ))
            }
            Warehouse::Databricks => Some(format!(
                "-- Only objects that were not loaded before.\nCOPY INTO {name}\n\
                 FROM (SELECT value AS {record} FROM {uri})\nFILEFORMAT = TEXT"
            )),
        }
    }

    fn newest(&self) -> String {
        let (changes, record) = (self.object("_changes"), self.record());
        let key: Vec<String> = self.key().map(|column| self.text(column)).collect();
        let seq = self.columns.last().map(|column| self.typed(column)).unwrap_or_default();
        let number = format!("row_number() OVER (PARTITION BY {} ORDER BY {seq} DESC)", key.join(", "));
        let typed = |column: &Target<'a>| format!("{} AS {}", self.typed(column), self.column(column));
        let head = format!("CREATE OR REPLACE VIEW {} AS\nSELECT\n", self.object("_newest"));
        let source = match self.warehouse {
            // It has no QUALIFY.
            Warehouse::Athena => {
                let row = self.warehouse.quoted(&self.row);
                return format!(
                    "{head}{}\nFROM (\n  SELECT\n{},\n    {number} AS {row}\n  FROM {changes} AS c\n)\nWHERE {row} = 1",
                    self.list("  ", |column| self.column(column)),
                    self.list("    ", typed)
                );
            }
            Warehouse::BigQuery => {
                format!(
                    "(SELECT PARSE_JSON({record}, wide_number_mode => 'round') AS {record} FROM {changes})"
                )
            }
            Warehouse::Databricks => {
                format!("(SELECT parse_json({record}) AS {record} FROM {changes})")
            }
            Warehouse::Snowflake | Warehouse::Redshift | Warehouse::DuckDb => changes,
        };
        format!("{head}{}\nFROM {source} AS c\nQUALIFY {number} = 1", self.list("  ", typed))
    }

    fn table(&self) -> String {
        let type_name = |column: &Target<'a>| self.warehouse.type_name(column.shape);
        if self.warehouse != Warehouse::Athena {
            let columns = self.list("  ", |column| format!("{} {}", self.column(column), type_name(column)));
            return format!("CREATE TABLE IF NOT EXISTS {} (\n{columns}\n)", self.object(""));
        }
        let columns = self.list("  ", |column| format!("`{}` {}", column.name, type_name(column)));
        // Beside the data, not in it.
        let location = match self.data_uri.rsplit_once("/data/") {
            Some((root, table)) => format!("{root}/athena/{table}"),
            None => format!("{}athena/", self.data_uri),
        };
        format!(
            "CREATE TABLE IF NOT EXISTS `{}` (\n{columns}\n)\nLOCATION {}\nTBLPROPERTIES ('table_type' = 'ICEBERG')",
            self.warehouse.folded(&self.base),
            self.literal(&location)
        )
    }

    fn merge(&self) -> String {
        let (target, newest) = (self.object(""), self.object("_newest"));
        let names: Vec<String> = self.columns.iter().map(|column| self.column(column)).collect();
        let seq = self.warehouse.quoted(&self.warehouse.folded(SEQ));
        let on = |target: &str| {
            let equal = |column: &Target<'a>| format!("{target}.{0} = s.{0}", self.column(column));
            self.key().map(equal).collect::<Vec<_>>().join(" AND ")
        };
        let others = self.columns.iter().filter(|column| !column.is_key);
        let set: Vec<String> = others.map(|column| format!("  {0} = s.{0}", self.column(column))).collect();
        let then = format!(
            "THEN UPDATE SET\n{}\nWHEN NOT MATCHED THEN INSERT ({})\nVALUES (s.{})",
            set.join(",\n"),
            names.join(", "),
            names.join(", s.")
        );
        if self.warehouse != Warehouse::Redshift {
            return format!(
                "MERGE INTO {target} AS t\nUSING {newest} AS s\nON {}\nWHEN MATCHED AND t.{seq} < s.{seq} {then}",
                on("t")
            );
        }
        // Its MERGE takes neither a view nor a condition.
        let batch = self.object("_batch");
        format!(
            "BEGIN;\nCREATE TEMP TABLE {batch} AS\nSELECT s.*\nFROM {newest} AS s\nLEFT JOIN {target} AS t ON {}\n\
             WHERE t.{seq} IS NULL OR t.{seq} < s.{seq};\nMERGE INTO {target}\nUSING {batch} AS s\nON {}\n\
             WHEN MATCHED {then};\nDROP TABLE {batch};\nCOMMIT",
            on("t"),
            on(&target)
        )
    }

    /// A value as `changes` has it; out of a record, as text.
    fn text(&self, column: &Target<'a>) -> String {
        match self.warehouse {
            Warehouse::Snowflake => format!("{}::VARCHAR", self.field(column)),
            Warehouse::BigQuery => format!("JSON_VALUE({})", self.field(column)),
            Warehouse::Databricks => self.variant(column, "STRING"),
            Warehouse::Athena | Warehouse::Redshift | Warehouse::DuckDb => {
                format!("c.{}", self.column(column))
            }
        }
    }

    /// A value as the target has it.
    fn typed(&self, column: &Target<'a>) -> String {
        let text = self.text(column);
        let type_name = self.warehouse.type_name(column.shape);
        match (column.shape, self.warehouse) {
            (Shape::Text, _) | (Shape::Bytes, Warehouse::Redshift) => text,
            (Shape::Bool | Shape::Int | Shape::BigInt | Shape::Json, warehouse)
                if warehouse.has_columns() =>
            {
                text
            }
            // Its text of a float has fewer digits. It reads "NaN" and "Infinity".
            (Shape::Bool | Shape::Int | Shape::BigInt | Shape::Float, Warehouse::Snowflake) => {
                format!("{}::{type_name}", self.field(column))
            }
            (Shape::Bool | Shape::Int | Shape::BigInt, Warehouse::Databricks) => {
                self.variant(column, &type_name)
            }
            // JSON's null is none of SQL.
            (Shape::Json, Warehouse::Snowflake) => format!("STRIP_NULL_VALUE({})", self.field(column)),
            (Shape::Json, Warehouse::Databricks) => {
                let value = self.variant(column, "VARIANT");
                format!("IF(is_variant_null({value}), NULL, {value})")
            }
            (Shape::Json, _) => {
                let value = self.field(column);
                format!("IF(JSON_TYPE({value}) = 'null', NULL, {value})")
            }
            (Shape::Bytes, Warehouse::Snowflake) => format!("TO_BINARY({text}, 'BASE64')"),
            (Shape::Bytes, Warehouse::Databricks) => format!("unbase64({text})"),
            (Shape::Bytes, _) => format!("from_base64({text})"),
            // It wants a space, and would ignore what comes after the digits, ` BC` too: so only what is all digits gets one.
            (Shape::TimestampTz | Shape::Timestamp, Warehouse::Athena) => {
                let text = format!("regexp_replace({text}, '^([0-9-]+)T([0-9:.]+)Z?$', '$1 $2')");
                self.cast(&text, column)
            }
            // They would ignore ` BC`.
            (shape, Warehouse::Databricks | Warehouse::DuckDb) if shape.is_time() => {
                self.cast(&format!("regexp_replace({text}, '.* BC$', 'BC')"), column)
            }
            _ => self.cast(&text, column),
        }
    }

    fn cast(&self, text: &str, column: &Target<'a>) -> String {
        let type_name = match (column.shape, self.warehouse) {
            (Shape::TimestampTz | Shape::Timestamp, Warehouse::Athena) => "TIMESTAMP(6)".to_owned(),
            (Shape::Decimal(precision, scale), Warehouse::BigQuery) => {
                bigquery_decimal(precision, scale).to_owned()
            }
            (shape, warehouse) => warehouse.type_name(shape),
        };
        let is_total = matches!(column.shape, Shape::Bool | Shape::Int | Shape::BigInt);
        let function = match self.warehouse {
            _ if column.is_key || is_total => "CAST",
            Warehouse::BigQuery => "SAFE_CAST",
            _ => "TRY_CAST",
        };
        format!("{function}({text} AS {type_name})")
    }

    /// A value in a record.
    fn field(&self, column: &Target<'a>) -> String {
        format!("c.{}[{}]", self.record(), self.literal(column.member))
    }

    /// A value in Databricks' record. Its paths have no escapes: between double quotes there can be no `"` and no `?`, and
    /// after a dot no further one.
    fn variant(&self, column: &Target<'a>, type_name: &str) -> String {
        let member = column.member;
        let path = if !member.contains(['"', '?']) {
            format!("$[\"{member}\"]")
        } else if !member.contains(['.', '[']) {
            format!("$.{member}")
        } else {
            format!("$['{member}']")
        };
        format!("variant_get(c.{}, {}, '{type_name}')", self.record(), self.literal(&path))
    }

    fn key(&self) -> impl Iterator<Item = &Target<'a>> {
        self.columns.iter().filter(|column| column.is_key)
    }

    /// Something for each column, a line each.
    fn list(&self, indent: &str, item: impl Fn(&Target<'a>) -> String) -> String {
        let items: Vec<String> =
            self.columns.iter().map(|column| format!("{indent}{}", item(column))).collect();
        items.join(",\n")
    }

    fn object(&self, suffix: &str) -> String {
        self.warehouse.quoted(&self.warehouse.folded(&format!("{}{suffix}", self.base)))
    }

    fn column(&self, column: &Target<'a>) -> String {
        self.warehouse.quoted(&column.name)
    }

    fn record(&self) -> String {
        self.warehouse.quoted(&self.warehouse.folded("record"))
    }

    fn literal(&self, text: &str) -> String {
        self.warehouse.literal(text)
    }

    fn landing_type(&self, column: &Target<'a>) -> String {
        self.warehouse.landing_type(column.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TableOptions;
    use crate::table::CursorKind;
    use crate::table_name::TableName;
    use tokio_postgres::types::Type;

    const URI: &str = "s3://bucket/app/data/public.users/";

    fn table(name: &str, key: &[usize], columns: &[(&str, &str, Type)]) -> Table {
        let column = |(name, type_name, ty): &(&str, &str, Type)| {
            let (cast, encoding) = Encoding::select(ty);
            Column {
                name: (*name).into(),
                type_name: (*type_name).into(),
                nullable: true,
                literal_type: (*type_name).into(),
                cast,
                encoding,
            }
        };
        Table {
            name: TableName::parse(name).expect("a name"),
            oid: 1,
            columns: columns.iter().map(column).collect(),
            key: key.to_vec(),
            cursor: None,
            cursor_kind: CursorKind::Timestamptz,
            deleted: None,
            is_indexed: false,
            is_subscribed: false,
            operator_schemas: Vec::new(),
            fingerprint: String::new(),
            is_lockable: true,
            options: TableOptions::default(),
        }
    }

    fn users() -> Table {
        let columns = [
            ("id", "bigint", Type::INT8),
            ("name", "text", Type::TEXT),
            ("price", "numeric(10,2)", Type::NUMERIC),
            ("at", "timestamp with time zone", Type::TIMESTAMPTZ),
            ("doc", "jsonb", Type::JSONB),
        ];
        table("public.users", &[0], &columns)
    }

    fn sql(warehouse: Warehouse, table: &Table, name: &str) -> String {
        let mut statements = statements(warehouse, table, URI, "ndjson.gz").into_iter();
        statements.find(|statement| statement.0 == name).expect("a statement").1
    }

    #[test]
    fn a_table_in_duckdb_reads_the_objects_in_place() {
        let statements = statements(Warehouse::DuckDb, &users(), URI, "ndjson.gz");
        let expected = [
            (
                "changes",
                r#"CREATE OR REPLACE VIEW "users_changes" AS
SELECT *
FROM read_json(
  's3://bucket/app/data/public.users/*/*.ndjson*',
  format = 'newline_delimited',
  hive_partitioning = false,
  columns = {
    'id': 'BIGINT',
    'name': 'VARCHAR',
    'price': 'VARCHAR',
    'at': 'VARCHAR',
    'doc': 'JSON',
    '_seq': 'BIGINT'
  }
)"#,
            ),
            (
                "newest",
                r#"CREATE OR REPLACE VIEW "users_newest" AS
SELECT
  c."id" AS "id",
  c."name" AS "name",
  TRY_CAST(c."price" AS DECIMAL(10, 2)) AS "price",
  TRY_CAST(regexp_replace(c."at", '.* BC$', 'BC') AS TIMESTAMPTZ) AS "at",
  c."doc" AS "doc",
  c."_seq" AS "_seq"
FROM "users_changes" AS c
QUALIFY row_number() OVER (PARTITION BY c."id" ORDER BY c."_seq" DESC) = 1"#,
            ),
            (
                "table",
                r#"CREATE TABLE IF NOT EXISTS "users" (
  "id" BIGINT,
  "name" VARCHAR,
  "price" DECIMAL(10, 2),
  "at" TIMESTAMPTZ,
  "doc" JSON,
  "_seq" BIGINT
)"#,
            ),
            (
                "merge",
                r#"MERGE INTO "users" AS t
USING "users_newest" AS s
ON t."id" = s."id"
WHEN MATCHED AND t."_seq" < s."_seq" THEN UPDATE SET
  "name" = s."name",
  "price" = s."price",
  "at" = s."at",
  "doc" = s."doc",
  "_seq" = s."_seq"
WHEN NOT MATCHED THEN INSERT ("id", "name", "price", "at", "doc", "_seq")
VALUES (s."id", s."name", s."price", s."at", s."doc", s."_seq")"#,
            ),
        ];
        assert_eq!(statements, expected.map(|(name, sql)| (name, sql.to_owned())));
    }

    #[test]
    fn a_record_is_taken_apart_by_the_view() {
        assert_eq!(
            sql(Warehouse::Snowflake, &users(), "newest"),
            r#"CREATE OR REPLACE VIEW "USERS_NEWEST" AS
SELECT
  c."RECORD"['id']::BIGINT AS "ID",
  c."RECORD"['name']::VARCHAR AS "NAME",
  TRY_CAST(c."RECORD"['price']::VARCHAR AS DECIMAL(10, 2)) AS "PRICE",
  TRY_CAST(c."RECORD"['at']::VARCHAR AS TIMESTAMP_TZ(6)) AS "AT",
  STRIP_NULL_VALUE(c."RECORD"['doc']) AS "DOC",
  c."RECORD"['_seq']::BIGINT AS "_SEQ"
FROM "USERS_CHANGES" AS c
QUALIFY row_number() OVER (PARTITION BY c."RECORD"['id']::VARCHAR ORDER BY c."RECORD"['_seq']::BIGINT DESC) = 1"#
        );
    }

    #[test]
    fn what_a_warehouse_cannot_name_keeps_its_values_or_is_left_out() {
        let columns = [
            ("id", "integer", Type::INT4),
            ("Name", "text", Type::TEXT),
            ("name", "text", Type::TEXT),
            ("sync_date", "text", Type::TEXT),
            ("it's \"é\" \\ `x`\n?", "text", Type::TEXT),
        ];
        let table = table(r#""Sales"."Order ""1""""#, &[0], &columns);
        let athena = sql(Warehouse::Athena, &table, "changes");
        for part in [
            "EXISTS `sales_order__1__changes` (\n  `id` INT,\n  `name` STRING,\n  `name_2` STRING,\n",
            "PARTITIONED BY (`sync_date_2` STRING)",
            "'mapping.name' = 'Name',\n  'mapping.name_2' = 'name',\n",
            r#"'mapping.it_s________x___' = 'it\'s "é" \\ `x`\n?'"#,
            "public.users/sync_date=${sync_date_2}/'",
        ] {
            assert!(athena.contains(part), "{part} in {athena}");
        }
        for (warehouse, name, part) in [
            (Warehouse::Snowflake, "newest", r#"VIEW "Sales_Order ""1""_newest" AS"#),
            (Warehouse::Snowflake, "newest", r#"c."RECORD"['name']::VARCHAR AS "NAME_2""#),
            (
                Warehouse::Snowflake,
                "newest",
                r#"c."RECORD"['it\'s "é" \\ `x`\n?']::VARCHAR AS "it's ""é"" \ `x`_?""#,
            ),
            (Warehouse::BigQuery, "newest", r#"['it\'s "é" \\ `x`\n?']) AS `it_s__é_____x___`"#),
            (Warehouse::Databricks, "newest", r#"'$.it\'s "é" \\ `x`\n?', 'STRING') AS `it_s__é_____x___`"#),
            (Warehouse::DuckDb, "changes", "here: \"name\"\nCREATE"),
            (Warehouse::DuckDb, "merge", "  \"it's \"\"é\"\" \\ `x`\n?\" = s."),
            (Warehouse::Redshift, "changes", r#"here: "name", "it's \"é\" \\ `x`\n?""#),
            (Warehouse::Redshift, "load", "FORMAT JSON 'auto ignorecase'\nGZIP;"),
        ] {
            let sql = sql(warehouse, &table, name);
            assert!(sql.contains(part), "{part} in {sql}");
        }
    }

    #[test]
    fn a_cast_may_fail_except_in_the_key() {
        let columns = [("day", "date", Type::DATE), ("until", "date", Type::DATE)];
        let table = table("public.days", &[0], &columns);
        for warehouse in Warehouse::ALL {
            let sql = sql(warehouse, &table, "newest");
            assert_eq!(sql.matches("TRY_CAST(").count() + sql.matches("SAFE_CAST(").count(), 1, "{sql}");
            assert!(sql.contains("  CAST("), "{sql}");
        }
    }

    #[test]
    fn a_numeric_is_a_decimal_where_every_warehouse_can_hold_it() {
        assert_eq!(decimal("numeric(10,2)"), Some(Shape::Decimal(10, 2)));
        assert_eq!(decimal("numeric(38,37)"), Some(Shape::Decimal(38, 37)));
        for text in ["numeric", "numeric(39,0)", "numeric(38,38)", "numeric(2,4)", "numeric(4,-2)", "price"] {
            assert_eq!(decimal(text), None, "{text}");
        }
        let name = |precision, scale| Warehouse::BigQuery.type_name(Shape::Decimal(precision, scale));
        assert_eq!(name(38, 9), "NUMERIC(38, 9)");
        assert_eq!(name(30, 0), "BIGNUMERIC(30, 0)");
    }
}
