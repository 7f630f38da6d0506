//! What a test works with: a database and a prefix of its own, the function's binary, and what it wrote.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use harness::bastion::BastionAddress;
use harness::{Bastion, BastionOptions, Database, Function, FunctionOptions, Invocation, Proxy, Stack};
use serde_json::{Value, json};
use tokio_postgres::Client;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// The table of the example that this replaces.
pub(crate) const SAMPLE_USERS: &str = "create table sample_users (
    id text primary key, name text, modified_at timestamptz not null default clock_timestamp());
    create index on sample_users (modified_at)";

pub(crate) struct Case {
    pub(crate) stack: Stack,
    pub(crate) database: Database,
    pub(crate) admin: Client,
    pub(crate) prefix: String,
}

impl Case {
    pub(crate) async fn new(name: &str) -> Self {
        let stack = Stack::from_env();
        let database = stack.database(name).await;
        let admin = database.admin().await;
        let prefix = stack.prefix();
        Self { stack, database, admin, prefix }
    }

    /// With `SAMPLE_USERS` and so many rows, ten of each time in the past.
    pub(crate) async fn with_users(name: &str, count: u32) -> Self {
        let case = Self::new(name).await;
        case.run(SAMPLE_USERS).await;
        case.run(&format!(
            "insert into sample_users select 'u' || i, 'name ' || i, now() - interval '1 day' + i / 10 * interval '1 ms' \
             from generate_series(1, {count}) i"
        ))
        .await;
        case
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    /// The secret, with a plain Ed25519 key.
    pub(crate) fn configuration(&self) -> Value {
        self.stack.configuration(&self.database, &self.stack.client_key("ed25519"))
    }

    /// The same through another bastion.
    pub(crate) fn configuration_for(&self, bastion: &BastionAddress) -> Value {
        let mut configuration = self.configuration();
        configuration["bastion_port"] = json!(bastion.port);
        configuration["bastion_host_key"] = json!(bastion.known_hosts.join("\n"));
        configuration
    }

    /// The same with a proxy before the bastion, whose key is pinned for any address.
    pub(crate) fn configuration_through(&self, proxy: &Proxy) -> Value {
        let mut configuration = self.configuration();
        configuration["bastion_port"] = json!(proxy.addr.port());
        configuration["bastion_host_key"] = json!(self.stack.bastion.fingerprints.join(","));
        configuration
    }

    /// A proxy before the stack's bastion.
    pub(crate) async fn bastion_proxy(&self) -> Proxy {
        let bastion = &self.stack.bastion;
        Proxy::start(format!("{}:{}", bastion.host, bastion.port).parse().unwrap()).await
    }

    /// A proxy before the stack's S3, and its address for AWS_ENDPOINT_URL_S3.
    pub(crate) async fn s3_proxy(&self) -> (Proxy, String) {
        let endpoint = self.stack.s3.endpoint.trim_start_matches("http://");
        let proxy = Proxy::start(endpoint.parse().unwrap()).await;
        let url = format!("http://{}", proxy.addr);
        (proxy, url)
    }

    /// The secret for a database of another server, and the bastion that leads to it.
    pub(crate) async fn configuration_of(&self, database: &Database, port: u16) -> (Value, Bastion) {
        let permit_open = vec![format!("127.0.0.1:{port}")];
        let bastion =
            self.stack.start_bastion(BastionOptions { permit_open, ..BastionOptions::default() }).await;
        let mut configuration = self.stack.configuration(database, &self.stack.client_key("ed25519"));
        configuration["bastion_port"] = json!(bastion.address.port);
        configuration["bastion_host_key"] = json!(bastion.address.known_hosts.join("\n"));
        configuration["private_port"] = json!(port);
        (configuration, bastion)
    }

    /// How often each row came, by a column of whole numbers.
    pub(crate) fn counts(&self, table: &str, column: &str) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        for row in self.rows(table) {
            *counts.entry(row[column].as_i64().unwrap()).or_default() += 1;
        }
        counts
    }

