//! A session with the database: how it is opened, kept read-only and bounded, read from, and closed; and what its errors
//! mean.

use std::future::{Ready, ready};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode as Negotiation, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::access::{Credentials, Database, SslMode};
use super::guard::{Guard, LargeRowPlace, Refused};
use super::ssh::{End, Tunnel};
use super::{Stream, tcp, tls};
use crate::cursor::{DatabaseId, Lsn};
use crate::deadline::Deadline;
use crate::error::{Error, Kind};
use crate::plan::Log;

const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Beside the rows' own bound, room for a frame's other fields and for long catalog answers.
const FRAME_ALLOWANCE_BYTES: usize = 1 << 20;

/// Bounds of a session, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) max_row_bytes: usize,
    pub(crate) max_transaction: Duration,
}

/// One connection to the database, alone or through the tunnel that it owns.
#[derive(Debug)]
pub(crate) struct Session {
    credentials: Arc<Credentials>,
    application_name: String,
    bounds: Bounds,
    /// Shared with those beside it only.
    tunnel: Option<Arc<Tunnel>>,
    /// `None` after it was lost, or cut in the middle of a COPY.
    connection: Option<Connection>,
    pub(crate) database_id: DatabaseId,
    /// Which of the log's functions this role may call; an error inside a transaction would end it.
    pub(crate) log: Log,
    /// How far the log had gone when a snapshot was taken last: no other server may be behind that.
    shown: Option<Lsn>,
}

/// A client and the task that drives it, which ends with it.
struct Connection {
    client: Client,
    driver: Driver,
    /// What stopped the driver, before the client hears only that the connection is closed.
    refused: Arc<OnceLock<Refused>>,
    large_row: Arc<LargeRowPlace>,
    end: End,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// The task of a connection, which ends with it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Opens the way: tunnel, channel, TLS, login, session settings, identity.
    ///
    /// # Errors
    /// The `Bastion…` and `Database…` kinds, `TunnelLost`.
    pub(crate) async fn open(
        credentials: Arc<Credentials>,
        sync_id: &str,
        bounds: Bounds,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let tunnel = match &credentials.bastion {
            Some(bastion) => Some(Arc::new(Tunnel::open(bastion, deadline).await?)),
            None => None,
        };
        let application_name = format!("bastion-sync/{sync_id}");
        let database = &credentials.database;
        match Connection::open(tunnel.as_deref(), database, &application_name, bounds, deadline).await {
            Ok((connection, database_id, log)) => {
                let connection = Some(connection);
                Ok(Self {
                    credentials,
                    application_name,
                    bounds,
                    tunnel,
                    connection,
                    database_id,
                    log,
                    shown: None,
                })
            }
            Err(error) => {
                if let Some(tunnel) = tunnel.and_then(Arc::into_inner) {
                    tunnel.close().await;
                }
                Err(error)
            }
        }
    }

