//! The sync, as a straight line: cursors, session, tables in turn, each read page by page into batches, committed as
//! groups; then the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::app::{Call, open_session};
use crate::config::Config;
use crate::cursor::{After, Position, State, TableCursor};
use crate::encode::{Encoding, RowEncoder, RowError};
use crate::error::{Error, Kind};
use crate::plan::{self, Page};
use crate::request::{Door, Limits};
use crate::sink::checkpoint::{Change, Publication};
use crate::sink::fivetran::{self, Inserts};
use crate::sink::ledger::Ledger;
use crate::sink::manifest::{Manifest, Receipt};
use crate::sink::storage::Storage;
use crate::sink::table_writer::{Format, TableWriter};
use crate::source::catalog::{Found, find_tables};
use crate::source::copy::Copy;
use crate::source::session::Session;
use crate::table::Table;
use crate::table_name::TableName;
use crate::text::timestamp;

/// Rows are handed on in pieces of this size.
const BUFFER_BYTES: usize = 128 << 10;

/// What a run did, before it takes the shape of a door.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) has_more: bool,
    pub(crate) state: State,
    pub(crate) reports: Vec<Report>,
    /// The tables of this run, for Fivetran's schema.
    pub(crate) tables: Vec<Arc<Table>>,
    /// The rows, where they travel in the answer.
    pub(crate) inserts: Inserts,
}

impl Outcome {
    pub(crate) fn failed_count(&self) -> usize {
        self.reports.iter().filter(|report| report.error.is_some()).count()
    }
}

/// What a run did with one table.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) table: TableName,
    pub(crate) seq: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) objects: usize,
    pub(crate) manifest: Option<String>,
    pub(crate) watermark: Option<String>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) error: Option<Error>,
}

/// Runs one sync.
///
/// # Errors
/// Every kind: a table's own only if no table succeeded.
pub(crate) async fn sync(call: &Call<'_>) -> Result<Outcome, Error> {
    let rules = call.rules().await?;
    let ledger = match (&call.request.state, call.request.door, call.storage()) {
        (None, _, storage) => Ledger::of_checkpoint(&storage?).await?,
        (Some(state), Door::Fivetran, _) => Ledger::of_caller(State::parse(state)?, None).await?,
        (Some(state), Door::Direct | Door::EventBridge, storage) => {
            Ledger::of_caller(State::parse(state)?, Some(storage?)).await?
        }
    };
    let mut session = open_session(call).await?;
    let outcome = async {
        let mut run = Run::new(call, ledger, &mut session);
        run.ledger.adopt(&run.session.database_id, call.config.on_new_database)?;
        let picked = call.request.tables.as_deref();
        let found = find_tables(run.session, call.config, &rules, picked, call.deadline).await?;
        run.config_hash.clone_from(&rules.hash);
        run.tables(found).await
    }
    .await;
    session.close().await;
    outcome
}

/// A run under way.
struct Run<'a> {
    call: &'a Call<'a>,
    config: &'a Config,
    ledger: Ledger,
    session: &'a mut Session,
    /// The connection was left in the middle of something.
    is_dirty: bool,
    storage: Option<Storage>,
    inserts: Inserts,
    /// A row did not fit into the answer any more.
    is_answer_full: bool,
    limits: Limits,
    page_rows: u64,
    /// The database's clock when it was last read.
    clock: Option<(DateTime<Utc>, Instant)>,
    row_count: u64,
    byte_count: u64,
    reports: Vec<Report>,
    completed_count: usize,
    has_unfinished: bool,
    config_hash: Option<String>,
}

/// One table's part of a group: what will be one commit of it.
struct Share {
    rows: u64,
    bytes: u64,
    cursor: TableCursor,
    watermark: DateTime<Utc>,
    is_complete: bool,
}

/// Where a page's reading ended.
enum PageEnd {
    /// The server had no more rows for the page.
    Read,
    /// We stopped before that: the connection is in the middle of a COPY.
    Cut,
}

struct PageRead {
    rows: u64,
    bytes: u64,
    last_row: Vec<u8>,
    end: PageEnd,
}

