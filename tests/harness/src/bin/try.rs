//! `make try`: your own tables, through your own bastion, into a directory, by the real function. It takes no AWS account
//! and touches none: this process is its Lambda, its Secrets Manager and its S3.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::one_secret::OneSecret;
use harness::s3::S3;
use harness::{BUCKET, Function, FunctionError, FunctionOptions};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: make try CONFIG=configuration.json [TABLES=public.users,sales.*] [OUT=out]";
/// Lambda's longest: the function commits as it goes, and says `has_more` when this is over.
const INVOCATION_LIMIT: Duration = Duration::from_secs(900);
/// For so long nothing new is no news.
const QUIET: Duration = Duration::from_secs(10);

struct Arguments {
    config: PathBuf,
    tables: Option<String>,
    out: PathBuf,
}

/// What a person is told when it does not work.
struct Failure {
    what: String,
    hints: Vec<String>,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be built");
    // On the main thread, which the function's life hangs on (see `harness::process`).
    let code = runtime.block_on(run(&arguments));
    // The thread that waits for an answer is not waited for.
    runtime.shutdown_background();
    ExitCode::from(code)
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let mut next = || arguments.next().filter(|argument| !argument.is_empty());
    let config = PathBuf::from(next()?);
    let tables = match next() {
        Some(tables) => Some(tables.into_string().ok()?),
        None => None,
    };
    let out = next().map_or_else(|| PathBuf::from("out"), PathBuf::from);
    next().is_none().then_some(Arguments { config, tables, out })
}

/// The exit code. A signal drops what is under way, and with it the function.
async fn run(arguments: &Arguments) -> u8 {
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    let number = tokio::select! {
        biased;
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        // On the heap: it is large.
        outcome = Box::pin(attempt(arguments)) => return match outcome {
            Ok(()) => 0,
            Err(failure) => {
                failure.show();
                1
            }
        },
    };
    eprintln!("\nstopped; what was committed stays, and the same command goes on from there");
    128 + number
}

async fn attempt(arguments: &Arguments) -> Result<(), Failure> {
    let shown = arguments.config.display();
    let text = fs::read_to_string(&arguments.config).map_err(|error| {
        let hint =
            "CONFIG names the function's secret, a file: what it must hold is in README.md, Configuration";
        Failure::new(format!("{shown}: {error}")).hint(hint)
    })?;
    let mut pin = Pin::read(&arguments.config, &text)?;
    let binary = binary()?;
    let root = fs::create_dir_all(&arguments.out).and_then(|()| fs::canonicalize(&arguments.out));
    let root = root.map_err(|error| Failure::new(format!("{}: {error}", arguments.out.display())))?;
    let _lock = lock(&root, arguments)?;
    sweep(&root);
    let s3 = S3::serve(&root, &[BUCKET]).await;
    // Errors call the secret by its name, which is therefore the file's.
    let name =
        arguments.config.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let secret = OneSecret::start(&name, &text, &s3.address.access_key).await;
    let env = environment(&name, arguments, &root, &s3, &secret);
    let mut progress = Progress::new();

    let first = if arguments.tables.is_some() { "check" } else { "discover" };
    let mut function = start(&binary, &env, &pin).await;
    let mut outcome = watch(&function, first, &mut progress).await;
    if let Some(key) = outcome.as_ref().err().and_then(|error| unknown_key(error, &pin)) {
        // Nothing runs while the question waits.
        drop(function);
        pin.ask(&key).await?;
        function = start(&binary, &env, &pin).await;
        outcome = watch(&function, first, &mut progress).await;
    }
    match outcome {
        Ok(answer) if arguments.tables.is_none() => return show_discovered(&answer, arguments),
        Ok(answer) => show_checked(&answer),
        // The sync tells it, and lets the other tables go on.
        Err(error) if arguments.tables.is_some() && is_of_table(&error) => {}
        Err(error) => return Err(explained(&error, &pin, arguments)),
    }

    let since = last_looks(&root);
    let began = Instant::now();
    let mut total = Total::default();
    // It ends: `has_more` is true only after progress.
    let failure = loop {
        match watch(&function, "sync", &mut progress).await {
            Ok(answer) => {
                total.add(&answer);
                progress.settle(&total);
                if answer["has_more"] != true {
                    break None;
                }
            }
            Err(error) => break Some(explained(&error, &pin, arguments)),
        }
    };
    total.show(&since, began.elapsed(), &root, &arguments.out);
    match failure {
        Some(failure) => Err(failure),
        None if total.has_failed() => Err(Failure::new("not every table could be synced")
            .hint("the others are complete; mend these, and run it again")),
        None => Ok(()),
    }
}

