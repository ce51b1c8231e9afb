//! What a conquered guest or QEMU can send, fed with anything: the frames of the wire up to a program's result, the tunnel, the
//! monitor. `cargo test` runs the corpus in `__fuzz__` and a thousand random inputs each; `cargo bolero test fuzz::guest_frames`
//! goes on for as long as one likes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{
    GUEST_FRAME_MAX_BYTES, STDERR_MAX_BYTES, STDOUT_MAX_BYTES, TUNNEL_STREAMS_LIMIT, TUNNEL_WINDOW_MAX_BYTES,
};
use sandbox_schemas::tunnel::Target;
use sandbox_schemas::wire::{self, Exit, Finished, GuestFrame, HostFrame, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::VmError;
use crate::qemu::Monitor;
use crate::run::{OutputSink, Preparation, Terms, program, run};
use crate::tunnel::{Tunnel, TunnelStream};
use crate::vm::Booting;
use crate::wire::Wire;

/// Counts what each thread holds, so that a guest which makes us hold more than we want to is found.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees what it has without them.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(live.get())));
    });
}

#[allow(unsafe_code, reason = "an allocator is one")]
// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What comes of some work, and the most that it has held, in bytes.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    MOST.set(before);
    let result = work();
    (result, usize::try_from(MOST.get() - before).unwrap_or(0))
}

/// Lets a future run in a runtime whose clock goes on as soon as there is nothing else to do: no deadline takes any time.
fn in_no_time<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// Random bytes are seldom frames: half of them stand for whole ones, or for what frames are made of. So many are enough to fill
/// whatever is bounded.
fn composed(input: &[u8], parts: &[Vec<u8>]) -> Vec<u8> {
    let part = |byte: &u8| match parts.get(usize::from(*byte) % (2 * parts.len())) {
        Some(part) => part.clone(),
        None => vec![*byte],
    };
    input.iter().take(256).flat_map(part).collect()
}

fn framed(frame: &GuestFrame) -> Vec<u8> {
    wire::encode(frame).unwrap()
}

fn finished(exit: Exit, bytes: u64) -> GuestFrame {
    GuestFrame::Finished(Finished {
        run: 1,
        exit,
        state_lost: bytes > 5,
        stdout_bytes: bytes,
        stderr_bytes: bytes,
        spawn_us: bytes,
        process_us: bytes,
        cpu_us: bytes,
        memory_peak_bytes: bytes,
        oom_kills: bytes,
    })
}

fn output(stream: Stream, bytes: &[u8]) -> GuestFrame {
    GuestFrame::Output { run: 1, stream, bytes: bytes.into() }
}

fn guest_parts() -> Vec<Vec<u8>> {
    let frames = [
        GuestFrame::Ready,
        GuestFrame::Started(1),
        output(Stream::Stdout, b"hi\n"),
        output(Stream::Stderr, b"\xe2\x82"),
        output(Stream::Stdout, b"\xac"),
        output(Stream::Stdout, &[b'x'; 60_000]),
        finished(Exit::Code(0), 3),
        finished(Exit::Signal(255), u64::MAX),
        GuestFrame::Failed { run: Some(1), reason: "no".into() },
        GuestFrame::Taken { run: 1, bytes: 7 },
        GuestFrame::Tunnel(vec![0; 12]),
        GuestFrame::Tunnel(Vec::new()),
    ];
    let lies = [
        u32::MAX.to_le_bytes().to_vec(),
        (GUEST_FRAME_MAX_BYTES as u32).to_le_bytes().to_vec(),
        vec![1, 0, 0, 0],
        vec![2, 0, 0, 0, 2, 0],
        [&framed(&GuestFrame::Ready)[..], &framed(&GuestFrame::Started(1))].concat(),
    ];
    frames.iter().map(framed).chain(lies).collect()
}

#[derive(Default)]
struct Text {
    stdout: String,
    stderr: String,
}

impl OutputSink for Text {
    fn output(&mut self, stream: Stream, text: &str) {
        match stream {
            Stream::Stdout => self.stdout.push_str(text),
            Stream::Stderr => self.stderr.push_str(text),
        }
    }
}

/// A wire whose other end says `input`, and is then silent, or gone.
fn guest(input: &[u8], lives_on: bool) -> (Wire, Option<UnixStream>, std::thread::JoinHandle<()>) {
    let (wire, theirs) = Wire::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    let says = say(theirs, input);
    if lives_on {
        return (wire, Some(kept), says);
    }
    drop(kept);
    (wire, None, says)
}

/// What fits is said before anybody listens: a clock that takes no time would not wait for it. The rest is said until nobody
/// listens any more.
fn say(mut to: UnixStream, input: &[u8]) -> std::thread::JoinHandle<()> {
    to.set_nonblocking(true).unwrap();
    let mut said = 0;
    while let Ok(length @ 1..) = to.write(&input[said..]) {
        said += length;
    }
    to.set_nonblocking(false).unwrap();
    let rest = input[said..].to_vec();
    std::thread::spawn(move || drop(to.write_all(&rest)))
}

