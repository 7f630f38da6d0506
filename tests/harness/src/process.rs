//! Child processes that die with us, and their logs.
//!
//! Where `setpriv` exists (Linux), they die even when this process is killed. That hangs on the parent *thread*:
//! start them from `block_on` or a test's own body, not from `spawn_blocking`, whose idle threads end.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::tools;

/// Longest wait for a component to answer, for a busy machine with two cores.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for a component to stop by itself before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A command that is killed with the thread that spawns it, and when its `Child` is dropped.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    command_ended_by("KILL", program)
}

/// Like [`command`], with another signal for the death of the parent.
pub fn command_ended_by(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = match setpriv() {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.kill_on_drop(true);
    command
}

/// Sends a signal, by name. Without `unsafe` there is no kill(2); every POSIX shell has it built in.
pub fn signal(pids: &[u32], name: &str) {
    if pids.is_empty() {
        return;
    }
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let script = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    // A process that has already ended is what the caller wants.
    let _ = std::process::Command::new("sh").args(["-c", &script]).status();
}

/// A figure of proc(5)'s `status`, which has it in kilobytes: `VmRSS:`, `VmHWM:`. 0 where there is none.
pub fn memory_bytes(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes << 10)
}

/// Runs a command to its end; returns what it printed.
pub(crate) async fn run(mut command: Command) -> String {
    let name = format!("{:?}", command.as_std());
    let result = command.stdin(Stdio::null()).output().await;
    let output = result.unwrap_or_else(|error| panic!("{name}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs commands side by side, all to their end.
pub(crate) async fn run_all(commands: Vec<Command>) {
    let mut children = Vec::new();
    for mut command in commands {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let name = format!("{:?}", command.as_std());
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        children.push((name, child));
    }
    for (name, child) in children {
        let result = child.wait_with_output().await;
        let output = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    }
}

/// The living children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let children = parents().into_iter().filter(|(_, parent)| *parent == pid);
    children.map(|(child, _)| child).collect()
}

/// The living descendants of a process.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let parents = parents();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let ancestor = found[next];
        found.extend(parents.iter().filter(|(_, parent)| *parent == ancestor).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

/// A long-running component: its output goes to a file, and dropping it stops it.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    stop_signal: &'static str,
    child: Child,
    log: PathBuf,
    deadline: Instant,
}

impl Daemon {
    pub(crate) fn spawn(
        name: &'static str,
        stop_signal: &'static str,
        mut command: Command,
        log: PathBuf,
    ) -> Daemon {
        let file = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let same_file = file.try_clone().expect("a log file's handle can be cloned");
        command.stdin(Stdio::null()).stdout(file).stderr(same_file);
        // Ctrl-C goes to the terminal's whole foreground group. The stack must outlive the tests that it interrupts.
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Daemon { name, stop_signal, child, log, deadline: Instant::now() + START_LIMIT }
    }

    pub(crate) fn log(&self) -> String {
        read_lossy(&self.log)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} has ended:\n{}", self.name, last_lines(&self.log)))
    }

    /// Waits a moment for the component to answer. Panics with its log if it has ended or had its time.
    pub(crate) async fn keep_waiting(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} ended with {status}:\n{}", self.name, last_lines(&self.log));
        }
        assert!(
            Instant::now() < self.deadline,
            "{} did not answer within {} s:\n{}",
            self.name,
            START_LIMIT.as_secs(),
            last_lines(&self.log),
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(pid) = self.child.id() else { return };
        signal(&[pid], self.stop_signal);
        let deadline = Instant::now() + STOP_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // `kill_on_drop` ends what is left.
    }
}

fn setpriv() -> Option<&'static Path> {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = tools::in_path("setpriv")?;
        // busybox has a setpriv without it.
        let help = std::process::Command::new(&path).arg("--help").output().ok()?;
        String::from_utf8_lossy(&help.stdout).contains("--pdeathsig").then_some(path)
    };
    SETPRIV.get_or_init(find).as_deref()
}

fn read_lossy(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn last_lines(log: &Path) -> String {
    let text = read_lossy(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Every living process and its parent.
fn parents() -> Vec<(u32, u32)> {
    if Path::new("/proc/self/stat").exists() {
        let entries = fs::read_dir("/proc").expect("/proc is readable");
        return entries.filter_map(|entry| parent(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect();
    }
    let output = std::process::Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid="]).output();
    let output = output.expect("ps runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let pair = |line: &str| -> Option<(u32, u32)> {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn parent(pid: u32) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "4711 (any (name)) S 1 …": the name may hold anything, so read from its last bracket (proc(5)).
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    let parent = fields.next()?.parse().ok()?;
    (!is_zombie).then_some((pid, parent))
}
