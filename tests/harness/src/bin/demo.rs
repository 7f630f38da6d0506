//! `make demo`: the whole job on real parts, told step by step. Run by `harness run`, which starts the parts.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Database, Stack, process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const ROW_COUNT: u32 = 10_000;
const PREFIX: &str = "demo";
const WITHOUT_PROXY: [(&str, &str); 2] =
    [("NO_PROXY", "127.0.0.1,localhost"), ("no_proxy", "127.0.0.1,localhost")];
const OWN_VARIABLES: [&str; 15] = [
    "AUDIT_EVERY",
    "CONFIG_URI",
    "CURSOR_SLACK_SECONDS",
    "DATABASE_SECRET_ID",
    "BASTION_HOST_KEY",
    "CURSOR_COLUMN",
    "COMPRESSION",
    "TARGET_FILE_MB",
    "MAX_TRANSACTION_SECONDS",
    "MAX_ROW_BYTES",
    "METADATA_COLUMNS",
    "ON_NEW_DATABASE",
    "ALLOW_EVENT_SECRETS",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let demo = Demo::prepare().await;
    let watch = demo.watch("app/bastion", 0).await;

    demo.title("First sync", "Nothing is known yet, so the table is read whole, in pages, and committed.");
    demo.sync(&watch, ROW_COUNT.into()).await;

    let changes = "insert into sample_users values ('new-1', 'Ada'), ('new-2', 'Łukasz \"🦀\"');
     update sample_users set name = 'renamed', modified_at = now() where id in ('user-7', 'user-42', 'user-4711')";
    demo.title("Incremental sync", "Two rows are new and three have changed:");
    demo.quote("sql", changes);
    demo.sql(changes).await;
    demo.sync(&watch, 5).await;

    demo.title(
        "A late commit",
        "A transaction sets modified_at, a sync passes, and only then it commits. `modified_at > last` never sees it again.",
    );
    let late = demo.database.admin().await;
    let begin = "begin; insert into sample_users values ('late', 'Grace')";
    demo.quote("sql, in a session that stays open", begin);
    late.batch_execute(begin).await.expect("the SQL runs");
    demo.sql("insert into sample_users values ('on-time', 'Barbara')").await;
    demo.sync(&watch, 1).await;
    demo.quote("sql, in that session", "commit");
    late.batch_execute("commit").await.expect("the SQL runs");
    demo.sync(&watch, 1).await;

    demo.title("No-change sync", "Nothing has changed, so nothing is written but the checkpoint.");
    demo.sync(&watch, 0).await;

    demo.title("Where it stands", "From S3 alone: neither the bastion nor the database is asked.");
    let answer = demo.invoke(&watch, "direct-status.json").await.expect("an answer");
    demo.quote("answer", &serde_json::to_string_pretty(&answer).expect("string keys"));
    demo.verdict(answer["ok"] == true, "no failure is noted");

    demo.title(
        "Into a warehouse",
        "What DuckDB needs to keep a copy of the table; five other warehouses have theirs.",
    );
    let answer = demo.invoke(&watch, "direct-discover.json").await.expect("an answer");
    let statements = answer["tables"][0]["sql"].as_array().cloned().unwrap_or_default();
    for statement in &statements {
        let sql = statement["sql"].as_str().unwrap_or_default();
        demo.quote(statement["name"].as_str().unwrap_or_default(), sql);
    }
    demo.verdict(statements.len() == 4, &format!("{} statements", statements.len()));

    demo.title(
        "Fivetran",
        "The same function, called as Fivetran's AWS Lambda connector calls it: rows come in the answer.",
    );
    let answer = demo.invoke(&watch, "fivetran-sync.json").await.expect("an answer");
    let rows = answer["insert"]["sample_users"].as_array().map_or(0, Vec::len);
    let mut short = answer.clone();
    short["insert"]["sample_users"] =
        json!(answer["insert"]["sample_users"].as_array().map(|rows| &rows[..3]));
    demo.quote("answer (the first 3 rows)", &short.to_string());
    demo.verdict(
        rows == ROW_COUNT as usize + 4,
        &format!("{rows} rows in the answer, hasMore {}", answer["hasMore"]),
    );
    drop(watch);

    demo.title(
        "A wrong host key",
        "Somebody else answers at the bastion's address: the pinned key is another one.",
    );
    let mut configuration = demo.configuration.clone();
    configuration["bastion_host_key"] = json!(demo.other_host_key());
    demo.stack.put_secret("app/wrong-host-key", &configuration).await;
    let watch = demo.watch("app/wrong-host-key", 1).await;
    let error = demo.invoke(&watch, "direct-sync.json").await.expect_err("refused");
    drop(watch);
    demo.quote("error", &error);
    demo.verdict(error.contains("BastionHostKeyMismatch"), "refused before anything was sent to it");

    demo.title("Is it all there?", "Every row in S3 (the newest _seq of each id) against the table.");
    demo.compare().await;
    println!("\n  The objects lie in {}", demo.stack.s3.root.join("bastion-sync").join(PREFIX).display());
    println!("  and go with the stack, which stops now. `make demo` starts a new one.\n");
    std::process::exit(i32::from(demo.has_failed.get()));
}

