//! What a model is given of a program's output: what a terminal would show, and of much its beginning and its end.

use sandbox_engine::{Engine, Stream};
use sandbox_schemas::outcome::ExecuteOutcome;
use serde::Serialize;

use crate::tools::excerpt::excerpt;
use crate::tools::terminal::as_shown;

/// Of what is too much, so much is standard output at least: errors are told at the end of the other.
const STDOUT_SHARE: (usize, usize) = (2, 3);

/// A program's output as it is shown. What it was is in the result's figures.
#[derive(Debug, Default)]
pub(super) struct Fitted {
    /// `None` where it is as the program has written it.
    pub(super) stdout: Option<String>,
    pub(super) stderr: Option<String>,
    /// The streams of which something was left out.
    cut: Vec<Stream>,
    /// Where that begins, in bytes of both streams one after the other.
    begin: usize,
}

/// Where all of the output is that was cut.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Whole {
    /// In files of the session.
    Files(Vec<String>),
    /// For `get_run`.
    RunId(String),
}

/// Fits the output into so many characters.
pub(super) fn fit(stdout: &str, stderr: &str, most: usize) -> Fitted {
    let mut fitted = Fitted::default();
    let (shown_stdout, shown_stderr) = (as_shown(stdout), as_shown(stderr));
    let (stdout_length, stderr_length) = (shown_stdout.chars().count(), shown_stderr.chars().count());
    let stdout_most = (most * STDOUT_SHARE.0 / STDOUT_SHARE.1).max(most.saturating_sub(stderr_length));
    let stderr_most = most.saturating_sub(stdout_length.min(stdout_most));
    let streams = [
        (Stream::Stdout, stdout, shown_stdout, stdout_most, 0),
        (Stream::Stderr, stderr, shown_stderr, stderr_most, stdout.len()),
    ];
    let texts = streams.map(|(stream, written, shown, most, before)| {
        let Some(cut) = excerpt(&shown, most) else { return (*shown != *written).then(|| shown.into_owned()) };
        if fitted.cut.is_empty() {
            // Of what was drawn over nobody knows where it was.
            fitted.begin = if *shown == *written { before + cut.begin } else { before };
        }
        fitted.cut.push(stream);
        Some(cut.text)
    });
    [fitted.stdout, fitted.stderr] = texts;
    fitted
}

impl Fitted {
    /// Keeps all of it where the model can get at it, if that was not all: in its session, where programs can search it; else for
    /// `get_run`, if that is offered.
    pub(super) async fn keep(
        &self,
        engine: &Engine,
        session: Option<&str>,
        outcome: &ExecuteOutcome,
        has_get_run: bool,
    ) -> Option<Whole> {
        if self.cut.is_empty() {
            return None;
        }
        if let Some(session) = session
            && let Some(files) = self.store(engine, session, outcome).await
        {
            return Some(Whole::Files(files));
        }
        has_get_run.then(|| engine.keep_output(outcome).ok())?.map(Whole::RunId)
    }

    async fn store(&self, engine: &Engine, session: &str, outcome: &ExecuteOutcome) -> Option<Vec<String>> {
        let mut files = Vec::new();
        for &stream in &self.cut {
            let text = match stream {
                Stream::Stdout => &outcome.stdout,
                Stream::Stderr => &outcome.stderr,
            };
            // It may have ended meanwhile, or have no room.
            files.push(engine.keep_output_in(session, stream, text).await.ok()?);
        }
        Some(files)
    }

    /// What was cut and where all of it is, in words.
    pub(super) fn words(&self, whole: Option<&Whole>) -> Option<String> {
        if self.cut.is_empty() {
            return None;
        }
        let names: Vec<_> = self.cut.iter().map(|stream| stream.name()).collect();
        let cut = format!("{} cut", names.join(" and "));
        Some(match whole {
            Some(Whole::Files(files)) => format!("{cut}; more of it: {}", files.join(", ")),
            Some(Whole::RunId(id)) => {
                format!("{cut}; get_run {{\"run_id\": \"{id}\", \"since\": {}}} reads on", self.begin)
            }
            None => cut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_as_it_was() {
        let fitted = fit("out\n", "err\n", 100);
        assert_eq!((fitted.stdout, fitted.stderr, fitted.cut.len()), (None, None, 0));
        let fitted = fit("50%\r100%\n", "", 100);
        assert_eq!((fitted.stdout.as_deref(), fitted.stderr, fitted.cut.len()), (Some("100%\n"), None, 0));
    }

    #[test]
    fn both_streams_share_the_room_and_neither_pushes_the_other_out() {
        let long = "0123456789\n".repeat(1000);
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let both = fit(&long, &long, 3000);
        assert_eq!(both.cut, [Stream::Stdout, Stream::Stderr]);
        assert!((1900..2100).contains(&length(&both.stdout)), "{}", length(&both.stdout));
        assert!((900..1100).contains(&length(&both.stderr)), "{}", length(&both.stderr));
        let one = fit(&long, "a warning\n", 3000);
        assert_eq!((one.cut, one.stderr), (vec![Stream::Stdout], None));
        assert!((2900..3100).contains(&length(&one.stdout)));
        let other = fit("a line\n", &long, 3000);
        assert_eq!((other.cut, other.stdout, other.begin), (vec![Stream::Stderr], None, 7 + 1496));
    }
}
