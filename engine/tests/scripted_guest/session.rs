//! A guest that lies in a session.

use std::time::Duration;

use sandbox_engine::{CancellationToken, ExecuteError, OutputSink, Stream};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::session::OpenInput;
use sandbox_schemas::wire::{Finished, GuestFrame};

use crate::guest::{Text, bytes, engine, finished, finished_of, output};

/// Plays what comes behind the first frame a moment later, when a session has its call.
pub(crate) const PLAY_LATER: &str = "head -c 5 $frames >&3; sleep 0.5; tail -c +6 $frames >&3; exec sleep 100";

/// What comes of so many calls in a session whose guest says all this, and how many sessions are left then.
async fn in_session(said: &[GuestFrame], calls: usize) -> (Vec<Result<ExecuteOutcome, ExecuteError>>, usize) {
    in_session_to(&mut Text::default(), said, calls).await
}

async fn in_session_to(
    sink: &mut dyn OutputSink,
    said: &[GuestFrame],
    calls: usize,
) -> (Vec<Result<ExecuteOutcome, ExecuteError>>, usize) {
    let (engine, _folder) = engine(PLAY_LATER, &bytes(&[&[GuestFrame::Ready], said].concat())).await;
    let opened = engine.open_session(OpenInput::default(), &mut Text::default(), CancellationToken::new()).await;
    let mut input = ExecuteInput::new(Language::Python, "print(1)");
    input.timeout_seconds = Some(1);
    input.session_id = Some(opened.unwrap().session_id);
    let mut results = Vec::new();
    for _ in 0..calls {
        results.push(engine.execute(input.clone(), sink, CancellationToken::new()).await);
    }
    let left = engine.status().sessions.len();
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    (results, left)
}

#[tokio::test]
async fn an_honest_guest_of_a_session_is_believed() {
    let ended = GuestFrame::Finished(Finished { state_lost: true, ..finished_of() });
    let (mut results, left) = in_session(&[GuestFrame::Started(1), output("hi"), ended], 1).await;
    let outcome = results.remove(0).unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.as_str(), outcome.state_lost, left), (3, "hi", true, 1));
}

#[tokio::test]
async fn a_session_ends_with_a_guest_that_breaks_the_protocol() {
    let other = GuestFrame::Output { run: 7, stream: Stream::Stdout, bytes: b"x".to_vec() };
    for (said, expected) in [
        (vec![GuestFrame::Started(1), other], "it speaks of run 7, which there is not"),
        (vec![GuestFrame::Started(1), GuestFrame::Ready], "something of a run was expected, ready came"),
        (vec![GuestFrame::Started(1), GuestFrame::Failed { run: None, reason: "no more".into() }], "no more"),
        (vec![GuestFrame::Started(1), finished(), finished()], "it speaks of run 1, which there is not"),
    ] {
        let (results, left) = in_session(&said, 2).await;
        let [first, second] = &results[..] else { panic!("two calls") };
        if let Err(error) = first {
            assert!(matches!(error, ExecuteError::OutcomeUnknown { .. }), "{error}");
            assert!(error.to_string().contains(expected), "expected {expected:?}, found {error}");
        }
        let error = second.as_ref().unwrap_err();
        assert!(error.to_string().contains(expected), "expected {expected:?}, found {error}");
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn a_call_that_its_guest_refuses_has_not_run_and_the_session_goes_on() {
    let refusal = GuestFrame::Failed { run: Some(1), reason: "no interpreter".into() };
    let (results, left) = in_session(&[refusal], 1).await;
    assert!(results[0].as_ref().unwrap_err().to_string().contains("before the program ran: no interpreter"));
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_session_whose_guest_heeds_nothing_is_given_up() {
    let (results, left) = in_session(&[GuestFrame::Started(1)], 2).await;
    let outcome = results[0].as_ref().unwrap();
    assert!(outcome.timed_out && outcome.exit_code == -1);
    let error = results[1].as_ref().unwrap_err();
    assert!(error.to_string().contains("could neither be interrupted nor killed"), "{error}");
    assert_eq!(left, 0);
}

/// Wants nothing.
struct Deaf;

impl OutputSink for Deaf {
    fn output(&mut self, _: Stream, _: &str) {}

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_guest_that_sends_more_than_it_was_granted_loses_its_session() {
    let flood = |frames| -> Vec<_> {
        let output = std::iter::repeat_n(output(&"x".repeat(60_000)), frames);
        std::iter::once(GuestFrame::Started(1)).chain(output).collect()
    };
    // A window, and what lies in two pipes.
    let (results, left) = in_session_to(&mut Deaf, &flood(39), 1).await;
    assert!(results[0].as_ref().unwrap().timed_out && left == 1, "{results:?}");
    let (results, left) = in_session_to(&mut Deaf, &flood(40), 1).await;
    let error = results[0].as_ref().unwrap_err();
    assert!(error.to_string().contains("it sends more than it was granted"), "{error}");
    assert_eq!(left, 0);
}
