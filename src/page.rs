//! One page: its rows out of COPY, past the filter, through the encoder, into the output; and the position after it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::cursor::{After, Filter, Place, Position};
use crate::deadline::Deadline;
use crate::encode::{Encoding, RowEncoder, RowError};
use crate::error::{Error, Kind};
use crate::plan::Page;
use crate::sink::output::Output;
use crate::source::copy::Copy;
use crate::source::session::Session;
use crate::source::watch::Watch;
use crate::table::Table;
use crate::text::hex;

/// Rows are handed on in pieces of this size.
const PIECE_BYTES: usize = 128 << 10;

/// So many rows that are there already are taken without a look at the clock.
const BURST_ROWS: usize = 1000;

/// How often it is looked at whether the page must end while nothing comes.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How long the output may take for a piece before the page ends.
const STALL: Duration = Duration::from_secs(5);

/// Where the reading of a page must stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) deadline: Deadline,
    /// The transaction's own end.
    pub(crate) ends: Instant,
    /// Of NDJSON; the row that reaches it is still taken.
    pub(crate) max_bytes: u64,
    /// Ids from here on are of interest.
    pub(crate) xmin: u64,
    /// Says when someone waits for our lock.
    pub(crate) watch: &'a Watch,
}

/// What was read and handed on.
#[derive(Default)]
pub(crate) struct PageRead {
    /// Rows that the server sent.
    pub(crate) received: u64,
    /// Those that the filter let through.
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Rows that the cursor column would have missed.
    pub(crate) missed: u64,
    /// The ids of the rows, from the snapshot's `xmin` on.
    pub(crate) xids: HashSet<u64>,
    /// The last row's JSON, which holds the position where the page is not of a scan; and its place.
    last_row: Vec<u8>,
    last_place: Place,
    /// From the first row to the last: without the server's sort or scan before it.
    pub(crate) streaming: Duration,
    /// `None`: the server had no more rows for the page. Else we stopped in the middle of the COPY, and the connection
    /// must be given up.
    pub(crate) cut: Option<Cut>,
}

/// Why a page was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The run's time for reading is over.
    Deadline,
    /// The transaction has been open for long enough.
    Transaction,
    /// Someone waits for the lock that it holds.
    LockWanted,
    Bytes,
    /// A row does not fit into the answer any more.
    AnswerFull,
    /// The output does not take rows any more for now, and must not keep the server's transaction open, nor the tunnel
    /// unread: then the bastion's keepalives would go unanswered.
    Stall,
    /// The server gave up after some rows, which are good: a conflict on a standby, a shutdown.
    Fault,
}

impl Cut {
    /// Whether it is because the time is over: more rows would have come.
    pub(crate) fn is_of_time(self) -> bool {
        matches!(self, Self::Deadline | Self::Transaction)
    }
}

/// A page that failed. The connection must be given up.
pub(crate) struct PageFault {
    pub(crate) error: Error,
    /// Rows of the page before the fault.
    pub(crate) rows_before: u64,
    /// Whether it is the next row's fault, or a hop's.
    pub(crate) is_of_row: bool,
}

impl From<Error> for PageFault {
    /// Before the first row.
    fn from(error: Error) -> Self {
        Self { error, rows_before: 0, is_of_row: false }
    }
}

/// Reads one page into the output. Its transaction has begun.
///
/// # Errors
/// The kinds of `Session::error`, `RowTooLarge`, `UnencodableValue`, and the output's.
pub(crate) async fn read(
    session: &mut Session,
    page: &Page<'_>,
    filter: Filter<'_>,
    encoder: &RowEncoder,
    output: &mut Output,
    bounds: Bounds<'_>,
) -> Result<PageRead, PageFault> {
    let (read, buffer) = (PageRead::default(), Buffer::default());
    let mut reader = Reader { page, filter, encoder, output, bounds, read, buffer };
    let outcome = reader.run(session).await;
    let rows_before = reader.read.received + reader.buffer.received;
    match outcome {
        Err(fault) if fault.error.kind() == Kind::DatabaseUnavailable && reader.read.received > 0 => {
            tracing::warn!(table = %page.table.name, error = %fault.error, "page ended early");
            reader.read.cut = Some(Cut::Fault);
            Ok(reader.read)
        }
        Err(fault) => Err(PageFault { rows_before, ..fault }),
        Ok(()) => Ok(reader.read),
    }
}

struct Reader<'a> {
    page: &'a Page<'a>,
    filter: Filter<'a>,
    encoder: &'a RowEncoder,
    output: &'a mut Output,
    bounds: Bounds<'a>,
    read: PageRead,
    buffer: Buffer,
}

