//! The objects of one table's commit: batches one after the other, all of one `seq`. What compresses and hashes them has a
//! thread of its own, and gzip as many as there are cores, so that it goes on beside the tunnel and the rows.

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;

use super::batch::{Batch, Sealed};
use super::buffers::{Buffers, ROWS_BYTES};
use super::storage::Storage;
use crate::config::Compression;
use crate::error::{Error, Kind};

/// How objects are made, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) compression: Compression,
    pub(crate) target_file_bytes: u64,
}

/// Whole rows as NDJSON, and their room in the memory until the last of them is compressed.
struct Rows {
    json: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Rows {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

/// Writes rows into objects of about the target size. Dropped without being sealed it is given up.
#[derive(Debug)]
pub(crate) struct TableWriter {
    buffers: Buffers,
    /// As long as this is held the rows are wanted.
    wanted: oneshot::Sender<()>,
    /// And how many they are.
    rows: mpsc::UnboundedSender<(Bytes, u64)>,
    /// One, which ends with the batches, or with an error after it has aborted them.
    task: JoinSet<Result<Vec<Sealed>, Error>>,
}

/// What the task works with: one batch open at a time.
struct Objects {
    storage: Storage,
    format: Format,
    /// `data/{table}/sync_date={day}/{seq}-`
    key_start: String,
    open: Option<Batch>,
    sealed: Vec<Sealed>,
}

impl TableWriter {
    /// `day`: UTC, `YYYY-MM-DD`, the same for all objects of a commit.
    pub(crate) fn new(storage: &Storage, format: Format, table_key: &str, day: &str, seq: u64) -> Self {
        let objects = Objects {
            storage: storage.clone(),
            format,
            key_start: format!("data/{table_key}/sync_date={day}/{seq:010}-"),
            open: None,
            sealed: Vec::new(),
        };
        // What bounds it is the room for rows.
        let (rows, received) = mpsc::unbounded_channel();
        let (wanted, given_up) = oneshot::channel();
        let mut task = JoinSet::new();
        let writing = objects.write_all(received, given_up);
        match format.compression {
            Compression::Gzip | Compression::Zstd => {
                let runtime = Handle::current();
                task.spawn_blocking(move || runtime.block_on(writing))
            }
            // Nothing to do that would be worth another thread.
            Compression::None => task.spawn(writing),
        };
        Self { buffers: storage.buffers().clone(), wanted, rows, task }
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn write(&mut self, rows: Vec<u8>, row_count: u64) -> Result<(), Error> {
        let byte_count = rows.len();
        let room = self.buffers.room_for_rows(byte_count).await;
        let rows = Bytes::from_owner(Rows { json: rows, _room: room });
        if self.rows.send((rows, row_count)).is_err() {
            // The task has ended, with an error.
            return outcome(&mut self.task).await.map(drop);
        }
        if byte_count >= ROWS_BYTES {
            // A large row is compressed before the next is read.
            drop(self.buffers.room_for_rows(byte_count).await);
        }
        Ok(())
    }

    /// Ends the last batch; all are durable then, and invisible.
    pub(crate) async fn seal(self) -> Result<Vec<Sealed>, Error> {
        let Self { rows, wanted: _wanted, mut task, .. } = self;
        drop(rows);
        outcome(&mut task).await
    }

    /// Gives all batches up.
    pub(crate) async fn abort(self) {
        let Self { rows: _rows, wanted, mut task, .. } = self;
        drop(wanted);
        // Where the task had ended, it had aborted by itself.
        let _ = outcome(&mut task).await;
    }
}

async fn outcome(task: &mut JoinSet<Result<Vec<Sealed>, Error>>) -> Result<Vec<Sealed>, Error> {
    match task.join_next().await {
        Some(outcome) => outcome
            .unwrap_or_else(|error| Err(Error::new(Kind::Internal, "a table's writer").with_source(error))),
        None => Err(Error::new(Kind::Internal, "a table's writer has ended before")),
    }
}

impl Objects {
    /// Until there are no more rows, or they are not wanted any more.
    async fn write_all(
        mut self,
        mut rows: mpsc::UnboundedReceiver<(Bytes, u64)>,
        given_up: oneshot::Receiver<()>,
    ) -> Result<Vec<Sealed>, Error> {
        let outcome = tokio::select! {
            biased;
            _ = given_up => Err(Error::new(Kind::Internal, "the batches were given up")),
            outcome = self.take(&mut rows) => outcome,
        };
        match outcome {
            Ok(()) => Ok(self.sealed),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn take(&mut self, rows: &mut mpsc::UnboundedReceiver<(Bytes, u64)>) -> Result<(), Error> {
        while let Some((rows, row_count)) = rows.recv().await {
            self.write(rows, row_count).await?;
        }
        self.seal_open().await
    }

    async fn write(&mut self, rows: Bytes, row_count: u64) -> Result<(), Error> {
        let batch = match &mut self.open {
            Some(batch) => batch,
            None => {
                let extension = self.format.compression.extension();
                let key = format!("{}{:05}.{extension}", self.key_start, self.sealed.len());
                self.open.insert(Batch::begin(&self.storage, &key, self.format.compression).await?)
            }
        };
        batch.write(rows, row_count).await?;
        if batch.object_bytes() >= self.format.target_file_bytes {
            self.seal_open().await?;
        }
        Ok(())
    }

    async fn seal_open(&mut self) -> Result<(), Error> {
        if let Some(batch) = self.open.take() {
            self.sealed.push(batch.seal().await?);
        }
        Ok(())
    }

    async fn abort(self) {
        if let Some(batch) = self.open {
            batch.abort().await;
        }
        for batch in &self.sealed {
            self.storage.abort(&batch.upload).await;
        }
    }
}
