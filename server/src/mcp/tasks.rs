//! The tasks extension of the modern era: a call that takes long is answered with a task, and the client asks for its result later. Only
//! for clients that say in a request that they know of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use jsonrpsee::types::error::{ErrorObjectOwned, INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE};
use rmcp::model::{CreateTaskResult, DetailedTask, GetTaskResult, Task, TaskAckResult, TaskPayload, TaskStatus};
use sandbox_engine::{CancellationToken, Id};
use serde_json::Value;
use tokio::task::{JoinError, JoinHandle};

use crate::rpc::message::{error, failed, to_value};

type RpcResult = Result<Value, ErrorObjectOwned>;

/// A call that is over by then needs no task: asking for one would take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a client should ask.
const POLL_INTERVAL_MS: u64 = 500;

/// How long the result of one that has ended is kept.
const KEPT: Duration = Duration::from_secs(600);

/// The same from the creation of one that has not: longer than any call may take, and that.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// Results that are kept, at most: each has up to some megabytes of output and files.
const KEPT_MAX: usize = 16;

/// Calls that are tasks at the same time, at most. Others wait for their results, as those of all clients do.
const RUNNING_MAX: usize = 64;

/// The calls of a connection that have become tasks.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: Mutex<HashMap<String, Arc<Running>>>,
    /// Whether nobody can ask for one any more.
    is_closed: AtomicBool,
}

/// One of them.
#[derive(Debug)]
struct Running {
    id: String,
    created: SystemTime,
    cancel: CancellationToken,
    ended: Mutex<Option<Ended>>,
}

#[derive(Debug)]
struct Ended {
    at: Instant,
    time: SystemTime,
    payload: TaskPayload,
}

/// How a call is told that it is on its own.
pub(crate) struct Reins {
    /// Cancelled when nobody wants what comes of it.
    pub(crate) cancel: CancellationToken,
    /// Cancelled when its request is answered: no progress is told then.
    pub(crate) hushed: CancellationToken,
}

impl Tasks {
    /// The result of `work` where it comes soon or `asked` is cancelled, else a task that has it later.
    pub(crate) async fn run(
        &self,
        asked: &CancellationToken,
        Reins { cancel, hushed }: Reins,
        work: impl Future<Output = RpcResult> + Send + 'static,
    ) -> RpcResult {
        // Whoever drops this wants nothing of it.
        let unwanted = cancel.clone().drop_guard();
        let mut work = tokio::spawn(work);
        let becomes_task = async {
            tokio::time::sleep(PATIENCE).await;
            if self.is_closed.load(Ordering::Acquire) || self.running() >= RUNNING_MAX {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut work => return result_of(ended),
            () = asked.cancelled() => {
                cancel.cancel();
                return result_of(work.await);
            }
            () = becomes_task => {}
        }
        hushed.cancel();
        let id = Id::new("t").map_err(|fault| error(INTERNAL_ERROR_CODE, format!("Internal error: {fault}")))?;
        let running = Arc::new(Running {
            id: id.to_string(),
            created: SystemTime::now(),
            cancel: unwanted.disarm(),
            ended: Mutex::default(),
        });
        self.enter(running.clone());
        let created = to_value(CreateTaskResult::new(running.task()));
        tokio::spawn(async move { running.stay(work).await });
        created
    }

    /// `tasks/get`.
    pub(crate) fn get(&self, id: &str) -> RpcResult {
        to_value(GetTaskResult::new(self.find(id)?.detailed()))
    }

    /// `tasks/update`: no task of ours waits for anything of its client's, and what it says is for none.
    pub(crate) fn update(&self, id: &str) -> RpcResult {
        self.find(id)?;
        to_value(TaskAckResult::default())
    }

    /// `tasks/cancel`.
    pub(crate) fn cancel(&self, id: &str) -> RpcResult {
        self.find(id)?.cancel.cancel();
        to_value(TaskAckResult::default())
    }

    /// Nobody will ask for them any more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        lock(&self.running).values().for_each(|running| running.cancel.cancel());
    }

    fn running(&self) -> usize {
        lock(&self.running).values().filter(|running| lock(&running.ended).is_none()).count()
    }

    fn enter(&self, running: Arc<Running>) {
        let mut all = lock(&self.running);
        let ended = |running: &Running| lock(&running.ended).as_ref().map(|ended| ended.at);
        all.retain(|_, running| ended(running).is_none_or(|at| at.elapsed() < KEPT));
        let mut kept: Vec<_> = all.values().filter_map(|running| Some((ended(running)?, running.id.clone()))).collect();
        kept.sort_unstable();
        for (_, id) in kept.iter().rev().skip(KEPT_MAX - 1) {
            all.remove(id);
        }
        all.insert(running.id.clone(), running);
    }

    fn find(&self, id: &str) -> Result<Arc<Running>, ErrorObjectOwned> {
        lock(&self.running).get(id).cloned().ok_or_else(|| {
            let kept = KEPT.as_secs();
            error(
                INVALID_PARAMS_CODE,
                format!("Invalid params: taskId: there is no task {id:.80?}, or its result was kept for {kept} s and is gone"),
            )
        })
    }
}