/// Encoded rows not handed on yet.
#[derive(Default)]
struct Buffer {
    json: Vec<u8>,
    received: u64,
    rows: u64,
    missed: u64,
    /// Which of the rows the source calls deleted.
    deleted: Vec<usize>,
    last_start: usize,
    last_place: Place,
    /// The last row, if the filter held it back: the position is after it all the same. Else empty.
    held_back: Vec<u8>,
}

impl Reader<'_> {
    async fn run(&mut self, session: &mut Session) -> Result<(), PageFault> {
        let sql = self.page.rows()?;
        // The server answers to COPY with its first row only, after it has sorted.
        let start = self.in_time(Copy::start(session, &sql, self.bounds.deadline)).await;
        let Some(copy) = start else { return Ok(()) };
        let mut copy = copy?;
        let began = Instant::now();
        while self.read.cut.is_none() {
            let Some(tuple) = self.in_time(copy.next()).await else { break };
            let Some(tuple) = tuple.map_err(row_fault)? else { break };
            self.row(&tuple)?;
            // It may be large, and what follows may wait.
            drop(tuple);
            for _ in 1..BURST_ROWS {
                if self.read.cut.is_some() || self.buffer.json.len() >= PIECE_BYTES {
                    break;
                }
                let Some(tuple) = copy.next_at_hand() else { break };
                self.row(&tuple.map_err(row_fault)?)?;
            }
            if self.buffer.json.len() >= PIECE_BYTES {
                match self.hand_on_beside(copy).await? {
                    Some(going_on) => copy = going_on,
                    None => {
                        self.read.cut = Some(Cut::Stall);
                        break;
                    }
                }
            }
        }
        self.read.streaming = began.elapsed();
        self.hand_on().await
    }

    fn time_left(&self) -> Duration {
        self.bounds.deadline.reading_left().min(self.bounds.ends.saturating_duration_since(Instant::now()))
    }

    /// Waits for what the server sends, or cuts the page.
    async fn in_time<T>(&mut self, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = pin!(answer);
        loop {
            let left = self.time_left();
            self.read.cut = match left.is_zero() {
                true if self.bounds.deadline.is_reading_over() => Some(Cut::Deadline),
                true => Some(Cut::Transaction),
                false => self.bounds.watch.is_wanted().then_some(Cut::LockWanted),
            };
            if self.read.cut.is_some() {
                return None;
            }
            // A time-out asks the stream first, which nearly always has a row.
            if let Ok(answer) = timeout(left.min(LOOK_PAUSE), &mut answer).await {
                return Some(answer);
            }
        }
    }

    /// Encodes one row, or cuts the page before or after it.
    fn row(&mut self, tuple: &[u8]) -> Result<(), PageFault> {
        let buffer = &mut self.buffer;
        let start = buffer.json.len();
        let json = &mut buffer.json;
        if json.capacity() == 0 {
            json.reserve(PIECE_BYTES + (PIECE_BYTES >> 2));
        }
        let system = self.encoder.write(tuple, json).map_err(|fault| unencodable(self.page.table, fault))?;
        let row_bytes = json.len() - start;
        let xid = self.filter.xid(system.xmin);
        let is_passed_over = system.is_missed && self.filter.is_left_to_ranges(xid);
        if !self.filter.admits(xid) && !is_passed_over {
            if !self.page.position.is_scan() {
                buffer.held_back.clear();
                buffer.held_back.extend_from_slice(&json[start..]);
            }
            json.truncate(start);
        } else if json.len() > self.output.room() {
            if row_bytes > self.output.capacity() {
                return Err(too_large(format!("a row of {row_bytes} bytes does not fit into an answer")));
            }
            json.truncate(start);
            self.read.cut = Some(Cut::AnswerFull);
            return Ok(());
        } else {
            buffer.last_start = start;
            buffer.held_back.clear();
            let row = usize::try_from(buffer.rows).unwrap_or(usize::MAX);
            buffer.deleted.extend(system.is_deleted.then_some(row));
            buffer.rows += 1;
            buffer.missed += u64::from(system.is_missed);
            self.read.xids.extend((xid >= self.bounds.xmin).then_some(xid));
            if self.read.bytes + json.len() as u64 >= self.bounds.max_bytes {
                self.read.cut = Some(Cut::Bytes);
            }
        }
        let place = Place(system.place.0, system.place.1);
        if self.page.needs_place && place <= buffer.last_place.max(self.read.last_place) {
            return Err(Error::new(
                Kind::Internal,
                "rows of a scan do not come in the order of their places",
            )
            .into());
        }
        buffer.received += 1;
        buffer.last_place = place;
        Ok(())
    }

    /// Hands the rows on while the COPY waits; `None` if that took so long that the COPY was given up.
    async fn hand_on_beside<'c>(&mut self, copy: Copy<'c>) -> Result<Option<Copy<'c>>, PageFault> {
        let mut hand_on = pin!(self.hand_on());
        if let Ok(outcome) = timeout(STALL, &mut hand_on).await {
            return outcome.map(|()| Some(copy));
        }
        tracing::warn!("the output is slow, ending the page");
        copy.give_up();
        hand_on.await.map(|()| None)
    }

    async fn hand_on(&mut self) -> Result<(), PageFault> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.received == 0 {
            return Ok(());
        }
        if !self.page.position.is_scan() {
            self.read.last_row.clear();
            let is_last_held_back = !buffer.held_back.is_empty();
            let last_row =
                if is_last_held_back { &buffer.held_back[..] } else { &buffer.json[buffer.last_start..] };
            self.read.last_row.extend_from_slice(last_row);
        }
        let byte_count = buffer.json.len() as u64;
        if buffer.rows > 0 {
            let json = std::mem::take(&mut buffer.json);
            self.output.write(self.page.table, json, buffer.rows, &buffer.deleted).await?;
        }
        self.read.last_place = buffer.last_place;
        self.read.received += buffer.received;
        self.read.rows += buffer.rows;
        self.read.missed += buffer.missed;
        self.read.bytes += byte_count;
        Ok(())
    }
}

