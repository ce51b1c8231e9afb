//! Programs in the background: what they have written and nobody has fetched yet, and how they have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sandbox_schemas::background::{InputSent, RunReport};
use sandbox_schemas::limits::{BACKGROUND_OUTPUT_MAX_BYTES, STDIN_MAX_BYTES};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::wire::Stream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::ExecuteError;
use crate::id::Id;
use crate::run::{OutputSink, Terms};
use crate::session::call::{Call, Input};
use crate::session::state::lock;

/// How long the result of one that has ended is kept.
const KEPT: Duration = Duration::from_secs(600);

/// Results that are kept, at most: each has up to a megabyte of output.
const KEPT_MAX: usize = 64;

/// All programs in the background of an engine, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Backgrounds(Mutex<HashMap<String, Arc<Background>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Background {
    progress: Mutex<Progress>,
    changed: Notify,
    stop: CancellationToken,
    input: Input,
}

#[derive(Debug, Default)]
struct Progress {
    output: Output,
    ended: Option<(Instant, Result<ExecuteOutcome, String>)>,
}

/// The end of what a program has written. Bytes are counted from its beginning, both streams together.
#[derive(Debug, Default)]
struct Output {
    pieces: VecDeque<(Stream, String)>,
    /// Where the first piece begins, and where the last one ends.
    begin: u64,
    end: u64,
    /// What was fetched already.
    fetched: u64,
}

impl Output {
    fn push(&mut self, stream: Stream, text: &str) {
        self.end += text.len() as u64;
        match self.pieces.back_mut() {
            // Pieces of some size, so that few bytes more than must be are dropped.
            Some((last, piece)) if *last == stream && piece.len() < 4096 => piece.push_str(text),
            _ => self.pieces.push_back((stream, text.to_owned())),
        }
        while self.end - self.begin > BACKGROUND_OUTPUT_MAX_BYTES as u64 {
            let Some((_, piece)) = self.pieces.pop_front() else { return };
            self.begin += piece.len() as u64;
        }
    }

    /// What comes behind `since`, or what is new; and how much of that is gone.
    fn fetch(&mut self, since: Option<u64>) -> (String, String, u64) {
        let since = since.unwrap_or(self.fetched).min(self.end);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut at = self.begin;
        for (stream, piece) in &self.pieces {
            let from = usize::try_from(since.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            at += piece.len() as u64;
            // A `since` of nobody's may be within a character.
            let from = (from..=piece.len()).find(|from| piece.is_char_boundary(*from)).unwrap_or(piece.len());
            match stream {
                Stream::Stdout => stdout.push_str(&piece[from..]),
                Stream::Stderr => stderr.push_str(&piece[from..]),
            }
        }
        self.fetched = self.end;
        (stdout, stderr, self.begin.saturating_sub(since))
    }
}

/// Keeps what a program writes.
struct Keeping(Arc<Background>);

impl OutputSink for Keeping {
    fn output(&mut self, stream: Stream, text: &str) {
        if !text.is_empty() {
            lock(&self.0.progress).output.push(stream, text);
            self.0.changed.notify_waiters();
        }
    }
}

impl Backgrounds {
    /// Stays with a program that has started, in a task of its own; `at_end` is called when it has ended. Its id.
    pub(crate) fn begin(
        &self,
        call: Call,
        timeout: Duration,
        at_end: impl FnOnce() + Send + 'static,
    ) -> Result<String, ExecuteError> {
        let id = Id::new("r").map_err(ExecuteError::random)?.to_string();
        let background = Arc::new(Background {
            progress: Mutex::default(),
            changed: Notify::new(),
            stop: CancellationToken::new(),
            input: call.input(),
        });
        self.insert(id.clone(), background.clone());
        tokio::spawn(async move {
            let terms = Terms { timeout, stop: Some(background.stop.clone()), keeps_output: false };
            let ended = call.run(terms, &mut Keeping(background.clone())).await;
            lock(&background.progress).ended = Some((Instant::now(), ended.map_err(|error| error.to_string())));
            background.changed.notify_waiters();
            at_end();
        });
        Ok(id)
    }

    fn insert(&self, id: String, background: Arc<Background>) {
        let mut runs = lock(&self.0);
        let ended = |run: &Background| lock(&run.progress).ended.as_ref().map(|(when, _)| *when);
        runs.retain(|_, run| ended(run).is_none_or(|when| when.elapsed() < KEPT));
        let mut kept: Vec<_> = runs.iter().filter_map(|(id, run)| Some((ended(run)?, id.clone()))).collect();
        kept.sort_unstable();
        for (_, id) in kept.iter().rev().skip(KEPT_MAX - 1) {
            runs.remove(id);
        }
        runs.insert(id, background);
    }

