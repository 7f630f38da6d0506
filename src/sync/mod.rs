//! The sync, as a straight line: cursors, session, what is in flight, tables in turn, each read share by share, committed
//! as groups.

mod share;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::app::{Call, open_session};
use crate::config::{Config, TableRules};
use crate::cursor::{Observation, State, TableCursor};
use crate::encode::{Encoding, RowEncoder};
use crate::error::{Error, Kind};
use crate::report::{Outcome, Report, TableDone};
use crate::request::{Action, Door, Limits};
use crate::sink::batch::Sealed;
use crate::sink::checkpoint::{Change, Publication};
use crate::sink::fivetran::{self, Answer};
use crate::sink::ledger::Ledger;
use crate::sink::manifest::{Manifest, Receipt};
use crate::sink::output::Output;
use crate::sink::storage::Storage;
use crate::sink::table_writer::{Format, TableWriter};
use crate::source::catalog::{Found, find_tables, relations};
use crate::source::flight;
use crate::source::session::Session;
use crate::table::Table;
use crate::table_name::TableName;
use crate::text::{elapsed_ms, seconds, timestamp};

use self::share::{FIRST_SHARE_ROWS, Share};

/// A window opened later than this after the last look at what is in flight is worth another look; as it is while one of those
/// in flight is of unknown age.
const LOOK_AGE: Duration = Duration::from_secs(10);

/// Runs one sync.
///
/// # Errors
/// Every kind: a table's own only if no table succeeded.
pub(crate) async fn sync(call: &Call<'_>) -> Result<Outcome, Error> {
    let document = call.document()?;
    let state = call.request.state.as_ref().map(|state| State::parse(&state.0)).transpose()?;
    let known = async {
        let rules = call.rules().await?;
        let ledger = match state {
            None => Ledger::of_checkpoint(&call.storage()?).await?,
            Some(state) => Ledger::of_caller(state, call.output()?).await?,
        };
        Ok((rules, ledger))
    };
    // What S3 has, while the hops are taken.
    let (known, session) = tokio::join!(known, Box::pin(open_session(call)));
    let (rules, mut ledger) = match known {
        Ok(known) => known,
        Err(error) => {
            if let Ok(session) = session {
                session.close().await;
            }
            return Err(error);
        }
    };
    let outcome = match session {
        Ok(session) => in_session(call, session, &rules, document, &mut ledger).await,
        Err(error) => Err(error),
    };
    ledger.remember(outcome.as_ref().err()).await;
    outcome
}

/// Closes the way to the database, whatever comes before.
async fn in_session(
    call: &Call<'_>,
    mut session: Session,
    rules: &TableRules,
    document: Option<(Storage, String)>,
    ledger: &mut Ledger,
) -> Result<Outcome, Error> {
    let outcome = match Run::new(call, rules.hash.clone(), ledger, &mut session) {
        Ok(run) => Box::pin(run.whole(rules, document)).await,
        Err(error) => Err(error),
    };
    session.close().await;
    outcome
}

