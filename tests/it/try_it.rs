//! `make try`: a person's own configuration, a question about the bastion's key, and rows in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use harness::{BUCKET, BastionOptions, HostKey, S3Address, process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::case::{Case, TIMEOUT};

const USERS: &str = "SAMPLE_USERS";

/// A directory with a configuration, as a person has it.
struct Person {
    config: PathBuf,
    pin: PathBuf,
    out: PathBuf,
    s3: S3Address,
}

/// What a person sees.
struct Seen {
    code: i32,
    text: String,
}

impl Person {
    fn new(case: &Case, configuration: &Value) -> Self {
        let dir = case.stack.dir.join(format!("try-{}", case.prefix));
        fs::create_dir(&dir).unwrap();
        let config = dir.join("configuration.json");
        fs::write(&config, configuration.to_string()).unwrap();
        let out = dir.join("out");
        let s3 = S3Address { root: out.clone(), ..case.stack.s3.clone() };
        Self { config, pin: dir.join("configuration.known_hosts"), out, s3 }
    }

    /// Runs it, with that at its standard input.
    async fn tries(&self, tables: &str, typed: &str) -> Seen {
        let mut child = self.command(tables).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end without having asked.
        let _ = stdin.write_all(typed.as_bytes()).await;
        drop(stdin);
        let output = timeout(TIMEOUT, child.wait_with_output()).await.expect("an end").unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        Seen { code: output.status.code().unwrap_or(-1), text }
    }