fn is_of_table(error: &FunctionError) -> bool {
    matches!(error.error_type.as_str(), "PermissionDenied" | "SchemaChanged")
}

fn binary() -> Result<PathBuf, Failure> {
    let binary = env::var_os("FUNCTION").map(PathBuf::from).filter(|binary| binary.is_file());
    binary.ok_or_else(|| Failure::new("FUNCTION names no file").hint("run it by `make try`"))
}

/// Two writers at once would not see each other's turns (see `S3::serve`). The lock ends with the process.
fn lock(root: &Path, arguments: &Arguments) -> Result<File, Failure> {
    let out = arguments.out.display();
    let lock = File::create(root.join(".lock")).map_err(|error| Failure::new(format!("{out}: {error}")))?;
    if lock.try_lock().is_err() {
        return Err(Failure::new(format!("another `make try` writes to {out}"))
            .hint("wait for its end, or name another directory by OUT"));
    }
    Ok(lock)
}

/// Removes the uploads that killed runs left and no commit names; in a real bucket a lifecycle rule does.
fn sweep(root: &Path) {
    let checkpoint = fs::read_to_string(root.join(BUCKET).join("_state/checkpoint.json")).unwrap_or_default();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(upload_id).is_some_and(|id| !checkpoint.contains(id)) {
            // What stays is only in the way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The id in `.upload_id-{id}.part-1`, `.upload-{id}.json` and `.bucket-….object-….upload-{id}.metadata.json`.
fn upload_id(file_name: &str) -> Option<&str> {
    let (_, rest) = file_name.split_once(".upload_id-").or_else(|| file_name.rsplit_once(".upload-"))?;
    let is_id = |id: &&str| id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    rest.get(..36).filter(is_id).filter(|_| file_name.starts_with('.'))
}

/// The function's environment: nothing in it is of the person's own AWS.
fn environment(
    secret_name: &str,
    arguments: &Arguments,
    root: &Path,
    s3: &S3,
    secret: &OneSecret,
) -> Vec<(String, String)> {
    let (output_uri, home) = (format!("s3://{BUCKET}"), root.to_string_lossy());
    let variables: [(&str, &str); 7] = [
        ("BASTION_SECRET_ID", secret_name),
        ("OUTPUT_URI", &output_uri),
        ("AWS_ENDPOINT_URL_S3", &s3.address.endpoint),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &secret.endpoint),
        ("AWS_ACCESS_KEY_ID", &s3.address.access_key),
        ("AWS_SECRET_ACCESS_KEY", &s3.address.secret_key),
        // Where the SDK looks for .aws/config.
        ("HOME", &home),
    ];
    let mut variables: Vec<(String, String)> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    variables.extend(arguments.tables.iter().map(|tables| ("TABLES".to_owned(), tables.clone())));
    // The one setting without which a table may not be worth a try.
    if let Ok(column) = env::var("CURSOR_COLUMN") {
        variables.push(("CURSOR_COLUMN".to_owned(), column));
    }
    variables
}

async fn start(binary: &Path, env: &[(String, String)], pin: &Pin) -> Function {
    let mut env = env.to_vec();
    if let Some(text) = &pin.text {
        env.push(("BASTION_HOST_KEY".to_owned(), text.clone()));
    }
    Function::start(FunctionOptions { binary: binary.to_owned(), env }).await
}

/// Invokes an action, and shows its progress meanwhile.
async fn watch(function: &Function, action: &str, progress: &mut Progress) -> Result<Value, FunctionError> {
    progress.begin(function.logs().len());
    let event = json!({"action": action});
    let mut invocation = pin!(function.invoke(&event, INVOCATION_LIMIT));
    let mut ticks = tokio::time::interval(progress.period());
    // The first comes at once.
    ticks.tick().await;
    let invocation = loop {
        tokio::select! {
            invocation = &mut invocation => break invocation,
            _ = ticks.tick() => {
                progress.read(&function.logs());
                progress.show();
            }
        }
    };
    progress.read(&function.logs());
    progress.clear();
    if invocation.outcome.as_ref().is_err_and(|error| error.error_type == "Runtime.ExitError") {
        // Ctrl-C goes to the function, too, and may end it before we hear of it.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    invocation.outcome
}

/// The bastion's key where the configuration has none: a file beside it, so that the configuration stays as it is.
struct Pin {
    file: PathBuf,
    /// What the file holds.
    text: Option<String>,
    /// The configuration has keys of its own: then they alone count, and there is one place to look at.
    is_configured: bool,
}

/// A bastion's key that nothing is pinned for.
#[derive(Debug, PartialEq, Eq)]
struct UnknownKey {
    /// Who presented which key, with its fingerprint.
    presented: String,
    /// Prints the fingerprint on the bastion itself.
    command: String,
    /// For known_hosts.
    line: String,
}

impl Pin {
    fn read(config: &Path, configuration: &str) -> Result<Pin, Failure> {
        let file = pin_file(config);
        let configuration: Value = serde_json::from_str(configuration).unwrap_or_default();
        let own = &configuration["bastion_host_key"];
        let is_configured = !own.is_null() && own != "";
        if is_configured {
            return Ok(Pin { file, text: None, is_configured });
        }
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Pin { file, text: Some(text), is_configured }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Pin { file, text: None, is_configured })
            }
            Err(error) => Err(Failure::new(format!("{}: {error}", file.display()))),
        }
    }

    /// Asks as ssh does, and pins the key if the answer is yes.
    async fn ask(&mut self, key: &UnknownKey) -> Result<(), Failure> {
        eprintln!("{}", key.presented);
        eprintln!(
            "and no key is pinned for it. Compare the fingerprint with what this prints on the bastion itself:"
        );
        eprintln!("  {}", key.command);
        eprint!("Is this the bastion's key? Type yes to pin it: ");
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|_| line)
        });
        let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
        if answer.trim() != "yes" {
            // The end of the input has not ended the line.
            eprintln!();
            return Err(Failure::new(
                "the bastion's key is not pinned, and the bastion has been told nothing",
            )
            .hint("whoever runs the bastion can tell its fingerprint"));
        }
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file);
        let written = written.and_then(|mut file| writeln!(file, "{}", key.line));
        written.map_err(|error| Failure::new(format!("{}: {error}", self.file.display())))?;
        eprintln!("pinned in {}", self.file.display());
        self.text = Some(key.line.clone());
        Ok(())
    }
}

