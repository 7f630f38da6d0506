//! The catalog: which of the configured tables there are, their columns, types and primary keys.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::types::Type;

use super::session::Session;
use crate::config::{Config, TableOptions, TableRules};
use crate::cursor::State;
use crate::deadline::Deadline;
use crate::encode::Encoding;
use crate::error::{Error, Kind};
use crate::table::{Column, CursorKind, DeletedColumn, Table};
use crate::table_name::{TableName, quoted};

/// A configured table: usable, or why not.
pub(crate) type Found = (TableName, Result<Arc<Table>, Error>);

/// The configured tables among what [`relations`] gave. Those named outright that are missing or unusable are errors; what a pattern brings in
/// and cannot be used is skipped with a warning, unless it has a cursor already: then it stands still, which is an error.
///
/// # Errors
/// As [`Session::error`]; `SchemaChanged` where there is no table at all.
pub(crate) async fn find_tables(
    session: &Session,
    relations: Vec<Relation>,
    config: &Config,
    rules: &TableRules,
    picked: Option<&[TableName]>,
    state: &State,
    deadline: Deadline,
) -> Result<Vec<Found>, Error> {
    let is_wanted = |table: &TableName| picked.is_none_or(|picked| picked.contains(table));
    let outright: Vec<TableName> = rules.outright().chain(picked.into_iter().flatten().cloned()).collect();
    let mut found: Vec<Found> = Vec::new();
    for relation in relations {
        let Some(options) = rules.options(&relation.name).filter(|_| is_wanted(&relation.name)) else {
            continue;
        };
        let is_outright = outright.contains(&relation.name);
        if !is_outright && (relation.is_leaf || relation.other_kind().is_some()) {
            continue;
        }
        let name = relation.name.clone();
        let is_named = rules.outright().any(|name| name == relation.name);
        match table(session, config, relation, options, is_named, deadline).await {
            Err(error) if !is_outright && state.cursor(&name).is_none() && is_unusable(&error) => {
                tracing::warn!(table = %name, error_type = error.kind().name(), error = %error, "table skipped");
            }
            Err(error) if !error.kind().is_of_table() => return Err(error),
            outcome => found.push((name, outcome.map(Arc::new))),
        }
    }
    for name in outright {
        if is_wanted(&name)
            && rules.options(&name).is_some()
            && !found.iter().any(|(known, _)| *known == name)
        {
            let error = missing(&name);
            found.push((name, Err(error)));
        }
    }
    if found.is_empty() {
        return Err(Error::new(Kind::SchemaChanged, "no table is there to be synced").with_hint(
            "TABLES names patterns only, and none of them finds a table that can be used; see the log",
        ));
    }
    Ok(found)
}

/// What the catalog says of a table, for people who are to choose.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: TableName,
    /// On disk, with its partitions and without indexes.
    pub(crate) bytes: u64,
    /// As the server estimates it; `None` before its first `analyze`.
    pub(crate) rows: Option<u64>,
    /// Columns of a type that a cursor column may have, and whether an index begins with it.
    pub(crate) times: Vec<(String, bool)>,
    pub(crate) is_partitioned: bool,
    /// As it would be synced, or why it cannot be.
    pub(crate) table: Result<Table, Error>,
}

