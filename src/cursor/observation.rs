//! What was in flight at an instant: the source of every watermark.
//!
//! `now()` is a transaction's start, so a row that becomes visible later may carry any time since its transaction began.
//! The floor of an observation is a time before which no transaction in flight then, or begun since, can have begun.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The database's clock, and each transaction in flight with a time before which it did not begin. In the state, because the
/// next observation needs it where the role cannot see when others' transactions began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Observation {
    /// The clock just before the list was taken: t0.
    pub(crate) at: DateTime<Utc>,
    /// When the server was started: its virtual ids count anew then.
    started: String,
    /// A standby lists nothing of what is in flight on its primary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_standby: bool,
    /// By virtual id; `None`: nothing is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    in_flight: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Prepared transactions, by the lower 32 bits of their id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    prepared: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Of a snapshot taken after the list: who has an id from here on was in the list, or began after it.
    xmax: u64,
    /// `xmax` and floor of the observation before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<(u64, Option<DateTime<Utc>>)>,
}

/// What one look at the server gave, in the order in which it must be taken: clock, transactions in flight, prepared
/// transactions, snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) at: DateTime<Utc>,
    pub(crate) started: String,
    pub(crate) is_standby: bool,
    /// By virtual id, with the start where it is visible.
    pub(crate) in_flight: Vec<(String, Option<DateTime<Utc>>)>,
    pub(crate) prepared: Vec<String>,
    pub(crate) xmax: u64,
}

impl Observation {
    /// Puts a bound to each transaction listed: its start where that is visible; else the bound it had; else, since the last
    /// observation did not list it, that one's time (a grace period, as in RCU). A prepared transaction may have been listed
    /// under a virtual id then: it gets the last floor.
    pub(crate) fn new(listing: Listing, last: Option<&Self>) -> Self {
        let last = last.filter(|last| !last.is_standby);
        let is_same_server = last.is_some_and(|last| last.started == listing.started);
        let in_flight = listing.in_flight.into_iter().map(|(id, start)| {
            let known = last.filter(|_| is_same_server).and_then(|last| last.in_flight.get(&id));
            let bound = start.or_else(|| known.copied().unwrap_or_else(|| last.map(|last| last.at)));
            (id, bound)
        });
        let prepared = listing.prepared.into_iter().map(|id| {
            let known = last.and_then(|last| last.prepared.get(&id));
            let bound = known.copied().unwrap_or_else(|| last.and_then(Self::floor));
            (id, bound)
        });
        Self {
            at: listing.at,
            started: listing.started,
            is_standby: listing.is_standby,
            in_flight: in_flight.collect(),
            prepared: prepared.collect(),
            xmax: listing.xmax,
            before: last.map(|last| (last.xmax, last.floor())),
        }
    }

    /// A time before which none of those in flight, and none that began since, can have begun; `None` while one of them is
    /// of unknown age.
    pub(crate) fn floor(&self) -> Option<DateTime<Utc>> {
        if self.is_standby {
            return None;
        }
        let bounds = self.in_flight.values().chain(self.prepared.values()).copied();
        bounds.chain([Some(self.at)]).try_fold(self.at, |least, bound| Some(least.min(bound?)))
    }

    /// The floor for all transactions with an id from `xmin` on, also those that have finished meanwhile: that of this
    /// observation or of the one before, if all such ids were given out after it.
    pub(crate) fn floor_from(&self, xmin: u64) -> Option<DateTime<Utc>> {
        if self.xmax <= xmin {
            return self.floor();
        }
        let (xmax, floor) = self.before?;
        floor.filter(|_| xmax <= xmin)
    }

    /// The number of those in flight, for the receipt.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight.len() + self.prepared.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
    }

    fn listing(at: i64, in_flight: &[(&str, Option<i64>)], prepared: &[&str]) -> Listing {
        Listing {
            at: time(at),
            started: "today".to_owned(),
            is_standby: false,
            in_flight: in_flight.iter().map(|(id, start)| ((*id).to_owned(), start.map(time))).collect(),
            prepared: prepared.iter().map(|id| (*id).to_owned()).collect(),
            xmax: 100 + at.unsigned_abs(),
        }
    }

    #[test]
    fn a_visible_start_is_the_bound() {
        let first = Observation::new(listing(10, &[("3/7", Some(4)), ("4/1", Some(9))], &[]), None);
        assert_eq!(first.floor(), Some(time(4)));
        assert_eq!(Observation::new(listing(10, &[], &[]), None).floor(), Some(time(10)));
    }

    #[test]
    fn an_invisible_start_is_bounded_by_the_last_observation_without_it() {
        let first = Observation::new(listing(10, &[("3/7", None)], &[]), None);
        assert_eq!(first.floor(), None, "it may have begun at any time");
        let second = Observation::new(listing(20, &[("3/7", None), ("4/1", None)], &[]), Some(&first));
        assert_eq!(second.floor(), None);
        let third = Observation::new(listing(30, &[("4/1", None), ("5/1", None)], &[]), Some(&second));
        assert_eq!(third.floor(), Some(time(10)), "4/1 began after the first observation");
        let fourth = Observation::new(listing(40, &[("5/1", None)], &[]), Some(&third));
        assert_eq!(fourth.floor(), Some(time(20)));
    }

    #[test]
    fn virtual_ids_mean_nothing_after_a_restart() {
        let first = Observation::new(listing(10, &[("3/7", None)], &[]), None);
        let restarted = Listing { started: "later".to_owned(), ..listing(20, &[("3/7", None)], &[]) };
        assert_eq!(Observation::new(restarted, Some(&first)).floor(), Some(time(10)));
    }

    #[test]
    fn a_standby_tells_nothing_about_its_primary() {
        let first = Observation::new(listing(10, &[], &[]), None);
        let standby = Listing { is_standby: true, ..listing(20, &[], &[]) };
        let second = Observation::new(standby, Some(&first));
        assert_eq!(second.floor(), None);
        let third = Observation::new(listing(30, &[("3/7", None)], &[]), Some(&second));
        assert_eq!(third.floor(), None, "that the standby did not list it means nothing");
    }

    #[test]
    fn a_prepared_transaction_may_be_any_that_was_in_flight() {
        let first = Observation::new(listing(10, &[("3/7", Some(4))], &[]), None);
        let second = Observation::new(listing(20, &[], &["755"]), Some(&first));
        assert_eq!(second.floor(), Some(time(4)));
        let third = Observation::new(listing(30, &[], &["755"]), Some(&second));
        assert_eq!(third.floor(), Some(time(4)), "as long as it is there");
        assert_eq!(Observation::new(listing(20, &[], &["755"]), None).floor(), None);
    }

    #[test]
    fn ids_given_out_after_the_observation_before_have_its_floor() {
        let first = Observation::new(listing(10, &[("3/7", Some(4))], &[]), None);
        let second = Observation::new(listing(20, &[], &[]), Some(&first));
        assert_eq!(second.floor_from(110), Some(time(4)));
        assert_eq!(second.floor_from(109), None, "that id may have been given out before");
        assert_eq!(second.floor_from(120), Some(time(20)));
        assert_eq!(first.floor_from(109), None);
    }

    #[test]
    fn an_observation_reads_back_from_the_state() {
        let first = Observation::new(listing(10, &[("3/7", Some(4)), ("4/1", None)], &["755"]), None);
        let second = Observation::new(listing(20, &[], &[]), Some(&first));
        for observation in [first, second] {
            let text = serde_json::to_string(&observation).expect("text");
            assert_eq!(serde_json::from_str::<Observation>(&text).expect("reads back"), observation);
        }
    }
}
