//! Output on its way to the client while a program runs, as progress notifications.
//!
//! The times are what real clients were seen to need: a result within 1 ms of its last progress made the TypeScript SDK
//! lose the progress in 97-99 % of calls, and a client has closed the connection over it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::model::{ProgressNotificationParam, ProgressToken};
use sandbox_engine::{OutputSink, Stream};
use tokio::time::Instant;

use crate::message::notification;
use crate::outbox::Outbox;

/// A call that is over by then needs no progress.
const FIRST_AFTER: Duration = Duration::from_millis(100);

/// Output is gathered for so long.
const EVERY: Duration = Duration::from_millis(50);

/// From the last progress to the result.
const BEFORE_RESULT: Duration = Duration::from_millis(5);

/// Most characters in one notification; what is over waits for the next.
const MESSAGE_MAX_CHARS: usize = 64 * 1024;

/// Takes output from the engine.
#[derive(Debug, Default, Clone)]
pub(crate) struct Gathered(Arc<Mutex<String>>);

impl OutputSink for Gathered {
    fn output(&mut self, _: Stream, text: &str) {
        // Bounded by the caps of the streams: the engine hands on no more than it keeps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
}

impl Gathered {
    /// What has come, up to one notification's worth.
    fn take(&self) -> String {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = text.char_indices().nth(MESSAGE_MAX_CHARS).map_or(text.len(), |(at, _)| at);
        text.drain(..end).collect()
    }

    fn put_back(&self, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert_str(0, text);
    }
}

/// Runs `work`, which writes to `gathered`, and reports what comes until it is done.
pub(crate) async fn report<T>(
    work: impl Future<Output = T>,
    gathered: Gathered,
    token: ProgressToken,
    outbox: &Outbox,
) -> T {
    let mut reporter = Reporter { gathered, token, outbox, sent_characters: 0, last_sent: None };
    let mut ticks = tokio::time::interval_at(Instant::now() + FIRST_AFTER, EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            biased;
            // What came since the last tick is in the result.
            result = &mut work => break result,
            _ = ticks.tick() => reporter.send(),
        }
    };
    if let Some(last) = reporter.last_sent {
        tokio::time::sleep_until(last + BEFORE_RESULT).await;
    }
    result
}

struct Reporter<'a> {
    gathered: Gathered,
    token: ProgressToken,
    outbox: &'a Outbox,
    /// The progress value: it must rise with every notification, and does with every character.
    sent_characters: usize,
    last_sent: Option<Instant>,
}

impl Reporter<'_> {
    fn send(&mut self) {
        let text = self.gathered.take();
        if text.is_empty() {
            return;
        }
        let sent_characters = self.sent_characters + text.chars().count();
        let params =
            ProgressNotificationParam::new(self.token.clone(), sent_characters as f64).with_message(text.clone());
        if self.outbox.try_send(notification("notifications/progress", &params)) {
            self.sent_characters = sent_characters;
            self.last_sent = Some(Instant::now());
        } else {
            // The client does not read fast enough: it gets more at once later.
            self.gathered.put_back(&text);
        }
    }
}
