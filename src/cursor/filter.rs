//! Which row versions a page delivers, told by their transaction's id alone.

use super::looks::Looks;
use super::window::{Scope, TableCursor, Window};
use super::xid::{self, Snapshot};
use super::xid_set::XidSet;

/// So many ids at most go into the SQL; the exact test is ours, the server's only saves sending.
const MOST_IN_SQL: u64 = 20_000;

/// The exact test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter<'a> {
    /// The next id when the page's transaction looked: what `age` counts from, and ids are rebuilt below.
    next: u64,
    /// What was delivered before; `None`: nothing counts as delivered.
    since: Option<(Snapshot, &'a XidSet)>,
    looks: Option<&'a Looks>,
    /// `None`: all that the page's own snapshot shows, which is the window's.
    frozen: Option<(Snapshot, &'a XidSet)>,
}

/// What the server can leave out before it sends: never a row that the exact test lets through. Ids are the lower 32 bits,
/// `age` is PostgreSQL's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// `age(xmin)` from 1 to this.
    pub(crate) newer: Option<u64>,
    /// And none of these.
    pub(crate) except: Vec<u32>,
    /// `age(xmin)` not from 1 to this, or one of these.
    pub(crate) frozen: Option<(u64, Vec<u32>)>,
}

impl<'a> Filter<'a> {
    /// `is_fresh`: of a partition that was not there before, nothing was delivered.
    pub(crate) fn new(cursor: &'a TableCursor, window: &'a Window, next: u64, is_fresh: bool) -> Self {
        let since = cursor.snapshot.filter(|_| !is_fresh).map(|snapshot| (snapshot, &cursor.delivered));
        let frozen = match &window.scope {
            Scope::Whole => None,
            Scope::Frozen { visible } => Some((window.snapshot, visible)),
        };
        Self { next, since, looks: cursor.looks.as_ref(), frozen }
    }

    /// A row's id in 64 bits, never too small.
    pub(crate) fn xid(&self, xmin: u32) -> u64 {
        xid::rebuilt(xmin, self.next)
    }

    /// Whether the page delivers every row version, whatever its transaction.
    pub(crate) fn admits_all(&self) -> bool {
        self.since.is_none() && self.frozen.is_none()
    }

    /// Whether the page delivers a row version.
    pub(crate) fn admits(&self, xid: u64) -> bool {
        let is_delivered =
            self.since.is_some_and(|(since, delivered)| xid < since.xmin || delivered.contains(xid));
        let is_of_window =
            self.frozen.is_none_or(|(snapshot, visible)| xid < snapshot.xmin || visible.contains(xid));
        !is_delivered && is_of_window
    }

    /// Whether only windows by range can have met it: they delivered it, or passed it over for its time.
    pub(crate) fn is_left_to_ranges(&self, xid: u64) -> bool {
        let is_settled = self.since.is_some_and(|(since, _)| xid < since.xmin);
        is_settled && self.looks.is_some_and(|looks| !looks.has_seen(xid))
    }

    pub(crate) fn condition(&self) -> Condition {
        let listed = |xids: &XidSet| xids.iter().map(xid::low).collect::<Vec<u32>>();
        let mut condition = Condition::default();
        if let Some((since, delivered)) = self.since {
            condition.newer = xid::distance(since.xmin, self.next);
            if delivered.count() <= MOST_IN_SQL {
                condition.except = listed(delivered);
            }
        }
        if let Some((snapshot, visible)) = self.frozen
            && visible.count() <= MOST_IN_SQL
        {
            condition.frozen =
                xid::distance(snapshot.xmin, self.next).map(|distance| (distance, listed(visible)));
        }
        condition
    }
}
