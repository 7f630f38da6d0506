//! The sync, as a straight line: cursors, session, tables in turn, each read page by page, committed as groups.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::app::{Call, open_session};
use crate::config::Config;
use crate::cursor::{Position, State, TableCursor};
use crate::encode::{Encoding, RowEncoder};
use crate::error::{Error, Kind};
use crate::page::{self, Bounds, Cut, PageFault, PageRead};
use crate::plan::{self, Page};
use crate::report::{Outcome, Report, TableDone};
use crate::request::{Door, Limits};
use crate::sink::batch::Sealed;
use crate::sink::checkpoint::{Change, Publication};
use crate::sink::fivetran::{self, Inserts};
use crate::sink::ledger::Ledger;
use crate::sink::manifest::{Manifest, Receipt};
use crate::sink::output::Output;
use crate::sink::storage::Storage;
use crate::sink::table_writer::{Format, TableWriter};
use crate::source::catalog::{Found, find_tables};
use crate::source::session::Session;
use crate::table::Table;
use crate::text::{elapsed_ms, timestamp};

/// The first page of a table is about a second's work. One that travels in an answer ends by its size before that.
const FIRST_PAGE_ROWS: u64 = 20_000;
const ANSWER_PAGE_ROWS: u64 = 100_000;
/// To find the place of a row that an error is about.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);
const SMALLEST_PAGE_ROWS: u64 = 1_000;
const LARGEST_PAGE_ROWS: u64 = 10_000_000;

