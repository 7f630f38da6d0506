//! Which database a state belongs to, and whether the one connected to is still the same incarnation of it: ids, times and
//! what was delivered mean nothing in another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A database as it was when last looked at; what was refused to us is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseId {
    /// Of the cluster, made by initdb; kept by replicas and by physical restores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_identifier: Option<String>,
    pub(crate) oid: u32,
    pub(crate) name: String,
    /// Counts promotions and restores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeline: Option<u32>,
    /// When the server was started.
    pub(crate) started: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_standby: bool,
    /// How far the log had been written, or replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lsn: Option<Lsn>,
}

/// A place in the write-ahead log, written as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lsn(pub(crate) u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        let (high, low) = text.split_once('/').ok_or("expected a log position")?;
        let high = half(high).ok_or("expected a log position")?;
        Ok(Self(high << 32 | half(low).ok_or("expected a log position")?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Lsn {
    /// Whether all up to here is on disk, seen `flushed` so far. An idle server stands just behind the header of a page
    /// that it has yet to write to (24 bytes, or 40 in a segment's first page).
    pub(crate) fn is_flushed(self, flushed: Self) -> bool {
        const PAGE: u64 = 8192;
        let is_behind_header = matches!(self.0 % PAGE, 24 | 40) && flushed.0 == self.0 - self.0 % PAGE;
        flushed >= self || is_behind_header
    }
}

/// What became of the database since a state was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incarnation {
    Same,
    /// The server was started anew: what it had not flushed may be gone, and ids that we know may be given out again.
    Restarted,
    /// Another server took over: what had not reached it is gone.
    FailedOver,
    /// A standby that has not replayed yet what was read before: later it will have.
    Behind,
    /// Another database.
    Foreign,
    /// The same one at an earlier time: restored from a backup.
    WentBack,
}

impl DatabaseId {
    /// Whether it is the same database by name: the cluster, as far as both sides know it, and the database in it.
    pub(crate) fn is_same_database(&self, other: &Self) -> bool {
        let is_same_system = match (&self.system_identifier, &other.system_identifier) {
            (Some(known), Some(other)) => known == other,
            _ => true,
        };
        is_same_system && self.oid == other.oid && self.name == other.name
    }

    /// Whether a new connection within a run leads to the same server, which still has all that it has shown.
    pub(crate) fn goes_on_from(&self, before: &Self, shown: Option<Lsn>) -> bool {
        let is_behind =
            matches!((self.lsn, shown), (Some(lsn), Some(shown)) if self.is_standby && lsn < shown);
        self.is_same_incarnation(before) && self.is_standby == before.is_standby && !is_behind
    }

    /// Whether ids and positions known from one mean the same in the other. A standby's start says nothing.
    pub(crate) fn is_same_incarnation(&self, other: &Self) -> bool {
        let is_same_start = self.started == other.started || self.is_standby != other.is_standby;
        self.is_same_database(other)
            && is_same_start
            && (self.timeline == other.timeline || self.is_standby || other.is_standby)
    }

    /// Takes over what the other knows and this does not: a refusal may pass.
    pub(crate) fn completed_by(&mut self, other: &Self) {
        self.timeline = self.timeline.or(other.timeline);
        if self.system_identifier.is_none() {
            self.system_identifier.clone_from(&other.system_identifier);
        }
    }

    /// The names of what was compared, for the receipt.
    pub(crate) fn checks(&self) -> Vec<String> {
        let optional = [
            ("system_identifier", self.system_identifier.is_some()),
            ("timeline", self.timeline.is_some()),
            ("lsn", self.lsn.is_some()),
        ];
        let known = optional.into_iter().filter(|(_, is_known)| *is_known).map(|(name, _)| name);
        known.chain(["database", "started", "xid"]).map(str::to_owned).collect()
    }

    /// Compares a state's database with the one connected to. `newest` and `now` are the highest `xmax` of the state's
    /// snapshots, and that of a snapshot taken now.
    pub(crate) fn compared(&self, current: &Self, newest: u64, now: u64) -> Incarnation {
        if !self.is_same_database(current) {
            return Incarnation::Foreign;
        }
        // A standby's control file may still have the timeline before.
        let is_promoted = match (self.timeline, current.timeline) {
            (Some(known), Some(now)) => now > known || (now != known && !current.is_standby),
            _ => false,
        };
        let is_lsn_back = matches!((self.lsn, current.lsn), (Some(known), Some(now)) if now < known);
        if is_lsn_back || now < newest {
            return match current.is_standby && !is_promoted {
                true => Incarnation::Behind,
                false => Incarnation::WentBack,
            };
        }
        // Between a primary and its standbys there is no restart: each has a start of its own.
        let is_started_anew = self.started != current.started && self.is_standby == current.is_standby;
        match (is_promoted, is_started_anew) {
            (true, _) => Incarnation::FailedOver,
            (false, true) if !current.is_standby => Incarnation::Restarted,
            // A standby has only what its primary had flushed, and replays it again.
            _ => Incarnation::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary() -> DatabaseId {
        DatabaseId {
            system_identifier: Some("7".into()),
            oid: 16384,
            name: "app".into(),
            timeline: Some(1),
            started: "monday".into(),
            is_standby: false,
            lsn: Some(Lsn(1000)),
        }
    }

    #[test]
    fn what_became_of_a_database_is_told() {
        let known = primary();
        let standby = DatabaseId { is_standby: true, started: "sunday".into(), ..primary() };
        for (current, expected) in [
            (primary(), Incarnation::Same),
            (
                DatabaseId { system_identifier: None, timeline: None, lsn: None, ..primary() },
                Incarnation::Same,
            ),
            (DatabaseId { started: "tuesday".into(), ..primary() }, Incarnation::Restarted),
            (
                DatabaseId { timeline: Some(2), started: "tuesday".into(), ..primary() },
                Incarnation::FailedOver,
            ),
            (DatabaseId { timeline: Some(2), lsn: Some(Lsn(900)), ..primary() }, Incarnation::WentBack),
            (DatabaseId { lsn: Some(Lsn(900)), ..primary() }, Incarnation::WentBack),
            (standby.clone(), Incarnation::Same),
            (DatabaseId { lsn: Some(Lsn(900)), ..standby.clone() }, Incarnation::Behind),
            (DatabaseId { oid: 5, ..primary() }, Incarnation::Foreign),
            (DatabaseId { system_identifier: Some("8".into()), ..primary() }, Incarnation::Foreign),
        ] {
            assert_eq!(known.compared(&current, 800, 800), expected, "{current:?}");
        }
        assert_eq!(known.compared(&primary(), 800, 799), Incarnation::WentBack);
        assert_eq!(known.compared(&standby, 800, 799), Incarnation::Behind);
    }

    #[test]
    fn log_positions_read_back_and_an_idle_page_counts_as_flushed() {
        let lsn: Lsn = "16/B374D848".parse().expect("a position");
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert!(["16", "x/1", "1/2/3", "1/100000000"].iter().all(|text| text.parse::<Lsn>().is_err()));
        assert!(lsn.is_flushed(lsn) && !lsn.is_flushed(Lsn(lsn.0 - 1)));
        let page = 5 * 8192;
        assert!(Lsn(page + 24).is_flushed(Lsn(page)) && !Lsn(page + 48).is_flushed(Lsn(page)));
    }
}
