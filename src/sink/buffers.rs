//! The memory of what is on its way to S3, for all objects together: rows until they are compressed, and a few buffers for
//! parts, used again and again. Who finds none left waits, and with that the reading of rows.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// S3's least (multipart upload limits).
pub(crate) const PART_BYTES: usize = 5 << 20;

/// Of one object (the same).
pub(super) const MAX_PARTS: u64 = 10_000;

/// What a compressor may give before it is looked again whether the part is full: all pieces that are under way.
const SLACK_BYTES: usize = 1 << 20;

/// Of rows that wait or are compressed. A row that is larger waits alone.
pub(super) const ROWS_BYTES: usize = 512 << 10;

/// One that fills and two under way. Two objects can be open at once, so there must be three.
const COUNT: usize = 3;

const OPEN: &str = "it is never closed";

/// The buffers of a container.
#[derive(Debug, Clone)]
pub(crate) struct Buffers(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    rows: Arc<Semaphore>,
    parts: Arc<Semaphore>,
    free: Mutex<Vec<Vec<u8>>>,
}

/// A part's bytes. The buffer is free again when this, or the last of the [`Bytes`] made of it, is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Pool {
            rows: Arc::new(Semaphore::new(ROWS_BYTES)),
            parts: Arc::new(Semaphore::new(COUNT)),
            free: Mutex::default(),
        }))
    }

    /// Room for so many bytes of rows, until it is dropped.
    pub(crate) async fn room_for_rows(&self, bytes: usize) -> OwnedSemaphorePermit {
        let count = u32::try_from(bytes.min(ROWS_BYTES)).expect("it is less");
        Arc::clone(&self.0.rows).acquire_many_owned(count).await.expect(OPEN)
    }

    /// An empty buffer, once there is one.
    pub(crate) async fn take(&self) -> Buffer {
        let permit = Arc::clone(&self.0.parts).acquire_owned().await.expect(OPEN);
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| Vec::with_capacity(PART_BYTES + SLACK_BYTES));
        Buffer { bytes, pool: Arc::clone(&self.0), _permit: permit }
    }
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Has these bytes instead of its own.
    pub(crate) fn replace(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }

    /// The same bytes for the SDK, which may need them more than once.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}
