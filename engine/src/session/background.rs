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

/// Results that are kept, at most, of programs in the background and of calls each: one has up to a megabyte of output.
const KEPT_MAX: usize = 32;

/// All programs in the background of an engine, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Backgrounds(Mutex<HashMap<String, Arc<Background>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Background {
    progress: Mutex<Progress>,
    changed: Notify,
    stop: CancellationToken,
    /// None of a program that has ended.
    input: Option<Input>,
}

#[derive(Debug, Default)]
struct Progress {
    output: Output,
    ended: Option<(Instant, Result<Ending, String>)>,
}

/// How a program has ended.
#[derive(Debug, Clone, Copy)]
struct Ending {
    exit_code: i32,
    timed_out: bool,
    out_of_memory: bool,
}

impl Ending {
    fn of(outcome: &ExecuteOutcome) -> Ending {
        let ExecuteOutcome { exit_code, timed_out, out_of_memory, .. } = *outcome;
        Ending { exit_code, timed_out, out_of_memory }
    }
}

/// The end of what a program has written. Bytes are counted from its beginning, both streams together.
#[derive(Debug)]
struct Output {
    pieces: VecDeque<(Stream, String)>,
    /// Bytes that are kept, at most.
    most: usize,
    /// Where the first piece begins, and where the last one ends.
    begin: u64,
    end: u64,
    /// What was fetched already.
    fetched: u64,
}

/// What was fetched of it.
#[derive(Debug, PartialEq, Eq)]
struct Fetched {
    stdout: String,
    stderr: String,
    /// Bytes before that which are gone.
    dropped_bytes: u64,
    /// Where it ends.
    next: u64,
}

impl Default for Output {
    fn default() -> Output {
        Output { pieces: VecDeque::new(), most: BACKGROUND_OUTPUT_MAX_BYTES, begin: 0, end: 0, fetched: 0 }
    }
}

impl Output {
    fn push(&mut self, stream: Stream, text: &str) {
        self.end += text.len() as u64;
        match self.pieces.back_mut() {
            // Pieces of some size, so that few bytes more than must be are dropped.
            Some((last, piece)) if *last == stream && piece.len() < 4096 => piece.push_str(text),
            _ => self.pieces.push_back((stream, text.to_owned())),
        }
        while self.end - self.begin > self.most as u64 {
            let Some((_, piece)) = self.pieces.pop_front() else { return };
            self.begin += piece.len() as u64;
        }
    }

