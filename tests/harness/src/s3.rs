//! S3, by s3s-fs, made to behave like the real one where that matters to a commit.
//!
//! s3s-fs looks at If-Match and then writes, and keeps an object's ETag in a file of its own, so two writers could both
//! win and a reader could get one object's body with another's ETag. It also forgets half of an operation when the
//! client hangs up. Here the operations on one key take turns, and each runs to its end.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use s3s::{
    Body, HttpError, HttpResponse,
    auth::SimpleAuth,
    checksum::ChecksumHasher,
    crypto::Crc32,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use serde::{Deserialize, Serialize};

use crate::{http::Server, random};

pub const BUCKET: &str = "bastion-sync";
pub const FIVETRAN_BUCKET: &str = "fivetran";

/// Where S3 is, to clients and on disk. s3s-fs keeps metadata in file names: keys end at about 120 bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct S3Address {
    pub endpoint: String,
    pub root: PathBuf,
    pub access_key: String,
    pub secret_key: String,
}

/// A running S3; dropping it stops it.
#[derive(Debug)]
pub struct S3 {
    pub address: S3Address,
    _server: Server,
}

/// A lock for each path.
type Turns = HashMap<String, Arc<tokio::sync::Mutex<()>>>;

#[derive(Clone)]
struct Gate {
    service: S3Service,
    root: PathBuf,
    turns: Arc<Mutex<Turns>>,
    discards_parts: bool,
}

impl S3 {
    /// Starts S3 with its objects under `dir`.
    pub async fn start(dir: &Path) -> S3 {
        S3::serve(&dir.join("s3"), &[BUCKET, FIVETRAN_BUCKET]).await
    }

    /// Serves the buckets under `root`, with whatever an earlier S3 left there: objects, ETags, metadata and open uploads
    /// are all files. At most one S3 at a time may serve a directory, since turns are taken within this process.
    pub async fn serve(root: &Path, buckets: &[&str]) -> S3 {
        S3::serve_by(root, buckets, false).await
    }

    /// An S3 that checks the CRC-32 of each part and throws its bytes away, to measure who uploads and not the disk. What
    /// is put in one piece stays; a multipart upload that is completed leaves nothing.
    pub async fn discarding(root: &Path) -> S3 {
        S3::serve_by(root, &[BUCKET], true).await
    }

    async fn serve_by(root: &Path, buckets: &[&str], discards_parts: bool) -> S3 {
        let root = root.to_owned();
        for bucket in buckets {
            fs::create_dir_all(root.join(bucket))
                .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        }
        // Nobody else on this machine is to read what lies there.
        let (access_key, secret_key) = (random::hex(8), random::hex(16));
        let mut builder = S3ServiceBuilder::new(FileSystem::new(&root).expect("the root directory exists"));
        builder.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
        let gate =
            Gate { service: builder.build(), root: root.clone(), turns: Arc::default(), discards_parts };
        let server = Server::start(move |request| gate.clone().answer(request)).await;
        let address =
            S3Address { endpoint: format!("http://{}", server.address), root, access_key, secret_key };
        S3 { address, _server: server }
    }
}

impl S3Address {
    /// The objects whose keys start with `prefix`, in the order of their keys.
    pub fn objects(&self, bucket: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let bucket = self.root.join(bucket);
        let mut objects = Vec::new();
        for file in files(&bucket) {
            let key = file.strip_prefix(&bucket).expect("it was found there");
            let key = key.to_str().expect("keys are UTF-8").to_owned();
            if key.starts_with(prefix) {
                let body = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                objects.push((key, body));
            }
        }
        objects.sort();
        objects
    }

    /// The keys, starting with `prefix`, that multipart uploads are open for: one for each upload.
    pub fn open_uploads(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.root).expect("the root directory exists").flatten();
        let uploads = entries.filter_map(|entry| self.open_upload(entry.file_name().to_str()?));
        let uploads = uploads.filter(|(of, key)| of == bucket && key.starts_with(prefix));
        let mut keys: Vec<String> = uploads.map(|(_, key)| key).collect();
        keys.sort();
        keys
    }

    /// Bucket and key, from the name of an upload's metadata. s3s-fs removes `.upload-{id}.json` when the upload ends.
    fn open_upload(&self, file_name: &str) -> Option<(String, String)> {
        let name = file_name.strip_prefix(".bucket-")?.strip_suffix(".metadata.json")?;
        let (bucket, rest) = name.split_once(".object-")?;
        let (key, upload_id) = rest.split_once(".upload-")?;
        let decode = |text: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok();
        is_open(&self.root, upload_id).then_some((decode(bucket)?, decode(key)?))
    }
}

