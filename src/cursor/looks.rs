//! What an audit needs to know of the past: from where on each window has looked since every row was last looked at. A row
//! whose time lies before that was passed over.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::xid_set::XidSet;
use super::{varint, xid};

/// So many windows are kept apart; older ones are taken together, by the earlier time of the two.
const MOST: usize = 300;

/// The windows since then, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Looks {
    /// `xmin` of the window that looked at every row: what is older is not asked about.
    since: u64,
    /// What that window delivered from there on.
    #[serde(default, skip_serializing_if = "XidSet::is_empty")]
    pub(super) seen: XidSet,
    ranges: Ranges,
}

/// In a state: differences, in base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges(Vec<Look>);

/// One window by range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// Its snapshot's `xmax`: ids below, and not below an earlier one's, it was the first that could meet.
    below: u64,
    /// The watermark that it read from.
    from: DateTime<Utc>,
}

impl Looks {
    pub(crate) fn new(since: u64, seen: XidSet) -> Self {
        Self { since, seen, ranges: Ranges::default() }
    }

    /// Whether the window that looked at every row has delivered it.
    pub(crate) fn has_seen(&self, xid: u64) -> bool {
        self.seen.contains(xid)
    }

    pub(crate) fn add(&mut self, below: u64, from: DateTime<Utc>) {
        let ranges = &mut self.ranges.0;
        ranges.push(Look { below, from });
        if ranges.len() > MOST {
            let oldest = ranges.remove(0);
            ranges[0].from = ranges[0].from.min(oldest.from);
        }
    }

    /// From the newest to the oldest: rows with `age(xmin)` from 1 to the distance, and none before it, have been looked for
    /// from that time on, less the slack.
    pub(crate) fn bounds(&self, next: u64, slack: TimeDelta) -> Vec<(u64, DateTime<Utc>)> {
        let starts = std::iter::once(self.since).chain(self.ranges.0.iter().map(|look| look.below));
        let bounds = starts.zip(&self.ranges.0).filter_map(|(start, look)| {
            Some((xid::distance(start, next)?, look.from.checked_sub_signed(slack)?))
        });
        let mut bounds: Vec<_> = bounds.collect();
        bounds.reverse();
        bounds
    }
}

impl Ranges {
    fn parse(text: &str) -> Option<Self> {
        let numbers = varint::decode(text)?;
        let (mut below, mut micros, mut looks) = (0_u64, 0_i64, Vec::new());
        for pair in numbers.chunks(2) {
            let [difference, later] = pair else { return None };
            below = below.checked_add(*difference)?;
            // Zigzag: a watermark goes back when a server takes over.
            let later = (later >> 1).cast_signed() ^ -(later & 1).cast_signed();
            micros = micros.checked_add(later)?;
            looks.push(Look { below, from: DateTime::from_timestamp_micros(micros)? });
        }
        (looks.len() <= MOST).then_some(Self(looks))
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut below, mut micros) = (0, 0);
        let ranges = self.0.iter().flat_map(|look| {
            let later = look.from.timestamp_micros() - micros;
            let numbers = [look.below.saturating_sub(below), ((later << 1) ^ (later >> 63)).cast_unsigned()];
            (below, micros) = (look.below.max(below), look.from.timestamp_micros());
            numbers
        });
        serializer.serialize_str(&varint::encode(ranges))
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("expected a list of windows"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
    }

    #[test]
    fn each_id_has_the_bound_of_the_first_window_that_could_meet_it() {
        let mut looks = Looks::new(700, XidSet::default());
        looks.add(710, time(10));
        looks.add(730, time(20));
        let slack = TimeDelta::seconds(5);
        // 710 to 729 by the second window, 700 to 709 by the first.
        assert_eq!(looks.bounds(740, slack), [(30, time(15)), (40, time(5))]);
        assert_eq!(Looks::new(700, XidSet::default()).bounds(740, slack), []);
    }

    #[test]
    fn they_read_back_and_stay_few() {
        let mut looks = Looks::new(700, XidSet::default());
        for i in 0..1000 {
            looks.add(700 + i, time(1000 - i64::try_from(i).expect("small")));
        }
        let text = serde_json::to_string(&looks).expect("text");
        assert!(text.len() < 5_000, "{}", text.len());
        assert_eq!(serde_json::from_str::<Looks>(&text).expect("reads back"), looks);
        assert_eq!((looks.ranges.0.len(), looks.ranges.0[0].from), (MOST, time(300)));
        for broken in ["{}", "{\"since\":7,\"ranges\":\"gA\"}", "7"] {
            assert!(serde_json::from_str::<Looks>(broken).is_err(), "{broken}");
        }
    }
}
