//! The relations that hold a table's rows: itself, or its partitions; and where each lies.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::varint;

/// By oid: the number of the file, which a rewrite changes. In a state: differences, in base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leaves(BTreeMap<u32, u32>);

impl FromIterator<(u32, u32)> for Leaves {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(leaves: I) -> Self {
        Self(leaves.into_iter().collect())
    }
}

impl Leaves {
    pub(crate) fn has(&self, oid: u32) -> bool {
        self.0.contains_key(&oid)
    }

    /// Whether one of these was rewritten since: TRUNCATE, VACUUM FULL, CLUSTER, some ALTER TABLE.
    pub(crate) fn is_rewritten_in(&self, now: &Self) -> bool {
        self.0.iter().any(|(oid, file)| now.0.get(oid).is_some_and(|current| current != file))
    }

    /// Whether there is one now that was not there.
    pub(crate) fn has_more_in(&self, now: &Self) -> bool {
        now.0.keys().any(|oid| !self.has(*oid))
    }

    fn parse(text: &str) -> Option<Self> {
        let numbers = varint::decode(text)?;
        let (mut leaves, mut last) = (BTreeMap::new(), 0_u64);
        for pair in numbers.chunks(2) {
            let [difference, file] = pair else { return None };
            last = last.checked_add(*difference)?;
            leaves.insert(u32::try_from(last).ok()?, u32::try_from(*file).ok()?);
        }
        (leaves.len() * 2 == numbers.len()).then_some(Self(leaves))
    }
}

impl Serialize for Leaves {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut last = 0;
        let numbers = self.0.iter().flat_map(|(oid, file)| {
            let numbers = [u64::from(oid - last), u64::from(*file)];
            last = *oid;
            numbers
        });
        serializer.serialize_str(&varint::encode(numbers))
    }
}

impl<'de> Deserialize<'de> for Leaves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("expected a list of leaves"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewritten_and_new_leaves_are_told_and_dropped_ones_are_not() {
        let known = Leaves::from_iter([(10, 1), (20, 2)]);
        let now = |leaves: &[(u32, u32)]| Leaves::from_iter(leaves.iter().copied());
        for (leaves, is_rewritten, has_more) in [
            (now(&[(10, 1), (20, 2)]), false, false),
            (now(&[(10, 1)]), false, false),
            (now(&[(10, 7), (20, 2)]), true, false),
            (now(&[(10, 1), (20, 2), (30, 3)]), false, true),
        ] {
            assert_eq!(
                (known.is_rewritten_in(&leaves), known.has_more_in(&leaves)),
                (is_rewritten, has_more)
            );
        }
        let text = serde_json::to_string(&known).expect("text");
        assert_eq!(serde_json::from_str::<Leaves>(&text).expect("reads back"), known);
        assert!(serde_json::from_str::<Leaves>("\"gICAgICA\"").is_err());
    }
}
