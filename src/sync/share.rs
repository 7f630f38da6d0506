//! A share: what one transaction reads of a table's window, and what one commit holds.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Run;
use crate::cursor::{
    Doubt, Filter, Lsn, Observation, Place, Position, Scope, TableCursor, Window, XidSet, distance, rebuilt,
};
use crate::error::{Error, Kind};
use crate::page::{self, Bounds, Cut, PageFault, PageRead};
use crate::plan::{self, Leaf, Page, Transaction};
use crate::sink::output::Output;
use crate::source::watch::Watch;
use crate::table::Table;

/// Of a range, the first share of a table is about a second's work.
pub(super) const FIRST_SHARE_ROWS: u64 = 250_000;
const FEWEST_SHARE_ROWS: u64 = 1_000;
const MOST_SHARE_ROWS: u64 = 10_000_000;

/// A page of a scan: 256 MiB at first.
pub(super) const FIRST_PAGE_BLOCKS: u32 = 32 << 10;
const MOST_PAGE_BLOCKS: u32 = 1 << 20;

/// A table up to this size is looked through within one transaction.
const WHOLE_BYTES: u64 = 1 << 30;
/// From here on it is worth saying that an index is missing.
const LARGE_BYTES: u64 = 16 << 20;

/// How often a snapshot is taken anew that leaves ids in doubt.
const MOST_LOOKS: usize = 5;

/// To find the place of a row that an error is about.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// What to read a share of.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) table: &'a Table,
    pub(super) cursor: &'a TableCursor,
    /// Of what was in flight before.
    pub(super) observation: &'a Observation,
    /// The window did not fit into its snapshot's own transaction before.
    pub(super) is_large: bool,
    /// Nor did another of this run.
    pub(super) has_outgrown: bool,
    /// Every row is to be looked at.
    pub(super) is_audit: bool,
}

/// What was read, and the cursor after it.
pub(super) struct Share {
    pub(super) cursor: TableCursor,
    pub(super) window: Window,
    /// How the window was read: `whole`, `frozen` or `partial`.
    pub(super) scope: &'static str,
    /// Where the server's log ended after the snapshot.
    pub(super) lsn: Option<Lsn>,
    /// The window was read to its end.
    pub(super) is_complete: bool,
    /// And there is nothing to be gained by another window now.
    pub(super) is_caught_up: bool,
    pub(super) received: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Rows that the cursor column would have missed, where every row was looked at.
    pub(super) missed: Option<u64>,
    pub(super) in_flight_count: usize,
    /// For people: what was out of the ordinary.
    pub(super) notes: Vec<String>,
}

/// A share that failed.
pub(super) struct ShareFault {
    pub(super) error: Error,
    received: u64,
}

impl ShareFault {
    /// A conflict, a time-out or a shutdown before the first row: another try on a new connection may pass.
    pub(super) fn is_passing(&self) -> bool {
        self.error.kind() == Kind::DatabaseUnavailable && self.received == 0
    }
}

impl From<Error> for ShareFault {
    fn from(error: Error) -> Self {
        Self { error, received: 0 }
    }
}

/// A window, and what of it is known in this transaction only.
struct Opened {
    window: Window,
    /// Its snapshot is this transaction's own.
    is_own: bool,
    /// Of what the snapshot shows, the transactions from its `xmin` on are left to the next window.
    is_partial: bool,
    has_unset: bool,
}

/// What the pages of a share gave together.
#[derive(Default)]
struct Sum {
    received: u64,
    rows: u64,
    bytes: u64,
    missed: u64,
    xids: HashSet<u64>,
    streaming: Duration,
}

impl Sum {
    fn add(&mut self, read: PageRead) {
        self.received += read.received;
        self.rows += read.rows;
        self.bytes += read.bytes;
        self.missed += read.missed;
        self.xids.extend(read.xids);
        self.streaming += read.streaming;
    }
}

/// Why the reading of a share ended.
enum End {
    Window,
    /// So many rows, or so much time, as a share may take.
    Share,
    /// In the middle of a COPY: the transaction is lost.
    Cut(Cut),
}