/// Lists the database's tables: all, or those picked. Neither leaves nor what is no table, unless picked.
///
/// # Errors
/// As [`Session::error`].
pub(crate) async fn list_tables(
    session: &Session,
    config: &Config,
    rules: &TableRules,
    picked: Option<&[TableName]>,
    deadline: Deadline,
) -> Result<Vec<Listed>, Error> {
    let mut relations = relations(session, &TableRules::everything(), deadline).await?;
    relations.retain(|relation| match picked {
        Some(picked) => picked.contains(&relation.name),
        None => !relation.is_leaf && relation.other_kind().is_none(),
    });
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let sizes = session
        .query(
            "select c.oid, (select sum(coalesce(pg_relation_size(t.relid), 0))::int8 from \
                       (select relid from pg_partition_tree(c.oid) union select c.oid::regclass) t), \
                    (select sum(p.reltuples)::int8 from pg_class p where p.reltuples >= 0 and p.relkind = 'r' and p.oid in \
                       (select relid from pg_partition_tree(c.oid) union select c.oid::regclass)) \
             from pg_class c where c.oid = any($1)",
            &[(&oids, Type::OID_ARRAY)],
            deadline,
        )
        .await?;
    let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
    let sizes: HashMap<u32, (Option<u64>, Option<u64>)> =
        sizes.iter().map(|size| (size.get(0), (number(size.get(1)), number(size.get(2))))).collect();
    let mut listed = Vec::new();
    for relation in relations {
        // Without one the table is gone meanwhile.
        let Some((bytes, rows)) = sizes.get(&relation.oid).copied() else { continue };
        let is_partitioned = relation.kind == "p";
        let name = relation.name.clone();
        let is_time = |column: &&CatalogColumn| {
            Type::from_oid(column.type_oid).is_some_and(|ty| time_kind(&ty).is_some())
        };
        let times = relation.columns.iter().filter(is_time);
        let times = times.map(|column| (column.name.clone(), column.is_indexed)).collect();
        let options = rules.options(&name).cloned().unwrap_or_default();
        let table = match table(session, config, relation, &options, false, deadline).await {
            Err(error) if !error.kind().is_of_table() => return Err(error),
            outcome => outcome,
        };
        listed.push(Listed { name, bytes: bytes.unwrap_or(0), rows, times, is_partitioned, table });
    }
    let is_there = |name: &&TableName| !listed.iter().any(|listed| listed.name == **name);
    if let Some(name) = picked.into_iter().flatten().find(is_there) {
        return Err(missing(name));
    }
    Ok(listed)
}

fn missing(name: &TableName) -> Error {
    Error::new(Kind::SchemaChanged, format!("table {name} does not exist"))
        .with_hint("check its name and schema, db_name, and USAGE on the schema")
}

/// Whether the table is of a shape that cannot be synced, and not just out of reach now.
fn is_unusable(error: &Error) -> bool {
    matches!(error.kind(), Kind::SchemaChanged | Kind::InvalidConfig | Kind::PermissionDenied)
}

/// What the catalog has of one relation.
pub(crate) struct Relation {
    name: TableName,
    oid: u32,
    kind: String,
    is_leaf: bool,
    is_lockable: bool,
    is_subscribed: bool,
    /// Whether SELECT is granted, be it on single columns.
    is_readable: bool,
    columns: Vec<CatalogColumn>,
}

struct CatalogColumn {
    name: String,
    type_oid: u32,
    type_name: String,
    literal_type: String,
    nullable: bool,
    key_position: Option<i32>,
    /// Of a domain: its base type's.
    type_schema: String,
    /// Whether it comes first in an index over all rows. Tables that inherit have indexes and keys of their own.
    is_indexed: bool,
}

impl Relation {
    /// What it is, if it is neither an ordinary nor a partitioned table.
    fn other_kind(&self) -> Option<&'static str> {
        match self.kind.as_str() {
            "r" | "p" => None,
            "v" => Some("a view"),
            "m" => Some("a materialized view"),
            "f" => Some("a foreign table"),
            _ => Some("not a table"),
        }
    }
}

/// Asks the catalog for all that the patterns name.
///
/// # Errors
/// As [`Session::error`].
pub(crate) async fn relations(
    session: &Session,
    rules: &TableRules,
    deadline: Deadline,
) -> Result<Vec<Relation>, Error> {
    let (schemas, names): (Vec<String>, Vec<String>) =
        rules.included().map(|pattern| pattern.to_like()).unzip();
    let rows = session
        .query(
            "select n.nspname::text, c.relname::text, c.oid, c.relkind::text, c.relispartition, \
                    coalesce(has_table_privilege(c.oid, 'select'), false), a.attname::text, a.atttypid, \
                    format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, -1), not a.attnotnull, \
                    array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum), \
                    (select n.nspname::text from pg_type t left join pg_type b on b.oid = t.typbasetype \
                       join pg_namespace n on n.oid = coalesce(b.typnamespace, t.typnamespace) where t.oid = a.atttypid), \
                    exists (select from pg_index x join pg_class xc on xc.oid = x.indexrelid \
                       join pg_am am on am.oid = xc.relam where x.indrelid = c.oid and x.indkey[0] = a.attnum \
                       and x.indisvalid and x.indpred is null and am.amname = 'btree') \
                       and (c.relkind = 'p' or not exists (select from pg_inherits h where h.inhparent = c.oid)), \
                    exists (select from pg_subscription_rel s where s.srrelid = c.oid \
                       or s.srrelid in (select relid from pg_partition_tree(c.oid)) \
                       or s.srrelid in (select relid from pg_partition_ancestors(c.oid))), \
                    coalesce(has_any_column_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage'), false) \
             from pg_class c \
             join pg_namespace n on n.oid = c.relnamespace \
             join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
             left join pg_index i on i.indrelid = c.oid and i.indisprimary \
             where c.relkind in ('r', 'p', 'v', 'm', 'f') \
               and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' \
               and exists (select from unnest($1::text[], $2::text[]) as wanted(schema, name) \
                           where n.nspname like wanted.schema and c.relname like wanted.name) \
             order by n.nspname, c.relname, a.attnum",
            &[(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)],
            deadline,
        )
        .await?;
    let mut relations: Vec<Relation> = Vec::new();
    for row in rows {
        let oid: u32 = row.get(2);
        if relations.last().is_none_or(|last| last.oid != oid) {
            relations.push(Relation {
                name: TableName { schema: row.get(0), name: row.get(1) },
                oid,
                kind: row.get(3),
                is_leaf: row.get(4),
                is_lockable: row.get(5),
                is_subscribed: row.get(14),
                is_readable: row.get(15),
                columns: Vec::new(),
            });
        }
        if let Some(relation) = relations.last_mut() {
            relation.columns.push(CatalogColumn {
                name: row.get(6),
                type_oid: row.get(7),
                type_name: row.get(8),
                literal_type: row.get(9),
                nullable: row.get(10),
                key_position: row.get(11),
                type_schema: row.get(12),
                is_indexed: row.get(13),
            });
        }
    }
    Ok(relations)
}

