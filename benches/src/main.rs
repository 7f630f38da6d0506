//! `make bench`: the function against what PostgreSQL and OpenSSH allow, in turn in one run, and against other tools.
//!
//! The limit is `psql` with a binary COPY through `ssh -L`, its output thrown away; its time includes opening the tunnel, as
//! the function's does. Everything runs on this machine: PostgreSQL, sshd and S3 share its cores with the clients. S3 checks
//! the checksum of each part and throws its bytes away. TLS inside the tunnel is off, for all. Before anything is timed,
//! what the function writes is compared with the tables, row by row.

mod measure;
mod report;
mod rivals;
mod tables;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Database, Proxy, Stack, process, running::Running, s3::S3};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_postgres::Client;

use self::measure::{Cores, Sample, Sandbox, script};
use self::report::{Opening, Report};
use self::rivals::Rival;
use self::tables::{LARGE, PART_COUNT, PART_ROWS, Table, USERS, WIDE, change, differences};

pub(crate) const RESULTS: &str = "target/bench/results.json";

/// What is deployed, made by `cargo lambda build`.
const ZIP: &str = "target/lambda/bastion-sync/bootstrap.zip";

const COMPRESSIONS: [&str; 3] = ["none", "gzip", "zstd"];

/// What all measurements share.
struct Bench {
    binary: PathBuf,
    runs: usize,
    /// Only the parts whose names begin so; empty: all.
    only: String,
    stack: Stack,
    /// Where most of what the function writes goes.
    null_s3: S3,
    database: Database,
    admin: Client,
    report: Report,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // On the main thread, which the servers' lives hang on.
    runtime.block_on(Box::pin(bench()));
}

async fn bench() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let binary = PathBuf::from(variable("FUNCTION").expect("FUNCTION names the release binary"));
    let binary = binary.canonicalize().expect("the release binary is built");
    let runs = variable("RUNS").and_then(|runs| runs.parse().ok()).unwrap_or(5);
    std::fs::create_dir_all("target/bench").expect("target is writable");
    let running = Running::start().await;
    let stack = running.stack.clone();
    let null_s3 = S3::discarding(&stack.dir.join("null-s3")).await;
    let database = stack.database("bench").await;
    eprintln!("bench: making the tables");
    tables::create(&database).await;
    let admin = database.admin().await;
    let report = Report::new(&stack, &binary, runs);
    let only = variable("ONLY").unwrap_or_default();
    let mut bench = Bench { binary, runs, only, stack, null_s3, database, admin, report };
    if bench.is_wanted("start") {
        bench.cold_start().await;
    }
    if bench.is_wanted("rows") {
        bench.rows_are_right().await;
    }
    for cores in [Cores::All, Cores::One] {
        for table in [USERS, WIDE] {
            if bench.is_wanted("backfill") {
                bench.backfill(table, cores, 0, None).await;
            }
        }
        for (name, table, rows) in
            [("no change", WIDE, 0), ("ten rows", WIDE, 10), ("increment", USERS, 100_000)]
        {
            if bench.is_wanted(name) {
                bench.increment(name, table, rows, cores, 0).await;
            }
        }
    }
    if bench.is_wanted("tables") {
        bench.sixteen_tables().await;
    }
    if bench.is_wanted("large") {
        bench.backfill(LARGE, Cores::All, 0, None).await;
    }
    for rtt_ms in [10, 50] {
        if bench.is_wanted("latency") {
            let opening = bench.increment("ten rows", WIDE, 10, Cores::All, rtt_ms).await;
            bench.backfill(USERS, Cores::All, rtt_ms, Some(opening)).await;
        }
    }
    if bench.is_wanted("rivals") {
        bench.rivals().await;
    }
    bench.report.write();
    if !bench.report.print() {
        std::process::exit(1);
    }
}

impl Bench {
    fn is_wanted(&self, part: &str) -> bool {
        part.starts_with(&self.only)
    }

    /// The secret for the bastion at this address.
    async fn secret(&self, bastion: (&str, u16)) -> String {
        let mut configuration = self.stack.configuration(&self.database, &self.stack.client_key("ed25519"));
        configuration["bastion_host"] = json!(bastion.0);
        configuration["bastion_port"] = json!(bastion.1);
        configuration["bastion_host_key"] = json!(self.stack.bastion.fingerprints.join("\n"));
        configuration["db_sslmode"] = json!("disable");
        self.stack.secret(&configuration).await
    }

    fn bastion(&self) -> (&str, u16) {
        (&self.stack.bastion.host, self.stack.bastion.port)
    }