impl Run<'_> {
    /// Reads the next share of a table's window, which is opened first if there is none. `None`: the window was to be read as
    /// a whole and is too large for that; nothing of it counts.
    pub(super) async fn share(
        &mut self,
        attempt: Attempt<'_>,
        output: &mut Output,
    ) -> Result<Option<Share>, ShareFault> {
        let Attempt { table, observation, .. } = attempt;
        let mut cursor = attempt.cursor.clone();
        let mut notes = Vec::new();
        let mut transaction = self.begin(table, &cursor).await?;
        for _ in 0..MOST_LOOKS {
            if cursor.window.is_some() || !transaction.doubt.is_passing() {
                break;
            }
            self.session.run("rollback", self.call.deadline).await?;
            transaction = self.begin(table, &cursor).await?;
        }
        let mut opened = self.opened(attempt, &mut cursor, &transaction, &mut notes).await?;
        let oids: Vec<u32> = transaction.leaves.iter().map(|leaf| leaf.oid).chain([table.oid]).collect();
        let watch = Watch::start(self.session, &oids, self.call.deadline);
        let outcome = self.pages(table, &cursor, &mut opened, &transaction, output, &watch).await;
        watch.stop().await;
        let (sum, end) = outcome?;
        let Opened { mut window, is_own, is_partial, .. } = opened;
        let scope = if is_partial {
            "partial"
        } else if window.scope == Scope::Whole {
            "whole"
        } else {
            "frozen"
        };
        if window.scope == Scope::Whole && matches!(end, End::Cut(_)) {
            self.session.give_up();
            return Ok(None);
        }
        if !table.is_lockable && !matches!(end, End::Cut(_)) {
            let row = self.session.run(&plan::files(&transaction.leaves), self.call.deadline).await?;
            if !transaction.is_unmoved(row.as_ref().and_then(|row| row.get(0)).unwrap_or_default()) {
                let context = format!("table {} was rewritten while it was read", table.name);
                return Err(Error::new(Kind::DatabaseUnavailable, context)
                    .with_hint("grant SELECT on the whole table, so that it can be locked")
                    .into());
            }
        }
        // In the window's own transaction still: what of it later ones may deliver.
        if window.scope == Scope::Whole && matches!(end, End::Share) {
            self.freeze(table, &cursor, &mut window, &transaction, observation).await?;
        }
        // A commit that fails takes nothing back: the transaction only read.
        if matches!(end, End::Cut(_)) || self.session.run("commit", self.call.deadline).await.is_err() {
            self.session.give_up();
        }
        if let End::Cut(cut) = end {
            self.is_answer_full |= cut == Cut::AnswerFull;
            self.check_progress(table, attempt.cursor, &window, cut)?;
        }
        self.pace(&sum, &end);
        let is_complete = matches!(end, End::Window);
        let was_backfill = cursor.is_backfill();
        let missed = (window.position.is_scan()
            && cursor.watermark.is_some()
            && !was_backfill
            && table.cursor.is_some())
        .then_some(sum.missed);
        let mut after = match (&window.scope, is_complete) {
            (_, false) => TableCursor { window: Some(window.clone()), ..cursor },
            (Scope::Whole, true) => {
                let visible = transaction.doubt.visible(window.snapshot, sum.xids.into_iter());
                cursor.completed(&window, &visible, transaction.next)
            }
            (Scope::Frozen { visible }, true) => cursor.completed(&window, visible, transaction.next),
        };
        after.seq += u64::from(sum.rows > 0);
        // What changed meanwhile is the next window's, where that can be read at once.
        let is_small =
            transaction.bytes() <= WHOLE_BYTES && transaction.doubt != Doubt::All && !attempt.has_outgrown;
        let is_next_short = was_backfill || is_small || self.is_range(table, &after);
        Ok(Some(Share {
            is_caught_up: is_complete && ((is_own && !is_partial) || !is_next_short),
            cursor: after,
            lsn: window.lsn,
            window,
            scope,
            is_complete,
            received: sum.received,
            rows: sum.rows,
            bytes: sum.bytes,
            missed,
            in_flight_count: observation.in_flight_count(),
            notes,
        }))
    }

    /// Begins a transaction, on a new connection where the last was given up.
    async fn begin(&mut self, table: &Table, cursor: &TableCursor) -> Result<Transaction, Error> {
        self.session.ensure_open(self.call.deadline).await?;
        let log = self.session.log;
        let row = self.session.run(&plan::begin(table, cursor, log), self.call.deadline).await?;
        let transaction = Transaction::read(table, log, |i| row.as_ref()?.get(i).map(str::to_owned))?;
        self.session.has_shown(transaction.lsn);
        Ok(transaction)
    }

    /// Whether an index finds what is new in a table.
    pub(super) fn is_range(&self, table: &Table, cursor: &TableCursor) -> bool {
        // A subscription applies rows long after their time, and no time bounds what a standby does not show yet.
        let has_time = table.cursor.is_some() && !table.is_subscribed && !self.session.database_id.is_standby;
        has_time && table.is_indexed && cursor.watermark.is_some()
    }

    /// The window that the cursor is in, if it can be continued; else a new one, with this transaction's snapshot.
    async fn opened(
        &mut self,
        attempt: Attempt<'_>,
        cursor: &mut TableCursor,
        transaction: &Transaction,
        notes: &mut Vec<String>,
    ) -> Result<Opened, Error> {
        let Attempt { table, observation, is_large, is_audit, .. } = attempt;
        let files = transaction.files();
        if let Some(window) = cursor.window.take() {
            let is_near = distance(window.snapshot.xmin, transaction.next).is_some();
            if is_near && !window.leaves.is_rewritten_in(&files) {
                return Ok(Opened {
                    window,
                    is_own: false,
                    is_partial: false,
                    has_unset: transaction.has_unset,
                });
            }
            notes.push("the table was rewritten while it was being read: its window began anew".to_owned());
        }
        let (mut has_unset, mut has_new_leaf) = (transaction.has_unset, false);
        if table.is_subscribed {
            // Its rows are older than their arrival.
            cursor.watermark = None;
        }
        if !cursor.is_backfill() {
            if cursor.leaves.is_rewritten_in(&files) {
                notes.push("the table was rewritten: every row was looked at".to_owned());
                cursor.watermark = None;
            }
            if cursor.leaves.has_more_in(&files) {
                notes.push("the table has a new partition: every row was looked at".to_owned());
                (cursor.watermark, cursor.passed_over) = (None, None);
                has_new_leaf = true;
            }
            if cursor.as_of.is_some_and(|as_of| observation.at + self.config.cursor_slack < as_of) {
                notes.push(
                    "the server's clock went back by more than the slack: every row was looked at".to_owned(),
                );
                cursor.watermark = None;
            }
            if cursor.is_out_of_reach(transaction.next) {
                notes.push("two thousand million transactions went by: rows were delivered again".to_owned());
                cursor.forget_delivered();
                has_unset = true;
            }
        }
        let is_range = self.is_range(table, cursor) && !is_audit;
        let bytes = transaction.bytes();
        if table.cursor.is_none() {
            let advice = table.cursor_advice();
            if bytes > WHOLE_BYTES {
                let context = format!("table {} has no cursor column, and {} MB", table.name, bytes >> 20);
                return Err(Error::new(Kind::SchemaChanged, context).with_hint(advice));
            }
            notes.push(format!("no cursor column: every run looks at each row; {advice}"));
        }
        if let Some(column) = table.cursor_column().filter(|_| !table.is_indexed && bytes > LARGE_BYTES) {
            let name = &column.name;
            notes.push(format!(
                "no index begins with {name}: every run looks at each of the {} MB",
                bytes >> 20
            ));
        }
        let is_partial = !is_range && (bytes > WHOLE_BYTES || transaction.doubt == Doubt::All);
        if is_partial && has_new_leaf {
            // A transaction of D may have rows in the new partition, which this window leaves to the next.
            cursor.delivered = XidSet::default();
        }
        let watermark = Window::watermark(observation, transaction.snapshot, is_partial);
        let mut window = Window {
            as_of: observation.at,
            watermark: watermark.filter(|_| !table.is_subscribed),
            snapshot: transaction.snapshot,
            scope: if is_partial { Scope::Frozen { visible: XidSet::default() } } else { Scope::Whole },
            leaves: files,
            lsn: transaction.lsn,
            position: if is_range { Position::Range { after: None } } else { Position::scan() },
        };
        if is_large && !is_partial {
            self.freeze(table, cursor, &mut window, transaction, observation).await?;
        }
        Ok(Opened { window, is_own: true, is_partial, has_unset })
    }

    /// Makes a window one that later transactions can read: with the ids from its `xmin` on that its snapshot, which is this
    /// transaction's, certainly shows. Where they are too many, some are left to the next window.
    async fn freeze(
        &self,
        table: &Table,
        cursor: &TableCursor,
        window: &mut Window,
        transaction: &Transaction,
        observation: &Observation,
    ) -> Result<(), Error> {
        let snapshot = window.snapshot;
        let mut visible = XidSet::default();
        let distance = distance(snapshot.xmin, transaction.next).filter(|_| snapshot.xmin < snapshot.xmax);
        if let Some(distance) = distance {
            let bound = cursor.bound(self.config.cursor_slack);
            let sql = plan::visible(table, bound, window.position.is_scan(), distance);
            let row = self.session.run(&sql, self.call.deadline).await?;
            let list = row.as_ref().and_then(|row| row.get(0)).unwrap_or_default();
            let xids: Vec<u32> = list.split(' ').filter_map(|xid| xid.parse().ok()).collect();
            if xids.len() >= plan::MOST_VISIBLE {
                let watermark = Window::watermark(observation, snapshot, true);
                window.watermark = watermark.filter(|_| !table.is_subscribed);
            }
            let xids = xids.into_iter().map(|xid| rebuilt(xid, transaction.next));
            visible = transaction.doubt.visible(snapshot, xids);
        }
        window.scope = Scope::Frozen { visible };
        Ok(())
    }

    /// Reads pages until the window, the share or the time is at its end.
    async fn pages(
        &mut self,
        table: &Table,
        cursor: &TableCursor,
        opened: &mut Opened,
        transaction: &Transaction,
        output: &mut Output,
        watch: &Watch,
    ) -> Result<(Sum, End), ShareFault> {
        let began = Instant::now();
        let is_whole = opened.window.scope == Scope::Whole;
        // A whole window that does not fit is read again in another way, for which there must be time left.
        let time = self.config.max_transaction.mul_f32(0.9);
        let time = if is_whole { time.min(self.call.deadline.reading_left() / 2) } else { time };
        let bound = cursor.bound(self.config.cursor_slack);
        let mut encoder = self.encoder(table, cursor.seq + 1);
        let mut sum = Sum::default();
        loop {
            let is_scan = opened.window.position.is_scan();
            // A scan is divided by blocks.
            let share_rows = if is_scan { self.rows_left() } else { self.share_rows.min(self.rows_left()) };
            let is_late = (is_scan || !is_whole) && began.elapsed() > self.share_time();
            if sum.rows >= share_rows || is_late || (sum.received > 0 && self.call.deadline.is_reading_over())
            {
                return Ok((sum, End::Share));
            }
            let window = &mut opened.window;
            let leaf = match &mut window.position {
                Position::Scan { leaf, after } => {
                    match next_leaf(&transaction.leaves, &window.leaves, *leaf, *after) {
                        None => return Ok((sum, End::Window)),
                        Some(next) => {
                            if next.oid != *leaf {
                                (*leaf, *after) = (next.oid, Place::default());
                            }
                            Some((next, next.blocks().min(after.0.saturating_add(self.page_blocks))))
                        }
                    }
                }
                Position::Range { .. } | Position::Unset { .. } => None,
            };
            let is_fresh = leaf.is_some_and(|(leaf, _)| !cursor.leaves.has(leaf.oid));
            let filter = Filter::new(cursor, window, transaction.next, is_fresh);
            let max_rows = (share_rows < u64::MAX).then(|| share_rows - sum.rows);
            let position = &window.position;
            let looked_from = match leaf {
                Some(_) if !is_fresh && table.cursor.is_some() => {
                    cursor.looked_from(transaction.next, self.config.cursor_slack)
                }
                _ => Vec::new(),
            };
            let page = Page {
                table,
                position,
                condition: filter.condition(),
                bound,
                looked_from,
                leaf,
                // Where no transaction was in progress, none of the rows is of one that a later window might meet again.
                needs_xmin: !(filter.admits_all() && window.snapshot.is_quiet()),
                // A whole window that is cut counts for nothing, so that nothing goes on from there.
                needs_place: leaf.is_some() && (!is_whole || max_rows.is_some()),
                max_rows,
            };
            encoder.set_system_columns(page.system_columns());
            let bounds = Bounds {
                deadline: self.call.deadline,
                ends: began + time,
                max_bytes: self
                    .limits
                    .max_bytes
                    .map_or(u64::MAX, |max| max.saturating_sub(self.byte_count).saturating_sub(sum.bytes)),
                xmin: if is_whole && page.needs_xmin { window.snapshot.xmin } else { u64::MAX },
                watch,
            };
            let page_began = Instant::now();
            let read = match page::read(self.session, &page, filter, &encoder, output, bounds).await {
                Ok(read) => read,
                Err(fault) => return Err(self.fault(&page, cursor, fault, sum.received).await),
            };
            let mut after = read.position(&page)?;
            let (cut, received) = (read.cut, read.received);
            sum.add(read);
            if cut.is_none() && max_rows.is_none_or(|max| received < max) {
                match (&mut after, leaf) {
                    (Position::Range { .. }, _) if opened.has_unset => after = Position::Unset { key: None },
                    (Position::Scan { after, .. }, Some((_, end))) => {
                        *after = Place(end, 0);
                        self.page_blocks = paced(self.page_blocks, page_began.elapsed());
                    }
                    _ => return Ok((sum, End::Window)),
                }
            }
            window.position = after;
            if let Some(cut) = cut {
                if cut.is_of_time() && received == 0 {
                    self.page_blocks = (self.page_blocks / 8).max(1);
                }
                return Ok((sum, End::Cut(cut)));
            }
        }
    }

    /// What a page's fault means for its share; one about a row, with the row's place instead of its key or any value.
    async fn fault(
        &mut self,
        page: &Page<'_>,
        cursor: &TableCursor,
        fault: PageFault,
        received: u64,
    ) -> ShareFault {
        let received = received + fault.rows_before;
        if !fault.is_of_row {
            return ShareFault { error: fault.error, received };
        }
        self.session.give_up();
        let limit = self.call.deadline.reading_left().min(PLACE_TIMEOUT);
        let place =
            tokio::time::timeout(limit, self.place(page, cursor, fault.rows_before)).await.ok().flatten();
        let place = place.unwrap_or_else(|| page.table.name.to_string());
        self.session.give_up();
        let hint = match fault.error.kind() {
            Kind::RowTooLarge => {
                "raise MAX_ROW_BYTES, or `exclude` the large column in the configuration document"
            }
            _ => "mend the value, or `exclude` the column in the configuration document",
        };
        let context = format!("table {}, row at {place}: {}", page.table.name, fault.error);
        ShareFault { error: Error::new(fault.error.kind(), context).with_hint(hint), received }
    }

    async fn place(&mut self, page: &Page<'_>, cursor: &TableCursor, offset: u64) -> Option<String> {
        self.begin(page.table, cursor).await.ok()?;
        let row = self.session.run(&page.place(offset).ok()?, self.call.deadline).await.ok()??;
        row.get(0).map(str::to_owned)
    }

    /// A share that was cut before anything was read is worth an error where it would be so again in the next run.
    fn check_progress(
        &self,
        table: &Table,
        before: &TableCursor,
        window: &Window,
        cut: Cut,
    ) -> Result<(), Error> {
        let has_moved = before.window.as_ref().map(|before| &before.position) != Some(&window.position);
        let is_at_start = window.position == Position::Range { after: None };
        let will_repeat = match cut {
            Cut::Transaction => !window.position.is_scan() || self.page_blocks == 1,
            Cut::Deadline => self.row_count == 0 && self.completed_count == 0,
            Cut::LockWanted | Cut::Bytes | Cut::AnswerFull | Cut::Stall | Cut::Fault => false,
        };
        if will_repeat && (is_at_start || !has_moved) { Err(no_progress(table)) } else { Ok(()) }
    }

    /// How long a transaction goes on where it need not: others may wait for its lock.
    fn share_time(&self) -> Duration {
        (self.config.max_transaction / 3).min(Duration::from_secs(10))
    }

    /// Aims at shares of that time. What the server does before the first row does not shrink with the share, so that it
    /// does not count.
    fn pace(&mut self, sum: &Sum, end: &End) {
        let is_full = sum.rows >= self.share_rows;
        if sum.rows == 0 || !(is_full || matches!(end, End::Cut(Cut::Transaction))) {
            return;
        }
        let factor =
            (self.share_time().as_secs_f64() / sum.streaming.as_secs_f64().max(0.001)).clamp(0.25, 4.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rows = (sum.rows as f64 * factor) as u64;
        self.share_rows = rows.clamp(FEWEST_SHARE_ROWS, MOST_SHARE_ROWS);
    }
}