async fn table(
    session: &Session,
    config: &Config,
    relation: Relation,
    options: &TableOptions,
    is_named: bool,
    deadline: Deadline,
) -> Result<Table, Error> {
    let name = relation.name.clone();
    if let Some(kind) = relation.other_kind() {
        return Err(Error::new(
            Kind::SchemaChanged,
            format!("{name} is {kind}, which cannot be read without loss"),
        )
        .with_hint("name the tables beneath it"));
    }
    if !relation.is_readable {
        let context = format!("the user may not read table {name}");
        return Err(Error::new(Kind::PermissionDenied, context)
            .with_hint(format!("grant SELECT on {name} and USAGE on schema {}", name.schema)));
    }
    let kept: Vec<&CatalogColumn> =
        relation.columns.iter().filter(|column| !options.exclude.contains(&column.name)).collect();
    check_names(config, &relation, options, is_named, &kept)?;
    let key = key(&name, &kept)?;
    let wanted = options.cursor_columns.as_ref().unwrap_or(&config.cursor_columns);
    let cursor = wanted.iter().find_map(|wanted| kept.iter().position(|column| column.name == *wanted));
    if cursor.is_none() && options.start.is_some() {
        let context = format!("table {name} has a `start` and no cursor column {}", wanted.join(" or "));
        return Err(Error::new(Kind::InvalidConfig, context));
    }
    let deleted = deleted_column(&relation, options, is_named)?;
    let types = types(session, &name, &kept, deadline).await?;
    let cursor_kind = match cursor {
        Some(cursor) => cursor_kind(&name, kept[cursor], &types[cursor])?,
        None => CursorKind::Timestamptz,
    };
    let mut operator_schemas: Vec<String> = key.iter().map(|i| kept[*i].type_schema.clone()).collect();
    operator_schemas.retain(|schema| schema != "pg_catalog");
    operator_schemas.dedup();
    let fingerprint = relation.columns.iter().map(|column| format!("{} {}", column.name, column.type_oid));
    let fingerprint = fingerprint.collect::<Vec<_>>().join("\n");
    let columns = kept.iter().zip(&types).map(|(column, ty)| {
        let (cast, encoding) = Encoding::select(ty);
        Column {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            nullable: column.nullable,
            literal_type: column.literal_type.clone(),
            cast,
            encoding,
        }
    });
    let columns: Vec<Column> = columns.collect();
    if let Some(i) = key.iter().find(|i| !columns[**i].encoding.is_scalar()) {
        let column = &columns[*i];
        let context =
            format!("column {} of the primary key of {name} is of type {}", column.name, column.type_name);
        return Err(Error::new(Kind::SchemaChanged, context)
            .with_hint("a table cannot be read in the order of such a key; leave the table out"));
    }
    Ok(Table {
        oid: relation.oid,
        columns,
        operator_schemas,
        fingerprint,
        key,
        is_indexed: cursor.is_some_and(|cursor| kept[cursor].is_indexed),
        is_subscribed: relation.is_subscribed,
        cursor,
        cursor_kind,
        deleted,
        is_lockable: relation.is_lockable,
        options: options.clone(),
        name,
    })
}

