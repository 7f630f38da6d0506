//! The cursor against hostile writers: the function runs in a loop, with limits that force many pages and with kills, while
//! transactions do all that makes rows appear behind a time. At the end every version delivered is held against the table's
//! history. `make stress SECONDS=…` runs it for any time; its last line counts what was lost and repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Database, Postgres, PostgresOptions, Random};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::case::{Case, TIMEOUT, start};

/// Each version of each row is numbered, and its commit leaves a line in the history.
const SCHEMA: &str = "
    create sequence versions;
    create table stress (id bigint primary key, version bigint not null, modified_at timestamptz not null);
    create index on stress (modified_at);
    create table history (version bigint primary key, id bigint not null);
    create function number() returns trigger language plpgsql as $$
        begin new.version := nextval('versions'); insert into history values (new.version, new.id); return new; end $$;
    create trigger number before insert or update on stress for each row execute function number();
    create sequence ids;
    insert into stress values (-1, 0, now());";

fn duration() -> Duration {
    let seconds = std::env::var("STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Prints its seed, and takes it from there again.
pub(crate) fn random(name: &str) -> Random {
    let seed =
        std::env::var("STRESS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(Random::new_seed);
    println!("{name}: STRESS_SEED={seed}");
    Random::new(seed)
}

/// One writer, until it is told to stop.
async fn write(client: Client, mut random: Random, is_over: Arc<AtomicBool>) {
    let one = "insert into stress values (nextval('ids'), 0, now())";
    while !is_over.load(Ordering::Relaxed) {
        let short = random.below(60) as f64 / 1000.0;
        // Longer than the slack of 5 s, now and then.
        let long = if random.below(6) == 0 { 5.5 + random.below(3000) as f64 / 1000.0 } else { short * 10.0 };
        let sql = match random.below(11) {
            // `now()` is fixed long before there is an id.
            0 => format!("begin; select now(), pg_sleep({long}); {one}; select pg_sleep({short}); commit"),
            // An id, and rows, long before the commit.
            1 => format!("begin; {one}; select pg_sleep({long}); {one}; commit"),
            2 => format!(
                "begin; {one}; savepoint a; {one}; rollback to a; savepoint b; {one}; release b; savepoint c; {one}; \
                 select pg_sleep({short}); commit"
            ),
            3 => {
                let name = format!("p{}", random.below(u64::MAX));
                client
                    .batch_execute(&format!("begin; {one}; savepoint a; {one}; prepare transaction '{name}'"))
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_secs_f64(short * 5.0)).await;
                format!("{} prepared '{name}'", if random.below(3) == 0 { "rollback" } else { "commit" })
            }
            4 => {
                for sql in ["begin", one, "commit and chain"] {
                    client.batch_execute(sql).await.unwrap();
                }
                tokio::time::sleep(Duration::from_secs_f64(short * 5.0)).await;
                client.batch_execute(one).await.unwrap();
                "commit".to_owned()
            }
            // Several transactions of one message have the same `now()`.
            5 => format!("begin; {one}; commit; begin; select pg_sleep({short}); {one}; commit"),
            6 => {
                let row = random.below(500);
                format!(
                    "update stress set modified_at = now() where id = (select id from stress where id >= {row} order by id limit 1)"
                )
            }
            7 => "insert into stress select nextval('ids'), 0, now() from generate_series(1, 300)".to_owned(),
            8 => format!("begin; {one}; select pg_sleep({short}); rollback"),
            9 => format!(
                "begin; savepoint a; {one}; savepoint b; {one}; select pg_sleep({long}); release b; commit"
            ),
            _ => one.to_owned(),
        };
        // Two writers may want one row.
        if client.batch_execute(&sql).await.is_err() {
            let _ = client.batch_execute("rollback").await;
        }
    }
}

/// One row, every 50 ms.
async fn write_hot(client: Client, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        client.batch_execute("update stress set modified_at = now() where id = -1").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The cursor that most tools have; the versions that it saw.
async fn read_naively(client: Client, is_over: Arc<AtomicBool>) -> BTreeSet<i64> {
    let mut last = "-infinity".to_owned();
    let mut seen = BTreeSet::new();
    loop {
        let is_last = is_over.load(Ordering::Relaxed);
        let sql = "select version, modified_at::text from stress where modified_at > $1::text::timestamptz order by modified_at";
        for row in client.query(sql, &[&last]).await.unwrap() {
            seen.insert(row.get(0));
            last = row.get(1);
        }
        if is_last {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[derive(Debug, Default, PartialEq)]
struct Count {
    lost: usize,
    repeated: usize,
    invented: usize,
}

/// What was delivered against what was committed.
async fn count(case: &Case, admin: &Client) -> Count {
    let mut delivered: BTreeMap<i64, usize> = BTreeMap::new();
    for row in case.rows("public.stress") {
        *delivered.entry(row["version"].as_i64().unwrap()).or_default() += 1;
    }
    let numbers = |sql: &'static str| async move {
        let rows = admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, i64>(0)).collect::<BTreeSet<i64>>()
    };
    let committed = numbers("select version from history").await;
    let current = numbers("select version from stress").await;
    Count {
        lost: current.iter().filter(|version| !delivered.contains_key(version)).count(),
        repeated: delivered.values().map(|times| times - 1).sum(),
        invented: delivered.keys().filter(|version| **version != 0 && !committed.contains(version)).count(),
    }
}

/// Runs writers at `primary` and the function against `configuration`, until the time is over and all is caught up.
async fn stress(name: &str, case: &Case, primary: &Database, configuration: &Value, is_standby: bool) {
    let admin = primary.admin().await;
    let mut random = random(name);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        writers.spawn(write(primary.admin().await, random.fork(), Arc::clone(&is_over)));
    }
    writers.spawn(write_hot(primary.admin().await, Arc::clone(&is_over)));
    let naive = tokio::spawn(read_naively(primary.admin().await, Arc::clone(&is_over)));

    let env = case.env(configuration, &[("CURSOR_SLACK_SECONDS", "5"), ("TABLES", "stress")]).await;
    let mut function = start(env.clone()).await;
    let (began, mut runs, mut kills) = (Instant::now(), 0, 0);
    while began.elapsed() < duration() {
        let event = match random.below(4) {
            0 => json!({}),
            _ => {
                let max_rows = [20, 100, 400, 1500][random.index(4)];
                json!({"limits": {"max_rows": max_rows}})
            }
        };
        runs += 1;
        let run = function.invoke(&event, TIMEOUT);
        if random.below(6) == 0 {
            let kill_after = Duration::from_millis(random.below(250));
            let is_killed = tokio::select! {
                _ = run => false,
                () = tokio::time::sleep(kill_after) => true,
            };
            if is_killed {
                function.kill().await;
                function = start(env.clone()).await;
                kills += 1;
            }
        } else {
            let outcome = run.await.outcome;
            // A standby cancels what stands in the way of its replay.
            let may_fail =
                is_standby && outcome.as_ref().is_err_and(|error| error.error_type == "DatabaseUnavailable");
            assert!(outcome.is_ok() || may_fail, "{outcome:?}");
        }
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(outcome) = writers.join_next().await {
        outcome.unwrap();
    }
    let seen = naive.await.unwrap();
    if is_standby {
        wait_for_replay(&admin).await;
    }
    while function.invoke(&json!({}), TIMEOUT).await.answer()["has_more"] == true {}

    let count = count(case, &admin).await;
    let rows: i64 = admin.query_one("select count(*) from history", &[]).await.unwrap().get(0);
    let current = admin.query("select version from stress where id > 0", &[]).await.unwrap();
    let naively_lost = current.iter().filter(|row| !seen.contains(&row.get(0))).count();
    println!(
        "{name}: {rows} versions, {runs} runs, {kills} killed: {} lost, {} repeated; by `modified_at > last` {naively_lost} lost",
        count.lost, count.repeated
    );
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for manifest in case.manifests() {
        let receipt = &manifest["receipt"];
        *kinds.entry(format!("{} {}", receipt["window"], receipt["scope"]).replace('"', "")).or_default() +=
            1;
    }
    println!("{name}: commits by kind of window: {kinds:?}");
    assert_eq!(count, Count::default());
    let expected = if is_standby { ["scan whole", "scan frozen"] } else { ["range whole", "range frozen"] };
    let is_short = duration() < Duration::from_secs(15);
    assert!(is_short || expected.iter().all(|kind| kinds.contains_key(*kind)), "{kinds:?}");
    assert!(naively_lost > 0, "writers that do no harm to the usual cursor prove nothing");
}

/// Until standbys have all that is committed.
pub(crate) async fn wait_for_replay(primary: &Client) {
    let sql =
        "select coalesce(bool_and(replay_lsn >= pg_current_wal_flush_lsn()), false) from pg_stat_replication";
    while !primary.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_under_hostile_writers() {
    let case = Case::new("stress_select_only").await;
    case.run(SCHEMA).await;
    stress("with SELECT only", &case, &case.database, &case.configuration(), false).await;
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_for_a_role_that_sees_transactions() {
    let case = Case::new("stress_privileged").await;
    case.run(SCHEMA).await;
    case.run(&format!("grant pg_read_all_stats to {}", case.database.user)).await;
    stress("with pg_read_all_stats", &case, &case.database, &case.configuration(), false).await;
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_on_a_standby() {
    let case = Case::new("stress_standby").await;
    let options = PostgresOptions {
        config: vec!["max_standby_streaming_delay = 2s".into()],
        ..PostgresOptions::default()
    };
    let primary: Postgres = case.stack.start_postgres(options).await;
    let standby = primary.start_standby().await;
    let database = primary.address.database("stress").await;
    database.admin().await.batch_execute(SCHEMA).await.unwrap();
    let (configuration, _bastion) = case.configuration_of(&database, standby.address.port).await;
    wait_for_replay(&database.admin().await).await;
    stress("on a standby", &case, &database, &configuration, true).await;
}