impl<'a> Run<'a> {
    fn new(call: &'a Call<'a>, ledger: Ledger, session: &'a mut Session) -> Self {
        Self {
            call,
            config: call.config,
            ledger,
            session,
            is_dirty: false,
            storage: if call.request.door == Door::Fivetran { None } else { call.storage().ok() },
            inserts: Inserts::default(),
            is_answer_full: false,
            limits: call.request.limits,
            page_rows: 20_000,
            clock: None,
            row_count: 0,
            byte_count: 0,
            reports: Vec::new(),
            completed_count: 0,
            has_unfinished: false,
            config_hash: None,
        }
    }

    /// Takes the tables in turn. One that fails is reported and the others go on; a shared hop that fails ends the run,
    /// which keeps what is complete.
    async fn tables(mut self, found: Vec<Found>) -> Result<Outcome, Error> {
        let tables: Vec<Arc<Table>> =
            found.iter().filter_map(|(_, table)| table.as_ref().ok().cloned()).collect();
        if self.call.request.door == Door::Fivetran {
            fivetran::check_names(&tables.iter().map(Arc::as_ref).collect::<Vec<_>>())?;
        }
        let mut shared_fault = None;
        for (name, table) in in_turn(found, self.ledger.state()) {
            if self.is_over() {
                self.has_unfinished = true;
                break;
            }
            let outcome = match table {
                Ok(table) => self.table(&table).await,
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { continue };
            tracing::error!(table = %name, error_type = error.kind().name(), error = %error, "table failed");
            self.inserts.discard(&name);
            self.is_dirty = true;
            if error.kind().is_of_table() {
                self.reports.push(Report::failed(name, error));
            } else {
                shared_fault = Some(error);
                break;
            }
        }
        match shared_fault {
            Some(error) if !self.has_progress() || error.kind() == Kind::CheckpointConflict => {
                self.ledger.abandon().await;
                return Err(error);
            }
            Some(_) => self.has_unfinished = true,
            None => {}
        }
        self.ledger.commit().await?;
        self.finish(tables)
    }

    fn finish(mut self, tables: Vec<Arc<Table>>) -> Result<Outcome, Error> {
        if !self.reports.is_empty() && self.reports.iter().all(|report| report.error.is_some()) {
            return Err(self.reports.remove(0).error.expect("all reports have one"));
        }
        if self.has_unfinished && self.row_count == 0 && self.completed_count == 0 {
            return Err(Error::new(Kind::NoProgress, "the time was over before a row could be read")
                .with_hint("give the function a longer timeout, or raise max_seconds"));
        }
        let state = self.ledger.state().clone();
        Ok(Outcome {
            has_more: self.has_unfinished && self.row_count > 0,
            state,
            reports: self.reports,
            tables,
            inserts: self.inserts,
        })
    }

    /// Reads one table, from its cursor to the end of its window or of the run, in one commit or more.
    async fn table(&mut self, table: &Arc<Table>) -> Result<(), Error> {
        let began = Instant::now();
        let mut cursor = self.cursor(table).await?;
        let mut report = Report::of(table, &cursor);
        loop {
            let before = self.ledger.state().cursor(&table.name).cloned();
            let mut output = self.output(table, cursor.seq + 1);
            let share = match self.share(table, cursor, &mut output).await {
                Ok(share) => share,
                Err(error) => {
                    output.abort().await;
                    return Err(error);
                }
            };
            let publication = self.publication(table, &before, &share, output).await?;
            report.add(&share, publication.as_ref(), self.storage.as_ref());
            (self.row_count, self.byte_count) = (self.row_count + share.rows, self.byte_count + share.bytes);
            cursor = share.cursor.clone();
            let change = Change { table: table.name.to_string(), before, after: share.cursor, publication };
            self.ledger.stage(change);
            if self.ledger.is_group_due(0) {
                self.ledger.commit().await?;
            }
            if share.is_complete {
                self.completed_count += 1;
                break;
            }
            if self.is_over() {
                self.has_unfinished = true;
                break;
            }
        }
        report.lag_seconds = self.lag_seconds(report.watermark.as_deref());
        tracing::info!(
            table = %table.name, seq = report.seq, row_count = report.rows, byte_count = report.bytes,
            object_count = report.objects, elapsed_ms = elapsed_ms(began), "table read"
        );
        self.reports.push(report);
        Ok(())
    }

    /// Reads pages until the window ends, the run must stop, or the group is due.
    async fn share(
        &mut self,
        table: &Table,
        mut cursor: TableCursor,
        output: &mut Output,
    ) -> Result<Share, Error> {
        let encoder = self.encoder(table, cursor.seq + 1);
        let (mut rows, mut bytes) = (0, 0);
        let mut window: Option<DateTime<Utc>> = None;
        let is_complete = loop {
            let began = Instant::now();
            let now = self.begin(table).await?;
            let until = *window.get_or_insert(now);
            let left = self.limits.max_rows.map_or(u64::MAX, |max| max.saturating_sub(self.row_count + rows));
            let max_rows = self.page_rows.min(left);
            let page = Page { table, position: &cursor.position, until, max_rows };
            let read = self.page(&page, &encoder, output, bytes).await?;
            let is_at_end = matches!(read.end, PageEnd::Read) && read.rows < max_rows;
            if read.rows > 0 {
                cursor.position = position(table, &cursor.position, &read.last_row)?;
            }
            (rows, bytes) = (rows + read.rows, bytes + read.bytes);
            match read.end {
                PageEnd::Read => {
                    self.session.run("commit", self.call.deadline).await?;
                    self.pace(read.rows, began.elapsed());
                }
                PageEnd::Cut => self.is_dirty = true,
            }
            if is_at_end {
                match cursor.position {
                    // The rows without a finite value are through; now the others.
                    Position::Unset { .. } => cursor.position = Position::Set { after: None },
                    Position::Set { .. } => {
                        cursor.watermark = Some(timestamp(until));
                        break true;
                    }
                }
            }
            if matches!(read.end, PageEnd::Cut) && read.rows == 0 {
                self.no_row(table, rows)?;
                break false;
            }
            if self.is_over_with(rows, bytes)
                || self.ledger.is_group_due(bytes)
                || matches!(read.end, PageEnd::Cut)
            {
                break false;
            }
        };
        if rows > 0 {
            cursor.seq += 1;
        }
        Ok(Share { rows, bytes, cursor, watermark: window.unwrap_or_default(), is_complete })
    }

    /// A page was cut before its first row. Without any row in this run that is worth an error, lest it repeat for ever.
    fn no_row(&self, table: &Table, rows: u64) -> Result<(), Error> {
        if rows > 0 || self.row_count > 0 {
            return Ok(());
        }
        let key = table.key_names().join(", ");
        let column = &table.columns[table.cursor].name;
        let context = format!("the first row of table {} did not come in time", table.name);
        Err(Error::new(Kind::NoProgress, context).with_hint(format!(
            "create an index on ({column}, {key}); or give the function a longer timeout, or raise \
             MAX_TRANSACTION_SECONDS"
        )))
    }

    /// Begins a page's transaction, on a new connection where the last was left unusable; the database's clock.
    async fn begin(&mut self, table: &Table) -> Result<DateTime<Utc>, Error> {
        if self.is_dirty || self.session.is_closed() {
            self.session.reopen(self.call.deadline).await?;
            self.is_dirty = false;
        }
        let row = self.session.run(&plan::begin(table), self.call.deadline).await?;
        let text = row.as_ref().and_then(|row| row.get(0)).unwrap_or_default();
        let now = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z")
            .map_err(|_| Error::new(Kind::Internal, "the database's clock cannot be read"))?
            .with_timezone(&Utc);
        self.clock = Some((now, Instant::now()));
        Ok(now)
    }

    /// Reads one page into the output.
    async fn page(
        &mut self,
        page: &Page<'_>,
        encoder: &RowEncoder,
        output: &mut Output,
        bytes_before: u64,
    ) -> Result<PageRead, Error> {
        let ends = Instant::now() + self.config.max_transaction.mul_f32(0.9);
        let max_bytes =
            self.limits.max_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.byte_count + bytes_before));
        let mut read = PageRead { rows: 0, bytes: 0, last_row: Vec::new(), end: PageEnd::Read };
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + (BUFFER_BYTES >> 1));
        let (mut buffered_rows, mut last_start) = (0, 0);
        let fault = 'reading: {
            let mut copy = match Copy::start(self.session, &page.rows()?, self.call.deadline).await {
                Ok(copy) => copy,
                Err(error) => break 'reading Some((error, None)),
            };
            loop {
                let left =
                    self.call.deadline.reading_left().min(ends.saturating_duration_since(Instant::now()));
                let tuple = match timeout(left, copy.next()).await {
                    Ok(Ok(Some(tuple))) => tuple,
                    Ok(Ok(None)) => break None,
                    Ok(Err(error)) => break Some((error, None)),
                    Err(_) => {
                        read.end = PageEnd::Cut;
                        break None;
                    }
                };
                let start = buffer.len();
                if let Err(fault) = encoder.write(&tuple, &mut buffer) {
                    break Some(unencodable(page.table, fault));
                }
                let row_bytes = buffer.len() - start;
                if row_bytes > self.config.max_row_bytes {
                    break Some((
                        Error::new(Kind::RowTooLarge, format!("a row of {row_bytes} bytes as JSON")),
                        None,
                    ));
                }
                if buffer.len() > output.room(&self.inserts) {
                    if read.rows + buffered_rows == 0 && self.row_count == 0 {
                        let context = format!("a row of {row_bytes} bytes does not fit into an answer");
                        break Some((Error::new(Kind::RowTooLarge, context), None));
                    }
                    buffer.truncate(start);
                    self.is_answer_full = true;
                    read.end = PageEnd::Cut;
                    break None;
                }
                (last_start, buffered_rows) = (start, buffered_rows + 1);
                if buffer.len() >= BUFFER_BYTES {
                    read.take(&mut buffer, &mut buffered_rows, last_start, page, output, &mut self.inserts)
                        .await?;
                }
                if read.bytes + buffer.len() as u64 >= max_bytes {
                    read.end = PageEnd::Cut;
                    break None;
                }
            }
        };
        match fault {
            None => {
                read.take(&mut buffer, &mut buffered_rows, last_start, page, output, &mut self.inserts)
                    .await?;
                Ok(read)
            }
            Some((error, column)) => Err(self.named(page, read.rows + buffered_rows, error, column).await),
        }
    }

    /// An error about a row, with the row's place instead of its key or any value.
    async fn named(&mut self, page: &Page<'_>, offset: u64, error: Error, column: Option<String>) -> Error {
        if !matches!(error.kind(), Kind::RowTooLarge | Kind::UnencodableValue) {
            return error;
        }
        self.is_dirty = true;
        let place = self.place(page, offset).await.unwrap_or_else(|| page.table.name.to_string());
        let column = column.map(|column| format!(" column {column}")).unwrap_or_default();
        let hint = match error.kind() {
            Kind::RowTooLarge => {
                "raise MAX_ROW_BYTES, or `exclude` the large column in the configuration document"
            }
            _ => "mend the value, or `exclude` the column in the configuration document",
        };
        Error::new(error.kind(), format!("table {}{column}, row at {place}: {error}", page.table.name))
            .with_hint(hint)
    }

    async fn place(&mut self, page: &Page<'_>, offset: u64) -> Option<String> {
        self.session.reopen(self.call.deadline).await.ok()?;
        let row = self.session.run(&page.place(offset).ok()?, self.call.deadline).await.ok()??;
        row.get(0).map(str::to_owned)
    }

    /// Where to read on: the known cursor if it fits the table, else a backfill.
    async fn cursor(&self, table: &Table) -> Result<TableCursor, Error> {
        let at_start =
            |seq| TableCursor::at_start(seq, table.oid, table.order(), table.options.start.is_some());
        match self.ledger.state().cursor(&table.name) {
            None => Ok(at_start(self.ledger.last_seq(&table.name).await?)),
            Some(cursor) if cursor.oid != table.oid => {
                if cursor.oid != 0 {
                    tracing::warn!(table = %table.name, "the table is another one under the same name, reading it whole");
                }
                Ok(at_start(cursor.seq))
            }
            Some(cursor) if cursor.order != table.order() => Err(Error::new(
                Kind::SchemaChanged,
                format!("cursor column or primary key of table {} have changed", table.name),
            )
            .with_hint(format!(
                "read it again: {{\"action\":\"resync\",\"tables\":[{}]}}",
                json!(table.name.to_string())
            ))),
            Some(cursor) => Ok(cursor.clone()),
        }
    }

    fn encoder(&self, table: &Table, seq: u64) -> RowEncoder {
        let columns: Vec<(&str, Encoding)> =
            table.columns.iter().map(|column| (column.name.as_str(), column.encoding.clone())).collect();
        let has_seq = self.config.has_metadata_columns && self.storage.is_some();
        RowEncoder::new(columns, has_seq.then_some(seq))
    }

    fn output(&self, table: &Table, seq: u64) -> Output {
        let Some(storage) = &self.storage else { return Output::Answer };
        let format =
            Format { compression: self.config.compression, target_file_bytes: self.config.target_file_bytes };
        let day = Utc::now().format("%Y-%m-%d").to_string();
        Output::Objects(Box::new(TableWriter::new(storage, format, &table.name.to_key(), &day, seq)))
    }

    /// Seals the share's objects and describes them.
    async fn publication(
        &self,
        table: &Table,
        before: &Option<TableCursor>,
        share: &Share,
        output: Output,
    ) -> Result<Option<Publication>, Error> {
        let (Output::Objects(writer), Some(storage)) = (output, &self.storage) else { return Ok(None) };
        let batches = writer.seal().await?;
        if batches.is_empty() {
            return Ok(None);
        }
        let (schema, hash) = table.schema();
        let table_key = table.name.to_key();
        let schema_key = format!("schemas/{table_key}/{hash}.json");
        let (entries, objects) = Manifest::listing(storage, &batches);
        let manifest = Manifest {
            entries,
            table: table.name.to_string(),
            seq: share.cursor.seq,
            sync_id: self.call.sync_id.clone(),
            committed_at: timestamp(Utc::now()),
            rows: share.rows,
            bytes: share.bytes,
            objects,
            schema: storage.uri(&schema_key),
            config_hash: self.config_hash.clone(),
            receipt: Receipt {
                cursor: "keyset".to_owned(),
                is_backfill: before.as_ref().is_none_or(TableCursor::is_backfill),
                is_complete: share.is_complete,
                watermark_before: before.as_ref().and_then(|cursor| cursor.watermark.clone()),
                watermark: timestamp(share.watermark),
            },
        };
        let manifest_key = Manifest::key(&table_key, share.cursor.seq);
        Ok(Some(Publication { batches, manifest_key, manifest, schema_key, schema }))
    }

    /// Aims at pages of ten seconds, or a third of the longest transaction.
    fn pace(&mut self, rows: u64, elapsed: Duration) {
        if rows < self.page_rows {
            return;
        }
        let aim = self.config.max_transaction.mul_f64(1.0 / 3.0).min(Duration::from_secs(10));
        let factor = (aim.as_secs_f64() / elapsed.as_secs_f64().max(0.001)).clamp(0.25, 4.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rows = (rows as f64 * factor) as u64;
        self.page_rows = rows.clamp(1_000, 10_000_000);
    }

    fn is_over(&self) -> bool {
        self.is_over_with(0, 0)
    }

    fn is_over_with(&self, rows: u64, bytes: u64) -> bool {
        let is_reached = |max: Option<u64>, count| max.is_some_and(|max| count >= max);
        self.is_answer_full
            || self.call.deadline.is_reading_over()
            || is_reached(self.limits.max_rows, self.row_count + rows)
            || is_reached(self.limits.max_bytes, self.byte_count + bytes)
    }

    fn has_progress(&self) -> bool {
        self.reports.iter().any(|report| report.error.is_none())
    }

    fn lag_seconds(&self, watermark: Option<&str>) -> Option<f64> {
        let watermark = DateTime::parse_from_rfc3339(watermark?).ok()?.with_timezone(&Utc);
        let (clock, read) = self.clock?;
        let lag = (clock - watermark).to_std().unwrap_or_default() + read.elapsed();
        Some((lag.as_secs_f64() * 10.0).round() / 10.0)
    }
}