impl PageRead {
    /// The position after the page: the last row's place; or its cursor and key, read back from its JSON.
    ///
    /// # Errors
    /// `Internal`.
    pub(crate) fn position(&self, page: &Page<'_>) -> Result<Position, Error> {
        if self.received == 0 {
            return Ok(page.position.clone());
        }
        let table = page.table;
        let unreadable =
            || Error::new(Kind::Internal, format!("the position in table {} cannot be read", table.name));
        let values = |columns: &[usize]| {
            let row: HashMap<String, &RawValue> =
                serde_json::from_slice(&self.last_row).map_err(|_| unreadable())?;
            let value = |i: &usize| {
                let column = &table.columns[*i];
                row.get(&column.name)
                    .and_then(|json| literal_text(json.get(), &column.encoding))
                    .ok_or_else(unreadable)
            };
            columns.iter().map(value).collect::<Result<Vec<String>, Error>>()
        };
        Ok(match page.position {
            Position::Scan { leaf, .. } => Position::Scan { leaf: *leaf, after: self.last_place },
            Position::Unset { .. } => Position::Unset { key: Some(values(&table.key)?) },
            Position::Range { .. } => {
                let cursor = values(&[table.cursor.ok_or_else(unreadable)?])?.remove(0);
                Position::Range { after: Some(After { cursor, key: values(&table.key)? }) }
            }
        })
    }
}

/// A scalar's JSON as text that PostgreSQL reads.
fn literal_text(json: &str, encoding: &Encoding) -> Option<String> {
    match (json.as_bytes().first()?, encoding) {
        (b'"', Encoding::Bytea) => {
            let text: String = serde_json::from_str(json).ok()?;
            Some(format!("\\x{}", hex(&STANDARD.decode(text).ok()?)))
        }
        (b'"', _) => serde_json::from_str(json).ok(),
        (b'{' | b'[' | b'n', _) => None,
        _ => Some(json.to_owned()),
    }
}

/// The guard's word about a row comes as the stream's error.
fn row_fault(error: Error) -> PageFault {
    let is_of_row = error.kind() == Kind::RowTooLarge;
    PageFault { is_of_row, ..PageFault::from(error) }
}

fn too_large(context: String) -> PageFault {
    row_fault(Error::new(Kind::RowTooLarge, context))
}

fn unencodable(table: &Table, fault: RowError) -> PageFault {
    match fault {
        RowError::Malformed => {
            let context = format!("table {} sent a row of another shape than announced", table.name);
            PageFault::from(Error::new(Kind::SchemaChanged, context))
        }
        RowError::TooLarge { bytes } => too_large(format!("a row of {bytes} bytes or more as JSON")),
        RowError::Value { column, reason } => {
            let column = &table.columns[column];
            let context = format!("column {} of type {}: {reason}", column.name, column.type_name);
            let error = Error::new(Kind::UnencodableValue, context);
            PageFault { is_of_row: true, ..PageFault::from(error) }
        }
    }
}
