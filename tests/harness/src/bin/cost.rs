//! `make cost`: what the cursor's certainty costs the server, on a table of 10 million rows: the look at what is in flight,
//! the filter by transaction, the set of delivered transactions, and a whole run without changes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Function, FunctionOptions, Stack};
use serde_json::json;
use tokio_postgres::Client;

const RUNS: usize = 7;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let row_count: u64 = std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(10_000_000);
    let stack = Stack::from_env();
    let database = stack.database("cost").await;
    let admin = database.admin().await;
    println!(
        "PostgreSQL {}, {row_count} rows of about 60 bytes; medians of {RUNS} runs",
        stack.postgres.version
    );
    let table = format!(
        "create table users (id bigint primary key, name text not null, modified_at timestamptz not null);
         insert into users select i, 'name ' || i, now() - i * interval '1 second' from generate_series(1, {row_count}) i;
         create index on users (modified_at);
         vacuum analyze users"
    );
    for statement in table.split(';') {
        admin.batch_execute(statement).await.expect("the superuser may");
    }

    let look = "select now();
        select l.virtualtransaction, a.xact_start from pg_locks l full join pg_stat_activity a using (pid);
        select transaction from pg_prepared_xacts; select pg_current_snapshot()";
    report("the look at what is in flight", median(&admin, look).await);

    let xids: Vec<String> = (0..6_500).map(|i| (1_000_000 + i * 3).to_string()).collect();
    let delivered = format!("(t.xmin = any('{{{}}}'::xid[])) is not true", xids.join(","));
    let scan = |condition: &str| format!("select count(*) from users t where {condition}");
    admin.batch_execute("set max_parallel_workers_per_gather = 0").await.expect("a setting");
    report("a scan of all rows, unfiltered", median(&admin, &scan("t.id is not null")).await);
    report("the same, filtered by transaction", median(&admin, &scan("age(t.xmin) between 1 and 5")).await);
    let all = format!("age(t.xmin) between 1 and 2000000000 and {delivered}");
    report("the same, against 6,500 delivered transactions", median(&admin, &scan(&all)).await);

    // With its end its own reading is in the statistics.
    drop(admin);
    let admin = database.admin().await;
    let configuration = stack.configuration(&database, &stack.client_key("ed25519"));
    let secret = stack.secret(&configuration).await;
    let mut env = stack.function_env(&secret, &stack.output_uri("cost"));
    env.push(("TABLES".to_owned(), "users".to_owned()));
    let binary = PathBuf::from(std::env::var("FUNCTION").expect("FUNCTION names the release binary"));
    let function = Function::start(FunctionOptions { binary, env }).await;
    let first = Instant::now();
    while function.invoke(&json!({}), Duration::from_secs(600)).await.answer()["has_more"] == true {}
    println!(
        "{:>9.0} ms  the first sync, {:.1} M rows/s",
        ms(first.elapsed()),
        row_count as f64 / 1e6 / first.elapsed().as_secs_f64()
    );
    // The role cannot see how old what is in flight is, such as autovacuum after the load: until that ends, every row is
    // looked at.
    while function.invoke(&json!({}), Duration::from_secs(60)).await.answer()["tables"][0]["watermark"]
        .is_null()
    {}
    tokio::time::sleep(Duration::from_secs(1)).await;
    admin.batch_execute("select pg_stat_reset()").await.expect("the superuser may");
    let mut times = Vec::new();
    for _ in 0..RUNS {
        times.push(function.invoke(&json!({}), Duration::from_secs(60)).await.elapsed);
    }
    times.sort();
    report("a run without changes, through the bastion", times[RUNS / 2]);
    println!("{:>9} MB  the function's peak memory", function.peak_memory_bytes() >> 20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sql = "select seq_tup_read, idx_tup_fetch from pg_stat_user_tables where relname = 'users'";
    let row = admin.query_one(sql, &[]).await.expect("statistics");
    let read = row.get::<_, i64>(0) + row.get::<_, i64>(1);
    println!(
        "{:>9}     rows read by each of those; the slack has 300",
        read / i64::try_from(RUNS).expect("few")
    );
}

async fn median(client: &Client, sql: &str) -> Duration {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        client.simple_query(sql).await.expect("a query");
        times.push(began.elapsed());
    }
    times.sort();
    times[RUNS / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn report(what: &str, time: Duration) {
    println!("{:>9.1} ms  {what}", ms(time));
}
