//! The function's behaviour on real parts: PostgreSQL, an OpenSSH bastion, Secrets Manager, an S3 that enforces
//! conditional writes, and Lambda's runtime protocol. `make test` starts them; each test has its own database and prefix.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod callers;
mod case;
mod commit;
mod cursor;
mod faults;
mod fivetran;
mod keys;
mod main_job;
mod operator;
#[cfg(target_os = "linux")]
mod runtime;
mod step_functions;
mod stress;
mod structure;
mod try_it;
mod types;
mod types_matrix;
