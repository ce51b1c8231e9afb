//! Output on its way to the client while a program runs, as progress notifications.
//!
//! The times are what real clients were seen to need: a result within 1 ms of its last progress made the TypeScript SDK
//! lose the progress in 97-99 % of calls, and a client has closed the connection over it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::model::{ProgressNotificationParam, ProgressToken};
use sandbox_engine::{CancellationToken, OutputSink, Stream};
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
    cancel: &CancellationToken,
) -> T {
    let mut reporter = Reporter { gathered, token, outbox, cancel, sent_characters: 0, last_sent: None };
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
    cancel: &'a CancellationToken,
    /// The progress value: it must rise with every notification, and does with every character.
    sent_characters: usize,
    last_sent: Option<Instant>,
}

impl Reporter<'_> {
    fn send(&mut self) {
        // A client that has cancelled may not know the token any more; the work needs a moment to end.
        if self.cancel.is_cancelled() {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::outbox;

    /// When notifications went out, and when the result was there: milliseconds since the start of a program that prints
    /// at `prints` and ends at `end`.
    async fn times(prints: &[u64], end: u64) -> (Vec<u64>, u64) {
        times_until(prints, end, u64::MAX / 2).await
    }

    /// The same of a call that is cancelled at `cancelled`.
    async fn times_until(prints: &[u64], end: u64, cancelled: u64) -> (Vec<u64>, u64) {
        let (outbox, mut sent) = outbox();
        let gathered = Gathered::default();
        let begun = Instant::now();
        let elapsed = move || u64::try_from(begun.elapsed().as_millis()).unwrap();
        let work = {
            let mut sink = gathered.clone();
            let prints = prints.to_vec();
            async move {
                for at in prints {
                    tokio::time::sleep_until(begun + Duration::from_millis(at)).await;
                    sink.output(Stream::Stdout, "x");
                }
                tokio::time::sleep_until(begun + Duration::from_millis(end)).await;
            }
        };
        let notifications = tokio::spawn(async move {
            let mut at = Vec::new();
            while sent.next().await.is_some() {
                at.push(elapsed());
            }
            at
        });
        let cancel = CancellationToken::new();
        let canceller = tokio::spawn({
            let cancel = cancel.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(cancelled)).await;
                cancel.cancel();
            }
        });
        let token = ProgressToken(rmcp::model::NumberOrString::Number(1));
        report(work, gathered, token, &outbox, &cancel).await;
        let result = elapsed();
        canceller.abort();
        drop(outbox);
        (notifications.await.unwrap(), result)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_run_has_no_progress_and_waits_for_none() {
        assert_eq!(times(&[1, 99], 99).await, (vec![], 99));
    }

    #[tokio::test(start_paused = true)]
    async fn output_is_gathered_for_a_while() {
        assert_eq!(times(&[10, 20, 110, 120, 300], 1000).await, (vec![100, 150, 300], 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_keeps_its_distance_from_the_last_progress() {
        assert_eq!(times(&[10], 101).await, (vec![100], 105));
        assert_eq!(times(&[10], 106).await, (vec![100], 106));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_reports_nothing_more() {
        assert_eq!(times_until(&[10, 160, 260], 1000, 180).await, (vec![100], 1000));
    }
}
