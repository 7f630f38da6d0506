//! Who keeps the cursors: the checkpoint, or the caller. Changes are staged table by table and committed as a group.

use std::time::{Duration, Instant};

use super::checkpoint::{self, Change, Checkpoint, Failure, Publication};
use super::storage::Storage;
use crate::config::OnNewDatabase;
use crate::cursor::{DatabaseId, Fence, Incarnation, Listing, Lsn, Observation, State, TableCursor};
use crate::error::{Error, Kind};
use crate::table_name::TableName;
use crate::text::elapsed_ms;

/// A long run commits in between, so that a crash costs little.
const GROUP_AGE: Duration = Duration::from_secs(60);
const GROUP_BYTES: u64 = 1 << 30;
/// What a redo completes must fit into a short run.
const GROUP_CHANGES: usize = 50;

/// Of all tables' sets of transactions together, in a state that callers hold, and in a checkpoint.
const MOST_SET_BYTES_HELD: usize = 96 << 10;
const MOST_SET_BYTES_STORED: usize = 4 << 20;

/// The cursors of this run.
#[derive(Debug)]
pub(crate) struct Ledger {
    keeper: Keeper,
    /// As committed so far.
    state: State,
    staged: Vec<Change>,
    group_began: Instant,
    group_bytes: u64,
    notes: Vec<String>,
    /// How the tables of this run fared.
    fared: Vec<(String, Option<Failure>)>,
}

/// The truth about the cursors.
#[derive(Debug)]
enum Keeper {
    Checkpoint(Box<Checkpoint>),
    /// The caller passes the state in and out. Objects, if any, appear before the answer.
    Caller(Option<Storage>),
}