struct Demo {
    stack: Stack,
    database: Database,
    configuration: Value,
    root: PathBuf,
    is_coloured: bool,
    step: std::cell::Cell<u32>,
    has_failed: std::cell::Cell<bool>,
}

impl Demo {
    async fn prepare() -> Self {
        let stack = Stack::from_env();
        let database = stack.database("app").await;
        let configuration = stack.configuration(&database, &stack.client_key("rsa-pkcs1-passphrase"));
        let demo = Self {
            stack,
            database,
            configuration,
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
            is_coloured: std::io::stdout().is_terminal(),
            step: 0.into(),
            has_failed: false.into(),
        };
        demo.title(
            "The stage",
            "A PostgreSQL that only the bastion reaches, the bastion (OpenSSH), Secrets Manager and S3, all on this machine.",
        );
        demo.sql(&format!(
            "create table sample_users (id text primary key, name text, modified_at timestamptz not null default now());
             insert into sample_users
               select 'user-' || i, 'Name ' || i, now() - interval '30 days' + i * interval '4 min'
               from generate_series(1, {ROW_COUNT}) i;
             create index on sample_users (modified_at)"
        ))
        .await;
        let path = demo.stack.dir.join("configuration.json");
        let text = serde_json::to_string_pretty(&demo.configuration).expect("string keys");
        std::fs::write(&path, &text).expect("the stack's directory can be written to");
        demo.stack.put_secret("app/bastion", &demo.configuration).await;
        let shown: Vec<String> = text.lines().map(clipped).collect();
        demo.quote("configuration.json, stored as the secret app/bastion", &shown.join("\n"));
        println!("  SAMPLE_USERS (id, name, modified_at) has {ROW_COUNT} rows.");
        demo
    }

    /// Starts the function as `cargo lambda watch` does on a laptop.
    async fn watch(&self, secret: &str, offset: u16) -> Watch {
        let port = self.stack.postgres.port.wrapping_add(1000 + offset).max(10_000);
        let mut command = process::command("cargo");
        command
            .args([
                "lambda",
                "watch",
                "--quiet",
                "--ignore-changes",
                "-A",
                "127.0.0.1",
                "-P",
                &port.to_string(),
            ])
            .envs(self.stack.function_env(secret, &self.stack.output_uri(PREFIX)))
            .env("TABLES", "SAMPLE_USERS")
            .env("DOORS", "direct,eventbridge,fivetran")
            .env_remove("BASTION_SYNC_STACK")
            // What a person has set for a function of their own, or for the way out, is not for this one.
            .envs(WITHOUT_PROXY)
            .current_dir(&self.root)
            .process_group(0)
            .stdin(Stdio::null());
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        let log = self.stack.dir.join(format!("function-{offset}.log"));
        let file = std::fs::File::create(&log).expect("the stack's directory can be written to");
        command.stdout(file.try_clone().expect("a file")).stderr(file);
        let child = command.spawn().expect("cargo lambda starts");
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "cargo lambda watch does not start: see {}",
                log.display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Watch { child, port, log }
    }

