//! `harness run [--] CMD ARGS…` runs a command with the local stack; `harness up` keeps one until Ctrl-C.

use std::{
    env,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use harness::{BUCKET, STACK_VARIABLE, Stack, process, running::Running, tools};
use tokio::{
    process::Child,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

const USAGE: &str = "usage: harness run [--] CMD ARGS…   run CMD with the local stack
       harness up                   start the local stack and keep it until Ctrl-C";
/// Longest wait for an interrupted command before it is killed.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(10);

enum Action {
    Run(Vec<OsString>),
    Up,
}

fn main() -> ExitCode {
    let Some(action) = parse(env::args_os().skip(1).collect()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some(missing) = tools::missing() {
        eprintln!("{missing}");
        return ExitCode::FAILURE;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be built");
    // On the main thread, which the servers' lives hang on (see `harness::process`).
    ExitCode::from(runtime.block_on(run(action)))
}

fn parse(mut arguments: Vec<OsString>) -> Option<Action> {
    if arguments.is_empty() {
        return None;
    }
    let action = arguments.remove(0);
    if action == "up" && arguments.is_empty() {
        return Some(Action::Up);
    }
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    (action == "run" && !arguments.is_empty()).then_some(Action::Run(arguments))
}

/// The exit code: the command's, or 128 and a signal's number as in a shell.
async fn run(action: Action) -> u8 {
    let mut signals = Signals::new();
    let running = tokio::select! {
        running = Running::start() => running,
        number = signals.next() => return 128 + number,
    };
    match action {
        Action::Up => {
            print_usage(&running.stack);
            128 + signals.next().await
        }
        Action::Run(command) => run_command(command, &running.stack, &mut signals).await,
    }
    // Dropping `running` stops the stack.
}

async fn run_command(mut command: Vec<OsString>, stack: &Stack, signals: &mut Signals) -> u8 {
    let program = command.remove(0);
    // TERM rather than KILL: cargo's children end with it only if it may tell them.
    let mut child = process::command_ended_by("TERM", &program);
    child.args(command).env(STACK_VARIABLE, json(stack));
    let mut child = match child.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            return 127;
        }
    };
    tokio::select! {
        status = child.wait() => code(status.expect("the child can be waited for")),
        number = signals.next() => {
            interrupt(&mut child, number, signals).await;
            128 + number
        }
    }
}

/// Lets the command end, for a while, or until the second signal.
async fn interrupt(child: &mut Child, number: u8, signals: &mut Signals) {
    // The terminal sends Ctrl-C to the command as well; other signals come to us alone.
    if number != Signals::INTERRUPT
        && let Some(pid) = child.id()
    {
        process::signal(&[pid], "TERM");
    }
    tokio::select! {
        _ = timeout(INTERRUPT_LIMIT, child.wait()) => {}
        _ = signals.next() => {}
    }
    // It fails if the command has ended, which is as well.
    let _ = child.kill().await;
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn json(stack: &Stack) -> String {
    serde_json::to_string(stack).expect("paths are UTF-8")
}

fn print_usage(stack: &Stack) {
    let Stack { dir, postgres, bastion, s3, secrets_endpoint } = stack;
    let (dir, json) = (dir.display(), json(stack));
    println!(
        "
For tests in another shell, then `cargo test`:
  export {STACK_VARIABLE}='{json}'
PostgreSQL, directly and through the bastion:
  PGPASSWORD={password} psql -h {host} -p {port} -U {user}
  ssh -N -L 15432:{host}:{port} -p {ssh_port} -i {dir}/client_keys/ed25519 {ssh_user}@{ssh_host}
S3, s3://{BUCKET}, and Secrets Manager:
  export AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}
  export AWS_ENDPOINT_URL_S3={s3_endpoint} AWS_ENDPOINT_URL_SECRETS_MANAGER={secrets_endpoint}
Ctrl-C stops it.",
        password = postgres.password,
        host = postgres.host,
        port = postgres.port,
        user = postgres.superuser,
        ssh_port = bastion.port,
        ssh_user = bastion.user,
        ssh_host = bastion.host,
        access_key = s3.access_key,
        secret_key = s3.secret_key,
        s3_endpoint = s3.endpoint,
    );
}

/// The signals that end us.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    const HANG_UP: u8 = 1;
    const INTERRUPT: u8 = 2;
    const TERMINATE: u8 = 15;

    fn new() -> Signals {
        let listen = |kind| signal(kind).expect("signals can be listened for");
        Signals {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hang_up: listen(SignalKind::hangup()),
        }
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => Signals::INTERRUPT,
            _ = self.terminate.recv() => Signals::TERMINATE,
            _ = self.hang_up.recv() => Signals::HANG_UP,
        }
    }
}