    fn command(&self, tables: &str) -> tokio::process::Command {
        let mut command = process::command(binary());
        command.arg(&self.config).arg(tables).arg(&self.out);
        command.env("FUNCTION", env!("CARGO_BIN_EXE_bastion-sync")).env_remove("CURSOR_COLUMN");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// How often each user lies in the directory, by id.
    fn users(&self) -> BTreeMap<String, usize> {
        let mut users = BTreeMap::new();
        for (_, body) in self.s3.objects(BUCKET, "data/public.sample_users/") {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
            for line in text.lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                *users.entry(row["id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        users
    }

    fn assert_nothing_is_written(&self) {
        let keys: Vec<String> = self.s3.objects(BUCKET, "").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, Vec::<String>::new());
        assert_eq!(self.s3.open_uploads(BUCKET, ""), Vec::<String>::new());
    }
}

impl Seen {
    #[track_caller]
    fn assert(&self, code: i32, told: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for words in told {
            assert!(self.text.contains(words), "{words:?} is not in: {}", self.text);
        }
    }

    #[track_caller]
    fn assert_tells_no_secret(&self, configuration: &Value) {
        for key in ["db_password", "bastion_private_key"] {
            let secret = configuration[key].as_str().unwrap();
            assert!(!self.text.contains(secret), "{key} is shown: {}", self.text);
        }
    }
}

/// Beside this test's own directory, target/debug/deps: Cargo names a binary to the tests of its own package only.
fn binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let binary = exe.parent().and_then(Path::parent).unwrap().join("try");
    assert!(binary.is_file(), "no {}: run `cargo build --package harness --bins`", binary.display());
    binary
}

/// As the first run finds it: nothing is pinned.
fn unpinned(case: &Case) -> Value {
    let mut configuration = case.configuration();
    configuration.as_object_mut().unwrap().remove("bastion_host_key");
    configuration
}

#[tokio::test]
async fn the_first_run_pins_beside_the_configuration_and_the_next_brings_the_increment_only() {
    let case = Case::with_users("try", 1000).await;
    let configuration = unpinned(&case);
    let person = Person::new(&case, &configuration);
    let before = fs::read(&person.config).unwrap();

    let first = person.tries(USERS, "yes\n").await;
    first.assert(0, &["SHA256:", "ssh-keygen -lf /etc/ssh/ssh_host_", "cursor column modified_at"]);
    first.assert(0, &["public.sample_users: 1,000 rows", "gzip -dc ", "The same command again"]);
    first.assert_tells_no_secret(&configuration);
    assert_eq!(fs::read(&person.config).unwrap(), before);
    let pin = fs::read_to_string(&person.pin).unwrap();
    assert!(case.stack.bastion.known_hosts.contains(&pin.trim_end().to_owned()), "{pin}");
    assert_eq!(fs::metadata(&person.pin).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((person.users().len(), person.users().values().sum::<usize>()), (1000, 1000));

    case.run(
        "insert into sample_users values ('new-1', 'Ada'), ('new-2', null);
         update sample_users set name = 'renamed', modified_at = clock_timestamp() where id = 'u7'",
    )
    .await;
    let second = person.tries(USERS, "").await;
    second.assert(0, &["public.sample_users: 3 rows"]);
    assert!(!second.text.contains("Type yes"), "{}", second.text);
    let users = person.users();
    assert_eq!((users.len(), users.values().sum::<usize>(), users["u7"]), (1002, 1003, 2));

    person.tries(USERS, "").await.assert(0, &["public.sample_users: nothing has changed since 20"]);
    assert_eq!(person.users(), users);
    assert_eq!(fs::read_to_string(&person.pin).unwrap(), pin);
    case.assert_nothing_is_left().await;
}

#[tokio::test]
async fn anything_but_yes_pins_nothing_and_writes_nothing() {
    let case = Case::with_users("try_no", 1).await;
    let person = Person::new(&case, &unpinned(&case));
    for typed in ["no\n", "y\n", "\n", ""] {
        person.tries(USERS, typed).await.assert(1, &["Type yes to pin it", "not pinned"]);
        assert!(!person.pin.exists());
        person.assert_nothing_is_written();
    }
}

#[tokio::test]
async fn a_changed_host_key_is_refused_without_a_question_and_the_pin_stays() {
    let case = Case::with_users("try_changed", 1).await;
    let options =
        |port| BastionOptions { port, host_keys: vec![HostKey::Ed25519], ..BastionOptions::default() };
    let bastion = case.stack.start_bastion(options(None)).await;
    let mut configuration = case.configuration_for(&bastion.address);
    configuration.as_object_mut().unwrap().remove("bastion_host_key");
    let person = Person::new(&case, &configuration);
    person.tries(USERS, "yes\n").await.assert(0, &["public.sample_users: 1 row,"]);
    let pin = fs::read_to_string(&person.pin).unwrap();

    let port = bastion.address.port;
    drop(bastion);
    let rebuilt = case.stack.start_bastion(options(Some(port))).await;
    case.run("insert into sample_users values ('new', 'Ada')").await;
    let seen = person.tries(USERS, "yes\n").await;
    seen.assert(
        1,
        &["BastionHostKeyMismatch", &rebuilt.address.fingerprints[0], "configuration.known_hosts"],
    );
    assert!(!seen.text.contains("Type yes"), "{}", seen.text);
    assert_eq!(fs::read_to_string(&person.pin).unwrap(), pin);
    assert_eq!(person.users().len(), 1);
    assert!(!rebuilt.log().contains("Accepted"), "{}", rebuilt.log());
}

#[tokio::test]
async fn a_wrong_password_is_told_and_never_shown() {
    let case = Case::with_users("try_password", 1).await;
    let mut configuration = case.configuration();
    configuration["db_password"] = json!("open-sesame-4711");
    let person = Person::new(&case, &configuration);
    let seen = person.tries(USERS, "").await;
    seen.assert(1, &["error: DatabaseAuthFailed: ", "hint: check db_user, db_password"]);
    seen.assert_tells_no_secret(&configuration);
    person.assert_nothing_is_written();
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_told_in_two_lines() {
    let case = Case::new("try_malformed").await;
    let mut configuration = case.configuration();
    configuration.as_object_mut().unwrap().remove("bastion_user");
    let person = Person::new(&case, &configuration);
    let lacks = ["error: SecretMalformed: `bastion_user` is missing", "hint: "];
    person.tries(USERS, "").await.assert(1, &lacks);
    fs::write(&person.config, "{\n \"db_password\": hunter2}").unwrap();
    let seen = person.tries(USERS, "").await;
    seen.assert(1, &["error: SecretMalformed: secret `configuration.json` is not JSON: line 2", "hint: "]);
    assert!(!seen.text.contains("hunter2"), "{}", seen.text);
    fs::remove_file(&person.config).unwrap();
    person.tries(USERS, "").await.assert(1, &["configuration.json: No such file", "hint: "]);
}

#[tokio::test]
async fn a_table_that_fails_is_told_with_its_hint_and_the_others_are_delivered() {
    let case = Case::with_users("try_tables", 5).await;
    case.run("create table closed (id int primary key); insert into closed values (1)").await;
    case.run(&format!("revoke select on closed from \"{}\"", case.database.user)).await;
    let person = Person::new(&case, &case.configuration());
    let seen = person.tries("sample_users,closed", "").await;
    seen.assert(
        1,
        &["public.sample_users: 5 rows", "public.closed: error: PermissionDenied", "hint: grant SELECT"],
    );
    assert_eq!(person.users().len(), 5);
}

#[tokio::test]
async fn without_tables_it_lists_them_and_says_what_to_run() {
    let case = Case::with_users("try_discover", 5).await;
    let person = Person::new(&case, &case.configuration());
    let seen = person.tries("", "").await;
    seen.assert(
        0,
        &[
            "public.sample_users",
            "cursor column modified_at",
            "make try CONFIG=",
            "TABLES=public.sample_users",
        ],
    );
    person.assert_nothing_is_written();
}

#[tokio::test]
async fn an_interrupted_run_leaves_no_process_and_the_next_goes_on() {
    let case = Case::with_users("try_interrupted", 100).await;
    let person = Person::new(&case, &case.configuration());
    let other = case.database.admin().await;
    other.batch_execute("begin; lock table sample_users in access exclusive mode").await.unwrap();
    let mut child = person.command(USERS).spawn().unwrap();
    let sql = "select count(*) from pg_stat_activity where datname = current_database() \
               and application_name like 'bastion-sync/%' and wait_event_type = 'Lock'";
    let waiting = async {
        while case.admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, waiting).await.expect("the function waits for the lock");
    process::signal(&[child.id().unwrap()], "INT");
    let status = timeout(Duration::from_secs(10), child.wait()).await.expect("an end").unwrap();
    assert_eq!(status.code(), Some(130));
    other.batch_execute("rollback").await.unwrap();
    case.assert_nothing_is_left().await;
    person.tries(USERS, "").await.assert(0, &["public.sample_users: 100 rows"]);
    assert_eq!((person.users().len(), person.users().values().sum::<usize>()), (100, 100));
}
