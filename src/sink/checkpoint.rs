//! The checkpoint: the state in S3, moved by compare-and-swap. The swap is the commit; completing the uploads that it
//! names is its redo, which the next run finishes if this one dies.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ulid::Ulid;

use super::batch::Sealed;
use super::manifest::Manifest;
use super::storage::{self, Completion, Condition, Put, Storage};
use crate::cursor::{DatabaseId, Lsn, Observation, State, TableCursor};
use crate::error::{Error, Kind};
use crate::text::timestamp;

pub(super) const KEY: &str = "_state/checkpoint.json";

/// How often a swap is tried again after another run moved other tables.
const SWAP_ATTEMPTS: usize = 8;

const PUBLISHED_AT_ONCE: usize = 8;

/// The checkpoint is written often.
const MOST_FAILURES: usize = 200;
const MOST_MESSAGE_CHARS: usize = 500;

/// What one group of tables changes.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) table: String,
    pub(crate) before: Option<TableCursor>,
    pub(crate) after: TableCursor,
    /// Where the server's log ended after the snapshot that was read with, for the fence.
    pub(crate) lsn: Option<Lsn>,
    /// What makes it visible; `None` where no row was read.
    pub(crate) publication: Option<Publication>,
}

/// Objects to be completed, and the records that name them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Publication {
    pub(crate) batches: Vec<Sealed>,
    pub(crate) manifest_key: String,
    pub(crate) manifest: Manifest,
    pub(crate) schema_key: String,
    pub(crate) schema: Value,
}

/// The object in S3.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// Of this write: whoever finds it knows that its put arrived.
    token: String,
    state: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pending: Vec<Pending>,
    #[serde(default, skip_serializing_if = "Failures::is_empty")]
    failures: Failures,
}

/// What failed last and has not succeeded since. For people: nothing is decided by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failures {
    /// Of the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Failure>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) tables: BTreeMap<String, Failure>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    #[serde(rename = "type")]
    error_type: String,
    message: String,
    /// When it was met first.
    since: String,
}

impl Failures {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn after(&self, run: Option<&Failure>, tables: &[(String, Option<Failure>)]) -> Self {
        let since = |failure: &Failure, before: Option<&Failure>| match before {
            Some(before) if before.error_type == failure.error_type => {
                Failure { since: before.since.clone(), ..failure.clone() }
            }
            _ => failure.clone(),
        };
        let run = run.map(|failure| since(failure, self.run.as_ref()));
        let mut after = Self { run, ..self.clone() };
        for (table, failure) in tables {
            match failure {
                Some(failure) if self.tables.contains_key(table) || after.tables.len() < MOST_FAILURES => {
                    let failure = since(failure, self.tables.get(table));
                    after.tables.insert(table.clone(), failure);
                }
                Some(_) => {}
                None => {
                    after.tables.remove(table);
                }
            }
        }
        after
    }
}

impl Failure {
    pub(super) fn new(error: &Error) -> Self {
        let message = error.to_string().chars().take(MOST_MESSAGE_CHARS).collect();
        Self { error_type: error.kind().name(), message, since: timestamp(Utc::now()) }
    }
}

/// A committed change whose objects may not be visible yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pending {
    table: String,
    /// Where the table goes back to if its uploads are gone.
    before: Option<TableCursor>,
    publication: Publication,
}

/// The checkpoint as this run knows it.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    storage: Storage,
    /// `None`: there is none yet.
    etag: Option<String>,
    /// As stored, apart from what a redo took back: what a swap is compared with.
    state: State,
    pending: Vec<Pending>,
    failures: Failures,
}