/// A VM from its first word to its result, whatever it says.
fn check_guest(input: &[u8]) {
    let Some((&how, input)) = input.split_first() else { return };
    // Most that a result and its ways hold: both streams, twice, since a `String` grows by doubling; the sink's copy of them; a few
    // frames.
    let bound = 6 * (STDOUT_MAX_BYTES + STDERR_MAX_BYTES) + 8 * GUEST_FRAME_MAX_BYTES + 512 * 1024 + input.len();
    let work = || {
        in_no_time(async {
            let (wire, lives, says) = guest(input, how % 2 == 0);
            let mut text = Text::default();
            let ended = run_guest(wire, &mut text).await;
            drop(lives);
            says.join().unwrap();
            (ended, text)
        })
    };
    let ((ended, text), held) = measured(work);
    assert!(held < bound, "{held} bytes are held for a guest");
    let Ok(outcome) = ended else { return };
    assert_eq!(outcome.timed_out, outcome.exit_code == -1, "{outcome:?}");
    if !outcome.truncated {
        assert!(outcome.stdout.starts_with(&text.stdout) && outcome.stderr.starts_with(&text.stderr));
        // A character that is cut at the end stands as U+FFFD, which no sink was told.
        assert!(outcome.stdout.len() <= text.stdout.len() + 3 && outcome.stderr.len() <= text.stderr.len() + 3);
    }
    // U+FFFD is three times as long as the byte that it stands for.
    assert!(outcome.stdout.len() <= 3 * STDOUT_MAX_BYTES + 100 && outcome.stderr.len() <= 3 * STDERR_MAX_BYTES + 200);
    assert!(outcome.stdout_bytes <= STDOUT_MAX_BYTES as u64 || outcome.truncated, "{outcome:?}");
    assert_eq!(outcome.cpu_time_ms.is_some(), outcome.process_ms.is_some());
}

async fn run_guest(wire: Wire, sink: &mut dyn OutputSink) -> Result<sandbox_schemas::outcome::ExecuteOutcome, VmError> {
    let request = program(ExecuteInput::new(Language::Python, "print(1)"))?;
    let running = Booting::over(wire).start(&request, Duration::from_secs(30)).await?;
    let preparation = Preparation {
        accepted: Instant::now(),
        setup: Duration::ZERO,
        boot: Duration::ZERO,
        connect: Duration::ZERO,
        accelerator: Accelerator::Tcg,
        warm_pool_hit: false,
        template_hit: false,
    };
    run(running, Terms::of_call(Duration::from_secs(1)), preparation, sink).await
}

/// What is decoded means the same once it is encoded again, in no more bytes: a number may come with needless zeros, and
/// nothing else may hide in a frame.
fn check_decoding<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(value) = wire::decode::<T>(body) else { return };
    let again = &wire::encode(&value).unwrap()[wire::PREFIX_BYTES..];
    assert!(again.len() <= body.len(), "{value:?} came in {body:?} and is {again:?}");
    assert_eq!(wire::decode::<T>(again).unwrap(), value);
    let longer = [again, &[0]].concat();
    assert!(wire::decode::<T>(&longer).is_err(), "{value:?} may be followed by more");
}

#[test]
fn decoding() {
    bolero::check!().for_each(|input: &[u8]| {
        check_decoding::<GuestFrame>(input);
        check_decoding::<Target>(input);
    });
}

#[test]
fn guest_frames() {
    let parts = guest_parts();
    bolero::check!().for_each(|input: &[u8]| {
        check_guest(input);
        if let Some((&how, rest)) = input.split_first() {
            check_guest(&[&[how], &composed(rest, &parts)[..]].concat());
            // So that what comes after the start is met as well.
            let started = [framed(&GuestFrame::Ready), framed(&GuestFrame::Started(1))].concat();
            check_guest(&[&[how], &started[..], &composed(rest, &parts)].concat());
        }
    });
}