    /// The one of this id.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Background>, ExecuteError> {
        lock(&self.0).get(id).cloned().ok_or_else(|| ExecuteError::NotFound {
            reason: format!(
                "run_id: {id:.80?} is none of this server's, or its result was kept for {} s and is gone",
                KEPT.as_secs()
            ),
        })
    }
}

impl Background {
    /// What it has written, and whether it has ended; waits for news of either, if there is none.
    pub(crate) async fn report(&self, since: Option<u64>, wait: Duration) -> RunReport {
        let _ = tokio::time::timeout(wait, self.has_news(since)).await;
        let mut progress = lock(&self.progress);
        let (stdout, stderr, dropped_bytes) = progress.output.fetch(since);
        let ended = progress.ended.as_ref().map(|(_, ended)| ended);
        let outcome = ended.and_then(|ended| ended.as_ref().ok());
        RunReport {
            running: ended.is_none(),
            stdout,
            stderr,
            dropped_bytes,
            next: progress.output.end,
            exit_code: outcome.map(|outcome| outcome.exit_code),
            timed_out: outcome.map(|outcome| outcome.timed_out),
            out_of_memory: outcome.map(|outcome| outcome.out_of_memory),
            lost: ended.and_then(|ended| ended.as_ref().err()).cloned(),
        }
    }

    async fn has_news(&self, since: Option<u64>) {
        self.until(|progress| {
            progress.ended.is_some() || progress.output.end > since.unwrap_or(progress.output.fetched)
        })
        .await;
    }

    /// Writes to its standard input.
    pub(crate) fn send_input(&self, text: &str, is_last: bool) -> Result<InputSent, ExecuteError> {
        if lock(&self.progress).ended.is_some() {
            return Err(ExecuteError::NotFound { reason: "run_id: the program has ended, and reads nothing".into() });
        }
        let unread = self.input.unread();
        if unread as usize + text.len() > STDIN_MAX_BYTES {
            let reason =
                format!("text: the program has not read {unread} bytes yet; {STDIN_MAX_BYTES} may wait for it");
            return Err(ExecuteError::Unread { reason });
        }
        self.input.send(text.as_bytes(), is_last).map_err(ExecuteError::before_run)?;
        Ok(InputSent { unread_bytes: self.input.unread() })
    }

    /// Has it end, and waits for that.
    pub(crate) async fn stop(&self) -> RunReport {
        self.stop.cancel();
        self.until(|progress| progress.ended.is_some()).await;
        self.report(None, Duration::ZERO).await
    }

    async fn until(&self, is_so: impl Fn(&Progress) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on nothing is missed.
            changed.as_mut().enable();
            if is_so(&lock(&self.progress)) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_fetched_once_or_again_by_its_place() {
        let mut output = Output::default();
        output.push(Stream::Stdout, "one ");
        output.push(Stream::Stderr, "oops");
        assert_eq!(output.fetch(None), ("one ".into(), "oops".into(), 0));
        output.push(Stream::Stdout, "two\u{e9}");
        assert_eq!(output.fetch(None), ("two\u{e9}".into(), String::new(), 0));
        assert_eq!(output.fetch(None), (String::new(), String::new(), 0));
        assert_eq!(output.fetch(Some(2)), ("e two\u{e9}".into(), "oops".into(), 0));
        assert_eq!(output.fetch(Some(12)), (String::new(), String::new(), 0), "within a character");
        assert_eq!(output.fetch(Some(u64::MAX)), (String::new(), String::new(), 0));
    }

    #[test]
    fn the_oldest_output_is_dropped_and_that_is_said() {
        let mut output = Output::default();
        let line = "x".repeat(99) + "\n";
        (0..20_000).for_each(|_| output.push(Stream::Stdout, &line));
        let (stdout, _, dropped) = output.fetch(None);
        assert_eq!(stdout.len() as u64 + dropped, 2_000_000);
        assert!(stdout.len() <= BACKGROUND_OUTPUT_MAX_BYTES && stdout.len() > BACKGROUND_OUTPUT_MAX_BYTES - 8192);
        assert!(output.pieces.iter().map(|(_, piece)| piece.capacity()).sum::<usize>() < 3_000_000);
    }
}