impl PageRead {
    /// Hands the buffered rows on and keeps the last one, whose values are the position.
    async fn take(
        &mut self,
        buffer: &mut Vec<u8>,
        buffered_rows: &mut u64,
        last_start: usize,
        page: &Page<'_>,
        output: &mut Output,
        inserts: &mut Inserts,
    ) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        output.write(&page.table.name, buffer, *buffered_rows, inserts).await?;
        self.last_row.clear();
        self.last_row.extend_from_slice(&buffer[last_start..]);
        self.rows += std::mem::take(buffered_rows);
        self.bytes += buffer.len() as u64;
        buffer.clear();
        Ok(())
    }
}

/// Where rows go.
enum Output {
    Objects(Box<TableWriter>),
    /// Into the answer, which the run holds.
    Answer,
}

impl Output {
    async fn write(
        &mut self,
        table: &TableName,
        rows: &[u8],
        row_count: u64,
        inserts: &mut Inserts,
    ) -> Result<(), Error> {
        match self {
            Self::Objects(writer) => writer.write(rows, row_count).await,
            Self::Answer => {
                inserts.write(table, rows);
                Ok(())
            }
        }
    }

    /// How many more bytes of rows can be taken.
    fn room(&self, inserts: &Inserts) -> usize {
        match self {
            Self::Objects(_) => usize::MAX,
            Self::Answer => inserts.room(),
        }
    }

