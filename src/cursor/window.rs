//! One table's cursor, and the window that it may be in the middle of.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::identity::Lsn;
use super::leaves::Leaves;
use super::looks::Looks;
use super::observation::Observation;
use super::xid::{self, Snapshot};
use super::xid_set::XidSet;

/// So many ids there are of 32 bits: before, no two rows' ids are taken for one another.
const AN_AGE: u64 = 1 << 32;

/// How far the clocks of servers that take over from each other may be apart.
const CLOCKS_APART: TimeDelta = TimeDelta::hours(1);

/// Where one table stands: W, S and D of the last window that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableCursor {
    /// The number of the last commit; 0 before the first.
    pub(crate) seq: u64,
    /// Of the table's `pg_class` row: a table swapped by rename has another.
    pub(crate) oid: u32,
    /// Cursor column and primary key with their types: what W and a position are made of.
    pub(crate) order: String,
    /// W: no row version invisible to the snapshot has a cursor value before this, less the slack. `None`: unknown, so that
    /// every row must be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) watermark: Option<DateTime<Utc>>,
    /// S: every transaction below its `xmin` had finished. `None`: nothing counts as delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<Snapshot>,
    /// D: the transactions from `xmin` on whose rows were delivered.
    #[serde(default, skip_serializing_if = "XidSet::is_empty")]
    pub(crate) delivered: XidSet,
    /// The database's clock before that window was opened: t0. `None` during a backfill, whose watermark, if any, was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) as_of: Option<DateTime<Utc>>,
    /// The relations that held the table's rows then.
    #[serde(default)]
    pub(crate) leaves: Leaves,
    /// A scan may have passed over rows that were frozen an age ago, taking them for ids below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) passed_over: Option<u64>,
    /// Whether what was committed last is safe from a crash of the server.
    #[serde(default)]
    pub(crate) fence: Fence,
    /// Windows completed since every row was last looked at, and from where on they looked.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub(crate) unaudited: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) looks: Option<Looks>,
    /// The window that is not read to its end yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<Window>,
}

/// The rows that one snapshot owes a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Window {
    /// t0 of the observation before the snapshot.
    pub(crate) as_of: DateTime<Utc>,
    /// W when the window is read to its end, unless it is later already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) watermark: Option<DateTime<Utc>>,
    /// S when the window is read to its end.
    pub(crate) snapshot: Snapshot,
    pub(crate) scope: Scope,
    pub(crate) leaves: Leaves,
    /// Where the log ended after the snapshot was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lsn: Option<Lsn>,
    pub(crate) position: Position,
}

/// What belongs to a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Scope {
    /// All that its snapshot shows: only within the snapshot's own transaction.
    Whole,
    /// What is older than the snapshot's `xmin`, and the transactions from there on that it showed: known in later
    /// transactions, too.
    Frozen {
        #[serde(default, skip_serializing_if = "XidSet::is_empty")]
        visible: XidSet,
    },
}

/// Up to where a window was delivered. Its `Debug` shows no value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Position {
    /// The rows from the watermark on, in the order of cursor column and primary key.
    Range {
        /// The last row's values, as PostgreSQL reads them; `None` at the start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<After>,
    },
    /// Then those whose cursor column is NULL or `-infinity`, in the order of the primary key.
    Unset {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Vec<String>>,
    },
    /// Every row, by its place: leaf by leaf in the order of their oids, and block by block.
    Scan {
        #[serde(default)]
        leaf: u32,
        #[serde(default)]
        after: Place,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    pub(crate) cursor: String,
    pub(crate) key: Vec<String>,
}

/// A row version's `ctid`: block, and number in the block, counted from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place(pub(crate) u32, pub(crate) u16);

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Range { .. } => "Range",
            Self::Unset { .. } => "Unset",
            Self::Scan { .. } => "Scan",
        })
    }
}

impl Position {
    pub(crate) fn scan() -> Self {
        Self::Scan { leaf: 0, after: Place::default() }
    }

    pub(crate) fn is_scan(&self) -> bool {
        matches!(self, Self::Scan { .. })
    }
}

/// Whether a snapshot's transactions are safe from a crash of the server: with `synchronous_commit = off` it shows what is
/// not on disk yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fence {
    /// The log was flushed beyond the snapshot; a standby has nothing else.
    Passed,
    /// It was not within the time that we wait.
    TimedOut,
    /// The server does not say.
    #[default]
    None,
}

/// Ids that a snapshot may not show although a row has them: a row frozen more than 2³² ids ago has the lower 32 bits of
/// another transaction, too, and that one may be in progress. Put into D it would hide that transaction's rows for good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Fewer than 2³² ids were ever given out.
    #[default]
    None,
    /// In progress.
    Of { xids: XidSet, from: u64 },
    /// All: the server cannot say which are in progress.
    All,
}

