//! Medians and ratios, as a table for people and as JSON for programs.

use std::path::Path;
use std::time::Duration;

use harness::Stack;
use serde_json::{Value, json};

use crate::RESULTS;
use crate::measure::{Cores, Sample};

/// Lambda's price for x86-64 in us-east-1, of a GB-second and of a request (aws.amazon.com/lambda/pricing, 2026).
const DOLLARS_PER_GB_SECOND: f64 = 0.000_016_666_7;
const DOLLARS_PER_REQUEST: f64 = 0.000_000_2;
/// The memory that comes with one core.
const ONE_CORE_GB: f64 = 1769.0 / 1024.0;

const MB: f64 = 1e6;

/// All that was measured.
pub(crate) struct Report {
    head: Value,
    start: Value,
    compared: Vec<Value>,
    cases: Vec<Case>,
    failed: Vec<String>,
}

/// One measurement and those that it is compared with, run in turn.
pub(crate) struct Case {
    name: String,
    cores: Cores,
    rtt_ms: u64,
    /// `None` where there is none.
    limit: Option<Summary>,
    entries: Vec<Entry>,
}

/// One contestant.
struct Entry {
    name: String,
    is_ours: bool,
    /// `None`: not installed.
    summary: Option<Summary>,
    /// What its time may be at most, as a multiple of the limit's.
    bar: Option<f64>,
    /// How fast its rows come, as a multiple of the limit's, both without their opening.
    throughput: Option<f64>,
    /// What must hold and does not.
    problems: Vec<String>,
}

/// What a run takes that moves next to nothing, s.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    limit: f64,
    ours: f64,
}

/// Medians.
#[derive(Clone, Copy)]
struct Summary {
    wall: f64,
    fastest: f64,
    slowest: f64,
    cpu: f64,
    peak_mb: f64,
    rows: u64,
    ndjson_bytes: u64,
}

/// No run of ours may have more memory resident.
const MOST_MB: f64 = 64.0;

impl Report {
    pub(crate) fn new(stack: &Stack, binary: &Path, runs: usize) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("", |(_, name)| name);
        let head = json!({
            "runs": runs,
            "cpu": cpu,
            "cores": Cores::All.name(),
            "postgres": stack.postgres.version,
            "openssh": stack.bastion.version,
            "binary_bytes": std::fs::metadata(binary).map_or(0, |file| file.len()),
        });
        Self { head, start: Value::Null, compared: Vec::new(), cases: Vec::new(), failed: Vec::new() }
    }

    pub(crate) fn start(&mut self, samples: &[Sample], resident_bytes: u64, zip_bytes: u64) {
        let summary = Summary::of(samples);
        let (ms, resident_mb, zip_mb) =
            (summary.wall * 1e3, resident_bytes as f64 / MB, zip_bytes as f64 / MB);
        self.start = json!({"exec_to_next_ms": ms, "idle_resident_mb": resident_mb, "zip_mb": zip_mb});
        for (what, value, most) in
            [("exec to /next, ms", ms, 8.0), ("idle memory, MB", resident_mb, 12.0), ("zip, MB", zip_mb, 7.0)]
        {
            if value > most {
                self.failed.push(format!("{what}: {value:.2}, at most {most}"));
            }
        }
    }

    pub(crate) fn compared(&mut self, what: &str, rows: u64, differences: i64) {
        eprintln!("bench: {what}: {rows} rows compared, {differences} differ");
        self.compared.push(json!({"what": what, "rows": rows, "differences": differences}));
        assert_eq!(differences, 0, "{what}");
    }

    /// Begins a case.
    pub(crate) fn case(&mut self, name: &str, cores: Cores, rtt_ms: u64, limits: &[Sample]) -> &mut Case {
        eprintln!("bench: {name}, {} cores, {rtt_ms} ms", cores.name());
        let limit = (!limits.is_empty()).then(|| Summary::of(limits));
        self.cases.push(Case { name: name.to_owned(), cores, rtt_ms, limit, entries: Vec::new() });
        self.cases.last_mut().expect("it was just pushed")
    }

    /// Writes `target/bench/results.json`.
    pub(crate) fn write(&self) {
        let keys = json!({
            "rtt_ms": "delay of the relay before the bastion, both ways together",
            "cores": "that the client's processes may use; the servers use all",
            "wall_s": "median of the runs; wall_s_min, wall_s_max",
            "ratio": "wall_s / wall_s of the case's limit: psql, COPY binary, ssh -L, to /dev/null",
            "bar": "what the ratio may be at most; null: shown only",
            "throughput_ratio": "of rows a second beyond what ten rows take at the same distance, to the limit's",
            "cpu_s": "median, user and system, of the client's processes",
            "peak_mb": "the most resident memory of any run, 10^6 bytes; null: not measured",
            "ndjson_mb_per_s": "of what is written, before compression",
            "dollars_per_million_rows": "with one core, as 1,769 MB of x86-64 Lambda cost, without S3's requests",
            "differences": "rows of the table or of the objects that are not in the other",
        });
        let results = json!({
            "_keys": keys, "machine": self.head, "start": self.start, "compared": self.compared,
            "cases": self.cases.iter().map(Case::to_value).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&results).expect("JSON");
        std::fs::write(RESULTS, text + "\n").expect("target is writable");
    }

    /// Prints the table, and whether everything is within its bar.
    pub(crate) fn print(mut self) -> bool {
        let head = |key: &str| self.head[key].as_str().unwrap_or_default().to_owned();
        println!(
            "{} cores of {}; PostgreSQL {}, OpenSSH {}; medians of {} runs\n",
            head("cores"),
            head("cpu"),
            head("postgres"),
            head("openssh"),
            self.head["runs"]
        );
        if !self.start.is_null() {
            println!(
                "exec to first /next {:.1} ms; idle {:.1} MB; binary {:.1} MB, zip {:.2} MB\n",
                self.start["exec_to_next_ms"].as_f64().unwrap_or_default(),
                self.start["idle_resident_mb"].as_f64().unwrap_or_default(),
                self.head["binary_bytes"].as_f64().unwrap_or_default() / MB,
                self.start["zip_mb"].as_f64().unwrap_or_default()
            );
        }
        println!(
            "| what | cores | RTT ms | by | s | ratio | bar | throughput | M rows/s | MB/s | CPU s | peak MB | $/M rows |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        for case in &self.cases {
            if let Some(limit) = case.limit {
                println!("{}", case.line(&Entry::new("psql, ssh -L", false, Some(limit))));
            }
            for entry in &case.entries {
                println!("{}", case.line(entry));
                for problem in &entry.problems {
                    self.failed.push(format!(
                        "{}, {} cores, {} ms, {}: {problem}",
                        case.name,
                        case.cores.name(),
                        case.rtt_ms,
                        entry.name
                    ));
                }
            }
        }
        println!("\n(MB/s: of NDJSON before compression; CPU: of the client alone)");
        for failed in &self.failed {
            println!("over its bar: {failed}");
        }
        self.failed.is_empty()
    }
}