/// Runs one sync.
///
/// # Errors
/// Every kind: a table's own only if no table succeeded.
pub(crate) async fn sync(call: &Call<'_>) -> Result<Outcome, Error> {
    let rules = call.rules().await?;
    let ledger = match (&call.request.state, call.request.door) {
        (None, _) => Ledger::of_checkpoint(&call.storage()?).await?,
        (Some(state), Door::Fivetran) => Ledger::of_caller(State::parse(&state.0)?, None).await?,
        (Some(state), Door::Direct | Door::EventBridge) => {
            Ledger::of_caller(State::parse(&state.0)?, Some(call.storage()?)).await?
        }
    };
    let mut session = open_session(call).await?;
    let outcome = async {
        let mut run = Run::new(call, ledger, &mut session);
        run.ledger.adopt(&run.session.database_id, call.config.on_new_database)?;
        let picked = call.request.tables.as_deref();
        let found =
            find_tables(run.session, call.config, &rules, picked, run.ledger.state(), call.deadline).await?;
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
    limits: Limits,
    ledger: Ledger,
    session: &'a mut Session,
    /// `None`: rows travel in the answer.
    storage: Option<Storage>,
    inserts: Inserts,
    is_answer_full: bool,
    config_hash: Option<String>,
    page_rows: u64,
    /// The database's clock when it was last read.
    clock: Option<(DateTime<Utc>, Instant)>,
    row_count: u64,
    byte_count: u64,
    completed_count: usize,
    completed_backfill_count: usize,
    has_unfinished: bool,
    reports: Vec<Report>,
}

/// The rows of one page: what will be one commit of a table. Not of several, because each page has a snapshot of its own:
/// a row that changed between two of them comes twice, and its versions must have different numbers.
struct Share {
    rows: u64,
    bytes: u64,
    cursor: TableCursor,
    /// t0 of the window.
    until: DateTime<Utc>,
    is_complete: bool,
}

/// What ends the reading of a table.
enum Fault {
    /// The others can go on.
    Table(Error),
    /// A shared hop: what is complete is kept.
    Hop(Error),
    /// The commit: nothing may be said to have succeeded.
    Commit(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        if error.kind().is_of_table() { Self::Table(error) } else { Self::Hop(error) }
    }
}

impl<'a> Run<'a> {
    fn new(call: &'a Call<'a>, ledger: Ledger, session: &'a mut Session) -> Self {
        Self {
            call,
            config: call.config,
            limits: call.request.limits,
            ledger,
            session,
            storage: if call.request.door == Door::Fivetran { None } else { call.storage().ok() },
            inserts: Inserts::default(),
            is_answer_full: false,
            config_hash: None,
            page_rows: FIRST_PAGE_ROWS,
            clock: None,
            row_count: 0,
            byte_count: 0,
            completed_count: 0,
            completed_backfill_count: 0,
            has_unfinished: false,
            reports: Vec::new(),
        }
    }

    /// Takes the tables in turn. One that fails is reported and the others go on; a hop that fails ends the run, which
    /// keeps what is complete; a commit that fails is the run's failure.
    async fn tables(mut self, found: Vec<Found>) -> Result<Outcome, Error> {
        let tables: Vec<Arc<Table>> =
            found.iter().filter_map(|(_, table)| table.as_ref().ok().cloned()).collect();
        if self.call.request.door == Door::Fivetran {
            fivetran::check_names(&tables)?;
        }
        for (name, table) in in_turn(found, self.ledger.state()) {
            if self.is_over() {
                self.has_unfinished = true;
                break;
            }
            let outcome = match table {
                Ok(table) => self.table(&table).await,
                Err(error) => Err(Fault::Table(error)),
            };
            let (error, is_shared) = match outcome {
                Ok(()) => continue,
                Err(Fault::Table(error)) => (error, false),
                Err(Fault::Hop(error)) => (error, true),
                Err(Fault::Commit(error)) => return Err(error),
            };
            tracing::error!(table = %name, error_type = error.kind().name(), error = %error, "table failed");
            self.session.give_up();
            self.reports.push(Report { table: name, outcome: Err(error) });
            if is_shared {
                self.has_unfinished = true;
                break;
            }
        }
        if self.reports.iter().all(|report| report.outcome.is_err()) {
            self.ledger.abandon().await;
            return Err(self.no_success());
        }
        self.ledger.commit().await?;
        Ok(self.finish(tables))
    }

    /// The error of a run in which no table succeeded: the last, which is a hop's where there is one.
    fn no_success(&mut self) -> Error {
        let error = self.reports.pop().and_then(|report| report.outcome.err());
        error.unwrap_or_else(|| match self.has_unfinished {
            true => Error::new(Kind::NoProgress, "the time was over before a row could be read")
                .with_hint("give the function a longer timeout, or raise max_seconds"),
            false => Error::new(Kind::SchemaChanged, "no table is there to be synced").with_hint(
                "TABLES names patterns only, and none of them finds a table that can be used; see the log",
            ),
        })
    }

    fn finish(self, tables: Vec<Arc<Table>>) -> Outcome {
        // Windows without rows are no progress: a caller that loops on them would never end, and Fivetran ends a connection
        // after ten answers without rows that promise more.
        let is_backfill_progress =
            self.completed_backfill_count > 0 && self.call.request.door != Door::Fivetran;
        let has_progress = self.row_count > 0 || is_backfill_progress;
        Outcome {
            has_more: self.has_unfinished && has_progress,
            state: self.ledger.state().clone(),
            reports: self.reports,
            tables,
            inserts: self.inserts,
        }
    }

    /// Reads one table, from its cursor to the end of its window or of the run, in one commit or more.
    async fn table(&mut self, table: &Arc<Table>) -> Result<(), Fault> {
        let began = Instant::now();
        self.page_rows = if self.storage.is_some() { FIRST_PAGE_ROWS } else { ANSWER_PAGE_ROWS };
        let mut before = self.ledger.state().cursor(&table.name).cloned();
        let mut cursor = self.cursor(table).await?;
        let mut done = TableDone::from(&cursor);
        let is_backfill = cursor.is_backfill();
        loop {
            let mut output = self.output(table, cursor.seq + 1);
            let share = match self.share(table, cursor, &mut output).await {
                Ok(share) => share,
                Err(error) => {
                    self.inserts = output.abort(&table.name).await;
                    return Err(error.into());
                }
            };
            // The server need not wait for the upload.
            let (sealed, inserts) = output.seal().await?;
            self.inserts = inserts;
            let publication = self.publication(table, before.as_ref(), &share, sealed);
            self.count(&mut done, &share, publication.as_ref());
            cursor = share.cursor.clone();
            let change =
                Change { table: table.name.to_string(), before, after: share.cursor.clone(), publication };
            before = Some(share.cursor);
            self.ledger.stage(change);
            if self.ledger.is_group_due() {
                self.ledger.commit().await.map_err(Fault::Commit)?;
            }
            if share.is_complete {
                self.completed_count += 1;
                self.completed_backfill_count += usize::from(is_backfill);
                break;
            }
            // An answer has one page of a table at most, so that no key stands in it twice.
            if self.is_over() || self.storage.is_none() {
                self.has_unfinished = true;
                break;
            }
        }
        done.lag_seconds = self.lag_seconds(done.watermark.as_deref());
        tracing::info!(
            table = %table.name, seq = done.seq, row_count = done.rows, byte_count = done.bytes,
            object_count = done.objects, elapsed_ms = elapsed_ms(began), "table read"
        );
        self.reports.push(Report { table: table.name.clone(), outcome: Ok(done) });
        Ok(())
    }

    /// Reads the next page that has rows, if the window has any more.
    async fn share(
        &mut self,
        table: &Table,
        mut cursor: TableCursor,
        output: &mut Output,
    ) -> Result<Share, Error> {
        let encoder = self.encoder(table, cursor.seq + 1);
        let mut until = None;
        let mut may_try_again = true;
        let (read, is_complete) = loop {
            let max_rows = self.page_rows.min(self.rows_left());
            let page = self.page(table, &cursor.position, &mut until, max_rows, &encoder, output).await;
            let (read, position) = match page {
                Ok(page) => page,
                Err(fault) if may_try_again && is_passing(&fault) => {
                    tracing::warn!(table = %table.name, error = %fault.error, "page failed, trying a smaller one");
                    self.session.give_up();
                    self.page_rows = (self.page_rows / 4).max(SMALLEST_PAGE_ROWS);
                    may_try_again = false;
                    continue;
                }
                Err(fault) => return Err(fault.error),
            };
            cursor.position = position;
            self.is_answer_full |= read.cut == Some(Cut::AnswerFull);
            self.check_first_row(table, &read)?;
            self.pace(&read);
            let mut is_complete = false;
            if read.cut.is_none() && read.rows < max_rows {
                match cursor.position {
                    // The rows without a finite value are through; now the others.
                    Position::Unset { .. } => cursor.position = Position::Set { after: None },
                    Position::Set { .. } => {
                        cursor.watermark = until.map(timestamp);
                        is_complete = true;
                    }
                }
            }
            if is_complete || read.rows > 0 || read.cut.is_some() || self.is_over() {
                break (read, is_complete);
            }
        };
        if read.rows > 0 {
            cursor.seq += 1;
        }
        let (rows, bytes, until) = (read.rows, read.bytes, until.unwrap_or_default());
        Ok(Share { rows, bytes, cursor, until, is_complete })
    }

    /// Reads one page in a transaction of its own; what was read and the position after it.
    async fn page(
        &mut self,
        table: &Table,
        position: &Position,
        until: &mut Option<DateTime<Utc>>,
        max_rows: u64,
        encoder: &RowEncoder,
        output: &mut Output,
    ) -> Result<(PageRead, Position), PageFault> {
        let now = self.begin(table).await?;
        let page = Page { table, position, until: *until.get_or_insert(now), max_rows };
        let bounds = Bounds {
            deadline: self.call.deadline,
            // The session's statement_timeout is the whole of it.
            ends: Instant::now() + self.config.max_transaction.mul_f32(0.9),
            max_bytes: self.limits.max_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.byte_count)),
            is_output_empty: self.row_count == 0,
        };
        let read = match page::read(self.session, &page, encoder, output, bounds).await {
            Ok(read) => read,
            Err(fault) if fault.is_of_row => {
                let error = self.named(&page, fault.rows_before, fault.error).await;
                return Err(PageFault { error, ..fault });
            }
            Err(fault) => return Err(fault),
        };
        // A commit that fails takes nothing back: the transaction only read.
        if read.cut.is_some() || self.session.run("commit", self.call.deadline).await.is_err() {
            self.session.give_up();
        }
        let position = read.position(&page)?;
        Ok((read, position))
    }

    /// Begins a page's transaction, on a new connection where the last was given up; the database's clock.
    async fn begin(&mut self, table: &Table) -> Result<DateTime<Utc>, Error> {
        self.session.ensure_open(self.call.deadline).await?;
        let row = self.session.run(&plan::begin(table), self.call.deadline).await?;
        let text = |i| row.as_ref().and_then(|row| row.get(i)).unwrap_or_default();
        if text(1) != table.oid.to_string() || text(2) != table.fingerprint {
            return Err(Error::new(
                Kind::SchemaChanged,
                format!("table {} was altered meanwhile", table.name),
            )
            .with_hint("the next run reads it as it is then"));
        }
        let now = DateTime::parse_from_str(text(0), "%Y-%m-%d %H:%M:%S%.f%#z")
            .map_err(|_| Error::new(Kind::Internal, "the database's clock cannot be read"))?
            .with_timezone(&Utc);
        self.clock = Some((now, Instant::now()));
        Ok(now)
    }

    /// An error about a row, with the row's place instead of its key or any value.
    async fn named(&mut self, page: &Page<'_>, offset: u64, error: Error) -> Error {
        self.session.give_up();
        let limit = self.call.deadline.reading_left().min(PLACE_TIMEOUT);
        let place = tokio::time::timeout(limit, self.place(page, offset)).await.ok().flatten();
        let place = place.unwrap_or_else(|| page.table.name.to_string());
        self.session.give_up();
        let hint = match error.kind() {
            Kind::RowTooLarge => {
                "raise MAX_ROW_BYTES, or `exclude` the large column in the configuration document"
            }
            _ => "mend the value, or `exclude` the column in the configuration document",
        };
        Error::new(error.kind(), format!("table {}, row at {place}: {error}", page.table.name))
            .with_hint(hint)
    }

    async fn place(&mut self, page: &Page<'_>, offset: u64) -> Option<String> {
        self.begin(page.table).await.ok()?;
        let row = self.session.run(&page.place(offset).ok()?, self.call.deadline).await.ok()??;
        row.get(0).map(str::to_owned)
    }

    /// A page that was cut before its first row is worth an error where it would be so again in the next run.
    fn check_first_row(&self, table: &Table, read: &PageRead) -> Result<(), Error> {
        let will_repeat = match read.cut {
            Some(Cut::Transaction) => true,
            Some(Cut::Deadline) => self.row_count == 0 && self.completed_count == 0,
            Some(Cut::Bytes | Cut::AnswerFull | Cut::Stall | Cut::Fault) | None => false,
        };
        if read.rows > 0 || !will_repeat {
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

    /// Where to read on: the known cursor if it fits the table, else a backfill.
    async fn cursor(&self, table: &Table) -> Result<TableCursor, Error> {
        let at_start =
            |seq| TableCursor::at_start(seq, table.oid, table.order(), table.options.start.is_some());
        match self.ledger.state().cursor(&table.name) {
            None => Ok(at_start(self.ledger.last_seq(&table.name).await?)),
            Some(cursor) if cursor.oid != table.oid => {
                tracing::warn!(table = %table.name, "the cursor is of another table or was forgotten, reading it whole");
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
        RowEncoder::new(columns, has_seq.then_some(seq), self.config.max_row_bytes)
    }

    fn output(&mut self, table: &Table, seq: u64) -> Output {
        let Some(storage) = &self.storage else {
            return Output::answer(std::mem::take(&mut self.inserts), &table.name);
        };
        let format =
            Format { compression: self.config.compression, target_file_bytes: self.config.target_file_bytes };
        let day = Utc::now().format("%Y-%m-%d").to_string();
        Output::Objects(Box::new(TableWriter::new(storage, format, &table.name.to_key(), &day, seq)))
    }

    /// Describes a share's sealed objects.
    fn publication(
        &self,
        table: &Table,
        before: Option<&TableCursor>,
        share: &Share,
        batches: Vec<Sealed>,
    ) -> Option<Publication> {
        let storage = self.storage.as_ref().filter(|_| !batches.is_empty())?;
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
                is_backfill: before.is_none_or(TableCursor::is_backfill),
                is_complete: share.is_complete,
                watermark_before: before.and_then(|cursor| cursor.watermark.clone()),
                watermark: timestamp(share.until),
            },
        };
        let manifest_key = Manifest::key(&table_key, share.cursor.seq);
        Some(Publication { batches, manifest_key, manifest, schema_key, schema })
    }

    fn count(&mut self, done: &mut TableDone, share: &Share, publication: Option<&Publication>) {
        self.row_count += share.rows;
        self.byte_count += share.bytes;
        done.seq = share.cursor.seq;
        done.rows += share.rows;
        done.bytes += share.bytes;
        done.watermark.clone_from(&share.cursor.watermark);
        if let (Some(publication), Some(storage)) = (publication, &self.storage) {
            done.objects += publication.batches.len();
            done.manifest = Some(storage.uri(&publication.manifest_key));
        }
    }

    /// Aims at pages of ten seconds, or a third of the longest transaction. What the server does before the first row
    /// does not shrink with the page, so that it does not count.
    fn pace(&mut self, read: &PageRead) {
        let is_full = read.rows >= self.page_rows;
        if read.rows == 0 || !(is_full || read.cut == Some(Cut::Transaction)) {
            return;
        }
        let aim = self.config.max_transaction.mul_f64(1.0 / 3.0).min(Duration::from_secs(10));
        let factor = (aim.as_secs_f64() / read.streaming.as_secs_f64().max(0.001)).clamp(0.25, 4.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rows = (read.rows as f64 * factor) as u64;
        self.page_rows = rows.clamp(SMALLEST_PAGE_ROWS, LARGEST_PAGE_ROWS);
    }

    fn rows_left(&self) -> u64 {
        self.limits.max_rows.map_or(u64::MAX, |max| max.saturating_sub(self.row_count))
    }

    /// Whether the run must stop reading.
    fn is_over(&self) -> bool {
        self.is_answer_full
            || self.call.deadline.is_reading_over()
            || self.rows_left() == 0
            || self.limits.max_bytes.is_some_and(|max| self.byte_count >= max)
    }

    fn lag_seconds(&self, watermark: Option<&str>) -> Option<f64> {
        let watermark = DateTime::parse_from_rfc3339(watermark?).ok()?.with_timezone(&Utc);
        let (clock, read) = self.clock?;
        let lag = (clock - watermark).to_std().unwrap_or_default() + read.elapsed();
        Some((lag.as_secs_f64() * 10.0).round() / 10.0)
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

/// A conflict, a time-out or a shutdown before the page's first row: another try on a new connection may pass.
fn is_passing(fault: &PageFault) -> bool {
    fault.error.kind() == Kind::DatabaseUnavailable && fault.rows_before == 0
}
