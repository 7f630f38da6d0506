//! A model of the database, and the cursor held against it: transactions and subtransactions that begin, write, commit and
//! abort between any two steps of a sync; snapshots; ids that cross 2³¹ and 2³²; rows frozen an age ago; runs that crash. Every
//! decision is the product's own; the model only plays PostgreSQL and the loop around.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use harness::Random;

use super::*;

const SLACK: i64 = 5;
const EPOCH: u64 = 1 << 32;

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
}

/// One version of a row, at its place.
#[derive(Debug, Clone)]
struct Version {
    place: u32,
    key: u64,
    xid: u64,
    /// `None`: NULL.
    time: Option<i64>,
    is_visible: bool,
    /// Its id may be taken for a later one.
    is_old: bool,
}

/// A transaction in flight: its own ids come first, those of subtransactions after.
#[derive(Debug)]
struct Transaction {
    id: u64,
    began: i64,
    /// Each with whether it was rolled back to a savepoint.
    xids: Vec<(u64, bool)>,
    is_prepared: bool,
}

#[derive(Debug)]
struct World {
    random: Random,
    clock: i64,
    next_xid: u64,
    latest_completed: u64,
    next_id: u64,
    in_flight: Vec<Transaction>,
    versions: Vec<Version>,
    sees_starts: bool,
    /// Not while a transaction of ours looks.
    may_jump: bool,
    /// Nothing happens any more.
    is_over: bool,
}

impl World {
    fn new(mut random: Random) -> Self {
        let near = [800, 1 << 31, EPOCH, EPOCH + (1 << 31), 3 * EPOCH][random.index(5)];
        let next_xid = near + random.below(40) - random.below(40);
        let mut world = Self {
            sees_starts: random.below(2) == 0,
            may_jump: true,
            is_over: false,
            random,
            clock: 100,
            next_xid,
            latest_completed: next_xid - 1,
            next_id: 1,
            in_flight: Vec::new(),
            versions: Vec::new(),
        };
        // Rows of an age ago, with the ids that come next in their lower half.
        for key in 0..world.random.below(12) {
            let xid = (next_xid + world.random.below(60)).checked_sub(EPOCH).filter(|xid| low(*xid) >= 3);
            let Some(xid) = xid else { continue };
            world.add(10_000 + key, xid, Some(3), true);
        }
        world
    }

    fn add(&mut self, key: u64, xid: u64, time: Option<i64>, is_old: bool) {
        let place = u32::try_from(self.versions.len()).expect("few") + 1;
        self.versions.push(Version { place, key, xid, time, is_visible: is_old, is_old });
    }

