//! A batch: the rows of one object, compressed and uploaded as it fills.

use std::io::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::{JoinError, JoinSet};
use ulid::Ulid;

use super::buffers::{Buffer, PART_BYTES};
use super::gzip::Gzip;
use super::storage::{Part, Storage, Upload};
use crate::config::Compression;
use crate::error::{Error, Kind};
use crate::text::hex;

/// Compressed at once: after each it is looked whether the part is full. What a page hands on is less, but for large rows.
const PIECE_BYTES: usize = 256 << 10;

/// An open batch.
#[derive(Debug)]
pub(crate) struct Batch {
    encoder: Encoder,
    object: Object,
    row_count: u64,
    byte_count: u64,
}

/// What has left the compressor.
#[derive(Debug)]
struct Object {
    storage: Storage,
    upload: Upload,
    uploading: JoinSet<Result<(usize, Part), Error>>,
    parts: Vec<Option<Part>>,
    hash: Sha256,
    byte_count: u64,
}

/// Where a batch stood.
#[derive(Debug)]
pub(crate) struct Mark {
    part_count: usize,
    /// The part that was filling.
    open: Vec<u8>,
    hash: Sha256,
    row_count: u64,
    byte_count: u64,
    object_byte_count: u64,
}

/// A batch whose parts are all uploaded: durable, and invisible until the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    #[serde(flatten)]
    pub(crate) upload: Upload,
    pub(crate) parts: Vec<Part>,
    pub(crate) rows: u64,
    /// Of NDJSON before compression.
    pub(crate) bytes: u64,
    /// Of the object.
    pub(crate) object_bytes: u64,
    pub(crate) sha256: String,
}

impl Batch {
    /// Begins the upload.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn begin(storage: &Storage, key: &str, compression: Compression) -> Result<Self, Error> {
        let encoder = Encoder::new(compression, storage.buffers().take().await)?;
        let upload = storage.create_upload(key, &Ulid::generate().to_string()).await?;
        let object = Object {
            storage: storage.clone(),
            upload,
            uploading: JoinSet::new(),
            parts: Vec::new(),
            hash: Sha256::new(),
            byte_count: 0,
        };
        Ok(Self { encoder, object, row_count: 0, byte_count: 0 })
    }

    /// Appends whole rows; waits while no buffer is free for the next part.
    pub(crate) async fn write(&mut self, mut rows: Bytes, row_count: u64) -> Result<(), Error> {
        self.row_count += row_count;
        self.byte_count += rows.len() as u64;
        while !rows.is_empty() {
            self.encoder.write(rows.split_to(rows.len().min(PIECE_BYTES))).await?;
            if self.encoder.output().len() >= PART_BYTES {
                let next = self.object.storage.buffers().take().await;
                let part = std::mem::replace(self.encoder.output(), next);
                self.object.upload_part(part)?;
            }
        }
        Ok(())
    }

    /// Of what was written, before compression.
    pub(crate) fn byte_count(&self) -> u64 {
        self.byte_count
    }

    /// Compressed bytes so far; what the compressor still holds is not counted.
    pub(crate) fn object_bytes(&mut self) -> u64 {
        self.object.byte_count + self.encoder.output().len() as u64
    }

    /// Uploads what is left and waits for all parts.
    pub(crate) async fn seal(self) -> Result<Sealed, Error> {
        let Self { encoder, mut object, row_count, byte_count } = self;
        match object.finish(encoder).await {
            Ok(()) => Ok(Sealed {
                parts: object.parts.into_iter().flatten().collect(),
                upload: object.upload,
                rows: row_count,
                bytes: byte_count,
                object_bytes: object.byte_count,
                sha256: hex(&object.hash.finalize()),
            }),
            Err(error) => {
                object.abort().await;
                Err(error)
            }
        }
    }

    /// Where a batch without compression stands, to go back to.
    pub(crate) fn mark(&self) -> Mark {
        let Encoder::None(open) = &self.encoder else { unreachable!("a compressor cannot go back") };
        Mark {
            part_count: self.object.parts.len(),
            open: open.as_ref().to_vec(),
            hash: self.object.hash.clone(),
            row_count: self.row_count,
            byte_count: self.byte_count,
            object_byte_count: self.object.byte_count,
        }
    }

    /// The batch as it was at the mark: the parts since then are uploaded anew.
    pub(crate) async fn rewound(mut self, mark: Mark) -> Result<Self, Error> {
        // One that is still under way must not take the place of its successor.
        if let Err(error) = self.object.all_uploaded().await {
            self.abort().await;
            return Err(error);
        }
        self.object.parts.truncate(mark.part_count);
        self.encoder.output().replace(&mark.open);
        self.object.hash = mark.hash;
        self.object.byte_count = mark.object_byte_count;
        (self.row_count, self.byte_count) = (mark.row_count, mark.byte_count);
        Ok(self)
    }

    /// Gives the batch up, its buffers first.
    pub(crate) async fn abort(self) {
        let Self { encoder, object, .. } = self;
        drop(encoder);
        object.abort().await;
    }
}