impl Gate {
    async fn answer(self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().unwrap_or_default();
        let upload_id = parameter(query, "uploadId");
        let is_part = parameter(query, "partNumber").is_some();
        let path = request.uri().path().to_owned();
        // Parts have files of their own and are large: no turns, no copy in memory.
        if is_part && !self.is_gone(upload_id.as_deref()) {
            if self.discards_parts {
                return discard(request).await;
            }
            return self.service.call(request.map(Body::from)).await;
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| HttpError::new(Box::new(error)))?.to_bytes();
        let turn = self.turn(path);
        // A task of its own, so that it ends even if the client hangs up, as it would in S3.
        let task = tokio::spawn(async move {
            let _turn = turn.lock().await;
            if self.is_gone(upload_id.as_deref()) {
                return Ok(no_such_upload());
            }
            if self.discards_parts
                && let Some(id) = upload_id.filter(|_| parts.method == Method::POST)
            {
                return Ok(self.complete(&id));
            }
            self.service.call(Request::from_parts(parts, Body::from(body))).await
        });
        task.await.map_err(|error| HttpError::new(Box::new(error)))?
    }

    /// Ends an upload whose parts were thrown away.
    fn complete(&self, upload_id: &str) -> HttpResponse {
        fs::remove_file(self.root.join(format!(".upload-{upload_id}.json"))).expect("it was open");
        answer(
            StatusCode::OK,
            "<CompleteMultipartUploadResult><ETag>\"none\"</ETag></CompleteMultipartUploadResult>",
        )
    }

    fn is_gone(&self, upload_id: Option<&str>) -> bool {
        upload_id.is_some_and(|id| !is_open(&self.root, id))
    }

    fn turn(&self, path: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().expect("nothing panics while holding it");
        Arc::clone(turns.entry(path).or_default())
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

fn is_open(root: &Path, upload_id: &str) -> bool {
    let is_id = upload_id.chars().all(|letter| letter.is_ascii_hexdigit() || letter == '-');
    is_id && root.join(format!(".upload-{upload_id}.json")).exists()
}

/// Takes a part whose checksum is right, and forgets it.
async fn discard(request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
    const CRC32: &str = "x-amz-checksum-crc32";
    let (parts, mut body) = request.into_parts();
    let mut hasher = ChecksumHasher { crc32: Some(Crc32::default()), ..ChecksumHasher::default() };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| HttpError::new(Box::new(error)))?;
        if let Some(data) = frame.data_ref() {
            hasher.update(data);
        }
    }
    let crc32 = hasher.finalize().checksum_crc32.unwrap_or_default();
    if parts.headers.get(CRC32).is_none_or(|announced| announced != crc32.as_str()) {
        return Ok(answer(StatusCode::BAD_REQUEST, "<Error><Code>BadDigest</Code></Error>"));
    }
    let response = Response::builder().header("etag", format!("\"{crc32}\"")).header(CRC32, crc32);
    Ok(response.body(Body::empty()).expect("the parts are valid"))
}

/// s3s-fs says AccessDenied.
fn no_such_upload() -> HttpResponse {
    let body = "<Error><Code>NoSuchUpload</Code><Message>The specified upload does not exist. The upload ID may be \
                invalid, or the upload may have been aborted or completed.</Message></Error>";
    answer(StatusCode::NOT_FOUND, body)
}

fn answer(status: StatusCode, xml: &str) -> HttpResponse {
    let response = Response::builder().status(status).header("content-type", "application/xml");
    let body = Body::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{xml}"));
    response.body(body).expect("the parts are valid")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())).flatten()
    {
        if entry.path().is_dir() {
            files.extend(self::files(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}
