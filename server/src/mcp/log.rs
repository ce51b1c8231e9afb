//! What goes wrong beside the calls, told to a client that has asked for it: as `notifications/message`. The same events go
//! to stderr, for people; few clients show that.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::rpc::message::{notification, shortened};
use crate::rpc::outbox::{Outbox, WeakOutbox};

/// Records that wait for a client to ask for them, or to read. Those of the start come before anyone can ask; of more than
/// these the oldest go.
const KEPT_MAX: usize = 32;

/// The severities of MCP, which are those of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

/// What was logged, and who wants to know. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Record>,
    /// Weak, so that the writer ends with the calls although we live as long as the process.
    outbox: Option<WeakOutbox>,
    /// What the connection has asked for, in the legacy era.
    connection: Option<Level>,
    /// What requests that run have asked for, in the modern era.
    requests: HashMap<u64, Level>,
    next_request: u64,
}

/// Parameters of `notifications/message`.
#[derive(Debug, Serialize)]
struct Record {
    level: Level,
    logger: &'static str,
    data: String,
}

/// A request that wants to be told, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    log: Log,
    request: u64,
}

impl Log {
    /// Where records go once somebody asks for them.
    pub(crate) fn connect(&self, outbox: &Outbox) {
        self.lock().outbox = Some(outbox.downgrade());
    }

    /// The connection is told of what is at least so severe, from now on.
    pub(crate) fn set_level(&self, level: Level) {
        let mut state = self.lock();
        state.connection = Some(level);
        state.deliver();
    }

    /// The same while a request runs.
    pub(crate) fn listen(&self, level: Level) -> Listening {
        let mut state = self.lock();
        let request = state.next_request;
        state.next_request += 1;
        state.requests.insert(request, level);
        state.deliver();
        Listening { log: self.clone(), request }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.log.lock().requests.remove(&self.request);
    }
}

impl State {
    fn add(&mut self, record: Record) {
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(record);
        self.deliver();
    }

    /// Sends what somebody has asked for; what finds no room stays for the next time. Never waits: whoever logs has other work.
    fn deliver(&mut self) {
        let asked = self.requests.values().chain(&self.connection).min().copied();
        let outbox = self.outbox.as_ref().and_then(WeakOutbox::upgrade);
        let (Some(asked), Some(outbox)) = (asked, outbox) else { return };
        let mut has_room = true;
        self.kept.retain(|record| {
            let is_due = has_room && record.level >= asked;
            has_room &= !is_due || outbox.try_send(notification("notifications/message", record));
            !(is_due && has_room)
        });
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        self.lock().add(Record { level: level_of(metadata), logger: metadata.target(), data: text.finish() });
    }
}

/// Which events can be told at all: ours, and none that are only of use to who reads the source.
pub(crate) struct Tellable;

impl<S> Filter<S> for Tellable {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        metadata.target().starts_with("sandbox_") && *metadata.level() <= tracing::Level::INFO
    }
}

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

/// An event as one line: its message, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        shortened(self.message)
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, "; {name}: {value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::outbox::outbox;
    use tracing_subscriber::layer::SubscriberExt;

    /// What a client is told of the events in `test`.
    async fn told(test: impl FnOnce(&Log)) -> Vec<String> {
        let (outbox, writer) = outbox();
        let log = Log::default();
        log.connect(&outbox);
        let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(Tellable));
        tracing::subscriber::with_default(subscriber, || test(&log));
        drop(outbox);
        let mut out = Vec::new();
        writer.write_to(&mut out).await.unwrap();
        let lines = String::from_utf8(out).unwrap();
        let values = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        values.map(|value| format!("{} {}", value["params"]["level"], value["params"]["data"])).collect()
    }

    #[tokio::test]
    async fn nobody_is_told_who_has_not_asked() {
        assert_eq!(told(|_| tracing::warn!("a")).await, [""; 0]);
    }

    #[tokio::test]
    async fn what_was_logged_before_someone_asked_is_told_once_and_what_is_less_severe_is_not() {
        let events = told(|log| {
            tracing::warn!(error = "e", n = 5, "before");
            tracing::info!("less");
            tracing::warn!(target: "other", "not ours");
            log.set_level(Level::Warning);
            tracing::error!("after");
            log.set_level(Level::Error);
            tracing::warn!("not any more");
        });
        assert_eq!(events.await, [r#""warning" "before; error: e; n: 5""#, r#""error" "after""#]);
    }

    #[tokio::test]
    async fn a_request_is_told_while_it_runs() {
        let events = told(|log| {
            let listening = log.listen(Level::Info);
            tracing::info!("while it runs");
            drop(listening);
            tracing::error!("after");
        });
        assert_eq!(events.await, [r#""info" "while it runs""#]);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let events = told(|log| {
            (0..1000).for_each(|n| tracing::warn!("{n} {}", "é".repeat(5000)));
            log.set_level(Level::Debug);
        });
        let events = events.await;
        // As many as the outbox has room for; the others wait for the next time.
        assert!(!events.is_empty() && events.len() <= KEPT_MAX, "{}", events.len());
        assert!(events[0].starts_with(r#""warning" "968 é"#), "{}", &events[0][..30]);
        assert!(events.iter().all(|event| event.len() < 2100));
    }
}
