//! Where the rows of one share go: objects in S3, or Fivetran's answer, or both.

use super::batch::Sealed;
use super::fivetran::{Answer, Mark};
use super::table_writer::TableWriter;
use crate::error::Error;
use crate::table::Table;

/// An open output. It is sealed, rewound or aborted, never just dropped.
#[derive(Debug)]
pub(crate) struct Output {
    objects: Option<Box<TableWriter>>,
    /// Held for as long as the share is read, and where it stood before.
    answer: Option<(Answer, Mark)>,
    /// Ends each row of the objects where the answer gets it without: `,"_seq":42}`.
    end: Option<String>,
}

impl Output {
    /// At least one of them is given. `seq`: to be added to the rows of the objects.
    pub(crate) fn new(
        objects: Option<TableWriter>,
        answer: Option<(Answer, Mark)>,
        seq: Option<u64>,
    ) -> Self {
        let end = seq.map(|seq| format!(r#","_seq":{seq}}}"#));
        Self { objects: objects.map(Box::new), answer, end }
    }

    /// Appends whole rows, as NDJSON; `deleted` are the indices of those that the source calls deleted.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn write(
        &mut self,
        table: &Table,
        rows: Vec<u8>,
        row_count: u64,
        deleted: &[usize],
    ) -> Result<(), Error> {
        if let Some((answer, _)) = &mut self.answer {
            answer.write(table, &rows, deleted).await?;
        }
        match (&mut self.objects, &self.end) {
            (Some(writer), None) => writer.write(rows, row_count).await,
            (Some(writer), Some(end)) => writer.write(with_end(&rows, end), row_count).await,
            (None, _) => Ok(()),
        }
    }

    /// How many more bytes of rows can be taken.
    pub(crate) fn room(&self) -> usize {
        self.answer.as_ref().map_or(usize::MAX, |(answer, _)| answer.room())
    }

    /// How many bytes of rows can be taken by an empty one.
    pub(crate) fn capacity(&self) -> usize {
        self.answer.as_ref().map_or(usize::MAX, |(answer, _)| answer.capacity())
    }

    /// The objects, durable and invisible, and the answer.
    pub(crate) async fn seal(self) -> (Result<Vec<Sealed>, Error>, Option<Answer>) {
        let sealed = match self.objects {
            Some(writer) => writer.seal().await,
            None => Ok(Vec::new()),
        };
        (sealed, self.answer.map(|(answer, _)| answer))
    }

    /// Takes back what was written; the answer is as it was before.
    pub(crate) async fn rewind(self, table: &Table) -> (Result<(), Error>, Option<Answer>) {
        if let Some(writer) = self.objects {
            writer.abort().await;
        }
        match self.answer {
            Some((mut answer, mark)) => (answer.rewind(&table.name, mark).await, Some(answer)),
            None => (Ok(()), None),
        }
    }
}

/// The same rows, each ending in `end` instead of its brace.
fn with_end(rows: &[u8], end: &str) -> Vec<u8> {
    let mut text = Vec::with_capacity(rows.len() + rows.len() / 4);
    for row in rows.split_inclusive(|byte| *byte == b'\n') {
        text.extend_from_slice(row.strip_suffix(b"}\n").unwrap_or(row));
        text.extend_from_slice(end.as_bytes());
        text.push(b'\n');
    }
    text
}