    fn new_xid(&mut self) -> u64 {
        while low(self.next_xid) < 3 {
            self.next_xid += 1;
        }
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// Something happens, or nothing.
    fn step(&mut self) {
        self.clock += i64::from(self.random.below(3) == 0);
        let which = if self.in_flight.is_empty() { 0 } else { self.random.index(self.in_flight.len()) };
        match self.random.below(9) {
            0 | 1 if self.in_flight.len() < 6 => {
                let (id, began) = (self.next_id, self.clock);
                self.next_id += 1;
                self.in_flight.push(Transaction { id, began, xids: Vec::new(), is_prepared: false });
            }
            2..=4 if !self.in_flight.is_empty() && !self.in_flight[which].is_prepared => self.write(which),
            5 | 6 if !self.in_flight.is_empty() => self.end(which),
            7 if !self.in_flight.is_empty() && !self.in_flight[which].xids.is_empty() => {
                self.in_flight[which].is_prepared = true;
            }
            8 if self.may_jump && self.in_flight.iter().all(|transaction| transaction.xids.is_empty()) => {
                // Idle for long, as far as this table goes.
                let far = [1, 100, 1 << 20, (1 << 31) - 2_000_000, 1 << 31][self.random.index(5)];
                self.next_xid += self.random.below(far) + 1;
                while low(self.next_xid) < 3 {
                    self.next_xid += 1;
                }
                self.latest_completed = self.next_xid - 1;
            }
            _ => {}
        }
    }

    fn steps(&mut self) {
        for _ in 0..self.random.below(6) {
            if self.is_over {
                return;
            }
            self.step();
        }
    }

    /// A row is written, perhaps in a subtransaction, which may be rolled back later.
    fn write(&mut self, which: usize) {
        let is_new_sub = self.random.below(3) == 0 && self.in_flight[which].xids.len() < 4;
        if self.in_flight[which].xids.is_empty() || is_new_sub {
            // A subtransaction's id is above that of its top-level transaction.
            let xid = self.new_xid();
            let is_rolled_back = !self.in_flight[which].xids.is_empty() && self.random.below(4) == 0;
            self.in_flight[which].xids.push((xid, is_rolled_back));
        }
        let xids = &self.in_flight[which].xids;
        let (xid, _) = xids[self.random.index(xids.len())];
        let began = self.in_flight[which].began;
        let time = match self.random.below(12) {
            0 => None,
            1 => Some(1_000_000),
            _ => Some(began - self.random.below(SLACK.unsigned_abs() + 1).cast_signed()),
        };
        let key = self.random.below(30);
        self.add(key, xid, time, false);
    }

    fn end(&mut self, which: usize) {
        let transaction = self.in_flight.remove(which);
        let is_committed = self.random.below(5) > 0;
        for (xid, is_rolled_back) in &transaction.xids {
            self.latest_completed = self.latest_completed.max(*xid);
            if !is_committed || *is_rolled_back {
                continue;
            }
            // The last version of a key takes the place of those before.
            let written: Vec<usize> = (0..self.versions.len())
                .filter(|i| self.versions[*i].xid == *xid && !self.versions[*i].is_old)
                .collect();
            for i in written {
                let key = self.versions[i].key;
                for version in &mut self.versions {
                    version.is_visible &= version.key != key;
                }
                self.versions[i].is_visible = true;
            }
        }
    }

    fn snapshot(&self) -> (Snapshot, Vec<u64>) {
        let running: Vec<u64> =
            self.in_flight.iter().filter_map(|transaction| Some(transaction.xids.first()?.0)).collect();
        let xmax = self.latest_completed + 1;
        let xmin = running.iter().copied().filter(|xid| *xid < xmax).min().unwrap_or(xmax);
        // PostgreSQL's xmin is that of the running, even beyond xmax.
        let text = format!(
            "{xmin}:{xmax}:{}",
            running.iter().filter(|xid| **xid < xmax).map(u64::to_string).collect::<Vec<_>>().join(",")
        );
        Snapshot::parse(&text).expect("a snapshot")
    }

    fn locked(&self) -> Vec<u32> {
        self.in_flight.iter().flat_map(|transaction| &transaction.xids).map(|(xid, _)| low(*xid)).collect()
    }

    /// As PostgreSQL's `age`.
    fn age(&self, xmin: u32) -> i32 {
        if xmin < 3 { i32::MAX } else { low(self.next_xid).wrapping_sub(xmin).cast_signed() }
    }

    fn holds(&self, condition: &Condition, xmin: u32) -> bool {
        let is_newer = |distance: u64| {
            (1..=i64::try_from(distance).expect("small")).contains(&i64::from(self.age(xmin)))
        };
        condition.newer.is_none_or(is_newer)
            && !condition.except.contains(&xmin)
            && condition
                .frozen
                .as_ref()
                .is_none_or(|(distance, visible)| !is_newer(*distance) || visible.contains(&xmin))
    }

    fn observe(&mut self, last: Option<&Observation>) -> Observation {
        let at = time(self.clock);
        self.steps();
        let sees_starts = self.sees_starts;
        let started = |transaction: &Transaction| sees_starts.then(|| time(transaction.began));
        let in_flight = self.in_flight.iter().filter(|transaction| !transaction.is_prepared);
        let in_flight =
            in_flight.map(|transaction| (transaction.id.to_string(), started(transaction))).collect();
        self.steps();
        let prepared = self.in_flight.iter().filter(|transaction| transaction.is_prepared);
        let prepared = prepared.map(|transaction| low(transaction.xids[0].0).to_string()).collect();
        self.steps();
        let xmax = self.snapshot().0.xmax;
        let listing =
            Listing { at, started: "today".to_owned(), is_standby: false, in_flight, prepared, xmax };
        Observation::new(listing, last)
    }
}

#[derive(Debug)]
struct Reader {
    cursor: TableCursor,
    observed: Option<Observation>,
    /// How often each version came, by its place.
    delivered: BTreeMap<u32, usize>,
    /// What may come again: it was read anew because ids were out of reach.
    may_repeat: bool,
    /// The last window was read in its snapshot's own transaction, all of it.
    is_caught_up: bool,
}

/// What a page of the model is in the order of.
type Order = (u8, i64, u64, u32);

impl Reader {
    fn new() -> Self {
        let cursor = TableCursor::at_start(0, 1, String::new());
        Self { cursor, observed: None, delivered: BTreeMap::new(), may_repeat: false, is_caught_up: false }
    }

