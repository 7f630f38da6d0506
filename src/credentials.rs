//! The secrets: fetched from Secrets Manager, kept for five minutes, parsed into what the hops need.
//!
//! The bastion's secret is the `configuration.json` of Fivetran's Python example as it is, plus the bastion's host key; a second secret in the
//! shape that RDS keeps may hold the database's part. No content of a secret ever reaches an error: only names of keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::Client;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::aws::Fault;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Kind};
use crate::request::Hidden;
use crate::source::access::{Bastion, Credentials, Database, SslMode};
use crate::source::host_key::HostKeys;
use crate::source::private_key;

/// Long enough to spare the calls of a schedule that ticks every minute; a rotation is noticed at once all the same,
/// because a hop that refuses makes us read again.
const KEPT_FOR: Duration = Duration::from_secs(300);

const GET_TIMEOUT: Duration = Duration::from_secs(30);

/// The secrets of one container: fetched when first needed, again after five minutes, and when a hop refuses them.
#[derive(Debug)]
pub(crate) struct Secrets {
    client: Client,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    fetched: Instant,
    versions: Vec<String>,
    credentials: Arc<Credentials>,
}

impl Secrets {
    pub(crate) fn new(config: &aws_config::SdkConfig) -> Self {
        Self { client: Client::new(config), kept: Mutex::new(None) }
    }

    /// The credentials, fetched if none are kept or they are older than five minutes.
    ///
    /// # Errors
    /// `SecretDenied`, `SecretsUnavailable`, `SecretMalformed`, `InvalidConfig`.
    pub(crate) async fn get(&self, config: &Config, deadline: Deadline) -> Result<Arc<Credentials>, Error> {
        let mut kept = self.kept.lock().await;
        match &*kept {
            Some(kept) if kept.fetched.elapsed() < KEPT_FOR => Ok(Arc::clone(&kept.credentials)),
            _ => {
                let fresh = self.fetch(config, kept.as_ref(), deadline).await?;
                Ok(Arc::clone(&kept.insert(fresh).credentials))
            }
        }
    }

    /// Reads again after a hop refused what we had; `None` if the secrets' versions are the same.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn renewed(
        &self,
        config: &Config,
        deadline: Deadline,
    ) -> Result<Option<Arc<Credentials>>, Error> {
        let mut kept = self.kept.lock().await;
        let fresh = self.fetch(config, kept.as_ref(), deadline).await?;
        let is_same = kept.as_ref().is_some_and(|kept| kept.versions == fresh.versions);
        let credentials = Arc::clone(&kept.insert(fresh).credentials);
        Ok(if is_same { None } else { Some(credentials) })
    }

    async fn fetch(&self, config: &Config, kept: Option<&Kept>, deadline: Deadline) -> Result<Kept, Error> {
        let Some(id) = &config.bastion_secret_id else {
            return Err(Error::new(Kind::InvalidConfig, "BASTION_SECRET_ID is not set"));
        };
        let (bastion, database) = tokio::try_join!(self.secret(id, deadline), async {
            match &config.database_secret_id {
                Some(id) => self.secret(id, deadline).await.map(Some),
                None => Ok(None),
            }
        })?;
        let mut versions = vec![bastion.version];
        let database = database.map(|secret| {
            versions.push(secret.version);
            secret.fields
        });
        // The decoded key lives as long as its secret: an encrypted one costs 110 ms of bcrypt to decode.
        let credentials = match kept.filter(|kept| kept.versions == versions) {
            Some(kept) => Arc::clone(&kept.credentials),
            None => Arc::new(parse(&bastion.fields, database.as_ref(), config.bastion_host_key.as_deref())?),
        };
        Ok(Kept { fetched: Instant::now(), versions, credentials })
    }

    async fn secret(&self, id: &str, deadline: Deadline) -> Result<Secret, Error> {
        let get = self.client.get_secret_value().secret_id(id).send();
        let output = timeout(deadline.at_most(GET_TIMEOUT), get).await.map_err(|_| {
            Error::new(Kind::SecretsUnavailable, format!("secret `{id}`: secrets manager does not answer"))
        })?;
        let output = output.map_err(|error| {
            let fault = Fault::of(&error);
            let context = format!("secret `{id}`");
            if fault.is_refusal() {
                Error::new(Kind::SecretDenied, context)
                    .with_hint(
                        "check the name, and that the role may call secretsmanager:GetSecretValue on it and \
                         kms:Decrypt on its key",
                    )
                    .with_source(fault)
            } else {
                Error::new(Kind::SecretsUnavailable, context).with_source(fault)
            }
        })?;
        let text = output.secret_string().ok_or_else(|| malformed(format!("secret `{id}` is binary")))?;
        Ok(Secret {
            version: output.version_id().unwrap_or_default().to_owned(),
            fields: fields(text).map_err(|problem| malformed(format!("secret `{id}` {problem}")))?,
        })
    }
}

