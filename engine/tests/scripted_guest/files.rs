//! A guest that lies about files.

use std::time::Duration;

use sandbox_engine::{CancellationToken, Engine, ExecuteError, FileSource, Stream};
use sandbox_schemas::files::{ListInput, ReadInput};
use sandbox_schemas::limits::LISTING_MAX_BYTES;
use sandbox_schemas::session::OpenInput;
use sandbox_schemas::wire::{Entry, EntryKind, GuestFrame};

use crate::guest::{Text, bytes, engine, finished};
use crate::session::PLAY_LATER;

const STARTED: GuestFrame = GuestFrame::Started(1);

fn taken(bytes: u64) -> GuestFrame {
    GuestFrame::Taken { run: 1, bytes }
}

fn transferred(size: u64) -> GuestFrame {
    GuestFrame::Transferred { run: 1, size }
}

fn contents(text: &str) -> GuestFrame {
    GuestFrame::Output { run: 1, stream: Stream::Stdout, bytes: text.into() }
}

fn listed(name: &str) -> GuestFrame {
    GuestFrame::Listed { run: 1, entry: Entry { name: name.into(), kind: EntryKind::File, size: 1 } }
}

/// What comes of a question to a session whose guest says all this, and how many sessions are left then.
async fn asked<T>(
    said: &[GuestFrame],
    question: impl AsyncFnOnce(&Engine, String) -> Result<T, ExecuteError>,
) -> (Result<T, String>, usize) {
    let (engine, _folder) = engine(PLAY_LATER, &bytes(&[&[GuestFrame::Ready], said].concat())).await;
    let opened = engine.open_session(OpenInput::default(), &mut Text::default(), CancellationToken::new()).await;
    let answer = question(&engine, opened.unwrap().session_id).await;
    // What it says afterwards is heard, too.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let left = engine.status().sessions.len();
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    (answer.map_err(|error| error.to_string()), left)
}

async fn stored(said: &[GuestFrame]) -> (Result<u64, String>, usize) {
    asked(said, async |engine, session| {
        let file = FileSource { path: "a".into(), executable: false, contents: Box::new(&b"abc"[..]) };
        Ok(engine.write_file(&session, file, CancellationToken::new()).await?.size_bytes)
    })
    .await
}

/// Three bytes at most, from the second on.
async fn fetched(said: &[GuestFrame]) -> (Result<(String, u64), String>, usize) {
    asked(said, async |engine, session_id| {
        let mut input: ReadInput =
            serde_json::from_value(serde_json::json!({"session_id": session_id, "path": "a"})).unwrap();
        (input.offset, input.length) = (Some(1), Some(3));
        let read = engine.read_file(&input, CancellationToken::new()).await?;
        Ok((read.contents.text.unwrap_or_default(), read.next))
    })
    .await
}

async fn listing(said: &[GuestFrame]) -> (Result<(usize, bool), String>, usize) {
    asked(said, async |engine, session_id| {
        let input: ListInput = serde_json::from_value(serde_json::json!({"session_id": session_id})).unwrap();
        let listed = engine.list_files(&input, CancellationToken::new()).await?;
        Ok((listed.files.len(), listed.truncated))
    })
    .await
}

fn check<T: std::fmt::Debug>((answer, left): (Result<T, String>, usize), expected: &str, sessions: usize) {
    let error = answer.unwrap_err();
    assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    assert_eq!(left, sessions, "{error}");
}

#[tokio::test]
async fn an_honest_guest_is_believed() {
    assert_eq!(stored(&[STARTED, taken(1), taken(2), transferred(3)]).await, (Ok(3), 1));
    assert_eq!(fetched(&[STARTED, contents("bc"), contents("d"), transferred(9)]).await, (Ok(("bcd".into(), 4)), 1));
    assert_eq!(fetched(&[STARTED, contents("b"), transferred(2)]).await, (Ok(("b".into(), 2)), 1));
    assert_eq!(listing(&[listed("a"), listed("b"), transferred(1)]).await, (Ok((2, true)), 1));
}

#[tokio::test]
async fn a_file_that_is_said_to_be_taken_was_taken() {
    let wrong = "that a file was taken was expected";
    for said in [
        vec![STARTED, transferred(2)],
        vec![STARTED, taken(4)],
        vec![STARTED, taken(0), taken(0)],
        vec![STARTED, contents("x")],
        vec![STARTED, STARTED],
        vec![STARTED, listed("a")],
        vec![STARTED, finished()],
    ] {
        check(stored(&said).await, wrong, 1);
    }
    check(stored(&[transferred(3)]).await, "started was expected", 1);
    let refusal = GuestFrame::Failed { run: Some(1), reason: "a: no".into() };
    check(stored(&[STARTED, refusal]).await, "a: no", 1);
}

#[tokio::test]
async fn a_file_that_is_said_to_be_sent_was_sent() {
    let wrong = "all that was asked of a file was expected";
    for said in [
        vec![STARTED, contents("bc"), transferred(9)],
        vec![STARTED, contents("bc"), transferred(2)],
        vec![STARTED, contents("b"), transferred(0)],
        vec![STARTED, transferred(u64::MAX)],
        vec![STARTED, taken(1)],
        vec![STARTED, finished()],
    ] {
        check(fetched(&said).await, wrong, 1);
    }
    check(fetched(&[STARTED, contents("bcde"), transferred(9)]).await, "more of a file than was asked for", 1);
    let of_another = GuestFrame::Output { run: 2, stream: Stream::Stdout, bytes: b"x".to_vec() };
    check(fetched(&[STARTED, of_another]).await, "it speaks of run 2, which there is not", 0);
}

#[tokio::test]
async fn a_listing_is_bounded_and_nothing_else() {
    check(listing(&[listed("a"), contents("x")]).await, "what is in a folder was expected", 1);
    let long = "x".repeat(50_000);
    let endless: Vec<_> = (0..=LISTING_MAX_BYTES / long.len()).map(|_| listed(&long)).collect();
    check(listing(&endless).await, "it lists more than may be", 0);
}