impl Checkpoint {
    /// Reads the checkpoint and finishes what an earlier run committed and did not complete.
    ///
    /// # Errors
    /// `CursorInvalid`, `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn load(storage: &Storage) -> Result<Self, Error> {
        let mut checkpoint = Self::read(storage).await?;
        checkpoint.redo().await?;
        Ok(checkpoint)
    }

    async fn read(storage: &Storage) -> Result<Self, Error> {
        let Some((bytes, etag)) = storage.get(KEY).await? else {
            if storage.has_any("manifests/").await? {
                return Err(Error::new(
                    Kind::CursorInvalid,
                    format!(
                        "{} is missing although {} has manifests",
                        storage.uri(KEY),
                        storage.uri("manifests/")
                    ),
                )
                .with_hint(
                    "restore its newest version from the bucket's versions; or, to read everything again, choose \
                     another prefix in OUTPUT_URI, or delete data/ and manifests/ below this one",
                ));
            }
            return Ok(Self {
                storage: storage.clone(),
                etag: None,
                state: State::default(),
                pending: Vec::new(),
                failures: Failures::default(),
            });
        };
        let malformed = || {
            Error::new(
                Kind::CursorInvalid,
                format!("{} is not a checkpoint of this version", storage.uri(KEY)),
            )
            .with_hint("restore it from the bucket's versions")
        };
        let document: Document = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let state = State::parse(&document.state)?;
        let Document { pending, failures, .. } = document;
        Ok(Self { storage: storage.clone(), etag: Some(etag), state, pending, failures })
    }

    /// State, failures, and the tables whose commit is to be finished, as they stand; `None` before the first commit.
    ///
    /// # Errors
    /// `CursorInvalid`, `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn view(
        storage: &Storage,
    ) -> Result<Option<(State, Failures, BTreeSet<String>)>, Error> {
        let checkpoint = Self::read(storage).await?;
        let pending = checkpoint.pending.into_iter().map(|pending| pending.table).collect();
        Ok(checkpoint.etag.map(|_| (checkpoint.state, checkpoint.failures, pending)))
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Tables that have failed and not succeeded since.
    pub(super) fn failing(&self) -> impl Iterator<Item = &String> {
        self.failures.tables.keys()
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Completes what is pending. A table whose uploads are gone goes back to the cursor before, but keeps its number:
    /// some of its objects may be there under it.
    async fn redo(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            tracing::info!(table_count = pending.len(), "finishing the commit of an earlier run");
        }
        let publications: Vec<&Publication> = pending.iter().map(|pending| &pending.publication).collect();
        let completions = completions(&self.storage, &publications).await?;
        let mut taken_back: Vec<&str> = Vec::new();
        for (pending, completion) in pending.iter().zip(completions) {
            // The first that is gone decides: what a later commit of the same table began with is gone, too.
            if completion == Completion::Done || taken_back.contains(&pending.table.as_str()) {
                continue;
            }
            tracing::warn!(table = pending.table, "uploads of an earlier run are gone, reading them again");
            taken_back.push(&pending.table);
            if let Some(cursor) = self.state.tables.get_mut(&pending.table) {
                *cursor = match &pending.before {
                    Some(before) => TableCursor { seq: cursor.seq, ..before.clone() },
                    None => TableCursor::forgotten(cursor.seq),
                };
            }
        }
        Ok(())
    }

    /// The commit: one swap of the checkpoint, with what is to be made visible as `pending`.
    ///
    /// # Errors
    /// `CheckpointConflict` if another run moved one of the tables; `StorageDenied`, `StorageUnavailable`. After any of
    /// them the uploads may be aborted: should the put have arrived after all, its redo finds them gone and takes the
    /// tables back.
    pub(crate) async fn swap(
        &mut self,
        database: Option<&DatabaseId>,
        observed: Option<&Observation>,
        changes: &[Change],
    ) -> Result<(), Error> {
        for _ in 0..SWAP_ATTEMPTS {
            let mut state = self.state.clone();
            state.database = database.cloned();
            state.observed = observed.cloned();
            for change in changes {
                state.tables.insert(change.table.clone(), change.after.clone());
            }
            let pending = changes.iter().filter_map(|change| {
                let publication = change.publication.clone()?;
                Some(Pending { table: change.table.clone(), before: change.before.clone(), publication })
            });
            if self.put(state, pending.collect()).await? {
                return Ok(());
            }
            self.merge(database, changes).await?;
        }
        Err(conflict("the checkpoint was moved by other runs again and again"))
    }

    /// Completes what the last swap made pending, and takes it out of the checkpoint.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`: it is committed all the same, and the next run goes on with it.
    pub(crate) async fn publish(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let publications: Vec<&Publication> =
            self.pending.iter().map(|pending| &pending.publication).collect();
        publish_all(&self.storage, &publications).await?;
        // Another run that swapped meanwhile has completed it, too, and took it out.
        self.put(self.state.clone(), Vec::new()).await?;
        self.pending.clear();
        Ok(())
    }

    /// Takes over what another run committed, if it moved none of our tables.
    async fn merge(&mut self, database: Option<&DatabaseId>, changes: &[Change]) -> Result<(), Error> {
        let current = Self::load(&self.storage).await?;
        if let (Some(known), Some(database)) = (&current.state.database, database)
            && !known.is_same_incarnation(database)
        {
            return Err(conflict("another run has met another incarnation of the database meanwhile"));
        }
        let has_moved = |change: &&Change| {
            current.state.tables.get(&change.table) != self.state.tables.get(&change.table)
        };
        if let Some(change) = changes.iter().find(has_moved) {
            return Err(conflict(format!("another run has moved table {} meanwhile", change.table)));
        }
        *self = current;
        Ok(())
    }

    /// One compare-and-swap; true if it is ours.
    async fn put(&mut self, state: State, pending: Vec<Pending>) -> Result<bool, Error> {
        let token = Ulid::generate().to_string();
        let failures = self.failures.clone();
        let document =
            Document { version: 1, token: token.clone(), state: state.to_value(), pending, failures };
        let body = serde_json::to_vec(&document).expect("a checkpoint has string keys only");
        let condition = self.etag.as_deref().map_or(Condition::Absent, Condition::Unchanged);
        let etag = match self.storage.put(KEY, body, condition).await {
            Ok(Put::Done(etag)) => Some(etag),
            // The SDK repeats a put whose reply was lost, and the repetition is refused by our own first success.
            Ok(Put::Refused) => self.own_etag(&token).await?,
            Err(error) if error.kind() == Kind::StorageUnavailable => {
                Some(self.own_etag(&token).await?.ok_or(error)?)
            }
            Err(error) => return Err(error),
        };
        let is_ours = etag.is_some();
        if let Some(etag) = etag {
            let Document { pending, failures, .. } = document;
            *self = Self { storage: self.storage.clone(), etag: Some(etag), state, pending, failures };
        }
        Ok(is_ours)
    }

    /// The stored checkpoint's entity tag, if it is the one written with `token`.
    async fn own_etag(&self, token: &str) -> Result<Option<String>, Error> {
        let Some((bytes, etag)) = self.storage.get(KEY).await? else { return Ok(None) };
        let document: Option<Document> = serde_json::from_slice(&bytes).ok();
        Ok(document.filter(|document| document.token == token).map(|_| etag))
    }

    /// Puts down what failed and takes out what did not, if that is news. A failure before the first commit is not kept: nothing
    /// is there yet.
    ///
    /// # Errors
    /// `CursorInvalid`, `StorageDenied`, `StorageUnavailable`.
    pub(super) async fn remember(
        &mut self,
        run: Option<&Failure>,
        tables: &[(String, Option<Failure>)],
    ) -> Result<(), Error> {
        for _ in 0..SWAP_ATTEMPTS {
            let failures = self.failures.after(run, tables);
            if failures == self.failures || self.etag.is_none() {
                break;
            }
            self.failures = failures;
            if self.put(self.state.clone(), self.pending.clone()).await? {
                break;
            }
            *self = Self::load(&self.storage).await?;
        }
        Ok(())
    }

    /// Forgets the positions of tables, so that the next sync reads them whole; their numbers go on.
    ///
    /// # Errors
    /// As [`Self::swap`]; `InvalidRequest` for a table without a cursor.
    pub(crate) async fn forget(&mut self, tables: &[String]) -> Result<(), Error> {
        let mut changes = Vec::new();
        for table in tables {
            let Some(cursor) = self.state.tables.get(table) else {
                let context = format!("table {table} has no cursor in {}", self.storage.uri(KEY));
                return Err(Error::new(Kind::InvalidRequest, context));
            };
            changes.push(Change {
                table: table.clone(),
                before: Some(cursor.clone()),
                after: TableCursor::forgotten(cursor.seq),
                lsn: None,
                publication: None,
            });
        }
        let (database, observed) = (self.state.database.clone(), self.state.observed.clone());
        self.swap(database.as_ref(), observed.as_ref(), &changes).await
    }
}