/// `configuration.known_hosts` beside `configuration.json`.
fn pin_file(config: &Path) -> PathBuf {
    if config.extension().is_some_and(|extension| extension == "json") {
        return config.with_extension("known_hosts");
    }
    let mut name = config.as_os_str().to_owned();
    name.push(".known_hosts");
    PathBuf::from(name)
}

/// The key that the function's error names, if it may be asked about: nothing at all is pinned.
fn unknown_key(error: &FunctionError, pin: &Pin) -> Option<UnknownKey> {
    if error.error_type != "BastionHostKeyMismatch" || pin.is_configured || pin.text.is_some() {
        return None;
    }
    let (presented, hint) = error.message.split_once(", and bastion_host_key has no entry for it")?;
    let (_, line) = hint.split_once("add this line to bastion_host_key: ")?;
    let command = hint.split('`').nth(1)?;
    Some(UnknownKey {
        presented: presented.to_owned(),
        command: command.to_owned(),
        line: line.lines().next()?.trim().to_owned(),
    })
}

impl Failure {
    fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), hints: Vec::new() }
    }

    fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// The function's own words: `context: cause. Hint: what to do`.
    fn of(error_type: &str, message: &str) -> Failure {
        match message.split_once(". Hint: ") {
            Some((what, hint)) => Failure::new(format!("{error_type}: {what}")).hint(hint),
            None => Failure::new(format!("{error_type}: {message}")),
        }
    }

    fn show(&self) {
        eprintln!("error: {}", self.what);
        for hint in &self.hints {
            eprintln!("hint: {hint}");
        }
    }
}

/// The function's error, with what only this program knows.
fn explained(error: &FunctionError, pin: &Pin, arguments: &Arguments) -> Failure {
    let failure = Failure::of(&error.error_type, &error.message);
    let is_of_pin =
        error.error_type == "BastionHostKeyMismatch" || error.message.contains("BASTION_HOST_KEY");
    match error.error_type.as_str() {
        _ if is_of_pin && pin.text.is_some() => failure.hint(format!(
            "what is pinned stands in {}; nothing there was changed, and a line that you have checked goes there",
            pin.file.display()
        )),
        "SecretMalformed" if failure.hints.is_empty() => failure.hint(format!(
            "what {} must hold is in README.md, Configuration",
            arguments.config.display()
        )),
        "CursorInvalid" => failure.hint(format!(
            "{} goes on with the database that it began with; name another directory by OUT for another one",
            arguments.out.display()
        )),
        _ => failure,
    }
}