struct Secret {
    version: String,
    fields: Map<String, Value>,
}

/// Credentials that came in an event: all of them, never mixed with a secret's.
///
/// # Errors
/// `SecretMalformed`, `InvalidConfig`.
pub(crate) fn from_event(secrets: &Hidden, config: &Config) -> Result<Credentials, Error> {
    let fields = secrets.0.as_object().ok_or_else(|| malformed("the event's `secrets` is not an object"))?;
    parse(fields, None, config.bastion_host_key.as_deref())
}

fn malformed(context: impl Into<String>) -> Error {
    Error::new(Kind::SecretMalformed, context)
}

fn fields(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("is not a JSON object".to_owned()),
        // serde_json's own message can quote what it found.
        Err(error) => Err(format!("is not JSON: line {} column {}", error.line(), error.column())),
    }
}

fn parse(
    bastion: &Map<String, Value>,
    database: Option<&Map<String, Value>>,
    more_host_keys: Option<&str>,
) -> Result<Credentials, Error> {
    Ok(Credentials {
        bastion: parse_bastion(&Fields(bastion), more_host_keys)?,
        database: parse_database(&Fields(bastion), database.map(Fields))?,
    })
}

fn parse_bastion(secret: &Fields<'_>, more_host_keys: Option<&str>) -> Result<Option<Bastion>, Error> {
    if secret.0.get("bastion_host") == Some(&Value::Null) {
        return Ok(None);
    }
    let host = secret.required("bastion_host").map_err(|error| {
        error.with_hint("write \"bastion_host\": null to reach the database without a bastion")
    })?;
    let mut host_keys = match secret.text("bastion_host_key")? {
        Some(text) => HostKeys::parse(&text, Kind::SecretMalformed)?,
        None => HostKeys::default(),
    };
    if let Some(text) = more_host_keys {
        let more = HostKeys::parse(text, Kind::InvalidConfig)?;
        if more.accepts_any() {
            return Err(Error::new(Kind::InvalidConfig, "BASTION_HOST_KEY holds `accept-any`")
                .with_hint("it counts only as `bastion_host_key` in the secret"));
        }
        host_keys.merge(more);
    }
    let key = secret.required("bastion_private_key")?;
    let passphrase = secret.text("bastion_passphrase")?;
    Ok(Some(Bastion {
        host,
        port: secret.port(&["bastion_port"])?.unwrap_or(22),
        user: secret.required("bastion_user")?,
        key: Arc::new(private_key::decode(&key, passphrase.as_deref())?),
        host_keys,
        round_trip_us: Arc::default(),
    }))
}

fn parse_database(secret: &Fields<'_>, rds: Option<Fields<'_>>) -> Result<Database, Error> {
    let from_rds = |name: &str| rds.as_ref().map_or(Ok(None), |rds| rds.text(name));
    let rds_port = rds.as_ref().map_or(Ok(None), |rds| rds.port(&["port"]))?;
    let host = match from_rds("host")? {
        Some(host) => host,
        None => secret
            .either(&["private_host", "db_host"])?
            .ok_or_else(|| malformed("`private_host` (or `db_host`) is missing from the secret"))?,
    };
    Ok(Database {
        host,
        port: rds_port
            .map_or_else(|| secret.port(&["private_port", "db_port"]), |port| Ok(Some(port)))?
            .unwrap_or(5432),
        user: from_rds("username")?.map_or_else(|| secret.required("db_user"), Ok)?,
        password: match from_rds("password")? {
            Some(password) => password,
            None => secret.required("db_password")?,
        },
        name: from_rds("dbname")?.map_or_else(|| secret.required("db_name"), Ok)?,
        sslmode: secret.text("db_sslmode")?.map_or(Ok(SslMode::Require), |mode| parse_sslmode(&mode))?,
        ca_certificate: secret.text("db_ca_certificate")?.map(|pem| pem.replace("\\n", "\n")),
    })
}