impl Ledger {
    /// The checkpoint's cursors, after finishing what an earlier run left pending.
    ///
    /// # Errors
    /// `CursorInvalid`, `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn of_checkpoint(storage: &Storage) -> Result<Self, Error> {
        let checkpoint = Checkpoint::load(storage).await?;
        let state = checkpoint.state().clone();
        Ok(Self::new(Keeper::Checkpoint(Box::new(checkpoint)), state))
    }

    /// The caller's cursors. Without a storage rows go into the answer.
    ///
    /// # Errors
    /// `InvalidRequest` where the prefix has a checkpoint: two sequences of numbers would overwrite each other's objects.
    /// `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn of_caller(state: State, storage: Option<Storage>) -> Result<Self, Error> {
        if let Some(storage) = &storage
            && storage.has_any(checkpoint::KEY).await?
        {
            let context =
                format!("{} has a checkpoint, so that no caller can hold the state", storage.uri(""));
            return Err(Error::new(Kind::InvalidRequest, context).with_hint(
                "leave `state` out, or give this caller a function with an OUTPUT_URI of its own",
            ));
        }
        Ok(Self::new(Keeper::Caller(storage), state))
    }

    /// The number of a table's last commit, `known` to the state. A caller that begins anew with `{}`, or repeats a call whose
    /// answer was lost, must go on counting after what lies there, or its rows would look older than those.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn last_seq(&self, table: &TableName, known: u64) -> Result<u64, Error> {
        match &self.keeper {
            Keeper::Caller(Some(storage)) => {
                storage.last_number(&format!("manifests/{}/", table.to_key()), known).await
            }
            Keeper::Checkpoint(_) | Keeper::Caller(None) => Ok(known),
        }
    }

    fn new(keeper: Keeper, state: State) -> Self {
        Self {
            keeper,
            state,
            staged: Vec::new(),
            group_began: Instant::now(),
            group_bytes: 0,
            notes: Vec::new(),
            fared: Vec::new(),
        }
    }

    /// The cursors as committed so far.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Takes what was just seen in flight over into the state.
    pub(crate) fn observe(&mut self, listing: Listing) -> &Observation {
        let observation = Observation::new(listing, self.state.observed.as_ref());
        self.state.observed.insert(observation)
    }

    /// Makes sure that the state belongs to this incarnation of this database, takes back what does not hold in it any more,
    /// or starts anew where that is configured. `xmax`: of a snapshot taken now.
    ///
    /// # Errors
    /// `CursorInvalid`; `DatabaseUnavailable` for a standby that is behind what was read.
    pub(crate) fn adopt(
        &mut self,
        id: &DatabaseId,
        xmax: u64,
        on_new_database: OnNewDatabase,
    ) -> Result<(), Error> {
        let newest = self.state.newest_xid();
        let Some(known) = self.state.database.replace(id.clone()) else { return Ok(()) };
        if let Some(database) =
            self.state.database.as_mut().filter(|database| database.is_same_database(&known))
        {
            database.completed_by(&known);
        }
        let incarnation = known.compared(id, newest, xmax);
        let is_new = matches!(incarnation, Incarnation::Foreign | Incarnation::WentBack);
        match incarnation {
            Incarnation::Same => return Ok(()),
            Incarnation::Behind => {
                return Err(Error::new(
                    Kind::DatabaseUnavailable,
                    "the standby has not replayed yet what was read before",
                )
                .with_hint("it will have soon; if it stands still, look at its replication"));
            }
            Incarnation::Foreign | Incarnation::WentBack if on_new_database == OnNewDatabase::Refuse => {
                let context = match incarnation {
                    Incarnation::WentBack => {
                        format!("database {} is at an earlier time than the state", id.name)
                    }
                    _ => format!(
                        "the state belongs to another database ({}) than the one connected to ({})",
                        known.name, id.name
                    ),
                };
                return Err(Error::new(Kind::CursorInvalid, context).with_hint(
                    "if it was restored from a backup, or is meant to be another one, set ON_NEW_DATABASE=resync to read \
                     everything again; else restore the right secret",
                ));
            }
            Incarnation::Foreign | Incarnation::WentBack => {
                self.note("the database is another one, or restored: everything is read again");
            }
            Incarnation::Restarted => {}
            Incarnation::FailedOver => {
                self.note(
                    "another server has taken over: what it may not have received was read again by its cursor column; if \
                     commits were lost, resync",
                );
            }
        }
        if is_new || incarnation == Incarnation::FailedOver {
            // Of other transactions, by another clock.
            self.state.observed = None;
        }
        for (table, before) in self.state.tables.clone() {
            let after = match incarnation {
                _ if is_new => TableCursor::forgotten(before.seq),
                Incarnation::FailedOver => before.uncertain(),
                // What was delivered may be gone, and what it replaced be back, with any time.
                _ if before.fence == Fence::TimedOut => {
                    self.note("the server was restarted after a commit that it may have lost: tables are read again");
                    TableCursor::forgotten(before.seq)
                }
                _ if before.fence == Fence::None && before.oid != 0 => {
                    self.note(
                        "the server was restarted: what it may have lost was read again by its cursor column",
                    );
                    before.uncertain()
                }
                _ => continue,
            };
            self.state.tables.insert(table.clone(), after.clone());
            self.staged.push(Change { table, before: Some(before), after, lsn: None, publication: None });
        }
        Ok(())
    }

    pub(crate) fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|known| known == note) {
            tracing::warn!("{note}");
            self.notes.push(note.to_owned());
        }
    }

    /// What people should know about this run.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the server's log ended after what is staged was read; `None` where nothing of the sort is staged.
    pub(crate) fn staged_lsn(&self) -> Option<Option<Lsn>> {
        let read = self
            .staged
            .iter()
            .filter(|change| change.after.snapshot.is_some() || change.after.window.is_some());
        read.map(|change| change.lsn).reduce(Option::max)
    }

    /// Adds a table's change to the group. Its sets of transactions are thinned if the state has no room for them.
    pub(crate) fn stage(&mut self, mut change: Change) {
        let most = match &self.keeper {
            Keeper::Checkpoint(_) => MOST_SET_BYTES_STORED,
            Keeper::Caller(_) => MOST_SET_BYTES_HELD,
        };
        let others = self.state.tables.iter().filter(|(table, _)| **table != change.table);
        let taken: usize = others.map(|(_, cursor)| cursor.set_bytes()).sum();
        if change.after.thin(most.saturating_sub(taken)) {
            self.note(
                "a transaction has been open for very long: rows written since it began are delivered again",
            );
        }
        self.group_bytes += change.publication.as_ref().map_or(0, |publication| publication.manifest.bytes);
        self.staged.push(change);
    }

    /// Whether the group is old or large enough to be committed in between. Never where the caller keeps the cursors: it
    /// would repeat a run that failed later, and what that run had published would have higher numbers than the repetition.
    pub(crate) fn is_group_due(&self) -> bool {
        let is_due = self.group_began.elapsed() >= GROUP_AGE
            || self.group_bytes >= GROUP_BYTES
            || self.staged.len() >= GROUP_CHANGES;
        is_due && self.keeps_cursors()
    }

    /// Commits the group: from here on its cursors are the truth, and its objects visible. `fence`: of what was read.
    ///
    /// # Errors
    /// `CheckpointConflict`, `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn commit(&mut self, fence: Option<Fence>) -> Result<(), Error> {
        if let (Some(Fence::Passed), Some(lsn), Some(database)) =
            (fence, self.staged_lsn().flatten(), &mut self.state.database)
        {
            // No server that is behind this has what was read.
            database.lsn = database.lsn.max(Some(lsn));
        }
        let mut changes = std::mem::take(&mut self.staged);
        for change in &mut changes {
            change.after.fence = fence.unwrap_or(change.after.fence);
            if let Some(publication) = &mut change.publication {
                publication.manifest.receipt.fence = change.after.fence;
            }
        }
        (self.group_began, self.group_bytes) = (Instant::now(), 0);
        if changes.is_empty() {
            return Ok(());
        }
        let (began, commit_count) = (Instant::now(), changes.len());
        self.commit_changes(changes).await?;
        tracing::info!(commit_count, elapsed_ms = elapsed_ms(began), "committed");
        Ok(())
    }

    async fn commit_changes(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        match &mut self.keeper {
            Keeper::Checkpoint(checkpoint) => {
                if let Err(error) = checkpoint
                    .swap(self.state.database.as_ref(), self.state.observed.as_ref(), &changes)
                    .await
                {
                    abort(checkpoint.storage(), &changes).await;
                    return Err(error);
                }
                // With what other runs have committed meanwhile.
                self.state = checkpoint.state().clone();
                checkpoint.publish().await
            }
            Keeper::Caller(storage) => {
                if let Some(storage) = storage {
                    let publications: Vec<&Publication> =
                        changes.iter().filter_map(|change| change.publication.as_ref()).collect();
                    if let Err(error) = checkpoint::publish_all(storage, &publications).await {
                        abort(storage, &changes).await;
                        return Err(error);
                    }
                }
                self.state.tables.extend(changes.into_iter().map(|change| (change.table, change.after)));
                Ok(())
            }
        }
    }

    /// Whether a run that fails can keep what it has staged: a caller would not learn of it.
    pub(crate) fn keeps_cursors(&self) -> bool {
        matches!(self.keeper, Keeper::Checkpoint(_))
    }

    /// Takes down how a table fared.
    pub(crate) fn fared(&mut self, table: &TableName, error: Option<&Error>) {
        self.fared.push((table.to_string(), error.map(Failure::new)));
    }

    /// Forgets the failures of tables that are no more.
    pub(crate) fn outlives(&mut self, is_there: impl Fn(&TableName) -> bool) {
        let Keeper::Checkpoint(checkpoint) = &self.keeper else { return };
        let is_gone = |name: &&String| TableName::parse(name).is_ok_and(|table| !is_there(&table));
        self.fared.extend(checkpoint.failing().filter(is_gone).map(|name| (name.clone(), None)));
    }

    /// Keeps what failed for `status`, where there is a checkpoint. `error`: the run's.
    pub(crate) async fn remember(&mut self, error: Option<&Error>) {
        // A run that another was ahead of has not failed.
        if error.is_some_and(|error| error.kind() == Kind::CheckpointConflict) {
            return;
        }
        // A table's own is no failure of the run.
        let has_failed_table = self.fared.iter().any(|(_, failure)| failure.is_some());
        let run = error.filter(|error| !(error.kind().is_of_table() && has_failed_table)).map(Failure::new);
        if let Keeper::Checkpoint(checkpoint) = &mut self.keeper
            && let Err(error) = checkpoint.remember(run.as_ref(), &self.fared).await
        {
            tracing::warn!(error = %error, "the failure is not in the checkpoint");
        }
    }

    /// Gives up what is staged and not committed.
    pub(crate) async fn abandon(&mut self) {
        let changes = std::mem::take(&mut self.staged);
        match &self.keeper {
            Keeper::Checkpoint(checkpoint) => abort(checkpoint.storage(), &changes).await,
            Keeper::Caller(Some(storage)) => abort(storage, &changes).await,
            Keeper::Caller(None) => {}
        }
    }
}

async fn abort(storage: &Storage, changes: &[Change]) {
    let publications = changes.iter().filter_map(|change| change.publication.as_ref());
    for batch in publications.flat_map(|publication| &publication.batches) {
        storage.abort(&batch.upload).await;
    }
}
