//! Transaction ids and snapshots, in 64 bits throughout. A row's `xmin` has the lower 32 only.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `age()` and the comparison of 32-bit ids turn over at 2³¹; a margin keeps us well before.
const FURTHEST: u64 = (1 << 31) - 1_000_000;

/// Ids below are PostgreSQL's own (bootstrap, frozen): older than any transaction.
const FIRST_NORMAL: u32 = 3;

/// A snapshot's bounds, written as PostgreSQL writes a `pg_snapshot` without its list: `xmin:xmax:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Every transaction below had finished.
    pub(crate) xmin: u64,
    /// No transaction from here on had.
    pub(crate) xmax: u64,
}

impl Snapshot {
    /// Reads `pg_current_snapshot()`: the bounds, and the top-level transactions in progress between them.
    pub(crate) fn parse(text: &str) -> Option<(Self, Vec<u64>)> {
        let mut parts = text.splitn(3, ':');
        let mut bound = || parts.next()?.parse().ok();
        let snapshot = Self { xmin: bound()?, xmax: bound()? };
        let list = parts.next()?;
        let in_progress =
            list.split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect::<Result<_, _>>();
        let is_sound = u64::from(FIRST_NORMAL) <= snapshot.xmin && snapshot.xmin <= snapshot.xmax;
        Some((snapshot, in_progress.ok()?)).filter(|_| is_sound)
    }

    /// Whether no transaction was in progress.
    pub(crate) fn is_quiet(self) -> bool {
        self.xmin == self.xmax
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)
    }
}

impl FromStr for Snapshot {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::parse(text) {
            Some((snapshot, in_progress)) if in_progress.is_empty() => Ok(snapshot),
            _ => Err("expected a snapshot"),
        }
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Snapshot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The next id to be assigned, from a snapshot and `age('3'::xid)` of the same transaction: what `age` counts from.
pub(crate) fn next(snapshot: Snapshot, age_of_3: i32) -> u64 {
    let next = age_of_3.cast_unsigned().wrapping_add(FIRST_NORMAL);
    snapshot.xmax + u64::from(next.wrapping_sub(low(snapshot.xmax)))
}

/// How many ids from `xid` up to `next`, `xid` included: rows not older than `xid` are those with `age(xmin) BETWEEN 1 AND`
/// this. `None` where 32 bits no longer tell.
pub(crate) fn distance(xid: u64, next: u64) -> Option<u64> {
    let distance = next.checked_sub(xid)?;
    (distance <= FURTHEST).then_some(distance)
}

/// A row's `xmin` in 64 bits: the largest id below `below` with these lower 32. Never too small; too large only for rows
/// that were frozen more than 2³² ids ago. 0 is older than everything.
pub(crate) fn rebuilt(xmin: u32, below: u64) -> u64 {
    if xmin < FIRST_NORMAL || below == 0 {
        return 0;
    }
    let top = below - 1;
    top.saturating_sub(u64::from(low(top).wrapping_sub(xmin)))
}

/// The lower 32 bits, as a row has them.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
pub(crate) fn low(xid: u64) -> u32 {
    xid as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 1 << 32;

    #[test]
    fn snapshots_are_read_as_postgresql_writes_them() {
        let (snapshot, in_progress) = Snapshot::parse("753:760:753,757").expect("a snapshot");
        assert_eq!((snapshot, in_progress), (Snapshot { xmin: 753, xmax: 760 }, vec![753, 757]));
        assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
        for text in ["", "753", "753:760", "760:753:", "0:1:", "753:760:x", "753:760:1", "-1:5:"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_rebuilt_to_the_largest_below() {
        for (xid, below) in [
            (3, 800),
            (799, 800),
            (EPOCH - 1, EPOCH + 3),
            (EPOCH + 7, EPOCH + 8),
            (5 * EPOCH + 3, 5 * EPOCH + 4),
        ] {
            assert_eq!(rebuilt(low(xid), below), xid, "{xid}");
        }
        assert_eq!(rebuilt(low(EPOCH + 9), EPOCH + 9), 9, "an id is not below itself");
        assert_eq!([rebuilt(1, EPOCH), rebuilt(2, EPOCH), rebuilt(900, 800)], [0, 0, 0]);
    }

    #[test]
    fn what_age_counts_from_is_known_across_the_wraparound() {
        for next_xid in [800, EPOCH - 1, EPOCH, EPOCH + 1, EPOCH + 3, 3 * EPOCH + (1 << 31)] {
            let snapshot = Snapshot { xmin: next_xid - 60, xmax: next_xid - 50 };
            let age_of_3 = low(next_xid).wrapping_sub(3).cast_signed();
            assert_eq!(next(snapshot, age_of_3), next_xid);
        }
        assert_eq!(distance(10, 15), Some(5));
        assert_eq!([distance(1 << 31, EPOCH), distance(15, 10)], [None, None]);
    }
}
