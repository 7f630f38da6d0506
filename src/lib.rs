//! bastion-sync: what changed in a private PostgreSQL database, through an SSH bastion, to S3.
//!
//! In reading order:
//!
//! | module | what it owns |
//! | --- | --- |
//! | `handler` | one invocation: event in, answer or named error out |
//! | `entry`, `request` | three foreign event shapes, one request |
//! | `config`, `credentials`, `deadline`, `app` | what an invocation works with |
//! | `sync`, `page`, `report` | the sync: `sync` is the straight line, `sync::share` one transaction of it |
//! | `check`, `status`, `discover` | the other actions |
//! | `source` | tunnel, TLS, session, catalog, COPY, what is in flight |
//! | `cursor` | pure: what was delivered, what is next, and why nothing is lost; start there |
//! | `plan`, `table`, `encode`, `warehouse` | pure: the SQL of a page, a table, PostgreSQL's values as JSON, SQL for readers |
//! | `sink` | batches, the checkpoint and its commit, manifests, Fivetran's answer |
//!
//! What must always hold (each is a test):
//!
//! - I1 what the source holds at the end of a completed window, the union of committed batches holds.
//! - I2 a cursor never runs ahead of durable data.
//! - I3 an object appears whole or not at all, and only after its commit; a run that loses publishes nothing.
//! - I4 no secret and no row value in a log line, an error, a `Debug` or a manifest; the state alone holds the key position.
//! - I5 at every end that we control, backends, SSH sessions and uploads are gone.
//! - I6 replaying an event does no harm; overlapping runs cannot move a checkpoint backwards.
//! - I7 memory and time are bounded whatever the table's size, the row's size or the caller's input.

mod app;
mod aws;
mod check;
mod config;
mod credentials;
mod cursor;
mod deadline;
mod discover;
mod encode;
mod entry;
pub mod error;
mod handler;
pub mod log;
mod metrics;
mod page;
mod plan;
mod report;
mod request;
mod sink;
mod source;
mod status;
mod sync;
mod table;
mod table_name;
mod text;
mod warehouse;

pub use app::App;
pub use handler::handle;
