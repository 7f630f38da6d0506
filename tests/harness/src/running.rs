//! The whole stack, started side by side and stopped together.

use std::{fmt::Display, path::Path, time::Instant};

use crate::{
    Stack,
    bastion::{Bastion, BastionOptions, CLIENT_KEYS},
    directory::Directory,
    keys,
    postgres::{Postgres, PostgresOptions},
    random,
    s3::S3,
    secrets::Secrets,
};

/// A running stack. Dropping it stops it, in the order of the fields, and removes its directory.
#[derive(Debug)]
pub struct Running {
    pub stack: Stack,
    _bastion: Bastion,
    _secrets: Secrets,
    _s3: S3,
    _postgres: Postgres,
    _directory: Directory,
}

impl Running {
    /// Starts everything, with a line on stderr for each component. Panics if one does not start.
    pub async fn start() -> Running {
        let started = Instant::now();
        let directory = Directory::create();
        let dir = directory.path();
        let postgres_port = random::port();
        let (postgres, bastion, secrets, s3) = tokio::join!(
            start_postgres(dir, postgres_port),
            start_bastion(dir, postgres_port),
            start_secrets(dir),
            start_s3(dir),
        );
        let stack = Stack {
            dir: dir.to_owned(),
            postgres: postgres.address.clone(),
            bastion: bastion.address.clone(),
            s3: s3.address.clone(),
            secrets_endpoint: secrets.endpoint.clone(),
        };
        report(format_args!("ready in {}", dir.display()), started);
        Running {
            stack,
            _bastion: bastion,
            _secrets: secrets,
            _s3: s3,
            _postgres: postgres,
            _directory: directory,
        }
    }
}

async fn start_postgres(dir: &Path, port: u16) -> Postgres {
    let started = Instant::now();
    let postgres =
        Postgres::start(dir, PostgresOptions { port: Some(port), ..PostgresOptions::default() }).await;
    let address = &postgres.address;
    report(format_args!("postgresql {} on {}:{}", address.version, address.host, address.port), started);
    postgres
}

async fn start_bastion(dir: &Path, postgres_port: u16) -> Bastion {
    let started = Instant::now();
    keys::generate(&dir.join(CLIENT_KEYS)).await;
    let permit_open = vec![format!("127.0.0.1:{postgres_port}")];
    let bastion = Bastion::start(dir, BastionOptions { permit_open, ..BastionOptions::default() }).await;
    let address = &bastion.address;
    report(format_args!("openssh {} on {}:{}", address.version, address.host, address.port), started);
    bastion
}

async fn start_secrets(dir: &Path) -> Secrets {
    let started = Instant::now();
    let secrets = Secrets::start(dir).await;
    report(format_args!("secrets manager (moto) on {}", secrets.endpoint), started);
    secrets
}

async fn start_s3(dir: &Path) -> S3 {
    let started = Instant::now();
    let s3 = S3::start(dir).await;
    report(format_args!("s3 (s3s-fs) on {}", s3.address.endpoint), started);
    s3
}

fn report(what: impl Display, started: Instant) {
    eprintln!("stack: {what} ({} ms)", started.elapsed().as_millis());
}