    async fn abort(self) {
        if let Self::Objects(writer) = self {
            writer.abort().await;
        }
    }
}

impl Report {
    fn of(table: &Table, cursor: &TableCursor) -> Self {
        Self {
            table: table.name.clone(),
            seq: cursor.seq,
            rows: 0,
            bytes: 0,
            objects: 0,
            manifest: None,
            watermark: cursor.watermark.clone(),
            lag_seconds: None,
            error: None,
        }
    }

    fn failed(table: TableName, error: Error) -> Self {
        Self {
            table,
            seq: 0,
            rows: 0,
            bytes: 0,
            objects: 0,
            manifest: None,
            watermark: None,
            lag_seconds: None,
            error: Some(error),
        }
    }

    fn add(&mut self, share: &Share, publication: Option<&Publication>, storage: Option<&Storage>) {
        self.seq = share.cursor.seq;
        self.rows += share.rows;
        self.bytes += share.bytes;
        self.watermark.clone_from(&share.cursor.watermark);
        if let (Some(publication), Some(storage)) = (publication, storage) {
            self.objects += publication.batches.len();
            self.manifest = Some(storage.uri(&publication.manifest_key));
        }
    }

    pub(crate) fn to_value(&self) -> Value {
        if let Some(error) = &self.error {
            let error = json!({
                "type": error.kind().name(), "message": error.to_string(), "retryable": error.kind().is_retryable()
            });
            return json!({"table": self.table.to_string(), "error": error});
        }
        json!({
            "table": self.table.to_string(), "seq": self.seq, "rows": self.rows, "bytes": self.bytes,
            "objects": self.objects, "manifest": self.manifest, "watermark": self.watermark,
            "lag_seconds": self.lag_seconds,
        })
    }
}

