//! Output on its way to the client while a program runs, as progress notifications.
//!
//! The times are what real clients were seen to need: a result within 1 ms of its last progress made the TypeScript SDK
//! lose the progress in 97-99 % of calls, and a client has closed the connection over it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rmcp::model::ProgressToken;
use sandbox_engine::{CancellationToken, OutputSink, Stream};
use tokio::time::Instant;

use crate::mcp::protocol::Era;
use crate::rpc::delivery::Delivery;
use crate::rpc::message::notification;
use crate::rpc::outbox::Outbox;

/// A call that is over by then needs no progress.
const FIRST_AFTER: Duration = Duration::from_millis(100);

/// Output is gathered for so long.
const EVERY: Duration = Duration::from_millis(50);

/// From the last progress to the result.
const BEFORE_RESULT: Duration = Duration::from_millis(5);

/// Most characters in one notification; what is over waits for the next.
const MESSAGE_MAX_CHARS: usize = 64 * 1024;

/// What may wait, in bytes, while the client does not read: the next notification. Beyond it the program waits as well.
const BACKLOG_MAX_BYTES: usize = 64 * 1024;

/// Where and how a call's progress is told.
pub(crate) struct Channel<'a> {
    pub(crate) token: ProgressToken,
    pub(crate) era: &'a Era,
    pub(crate) outbox: &'a Outbox,
    /// Cancelled when the client does not want to hear of it any more.
    pub(crate) hushed: &'a CancellationToken,
}

