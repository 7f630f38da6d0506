//! Whether someone waits for a table that a long transaction of ours holds: an ALTER TABLE that waits makes everybody wait
//! who comes after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::session::Session;
use crate::deadline::Deadline;

/// A short transaction is not worth another connection.
const BEGINS_AFTER: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(1);

/// Looks now and then, on a connection of its own beside the session's, which is busy.
#[derive(Debug)]
pub(crate) struct Watch {
    is_wanted: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// `relations`: the oids of the table and its partitions.
    pub(crate) fn start(session: &Session, relations: &[u32], deadline: Deadline) -> Self {
        let oids: Vec<String> = relations.iter().map(u32::to_string).collect();
        let sql = format!(
            "select exists (select from pg_locks where locktype = 'relation' and not granted and mode = 'AccessExclusiveLock' \
             and relation = any('{{{}}}'::oid[]) and database = (select oid from pg_database where datname = current_database()))",
            oids.join(",")
        );
        let is_wanted = Arc::new(AtomicBool::new(false));
        let (mut beside, found) = (session.beside(), Arc::clone(&is_wanted));
        let task = tokio::spawn(async move {
            tokio::time::sleep(BEGINS_AFTER).await;
            // Without it the transaction ends in its time.
            while beside.ensure_open(deadline).await.is_ok() {
                let Ok(row) = beside.run(&sql, deadline).await else { break };
                if row.and_then(|row| row.get(0).map(|answer| answer == "t")) == Some(true) {
                    found.store(true, Ordering::Relaxed);
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            beside.close().await;
        });
        Self { is_wanted, task }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Ends it, and its connection.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