    /// Makes sure of a connection: a new one, through the same tunnel, where the last was lost or given up.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) async fn ensure_open(&mut self, deadline: Deadline) -> Result<(), Error> {
        if self.connection.as_ref().is_some_and(|connection| !connection.driver.0.is_finished()) {
            return Ok(());
        }
        self.connection = None;
        let database = &self.credentials.database;
        let name = &self.application_name;
        // On the heap: it is large, and rarely needed.
        let open = Box::pin(Connection::open(self.tunnel.as_deref(), database, name, self.bounds, deadline));
        let (connection, id, log) = open.await?;
        if log != self.log || !id.goes_on_from(&self.database_id, self.shown) {
            connection.close().await;
            let context = "another server answers than before, or it was started anew";
            return Err(
                Error::new(Kind::TunnelLost, context).with_hint("the next run goes on from the last commit")
            );
        }
        self.connection = Some(connection);
        Ok(())
    }

    /// Another session with the same database through the same tunnel, which connects when that is made sure of.
    pub(super) fn beside(&self) -> Self {
        Self {
            credentials: Arc::clone(&self.credentials),
            application_name: self.application_name.clone(),
            bounds: self.bounds,
            tunnel: self.tunnel.clone(),
            connection: None,
            database_id: self.database_id.clone(),
            log: self.log,
            shown: self.shown,
        }
    }

    /// Remembers how far the log had gone when a snapshot was taken.
    pub(crate) fn has_shown(&mut self, lsn: Option<Lsn>) {
        self.shown = self.shown.max(lsn);
    }

    /// The next large row may be read: the last is gone.
    pub(super) fn admit_large_row(&self) {
        if let Some(connection) = &self.connection {
            connection.large_row.free();
        }
    }

    /// Gives the connection up at once: in the middle of a COPY it would drain all that the server still sends, and hold
    /// its lock for as long.
    pub(crate) fn give_up(&mut self) {
        self.connection = None;
    }

    pub(super) fn client(&self) -> Result<&Client, Error> {
        let connection = self.connection.as_ref().map(|connection| &connection.client);
        connection.ok_or_else(|| Error::new(Kind::Internal, "the connection was given up"))
    }

    /// How long any one statement may take.
    pub(super) fn statement_limit(&self, deadline: Deadline) -> Duration {
        deadline.at_most(self.bounds.max_transaction + Duration::from_secs(5))
    }

    /// Runs statements without parameters, in one round trip; their last row, if any gave one.
    ///
    /// # Errors
    /// As [`Self::error`].
    pub(crate) async fn run(&self, sql: &str, deadline: Deadline) -> Result<Option<SimpleQueryRow>, Error> {
        let limit = self.statement_limit(deadline);
        let began = Instant::now();
        let outcome = timeout(limit, self.client()?.simple_query(sql)).await;
        let messages = outcome.map_err(|_| silent(limit))?.map_err(|error| self.error(&error))?;
        if let Some(tunnel) = &self.tunnel {
            tunnel.has_taken(began.elapsed());
        }
        Ok(messages.into_iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        }))
    }

    /// Runs statements one by one, each in a transaction of its own, in one round trip; the rows of each.
    ///
    /// # Errors
    /// As [`Self::error`].
    pub(super) async fn run_each<const N: usize>(
        &self,
        statements: [&str; N],
        deadline: Deadline,
    ) -> Result<[Vec<Row>; N], Error> {
        let limit = self.statement_limit(deadline);
        let client = self.client()?;
        let answers =
            timeout(limit, join_all(statements.map(|statement| client.simple_query(statement)))).await;
        let mut rows = [const { Vec::new() }; N];
        for (rows, answer) in rows.iter_mut().zip(answers.map_err(|_| silent(limit))?) {
            *rows = all_rows(&answer.map_err(|error| self.error(&error))?);
        }
        Ok(rows)
    }

    /// Runs one statement with bound parameters.
    ///
    /// # Errors
    /// As [`Self::error`].
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        deadline: Deadline,
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        let limit = self.statement_limit(deadline);
        let outcome = timeout(limit, self.client()?.query_typed(sql, parameters)).await;
        outcome.map_err(|_| silent(limit))?.map_err(|error| self.error(&error))
    }

    /// The types of a query's columns.
    ///
    /// # Errors
    /// As [`Self::error`].
    pub(super) async fn column_types(&self, sql: &str, deadline: Deadline) -> Result<Vec<Type>, Error> {
        let limit = self.statement_limit(deadline);
        let statement = timeout(limit, self.client()?.prepare(sql)).await;
        let statement = statement.map_err(|_| silent(limit))?.map_err(|error| self.error(&error))?;
        Ok(statement.columns().iter().map(|column| column.type_().clone()).collect())
    }

    /// What an error of this session means: the SQLSTATE's kind; a frame that the guard stopped; or, where the server
    /// said nothing, a lost connection with the tunnel's own account of its end.
    pub(super) fn error(&self, error: &tokio_postgres::Error) -> Error {
        if let Some(fault) = error.as_db_error() {
            return database_error(fault);
        }
        match self.connection.as_ref().and_then(|connection| connection.refused.get()) {
            Some(refused) => refused_error(*refused),
            None => {
                let end = self.connection.as_ref().and_then(|connection| connection.end.cause());
                let cause = end.unwrap_or_else(|| error.to_string());
                Error::new(Kind::TunnelLost, format!("the connection to the database was lost: {cause}"))
            }
        }
    }

    /// Closes connection and tunnel in order, so that the server and the bastion see an end and not a silence.
    pub(crate) async fn close(self) {
        if let Some(connection) = self.connection {
            connection.close().await;
        }
        if let Some(tunnel) = self.tunnel.and_then(Arc::into_inner) {
            tunnel.close().await;
        }
    }
}

impl Connection {
    async fn open(
        tunnel: Option<&Tunnel>,
        database: &Database,
        application_name: &str,
        bounds: Bounds,
        deadline: Deadline,
    ) -> Result<(Self, DatabaseId, Log), Error> {
        let stream: Stream = match tunnel {
            Some(tunnel) => tunnel.channel(&database.host, database.port, deadline).await?,
            None => {
                Box::new(tcp::connect(&database.host, database.port, deadline).await.map_err(|error| {
                    Error::new(
                        Kind::DatabaseUnreachable,
                        format!("database {}:{}", database.host, database.port),
                    )
                    .with_source(error)
                    .with_hint("check private_host and private_port, and the database's firewall")
                })?)
            }
        };
        let limit = deadline.at_most(LOGIN_TIMEOUT);
        let connection = timeout(limit, login(stream, tunnel, database, application_name, bounds))
            .await
            .map_err(|_| {
            let context = format!("login at the database timed out after {} ms", limit.as_millis());
            Error::new(Kind::DatabaseUnreachable, context)
        })??;
        let (id, log) = connection.prepare(bounds, limit).await?;
        Ok((connection, id, log))
    }