impl Entry {
    fn new(name: &str, is_ours: bool, summary: Option<Summary>) -> Self {
        Self { name: name.to_owned(), is_ours, summary, bar: None, throughput: None, problems: Vec::new() }
    }
}

impl Case {
    /// The function, with a bar against the limit or without.
    pub(crate) fn ours(&mut self, name: &str, samples: &[Sample], bar: Option<f64>) {
        let summary = Summary::of(samples);
        let ratio = self.limit.map(|limit| summary.wall / limit.wall);
        let mut problems = Vec::new();
        if let (Some(ratio), Some(bar)) = (ratio, bar)
            && ratio > bar
        {
            problems.push(format!("{ratio:.2} times the limit, at most {bar:.2}"));
        }
        if summary.peak_mb > MOST_MB {
            problems.push(format!("{:.1} MB resident, at most {MOST_MB}", summary.peak_mb));
        }
        let entry = Entry::new(&format!("bastion-sync, {name}"), true, Some(summary));
        self.entries.push(Entry { bar, problems, ..entry });
    }

    /// Of the limit and of the last entry, in a case that moves next to nothing.
    pub(crate) fn opening(&self) -> Opening {
        let ours = self.entries.last().and_then(|entry| entry.summary);
        let (limit, ours) = self.limit.zip(ours).expect("both were measured");
        Opening { limit: limit.wall, ours: ours.wall }
    }

    /// The last entry's throughput, which must be so many times the limit's at least.
    pub(crate) fn throughput(&mut self, opening: Opening, least: Option<f64>) {
        let entry = self.entries.last_mut().expect("there is one");
        let (limit, ours) = self.limit.zip(entry.summary).expect("both were measured");
        let throughput = (limit.wall - opening.limit) / (ours.wall - opening.ours);
        entry.throughput = Some(throughput);
        if let Some(least) = least.filter(|least| throughput < *least) {
            entry.problems.push(format!("{throughput:.2} times the limit's throughput, at least {least}"));
        }
    }

    /// The last entry's time may be this at most.
    pub(crate) fn at_most(&mut self, most: Duration) {
        let entry = self.entries.last_mut().expect("there is one");
        let wall = entry.summary.map_or(0.0, |summary| summary.wall);
        if wall > most.as_secs_f64() {
            entry.problems.push(format!("{:.1} ms, at most {}", wall * 1e3, most.as_millis()));
        }
    }

