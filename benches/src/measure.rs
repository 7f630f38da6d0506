//! How long something takes, and what of the processor and the memory: of commands, and of the function.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Function, FunctionOptions, process};
use serde_json::{Value, json};

/// Longest wait for one run of anything.
const LIMIT: Duration = Duration::from_secs(600);

/// One run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    /// Of the client's processes only: not the server's, the bastion's or S3's.
    pub(crate) cpu: Duration,
    /// The most memory resident; 0: not measured.
    pub(crate) peak_bytes: u64,
    pub(crate) rows: u64,
    /// Before compression; 0: not measured.
    pub(crate) ndjson_bytes: u64,
}

/// How many cores the client's processes may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cores {
    One,
    All,
}

impl Cores {
    pub(crate) fn name(self) -> String {
        match self {
            Self::One => "1".to_owned(),
            Self::All => std::thread::available_parallelism().map_or(0, usize::from).to_string(),
        }
    }

    fn prefix(self) -> &'static [&'static str] {
        match self {
            Self::One => &["taskset", "--cpu-list", "0"],
            Self::All => &[],
        }
    }
}

/// Runs a bash script to its end; the rows are known to the caller.
pub(crate) async fn script(text: &str, env: &[(String, String)], cores: Cores) -> (Sample, String) {
    let words = [cores.prefix(), &["bash", "-euo", "pipefail", "-c", text]].concat();
    let mut command = process::command(words[0]);
    command.args(&words[1..]).envs(env.iter().cloned()).stdin(Stdio::null());
    let (began, cpu) = (Instant::now(), children_cpu());
    let output = command.output().await.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let wall = began.elapsed();
    assert!(
        output.status.success(),
        "{}: {}\n{}",
        text,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let sample = Sample { wall, cpu: children_cpu() - cpu, ..Sample::default() };
    (sample, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A warm sandbox of the function.
pub(crate) struct Sandbox {
    function: Function,
    /// What the first sync answered.
    pub(crate) first: Value,
}

impl Sandbox {
    /// Starts the function and lets it sync once, which also fetches its secrets.
    pub(crate) async fn start(binary: &Path, env: Vec<(String, String)>, cores: Cores) -> Self {
        let function = Function::start(FunctionOptions { binary: pinned(binary, cores), env }).await;
        let mut sandbox = Self { function, first: Value::Null };
        sandbox.first = sandbox.sync().await.1;
        sandbox
    }

    /// Calls until nothing is left to do.
    pub(crate) async fn sync(&self) -> (Sample, Value) {
        let pid = self.function.pid();
        // proc(5): forgets the highest mark so far.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        let mut sample = Sample::default();
        let cpu = cpu_of(pid);
        loop {
            let invocation = self.function.invoke(&json!({}), LIMIT).await;
            sample.wall += invocation.elapsed;
            let answer = invocation.answer();
            assert_eq!(answer["failed"], 0, "{answer}");
            for table in answer["tables"].as_array().into_iter().flatten() {
                sample.rows += table["rows"].as_u64().unwrap_or_default();
                sample.ndjson_bytes += table["bytes"].as_u64().unwrap_or_default();
            }
            if answer["has_more"] != true {
                sample.cpu = cpu_of(pid) - cpu;
                sample.peak_bytes = self.function.peak_memory_bytes();
                return (sample, answer);
            }
        }
    }

    /// The same after the cursors of these tables were forgotten, which is not measured.
    pub(crate) async fn sync_anew(&self, tables: &[&str]) -> Sample {
        self.function.invoke(&json!({"action": "resync", "tables": tables}), LIMIT).await.answer();
        self.sync().await.0
    }
}

/// The binary itself, or a script beside it that keeps it to its cores.
fn pinned(binary: &Path, cores: Cores) -> PathBuf {
    if cores.prefix().is_empty() {
        return binary.to_owned();
    }
    let script = Path::new(crate::RESULTS).with_file_name("pinned");
    let text = format!("#!/bin/sh\nexec {} {}\n", cores.prefix().join(" "), binary.display());
    fs::write(&script, text).expect("target/bench is writable");
    let mut permissions = fs::metadata(&script).expect("it was written").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&script, permissions).expect("it is ours");
    script.canonicalize().expect("it exists")
}

/// Of all that this process has waited for, and what those have waited for.
fn children_cpu() -> Duration {
    ticks("/proc/self/stat", 15)
}

/// Of a process.
fn cpu_of(pid: u32) -> Duration {
    ticks(&format!("/proc/{pid}/stat"), 13)
}

/// proc(5): two fields of hundredths of a second, user and system, counted from 0.
fn ticks(path: &str, field: usize) -> Duration {
    let stat = fs::read_to_string(path).expect("Linux has /proc");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    let of = |i: usize| {
        fields.split_whitespace().nth(i - 2).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0)
    };
    Duration::from_millis(10 * (of(field) + of(field + 1)))
}
