//! What an AWS SDK error says, in the few facts that we act on, for `credentials` and `sink`.

use std::fmt;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

/// A refused or failed AWS call. Its text names the service's error code and message, or the transport's failure; no
/// request and no body.
#[derive(Debug)]
pub(crate) struct Fault {
    status: Option<u16>,
    code: Option<String>,
    text: String,
}

impl Fault {
    pub(crate) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().map(str::to_owned);
        let text = match (&code, error.message(), status) {
            (Some(code), Some(message), _) => format!("{code}: {message}"),
            (Some(code), None, _) => code.clone(),
            (None, _, Some(status)) => format!("HTTP {status}"),
            // The SDK's own text for what never reached the service: time-outs, DNS, TLS, missing credentials.
            (None, _, None) => DisplayErrorContext(error).to_string().lines().next().unwrap_or("").to_owned(),
        };
        Self { status, code, text }
    }

    /// The service's name for the fault, as in `NoSuchUpload`; empty where none was given.
    pub(crate) fn code(&self) -> &str {
        self.code.as_deref().unwrap_or("")
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }

    /// An If-Match or If-None-Match that did not hold (412), or a write at the same time (409).
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self.status, Some(409 | 412))
    }

    /// Whether asking again later cannot help: the service understood and said no, or we have no credentials.
    pub(crate) fn is_refusal(&self) -> bool {
        // Throttling comes as 400 from Secrets Manager and as 503 from S3; a body that was damaged on its way as 400.
        let is_passing = ["Throttl", "RequestTimeout", "BadDigest", "Checksum", "NoSuchUpload", "SlowDown"];
        match self.status {
            Some(408 | 409 | 429) => false,
            Some(400..=499) => !is_passing.iter().any(|code| self.code().contains(code)),
            Some(_) => false,
            None => self.text.contains("credentials"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}
