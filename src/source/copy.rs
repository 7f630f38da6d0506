//! Binary COPY, row by row.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::stream::Fuse;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;
use tokio_postgres::CopyOutStream;

use super::session::Session;
use crate::deadline::Deadline;
use crate::error::{Error, Kind};

/// Of larger rows the next is not read before the last is gone.
pub(super) const LARGE_ROW_BYTES: usize = 512 << 10;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// A COPY under way. Dropped before its end it leaves the connection draining, or waiting: give it up then.
pub(crate) struct Copy<'a> {
    session: &'a mut Session,
    /// It may be asked again after its end.
    stream: Pin<Box<Fuse<CopyOutStream>>>,
    is_header_read: bool,
    is_last_large: bool,
    limit: Duration,
}

impl std::fmt::Debug for Copy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copy")
    }
}

impl<'a> Copy<'a> {
    /// Starts `copy (query) to stdout (format binary)`.
    ///
    /// # Errors
    /// As [`Session::error`].
    pub(crate) async fn start(
        session: &'a mut Session,
        query: &str,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let limit = session.statement_limit(deadline);
        let sql = format!("copy ({query}) to stdout (format binary)");
        let stream = timeout(limit, session.client()?.copy_out(sql.as_str())).await;
        let stream = stream.map_err(|_| stalled(limit))?.map_err(|error| session.error(&error))?;
        let stream = Box::pin(stream.fuse());
        Ok(Self { session, stream, is_header_read: false, is_last_large: false, limit })
    }

    /// Ends it before its end, and with it the connection: the rest would still be sent, and the lock held for as long.
    pub(crate) fn give_up(self) {
        let Self { session, stream, .. } = self;
        drop(stream);
        session.give_up();
    }

    /// The next row: int16 field count, then for each field int32 length (-1: null) and bytes. The server sends one
    /// CopyData message for each row (protocol, COPY operations), the first with the format's header before it. The row before
    /// must have been dropped.
    ///
    /// # Errors
    /// As [`Session::error`]; `RowTooLarge` for a row beyond the bound, which also ends the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.has_dropped_last();
            let message = timeout(self.limit, self.stream.next()).await.map_err(|_| stalled(self.limit))?;
            let Some(message) = message else { return Ok(None) };
            if let Some(row) = self.row(message)? {
                return Ok(Some(row));
            }
        }
    }

    /// The next row, if it has been received already: without a clock and without a waker.
    pub(crate) fn next_at_hand(&mut self) -> Option<Result<Bytes, Error>> {
        self.has_dropped_last();
        let message = self.stream.next().now_or_never()??;
        self.row(message).transpose()
    }

    fn has_dropped_last(&mut self) {
        if std::mem::take(&mut self.is_last_large) {
            self.session.admit_large_row();
        }
    }

    /// A message's row; none in the trailer.
    fn row(&mut self, message: Result<Bytes, tokio_postgres::Error>) -> Result<Option<Bytes>, Error> {
        let mut message = message.map_err(|error| self.session.error(&error))?;
        self.is_last_large = message.len() > LARGE_ROW_BYTES;
        if !self.is_header_read {
            skip_header(&mut message)?;
            self.is_header_read = true;
        }
        // The trailer is a field count of -1; CopyDone follows it.
        Ok((!message.is_empty() && message[..] != [0xff, 0xff]).then_some(message))
    }
}

fn skip_header(message: &mut Bytes) -> Result<(), Error> {
    let malformed = || Error::new(Kind::DatabaseUnavailable, "what the server sent is not binary COPY data");
    if message.len() < SIGNATURE.len() + 8 || !message.starts_with(SIGNATURE) {
        return Err(malformed());
    }
    message.advance(SIGNATURE.len() + 4);
    let extension_bytes = message.get_u32() as usize;
    if message.len() < extension_bytes {
        return Err(malformed());
    }
    message.advance(extension_bytes);
    Ok(())
}

fn stalled(limit: Duration) -> Error {
    Error::new(Kind::TunnelLost, format!("no row from the database within {} ms", limit.as_millis()))
}