    async fn sandbox(
        &self,
        tables: &str,
        compression: &str,
        cores: Cores,
        bastion: (&str, u16),
        s3: &S3,
    ) -> Sandbox {
        let secret = self.secret(bastion).await;
        let mut env = self.stack.function_env(&secret, &self.stack.output_uri(&self.stack.prefix()));
        let more = [
            ("TABLES", tables),
            ("COMPRESSION", compression),
            ("AWS_ENDPOINT_URL_S3", s3.address.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", s3.address.access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", s3.address.secret_key.as_str()),
        ];
        env.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Sandbox::start(&self.binary, env, cores).await
    }

    /// `psql` through `ssh -L`: this query as binary COPY to /dev/null.
    async fn limit(&self, query: &str, rows: u64, cores: Cores, bastion: (&str, u16)) -> Sample {
        let text = format!(
            "{}\npsql -qXc \"copy ({query}) to stdout (format binary)\" > /dev/null",
            self.tunnel(bastion)
        );
        let (sample, _) = script(&text, &self.tunnel_env(), cores).await;
        Sample { rows, ..sample }
    }

    /// The part of a script that opens a tunnel for libpq, as a socket, and closes it in the end.
    fn tunnel(&self, (host, port): (&str, u16)) -> String {
        let Stack { dir, postgres, bastion, .. } = &self.stack;
        let hosts = dir.join("bench_known_hosts");
        let keys = bastion.known_hosts.iter().map(|line| line.split_once(' ').expect("host and key").1);
        let lines: String = keys.map(|key| format!("bastion {key}\n")).collect();
        std::fs::write(&hosts, lines).expect("the stack's directory is writable");
        format!(
            "exec 9<> <(:)
             ssh -N -F none -i {dir}/client_keys/ed25519 -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
             -o HostKeyAlias=bastion -o UserKnownHostsFile={hosts} -c aes128-gcm@openssh.com \
             -L $PGHOST/.s.PGSQL.5432:{db_host}:{db_port} -p {port} {user}@{host} & tunnel=$!
             trap 'kill $tunnel; wait $tunnel 2>/dev/null || true; rm -f $PGHOST/.s.PGSQL.5432' EXIT
             until [ -S $PGHOST/.s.PGSQL.5432 ]; do read -rt 0.002 -u 9 || true; done",
            dir = dir.display(),
            hosts = hosts.display(),
            db_host = postgres.host,
            db_port = postgres.port,
            user = bastion.user,
        )
    }

