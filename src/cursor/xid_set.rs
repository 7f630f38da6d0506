//! A set of transaction ids, as runs: what one table's window has delivered of the transactions that had not all finished.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::varint;

/// A set that a state brings has at most so many ids: beyond 2³¹ no row's `xmin` could be told.
const MOST: u64 = 1 << 31;

/// Sorted runs of ids that neither touch nor overlap. In a state: gaps and lengths, in base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct XidSet {
    runs: Vec<Run>,
}

/// `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    last: u64,
}

impl FromIterator<u64> for XidSet {
    fn from_iter<I: IntoIterator<Item = u64>>(xids: I) -> Self {
        let mut xids: Vec<u64> = xids.into_iter().collect();
        xids.sort_unstable();
        Self::joined(xids.into_iter().map(|xid| Run { first: xid, last: xid }))
    }
}

impl XidSet {
    /// From runs in the order of their starts.
    fn joined(runs: impl Iterator<Item = Run>) -> Self {
        let mut joined: Vec<Run> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.first <= last.last.saturating_add(1) => last.last = last.last.max(run.last),
                _ => joined.push(run),
            }
        }
        Self { runs: joined }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.last - run.first + 1).sum()
    }

    pub(crate) fn contains(&self, xid: u64) -> bool {
        let after = self.runs.partition_point(|run| run.first <= xid);
        after > 0 && xid <= self.runs[after - 1].last
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|run| run.first..=run.last)
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut runs = [self.runs.as_slice(), other.runs.as_slice()].concat();
        runs.sort_unstable_by_key(|run| run.first);
        Self::joined(runs.into_iter())
    }

    /// Those from `xmin` on.
    pub(crate) fn at_least(&self, xmin: u64) -> Self {
        let kept = self.runs.iter().filter(|run| run.last >= xmin);
        Self { runs: kept.map(|run| Run { first: run.first.max(xmin), last: run.last }).collect() }
    }

    /// The length of its text in a state.
    pub(crate) fn text_bytes(&self) -> usize {
        self.to_text().len()
    }

    /// The newest of these whose text is no longer than that.
    pub(crate) fn thinned(&self, max_text_bytes: usize) -> Self {
        let newest = |count: usize| Self { runs: self.runs[self.runs.len() - count..].to_vec() };
        let (mut fits, mut exceeds) = (0, self.runs.len() + 1);
        while exceeds - fits > 1 {
            let count = fits.midpoint(exceeds);
            if newest(count).text_bytes() <= max_text_bytes { fits = count } else { exceeds = count }
        }
        newest(fits)
    }

    fn to_text(&self) -> String {
        let mut end = 0;
        varint::encode(self.runs.iter().flat_map(|run| {
            let numbers = [run.first - end, run.last - run.first];
            end = run.last;
            numbers
        }))
    }

    fn parse(text: &str) -> Option<Self> {
        let numbers = varint::decode(text)?;
        let (mut runs, mut end, mut count) = (Vec::new(), 0_u64, 0_u64);
        for pair in numbers.chunks(2) {
            let [gap, length] = pair else { return None };
            let first = end.checked_add(*gap)?;
            end = first.checked_add(*length)?;
            count = count.checked_add(*length)?.checked_add(1)?;
            runs.push(Run { first, last: end });
        }
        let set = Self::joined(runs.iter().copied());
        (count <= MOST && set.runs == runs).then_some(set)
    }
}

impl Serialize for XidSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for XidSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("expected a set of transaction ids"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(xids: &[u64]) -> XidSet {
        xids.iter().copied().collect()
    }

    #[test]
    fn ids_become_runs_and_read_back() {
        let xids = set(&[9, 5, 6, 7, 5, 1 << 40]);
        assert_eq!((xids.runs.len(), xids.count()), (3, 5));
        assert_eq!(xids.iter().collect::<Vec<_>>(), [5, 6, 7, 9, 1 << 40]);
        assert_eq!(XidSet::parse(&xids.to_text()), Some(xids));
        assert_eq!(XidSet::parse(""), Some(XidSet::default()));
    }

    #[test]
    fn membership_union_and_the_lower_bound_are_exact() {
        let xids = set(&[5, 6, 7, 9]);
        let has: Vec<u64> = (0..12).filter(|xid| xids.contains(*xid)).collect();
        assert_eq!(has, [5, 6, 7, 9]);
        assert_eq!(xids.union(&set(&[3, 8, 20])), set(&[3, 5, 6, 7, 8, 9, 20]));
        assert_eq!(xids.at_least(6), set(&[6, 7, 9]));
        assert!(xids.at_least(10).is_empty());
    }

    #[test]
    fn a_foreign_or_endless_set_is_refused() {
        for numbers in [vec![5], vec![5, 1 << 40], vec![5, 0, 0, 0], vec![u64::MAX, 1], vec![5, 0, 1, 0]] {
            assert_eq!(XidSet::parse(&varint::encode(numbers.clone())), None, "{numbers:?}");
        }
    }

    #[test]
    fn a_thinned_set_keeps_the_newest() {
        let xids: XidSet = (0..1000).map(|i| 1_000 + i * 3).collect();
        let thinned = xids.thinned(300);
        assert!(thinned.text_bytes() <= 300 && thinned.count() > 90, "{}", thinned.count());
        assert_eq!(thinned, xids.at_least(thinned.iter().next().expect("some")));
        assert_eq!((xids.thinned(1 << 20), xids.thinned(0)), (xids.clone(), XidSet::default()));
    }

    #[test]
    fn thousands_of_scattered_ids_take_two_bytes_each() {
        let xids: XidSet = (0..6_500).map(|i| 1_000_000 + i * 3).collect();
        assert!(xids.to_text().len() < 6_500 * 3, "{}", xids.to_text().len());
    }
}