/// The next leaf with blocks to be read, in the order of oids, among those that the window began with.
fn next_leaf<'a>(
    leaves: &'a [Leaf],
    of_window: &crate::cursor::Leaves,
    current: u32,
    after: Place,
) -> Option<&'a Leaf> {
    leaves.iter().find(|leaf| {
        let is_left = leaf.oid > current || (leaf.oid == current && after.0 < leaf.blocks());
        is_left && leaf.blocks() > 0 && of_window.has(leaf.oid)
    })
}

/// Aims at pages of some seconds.
fn paced(blocks: u32, elapsed: Duration) -> u32 {
    match elapsed {
        elapsed if elapsed < Duration::from_secs(1) => (blocks * 2).min(MOST_PAGE_BLOCKS),
        elapsed if elapsed > Duration::from_secs(4) => (blocks / 2).max(1),
        _ => blocks,
    }
}

pub(super) fn no_progress(table: &Table) -> Error {
    let context = format!("the first row of table {} did not come in time", table.name);
    let index = match table.cursor_column() {
        Some(column) => {
            format!("create an index on ({}, {}); or ", column.name, table.key_names().join(", "))
        }
        None => String::new(),
    };
    Error::new(Kind::NoProgress, context)
        .with_hint(format!("{index}give the function a longer timeout, or raise MAX_TRANSACTION_SECONDS"))
}