    /// For libpq.
    fn tunnel_env(&self) -> Vec<(String, String)> {
        let dir = self.stack.dir.join("bench_socket");
        std::fs::create_dir_all(&dir).expect("the stack's directory is writable");
        let database = &self.database;
        [
            ("PGHOST", dir.to_str().expect("UTF-8")),
            ("PGPORT", "5432"),
            ("PGUSER", &database.user),
            ("PGPASSWORD", &database.password),
            ("PGDATABASE", &database.name),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// From exec to the first request for an event, resident memory then, and sizes.
    async fn cold_start(&mut self) {
        let mut samples = Vec::new();
        let mut resident = Vec::new();
        for _ in 0..self.runs * 4 {
            let api = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let mut command = tokio::process::Command::new(&self.binary);
            command.env_clear().envs([
                ("AWS_LAMBDA_RUNTIME_API", api.local_addr().expect("bound").to_string().as_str()),
                ("AWS_LAMBDA_FUNCTION_NAME", "bastion-sync"),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "test"),
                ("AWS_SECRET_ACCESS_KEY", "test"),
            ]);
            let began = Instant::now();
            let mut child = command.kill_on_drop(true).spawn().expect("the binary runs");
            let (mut stream, _) = api.accept().await.expect("it connects");
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.expect("it asks");
            let wall = began.elapsed();
            assert!(request[..length].starts_with(b"GET /2018-06-01/runtime/invocation/next"));
            resident.push(process::memory_bytes(child.id().expect("it runs"), "VmRSS:"));
            samples.push(Sample { wall, ..Sample::default() });
            child.kill().await.expect("it runs");
        }
        resident.sort_unstable();
        let zip = std::fs::metadata(ZIP).map_or(0, |file| file.len());
        self.report.start(&samples, resident[resident.len() / 2], zip);
    }

    /// What the function writes is what is in the tables: whole, and after a change.
    async fn rows_are_right(&mut self) {
        let s3 = S3::serve(&self.stack.dir.join("rows-s3"), &[harness::BUCKET]).await;
        for (table, compression) in [(USERS, "gzip"), (WIDE, "none")] {
            let sandbox = self.sandbox(table.name, compression, Cores::All, self.bastion(), &s3).await;
            let objects = objects_of(&s3, &sandbox.first);
            let found =
                differences(&self.admin, table.name, &format!("select * from {}", table.name), &objects)
                    .await;
            self.report.compared(&format!("{}, all", table.name), table.rows, found);
        }
        let sandbox = self.sandbox("users", "gzip", Cores::All, self.bastion(), &s3).await;
        let known = objects_of(&s3, &sandbox.first).len();
        let since = self.changed(USERS, 100_000).await;
        let (_, answer) = sandbox.sync().await;
        let objects = objects_of(&s3, &answer).split_off(known);
        let source = format!("select * from users where modified_at >= '{since}'");
        let found = differences(&self.admin, "users", &source, &objects).await;
        self.report.compared("users, what changed", 100_000, found);
    }

    /// Changes so many rows; since when.
    async fn changed(&self, table: Table, rows: u64) -> String {
        let row = self.admin.query_one("select clock_timestamp()::text", &[]).await.expect("a clock");
        if rows > 0 {
            change(&self.admin, table, rows).await;
        }
        row.get(0)
    }

    /// The whole table; and, where it is known how long opening takes, how fast its rows come after that.
    async fn backfill(&mut self, table: Table, cores: Cores, rtt_ms: u64, opening: Option<Opening>) {
        let (name, is_near) = (table.name, rtt_ms == 0);
        // gzip -1 would take a minute for the large rows.
        let has_pipe = is_near && table != LARGE;
        let relay = self.relay(rtt_ms).await;
        let bastion = self.bastion_through(relay.as_ref());
        let mut sandboxes = Vec::new();
        for compression in COMPRESSIONS {
            sandboxes.push(self.sandbox(name, compression, cores, bastion, &self.null_s3).await);
        }
        let pipe = format!(
            "{}\npsql -qXc \"copy (select row_to_json(t) from {name} t) to stdout\" | gzip -1 > /dev/null",
            self.tunnel(bastion)
        );
        let mut limits = Vec::new();
        let mut pipes = Vec::new();
        let mut ours = vec![Vec::new(); COMPRESSIONS.len()];
        for _ in 0..if is_near { self.runs } else { self.runs.min(3) } {
            limits.push(self.limit(&format!("select * from {name}"), table.rows, cores, bastion).await);
            for (sandbox, samples) in sandboxes.iter().zip(&mut ours) {
                let sample = sandbox.sync_anew(&[name]).await;
                assert_eq!(sample.rows, table.rows);
                samples.push(sample);
            }
            if has_pipe {
                let (sample, _) = script(&pipe, &self.tunnel_env(), cores).await;
                pipes.push(Sample { rows: table.rows, ..sample });
            }
        }
        let case = self.report.case(&format!("backfill {name}"), cores, rtt_ms, &limits);
        for (compression, samples) in COMPRESSIONS.into_iter().zip(ours) {
            let bar = match (cores, rtt_ms, compression, table) {
                (Cores::All, 0, "none", USERS | WIDE) => Some(1.2),
                (Cores::All, 0, "gzip", USERS) => Some(2.0),
                (Cores::All, 0, "gzip", WIDE) => Some(1.4),
                _ => None,
            };
            case.ours(compression, &samples, bar);
            if let Some(opening) = opening {
                case.throughput(opening, (rtt_ms == 50 && compression == "none").then_some(3.0));
            }
        }
        if has_pipe {
            let is_bar = cores == Cores::One;
            case.other("COPY row_to_json | gzip -1", Some(&pipes), is_bar.then_some(", gzip"));
        }
    }

    /// What changed since the last run. Where little did, it is in `wide`: in `users` each run would look at the 100,000 rows of
    /// the slack as well.
    async fn increment(&mut self, name: &str, table: Table, rows: u64, cores: Cores, rtt_ms: u64) -> Opening {
        let relay = self.relay(rtt_ms).await;
        let bastion = self.bastion_through(relay.as_ref());
        let sandbox = self.sandbox(table.name, "gzip", cores, bastion, &self.null_s3).await;
        let mut limits = Vec::new();
        let mut ours = Vec::new();
        let runs = if rows < 1000 { self.runs * 2 } else { self.runs };
        for _ in 0..runs {
            let since = self.changed(table, rows).await;
            let query = format!(
                "select * from {} where modified_at >= '{since}' order by modified_at, id",
                table.name
            );
            limits.push(self.limit(&query, rows, cores, bastion).await);
            let (sample, answer) = sandbox.sync().await;
            assert_eq!(sample.rows, rows, "{answer}");
            ours.push(sample);
        }
        let bar = (name == "increment" && cores == Cores::All).then_some(1.1);
        let most = (rows == 10 && cores == Cores::All && rtt_ms == 0).then_some(Duration::from_millis(80));
        let case = self.report.case(name, cores, rtt_ms, &limits);
        case.ours("gzip", &ours, bar);
        if let Some(most) = most {
            case.at_most(most);
        }
        case.opening()
    }

    /// What makes the bastion so far away; nothing where it is near.
    async fn relay(&self, rtt_ms: u64) -> Option<Proxy> {
        let (host, port) = self.bastion();
        let half = Duration::from_micros(rtt_ms * 500);
        if half.is_zero() {
            return None;
        }
        let relay = Proxy::start(format!("{host}:{port}").parse().expect("an address")).await;
        relay.delay(half, half);
        Some(relay)
    }

    fn bastion_through(&self, relay: Option<&Proxy>) -> (&str, u16) {
        relay.map_or_else(|| self.bastion(), |relay| ("127.0.0.1", relay.addr.port()))
    }

    /// Many tables in one call.
    async fn sixteen_tables(&mut self) {
        let sandbox = self.sandbox("part_*", "gzip", Cores::All, self.bastion(), &self.null_s3).await;
        let names: Vec<String> = (1..=PART_COUNT).map(|part| format!("part_{part:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut ours = Vec::new();
        for _ in 0..self.runs {
            let sample = sandbox.sync_anew(&names).await;
            assert_eq!(sample.rows, PART_COUNT * PART_ROWS);
            ours.push(sample);
        }
        self.report.case("backfill 16 tables", Cores::All, 0, &[]).ours("gzip", &ours, None);
    }

    /// Other tools, once or twice each: they take long. `users`, all of it.
    async fn rivals(&mut self) {
        let sandbox = self.sandbox("users", "gzip", Cores::All, self.bastion(), &self.null_s3).await;
        let disk = S3::serve(&self.stack.dir.join("disk-s3"), &[harness::BUCKET]).await;
        let on_disk = self.sandbox("users", "gzip", Cores::All, self.bastion(), &disk).await;
        let mut ours = vec![Vec::new(); 2];
        for _ in 0..self.runs {
            for (sandbox, samples) in [&sandbox, &on_disk].into_iter().zip(&mut ours) {
                samples.push(sandbox.sync_anew(&["users"]).await);
            }
        }
        let mut others = Vec::new();
        for rival in Rival::all() {
            others.push((rival.name, self.rival(&rival).await));
        }
        let case = self.report.case("other tools, users", Cores::All, 0, &[]);
        for (name, samples) in ["gzip", "gzip, S3 on this disk"].into_iter().zip(ours) {
            case.ours(name, &samples, None);
        }
        for (name, samples) in others {
            case.other(name, samples.as_deref(), None);
            case.ahead(name, if name == rivals::PYTHON_EXAMPLE { 20.0 } else { 1.0 });
        }
    }

    /// `None`: not installed here.
    async fn rival(&self, rival: &Rival) -> Option<Vec<Sample>> {
        if !rival.is_installed() {
            return None;
        }
        let mut env = self.tunnel_env();
        let Stack { dir, postgres, bastion, .. } = &self.stack;
        let out = dir.join("rival");
        let key = dir.join("client_keys/rsa-pkcs1");
        let more = [
            ("BASTION_HOST", bastion.host.clone()),
            ("BASTION_PORT", bastion.port.to_string()),
            ("BASTION_USER", bastion.user.clone()),
            ("BASTION_KEY", key.display().to_string()),
            ("DB_HOST", postgres.host.clone()),
            ("DB_PORT", postgres.port.to_string()),
            ("OUT", out.display().to_string()),
            ("HOME", dir.display().to_string()),
        ];
        env.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let tunnel = if rival.opens_its_own_tunnel { String::new() } else { self.tunnel(self.bastion()) };
        let mut samples = Vec::new();
        for _ in 0..self.runs.min(2) {
            let _ = std::fs::remove_dir_all(&out);
            std::fs::create_dir_all(&out).expect("the stack's directory is writable");
            let (sample, printed) = script(&format!("{tunnel}\n{}", rival.command()), &env, Cores::All).await;
            // Its last line: rows and peak memory.
            let last: Value =
                printed.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            assert_eq!(last["rows"], USERS.rows, "{}: {printed}", rival.name);
            let peak_bytes = last["peak_bytes"].as_u64().unwrap_or_default();
            samples.push(Sample { rows: USERS.rows, peak_bytes, ..sample });
        }
        Some(samples)
    }
}

/// The data objects of the first table of an answer, all commits.
fn objects_of(s3: &S3, answer: &Value) -> Vec<Vec<u8>> {
    let manifest = answer["tables"][0]["manifest"].as_str().expect("a manifest");
    let (_, path) = manifest.split_once("//").expect("a URI");
    let (bucket, key) = path.split_once('/').expect("bucket and key");
    let prefix = key.split_once("/manifests/").expect("a prefix").0;
    s3.address.objects(bucket, &format!("{prefix}/data/")).into_iter().map(|(_, body)| body).collect()
}
