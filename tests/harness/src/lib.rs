//! The local stack of bastion-sync: real servers, one set for a whole test run, and what a test needs around them.
//!
//! `harness run -- CMD` starts the servers ([`running`]) and hands their addresses to CMD's processes as a [`Stack`] in
//! the environment. A test takes a [`Database`] and a prefix of S3 of its own, so all can run at once. What a test must
//! be able to break, it starts itself: a [`Bastion`], a [`Proxy`] before any address, the [`Function`] under test.

pub mod bastion;
mod directory;
pub mod emulator;
pub mod fivetran;
mod http;
pub mod keys;
pub mod lambda;
mod moto;
pub mod one_secret;
pub mod postgres;
pub mod process;
pub mod proxy;
mod random;
pub mod running;
pub mod s3;
pub mod secrets;
pub mod step_functions;
pub mod tools;
pub mod watch;

use std::{env, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use crate::{
    bastion::{Bastion, BastionAddress, BastionOptions, HostKey},
    emulator::{Emulator, EmulatorOptions},
    fivetran::{Fivetran, Mishap},
    keys::ClientKey,
    lambda::{Function, FunctionError, FunctionOptions, Invocation},
    postgres::{Database, Postgres, PostgresAddress, PostgresOptions},
    proxy::{Hold, Proxy, Trigger},
    random::Random,
    s3::{BUCKET, FIVETRAN_BUCKET, S3Address},
    step_functions::{Execution, StepFunctions},
    watch::Watch,
};

/// Holds the JSON of a [`Stack`].
pub const STACK_VARIABLE: &str = "BASTION_SYNC_STACK";
pub(crate) const REGION: &str = "us-east-1";

/// The addresses of a running stack.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stack {
    /// Everything lives here; tests may add to it.
    pub dir: PathBuf,
    pub postgres: PostgresAddress,
    pub bastion: BastionAddress,
    pub s3: S3Address,
    pub secrets_endpoint: String,
}

impl Stack {
    /// The stack that `harness` started for this process.
    pub fn from_env() -> Stack {
        let Ok(json) = env::var(STACK_VARIABLE) else {
            panic!(
                "the local stack is not running; run `make test`, or `cargo run -p harness -- run -- cargo test`"
            );
        };
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{STACK_VARIABLE}: {error}: {json}"))
    }

    /// A fresh database, and a role that may read it.
    pub async fn database(&self, name_hint: &str) -> Database {
        self.postgres.database(name_hint).await
    }

    /// A prefix of the bucket that no other test uses. Short, as [`S3Address`] says why.
    pub fn prefix(&self) -> String {
        format!("t{}", random::hex(4))
    }

    /// What OUTPUT_URI says for a prefix.
    pub fn output_uri(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Stores a new secret; returns its ARN. A JSON string is stored as its text.
    pub async fn secret(&self, value: &Value) -> String {
        self.put_secret(&format!("test/{}", random::hex(6)), value).await
    }

    /// Stores a secret under a name or ARN, as a new version if it exists; returns its ARN.
    pub async fn put_secret(&self, name: &str, value: &Value) -> String {
        secrets::put(&self.secrets_endpoint, name, value).await
    }

    /// One of [`keys::NAMES`].
    pub fn client_key(&self, name: &str) -> ClientKey {
        ClientKey::read(&self.dir.join(bastion::CLIENT_KEYS), name)
    }

    /// All the keys that get in.
    pub fn client_keys(&self) -> Vec<ClientKey> {
        let names = keys::NAMES.into_iter().filter(|name| *name != "unauthorized");
        names.map(|name| self.client_key(name)).collect()
    }

    /// A bastion of the test's own. If it permits nothing, it permits what the stack's does.
    pub async fn start_bastion(&self, mut options: BastionOptions) -> Bastion {
        if options.permit_open.is_empty() {
            options.permit_open.push(format!("{}:{}", self.postgres.host, self.postgres.port));
        }
        Bastion::start(&self.dir, options).await
    }

    /// A cluster of the test's own.
    pub async fn start_postgres(&self, options: PostgresOptions) -> Postgres {
        Postgres::start(&self.dir, options).await
    }

    /// The secret: a `configuration.json`, with the host keys of the stack's bastion.
    pub fn configuration(&self, database: &Database, key: &ClientKey) -> Value {
        let mut configuration = json!({
            "bastion_host": self.bastion.host,
            "bastion_port": self.bastion.port.to_string(),
            "bastion_user": self.bastion.user,
            "bastion_private_key": STANDARD.encode(&key.pem),
            "bastion_host_key": self.bastion.known_hosts.join("\n"),
            "private_host": database.postgres.host,
            "private_port": database.postgres.port.to_string(),
            "db_user": database.user,
            "db_password": database.password,
            "db_name": database.name,
        });
        if let Some(passphrase) = &key.passphrase {
            configuration["bastion_passphrase"] = json!(passphrase);
        }
        configuration
    }

    /// The function's environment: where its secret, its output and its AWS are.
    pub fn function_env(&self, secret_arn: &str, output_uri: &str) -> Vec<(String, String)> {
        let variables: [(&str, &str); 7] = [
            ("BASTION_SECRET_ID", secret_arn),
            ("OUTPUT_URI", output_uri),
            ("AWS_ENDPOINT_URL_S3", &self.s3.endpoint),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &self.secrets_endpoint),
            ("AWS_ACCESS_KEY_ID", &self.s3.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.s3.secret_key),
            ("AWS_REGION", REGION),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The objects of [`BUCKET`] whose keys start with `prefix`, in the order of their keys.
    pub fn objects(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        self.s3.objects(BUCKET, prefix)
    }

    /// The keys of [`BUCKET`], starting with `prefix`, that multipart uploads are open for.
    pub fn open_uploads(&self, prefix: &str) -> Vec<String> {
        self.s3.open_uploads(BUCKET, prefix)
    }
}
