//! S3 as this program uses it: one bucket, one prefix, and the few calls that the commit is made of.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::buffers::Buffers;
use crate::aws::Fault;
use crate::config::S3Uri;
use crate::error::{Error, Kind};

/// The metadata key under which an object tells whose it is.
const TOKEN: &str = "bastion-sync-token";

/// The container's S3: its client, and the memory of what is on its way there.
#[derive(Debug, Clone)]
pub(crate) struct S3 {
    client: Client,
    buffers: Buffers,
}

impl S3 {
    /// By path where the endpoint is not Amazon's: emulators have no names for buckets.
    pub(crate) fn new(config: &aws_config::SdkConfig) -> Self {
        let has_own_endpoint =
            ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().any(|name| std::env::var_os(name).is_some());
        let config = aws_sdk_s3::config::Builder::from(config).force_path_style(has_own_endpoint);
        Self { client: Client::from_conf(config.build()), buffers: Buffers::new() }
    }
}

/// The largest of ten digits: beyond it keys would no longer sort.
const MAX_NUMBER: u64 = 9_999_999_999;

/// A prefix in a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    s3: S3,
    at: S3Uri,
}

/// What must hold for a put.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition<'a> {
    Always,
    /// The object does not exist (If-None-Match: *).
    Absent,
    /// The object is the one with this entity tag (If-Match).
    Unchanged(&'a str),
}

/// What became of a conditional put.
#[derive(Debug)]
pub(crate) enum Put {
    /// Done; the new entity tag.
    Done(String),
    Refused,
}

/// One uploaded part, as completing its upload needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crc32: Option<String>,
}

/// A multipart upload: durable, and invisible until it is completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    /// Below the storage's prefix.
    pub(crate) key: String,
    pub(crate) upload_id: String,
    /// Stands in the object's metadata, so that a completed object can be told from another's.
    pub(crate) token: String,
}

/// What became of an upload that was to be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The object is there, by this call or by an earlier one.
    Done,
    /// Neither the upload nor its object exists.
    Gone,
}

/// Of an upload that was just made: only a lifecycle rule or a person removes one.
pub(super) fn vanished() -> Error {
    Error::new(Kind::StorageUnavailable, "an upload vanished before it was completed")
        .with_hint("the next run reads its rows again; is there a rule that aborts uploads early?")
}

impl Storage {
    pub(crate) fn new(s3: &S3, at: S3Uri) -> Self {
        Self { s3: s3.clone(), at }
    }

    pub(super) fn buffers(&self) -> &Buffers {
        &self.s3.buffers
    }