fn parse_sslmode(mode: &str) -> Result<SslMode, Error> {
    match mode {
        "disable" => Ok(SslMode::Disable),
        "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => Err(malformed(
            "`db_sslmode` of the secret is not one of disable, prefer, require, verify-ca, verify-full",
        )),
    }
}

/// A secret's fields, read with errors that name the key and never its value.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// A string, or a number as its text; empty counts as absent.
    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // A longer one has lost digits when it was parsed.
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
            Some(_) => Err(malformed(format!(
                "`{name}` of the secret is neither a string nor a whole number of up to 19 digits"
            ))),
        }
    }

    fn required(&self, name: &str) -> Result<String, Error> {
        self.text(name)?.ok_or_else(|| malformed(format!("`{name}` is missing from the secret")))
    }

    /// One value under several spellings; two that differ are refused.
    fn either(&self, names: &[&str]) -> Result<Option<String>, Error> {
        let mut found: Option<(&str, String)> = None;
        for name in names {
            let Some(value) = self.text(name)? else { continue };
            match &found {
                Some((first, other)) if *other != value => {
                    return Err(malformed(format!("`{first}` and `{name}` of the secret differ; keep one")));
                }
                _ => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    fn port(&self, names: &[&str]) -> Result<Option<u16>, Error> {
        let Some(text) = self.either(names)? else { return Ok(None) };
        match text.trim().parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(malformed(format!(
                "`{}` of the secret is not a port from 1 to 65535",
                names.join("` or `")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn straight(mut secret: Value, rds: Option<&Value>) -> Result<Database, Error> {
        secret["bastion_host"] = Value::Null;
        let rds = rds.map(|rds| rds.as_object().expect("an object"));
        parse(secret.as_object().expect("an object"), rds, None).map(|credentials| credentials.database)
    }

    #[test]
    fn both_spellings_and_numbers_as_numbers_or_strings_are_taken() {
        for (host, port) in [("private_host", "private_port"), ("db_host", "db_port")] {
            for number in [json!(6543), json!("6543")] {
                let secret =
                    json!({host: "h", port: number, "db_user": "u", "db_password": 1, "db_name": "d"});
                let database = straight(secret, None).expect("valid");
                assert_eq!((database.host.as_str(), database.port), ("h", 6543));
                assert_eq!((database.password.as_str(), database.sslmode), ("1", SslMode::Require));
            }
        }
    }

    #[test]
    fn an_rds_secret_fills_in_what_it_has() {
        let secret = json!({"db_host": "h", "db_name": "d"});
        let rds = json!({"engine": "postgres", "username": "u", "password": "p", "port": "5433"});
        let database = straight(secret, Some(&rds)).expect("valid");
        assert_eq!((database.host.as_str(), database.port, database.user.as_str()), ("h", 5433, "u"));
    }

    #[test]
    fn a_malformed_secret_names_the_key_and_never_a_value() {
        let good = json!({"db_host": "hosty", "db_user": "u", "db_password": "hunter2", "db_name": "d"});
        for (key, value) in [
            ("db_port", json!("hunter2")),
            ("db_port", json!(70000)),
            ("db_sslmode", json!("hunter2")),
            ("db_user", json!(["hunter2"])),
            ("private_host", json!("hunter2")),
        ] {
            let mut secret = good.clone();
            secret[key] = value;
            let error = straight(secret, None).expect_err("malformed");
            assert_eq!(error.kind(), Kind::SecretMalformed);
            let text = format!("{error} {error:?}");
            assert!(text.contains(key) && !text.contains("hunter2"), "{text}");
        }
        assert!(!format!("{:?}", straight(good, None).expect("valid")).contains("hunter2"));
    }

    #[test]
    fn a_bastion_must_be_named_or_ruled_out() {
        let error = parse(&Map::new(), None, None).expect_err("missing").to_string();
        assert!(error.contains("`bastion_host`") && error.contains("null"), "{error}");
    }
}
