//! The sessions that there are, by their ids, and why those are not there that there were.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use sandbox_schemas::session::SessionStatus;
use tokio_util::task::TaskTracker;

use crate::error::ExecuteError;
use crate::id::Id;
use crate::session::session::{Opening, Session};
use crate::session::state::{Ended, lock};
use crate::vm::Open;

/// Sessions that have ended of which it is known why, at most.
const ENDED_MAX: usize = 256;

/// All sessions of an engine. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<String, Arc<Session>>,
    /// Places that are taken: those of sessions that are open, and of those that are being opened.
    taken: usize,
    ended: VecDeque<(String, Ended)>,
}

/// The right to open one more, and then its place.
#[derive(Debug)]
pub(crate) struct Taken(Sessions);

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.0.0.table).taken -= 1;
    }
}

impl Sessions {
    /// As many as `most` at the same time.
    pub(crate) fn new(most: usize) -> Sessions {
        Sessions(Arc::new(Inner { most, table: Mutex::default() }))
    }

    /// How many there may be.
    pub(crate) fn most(&self) -> usize {
        self.0.most
    }

    /// A place for one more.
    pub(crate) fn take_place(&self) -> Result<Taken, ExecuteError> {
        let mut table = lock(&self.0.table);
        if table.taken >= self.0.most {
            let reason = format!(
                "{} sessions and background runs without one have a VM, as many as may; close_session or stop_run ends one",
                table.taken
            );
            return Err(ExecuteError::Capacity { reason, retry_after: None });
        }
        table.taken += 1;
        Ok(Taken(self.clone()))
    }

    /// Makes a VM a session. Its place is free when its VM is gone.
    pub(crate) fn open(
        &self,
        vm: Open,
        opening: Opening,
        tasks: &TaskTracker,
        keep: impl Send + 'static,
    ) -> Result<Arc<Session>, ExecuteError> {
        let id = Id::new("s").map_err(ExecuteError::random)?;
        let session = Arc::new(Session::open(id, vm, opening, tasks, keep));
        let name = session.id.to_string();
        lock(&self.0.table).open.insert(name.clone(), session.clone());
        let (sessions, ending) = (self.clone(), session.clone());
        tokio::spawn(async move {
            let why = ending.has_ended().await;
            let mut table = lock(&sessions.0.table);
            table.open.remove(&name);
            table.ended.push_back((name, why));
            if table.ended.len() > ENDED_MAX {
                table.ended.pop_front();
            }
        });
        Ok(session)
    }

    /// The one of this id.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Session>, ExecuteError> {
        let table = lock(&self.0.table);
        if let Some(session) = table.open.get(id) {
            return Ok(session.clone());
        }
        let reason = match table.ended.iter().find(|(ended, _)| ended == id) {
            Some((_, why)) => format!("session_id: {id} {why}"),
            None => format!("session_id: {id:.80?} is none of this server's; open_session returns one"),
        };
        Err(ExecuteError::NotFound { reason })
    }

    /// How all are doing, the oldest first.
    pub(crate) fn status(&self) -> Vec<SessionStatus> {
        let mut status: Vec<_> = lock(&self.0.table).open.values().map(|session| session.status()).collect();
        status.sort_by(|one, other| other.age_seconds.total_cmp(&one.age_seconds));
        status
    }

    /// Has all of them end.
    pub(crate) fn end_all(&self) {
        lock(&self.0.table).open.values().for_each(|session| session.ask_to_end(Ended::ServerEnds));
    }
}