impl Doubt {
    /// `in_progress`: the snapshot's own list, of top-level transactions. `locked`: the ids, of subtransactions also, that
    /// were held locked by their transactions just after it; `None` where that cannot be seen.
    pub(crate) fn new(snapshot: Snapshot, in_progress: &[u64], locked: Option<&[u32]>) -> Self {
        if snapshot.xmax <= AN_AGE {
            return Self::None;
        }
        let Some(locked) = locked else { return Self::All };
        let held: XidSet = locked.iter().map(|xid| xid::rebuilt(*xid, snapshot.xmax)).collect();
        // One that finished between the two looks may have had subtransactions, whose ids are above its own.
        let finished = in_progress.iter().copied().filter(|xid| !held.contains(*xid)).min();
        let xids = held.union(&in_progress.iter().copied().collect());
        Self::Of { xids, from: finished.unwrap_or(u64::MAX) }
    }

    /// Whether another look may tell more: then some ids are in doubt only because a transaction finished just then. Their rows
    /// would come again.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Of { from, .. } if *from < u64::MAX)
    }

    fn holds(&self, xid: u64) -> bool {
        match self {
            Self::None => false,
            Self::Of { xids, from } => xid >= *from || xids.contains(xid),
            Self::All => true,
        }
    }

    /// Of ids on visible rows: those from the snapshot's `xmin` on that it certainly shows.
    pub(crate) fn visible(&self, snapshot: Snapshot, xids: impl Iterator<Item = u64>) -> XidSet {
        let between = snapshot.xmin..snapshot.xmax;
        xids.filter(|xid| between.contains(xid) && !self.holds(*xid)).collect()
    }
}

impl TableCursor {
    /// The cursor of a table that has never been read, or must be read again: a backfill.
    pub(crate) fn at_start(seq: u64, oid: u32, order: String) -> Self {
        Self {
            seq,
            oid,
            order,
            watermark: None,
            snapshot: None,
            delivered: XidSet::default(),
            as_of: None,
            leaves: Leaves::default(),
            passed_over: None,
            fence: Fence::None,
            unaudited: 0,
            looks: None,
            window: None,
        }
    }

    /// Of a table that must be read again from its start: no table has this oid, so that the next sync begins anew and
    /// goes on counting.
    pub(crate) fn forgotten(seq: u64) -> Self {
        Self::at_start(seq, 0, String::new())
    }

    /// After what was delivered may have been lost at the server: everything from the watermark on is read again, and more,
    /// because another server's clock may be behind.
    pub(crate) fn uncertain(&self) -> Self {
        let watermark = self.watermark.and_then(|watermark| watermark.checked_sub_signed(CLOCKS_APART));
        match watermark {
            None => Self::forgotten(self.seq),
            watermark => {
                let mut cursor = Self { watermark, window: None, ..self.clone() };
                cursor.forget_delivered();
                cursor
            }
        }
    }

    /// The length of its sets' text in a state.
    pub(crate) fn set_bytes(&self) -> usize {
        let visible = self.window.as_ref().map_or(0, |window| match &window.scope {
            Scope::Whole => 0,
            Scope::Frozen { visible } => visible.text_bytes(),
        });
        self.delivered.text_bytes() + visible + self.looks.as_ref().map_or(0, |looks| looks.seen.text_bytes())
    }

    /// Makes room in a state that has a bound: what is left out of D comes again, and nothing is lost. What is left out of a
    /// window's own set is left to the next window, which must then look from where this one did.
    pub(crate) fn thin(&mut self, max_bytes: usize) -> bool {
        if self.set_bytes() <= max_bytes {
            return false;
        }
        self.delivered = self.delivered.thinned(max_bytes / 3);
        if let Some(looks) = &mut self.looks {
            looks.seen = looks.seen.thinned(max_bytes / 3);
        }
        if let Some(Window { scope: Scope::Frozen { visible }, watermark, .. }) = &mut self.window {
            let thinned = visible.thinned(max_bytes / 3);
            if thinned != *visible {
                (*visible, *watermark) = (thinned, None);
            }
        }
        true
    }

    /// Whether the table has yet to be read to its end for the first time.
    pub(crate) fn is_backfill(&self) -> bool {
        self.as_of.is_none()
    }

    /// The time from which on the index must be looked through.
    pub(crate) fn bound(&self, slack: TimeDelta) -> Option<DateTime<Utc>> {
        self.watermark.and_then(|watermark| watermark.checked_sub_signed(slack))
    }

