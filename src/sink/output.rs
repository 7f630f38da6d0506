//! Where the rows of one share go: objects in S3, or the answer.

use super::batch::Sealed;
use super::fivetran::{Inserts, Mark};
use super::table_writer::TableWriter;
use crate::error::Error;
use crate::table_name::TableName;

/// An open output. It is sealed or aborted, never just dropped.
#[derive(Debug)]
pub(crate) enum Output {
    Objects(Box<TableWriter>),
    /// The answer's rows so far, held for as long as the share is read, and where they stood before.
    Answer(Inserts, Mark),
}

impl Output {
    pub(crate) fn answer(inserts: Inserts, table: &TableName) -> Self {
        let mark = inserts.mark(table);
        Self::Answer(inserts, mark)
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn write(
        &mut self,
        table: &TableName,
        rows: &[u8],
        row_count: u64,
    ) -> Result<(), Error> {
        match self {
            Self::Objects(writer) => writer.write(rows, row_count).await,
            Self::Answer(inserts, _) => {
                inserts.write(table, rows);
                Ok(())
            }
        }
    }

    /// How many more bytes of rows can be taken.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Objects(_) => usize::MAX,
            Self::Answer(inserts, _) => inserts.room(),
        }
    }

    /// The objects, durable and invisible, or the answer's rows.
    pub(crate) async fn seal(self) -> Result<(Vec<Sealed>, Inserts), Error> {
        match self {
            Self::Objects(writer) => Ok((writer.seal().await?, Inserts::default())),
            Self::Answer(inserts, _) => Ok((Vec::new(), inserts)),
        }
    }

    /// Gives up what was written; the answer's rows as they were before.
    pub(crate) async fn abort(self, table: &TableName) -> Inserts {
        match self {
            Self::Objects(writer) => {
                writer.abort().await;
                Inserts::default()
            }
            Self::Answer(mut inserts, mark) => {
                inserts.rewind(table, mark);
                inserts
            }
        }
    }
}