    /// One transaction of a sync; what it read is committed, or a crash takes all of it.
    fn share(&mut self, world: &mut World, is_unlimited: bool, last: &mut Option<Order>) {
        let mut cursor = self.cursor.clone();
        let observation = match (&self.observed, cursor.window.is_some()) {
            (Some(observed), true) => observed.clone(),
            (observed, _) => world.observe(observed.as_ref()),
        };
        world.steps();
        // The transaction's snapshot, and what it shows.
        let (mut snapshot, mut shown, mut doubt);
        let mut running: Vec<(i64, Vec<(u64, bool)>)>;
        let mut looks = 0;
        loop {
            let in_progress;
            (snapshot, in_progress) = world.snapshot();
            running = world
                .in_flight
                .iter()
                .map(|transaction| (transaction.began, transaction.xids.clone()))
                .collect();
            shown = world.versions.iter().filter(|version| version.is_visible).cloned().collect::<Vec<_>>();
            world.may_jump = false;
            world.steps();
            world.may_jump = true;
            doubt = Doubt::new(snapshot, &in_progress, Some(&world.locked()));
            looks += 1;
            if !doubt.is_passing() || looks == 9 {
                break;
            }
        }
        self.may_repeat |= doubt.is_passing();
        let next_xid = next(snapshot, world.age(3));
        assert_eq!(next_xid, world.next_xid);

        let mut is_own = false;
        let mut is_partial = false;
        let mut window = match cursor.window.take() {
            Some(window) if distance(window.snapshot.xmin, next_xid).is_some() => window,
            dropped => {
                self.may_repeat |= dropped.is_some();
                (is_own, *last) = (true, None);
                if cursor.is_out_of_reach(next_xid) {
                    cursor.forget_delivered();
                    self.may_repeat = true;
                }
                let is_range = cursor.watermark.is_some() && world.random.below(5) > 0;
                is_partial = !is_range && !is_unlimited && world.random.below(3) == 0;
                let watermark = Window::watermark(&observation, snapshot, is_partial);
                let position = if is_range { Position::Range { after: None } } else { Position::scan() };
                let scope =
                    if is_partial { Scope::Frozen { visible: XidSet::default() } } else { Scope::Whole };
                Window {
                    as_of: observation.at,
                    watermark,
                    snapshot,
                    scope,
                    leaves: Leaves::default(),
                    lsn: None,
                    position,
                }
            }
        };
        let is_scan = window.position.is_scan();
        let bound = cursor.bound(TimeDelta::seconds(SLACK)).filter(|_| !is_scan);
        let in_range = |version: &Version| match (version.time, bound) {
            (Some(at), Some(bound)) => time(at) >= bound,
            _ => true,
        };
        let freeze = || {
            let from = distance(snapshot.xmin, next_xid).expect("near");
            let from = Condition { newer: Some(from), ..Condition::default() };
            let xids = shown.iter().filter(|version| in_range(version)).map(|version| low(version.xid));
            let xids: Vec<u64> =
                xids.filter(|xid| world.holds(&from, *xid)).map(|xid| rebuilt(xid, next_xid)).collect();
            doubt.visible(snapshot, xids.into_iter())
        };
        if is_own && window.scope == Scope::Whole && !is_unlimited && world.random.clone().below(4) == 0 {
            window.scope = Scope::Frozen { visible: freeze() };
        }
        let filter = Filter::new(&cursor, &window, next_xid, false);
        let condition = filter.condition();
        let order = |version: &Version| match (is_scan, version.time) {
            (true, _) => (0, 0, 0, version.place),
            (false, Some(at)) => (0, at, version.key, 0),
            (false, None) => (1, 0, version.key, 0),
        };
        let mut rows: Vec<&Version> = shown.iter().filter(|version| in_range(version)).collect();
        rows.sort_by_key(|version| order(version));
        rows.retain(|version| last.is_none_or(|last| order(version) > last));
        let sent: Vec<&Version> = rows
            .into_iter()
            .filter(|version| {
                let xmin = low(version.xid);
                let is_admitted = filter.admits(filter.xid(xmin));
                assert!(
                    !is_admitted || world.holds(&condition, xmin),
                    "the server leaves out {version:?}: {condition:?}"
                );
                is_admitted
            })
            .collect();
        let limit = if is_unlimited { usize::MAX } else { 1 + world.random.clone().index(8) };
        let is_complete = sent.len() < limit;
        let read: Vec<&Version> = sent.into_iter().take(limit).collect();
        let xids: Vec<u64> = read.iter().map(|version| filter.xid(low(version.xid))).collect();
        for version in &read {
            assert!(filter.xid(low(version.xid)) >= version.xid, "L3: {version:?}");
        }
        let visible = match &window.scope {
            Scope::Whole if is_complete => doubt.visible(snapshot, xids.into_iter()),
            Scope::Whole => freeze(),
            Scope::Frozen { visible } => visible.clone(),
        };
        let after = if is_complete {
            cursor.completed(&window, &visible, next_xid)
        } else {
            window.scope = Scope::Frozen { visible };
            TableCursor { window: Some(window), ..cursor }
        };
        // What the proof rests on.
        if is_own && is_complete {
            for (began, xids) in &running {
                assert!(xids.iter().all(|(xid, _)| *xid >= snapshot.xmin), "L1: {xids:?}");
                assert!(!xids.iter().any(|(xid, _)| after.delivered.contains(*xid)), "L2: {xids:?}");
                assert!(after.watermark.is_none_or(|watermark| watermark <= time(*began)), "L4: {began}");
            }
        }
        let read: Vec<Version> = read.into_iter().cloned().collect();
        // A crash before the commit leaves nothing.
        if world.random.below(10) == 0 && !is_unlimited {
            return;
        }
        if let Some(version) = read.last() {
            *last = Some(order(version));
        }
        self.is_caught_up = is_complete && is_own && !is_partial;
        (self.cursor, self.observed) = (after, Some(observation));
        for version in read {
            let count = self.delivered.entry(version.place).or_default();
            *count += 1;
            // Whose id may be taken for a later one, comes again.
            let is_old = version.is_old || next_xid - version.xid > 1 << 31;
            assert!(*count == 1 || is_old || self.may_repeat, "repeated: {version:?}");
        }
    }
}

fn play(seed: u64) {
    let mut world = World::new(Random::new(seed));
    let (mut reader, mut last) = (Reader::new(), None);
    for _ in 0..30 {
        world.steps();
        // Through the state's text, as from run to run.
        let mut state = State { observed: reader.observed.clone(), ..State::default() };
        state.tables.insert("public.t".to_owned(), reader.cursor.clone());
        let state = State::parse(&state.to_value()).expect("our own state");
        (reader.cursor, reader.observed) = (state.tables["public.t"].clone(), state.observed);
        reader.share(&mut world, false, &mut last);
    }
    // All ends; what is there is caught up with.
    while !world.in_flight.is_empty() {
        world.end(0);
    }
    (reader.is_caught_up, world.is_over) = (false, true);
    while !reader.is_caught_up {
        reader.share(&mut world, true, &mut last);
    }
    let is_lost = |version: &&Version| version.is_visible && !reader.delivered.contains_key(&version.place);
    let lost: Vec<&Version> = world.versions.iter().filter(is_lost).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn no_schedule_loses_or_repeats_a_row() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = setting("MODEL_SEED").unwrap_or_else(Random::new_seed);
    for seed in first..first + setting("MODEL_CASES").unwrap_or(10_000) {
        let outcome = std::panic::catch_unwind(|| play(seed));
        assert!(outcome.is_ok(), "MODEL_SEED={seed} MODEL_CASES=1");
    }
}
