//! A PostgreSQL cluster of its own: TLS from a throwaway authority, SCRAM only, and a database for each test.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

use crate::{
    process::{self, Daemon},
    random, tools,
};

/// A generous limit for a server on the same machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SUPERUSER: &str = "postgres";

/// Where a cluster is, and how its superuser gets in.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PostgresAddress {
    pub host: String,
    pub port: u16,
    pub superuser: String,
    pub password: String,
    /// The authority that signed the server's certificate, which is for localhost, 127.0.0.1 and db.internal.
    pub ca_pem: PathBuf,
    pub version: String,
}

#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// A free one if `None`.
    pub port: Option<u16>,
    /// Lines for postgresql.conf; the last line of a name wins.
    pub config: Vec<String>,
    /// Lines for pg_hba.conf, before the two that ask everybody for SCRAM.
    pub hba: Vec<String>,
}

/// A running cluster; dropping it stops it.
#[derive(Debug)]
pub struct Postgres {
    pub address: PostgresAddress,
    bin: PathBuf,
    own: PathBuf,
    account: Option<Account>,
    /// `None` while it is stopped.
    daemon: Option<Daemon>,
}

/// A database of one test, with a role that may log in and read what the superuser creates in `public`.
#[derive(Clone, Debug)]
pub struct Database {
    pub name: String,
    pub user: String,
    pub password: String,
    pub postgres: PostgresAddress,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    user: u32,
    group: u32,
}

impl Postgres {
    /// Creates and starts a cluster under `dir`.
    pub async fn start(dir: &Path, options: PostgresOptions) -> Postgres {
        let bin = tools::postgres_bin().unwrap_or_else(|| panic!("{}", tools::missing().unwrap_or_default()));
        let port = options.port.unwrap_or_else(random::port);
        // The port tells clusters apart. The path is short, because it is also that of the Unix socket.
        let own = dir.join(format!("pg-{port}"));
        fs::create_dir(&own).unwrap_or_else(|error| panic!("{}: {error}", own.display()));
        let password = random::hex(12);
        fs::write(own.join("password"), &password).expect("the cluster's directory is writable");
        create_certificates(&own).await;
        let account = unprivileged(&own).await;
        initialize(&bin, &own, account).await;
        configure(&own, port, &options);

        let address = PostgresAddress {
            host: "127.0.0.1".to_owned(),
            port,
            superuser: SUPERUSER.to_owned(),
            password,
            ca_pem: own.join("ca.pem"),
            version: String::new(),
        };
        let mut postgres = Postgres { address, bin, own, account, daemon: None };
        let client = postgres.start_again().await;
        let row = client.query_one("select split_part(current_setting('server_version'), ' ', 1)", &[]).await;
        postgres.address.version = row.expect("the new cluster answers").get(0);
        postgres
    }

    /// A hot standby of this cluster, under its directory, which streams from it.
    pub async fn start_standby(&self) -> Postgres {
        let port = random::port();
        let own = self.own.join(format!("s-{port}"));
        fs::create_dir(&own).unwrap_or_else(|error| panic!("{}: {error}", own.display()));
        if let Some(account) = self.account {
            chown(&own, Some(account.user), Some(account.group)).expect("root may give files away");
        }
        let mut backup = command(&self.bin.join("pg_basebackup"), &own, self.account);
        backup.env("PGPASSWORD", &self.address.password).args(["--pgdata", "data", "--write-recovery-conf"]);
        backup.args([
            "--checkpoint",
            "fast",
            "--no-sync",
            "--host",
            &self.address.host,
            "--username",
            SUPERUSER,
        ]);
        backup.args(["--port", &self.address.port.to_string()]);
        process::run(backup).await;
        let path = own.join("data/postgresql.conf");
        let settings = fs::read_to_string(&path).expect("the backup has a postgresql.conf");
        fs::write(
            &path,
            format!("{settings}\nport = {port}\nunix_socket_directories = '{}'\n", own.display()),
        )
        .expect("postgresql.conf is writable");
        let address = PostgresAddress { port, ..self.address.clone() };
        let mut standby =
            Postgres { address, bin: self.bin.clone(), own, account: self.account, daemon: None };
        standby.start_again().await;
        standby
    }