    /// In a scan: what an earlier window has passed over, see [`Looks::bounds`]; first what no window has met yet.
    pub(crate) fn looked_from(&self, next: u64, slack: TimeDelta) -> Vec<(u64, DateTime<Utc>)> {
        let now =
            self.snapshot.and_then(|snapshot| xid::distance(snapshot.xmin, next)).zip(self.bound(slack));
        let earlier = self.looks.iter().flat_map(|looks| looks.bounds(next, slack));
        now.map_or_else(Vec::new, |now| std::iter::once(now).chain(earlier).collect())
    }

    /// After ids were given out that 32 bits do not tell from those of S: everything from the watermark on is read again.
    pub(crate) fn is_out_of_reach(&self, next: u64) -> bool {
        self.snapshot.is_some_and(|snapshot| xid::distance(snapshot.xmin, next).is_none())
    }

    pub(crate) fn forget_delivered(&mut self) {
        (self.snapshot, self.delivered, self.passed_over, self.looks) = (None, XidSet::default(), None, None);
    }

    /// What holds after the window was read to its end. `visible`: of the transactions from S0's `xmin` on, those whose rows
    /// were delivered. `next`: the next id then.
    ///
    /// Where rows may be of any age, because nothing or not all of them had been delivered, a window over several transactions
    /// takes one frozen an age ago for one of the ids given out meanwhile, and passes it over. Another finds it, once all of
    /// those are below its snapshot's `xmin`; until then the watermark stays.
    pub(crate) fn completed(&self, window: &Window, visible: &XidSet, next: u64) -> Self {
        let delivered = visible.union(&self.delivered.at_least(window.snapshot.xmin));
        let is_any_age = self.watermark.is_none() || self.snapshot.is_none() || self.passed_over.is_some();
        let may_pass_over = is_any_age && window.scope != Scope::Whole && next > AN_AGE;
        let passed_over = match self.passed_over {
            _ if !may_pass_over => None,
            Some(below) if below <= window.snapshot.xmin => None,
            Some(below) => Some(below),
            None => Some(next),
        };
        let looks = match (self.looks.clone(), self.watermark) {
            // Before a range to begin with, rows were another's to deliver.
            _ if window.position.is_scan() || self.is_backfill() => {
                Some(Looks::new(window.snapshot.xmin, visible.clone()))
            }
            (Some(mut looks), Some(watermark)) => {
                looks.add(window.snapshot.xmax, watermark);
                Some(looks)
            }
            _ => None,
        };
        let next_watermark = window.watermark.filter(|_| passed_over.is_none());
        // One that was given to begin with is no more than a bound of what to read.
        let proven = self.watermark.filter(|_| !self.is_backfill());
        Self {
            watermark: proven.max(next_watermark),
            passed_over,
            snapshot: Some(window.snapshot),
            delivered,
            as_of: Some(window.as_of),
            leaves: window.leaves.clone(),
            unaudited: if window.position.is_scan() { 0 } else { self.unaudited.saturating_add(1) },
            looks,
            window: None,
            ..self.clone()
        }
    }
}

impl Window {
    /// The watermark of a window that was opened after this observation. `is_partial`: what its snapshot showed of the
    /// transactions from its `xmin` on is left to the next window.
    pub(crate) fn watermark(
        observation: &Observation,
        snapshot: Snapshot,
        is_partial: bool,
    ) -> Option<DateTime<Utc>> {
        match is_partial {
            false => observation.floor(),
            // What is left may have begun long before, and have committed before we looked.
            true => observation.floor_from(snapshot.xmin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_is_thinned_leaves_the_watermark_where_it_was() {
        let time = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let scattered: XidSet = (0..1000).map(|i| 1_000 + i * 3).collect();
        let snapshot = Snapshot { xmin: 1_000, xmax: 5_000 };
        let window = Window {
            as_of: time(20),
            watermark: Some(time(20)),
            snapshot,
            scope: Scope::Frozen { visible: scattered },
            leaves: Leaves::default(),
            lsn: None,
            position: Position::Range { after: None },
        };
        let before = TableCursor {
            watermark: Some(time(10)),
            as_of: Some(time(10)),
            ..TableCursor::at_start(0, 1, String::new())
        };
        let mut cursor = TableCursor { window: Some(window), ..before };
        assert!(!cursor.thin(1 << 20) && cursor.thin(300));
        let window = cursor.window.take().expect("it goes on");
        let Scope::Frozen { visible } = &window.scope else { panic!("it stays frozen") };
        assert_eq!(cursor.completed(&window, visible, 6_000).watermark, Some(time(10)));
    }
}