    fn full(&self, key: &str) -> String {
        if self.at.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.at.prefix) }
    }

    pub(crate) fn uri(&self, key: &str) -> String {
        format!("s3://{}/{}", self.at.bucket, self.full(key))
    }

    /// An object and its entity tag; `None` if there is none.
    ///
    /// # Errors
    /// `StorageDenied`, `StorageUnavailable`, as all functions here.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<(Bytes, String)>, Error> {
        let get = self.s3.client.get_object().bucket(&self.at.bucket).key(self.full(key));
        match get.send().await {
            Ok(output) => {
                let etag = output.e_tag().unwrap_or_default().to_owned();
                let body = output.body.collect().await.map_err(|error| {
                    Error::new(Kind::StorageUnavailable, self.uri(key)).with_source(error.to_string())
                })?;
                Ok(Some((body.into_bytes(), etag)))
            }
            Err(error) => match Fault::of(&error) {
                fault if fault.is_not_found() && fault.code() != "NoSuchBucket" => Ok(None),
                fault => Err(self.error(key, fault)),
            },
        }
    }

    /// Puts an object if the condition holds.
    pub(crate) async fn put(&self, key: &str, body: Vec<u8>, condition: Condition<'_>) -> Result<Put, Error> {
        let put = self
            .s3
            .client
            .put_object()
            .bucket(&self.at.bucket)
            .key(self.full(key))
            .content_type("application/json")
            .body(ByteStream::from(body));
        let put = match condition {
            Condition::Always => put,
            Condition::Absent => put.if_none_match("*"),
            Condition::Unchanged(etag) => put.if_match(etag),
        };
        match put.send().await {
            Ok(output) => Ok(Put::Done(output.e_tag().unwrap_or_default().to_owned())),
            Err(error) => match (Fault::of(&error), condition) {
                (fault, Condition::Absent | Condition::Unchanged(_)) if fault.is_conflict() => {
                    Ok(Put::Refused)
                }
                // The object that was to be replaced is gone.
                (fault, Condition::Unchanged(_))
                    if fault.is_not_found() && fault.code() != "NoSuchBucket" =>
                {
                    Ok(Put::Refused)
                }
                (fault, _) => Err(self.error(key, fault)),
            },
        }
    }

    /// Whether any object's key begins so.
    pub(crate) async fn has_any(&self, key_prefix: &str) -> Result<bool, Error> {
        self.has_after(key_prefix, "").await
    }

    /// Whether any object's key begins so and comes after `key_prefix` with `rest`.
    async fn has_after(&self, key_prefix: &str, rest: &str) -> Result<bool, Error> {
        let list = self
            .s3
            .client
            .list_objects_v2()
            .bucket(&self.at.bucket)
            .prefix(self.full(key_prefix))
            .set_start_after((!rest.is_empty()).then(|| self.full(&format!("{key_prefix}{rest}"))))
            .max_keys(1);
        let output = list.send().await.map_err(|error| self.error(key_prefix, Fault::of(&error)))?;
        Ok(!output.contents().is_empty())
    }

    /// The highest number among objects named `{below}{number:010}.json`; `known` if none is higher. Asks about twice as often
    /// as the difference has binary digits.
    pub(crate) async fn last_number(&self, below: &str, known: u64) -> Result<u64, Error> {
        if !self.has_beyond(below, known).await? {
            return Ok(known);
        }
        // It is greater than `low` and not greater than `high`.
        let (mut low, mut high) = (known, known + 1);
        while self.has_beyond(below, high).await? {
            (low, high) = (high, high + 2 * (high - known));
            if high > MAX_NUMBER {
                let context = format!("{} has an object that is not ours", self.uri(below));
                return Err(Error::new(Kind::CursorInvalid, context).with_hint("move it to another place"));
            }
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.has_beyond(below, middle).await? { low = middle } else { high = middle }
        }
        Ok(high)
    }

    /// Whether there is a number greater than this one.
    async fn has_beyond(&self, below: &str, number: u64) -> Result<bool, Error> {
        self.has_after(below, &format!("{number:010}.json")).await
    }

    /// Begins an upload.
    pub(crate) async fn create_upload(&self, key: &str, token: &str) -> Result<Upload, Error> {
        let create = self
            .s3
            .client
            .create_multipart_upload()
            .bucket(&self.at.bucket)
            .key(self.full(key))
            .content_type(if key.ends_with(".json") { "application/json" } else { "application/x-ndjson" })
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .metadata(TOKEN, token);
        let output = create.send().await.map_err(|error| self.error(key, Fault::of(&error)))?;
        Ok(Upload {
            key: key.to_owned(),
            upload_id: output.upload_id().unwrap_or_default().to_owned(),
            token: token.to_owned(),
        })
    }

    /// Uploads part `number`, counted from 1. S3 wants parts of at least 5 MiB except the last (UploadPart).
    pub(crate) async fn upload_part(&self, upload: &Upload, number: i32, body: Bytes) -> Result<Part, Error> {
        let put = self
            .s3
            .client
            .upload_part()
            .bucket(&self.at.bucket)
            .key(self.full(&upload.key))
            .upload_id(&upload.upload_id)
            .part_number(number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(ByteStream::from(body))
            .customize()
            // The checksum guards the bytes, TLS the request; a hash of the body besides would cost as much as the upload.
            .disable_payload_signing();
        let output = put.send().await.map_err(|error| self.error(&upload.key, Fault::of(&error)))?;
        Ok(Part {
            etag: output.e_tag().unwrap_or_default().to_owned(),
            crc32: output.checksum_crc32().map(str::to_owned),
        })
    }

    /// Makes the object of an upload visible. Idempotent: an upload that is no longer there may have been completed
    /// before, by us or by the run that finishes our commit.
    pub(crate) async fn complete(&self, upload: &Upload, parts: &[Part]) -> Result<Completion, Error> {
        let parts = parts.iter().zip(1..).map(|(part, number)| {
            let completed = CompletedPart::builder().part_number(number).e_tag(&part.etag);
            completed.set_checksum_crc32(part.crc32.clone()).build()
        });
        let complete = self
            .s3
            .client
            .complete_multipart_upload()
            .bucket(&self.at.bucket)
            .key(self.full(&upload.key))
            .upload_id(&upload.upload_id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build());
        match complete.send().await {
            Ok(_) => Ok(Completion::Done),
            Err(error) => {
                let fault = Fault::of(&error);
                if self.holds(upload).await? {
                    Ok(Completion::Done)
                } else if matches!(fault.code(), "NoSuchUpload" | "InvalidPart") {
                    Ok(Completion::Gone)
                } else {
                    Err(self.error(&upload.key, fault))
                }
            }
        }
    }

    /// Whether the upload's own object is there.
    pub(crate) async fn holds(&self, upload: &Upload) -> Result<bool, Error> {
        let head = self.s3.client.head_object().bucket(&self.at.bucket).key(self.full(&upload.key));
        match head.send().await {
            Ok(output) => {
                let token = output.metadata().and_then(|metadata| metadata.get(TOKEN));
                Ok(token.is_some_and(|token| *token == upload.token))
            }
            Err(error) => match Fault::of(&error) {
                fault if fault.is_not_found() => Ok(false),
                fault => Err(self.error(&upload.key, fault)),
            },
        }
    }

    /// Gives an upload up. What cannot be aborted now is left to the bucket's lifecycle rule.
    pub(crate) async fn abort(&self, upload: &Upload) {
        let abort = self
            .s3
            .client
            .abort_multipart_upload()
            .bucket(&self.at.bucket)
            .key(self.full(&upload.key))
            .upload_id(&upload.upload_id);
        if let Err(error) = abort.send().await {
            tracing::warn!(object_key = upload.key, error = %Fault::of(&error), "upload not aborted");
        }
    }

    fn error(&self, key: &str, fault: Fault) -> Error {
        let place = self.uri(key);
        if fault.is_refusal() {
            Error::new(Kind::StorageDenied, place).with_source(fault).with_hint(
                "check the address, and that the role has s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on the \
                 prefix, s3:ListBucket on the bucket, and the rights on the bucket's KMS key",
            )
        } else {
            Error::new(Kind::StorageUnavailable, place).with_source(fault)
        }
    }
}