impl Running {
    /// Waits for its end, and keeps what it is.
    async fn stay(&self, work: JoinHandle<RpcResult>) {
        let payload = match result_of(work.await) {
            // What a cancelled call says of itself is for nobody.
            _ if self.cancel.is_cancelled() => TaskPayload::Cancelled,
            Ok(Value::Object(result)) => TaskPayload::Completed { result },
            Ok(_) => TaskPayload::Failed { error: Default::default() },
            Err(fault) => match serde_json::to_value(fault) {
                Ok(Value::Object(error)) => TaskPayload::Failed { error },
                _ => TaskPayload::Failed { error: Default::default() },
            },
        };
        *lock(&self.ended) = Some(Ended { at: Instant::now(), time: SystemTime::now(), payload });
    }

    fn task(&self) -> Task {
        let ended = lock(&self.ended).as_ref().map(|ended| ended.time);
        let task =
            Task::new(&self.id, TaskStatus::Working, written(self.created), written(ended.unwrap_or(self.created)));
        let took = ended.and_then(|ended| ended.duration_since(self.created).ok());
        let ttl = took.map_or(LONGEST, |took| took + KEPT).as_millis();
        task.with_ttl_ms(u64::try_from(ttl).unwrap_or(u64::MAX)).with_poll_interval_ms(POLL_INTERVAL_MS)
    }

    fn detailed(&self) -> DetailedTask {
        let payload = lock(&self.ended).as_ref().map(|ended| ended.payload.clone());
        DetailedTask::new(self.task(), payload.unwrap_or(TaskPayload::Working))
    }
}

fn result_of(ended: Result<RpcResult, JoinError>) -> RpcResult {
    ended.unwrap_or_else(|fault| Err(failed(&fault)))
}

fn written(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reins() -> (Reins, CancellationToken, CancellationToken) {
        let (cancel, hushed) = (CancellationToken::new(), CancellationToken::new());
        (Reins { cancel: cancel.clone(), hushed: hushed.clone() }, cancel, hushed)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_soon_done_needs_no_task() {
        let (tasks, asked) = (Tasks::default(), CancellationToken::new());
        let (reins, _, hushed) = reins();
        let work = async {
            tokio::time::sleep(PATIENCE / 2).await;
            Ok(json!({"content": []}))
        };
        assert_eq!(tasks.run(&asked, reins, work).await.unwrap(), json!({"content": []}));
        assert!(!hushed.is_cancelled() && lock(&tasks.running).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_asked_for_later() {
        let (tasks, asked) = (Tasks::default(), CancellationToken::new());
        let (reins, cancel, hushed) = reins();
        let work = async {
            tokio::time::sleep(PATIENCE * 2).await;
            Ok(json!({"content": []}))
        };
        let created = tasks.run(&asked, reins, work).await.unwrap();
        assert_eq!((&created["resultType"], &created["status"]), (&json!("task"), &json!("working")), "{created}");
        assert!(hushed.is_cancelled() && !cancel.is_cancelled());
        let id = created["taskId"].as_str().unwrap();
        assert_eq!(tasks.get(id).unwrap()["status"], "working");
        // Its request was answered: that it is cancelled is late.
        asked.cancel();
        tokio::time::sleep(PATIENCE * 2).await;
        let got = tasks.get(id).unwrap();
        assert_eq!((&got["status"], &got["result"]), (&json!("completed"), &json!({"content": []})), "{got}");
        assert!(tasks.get("t-0").unwrap_err().message().contains("taskId: there is no task \"t-0\""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_reaches_the_work() {
        let (tasks, asked) = (Tasks::default(), CancellationToken::new());
        let (reins, cancel, _) = reins();
        let ended = cancel.clone();
        let work = async move {
            ended.cancelled().await;
            Ok(json!({}))
        };
        let created = tasks.run(&asked, reins, work).await.unwrap();
        let id = created["taskId"].as_str().unwrap();
        tasks.cancel(id).unwrap();
        assert!(cancel.is_cancelled());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(tasks.get(id).unwrap()["status"], "cancelled");

        let (reins, cancel, _) = self::reins();
        let running = tasks.run(&asked, reins, std::future::pending());
        assert!(tokio::time::timeout(PATIENCE / 2, running).await.is_err());
        assert!(cancel.is_cancelled(), "whoever waited for it has gone");

        // Where it becomes no task, its request can still be cancelled.
        tasks.close();
        let (reins, cancel, _) = self::reins();
        let ended = cancel.clone();
        let work = async move {
            ended.cancelled().await;
            Ok(json!({}))
        };
        let cancelling = async {
            tokio::time::sleep(PATIENCE * 2).await;
            assert!(!cancel.is_cancelled());
            asked.cancel();
        };
        assert_eq!(tokio::join!(tasks.run(&asked, reins, work), cancelling).0.unwrap(), json!({}));
    }
}
