//! The objects of one table's commit: batches one after the other, all of one `seq`.

use super::batch::{Batch, Sealed};
use super::storage::Storage;
use crate::config::Compression;
use crate::error::Error;

/// How objects are made, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) compression: Compression,
    pub(crate) target_file_bytes: u64,
}

/// Writes rows into objects of about the target size, one open at a time.
#[derive(Debug)]
pub(crate) struct TableWriter {
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
        Self {
            storage: storage.clone(),
            format,
            key_start: format!("data/{table_key}/sync_date={day}/{seq:010}-"),
            open: None,
            sealed: Vec::new(),
        }
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn write(&mut self, rows: &[u8], row_count: u64) -> Result<(), Error> {
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

    /// Ends the last batch; all are durable then, and invisible.
    pub(crate) async fn seal(mut self) -> Result<Vec<Sealed>, Error> {
        match self.seal_open().await {
            Ok(()) => Ok(self.sealed),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    /// Gives all batches up.
    pub(crate) async fn abort(self) {
        if let Some(batch) = self.open {
            batch.abort().await;
        }
        for batch in &self.sealed {
            self.storage.abort(&batch.upload).await;
        }
    }

    async fn seal_open(&mut self) -> Result<(), Error> {
        if let Some(batch) = self.open.take() {
            self.sealed.push(batch.seal().await?);
        }
        Ok(())
    }
}