    /// Lets the driver say goodbye, and waits a little for it.
    async fn close(self) {
        let Self { client, mut driver, .. } = self;
        drop(client);
        let _ = timeout(CLOSE_TIMEOUT, &mut driver.0).await;
    }

    /// Sets the session's bounds and asks which database this is: all at once, each by itself, because some managed services
    /// refuse some of it. Then what they do say must do.
    async fn prepare(&self, bounds: Bounds, limit: Duration) -> Result<(DatabaseId, Log), Error> {
        let settings = settings(bounds);
        let ask = |sql| self.client.simple_query(sql);
        let asked = timeout(limit, async {
            tokio::join!(
                ask(&settings),
                // A backend that sorts does not notice that we have gone, unless it looks. Not every platform can.
                ask("set client_connection_check_interval = '5s'"),
                // Recovery from a crash that the postmaster survives resets the statistics.
                ask("select oid, datname, concat_ws(' ', pg_postmaster_start_time(), \
                     (select stats_reset from pg_stat_bgwriter)), pg_is_in_recovery() from pg_database \
                     where datname = current_database()"),
                ask("select system_identifier from pg_control_system()"),
                ask("select timeline_id from pg_control_checkpoint()"),
                ask("select pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn(), \
                     pg_walfile_name(pg_current_wal_insert_lsn())"),
                ask("select pg_last_wal_replay_lsn()"),
            )
        });
        let (settings, _, database, system, control, written, replayed) =
            asked.await.map_err(|_| silent(limit))?;
        settings.map_err(|error| login_error(&error))?;
        let database = all_rows(&database.map_err(|error| login_error(&error))?);
        let optional = |answer: Result<Vec<SimpleQueryMessage>, _>| {
            answer.ok().and_then(|answer| all_rows(&answer).into_iter().next()).unwrap_or_default()
        };
        let field = |row: &Row, i: usize| row.get(i).cloned().flatten();
        let [Some(oid), Some(name), Some(started), Some(in_recovery)] =
            database.first().map(Vec::as_slice).unwrap_or(&[])
        else {
            let context = "the server does not say which database this is";
            return Err(Error::new(Kind::DatabaseUnavailable, context));
        };
        let is_standby = in_recovery == "t";
        let (written, replayed, control) = (optional(written), optional(replayed), optional(control));
        let lsn = |row: &Row| field(row, 0).and_then(|lsn| lsn.parse::<Lsn>().ok());
        let (log, lsn) = match is_standby {
            true => {
                (if lsn(&replayed).is_some() { Log::Replayed } else { Log::HiddenReplayed }, lsn(&replayed))
            }
            false => (if lsn(&written).is_some() { Log::Written } else { Log::Hidden }, lsn(&written)),
        };
        // The current file's name begins with the timeline; the control file has that of the last checkpoint.
        let of_file = field(&written, 2).and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        let timeline = of_file.or_else(|| field(&control, 0)?.parse().ok());
        let id = DatabaseId {
            system_identifier: field(&optional(system), 0),
            oid: oid.parse().unwrap_or(0),
            name: name.clone(),
            timeline,
            started: started.clone(),
            is_standby,
            lsn,
        };
        Ok((id, log))
    }
}

/// The fields of a row, as text.
pub(super) type Row = Vec<Option<String>>;

fn all_rows(messages: &[SimpleQueryMessage]) -> Vec<Row> {
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    });
    rows.collect()
}

/// Sent as SET and not as start-up parameters, which poolers refuse. With a bastion in between, the server's own TCP
/// checks watch the bastion only, so that these time-outs end a session of ours that was lost; but none ends a backend
/// that is blocked in sending to a bastion that still holds its end, which the bastion's ClientAliveInterval must do.
fn settings(bounds: Bounds) -> String {
    let limit_ms = bounds.max_transaction.as_millis();
    format!(
        "set default_transaction_read_only = on; set search_path = pg_catalog; set row_security = off; \
         set standard_conforming_strings = on; set timezone = 'UTC'; set datestyle = 'ISO'; \
         set intervalstyle = 'postgres'; set lc_monetary = 'C'; set extra_float_digits = 1; set bytea_output = 'hex'; \
         set max_parallel_workers_per_gather = 0; set synchronize_seqscans = off; set lock_timeout = '5s'; \
         set statement_timeout = {limit_ms}; \
         set idle_in_transaction_session_timeout = {limit_ms}"
    )
}