    /// Ends it at once, as a crash would: what it had not written is lost.
    pub fn crash(&mut self) {
        self.daemon = None;
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        let mut command = command(&self.bin.join("pg_ctl"), &self.own, self.account);
        command.args(["stop", "--pgdata", "data", "--mode", "fast", "--wait"]);
        process::run(command).await;
        self.daemon = None;
    }

    /// Starts it after its end; a superuser's connection.
    pub async fn start_again(&mut self) -> Client {
        let mut command = command(&self.bin.join("postgres"), &self.own, self.account);
        command.arg("-D").arg(self.own.join("data"));
        // SIGQUIT is the immediate shutdown: nothing here is worth a checkpoint.
        let daemon = self.daemon.insert(Daemon::spawn("postgres", "QUIT", command, self.own.join("log")));
        loop {
            match self.address.try_connect("postgres", SUPERUSER, &self.address.password).await {
                Ok(client) => return client,
                Err(_) => daemon.keep_waiting().await,
            }
        }
    }

    /// Sets the next transaction's id, while it is stopped (pg_resetwal). What is in it must be frozen. The commit log there
    /// is made up.
    pub async fn set_next_xid(&self, next_xid: u64) {
        let (epoch, low) = (next_xid >> 32, next_xid & 0xffff_ffff);
        let mut command = command(&self.bin.join("pg_resetwal"), &self.own, self.account);
        command.args([
            "--pgdata",
            "data",
            "--epoch",
            &epoch.to_string(),
            "--next-transaction-id",
            &low.to_string(),
        ]);
        command.args(["--oldest-transaction-id", &(low - 1_000_000).to_string()]);
        process::run(command).await;
        // The segment that this id is in: 8192 bytes of status a page, four ids a byte, 32 pages a segment.
        let segment = self.own.join(format!("data/pg_xact/{:04X}", low / (8192 * 4 * 32)));
        if !segment.exists() {
            fs::write(&segment, vec![0; 8192 * 32]).expect("the cluster's directory is writable");
            if let Some(account) = self.account {
                chown(&segment, Some(account.user), Some(account.group)).expect("root may give files away");
            }
        }
    }

    /// The postmaster's.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it is running").pid()
    }
}

impl PostgresAddress {
    /// A superuser's connection to a database. It lives as long as the client.
    pub async fn admin(&self, database: &str) -> Client {
        self.connect(database, &self.superuser, &self.password).await
    }

    /// A connection without TLS.
    pub async fn connect(&self, database: &str, user: &str, password: &str) -> Client {
        let result = self.try_connect(database, user, password).await;
        result.unwrap_or_else(|error| {
            panic!("connecting as {user} to {database} on port {}: {error:?}", self.port)
        })
    }