    /// What comes behind `since`, or what is new, up to `most` bytes; and how much of that is gone.
    fn fetch(&mut self, since: Option<u64>, most: usize) -> Fetched {
        let since = since.unwrap_or(self.fetched).min(self.end);
        let (mut stdout, mut stderr, mut left) = (String::new(), String::new(), most);
        let (mut at, mut next) = (self.begin, since.max(self.begin));
        for (stream, piece) in &self.pieces {
            let begin = at;
            at += piece.len() as u64;
            if at <= next {
                continue;
            }
            let from = usize::try_from(next - begin).unwrap_or(usize::MAX).min(piece.len());
            // A `since` of nobody's may be within a character.
            let from = (from..=piece.len()).find(|from| piece.is_char_boundary(*from)).unwrap_or(piece.len());
            let to = piece.len().min(from.saturating_add(left));
            let to = (from..=to).rev().find(|to| piece.is_char_boundary(*to)).unwrap_or(from);
            match stream {
                Stream::Stdout => stdout.push_str(&piece[from..to]),
                Stream::Stderr => stderr.push_str(&piece[from..to]),
            }
            left -= to - from;
            next = begin + to as u64;
            if to < piece.len() {
                break;
            }
        }
        self.fetched = next;
        Fetched { stdout, stderr, dropped_bytes: self.begin.saturating_sub(since), next }
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
            input: Some(call.input()),
        });
        self.insert(id.clone(), background.clone());
        tokio::spawn(async move {
            let terms = Terms { timeout, stop: Some(background.stop.clone()), keeps_output: false };
            let ended = call.run(terms, &mut Keeping(background.clone())).await;
            let ended = ended.map(|outcome| Ending::of(&outcome)).map_err(|error| error.to_string());
            lock(&background.progress).ended = Some((Instant::now(), ended));
            background.changed.notify_waiters();
            at_end();
        });
        Ok(id)
    }

    /// Keeps what a program has written that has ended, for who has not been given all of it. What it is named by.
    pub(crate) fn keep(&self, outcome: &ExecuteOutcome) -> Result<String, ExecuteError> {
        let id = Id::new("r").map_err(ExecuteError::random)?.to_string();
        let mut output = Output { most: usize::MAX, ..Output::default() };
        output.push(Stream::Stdout, &outcome.stdout);
        output.push(Stream::Stderr, &outcome.stderr);
        let progress = Progress { output, ended: Some((Instant::now(), Ok(Ending::of(outcome)))) };
        let (changed, stop) = (Notify::new(), CancellationToken::new());
        self.insert(id.clone(), Arc::new(Background { progress: Mutex::new(progress), changed, stop, input: None }));
        Ok(id)
    }

    fn insert(&self, id: String, background: Arc<Background>) {
        let mut runs = lock(&self.0);
        let ended = |run: &Background| lock(&run.progress).ended.as_ref().map(|(when, _)| *when);
        runs.retain(|_, run| ended(run).is_none_or(|when| when.elapsed() < KEPT));
        // What was kept of calls takes no place from what nobody has fetched at all.
        let is_of_call = |run: &Background| run.input.is_none();
        let alike = runs.iter().filter(|(_, run)| is_of_call(run) == is_of_call(&background));
        let mut kept: Vec<_> = alike.filter_map(|(id, run)| Some((ended(run)?, id.clone()))).collect();
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
    /// What it has written, up to `most` bytes of it, and whether it has ended; waits for news of either, if there is none.
    pub(crate) async fn report(&self, since: Option<u64>, most: usize, wait: Duration) -> RunReport {
        let _ = tokio::time::timeout(wait, self.has_news(since)).await;
        let mut progress = lock(&self.progress);
        let Fetched { stdout, stderr, dropped_bytes, next } = progress.output.fetch(since, most);
        let ended = progress.ended.as_ref().map(|(_, ended)| ended);
        let outcome = ended.and_then(|ended| ended.as_ref().ok());
        RunReport {
            running: ended.is_none(),
            stdout,
            stderr,
            dropped_bytes,
            next,
            unread_bytes: progress.output.end - next,
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
        let ended = || ExecuteError::NotFound { reason: "run_id: the program has ended, and reads nothing".into() };
        if lock(&self.progress).ended.is_some() {
            return Err(ended());
        }
        let input = self.input.as_ref().ok_or_else(ended)?;
        let unread = input.unread();
        if unread as usize + text.len() > STDIN_MAX_BYTES {
            let reason =
                format!("text: the program has not read {unread} bytes yet; {STDIN_MAX_BYTES} may wait for it");
            return Err(ExecuteError::Unread { reason });
        }
        input.send(text.as_bytes(), is_last).map_err(ExecuteError::before_run)?;
        Ok(InputSent { unread_bytes: input.unread() })
    }

    /// Has it end, and waits for that.
    pub(crate) async fn stop(&self, most: usize) -> RunReport {
        self.stop.cancel();
        self.until(|progress| progress.ended.is_some()).await;
        self.report(None, most, Duration::ZERO).await
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

    fn fetched(stdout: &str, stderr: &str, next: u64) -> Fetched {
        Fetched { stdout: stdout.into(), stderr: stderr.into(), dropped_bytes: 0, next }
    }

    #[test]
    fn output_is_fetched_once_or_again_by_its_place() {
        let mut output = Output::default();
        output.push(Stream::Stdout, "one ");
        output.push(Stream::Stderr, "oops");
        assert_eq!(output.fetch(None, 100), fetched("one ", "oops", 8));
        output.push(Stream::Stdout, "two\u{e9}");
        assert_eq!(output.fetch(None, 100), fetched("two\u{e9}", "", 13));
        assert_eq!(output.fetch(None, 100), fetched("", "", 13));
        assert_eq!(output.fetch(Some(2), 100), fetched("e two\u{e9}", "oops", 13));
        assert_eq!(output.fetch(Some(12), 100), fetched("", "", 13), "within a character");
        assert_eq!(output.fetch(Some(u64::MAX), 100), fetched("", "", 13));
    }

    #[test]
    fn it_is_fetched_in_parts_none_of_which_ends_within_a_character() {
        let mut output = Output::default();
        output.push(Stream::Stdout, "one ");
        output.push(Stream::Stderr, "oops");
        output.push(Stream::Stdout, "\u{e9}\u{e9}");
        assert_eq!(output.fetch(None, 3), fetched("one", "", 3));
        assert_eq!(output.fetch(None, 3), fetched(" ", "oo", 6));
        assert_eq!(output.fetch(None, 5), fetched("\u{e9}", "ps", 10));
        assert_eq!(output.fetch(Some(1), 4), fetched("ne ", "o", 5));
        assert_eq!(output.fetch(None, 100), fetched("\u{e9}\u{e9}", "ops", 12));
    }

    #[test]
    fn the_oldest_output_is_dropped_and_that_is_said() {
        let mut output = Output::default();
        let line = "x".repeat(99) + "\n";
        (0..20_000).for_each(|_| output.push(Stream::Stdout, &line));
        let Fetched { stdout, dropped_bytes, .. } = output.fetch(None, usize::MAX);
        assert_eq!(stdout.len() as u64 + dropped_bytes, 2_000_000);
        assert!(stdout.len() <= BACKGROUND_OUTPUT_MAX_BYTES && stdout.len() > BACKGROUND_OUTPUT_MAX_BYTES - 8192);
        assert!(output.pieces.iter().map(|(_, piece)| piece.capacity()).sum::<usize>() < 3_000_000);
    }
}