/// Runs the work that is made with a sink, and reports what comes there until it is done, to whoever has asked for that.
pub(crate) async fn report<T, F>(channel: Option<Channel<'_>>, work: impl FnOnce(Sink) -> F) -> T
where
    F: Future<Output = T>,
{
    let Some(channel) = channel else { return work(Sink(None)).await };
    let gathered = Gathered::default();
    let mut reporter = Reporter { gathered: gathered.clone(), channel, sent_characters: 0, last: None };
    let mut ticks = tokio::time::interval_at(Instant::now() + FIRST_AFTER, EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut work = std::pin::pin!(work(Sink(Some(gathered))));
    let result = loop {
        tokio::select! {
            biased;
            // What came since the last tick is in the result.
            result = &mut work => break result,
            _ = ticks.tick() => reporter.send(),
        }
    };
    reporter.end().await;
    result
}

/// Takes output from the engine. Where the client wants no progress, all of it is in the result alone.
pub(crate) struct Sink(Option<Gathered>);

impl OutputSink for Sink {
    fn output(&mut self, stream: Stream, text: &str) {
        if let Some(gathered) = &self.0 {
            gathered.lock().told.push(stream, text);
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_ref().map_or(Poll::Ready(()), |gathered| gathered.poll_ready(context))
    }
}

/// Output that was not told yet.
#[derive(Debug, Default, Clone)]
struct Gathered(Arc<Mutex<Pile>>);

#[derive(Debug, Default)]
struct Pile {
    /// Bounded by the caps of the streams: the engine hands on no more than it keeps.
    told: Told,
    /// Whether the last notification still waits for the client to read.
    is_stuck: bool,
    /// Who waits for room.
    waker: Option<Waker>,
}

/// Text of both streams as it came.
#[derive(Debug, Default)]
struct Told {
    text: String,
    /// Whose it is: so many characters of one, then of the other.
    streams: Vec<(Stream, usize)>,
}

impl Told {
    fn push(&mut self, stream: Stream, text: &str) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        let characters = text.chars().count();
        match self.streams.last_mut() {
            Some((last, count)) if *last == stream => *count += characters,
            _ => self.streams.push((stream, characters)),
        }
    }

    /// Its beginning, so many characters at most, is taken out.
    fn take(&mut self, most: usize) -> Told {
        let end = self.text.char_indices().nth(most).map_or(self.text.len(), |(at, _)| at);
        let mut taken = Told { text: self.text.drain(..end).collect(), streams: Vec::new() };
        let mut left = most;
        self.streams.retain_mut(|(stream, count)| {
            let of_this = left.min(*count);
            if of_this > 0 {
                taken.streams.push((*stream, of_this));
            }
            left -= of_this;
            *count -= of_this;
            *count > 0
        });
        taken
    }

    /// What was taken out of it comes before all else again.
    fn put_back(&mut self, mut taken: Told) {
        taken.text.push_str(&self.text);
        taken.streams.append(&mut self.streams);
        *self = taken;
    }

    /// Of whom how many characters are, if not all is standard output.
    fn streams(&self) -> Option<Vec<(&'static str, usize)>> {
        let is_mixed = self.streams.iter().any(|(stream, _)| *stream != Stream::Stdout);
        is_mixed.then(|| self.streams.iter().map(|&(stream, count)| (stream.name(), count)).collect())
    }
}

impl Gathered {
    /// A client that does not read throttles its program. One that reads never does, however much there is.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut pile = self.lock();
        if pile.is_stuck && pile.told.text.len() >= BACKLOG_MAX_BYTES {
            pile.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// What has come, up to one notification's worth.
    fn take(&self) -> Told {
        self.lock().told.take(MESSAGE_MAX_CHARS)
    }

    fn put_back(&self, told: Told) {
        self.lock().told.put_back(told);
    }

    /// Nobody will hear of it.
    fn hush(&self) {
        self.lock().told = Told::default();
        self.set_stuck(false);
    }

    fn set_stuck(&self, is_stuck: bool) {
        let mut pile = self.lock();
        pile.is_stuck = is_stuck;
        if !is_stuck && let Some(waker) = pile.waker.take() {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reporter<'a> {
    gathered: Gathered,
    channel: Channel<'a>,
    /// The progress value: it must rise with every notification, and does with every character.
    sent_characters: usize,
    /// The notification before. A call has no more than one in the queue: what comes meanwhile goes with the next.
    last: Option<Delivery>,
}

impl Reporter<'_> {
    fn send(&mut self) {
        // A client that has cancelled may not know the token any more; the work needs a moment to end. One that was given a task is told
        // all at its end, and throttles nothing.
        if self.channel.hushed.is_cancelled() {
            self.gathered.hush();
            return;
        }
        let is_stuck = self.last.as_ref().is_some_and(Delivery::is_waiting) || !self.try_send();
        self.gathered.set_stuck(is_stuck);
    }

    /// Whether all that there is to say could be handed over.
    fn try_send(&mut self) -> bool {
        let told = self.gathered.take();
        if told.text.is_empty() {
            return true;
        }
        let sent_characters = self.sent_characters + told.text.chars().count();
        let params = self.channel.era.progress(&self.channel.token, sent_characters, &told.text, told.streams());
        let delivery = self.channel.outbox.try_send_revocable(notification("notifications/progress", &params));
        if delivery.is_some() {
            (self.sent_characters, self.last) = (sent_characters, delivery);
            return true;
        }
        // The client does not read fast enough: it gets more at once later.
        self.gathered.put_back(told);
        false
    }

    /// Before the result: what is not written yet is dropped, since the result has it; what was keeps its distance.
    async fn end(self) {
        let Some(last) = self.last else { return };
        let distance = async {
            if let Some(written) = last.settle().await {
                tokio::time::sleep_until(written + BEFORE_RESULT).await;
            }
        };
        tokio::select! {
            biased;
            () = distance => {}
            // There will be no result, so the call does not wait for a client that may never read.
            () = self.channel.hushed.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::outbox::outbox;
    use std::io;
    use std::pin::Pin;
    use tokio::io::AsyncWrite;

    /// A client that notes when it read what, and that reads nothing in some span of time.
    struct Client {
        begun: Instant,
        reads_from: Instant,
        read_at: Vec<u64>,
        pause: Option<Pin<Box<tokio::time::Sleep>>>,
    }

    impl AsyncWrite for Client {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let reads_from = self.reads_from;
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(reads_from)));
            std::task::ready!(pause.as_mut().poll(context));
            let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
            self.read_at.push(at);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What happens, in milliseconds since the start.
    struct Script<'a> {
        /// When the program prints, and how much.
        prints: &'a [(u64, usize)],
        /// When it ends, or later if it was throttled.
        end: u64,
        cancel: u64,
        reads_from: u64,
    }

    const SCRIPT: Script<'static> = Script { prints: &[], end: 1000, cancel: u64::MAX / 2, reads_from: 0 };

    /// When notifications were read, and when the result was there.
    async fn times(script: Script<'_>) -> (Vec<u64>, u64) {
        let (outbox, writer) = outbox();
        let begun = Instant::now();
        let after = move |milliseconds: u64| begun + Duration::from_millis(milliseconds);
        let mut client = Client { begun, reads_from: after(script.reads_from), read_at: Vec::new(), pause: None };
        let reading = tokio::spawn(async move {
            writer.write_to(&mut client).await.unwrap();
            client.read_at
        });
        let cancel = CancellationToken::new();
        let cancelling = tokio::spawn({
            let cancel = cancel.clone();
            async move {
                tokio::time::sleep_until(after(script.cancel)).await;
                cancel.cancel();
            }
        });
        let token = ProgressToken(rmcp::model::NumberOrString::Number(1));
        let channel = Channel { token, era: &Era::Bare, outbox: &outbox, hushed: &cancel };
        let prints = script.prints.to_vec();
        report(Some(channel), |mut sink| async move {
            for (at, bytes) in prints {
                tokio::time::sleep_until(after(at)).await;
                std::future::poll_fn(|context| sink.poll_ready(context)).await;
                sink.output(Stream::Stdout, &"x".repeat(bytes));
            }
            tokio::time::sleep_until(after(script.end)).await;
        })
        .await;
        let result = u64::try_from(begun.elapsed().as_millis()).unwrap();
        cancelling.abort();
        drop(outbox);
        (reading.await.unwrap(), result)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_run_has_no_progress_and_waits_for_none() {
        assert_eq!(times(Script { prints: &[(1, 1), (99, 900_000)], end: 99, ..SCRIPT }).await, (vec![], 99));
    }

    #[tokio::test(start_paused = true)]
    async fn output_is_gathered_for_a_while() {
        let prints = &[(10, 1), (20, 1), (110, 1), (120, 1), (300, 1)];
        assert_eq!(times(Script { prints, ..SCRIPT }).await, (vec![100, 150, 300], 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_keeps_its_distance_from_the_last_progress() {
        assert_eq!(times(Script { prints: &[(10, 1)], end: 101, ..SCRIPT }).await, (vec![100], 105));
        assert_eq!(times(Script { prints: &[(10, 1)], end: 106, ..SCRIPT }).await, (vec![100], 106));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_reports_nothing_more() {
        let prints = &[(10, 1), (160, 1), (260, 1)];
        assert_eq!(times(Script { prints, cancel: 180, ..SCRIPT }).await, (vec![100], 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_has_one_notification_waiting_and_then_throttles() {
        // What is printed at 300 ms fills the backlog. The program gets no further until the client reads, at 2 s, and the
        // next notification has gone out.
        let prints = &[(10, 1), (300, BACKLOG_MAX_BYTES), (310, 1)];
        let script = || Script { prints, end: 400, reads_from: 2000, ..SCRIPT };
        assert_eq!(times(script()).await, (vec![2000], 2050));
        assert_eq!(times(Script { end: 2300, ..script() }).await, (vec![2000, 2050, 2100], 2300));
        // Without so much there is nothing to wait for but the first notification, which is being written.
        let prints = &[(10, 1), (300, BACKLOG_MAX_BYTES - 1), (310, 1)];
        assert_eq!(times(Script { prints, ..script() }).await, (vec![2000], 2005));
    }
}