async fn login(
    stream: Stream,
    tunnel: Option<&Tunnel>,
    database: &Database,
    application_name: &str,
    bounds: Bounds,
) -> Result<Connection, Error> {
    let secured = tls::secure(stream, database).await?;
    tracing::debug!(is_encrypted = secured.is_encrypted, "database channel secured");
    let allows_plain_passwords = database.sslmode == SslMode::VerifyFull;
    let max_frame_bytes = bounds.max_row_bytes + FRAME_ALLOWANCE_BYTES;
    let large_row = Arc::new(LargeRowPlace::default());
    let guard = Guard::new(secured, max_frame_bytes, allows_plain_passwords, Arc::clone(&large_row));
    let mut config = tokio_postgres::Config::new();
    config
        .user(&database.user)
        .password(&database.password)
        .dbname(&database.name)
        .application_name(application_name)
        // TLS is already there: `Negotiated` hands the guard through as the stream that was asked for.
        .ssl_mode(Negotiation::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    let (client, connection) =
        config.connect_raw(guard, Negotiated).await.map_err(|error| login_error(&error))?;
    let refused = Arc::new(OnceLock::new());
    let driver = Driver(tokio::spawn(drive(connection, Arc::clone(&refused))));
    let end = tunnel.map(Tunnel::end).unwrap_or_default();
    Ok(Connection { client, driver, refused, large_row, end })
}

/// Drives the connection. What stopped it is kept before the connection is dropped, and with that the client's requests.
async fn drive(mut connection: tokio_postgres::Connection<Guard, Guard>, refused: Arc<OnceLock<Refused>>) {
    if let Err(error) = (&mut connection).await
        && let Some(by_guard) = Refused::among(&error)
    {
        let _ = refused.set(by_guard);
    }
}

/// Tells the library that the stream it has is the one it wants.
struct Negotiated;

impl TlsConnect<Guard> for Negotiated {
    type Stream = Guard;
    type Error = std::io::Error;
    type Future = Ready<Result<Guard, std::io::Error>>;

    fn connect(self, stream: Guard) -> Self::Future {
        ready(Ok(stream))
    }
}

fn silent(limit: Duration) -> Error {
    Error::new(Kind::TunnelLost, format!("no answer from the database within {} ms", limit.as_millis()))
}

fn refused_error(refused: Refused) -> Error {
    match refused {
        Refused::TooLarge(bytes) => Error::new(Kind::RowTooLarge, format!("a row of {bytes} bytes")),
        Refused::PlainPassword => Error::new(Kind::DatabaseAuthFailed, refused.to_string()).with_hint(
            "set password_encryption = 'scram-sha-256' there and the password anew, or use db_sslmode verify-full",
        ),
    }
}

fn login_error(error: &tokio_postgres::Error) -> Error {
    if let Some(fault) = error.as_db_error() {
        let is_full_or_starting = matches!(fault.code().code(), "53300" | "57P03");
        return if is_full_or_starting {
            Error::new(Kind::DatabaseUnreachable, sqlstate(fault))
        } else {
            database_error(fault)
        };
    }
    match Refused::among(error) {
        Some(refused) => refused_error(refused),
        None => Error::new(Kind::DatabaseUnreachable, "login at the database").with_source(error.to_string()),
    }
}

fn database_error(fault: &tokio_postgres::error::DbError) -> Error {
    let code = fault.code();
    let error = |kind| Error::new(kind, sqlstate(fault));
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return error(Kind::PermissionDenied).with_hint(
            "grant SELECT on the table and USAGE on its schema to the user (if on single columns, on xmin, ctid and \
             tableoid, too); tables with row-level security need a user that bypasses it",
        );
    }
    if [SqlState::CHARACTER_NOT_IN_REPERTOIRE, SqlState::UNTRANSLATABLE_CHARACTER].contains(code) {
        return error(Kind::UnencodableValue)
            .with_hint("a text of the table is not valid in its own encoding, or in UTF-8");
    }
    match &code.code()[..2] {
        // Our queries hold no values but those of the state's positions.
        "22" => {
            error(Kind::CursorInvalid).with_hint("the state's position does not fit the table: resync it")
        }
        "28" => error(Kind::DatabaseAuthFailed).with_hint("check db_user, db_password and pg_hba.conf"),
        "3D" => error(Kind::DatabaseAuthFailed).with_hint("check db_name"),
        "3F" | "42" => error(Kind::SchemaChanged),
        _ => error(Kind::DatabaseUnavailable),
    }
}

/// The server's words where they hold only names; its code alone where they may quote a row. DETAIL and HINT never.
fn sqlstate(fault: &tokio_postgres::error::DbError) -> String {
    let code = fault.code().code();
    match &code[..2] {
        "08" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "55" | "57" => {
            format!("database: {} (SQLSTATE {code})", fault.message())
        }
        _ => format!("database: SQLSTATE {code}"),
    }
}