    /// The environment for a configuration, with `TABLES=public.*` unless overridden; an empty value removes.
    pub(crate) async fn env(&self, configuration: &Value, extra: &[(&str, &str)]) -> Vec<(String, String)> {
        let secret = self.stack.secret(configuration).await;
        let mut env: BTreeMap<String, String> =
            self.stack.function_env(&secret, &self.stack.output_uri(&self.prefix)).into_iter().collect();
        env.insert("TABLES".into(), "public.*".into());
        env.insert("DOORS".into(), "direct,eventbridge,fivetran".into());
        for (name, value) in extra {
            env.insert((*name).to_owned(), (*value).to_owned());
        }
        env.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Stores the configuration document; its address.
    pub(crate) fn put_document(&self, document: &Value) -> String {
        let name = format!("{}.json", self.prefix);
        std::fs::write(self.stack.s3.root.join("bastion-sync").join(&name), document.to_string()).unwrap();
        format!("s3://bastion-sync/{name}")
    }

    pub(crate) async fn function(&self, extra: &[(&str, &str)]) -> Function {
        self.function_for(&self.configuration(), extra).await
    }

    pub(crate) async fn function_for(&self, configuration: &Value, extra: &[(&str, &str)]) -> Function {
        start(self.env(configuration, extra).await).await
    }

    /// All rows of a table in S3, as they lie there, in the order of their objects' keys.
    pub(crate) fn rows(&self, table: &str) -> Vec<Value> {
        let mut rows = Vec::new();
        for (key, body) in self.objects(&format!("data/{table}/")) {
            for line in unpacked(&key, &body).lines() {
                rows.push(
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{key}: {error}: {line}")),
                );
            }
        }
        rows
    }

    /// One row a key: that of the newest `_seq`.
    pub(crate) fn newest(&self, table: &str, key: &str) -> BTreeMap<String, Value> {
        let mut newest: BTreeMap<String, Value> = BTreeMap::new();
        for row in self.rows(table) {
            let is_newer = |old: &Value| {
                assert!(old["_seq"] != row["_seq"] || *old == row, "two versions with one _seq: {old} {row}");
                old["_seq"].as_u64() <= row["_seq"].as_u64()
            };
            if newest.get(&row[key].to_string()).is_none_or(is_newer) {
                newest.insert(row[key].to_string(), row);
            }
        }
        newest
    }

    /// Objects below the test's prefix: key without it, and body.
    pub(crate) fn objects(&self, below: &str) -> Vec<(String, Vec<u8>)> {
        let prefix = format!("{}/", self.prefix);
        let objects = self.stack.objects(&prefix);
        let strip = |key: String| key.strip_prefix(&prefix).map(str::to_owned).unwrap_or(key);
        objects
            .into_iter()
            .map(|(key, body)| (strip(key), body))
            .filter(|(key, _)| key.starts_with(below))
            .collect()
    }

    pub(crate) fn manifests(&self) -> Vec<Value> {
        self.objects("manifests/").iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect()
    }

    pub(crate) fn checkpoint(&self) -> Value {
        let objects = self.objects("_state/checkpoint.json");
        objects.first().map_or(Value::Null, |(_, body)| serde_json::from_slice(body).unwrap())
    }

    /// The table as it should be in S3: `id`, `name`, `modified_at`, without `_seq`.
    pub(crate) async fn users(&self) -> BTreeMap<String, Value> {
        let sql = "select id, name, to_char(modified_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
                   from sample_users";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| {
                let (id, name, at) =
                    (row.get::<_, String>(0), row.get::<_, Option<String>>(1), row.get::<_, String>(2));
                (json!(id).to_string(), json!({"id": id, "name": name, "modified_at": at}))
            })
            .collect()
    }

    /// Asserts I1 for `sample_users`.
    pub(crate) async fn assert_users_are_complete(&self) {
        let mut delivered = self.newest("public.sample_users", "id");
        for row in delivered.values_mut() {
            row.as_object_mut().unwrap().remove("_seq");
        }
        let expected = self.users().await;
        assert_eq!(delivered.len(), expected.len(), "rows in S3 against rows in the table");
        assert_eq!(delivered, expected);
    }

    /// Asserts I5 for what this test left.
    pub(crate) async fn assert_nothing_is_left(&self) {
        self.assert_no_backend_is_left().await;
        assert_eq!(self.stack.open_uploads(&format!("{}/", self.prefix)), Vec::<String>::new());
    }

    /// No backend of ours but the test's own.
    pub(crate) async fn assert_no_backend_is_left(&self) {
        let sql = "select count(*) from pg_stat_activity where datname = current_database() \
                   and application_name like 'bastion-sync/%'";
        for _ in 0..200 {
            if self.admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a backend of the function is still there after 4 s");
    }

    /// Asserts that a failed run left nothing in S3.
    pub(crate) fn assert_nothing_is_written(&self) {
        let keys: Vec<String> = self.objects("").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, Vec::<String>::new());
        assert_eq!(self.stack.open_uploads(&format!("{}/", self.prefix)), Vec::<String>::new());
    }
}

pub(crate) async fn start(env: Vec<(String, String)>) -> Function {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_bastion-sync"));
    Function::start(FunctionOptions { binary, env }).await
}

pub(crate) async fn invoke(function: &Function, event: &Value) -> Invocation {
    function.invoke(event, TIMEOUT).await
}

/// Invokes with `{}` and takes the answer.
pub(crate) async fn sync(function: &Function) -> Value {
    invoke(function, &json!({})).await.answer()
}

/// One table's part of an answer.
pub(crate) fn table<'a>(answer: &'a Value, name: &str) -> &'a Value {
    answer["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap_or_else(|| {
        panic!("no {name} in {answer}");
    })
}

fn unpacked(key: &str, body: &[u8]) -> String {
    let mut text = String::new();
    match key.rsplit('.').next() {
        Some("gz") => flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap(),
        Some("zst") => zstd::stream::read::Decoder::new(body).unwrap().read_to_string(&mut text).unwrap(),
        _ => {
            text = String::from_utf8(body.to_vec()).unwrap();
            text.len()
        }
    };
    text
}
