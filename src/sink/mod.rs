//! Where rows and cursors go: objects in S3 with the checkpoint, or Fivetran's answer.

pub(crate) mod batch;
mod buffers;
pub(crate) mod checkpoint;
pub(crate) mod fivetran;
mod gzip;
pub(crate) mod ledger;
pub(crate) mod manifest;
pub(crate) mod output;
pub(crate) mod storage;
pub(crate) mod table_writer;
