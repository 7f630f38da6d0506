//! What is in flight at the server: the list that watermarks come from, and how far its log is on disk.

use std::time::{Duration, Instant};

use super::session::Session;
use crate::cursor::{Fence, Listing, Lsn, Snapshot};
use crate::deadline::Deadline;
use crate::error::{Error, Kind};
use crate::plan::Log;
use crate::text::parse_timestamp;

/// How long a commit waits for the server's log; asynchronous commits are flushed within three times
/// `wal_writer_delay`, 200 ms.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// Looks at what is in flight. Each statement is a transaction of its own, in this order: a clock read later than the list,
/// or a snapshot before it, would leave a gap for a transaction to slip through.
///
/// A virtual transaction's lock is visible to every role, its start only to those with `pg_read_all_stats`. A session that is
/// active counts with its query's start even between two transactions: the next one of the same message has that as its
/// `now()`. Sessions of other databases, and background processes of none, cannot write to this one.
///
/// # Errors
/// As [`Session::error`].
pub(crate) async fn list(session: &Session, deadline: Deadline) -> Result<Listing, Error> {
    let [clock, in_flight, prepared, snapshot] = session
        .run_each(
            [
                "select now()",
                "select coalesce(l.virtualtransaction, 'pid/' || a.pid), least(a.xact_start, \
                 case when a.state in ('active', 'fastpath function call') then a.query_start end) \
                 from (select pid, virtualtransaction from pg_locks \
                 where locktype = 'virtualxid' and granted and mode = 'ExclusiveLock') l \
                 full join pg_stat_activity a using (pid) \
                 where pid <> pg_backend_pid() and a.backend_type is distinct from 'autovacuum worker' and case when l.pid is null \
                 then a.state in ('active', 'fastpath function call') and a.backend_type = 'client backend' \
                 and a.datname = current_database() \
                 else a.pid is null or a.datname = current_database() end",
                "select transaction from pg_prepared_xacts where database = current_database()",
                "select pg_current_snapshot()",
            ],
            deadline,
        )
        .await?;
    let first = |rows: &[Vec<Option<String>>]| rows.first()?.first()?.clone();
    let unreadable = |what| Error::new(Kind::Internal, format!("the database's {what} cannot be read"));
    let at = first(&clock).and_then(|time| parse_timestamp(&time)).ok_or_else(|| unreadable("clock"))?;
    let (snapshot, _) =
        first(&snapshot).and_then(|text| Snapshot::parse(&text)).ok_or_else(|| unreadable("snapshot"))?;
    let in_flight = in_flight.into_iter().filter_map(|row| {
        let mut fields = row.into_iter();
        let (id, start) = (fields.next()??, fields.next().flatten());
        Some((id, start.and_then(|start| parse_timestamp(&start))))
    });
    Ok(Listing {
        at,
        started: session.database_id.started.clone(),
        is_standby: session.database_id.is_standby,
        in_flight: in_flight.collect(),
        prepared: prepared.iter().filter_map(|row| row.first()?.clone()).collect(),
        xmax: snapshot.xmax,
    })
}

/// Waits until the log is on disk up to `lsn`.
pub(crate) async fn fence(session: &mut Session, lsn: Option<Lsn>, deadline: Deadline) -> Fence {
    let waiting = tokio::time::timeout(deadline.at_most(FENCE_TIMEOUT * 2), waited(session, lsn, deadline));
    waiting.await.unwrap_or(Fence::TimedOut)
}

async fn waited(session: &mut Session, lsn: Option<Lsn>, deadline: Deadline) -> Fence {
    match (session.log, lsn) {
        // A primary sends what it has flushed.
        (Log::Replayed, _) => Fence::Passed,
        (Log::Written, Some(lsn)) => {
            let began = Instant::now();
            while let Some(flushed) = flush_position(session, deadline).await {
                if lsn.is_flushed(flushed) {
                    return Fence::Passed;
                }
                if began.elapsed() >= deadline.at_most(FENCE_TIMEOUT) {
                    break;
                }
                tokio::time::sleep(FENCE_PAUSE).await;
            }
            tracing::warn!(%lsn, "the server's log is not on disk yet, committing all the same");
            Fence::TimedOut
        }
        (Log::Written | Log::Hidden | Log::HiddenReplayed, _) => Fence::None,
    }
}

async fn flush_position(session: &mut Session, deadline: Deadline) -> Option<Lsn> {
    session.ensure_open(deadline).await.ok()?;
    let [rows] = session.run_each(["select pg_current_wal_flush_lsn()"], deadline).await.ok()?;
    rows.first()?.first()?.as_ref()?.parse().ok()
}