/// A frame of yamux: version, type, flags, stream, length.
fn yamux(kind: u8, flags: u8, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    [&[0, kind, 0, flags], &stream.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
}

fn tunnel_parts() -> Vec<Vec<u8>> {
    let target = wire::encode(&Target::Registry).unwrap();
    let open = |stream| yamux(0, 1, stream, target.len() as u32, &target);
    let many = (0..=TUNNEL_STREAMS_LIMIT as u32).flat_map(|stream| open(2 * stream + 1)).collect();
    vec![
        open(1),
        open(3),
        open(2),
        many,
        yamux(0, 0, 1, 50_000, &[7; 50_000]),
        yamux(0, 0, 1, 3, b"abc"),
        yamux(0, 4, 1, 0, b""),
        yamux(0, 8, 1, 0, b""),
        yamux(1, 0, 1, u32::MAX, b""),
        yamux(1, 1, 5, 0, b""),
        yamux(2, 1, 0, 7, b""),
        yamux(2, 2, 0, 7, b""),
        yamux(3, 0, 0, 0, b""),
        yamux(0, 1, 7, u32::MAX, b""),
        yamux(0, 1, 9, 4, &[255; 4]),
    ]
}

/// A tunnel of which the guest sends these bytes, in chunks of some length, and reads nothing.
fn check_tunnel(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let chunk = 1 + usize::from(how) * 200;
    let mut frames: Vec<u8> = bytes.chunks(chunk).flat_map(|chunk| framed(&GuestFrame::Tunnel(chunk.into()))).collect();
    frames.extend(framed(&GuestFrame::Ready));
    // One kind of handler holds its stream, another answers, the third goes away.
    let handler = move |_: Target, mut stream: TunnelStream| async move {
        match how % 3 {
            0 => std::future::pending().await,
            1 => {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            }
            _ => {}
        }
    };
    let work = || {
        in_no_time(async {
            let (mut wire, _lives, says) = guest(&frames, true);
            let mut tunnel = Tunnel::new(Arc::new(handler));
            let received = tokio::time::timeout(Duration::from_secs(1), tunnel.receive(&mut wire)).await;
            drop((wire, _lives));
            says.join().unwrap();
            received
        })
    };
    let (received, held) = measured(work);
    // What the windows of all streams may hold, and what is under way.
    assert!(held < TUNNEL_WINDOW_MAX_BYTES + 4 * 1024 * 1024, "{held} bytes are held for a tunnel");
    match received {
        Ok(Ok(frame)) => assert_eq!(frame, GuestFrame::Ready),
        Ok(Err(VmError::Protocol(_))) | Err(_) => {}
        Ok(Err(error)) => panic!("{error}"),
    }
}

#[test]
fn tunnel_chunks() {
    let parts = tunnel_parts();
    bolero::check!().for_each(|input: &[u8]| {
        check_tunnel(input);
        if let Some((&how, rest)) = input.split_first() {
            check_tunnel(&[&[how], &composed(rest, &parts)[..]].concat());
        }
    });
}

/// A monitor that answers this to whatever it is told, and is then silent, or gone.
fn check_monitor(input: &[u8]) {
    let Some((&how, answers)) = input.split_first() else { return };
    let work = || {
        in_no_time(async {
            let (mut monitor, theirs) = Monitor::pair().unwrap();
            let mut kept = Some(theirs.try_clone().unwrap());
            let says = say(theirs, answers);
            let asked = async {
                match how % 4 {
                    0 => monitor.save().await.map(|state| assert!(state.is_empty())),
                    1 => monitor.pause().await,
                    2 => monitor.begin_restore(&[7; 100]).await,
                    _ => Err(monitor.failure().await),
                }
            };
            let gone = async {
                // After the commands were taken.
                tokio::time::sleep(Duration::from_millis(10)).await;
                if how % 8 < 4 {
                    kept = None;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                asked = tokio::time::timeout(Duration::from_secs(1), asked) => drop(asked),
                () = gone => {}
            }
            drop((monitor, kept));
            says.join().unwrap();
        })
    };
    let ((), held) = measured(work);
    // A line, as text and as a value, which may be numbers and nothing else.
    assert!(held < 8 * 1024 * 1024, "{held} bytes are held for a monitor");
}

#[test]
fn monitor_replies() {
    let parts: Vec<Vec<u8>> = [
        "\n",
        "{\"return\": {}}\r\n",
        "{\"return\": {}, \"id\": \"saving\"}\n",
        "{\"return\": {}, \"id\": \"continuing\"}\n",
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n",
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
        "{\"error\": 7}\n",
        "{\"QMP\": {\"version\": {}}}\n",
        "[",
        "\"",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([b"[0,".repeat(30_000), vec![b'x'; 70_000]])
    .collect();
    bolero::check!().for_each(|input: &[u8]| {
        check_monitor(input);
        if let Some((&how, rest)) = input.split_first() {
            check_monitor(&[&[how], &composed(rest, &parts)[..]].concat());
        }
    });
}

/// The other direction, for the agent's decoder: what we say is read as it was said.
#[test]
fn host_frames() {
    bolero::check!().for_each(|input: &[u8]| {
        if let Ok(frame) = wire::decode::<HostFrame>(input) {
            let again = wire::encode(&frame).unwrap();
            assert_eq!(wire::decode::<HostFrame>(&again[wire::PREFIX_BYTES..]).unwrap(), frame);
        }
    });
}