/// Makes commits visible.
///
/// # Errors
/// `StorageDenied`, `StorageUnavailable`; the latter also where an upload is gone.
pub(super) async fn publish_all(storage: &Storage, publications: &[&Publication]) -> Result<(), Error> {
    if completions(storage, publications).await?.contains(&Completion::Gone) {
        return Err(storage::vanished());
    }
    Ok(())
}

/// Publishes some at a time; what became of each, in their order.
async fn completions(storage: &Storage, publications: &[&Publication]) -> Result<Vec<Completion>, Error> {
    let publishing: Vec<_> =
        publications.iter().map(|publication| publish(storage, publication).boxed()).collect();
    stream::iter(publishing).buffered(PUBLISHED_AT_ONCE).try_collect().await
}

/// Makes the objects of a commit visible, then its schema and manifest: a manifest names complete objects only.
/// Idempotent.
async fn publish(storage: &Storage, publication: &Publication) -> Result<Completion, Error> {
    for batch in &publication.batches {
        if storage.complete(&batch.upload, &batch.parts).await? == Completion::Gone {
            return Ok(Completion::Gone);
        }
    }
    let schema = serde_json::to_vec_pretty(&publication.schema).expect("a schema has string keys only");
    storage.put(&publication.schema_key, schema, Condition::Absent).await?;
    let manifest = serde_json::to_vec_pretty(&publication.manifest).expect("a manifest has string keys only");
    storage.put(&publication.manifest_key, manifest, Condition::Always).await?;
    Ok(Completion::Done)
}

fn conflict(context: impl Into<String>) -> Error {
    Error::new(Kind::CheckpointConflict, context).with_hint(
        "nothing of this group of tables was published; the next run goes on from the other's cursor",
    )
}