fn show_checked(answer: &Value) {
    for table in answer["tables"].as_array().into_iter().flatten() {
        let cursor = match table["cursor_column"].as_str() {
            Some(column) => format!("cursor column {column}"),
            None => "no cursor column: every run looks at each row".to_owned(),
        };
        println!("{}: key {}, {cursor}", text(&table["table"]), list(&table["primary_key"]));
    }
}

/// Lists the tables that are there, and the command that syncs them.
fn show_discovered(answer: &Value, arguments: &Arguments) -> Result<(), Failure> {
    let tables = answer["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let width = tables.iter().map(|table| text(&table["table"]).chars().count()).max().unwrap_or(0);
    for table in tables {
        let how = match (table["problem"].as_str(), table["cursor_column"].as_str()) {
            (Some(problem), _) => format!("not to be synced: {problem}"),
            (None, None) => "no cursor column: every run looks at each row".to_owned(),
            (None, Some(column)) if table["is_indexed"] == false => {
                format!("cursor column {column}, without an index: every run looks at each row")
            }
            (None, Some(column)) => format!("cursor column {column}"),
        };
        let unknown = || "?".to_owned();
        let rows = table["rows"].as_f64().map_or_else(unknown, |rows| thousands(rows.max(0.0) as u64));
        let size = table["bytes"].as_u64().map_or_else(unknown, megabytes);
        let (name, key) = (text(&table["table"]), list(&table["primary_key"]));
        println!("{name:width$}  about {rows:>13} rows  {size:>12}  key {key}  {how}");
    }
    let names = text(&answer["configuration"]["TABLES"]);
    if names.is_empty() {
        return Err(Failure::new("no table that this role may read can be synced")
            .hint("each needs a primary key, SELECT on it, and USAGE on its schema"));
    }
    let out = if arguments.out == Path::new("out") {
        String::new()
    } else {
        format!(" OUT={}", quoted(arguments.out.to_string_lossy()))
    };
    let config = quoted(arguments.config.to_string_lossy());
    println!(
        "\nNext, with the tables that you want:\n  make try CONFIG={config} TABLES={}{out}",
        quoted(&names)
    );
    Ok(())
}

/// When each table was last looked at, as the checkpoint has it.
fn last_looks(root: &Path) -> BTreeMap<String, String> {
    let checkpoint = fs::read(root.join(BUCKET).join("_state/checkpoint.json")).unwrap_or_default();
    let checkpoint: Value = serde_json::from_slice(&checkpoint).unwrap_or_default();
    let tables = checkpoint["state"]["tables"].as_object().into_iter().flatten();
    tables.filter_map(|(name, cursor)| Some((name.clone(), cursor["as_of"].as_str()?.to_owned()))).collect()
}

/// What all invocations did.
#[derive(Default)]
struct Total {
    tables: BTreeMap<String, Tally>,
    notes: BTreeSet<String>,
}

#[derive(Default)]
struct Tally {
    rows: u64,
    bytes: u64,
    objects: u64,
    lag_seconds: Option<f64>,
    /// Of the last commit.
    manifest: Option<String>,
    notes: BTreeSet<String>,
    failure: Option<Failure>,
}

impl Total {
    fn add(&mut self, answer: &Value) {
        self.notes.extend(answer["notes"].as_array().into_iter().flatten().map(text));
        for table in answer["tables"].as_array().into_iter().flatten() {
            let tally = self.tables.entry(text(&table["table"])).or_default();
            let number = |field: &str| table[field].as_u64().unwrap_or(0);
            tally.rows += number("rows");
            tally.bytes += number("bytes");
            tally.objects += number("objects");
            tally.lag_seconds = table["lag_seconds"].as_f64().or(tally.lag_seconds);
            if let Some(manifest) = table["manifest"].as_str() {
                tally.manifest = Some(manifest.to_owned());
            }
            tally.notes.extend(table["notes"].as_array().into_iter().flatten().map(text));
            // The last word counts.
            let error = table.get("error");
            tally.failure = error.map(|error| Failure::of(&text(&error["type"]), &text(&error["message"])));
        }
    }

    fn rows(&self) -> u64 {
        self.tables.values().map(|tally| tally.rows).sum()
    }

    fn bytes(&self) -> u64 {
        self.tables.values().map(|tally| tally.bytes).sum()
    }

    fn has_failed(&self) -> bool {
        self.tables.values().any(|tally| tally.failure.is_some())
    }

    fn show(&self, since: &BTreeMap<String, String>, elapsed: Duration, root: &Path, out: &Path) {
        for (name, tally) in &self.tables {
            println!("{name}: {}", tally.line(since.get(name)));
            for hint in tally.failure.iter().flat_map(|failure| &failure.hints) {
                println!("  hint: {hint}");
            }
            for note in &tally.notes {
                println!("  note: {note}");
            }
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        if self.tables.is_empty() {
            return;
        }
        let (rows, bytes, seconds) = (self.rows(), self.bytes(), elapsed.as_secs_f64());
        println!("{}, {} of NDJSON, in {seconds:.1} s", counted(rows, "row"), megabytes(bytes));
        let bucket = out.join(BUCKET);
        println!("\nEverything lies in {}, as it would in S3.", bucket.display());
        if let Some(key) =
            self.tables.values().find_map(|tally| newest_object(root, tally.manifest.as_deref()?))
        {
            let object = bucket.join(key);
            println!("The newest rows:\n  gzip -dc {} | head -3", quoted(object.to_string_lossy()));
        }
        println!("The same command again brings what changes meanwhile.");
    }
}

impl Tally {
    fn line(&self, since: Option<&String>) -> String {
        if let Some(failure) = &self.failure {
            return format!("error: {}", failure.what);
        }
        match (self.rows, since) {
            (0, Some(since)) => format!("nothing has changed since {}", readable(since)),
            (0, None) => "no rows".to_owned(),
            (rows, _) => {
                let lag = self.lag_seconds.map_or_else(String::new, |lag| format!(", as of {lag:.1} s ago"));
                let (rows, objects) = (counted(rows, "row"), counted(self.objects, "object"));
                format!("{rows}, {} in {objects}{lag}", megabytes(self.bytes))
            }
        }
    }
}

/// The key of the last object of a commit.
fn newest_object(root: &Path, manifest_uri: &str) -> Option<String> {
    let manifest = fs::read(root.join(manifest_uri.strip_prefix("s3://")?)).ok()?;
    let manifest: Value = serde_json::from_slice(&manifest).ok()?;
    Some(manifest["objects"].as_array()?.last()?["key"].as_str()?.to_owned())
}

/// What the function's log tells while it runs.
struct Progress {
    began: Instant,
    is_terminal: bool,
    /// How many lines of the log are known.
    seen: usize,
    is_open: bool,
    /// Rows and bytes of the invocations before.
    earlier: (u64, u64),
    /// Rows and bytes of each table in this invocation.
    tables: BTreeMap<String, (u64, u64)>,
    table: String,
    changed: Instant,
    warnings: BTreeSet<String>,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            began: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
            seen: 0,
            is_open: false,
            earlier: (0, 0),
            tables: BTreeMap::new(),
            table: String::new(),
            changed: Instant::now(),
            warnings: BTreeSet::new(),
        }
    }

    fn period(&self) -> Duration {
        if self.is_terminal { Duration::from_millis(500) } else { Duration::from_secs(5) }
    }

    /// An invocation begins.
    fn begin(&mut self, seen: usize) {
        (self.seen, self.is_open, self.changed) = (seen, false, Instant::now());
    }

    /// An invocation's answer is in the total.
    fn settle(&mut self, total: &Total) {
        self.earlier = (total.rows(), total.bytes());
        self.tables.clear();
    }

    fn read(&mut self, logs: &[String]) {
        let new = logs.get(self.seen..).unwrap_or_default();
        self.seen = logs.len();
        for line in new {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            if line["level"] == "WARN" {
                self.warn(&line);
            }
            match line["message"].as_str() {
                Some("session open") => self.is_open = true,
                Some("share read" | "table read") => {
                    self.table = text(&line["table"]);
                    let number = |field: &str| line[field].as_u64().unwrap_or(0);
                    let now = (number("row_count"), number("byte_count"));
                    if self.tables.insert(self.table.clone(), now) != Some(now) {
                        self.changed = Instant::now();
                    }
                }
                _ => {}
            }
        }
    }

    /// Each once, however many invocations say it.
    fn warn(&mut self, line: &Value) {
        let mut warning = text(&line["message"]);
        for field in ["table", "error"] {
            if let Some(value) = line[field].as_str() {
                warning = format!("{warning}: {value}");
            }
        }
        if self.warnings.insert(warning.clone()) {
            self.clear();
            eprintln!("note: {warning}");
        }
    }

    fn line(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        let sum = |of: fn(&(u64, u64)) -> u64| self.tables.values().map(of).sum::<u64>();
        let (rows, bytes) = (self.earlier.0 + sum(|table| table.0), self.earlier.1 + sum(|table| table.1));
        let what = match (rows, self.is_open) {
            (0, false) => "opening the way to the database".to_owned(),
            (0, true) => "waiting for the first rows".to_owned(),
            _ => format!("{}, {}, {}", counted(rows, "row"), megabytes(bytes), self.table),
        };
        let quiet = self.changed.elapsed();
        let quiet =
            if quiet < QUIET { String::new() } else { format!(" (nothing new for {} s)", quiet.as_secs()) };
        format!("{}:{:02}  {what}{quiet}", seconds / 60, seconds % 60)
    }

    /// On a terminal over the line before, else as a line of its own.
    fn show(&self) {
        if self.is_terminal {
            eprint!("\r{}\x1b[K", self.line());
        } else {
            eprintln!("{}", self.line());
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> String {
    let names: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// `2026-11-22 17:44:06 UTC`, from a checkpoint's time.
fn readable(time: &str) -> String {
    time.get(..19).map_or_else(|| time.to_owned(), |time| format!("{} UTC", time.replace('T', " ")))
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(number), if number == 1 { "" } else { "s" })
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A word for the shell.
fn quoted(word: impl Display) -> String {
    let word = word.to_string();
    if word.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-./=%,:@+".contains(letter)) {
        return word;
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(text: Option<&str>, is_configured: bool) -> Pin {
        Pin { file: PathBuf::new(), text: text.map(str::to_owned), is_configured }
    }

    #[test]
    fn an_unknown_key_is_asked_about_only_where_nothing_is_pinned() {
        let error = |message: &str| FunctionError {
            error_type: "BastionHostKeyMismatch".to_owned(),
            message: message.to_owned(),
        };
        let unknown = error(
            "bastion [b]:2222 presented host key ssh-ed25519 SHA256:O20, and bastion_host_key has no entry for it. Hint: \
             on the bastion itself, compare the fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`; only \
             if they are equal add this line to bastion_host_key: [b]:2222 ssh-ed25519 AAAA",
        );
        let key = UnknownKey {
            presented: "bastion [b]:2222 presented host key ssh-ed25519 SHA256:O20".to_owned(),
            command: "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub".to_owned(),
            line: "[b]:2222 ssh-ed25519 AAAA".to_owned(),
        };
        assert_eq!(unknown_key(&unknown, &pin(None, false)), Some(key));
        assert_eq!(unknown_key(&unknown, &pin(None, true)), None);
        assert_eq!(unknown_key(&unknown, &pin(Some("[a]:22 ssh-ed25519 AAAA"), false)), None);
        let changed = error("bastion b presented host key x, which is none of those in bastion_host_key");
        assert_eq!(unknown_key(&changed, &pin(None, false)), None);
    }

    #[test]
    fn the_pin_stands_beside_the_configuration() {
        assert_eq!(pin_file(Path::new("a/b.json")), Path::new("a/b.known_hosts"));
        assert_eq!(pin_file(Path::new("a.d/b")), Path::new("a.d/b.known_hosts"));
    }

    #[test]
    fn the_id_of_an_upload_is_found_in_each_of_its_files() {
        let id = "0c5e1b39-7d0a-4f5e-9f1c-2b1f7c3d4e5f";
        for name in [
            format!(".upload-{id}.json"),
            format!(".upload_id-{id}.part-1"),
            format!(".bucket-YQ.object-Yg.upload-{id}.metadata.json"),
        ] {
            assert_eq!(upload_id(&name), Some(id), "{name}");
        }
        for name in [".lock", "bastion-sync", ".bucket-YQ.object-Yg.metadata.json"] {
            assert_eq!(upload_id(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_and_words_are_written_for_people_and_shells() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "row"), counted(2000, "row")], ["1 row", "2,000 rows"]);
        assert_eq!(readable("2026-11-22T17:44:06.030587Z"), "2026-11-22 17:44:06 UTC");
        assert_eq!(quoted("public.users,a.b"), "public.users,a.b");
        assert_eq!(quoted("public.\"It's\""), r#"'public."It'\''s"'"#);
    }
}