    /// Something else, `None` if it is not installed; the entry of that name must be ahead of it, and take no more of the
    /// processor.
    pub(crate) fn other(&mut self, name: &str, samples: Option<&[Sample]>, behind: Option<&str>) {
        let summary = samples.map(Summary::of);
        if let (Some(behind), Some(other)) = (behind, summary) {
            let ours =
                self.entries.iter_mut().find(|entry| entry.name.ends_with(behind)).expect("it was measured");
            let of_ours = ours.summary.expect("it was measured");
            if of_ours.wall > other.wall || of_ours.cpu > other.cpu {
                ours.problems.push(format!("not ahead of {name}"));
            }
        }
        self.entries.push(Entry::new(name, false, summary));
    }

    /// The first entry must have so many times the rows a second of that one.
    pub(crate) fn ahead(&mut self, of: &str, times: f64) {
        let other = self.entries.iter().find(|entry| entry.name == of).and_then(|entry| entry.summary);
        let ours = &mut self.entries[0];
        if let (Some(summary), Some(other)) = (ours.summary, other)
            && summary.wall * times > other.wall
        {
            ours.problems
                .push(format!("{:.1} times as fast as {of}, at least {times}", other.wall / summary.wall));
        }
    }

    fn line(&self, entry: &Entry) -> String {
        let Entry { name, is_ours, bar, throughput, .. } = entry;
        let Some(summary) = &entry.summary else {
            return format!("| {} | | | {name} | not installed here | | | | | | | | |", self.name);
        };
        let optional = |value: Option<String>| value.unwrap_or_default();
        let ratio = |value: f64| format!("{value:.2}");
        let positive =
            |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { String::new() };
        format!(
            "| {} | {} | {} | {name} | {:.3} | {} | {} | {} | {} | {} | {:.2} | {} | {} |",
            self.name,
            self.cores.name(),
            self.rtt_ms,
            summary.wall,
            optional(self.limit.map(|limit| ratio(summary.wall / limit.wall))),
            optional(bar.map(ratio)),
            optional(throughput.map(ratio)),
            positive(summary.rows as f64 / summary.wall / 1e6, 2),
            positive(summary.ndjson_bytes as f64 / summary.wall / MB, 0),
            summary.cpu,
            positive(summary.peak_mb, 1),
            optional(self.dollars(summary).filter(|_| *is_ours).map(|dollars| format!("{dollars:.6}"))),
        )
    }

    /// Of a million rows, where one core was measured.
    fn dollars(&self, summary: &Summary) -> Option<f64> {
        let millions = summary.rows as f64 / 1e6;
        let price = summary.wall * ONE_CORE_GB * DOLLARS_PER_GB_SECOND + DOLLARS_PER_REQUEST;
        (self.cores == Cores::One && summary.rows >= 100_000).then_some(price / millions)
    }

    fn to_value(&self) -> Value {
        let of = |entry: &Entry| {
            let summary = entry.summary?;
            Some(json!({
                "by": entry.name, "wall_s": summary.wall, "wall_s_min": summary.fastest, "wall_s_max": summary.slowest,
                "ratio": self.limit.map(|limit| summary.wall / limit.wall), "bar": entry.bar,
                "throughput_ratio": entry.throughput, "cpu_s": summary.cpu,
                "peak_mb": (summary.peak_mb > 0.0).then_some(summary.peak_mb), "rows": summary.rows,
                "rows_per_s": summary.rows as f64 / summary.wall,
                "ndjson_mb_per_s": (summary.ndjson_bytes > 0).then_some(summary.ndjson_bytes as f64 / summary.wall / MB),
                "dollars_per_million_rows": self.dollars(&summary),
            }))
        };
        let limit = [Entry::new("limit", false, self.limit)];
        let by: Vec<Value> = limit.iter().chain(&self.entries).filter_map(of).collect();
        json!({"what": self.name, "cores": self.cores.name(), "rtt_ms": self.rtt_ms, "by": by})
    }
}

impl Summary {
    fn of(samples: &[Sample]) -> Self {
        let walls = sorted(samples.iter().map(|sample| sample.wall));
        let cpus = sorted(samples.iter().map(|sample| sample.cpu));
        let seconds = |time: Duration| time.as_secs_f64();
        Self {
            wall: median(&walls),
            fastest: seconds(walls[0]),
            slowest: seconds(walls[walls.len() - 1]),
            cpu: median(&cpus),
            peak_mb: samples.iter().map(|sample| sample.peak_bytes).max().unwrap_or(0) as f64 / MB,
            rows: samples[0].rows,
            ndjson_bytes: samples[0].ndjson_bytes,
        }
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

fn median(sorted: &[Duration]) -> f64 {
    let middle = sorted.len() / 2;
    let low = sorted[sorted.len().div_ceil(2) - 1];
    (low + sorted[middle]).as_secs_f64() / 2.0
}
