//! A batch: the rows of one object, compressed and uploaded as it fills. At most three parts are in memory: one that
//! fills and two under way; and a copy of the first where it may be taken back.

use std::io::Write;

use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use ulid::Ulid;

use super::storage::{Part, Storage, Upload};
use crate::config::Compression;
use crate::error::{Error, Kind};
use crate::text::hex;

/// S3 takes 10,000 parts an object, and parts of 5 MiB at least.
const PART_BYTES: usize = 8 << 20;
const UPLOADS_UNDER_WAY: usize = 2;

/// An open batch.
#[derive(Debug)]
pub(crate) struct Batch {
    storage: Storage,
    upload: Upload,
    encoder: Encoder,
    uploading: JoinSet<Result<(usize, Part), Error>>,
    parts: Vec<Option<Part>>,
    hash: Sha256,
    row_count: u64,
    byte_count: u64,
    object_byte_count: u64,
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
        let upload = storage.create_upload(key, &Ulid::generate().to_string()).await?;
        Ok(Self {
            storage: storage.clone(),
            upload,
            encoder: Encoder::new(compression)?,
            uploading: JoinSet::new(),
            parts: Vec::new(),
            hash: Sha256::new(),
            row_count: 0,
            byte_count: 0,
            object_byte_count: 0,
        })
    }

    /// Appends whole rows; waits while two parts are under way.
    pub(crate) async fn write(&mut self, rows: &[u8], row_count: u64) -> Result<(), Error> {
        self.encoder.write(rows)?;
        self.row_count += row_count;
        self.byte_count += rows.len() as u64;
        if self.encoder.output().len() >= PART_BYTES {
            let part =
                std::mem::replace(self.encoder.output(), Vec::with_capacity(PART_BYTES + (PART_BYTES >> 3)));
            self.upload_part(part).await?;
        }
        Ok(())
    }

    /// Compressed bytes so far; what the compressor still holds is not counted.
    pub(crate) fn object_bytes(&mut self) -> u64 {
        self.object_byte_count + self.encoder.output().len() as u64
    }

    /// Uploads what is left and waits for all parts.
    pub(crate) async fn seal(mut self) -> Result<Sealed, Error> {
        match self.upload_rest().await {
            Ok(()) => Ok(Sealed {
                parts: self.parts.into_iter().flatten().collect(),
                upload: self.upload,
                rows: self.row_count,
                bytes: self.byte_count,
                object_bytes: self.object_byte_count,
                sha256: hex(&self.hash.finalize()),
            }),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn upload_rest(&mut self) -> Result<(), Error> {
        let rest = self.encoder.finish()?;
        if !rest.is_empty() || self.parts.is_empty() {
            self.upload_part(rest).await?;
        }
        while !self.uploading.is_empty() {
            self.one_uploaded().await?;
        }
        Ok(())
    }

    /// Where a batch without compression stands, to go back to.
    pub(crate) fn mark(&self) -> Mark {
        let open = match &self.encoder {
            Encoder::None(open) => open.clone(),
            Encoder::Gzip(_) | Encoder::Zstd(_) => unreachable!("a compressor cannot go back"),
        };
        Mark {
            part_count: self.parts.len(),
            open,
            hash: self.hash.clone(),
            row_count: self.row_count,
            byte_count: self.byte_count,
            object_byte_count: self.object_byte_count,
        }
    }

    /// The batch as it was at the mark: the parts since then are uploaded anew.
    pub(crate) async fn rewound(mut self, mark: Mark) -> Result<Self, Error> {
        // One that is still under way must not take the place of its successor.
        while !self.uploading.is_empty() {
            if let Err(error) = self.one_uploaded().await {
                self.abort().await;
                return Err(error);
            }
        }
        self.parts.truncate(mark.part_count);
        self.encoder = Encoder::None(mark.open);
        self.hash = mark.hash;
        (self.row_count, self.byte_count) = (mark.row_count, mark.byte_count);
        self.object_byte_count = mark.object_byte_count;
        Ok(self)
    }

    /// Gives the batch up.
    pub(crate) async fn abort(mut self) {
        self.uploading.shutdown().await;
        self.storage.abort(&self.upload).await;
    }

    async fn upload_part(&mut self, body: Vec<u8>) -> Result<(), Error> {
        while self.uploading.len() >= UPLOADS_UNDER_WAY {
            self.one_uploaded().await?;
        }
        self.hash.update(&body);
        self.object_byte_count += body.len() as u64;
        let index = self.parts.len();
        self.parts.push(None);
        let (storage, upload) = (self.storage.clone(), self.upload.clone());
        let number = i32::try_from(index + 1).expect("an object has at most 10,000 parts");
        self.uploading.spawn(async move { Ok((index, storage.upload_part(&upload, number, body).await?)) });
        Ok(())
    }

    async fn one_uploaded(&mut self) -> Result<(), Error> {
        if let Some(outcome) = self.uploading.join_next().await {
            let outcome = outcome
                .map_err(|error| Error::new(Kind::Internal, "upload").with_source(error.to_string()))?;
            let (index, part) = outcome?;
            self.parts[index] = Some(part);
        }
        Ok(())
    }
}

/// The compressor before the part that fills.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    None(Vec<u8>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    fn new(compression: Compression) -> Result<Self, Error> {
        Ok(match compression {
            // Level 1: the next levels cost twice the time for a third of the size.
            Compression::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(1))),
            Compression::Zstd => {
                Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 1).map_err(compression_error)?)
            }
            Compression::None => Self::None(Vec::new()),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
            Self::None(output) => output.write_all(bytes),
        }
        .map_err(compression_error)
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::None(output) => output,
        }
    }

    /// Ends the stream and gives what was not taken yet; the encoder is empty after it.
    fn finish(&mut self) -> Result<Vec<u8>, Error> {
        match std::mem::replace(self, Self::None(Vec::new())) {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::None(output) => Ok(output),
        }
        .map_err(compression_error)
    }
}

fn compression_error(error: std::io::Error) -> Error {
    Error::new(Kind::Internal, "compression").with_source(error)
}