fn check_names(
    config: &Config,
    relation: &Relation,
    options: &TableOptions,
    is_named: bool,
    kept: &[&CatalogColumn],
) -> Result<(), Error> {
    let name = &relation.name;
    let has = |column: &String| relation.columns.iter().any(|known| known.name == *column);
    // Under a pattern a column is left out wherever it is.
    if let Some(unknown) = options.exclude.iter().find(|column| is_named && !has(column)) {
        let context = format!("table {name} has no column {unknown}, which `exclude` names");
        return Err(Error::new(Kind::InvalidConfig, context));
    }
    let is_key_excluded =
        |column: &&CatalogColumn| column.key_position.is_some() && options.exclude.contains(&column.name);
    if let Some(column) = relation.columns.iter().find(is_key_excluded) {
        let context = format!("`exclude` leaves out {}, a column of the primary key of {name}", column.name);
        return Err(Error::new(Kind::InvalidConfig, context));
    }
    if config.has_metadata_columns && kept.iter().any(|column| column.name == "_seq") {
        return Err(Error::new(Kind::InvalidConfig, format!("table {name} has a column _seq of its own"))
            .with_hint("exclude it, or set METADATA_COLUMNS=off"));
    }
    Ok(())
}

fn key(name: &TableName, columns: &[&CatalogColumn]) -> Result<Vec<usize>, Error> {
    let mut key: Vec<(i32, usize)> =
        columns.iter().enumerate().filter_map(|(i, column)| Some((column.key_position?, i))).collect();
    key.sort_unstable();
    if key.is_empty() {
        return Err(Error::new(Kind::SchemaChanged, format!("table {name} has no primary key"))
            .with_hint("add one: without it rows that share a time cannot be told apart"));
    }
    Ok(key.into_iter().map(|(_, i)| i).collect())
}

/// Under a pattern, a table that lacks the column has no deleted rows.
fn deleted_column(
    relation: &Relation,
    options: &TableOptions,
    is_named: bool,
) -> Result<Option<DeletedColumn>, Error> {
    let Some(name) = &options.deleted_column else { return Ok(None) };
    let invalid = |problem: &str| {
        let context = format!("`deleted_column` {name} of table {}: {problem}", relation.name);
        Err(Error::new(Kind::InvalidConfig, context))
    };
    match relation.columns.iter().find(|column| column.name == *name) {
        Some(column) => match Type::from_oid(column.type_oid) {
            Some(Type::BOOL) => Ok(Some(DeletedColumn { name: name.clone(), is_bool: true })),
            Some(ty) if time_kind(&ty).is_some() => {
                Ok(Some(DeletedColumn { name: name.clone(), is_bool: false }))
            }
            _ => invalid(&format!("it is of type {}, neither a bool nor a time", column.type_name)),
        },
        None if is_named => invalid("there is no such column"),
        None => Ok(None),
    }
}

fn cursor_kind(name: &TableName, column: &CatalogColumn, ty: &Type) -> Result<CursorKind, Error> {
    time_kind(ty).ok_or_else(|| {
        let context =
            format!("cursor column {} of table {name} is of type {}", column.name, column.type_name);
        Error::new(Kind::SchemaChanged, context)
            .with_hint("a cursor column is a timestamptz, a timestamp or a date")
    })
}

fn time_kind(ty: &Type) -> Option<CursorKind> {
    match *ty {
        Type::TIMESTAMPTZ => Some(CursorKind::Timestamptz),
        Type::TIMESTAMP => Some(CursorKind::Timestamp),
        Type::DATE => Some(CursorKind::Date),
        _ => None,
    }
}

/// The types in full. Those that PostgreSQL ships are known by oid; enums, domains, arrays and composites of the
/// database's own are asked for.
async fn types(
    session: &Session,
    name: &TableName,
    columns: &[&CatalogColumn],
    deadline: Deadline,
) -> Result<Vec<Type>, Error> {
    let known: Option<Vec<Type>> = columns.iter().map(|column| Type::from_oid(column.type_oid)).collect();
    if let Some(types) = known {
        return Ok(types);
    }
    let list: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
    session.column_types(&format!("select {} from {}", list.join(", "), name.to_sql()), deadline).await
}
