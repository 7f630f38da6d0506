//! AWS Lambda: the Runtime API, served to the real binary, with Lambda's own limits and error types.

use std::{
    collections::HashMap,
    env,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Child,
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{REGION, http::Server, process, random};

/// What Lambda takes for an answer, at most.
const ANSWER_BYTES: usize = 6_291_556;
/// Longest wait for the binary to ask for its event. Lambda gives ten seconds, on a machine that it does not share.
const INIT_LIMIT: Duration = Duration::from_secs(60);
const POISONED: &str = "nothing panics while holding it";

#[derive(Clone, Debug, Default)]
pub struct FunctionOptions {
    pub binary: PathBuf,
    /// In addition to what Lambda sets. The environment of the tests is not passed on.
    pub env: Vec<(String, String)>,
}

/// One sandbox: one process, which takes one event at a time. Dropping it kills the process.
#[derive(Debug)]
pub struct Function {
    api: Arc<Api>,
    events: mpsc::UnboundedSender<Event>,
    logs: Logs,
    pid: u32,
    kill: Arc<Notify>,
    ended: watch::Receiver<Option<String>>,
    watcher: JoinHandle<()>,
    _server: Server,
}

#[derive(Clone, Debug)]
pub struct Invocation {
    pub request_id: String,
    pub outcome: Result<Value, FunctionError>,
    /// From handing out the event to the answer, without the cold start.
    pub elapsed: Duration,
    pub response_bytes: usize,
}

/// What a caller of Lambda sees. The process's death is `Runtime.ExitError` and its lateness `Sandbox.Timedout`, with
/// its last log lines in the message.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct FunctionError {
    #[serde(rename = "errorType", default)]
    pub error_type: String,
    #[serde(rename = "errorMessage", default)]
    pub message: String,
}

type Logs = Arc<Mutex<Vec<String>>>;

#[derive(Debug)]
struct Api {
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>,
    answers: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
    init_error: Mutex<Option<FunctionError>>,
}

#[derive(Debug)]
struct Event {
    request_id: String,
    payload: String,
    timeout: Duration,
    handed_out: oneshot::Sender<Instant>,
}

#[derive(Debug)]
enum Answer {
    Response(Bytes),
    Error(Bytes),
}