    /// A fresh database and a role for it. `name_hint` tells them apart in PostgreSQL's log.
    pub async fn database(&self, name_hint: &str) -> Database {
        let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
        let hint: String = name_hint.chars().filter(is_plain).take(40).collect();
        let name = format!("{}_{}", hint.to_lowercase(), random::hex(4));
        let database = Database {
            user: format!("{name}_reader"),
            name,
            password: random::hex(12),
            postgres: self.clone(),
        };
        let Database { name, user, password, .. } = &database;
        let server = self.admin("postgres").await;
        // One statement each: `create database` refuses to run in the transaction of a batch.
        for statement in [
            format!("create role \"{user}\" login password '{password}'"),
            format!("create database \"{name}\""),
            format!("revoke all on database \"{name}\" from public"),
            format!("grant connect on database \"{name}\" to \"{user}\""),
        ] {
            let result = server.batch_execute(&statement).await;
            result.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        let admin = database.admin().await;
        let grants = format!(
            "revoke all on schema public from public;
             grant usage on schema public to \"{user}\";
             alter default privileges in schema public grant select on tables to \"{user}\""
        );
        admin.batch_execute(&grants).await.expect("the superuser may grant");
        database
    }

    async fn try_connect(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host(&self.host).port(self.port).dbname(database).user(user).password(password);
        config.application_name("harness").ssl_mode(SslMode::Disable).connect_timeout(CONNECT_TIMEOUT);
        // On the heap: the future is large.
        let (client, connection) = Box::pin(config.connect(NoTls)).await?;
        // Ends with the client; what went wrong before reaches the client's own calls.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }
}

impl Database {
    /// The superuser's connection.
    pub async fn admin(&self) -> Client {
        self.postgres.admin(&self.name).await
    }

    /// The reading role's connection.
    pub async fn connect(&self) -> Client {
        self.postgres.connect(&self.name, &self.user, &self.password).await
    }
}

/// A throwaway authority and the server's certificate, in version 3 and with names, as rustls wants them.
async fn create_certificates(own: &Path) {
    let config = "[req]
distinguished_name = name
prompt = no
[name]
CN = bastion-sync test
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, DNS:db.internal, IP:127.0.0.1
";
    fs::write(own.join("openssl.cnf"), config).expect("the cluster's directory is writable");
    let openssl = |arguments: &str| {
        let mut command = process::command("openssl");
        command.current_dir(own).args(arguments.split(' '));
        command
    };
    let key = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out";
    process::run_all(vec![openssl(&format!("{key} ca.key")), openssl(&format!("{key} server.key"))]).await;
    for arguments in [
        "req -new -x509 -sha256 -days 30 -config openssl.cnf -extensions authority -subj /CN=bastion-sync-test-ca \
         -key ca.key -out ca.pem",
        "req -new -sha256 -config openssl.cnf -subj /CN=db.internal -key server.key -out server.csr",
        "x509 -req -sha256 -days 30 -in server.csr -CA ca.pem -CAkey ca.key -set_serial 2 -extfile openssl.cnf \
         -extensions server -out server.pem",
    ] {
        process::run(openssl(arguments)).await;
    }
}

/// PostgreSQL refuses to run as root: the account to run it as then, to which this gives the directory.
async fn unprivileged(own: &Path) -> Option<Account> {
    if fs::metadata(own).expect("we just created it").uid() != 0 {
        return None;
    }
    let account = match id("postgres").await {
        Some(account) => account,
        None => id("nobody").await.expect("root has an account postgres or nobody beside it"),
    };
    let files = fs::read_dir(own).expect("we just created it").flatten().map(|entry| entry.path());
    for path in files.chain([own.to_owned()]) {
        chown(&path, Some(account.user), Some(account.group)).expect("root may give files away");
    }
    Some(account)
}

async fn id(name: &str) -> Option<Account> {
    Some(Account { user: id_number("-u", name).await?, group: id_number("-g", name).await? })
}

async fn id_number(option: &str, name: &str) -> Option<u32> {
    let output = process::command("id").args([option, name]).output().await.ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

fn command(program: &Path, own: &Path, account: Option<Account>) -> Command {
    let mut command = process::command(program);
    command.current_dir(own).env("LC_ALL", "C");
    if let Some(account) = account {
        // This also drops root's supplementary groups. It comes before setpriv runs, because a change of user
        // clears the signal that setpriv asks for (prctl(2), PR_SET_PDEATHSIG).
        command.uid(account.user).gid(account.group);
    }
    command
}

async fn initialize(bin: &Path, own: &Path, account: Option<Account>) {
    let mut command = command(&bin.join("initdb"), own, account);
    command.args([
        "--pgdata",
        "data",
        "--username",
        SUPERUSER,
        "--pwfile",
        "password",
        "--auth",
        "scram-sha-256",
    ]);
    command.args(["--encoding", "UTF8", "--locale", "C", "--no-sync"]);
    process::run(command).await;
}

fn configure(own: &Path, port: u16, options: &PostgresOptions) {
    let directory = own.display();
    let more = options.config.join("\n");
    // A time zone other than UTC shows who forgets to set their own.
    let settings = format!(
        "
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
ssl = on
ssl_cert_file = '{directory}/server.pem'
ssl_key_file = '{directory}/server.key'
password_encryption = 'scram-sha-256'
fsync = off
full_page_writes = off
shared_buffers = 128MB
dynamic_shared_memory_type = mmap
max_connections = 200
max_prepared_transactions = 20
timezone = 'Asia/Kolkata'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %d %a '
{more}
"
    );
    // Rewritten rather than replaced, which keeps the owner and the mode that initdb gave.
    let path = own.join("data/postgresql.conf");
    let defaults = fs::read_to_string(&path).expect("initdb wrote postgresql.conf");
    fs::write(&path, defaults + &settings).expect("postgresql.conf is writable");
    let mut hba = options.hba.clone();
    hba.push("local all all scram-sha-256".to_owned());
    hba.push("host all,replication all 127.0.0.1/32 scram-sha-256".to_owned());
    fs::write(own.join("data/pg_hba.conf"), hba.join("\n") + "\n").expect("pg_hba.conf is writable");
}
