//! What an invocation works with: the clients, which live as long as the container, and what this one call brought.

use std::sync::Arc;
use std::time::Instant;

use crate::config::{Config, S3Uri, TableRules, TableSource};
use crate::credentials::{self, Secrets};
use crate::deadline::Deadline;
use crate::error::{Error, Kind};
use crate::request::{Door, File, Request};
use crate::sink::storage::{S3, Storage};
use crate::source::access::Credentials;
use crate::source::session::{Bounds, Session};
use crate::text::elapsed_ms;

/// The container's clients.
#[derive(Debug)]
pub struct App {
    pub(crate) s3: S3,
    pub(crate) secrets: Secrets,
}

impl App {
    /// The clients, which connect when they are first used.
    pub fn new(config: &aws_config::SdkConfig) -> Self {
        Self { s3: S3::new(config), secrets: Secrets::new(config) }
    }
}

/// One invocation.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) app: &'a App,
    pub(crate) config: &'a Config,
    pub(crate) request: &'a Request,
    pub(crate) deadline: Deadline,
    /// A ULID: sortable by time; in every log line, manifest and in the database's `application_name`.
    pub(crate) sync_id: String,
}

impl Call<'_> {
    /// The bucket and prefix to write to.
    ///
    /// # Errors
    /// `InvalidConfig` without `OUTPUT_URI`.
    pub(crate) fn storage(&self) -> Result<Storage, Error> {
        let output = self.config.output.clone().ok_or_else(|| {
            Error::new(Kind::InvalidConfig, "OUTPUT_URI is not set: where to write, s3://bucket/prefix")
        })?;
        Ok(Storage::new(&self.app.s3, output))
    }

    /// Where objects go: nowhere, if Fivetran gets the rows and nobody else.
    ///
    /// # Errors
    /// As [`Self::storage`].
    pub(crate) fn output(&self) -> Result<Option<Storage>, Error> {
        match self.request.door {
            Door::Fivetran if !self.config.has_fivetran_ndjson => Ok(None),
            Door::Fivetran | Door::Direct | Door::EventBridge => self.storage().map(Some),
        }
    }

    /// The bucket and key of Fivetran's document, if it wants one.
    ///
    /// # Errors
    /// `InvalidRequest` for a bucket that is not Fivetran's, or a key among our own objects.
    pub(crate) fn document(&self) -> Result<Option<(Storage, String)>, Error> {
        let Some(File { bucket, key }) = &self.request.file else { return Ok(None) };
        if self.config.fivetran_bucket.as_ref() != Some(bucket) {
            return Err(Error::new(Kind::InvalidRequest, "`bucket` is not the one of FIVETRAN_BUCKET")
                .with_hint("set FIVETRAN_BUCKET to the bucket that the connection syncs through, and let the role write to it"));
        }
        let file = S3Uri { bucket: bucket.clone(), prefix: key.clone() };
        if self.config.output.as_ref().is_some_and(|output| output.holds(&file)) {
            return Err(Error::new(Kind::InvalidRequest, "`file` lies below OUTPUT_URI")
                .with_hint("give Fivetran a bucket of its own"));
        }
        if matches!(&self.config.tables, TableSource::Document(uri) if *uri == file) {
            return Err(Error::new(Kind::InvalidRequest, "`file` is the document of CONFIG_URI"));
        }
        let (at, key) = file.split();
        Ok(Some((Storage::new(&self.app.s3, at), key)))
    }

    /// The configured tables, which must include those that the request picks.
    ///
    /// # Errors
    /// `InvalidConfig`, `InvalidRequest`, `StorageDenied`, `StorageUnavailable`.
    pub(crate) async fn rules(&self) -> Result<TableRules, Error> {
        let rules = match &self.config.tables {
            TableSource::Listed(rules) => rules.clone(),
            TableSource::Document(uri) => {
                let (at, key) = uri.split();
                let storage = Storage::new(&self.app.s3, at);
                let (bytes, _) = storage.get(&key).await?.ok_or_else(|| {
                    Error::new(Kind::InvalidConfig, format!("CONFIG_URI: {uri} does not exist"))
                })?;
                TableRules::from_document(&bytes, uri)?
            }
        };
        let is_unknown = |table: &&_| self.request.needs_tables() && rules.options(table).is_none();
        if let Some(table) = self.request.tables.iter().flatten().find(is_unknown) {
            return Err(Error::new(Kind::InvalidRequest, format!("table {table} is not configured"))
                .with_hint("an event picks among the tables of TABLES or CONFIG_URI; add it there"));
        }
        Ok(rules)
    }

    fn bounds(&self) -> Bounds {
        Bounds { max_row_bytes: self.config.max_row_bytes, max_transaction: self.config.max_transaction }
    }

    async fn open(&self, credentials: Arc<Credentials>) -> Result<Session, Error> {
        Session::open(credentials, &self.sync_id, self.bounds(), self.deadline).await
    }
}

/// Opens the way to the database. When a hop refuses what we know, the secrets are read again, and if they are new the
/// hop is tried once more: they may have been rotated while this container was warm.
///
/// # Errors
/// The kinds of secrets, bastion and database.
pub(crate) async fn open_session(call: &Call<'_>) -> Result<Session, Error> {
    let began = Instant::now();
    let secrets = call.request.secrets.as_ref().filter(|_| call.config.allows_event_secrets);
    let session = match secrets {
        Some(secrets) => call.open(Arc::new(credentials::from_event(secrets, call.config)?)).await?,
        None => {
            let secrets = &call.app.secrets;
            match call.open(secrets.get(call.config, call.deadline).await?).await {
                Err(error) if may_be_outdated(error.kind()) => {
                    let renewed = secrets.renewed(call.config, call.deadline).await?;
                    let Some(credentials) = renewed else { return Err(error) };
                    tracing::info!("the secret has changed, trying once more");
                    call.open(credentials).await?
                }
                outcome => outcome?,
            }
        }
    };
    tracing::info!(elapsed_ms = elapsed_ms(began), database = session.database_id.name, "session open");
    Ok(session)
}

fn may_be_outdated(kind: Kind) -> bool {
    matches!(kind, Kind::DatabaseAuthFailed | Kind::BastionAuthFailed | Kind::BastionHostKeyMismatch)
}