/// What fails goes first, so that it is seen; then increments, the least recently completed first; then backfills.
fn in_turn(mut found: Vec<Found>, state: &State) -> Vec<Found> {
    found.sort_by_cached_key(|(name, table)| {
        let watermark = state.cursor(name).and_then(|cursor| cursor.watermark.clone());
        (table.is_ok(), watermark.is_none(), watermark, name.clone())
    });
    found
}

/// The position after a row, read back from its JSON.
fn position(table: &Table, from: &Position, last_row: &[u8]) -> Result<Position, Error> {
    let unreadable =
        || Error::new(Kind::Internal, format!("the position in table {} cannot be read", table.name));
    let row: std::collections::HashMap<String, &serde_json::value::RawValue> =
        serde_json::from_slice(last_row).map_err(|_| unreadable())?;
    let value = |i: &usize| {
        let column = &table.columns[*i];
        row.get(&column.name)
            .and_then(|json| literal_text(json.get(), &column.encoding))
            .ok_or_else(unreadable)
    };
    let key = table.key.iter().map(value).collect::<Result<Vec<String>, Error>>()?;
    Ok(match from {
        Position::Unset { .. } => Position::Unset { key: Some(key) },
        Position::Set { .. } => Position::Set { after: Some(After { cursor: value(&table.cursor)?, key }) },
    })
}

/// A scalar's JSON as text that PostgreSQL reads.
fn literal_text(json: &str, encoding: &Encoding) -> Option<String> {
    match (json.as_bytes().first()?, encoding) {
        (b'"', Encoding::Bytea) => {
            use base64::Engine;
            let text: String = serde_json::from_str(json).ok()?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            Some(format!("\\x{}", crate::text::hex(&bytes)))
        }
        (b'"', _) => serde_json::from_str(json).ok(),
        (b'{' | b'[' | b'n', _) => None,
        _ => Some(json.to_owned()),
    }
}

fn unencodable(table: &Table, fault: RowError) -> (Error, Option<String>) {
    match fault {
        RowError::Malformed => {
            (Error::new(Kind::SchemaChanged, format!("table {} changed while it was read", table.name)), None)
        }
        RowError::Value { column, reason } => {
            let column = &table.columns[column];
            let context = format!("a value of type {}: {reason}", column.type_name);
            (Error::new(Kind::UnencodableValue, context), Some(column.name.clone()))
        }
    }
}

fn elapsed_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