/// A run under way.
struct Run<'a> {
    call: &'a Call<'a>,
    config: &'a Config,
    limits: Limits,
    ledger: &'a mut Ledger,
    session: &'a mut Session,
    /// Where objects go; `None`: Fivetran gets the rows, and nobody else.
    storage: Option<Storage>,
    /// Fivetran's, while no share is being read.
    answer: Option<Answer>,
    is_answer_full: bool,
    config_hash: Option<String>,
    /// How much the next share of the table may be.
    share_rows: u64,
    page_blocks: u32,
    row_count: u64,
    byte_count: u64,
    completed_count: usize,
    completed_backfill_count: usize,
    /// A window was opened for later transactions to read.
    has_frozen: bool,
    has_unfinished: bool,
    reports: Vec<Report>,
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
    fn new(
        call: &'a Call<'a>,
        config_hash: Option<String>,
        ledger: &'a mut Ledger,
        session: &'a mut Session,
    ) -> Result<Self, Error> {
        Ok(Self {
            call,
            config: call.config,
            limits: call.request.limits,
            ledger,
            session,
            storage: call.output()?,
            answer: None,
            is_answer_full: false,
            config_hash,
            share_rows: FIRST_SHARE_ROWS,
            page_blocks: 0,
            row_count: 0,
            byte_count: 0,
            completed_count: 0,
            completed_backfill_count: 0,
            has_frozen: false,
            has_unfinished: false,
            reports: Vec::new(),
        })
    }

    /// Makes sure that the state is this database's, looks at what is in flight and which tables there are, and reads them.
    async fn whole(self, rules: &TableRules, document: Option<(Storage, String)>) -> Result<Outcome, Error> {
        let (session, deadline) = (&*self.session, self.call.deadline);
        let (listing, relations) =
            tokio::try_join!(flight::list(session, deadline), relations(session, rules, deadline))?;
        self.ledger.adopt(&self.session.database_id, listing.xmax, self.config.on_new_database)?;
        let observation = self.ledger.observe(listing).clone();
        let (picked, state) = (self.call.request.tables.as_deref(), self.ledger.state());
        let found = find_tables(self.session, relations, self.config, rules, picked, state, deadline).await?;
        if picked.is_none() {
            let is_found = |table: &TableName| found.iter().any(|(name, _)| name == table);
            self.ledger.outlives(|table| rules.options(table).is_none() || is_found(table));
        }
        self.tables(found, document, observation).await
    }

    /// Reads the tables. A run that fails leaves nothing open.
    async fn tables(
        mut self,
        found: Vec<Found>,
        document: Option<(Storage, String)>,
        observation: Observation,
    ) -> Result<Outcome, Error> {
        let tables: Vec<Arc<Table>> =
            found.iter().filter_map(|(_, table)| table.as_ref().ok().cloned()).collect();
        self.ledger.state().check_tables(found.len())?;
        if self.is_fivetran() {
            fivetran::check_names(&tables)?;
            let room = fivetran::room(self.ledger.state(), &tables)?;
            self.answer = Some(Answer::new(document, room));
        }
        match self.read(found, observation).await {
            Ok(()) => Ok(self.finish(tables)),
            Err(error) => {
                self.ledger.abandon().await;
                if let Some(answer) = self.answer {
                    answer.abort().await;
                }
                Err(error)
            }
        }
    }

    /// Takes the tables in turn. One that fails is reported and the others go on; a hop that fails ends the run, which
    /// keeps what is complete; a commit that fails is the run's failure.
    async fn read(&mut self, found: Vec<Found>, observation: Observation) -> Result<(), Error> {
        let mut observed = (observation, Instant::now());
        for (name, table) in in_turn(found, self.ledger.state()) {
            if self.is_over() {
                self.has_unfinished = true;
                break;
            }
            let outcome = match table {
                // On the heap: these futures are large.
                Ok(table) => Box::pin(self.table(&table, &mut observed)).await,
                Err(error) => Err(Fault::Table(error)),
            };
            let (error, is_shared) = match outcome {
                Ok(()) => continue,
                Err(Fault::Table(error)) => (error, false),
                Err(Fault::Hop(error)) => (error, true),
                Err(Fault::Commit(error)) => return Err(error),
            };
            tracing::error!(table = %name, error_type = error.kind().name(), error = %error, "table failed");
            self.ledger.fared(&name, Some(&error));
            self.session.give_up();
            if self.is_fivetran() {
                // It has no place for a table's error: it is one of the sync, or the table would stand still unseen.
                return Err(error);
            }
            self.reports.push(Report { table: name, outcome: Err(error) });
            if is_shared {
                self.has_unfinished = true;
                break;
            }
        }
        if self.reports.iter().all(|report| report.outcome.is_err()) {
            if self.ledger.keeps_cursors() {
                // What was read before the fault is good.
                self.commit().await?;
            }
            return Err(self.no_success());
        }
        self.commit().await
    }

    fn is_fivetran(&self) -> bool {
        self.call.request.door == Door::Fivetran
    }

    /// The error of a run in which no table succeeded: the last, which is a hop's where there is one.
    fn no_success(&mut self) -> Error {
        let error = self.reports.pop().and_then(|report| report.outcome.err());
        error.unwrap_or_else(|| {
            Error::new(Kind::NoProgress, "the time was over before a row could be read")
                .with_hint("give the function a longer timeout, or raise max_seconds")
        })
    }

    fn finish(self, tables: Vec<Arc<Table>>) -> Outcome {
        let mut state = self.ledger.state().clone();
        // Windows without rows are no progress: a caller that loops on them would never end.
        let has_progress = self.row_count > 0 || self.completed_backfill_count > 0 || self.has_frozen;
        let mut has_more = self.has_unfinished && has_progress;
        if self.is_fivetran() {
            // A run that comes to its end has moved a cursor.
            (has_more, state.empty_answers) =
                fivetran::promise(self.has_unfinished, self.row_count, state.empty_answers);
        }
        Outcome {
            has_more,
            state,
            notes: self.ledger.notes().to_vec(),
            reports: self.reports,
            tables,
            answer: self.answer,
        }
    }

    /// Commits the group, once what it read is safe at the server.
    async fn commit(&mut self) -> Result<(), Error> {
        let fence = match self.ledger.staged_lsn() {
            Some(lsn) => flight::fence(self.session, lsn, self.call.deadline).await,
            None => return self.ledger.commit(None).await,
        };
        self.ledger.commit(Some(fence)).await
    }

    /// Looks at what is in flight, which must come before the snapshot of the windows that rely on it.
    async fn observe(&mut self) -> Result<Observation, Error> {
        self.session.ensure_open(self.call.deadline).await?;
        let listing = flight::list(self.session, self.call.deadline).await?;
        Ok(self.ledger.observe(listing).clone())
    }

    /// Reads one table, from its cursor until it is caught up or the run is over, in one commit or more.
    async fn table(
        &mut self,
        table: &Arc<Table>,
        observed: &mut (Observation, Instant),
    ) -> Result<(), Fault> {
        let began = Instant::now();
        (self.share_rows, self.page_blocks) = (FIRST_SHARE_ROWS, share::FIRST_PAGE_BLOCKS);
        let mut before = self.ledger.state().cursor(&table.name).cloned();
        let mut cursor = self.cursor(table).await?;
        let mut done = TableDone::from(&cursor);
        let is_backfill = cursor.is_backfill();
        let mut is_audit = self.is_audit_due(&cursor);
        let (mut is_large, mut may_try_again) = (false, true);
        let (is_resumed, mut has_outgrown) = (cursor.window.is_some(), false);
        loop {
            let is_unknown = observed.0.floor().is_none() && !self.session.database_id.is_standby;
            let is_old = observed.1.elapsed() > LOOK_AGE || is_unknown;
            if cursor.window.is_none() && is_old {
                *observed = (self.observe().await?, Instant::now());
            }
            let mut output = self.output(table, cursor.seq + 1);
            let attempt = share::Attempt {
                table,
                cursor: &cursor,
                observation: &observed.0,
                is_large,
                has_outgrown,
                is_audit,
            };
            let share = match Box::pin(self.share(attempt, &mut output)).await {
                Ok(Some(share)) => share,
                // The window is too large for its snapshot's own transaction.
                Ok(None) if !is_large => {
                    tracing::info!(table = %table.name, "the window does not fit into one transaction");
                    self.take_back(output, table).await?;
                    (is_large, has_outgrown) = (true, true);
                    continue;
                }
                Ok(None) => {
                    self.take_back(output, table).await?;
                    return Err(share::no_progress(table).into());
                }
                Err(fault) if may_try_again && fault.is_passing() => {
                    tracing::warn!(table = %table.name, error = %fault.error, "share failed, trying a smaller one");
                    self.take_back(output, table).await?;
                    self.session.give_up();
                    (may_try_again, is_large) = (false, true);
                    continue;
                }
                Err(fault) => {
                    // The share's fault says more.
                    let _ = self.take_back(output, table).await;
                    return Err(fault.error.into());
                }
            };
            let is_anew =
                cursor.window.as_ref().is_some_and(|window| window.snapshot != share.window.snapshot);
            if is_anew && self.is_fivetran() && done.rows > 0 {
                // The answer has rows of the window that cannot be gone on with: the next one has the new window's.
                self.take_back(output, table).await?;
                self.has_unfinished = true;
                break;
            }
            // The server need not wait for the upload.
            let (sealed, answer) = output.seal().await;
            self.answer = answer;
            let publication = self.publication(table, before.as_ref(), &share, sealed?);
            self.count(&mut done, &share, publication.as_ref());
            tracing::info!(table = %table.name, row_count = done.rows, byte_count = done.bytes, "share read");
            self.has_frozen |= !is_resumed && cursor.window.is_none() && share.cursor.window.is_some();
            cursor = share.cursor.clone();
            self.ledger.stage(Change {
                table: table.name.to_string(),
                before,
                after: share.cursor.clone(),
                lsn: share.lsn,
                publication,
            });
            before = Some(share.cursor);
            if self.ledger.is_group_due() {
                self.commit().await.map_err(Fault::Commit)?;
            }
            (is_large, is_audit) = (false, is_audit && !(share.is_complete && share.missed.is_some()));
            if share.is_caught_up {
                self.completed_count += 1;
                self.completed_backfill_count += usize::from(is_backfill);
                break;
            }
            // An answer has one window of a table at most, so that no key stands in it twice.
            if self.is_over() || (self.is_fivetran() && share.is_complete) {
                self.has_unfinished = true;
                break;
            }
        }
        let clock = observed.0.at + observed.1.elapsed();
        done.lag_seconds = cursor.as_of.map(|as_of| seconds(clock - as_of));
        done.hold_back_seconds =
            cursor.as_of.zip(cursor.watermark).map(|(as_of, watermark)| seconds(as_of - watermark));
        tracing::info!(
            table = %table.name, seq = done.seq, row_count = done.rows, byte_count = done.bytes,
            object_count = done.objects, elapsed_ms = elapsed_ms(began), "table read"
        );
        self.ledger.fared(&table.name, None);
        self.reports.push(Report { table: table.name.clone(), outcome: Ok(done) });
        Ok(())
    }

    /// Whether every row must be looked at, because it was asked for or because it is its turn.
    fn is_audit_due(&self, cursor: &TableCursor) -> bool {
        let is_its_turn =
            self.config.audit_every.is_some_and(|every| cursor.unaudited.saturating_add(1) >= every);
        self.call.request.action == Action::Audit || is_its_turn
    }

    /// Where to read on: the known cursor if it fits the table, else a backfill.
    async fn cursor(&mut self, table: &Table) -> Result<TableCursor, Error> {
        let at_start = |seq| TableCursor::at_start(seq, table.oid, table.order());
        match self.ledger.state().cursor(&table.name) {
            None => {
                let cursor = at_start(self.ledger.last_seq(&table.name, 0).await?);
                let Some(time) = self.ledger.state().last_modified else { return Ok(cursor) };
                // All that the Python connector has told us. A time to come it had from a row.
                let is_past = self.ledger.state().observed.as_ref().is_some_and(|seen| time <= seen.at);
                let imported = TableCursor { watermark: Some(time).filter(|_| is_past), ..cursor.clone() };
                if self.is_range(table, &imported) {
                    return Ok(imported);
                }
                self.ledger
                    .note("the Python connector's `last_modified` is of no use: every row is delivered");
                Ok(cursor)
            }
            Some(cursor) if cursor.oid != table.oid => {
                tracing::warn!(table = %table.name, "the cursor is of another table or was forgotten, reading it whole");
                let known = cursor.seq;
                Ok(at_start(self.ledger.last_seq(&table.name, known).await?))
            }
            Some(cursor) if cursor.order != table.order() => Err(Error::new(
                Kind::SchemaChanged,
                format!("cursor column or primary key of table {} have changed", table.name),
            )
            .with_hint(format!(
                "read it again: {{\"action\":\"resync\",\"tables\":[{}]}}",
                json!(table.name.to_string())
            ))),
            Some(cursor) => {
                let cursor = cursor.clone();
                Ok(TableCursor { seq: self.ledger.last_seq(&table.name, cursor.seq).await?, ..cursor })
            }
        }
    }

    fn encoder(&self, table: &Table, seq: u64) -> RowEncoder {
        let columns: Vec<(&str, Encoding)> =
            table.columns.iter().map(|column| (column.name.as_str(), column.encoding.clone())).collect();
        let has_seq = self.config.has_metadata_columns && !self.is_fivetran();
        RowEncoder::new(columns, has_seq.then_some(seq), self.config.max_row_bytes)
    }

    fn output(&mut self, table: &Table, seq: u64) -> Output {
        let objects = self.storage.as_ref().map(|storage| {
            let format = Format {
                compression: self.config.compression,
                target_file_bytes: self.config.target_file_bytes,
            };
            let day = Utc::now().format("%Y-%m-%d").to_string();
            TableWriter::new(storage, format, &table.name.to_key(), &day, seq)
        });
        let answer = self.answer.take().map(|answer| {
            let mark = answer.mark(&table.name);
            (answer, mark)
        });
        let seq = (self.is_fivetran() && self.config.has_metadata_columns).then_some(seq);
        Output::new(objects, answer, seq)
    }

    /// Takes back what a share has written.
    async fn take_back(&mut self, output: Output, table: &Table) -> Result<(), Error> {
        let (outcome, answer) = output.rewind(table).await;
        self.answer = answer;
        outcome
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
            bytes: batches.iter().map(|batch| batch.bytes).sum(),
            objects,
            schema: storage.uri(&schema_key),
            config_hash: self.config_hash.clone(),
            receipt: self.receipt(before, share),
        };
        let manifest_key = Manifest::key(&table_key, share.cursor.seq);
        Some(Publication { batches, manifest_key, manifest, schema_key, schema })
    }

    fn receipt(&self, before: Option<&TableCursor>, share: &Share) -> Receipt {
        let window = &share.window;
        let time = |time: Option<DateTime<Utc>>| time.map(timestamp);
        Receipt {
            window: if window.position.is_scan() { "scan" } else { "range" }.to_owned(),
            scope: share.scope.to_owned(),
            is_backfill: before.is_none_or(TableCursor::is_backfill),
            is_complete: share.is_complete,
            snapshot: window.snapshot,
            as_of: timestamp(window.as_of),
            watermark_before: time(before.and_then(|cursor| cursor.watermark)),
            watermark: time(window.watermark),
            hold_back_seconds: window.watermark.map(|watermark| seconds(window.as_of - watermark)),
            in_flight: share.in_flight_count,
            rows_received: share.received,
            rows_filtered: share.received - share.rows,
            rows_missed: share.missed,
            fence: share.cursor.fence,
            identity_checks: self.session.database_id.checks(),
            slack_seconds: self.config.cursor_slack.num_seconds(),
        }
    }

    fn count(&mut self, done: &mut TableDone, share: &Share, publication: Option<&Publication>) {
        self.row_count += share.rows;
        self.byte_count += share.bytes;
        done.seq = share.cursor.seq;
        done.rows += share.rows;
        done.bytes += share.bytes;
        if let Some(missed) = share.missed {
            *done.missed.get_or_insert(0) += missed;
        }
        done.watermark = share.cursor.watermark.map(timestamp);
        for note in &share.notes {
            if !done.notes.contains(note) {
                done.notes.push(note.clone());
            }
        }
        if let (Some(publication), Some(storage)) = (publication, &self.storage) {
            done.objects += publication.batches.len();
            done.manifest = Some(storage.uri(&publication.manifest_key));
        }
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
}

/// What fails goes first, so that it is seen; then increments, the least recently completed first; then backfills.
fn in_turn(mut found: Vec<Found>, state: &State) -> Vec<Found> {
    found.sort_by_cached_key(|(name, table)| {
        let as_of = state.cursor(name).and_then(|cursor| cursor.as_of);
        (table.is_ok(), as_of.is_none(), as_of, name.clone())
    });
    found
}