impl Function {
    /// Starts the binary. It may still be initializing when this returns.
    pub async fn start(options: FunctionOptions) -> Function {
        assert!(options.binary.is_file(), "no such binary: {}", options.binary.display());
        let (events, receiver) = mpsc::unbounded_channel();
        let api = Arc::new(Api {
            events: tokio::sync::Mutex::new(receiver),
            answers: Mutex::default(),
            init_error: Mutex::default(),
        });
        let served = Arc::clone(&api);
        let server = Server::start(move |request| Arc::clone(&served).answer(request)).await;

        let mut command = process::command(&options.binary);
        command
            .env_clear()
            .envs(["PATH", "HOME"].into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
        command.envs([
            ("AWS_LAMBDA_RUNTIME_API", server.address.to_string().as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "bastion-sync"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_LOG_FORMAT", "JSON"),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test-secret"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command.envs(options.env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let result = command.spawn();
        let mut child = result.unwrap_or_else(|error| panic!("{}: {error}", options.binary.display()));
        let pid = child.id().expect("nobody has waited for it yet");
        let logs = Logs::default();
        tokio::spawn(keep_lines(child.stdout.take().expect("stdout is a pipe"), Arc::clone(&logs)));
        tokio::spawn(keep_lines(child.stderr.take().expect("stderr is a pipe"), Arc::clone(&logs)));
        let kill = Arc::new(Notify::new());
        let (end, ended) = watch::channel(None);
        let watcher = tokio::spawn(watch_over(child, Arc::clone(&kill), end));
        Function { api, events, logs, pid, kill, ended, watcher, _server: server }
    }

    /// Invokes the function, which has `timeout` from receiving the event, and is killed then, as Lambda does.
    pub async fn invoke(&self, event: &Value, timeout: Duration) -> Invocation {
        let request_id = random::uuid();
        let (answer, answered) = oneshot::channel();
        let (handed_out, received) = oneshot::channel();
        self.api.answers.lock().expect(POISONED).insert(request_id.clone(), answer);
        let event = Event { request_id: request_id.clone(), payload: event.to_string(), timeout, handed_out };
        self.events.send(event).expect("the receiver is ours");

        let received = tokio::select! {
            biased;
            Ok(received) = received => Ok(received),
            () = self.ended() => Err(self.exit_error()),
            () = sleep(INIT_LIMIT) => Err(self.error("Sandbox.Timedout", "the binary did not ask for its event")),
        };
        let (answer, elapsed) = match received {
            Ok(received) => (self.answer(answered, received + timeout, timeout).await, received.elapsed()),
            Err(error) => (Err(error), Duration::ZERO),
        };
        // What the binary logged before it answered is in its pipe: let our readers have it.
        sleep(Duration::from_millis(5)).await;
        let response_bytes = answer.as_ref().map_or(0, |(_, byte_count)| *byte_count);
        Invocation { request_id, outcome: answer.map(|(value, _)| value), elapsed, response_bytes }
    }

    /// Lines of stdout and stderr, in the order of their arrival.
    pub fn logs(&self) -> Vec<String> {
        self.logs.lock().expect(POISONED).clone()
    }

    /// The most memory that the process has had resident (Linux).
    pub fn peak_memory_bytes(&self) -> u64 {
        process::memory_bytes(self.pid(), "VmHWM:")
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills the process (SIGKILL) and waits for its end.
    pub async fn kill(&self) {
        self.kill.notify_one();
        self.ended().await;
    }

    /// Waits for the process's end.
    pub async fn ended(&self) {
        // An error means that the watcher is gone, and the child with it.
        let _ = self.ended.clone().wait_for(Option::is_some).await;
    }

    async fn answer(
        &self,
        mut answered: oneshot::Receiver<Answer>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(Value, usize), FunctionError> {
        tokio::select! {
            biased;
            Ok(answer) = &mut answered => self.read_answer(answer),
            () = self.ended() => match timeout(Duration::from_millis(100), answered).await {
                // It answered with its last breath.
                Ok(Ok(answer)) => self.read_answer(answer),
                Ok(Err(_)) | Err(_) => Err(self.exit_error()),
            },
            () = sleep_until(deadline) => {
                self.kill().await;
                Err(self.error("Sandbox.Timedout", &format!("Task timed out after {:.2} seconds", limit.as_secs_f64())))
            }
        }
    }

    fn read_answer(&self, answer: Answer) -> Result<(Value, usize), FunctionError> {
        match answer {
            Answer::Response(body) if body.len() > ANSWER_BYTES => Err(FunctionError {
                error_type: "Function.ResponseSizeTooLarge".to_owned(),
                message: format!("the answer has {} bytes, the limit is {ANSWER_BYTES}", body.len()),
            }),
            Answer::Response(body) => match serde_json::from_slice(&body) {
                Ok(value) => Ok((value, body.len())),
                Err(error) => {
                    Err(self.error("Runtime.InvalidResponse", &format!("the answer is not JSON: {error}")))
                }
            },
            Answer::Error(body) => Err(parse_error(&body)),
        }
    }

    fn exit_error(&self) -> FunctionError {
        let init_error = self.api.init_error.lock().expect(POISONED).clone();
        let status = self.ended.borrow().clone().unwrap_or_default();
        init_error.unwrap_or_else(|| {
            self.error("Runtime.ExitError", &format!("Runtime exited with error: {status}"))
        })
    }

    fn error(&self, error_type: &str, message: &str) -> FunctionError {
        let logs = self.logs();
        let last = logs[logs.len().saturating_sub(20)..].join("\n");
        FunctionError { error_type: error_type.to_owned(), message: format!("{message}\n{last}") }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // Now, and not when the runtime gets round to dropping the child.
        if self.ended.borrow().is_none() {
            process::signal(&[self.pid], "KILL");
        }
        self.watcher.abort();
    }
}

impl Invocation {
    /// The answer; panics if the function failed.
    #[track_caller]
    pub fn answer(self) -> Value {
        self.outcome
            .unwrap_or_else(|error| panic!("the function failed: {}: {}", error.error_type, error.message))
    }

    /// The error; panics if the function succeeded.
    #[track_caller]
    pub fn error(self) -> FunctionError {
        match self.outcome {
            Ok(value) => panic!("the function should have failed, but answered {value}"),
            Err(error) => error,
        }
    }
}

impl Api {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        // Bodies may come in chunks.
        let body = request.into_body().collect().await?.to_bytes();
        let words: Vec<&str> = path.split('/').skip(1).collect();
        Ok(match words.as_slice() {
            ["2018-06-01", "runtime", "invocation", "next"] => self.next_event().await,
            ["2018-06-01", "runtime", "invocation", id, "response"] => self.take(id, Answer::Response(body)),
            ["2018-06-01", "runtime", "invocation", id, "error"] => self.take(id, Answer::Error(body)),
            ["2018-06-01", "runtime", "init", "error"] => {
                *self.init_error.lock().expect(POISONED) = Some(parse_error(&body));
                reply(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
            }
            _ => reply(StatusCode::NOT_FOUND, r#"{"errorType":"NotFound","errorMessage":"no such path"}"#),
        })
    }

    /// Waits for an event, as long as it takes.
    async fn next_event(&self) -> Response<Full<Bytes>> {
        loop {
            let Some(event) = self.events.lock().await.recv().await else {
                // The `Function` is gone, and the process about to be.
                return std::future::pending().await;
            };
            if event.handed_out.send(Instant::now()).is_err() {
                // Its `invoke` is no longer waiting.
                continue;
            }
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
            let deadline_ms = (since_epoch + event.timeout).as_millis();
            return Response::builder()
                .header("content-type", "application/json")
                .header("lambda-runtime-aws-request-id", event.request_id)
                .header("lambda-runtime-deadline-ms", deadline_ms.to_string())
                .header("lambda-runtime-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0")
                .header(
                    "lambda-runtime-invoked-function-arn",
                    format!("arn:aws:lambda:{REGION}:123456789012:function:bastion-sync"),
                )
                .body(Full::from(event.payload))
                .expect("the headers are valid");
        }
    }

    fn take(&self, request_id: &str, answer: Answer) -> Response<Full<Bytes>> {
        let Some(waiting) = self.answers.lock().expect(POISONED).remove(request_id) else {
            let unknown = r#"{"errorType":"InvalidRequestID","errorMessage":"Invalid request ID"}"#;
            return reply(StatusCode::BAD_REQUEST, unknown);
        };
        let is_too_large = matches!(&answer, Answer::Response(body) if body.len() > ANSWER_BYTES);
        // Nobody is told if the `invoke` has stopped waiting, as in Lambda.
        let _ = waiting.send(answer);
        if is_too_large {
            let too_large = r#"{"errorType":"RequestEntityTooLarge","errorMessage":"Exceeded maximum allowed payload size"}"#;
            return reply(StatusCode::PAYLOAD_TOO_LARGE, too_large);
        }
        reply(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
    }
}

fn reply(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Full::from(body)).expect("the headers are valid")
}

pub(crate) fn parse_error(body: &[u8]) -> FunctionError {
    serde_json::from_slice(body).unwrap_or_else(|_| FunctionError {
        error_type: "Runtime.InvalidError".to_owned(),
        message: String::from_utf8_lossy(body).into_owned(),
    })
}

async fn keep_lines(pipe: impl AsyncRead + Unpin, logs: Logs) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    // By bytes, since `lines()` ends at the first that is not UTF-8.
    while pipe.read_until(b'\n', &mut line).await.is_ok_and(|byte_count| byte_count > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        logs.lock().expect(POISONED).push(text);
        line.clear();
    }
}

/// Owns the child, so that waiting for it and killing it do not exclude each other.
async fn watch_over(mut child: Child, kill: Arc<Notify>, end: watch::Sender<Option<String>>) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.notified() => {
            // It fails if the child has just ended.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    end.send_replace(Some(status.map_or_else(|error| error.to_string(), |status| status.to_string())));
}