impl Object {
    fn upload_part(&mut self, body: Buffer) -> Result<(), Error> {
        while let Some(outcome) = self.uploading.try_join_next() {
            self.uploaded(outcome)?;
        }
        self.hash.update(&body);
        self.byte_count += body.len() as u64;
        let index = self.parts.len();
        self.parts.push(None);
        let (storage, upload) = (self.storage.clone(), self.upload.clone());
        let number = i32::try_from(index + 1).expect("an object has at most 10,000 parts");
        let body = body.into_bytes();
        self.uploading.spawn(async move { Ok((index, storage.upload_part(&upload, number, body).await?)) });
        Ok(())
    }

    async fn finish(&mut self, encoder: Encoder) -> Result<(), Error> {
        let rest = encoder.finish().await?;
        if rest.len() > 0 || self.parts.is_empty() {
            self.upload_part(rest)?;
        }
        self.all_uploaded().await
    }

    async fn all_uploaded(&mut self) -> Result<(), Error> {
        while let Some(outcome) = self.uploading.join_next().await {
            self.uploaded(outcome)?;
        }
        Ok(())
    }

    fn uploaded(&mut self, outcome: Result<Result<(usize, Part), Error>, JoinError>) -> Result<(), Error> {
        let (index, part) =
            outcome.map_err(|error| Error::new(Kind::Internal, "upload").with_source(error))??;
        self.parts[index] = Some(part);
        Ok(())
    }

    async fn abort(mut self) {
        self.uploading.shutdown().await;
        self.storage.abort(&self.upload).await;
    }
}

/// The compressor before the part that fills.
enum Encoder {
    Gzip(Gzip),
    Zstd(zstd::stream::write::Encoder<'static, Buffer>),
    None(Buffer),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    fn new(compression: Compression, output: Buffer) -> Result<Self, Error> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(Gzip::new(output).map_err(compression_error)?),
            Compression::Zstd => {
                Self::Zstd(zstd::stream::write::Encoder::new(output, 1).map_err(compression_error)?)
            }
            Compression::None => Self::None(output),
        })
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        match self {
            Self::Gzip(gzip) => gzip.write(piece).await,
            Self::Zstd(encoder) => encoder.write_all(&piece),
            Self::None(output) => output.write_all(&piece),
        }
        .map_err(compression_error)
    }

    fn output(&mut self) -> &mut Buffer {
        match self {
            Self::Gzip(gzip) => gzip.output(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::None(output) => output,
        }
    }

    /// Ends the stream and gives what was not taken yet.
    async fn finish(self) -> Result<Buffer, Error> {
        match self {
            Self::Gzip(gzip) => gzip.finish().await,
            Self::Zstd(encoder) => encoder.finish(),
            Self::None(output) => Ok(output),
        }
        .map_err(compression_error)
    }
}

fn compression_error(error: std::io::Error) -> Error {
    Error::new(Kind::Internal, "compression").with_source(error)
}