    /// Invokes and shows what was sent and came back; the error as it is shown, if it is one.
    async fn invoke(&self, watch: &Watch, event: &str) -> Result<Value, String> {
        let sent = std::fs::read_to_string(self.root.join("events").join(event)).expect("an event file");
        self.quote(&format!("$ cargo lambda invoke bastion-sync --data-file events/{event}"), &sent);
        let began = Instant::now();
        let output = Command::new("cargo")
            .args(["lambda", "invoke", "bastion-sync", "-A", "127.0.0.1", "-P", &watch.port.to_string()])
            .args(["--data-file", &format!("events/{event}")])
            .envs(WITHOUT_PROXY)
            .current_dir(&self.root)
            .output()
            .await
            .expect("cargo lambda runs");
        println!("  {}", self.dim(&format!("answered after {} ms", began.elapsed().as_millis())));
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).expect("an answer is JSON"));
        }
        Err(String::from_utf8_lossy(&output.stderr)
            .split("Was this behavior")
            .next()
            .unwrap_or("")
            .trim()
            .to_owned())
    }

    async fn sync(&self, watch: &Watch, expected: u64) {
        let known = self.keys();
        let answer = match self.invoke(watch, "direct-sync.json").await {
            Ok(answer) => answer,
            Err(error) => {
                let log = std::fs::read_to_string(&watch.log).unwrap_or_default();
                panic!("{error}\n{log}");
            }
        };
        self.quote("answer", &serde_json::to_string_pretty(&answer).expect("string keys"));
        for key in self.keys().iter().filter(|key| !known.contains(key)) {
            println!("  {} s3://bastion-sync/{key}", self.green("+"));
        }
        let newest = self.keys().into_iter().rfind(|key| key.contains("/data/") && !known.contains(key));
        if let Some(key) = newest {
            let text = self.lines_of(&key);
            let first: Vec<&str> = text.lines().take(3).collect();
            self.quote(
                &format!("the first lines of {}", key.rsplit('/').next().unwrap_or(&key)),
                &first.join("\n"),
            );
        }
        let rows = &answer["tables"][0]["rows"];
        self.verdict(*rows == json!(expected), &format!("{rows} rows"));
    }

    async fn compare(&self) {
        let mut in_s3: BTreeMap<String, (u64, Value)> = BTreeMap::new();
        for key in self.keys().iter().filter(|key| key.contains("/data/")) {
            for line in self.lines_of(key).lines() {
                let mut row: Value = serde_json::from_str(line).expect("NDJSON");
                let seq = row.as_object_mut().and_then(|row| row.remove("_seq")).and_then(|seq| seq.as_u64());
                let id = row["id"].as_str().unwrap_or_default().to_owned();
                let seq = seq.expect("each row has its _seq");
                if in_s3.get(&id).is_none_or(|(known, _)| *known <= seq) {
                    in_s3.insert(id, (seq, row));
                }
            }
        }
        let sql = "select id, name, to_char(modified_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
                   from sample_users";
        let rows = self.database.admin().await.query(sql, &[]).await.expect("the table can be read");
        let is_same = |row: &tokio_postgres::Row| {
            let (id, name, at): (String, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
            let expected = json!({"id": id, "name": name, "modified_at": at});
            in_s3.get(&id).is_some_and(|(_, row)| *row == expected)
        };
        let same = rows.iter().filter(|row| is_same(row)).count();
        self.verdict(
            same == rows.len() && in_s3.len() == rows.len(),
            &format!(
                "{} rows in the table, {} ids in S3, {same} equal in every column",
                rows.len(),
                in_s3.len()
            ),
        );
    }

    /// A host key that is not the bastion's.
    fn other_host_key(&self) -> String {
        let public = self.stack.dir.join("client_keys/ed25519.pub");
        let key = std::fs::read_to_string(&public).expect("a public key");
        key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    async fn sql(&self, sql: &str) {
        self.database.admin().await.batch_execute(sql).await.expect("the SQL runs");
    }

    fn keys(&self) -> Vec<String> {
        self.stack.objects(&format!("{PREFIX}/")).into_iter().map(|(key, _)| key).collect()
    }

    fn lines_of(&self, key: &str) -> String {
        let (_, body) = self.stack.objects(key).into_iter().next().expect("the object is there");
        let mut text = String::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).expect("gzip");
        text
    }

    fn title(&self, title: &str, text: &str) {
        self.step.set(self.step.get() + 1);
        let heading = format!("{}. {title}", self.step.get());
        println!(
            "\n{}\n  {text}",
            if self.is_coloured { format!("\x1b[1;36m{heading}\x1b[0m") } else { heading }
        );
        let _ = std::io::stdout().flush();
    }

    fn quote(&self, label: &str, text: &str) {
        println!("  {}", self.dim(label));
        for line in text.lines() {
            println!("    {line}");
        }
    }

    fn verdict(&self, is_good: bool, text: &str) {
        if !is_good {
            self.has_failed.set(true);
        }
        let mark = if is_good { self.green("✓") } else { "✗ NOT AS EXPECTED:".to_owned() };
        println!("  {mark} {text}");
    }

    fn dim(&self, text: &str) -> String {
        if self.is_coloured { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn green(&self, text: &str) -> String {
        if self.is_coloured { format!("\x1b[32m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Long values, such as keys, are shown by their beginning.
fn clipped(line: &str) -> String {
    match line.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A running `cargo lambda watch` and the function that it started.
struct Watch {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its own process group: cargo, cargo-lambda and the function end together.
        if let Some(pid) = self.child.id() {
            let _ = std::process::Command::new("sh")
                .args(["-c", &format!("kill -TERM -{pid} 2>/dev/null")])
                .status();
        }
    }
}
