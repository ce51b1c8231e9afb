//! The engine against guests that lie, hang, flood or die. The "QEMU" is a shell script that plays back prepared bytes on
//! the wire: what a conquered guest could send.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_engine::{
    AcceleratorChoice, CancellationToken, Engine, EngineConfig, ExecuteError, Installation, Limits, OutputSink, Stream,
    Target, TunnelStream,
};
use sandbox_packages::GatewayConfig;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::TUNNEL_STREAMS_LIMIT;
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::session::OpenInput;
use sandbox_schemas::wire::{self, Exit, Finished, GuestFrame};
use sandbox_store::CacheDir;
use tempfile::TempDir;

#[derive(Default)]
struct Text(String);

impl OutputSink for Text {
    fn output(&mut self, _: Stream, text: &str) {
        self.0.push_str(text);
    }
}

/// An engine whose QEMU is `script`, with `frames` in the file `$frames`.
async fn engine(script: &str, frames: &[u8]) -> (Engine, TempDir) {
    engine_of(script, frames, 2, 4096).await
}

/// The same with room for so many VMs, and so many MiB.
async fn engine_of(script: &str, frames: &[u8], vms: usize, memory_mb: u64) -> (Engine, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    // The script runs as another user when the test runs as root.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let frames = file("frames", frames);
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo QEMU emulator version 9.0.0; exit; fi\n\
         PATH=/usr/bin:/bin\nframes={}\n{script}\n",
        frames.display()
    );
    let qemu = file("qemu", text.as_bytes());
    let digest = "0".repeat(64).parse().unwrap();
    let cache = CacheDir::new(folder.path().to_path_buf(), 0);
    let config = EngineConfig {
        packages: GatewayConfig::new(cache.clone()),
        warm_sets: Vec::new(),
        image: BootImage {
            kernel: qemu.clone(),
            kernel_sha256: digest,
            root: qemu.clone(),
            root_sha256: digest,
            initrd: qemu.clone(),
            initrd_sha256: digest,
        },
        qemu: Some(qemu),
        accelerator: AcceleratorChoice::Tcg,
        warm_pool_size: 0,
        uses_templates: false,
        limits: Limits { vms, memory_mb, waiting: 2, wait: Duration::from_secs(5), sessions: 1 },
        cache,
    };
    (Engine::start(config).await.unwrap(), folder)
}

/// One run with a second's limit, and what the sink saw.
async fn execute(script: &str, frames: &[u8]) -> (Result<ExecuteOutcome, ExecuteError>, String) {
    let (engine, _folder) = engine(script, frames).await;
    let mut input = ExecuteInput::new(Language::Python, "print(1)");
    input.timeout_seconds = Some(1);
    let mut text = Text::default();
    let result = engine.execute(input, &mut text, CancellationToken::new()).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    (result, text.0)
}

fn bytes(frames: &[GuestFrame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| wire::encode(frame).unwrap()).collect()
}

fn started() -> Vec<GuestFrame> {
    vec![GuestFrame::Ready, GuestFrame::Started(1)]
}

fn output(text: &str) -> GuestFrame {
    GuestFrame::Output { run: 1, stream: Stream::Stdout, bytes: text.into() }
}

fn finished() -> GuestFrame {
    GuestFrame::Finished(finished_of())
}

fn finished_of() -> Finished {
    Finished {
        run: 1,
        state_lost: false,
        exit: Exit::Code(3),
        stdout_bytes: 2,
        stderr_bytes: 0,
        spawn_us: 1,
        process_us: 1,
        cpu_us: 1,
        memory_peak_bytes: 1,
        oom_kills: 0,
    }
}

const PLAY: &str = "cat $frames >&3; exec sleep 100";

/// The frames that follow, and the error that they come to.
async fn check(script: &str, frames: &[u8], expected: &str) {
    let (result, _) = execute(script, frames).await;
    let found = result.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
    assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
}

#[tokio::test]
async fn an_honest_guest_is_believed() {
    let frames = [started(), vec![output("hi"), finished()]].concat();
    let (result, text) = execute(PLAY, &bytes(&frames)).await;
    let outcome = result.unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.as_str(), text.as_str()), (3, "hi", "hi"));
    assert!(!outcome.timed_out && !outcome.truncated);
    assert!(outcome.timing.total_ms >= outcome.timing.boot_ms + outcome.timing.execute_ms);
}

#[tokio::test]
async fn what_fails_before_the_program_ran_is_safe_to_try_again() {
    check("echo no such machine >&2; exit 1", b"", "before the program ran: the VM ended unexpectedly").await;
    check("echo no such machine >&2; exit 1", b"", "no such machine").await;
    check(PLAY, &bytes(&[finished()]), "before the program ran: the guest broke the protocol: ready was expected")
        .await;
    let refusal = GuestFrame::Failed { run: None, reason: "no interpreter".into() };
    check(PLAY, &bytes(&[GuestFrame::Ready, refusal]), "before the program ran: no interpreter").await;
}

#[tokio::test]
async fn a_guest_that_dies_with_the_program_leaves_the_outcome_unknown() {
    // It waits for the program: the host has written 84 bytes before that.
    let script = "cat $frames >&3; head -c 110 <&3 >/dev/null; echo panic >&2; exit 1";
    check(script, &bytes(&[started(), vec![output("hi")]].concat()), "It may have run in part or in full").await;
    check(PLAY, &bytes(&[GuestFrame::Ready, output("early")]), "started was expected, output came").await;
    check(PLAY, &bytes(&[started(), vec![GuestFrame::Ready]].concat()), "output was expected, ready came").await;
    let failure = GuestFrame::Failed { run: None, reason: "so it says".into() };
    check(PLAY, &bytes(&[started(), vec![failure]].concat()), "so it says. It may have run").await;
}

#[tokio::test]
async fn a_lying_frame_ends_the_vm_and_sets_no_memory_aside() {
    let giant = [bytes(&started()), u32::MAX.to_le_bytes().to_vec()].concat();
    check(PLAY, &giant, "the guest broke the protocol").await;
    let unknown = [bytes(&started()), vec![1, 0, 0, 0, 200]].concat();
    check(PLAY, &unknown, "the guest broke the protocol").await;
    let nonsense = [bytes(&started()), vec![0xff; 64]].concat();
    check(PLAY, &nonsense, "the guest broke the protocol").await;
}

#[tokio::test]
async fn a_guest_that_hangs_costs_the_timeout_and_two_graces() {
    let begun = Instant::now();
    let (result, text) = execute(PLAY, &bytes(&[started(), vec![output("so far")]].concat())).await;
    let outcome = result.unwrap();
    assert_eq!((outcome.exit_code, outcome.timed_out, outcome.stdout.as_str()), (-1, true, "so far"));
    assert_eq!(text, "so far");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_flood_is_cut_at_the_cap_and_at_the_timeout() {
    let chunk = output(&"x".repeat(60_000));
    let head = bytes(&started());
    let script =
        format!("head -c {} $frames >&3; while :; do tail -c +{} $frames >&3; done", head.len(), head.len() + 1);
    let frames = [head, bytes(&[chunk])].concat();
    let (result, text) = execute(&script, &frames).await;
    let outcome = result.unwrap();
    assert!(outcome.timed_out && outcome.truncated);
    assert_eq!((outcome.stdout.len(), text.len()), (1_000_000, 1_000_000));
}

#[tokio::test]
async fn empty_frames_without_end_do_not_keep_the_host_busy() {
    let nothing = |stream| GuestFrame::Output { run: 1, stream, bytes: Vec::new() };
    for stream in [Stream::Stdout, Stream::Stderr] {
        check(PLAY, &bytes(&[started(), vec![nothing(stream)]].concat()), "an empty frame. It may have run").await;
        check(PLAY, &bytes(&[vec![nothing(stream)], started()].concat()), "before the program ran: ").await;
    }
}

/// Wherever a call is dropped, its place is free and its process gone.
#[tokio::test]
async fn a_call_that_is_dropped_at_any_point_leaves_nothing() {
    let frames = [started(), vec![output("hi"), finished()]].concat();
    let (engine, folder) = engine_of("cat $frames >&3; exec sleep 100", &bytes(&frames), 1, 4096).await;
    let mut completed = 0;
    for polls in 0..60 {
        let mut text = Text::default();
        let input = ExecuteInput::new(Language::Python, "print(1)");
        let mut run = Box::pin(engine.execute(input, &mut text, CancellationToken::new()));
        for _ in 0..polls {
            if futures_util::poll!(run.as_mut()).is_ready() {
                completed += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(run);
        let until = Instant::now() + Duration::from_secs(20);
        while is_running(folder.path()) {
            assert!(Instant::now() < until, "the VM is still there after {polls} polls");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let status = engine.status();
        assert_eq!((status.queued, status.vms.restoring, status.vms.running), (0, 0, 0), "after {polls} polls");
    }
    // The only place there is was given back each time.
    let mut text = Text::default();
    let input = ExecuteInput::new(Language::Python, "print(1)");
    let outcome = engine.execute(input, &mut text, CancellationToken::new()).await.unwrap();
    assert_eq!(outcome.stdout, "hi");
    assert!(completed < 60, "none was dropped before its end");
    engine.shut_down().await;
}

#[tokio::test]
async fn a_vm_that_is_larger_than_all_may_be_is_refused_with_the_reason() {
    let (engine, _folder) = engine_of("exit 1", b"", 2, 1024).await;
    let mut request = ExecuteInput::new(Language::Shell, "true");
    // 256 MiB for the guest, 256 MiB for QEMU.
    let refusal = "a VM of 1025 MiB does not fit: all VMs together may have 1024 MiB";
    for (memory_mb, expected) in [(513, refusal), (512, "the VM ended")] {
        request.memory_mb = memory_mb;
        let handler = |_: Target, _: TunnelStream| std::future::ready(());
        let installation = Installation { writable_mb: 1024, parts: 0, disk: None, handler: Arc::new(handler) };
        let (mut text, cancel) = (Text::default(), CancellationToken::new());
        let result = engine.run_installer(installation, request.clone(), &mut text, cancel).await;
        let found = result.unwrap_err().to_string();
        assert!(found.contains(expected), "{found}");
    }
}

#[tokio::test]
async fn a_cancel_ends_the_vm_at_once_whatever_it_does() {
    for frames in [Vec::new(), bytes(&started())] {
        let (engine, folder) = engine("cat $frames >&3; sleep 100; exit 0", &frames).await;
        let cancel = CancellationToken::new();
        let input = ExecuteInput::new(Language::Python, "print(1)");
        let mut text = Text::default();
        let run = engine.execute(input, &mut text, cancel.clone());
        let canceller = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cancel.cancel();
            Instant::now()
        };
        let (result, cancelled) = tokio::join!(run, canceller);
        assert!(matches!(result, Err(ExecuteError::Cancelled)));
        engine.shut_down().await;
        assert!(cancelled.elapsed() < Duration::from_secs(2), "{:?}", cancelled.elapsed());
        assert!(!is_running(folder.path()), "the VM is still there");
    }
}

/// Whether a process still has the folder's script on its command line.
fn is_running(folder: &Path) -> bool {
    let needle = folder.display().to_string();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&needle)
    })
}

/// The same as [`execute`], in a VM with a tunnel whose handler reads nothing.
async fn install(script: &str, frames: &[u8]) -> Result<ExecuteOutcome, ExecuteError> {
    let (engine, _folder) = engine(script, frames).await;
    let mut request = ExecuteInput::new(Language::Shell, "true");
    request.timeout_seconds = Some(1);
    let handler = |_: Target, stream: TunnelStream| async move {
        let _stream = stream;
        std::future::pending().await
    };
    let installation = Installation { writable_mb: 1024, parts: 0, disk: None, handler: Arc::new(handler) };
    let result = engine.run_installer(installation, request, &mut Text::default(), CancellationToken::new()).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    result
}

/// A frame of yamux, whose header this is by its specification: version, type, flags, stream, length.
fn yamux(kind: u8, flags: u8, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    [&[0, kind, 0, flags], &stream.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
}

const DATA: u8 = 0;
const PING: u8 = 2;
const SYN: u8 = 1;
const ACK: u8 = 2;

/// A stream that says properly where it leads.
fn opened(stream: u32) -> Vec<u8> {
    let target = wire::encode(&Target::Registry).unwrap();
    yamux(DATA, SYN, stream, target.len() as u32, &target)
}

fn tunnel(bytes: Vec<u8>) -> Vec<GuestFrame> {
    bytes.chunks(60_000).map(|chunk| GuestFrame::Tunnel(chunk.into())).collect()
}

#[tokio::test]
async fn a_guest_that_lies_in_the_tunnel_ends_its_vm() {
    let too_many = (0..=TUNNEL_STREAMS_LIMIT as u32).flat_map(|stream| opened(2 * stream + 1)).collect();
    let body = vec![7; 60_000];
    let more_than_the_window = (0..5).flat_map(|_| yamux(DATA, 0, 1, 60_000, &body));
    let window = [opened(1), more_than_the_window.collect()].concat();
    let begins = |bytes: &[u8]| yamux(DATA, SYN, 1, bytes.len() as u32, bytes);
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "in the tunnel: decode error"),
        (yamux(DATA, SYN, 1, u32::MAX, b""), "in the tunnel: decode error: frame body is too large"),
        (yamux(3, 0, 0, 0, b""), "the tunnel was closed"),
        (yamux(PING, ACK, 0, 99, b""), "it broke the rules"),
        (opened(2), "it broke the rules"),
        ([opened(1), opened(1)].concat(), "it broke the rules"),
        (too_many, "it broke the rules"),
        (window, "it broke the rules"),
        (begins(&[255; 4]), "a stream of the tunnel begins with a frame of 4294967295 bytes"),
        (begins(&[1, 0, 0, 0, 200]), "a stream of the tunnel begins with a malformed frame"),
    ] {
        let result = install(PLAY, &self::bytes(&[started(), tunnel(bytes)].concat())).await;
        let found = result.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
        assert!(found.contains("the guest broke the protocol: "), "{found}");
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    }
    let empty = install(PLAY, &bytes(&[started(), vec![GuestFrame::Tunnel(Vec::new())]].concat())).await;
    assert!(empty.unwrap_err().to_string().contains("an empty frame"));
}

#[tokio::test]
async fn a_tunnel_is_there_only_where_the_host_wants_one() {
    let frames = [started(), tunnel(opened(1))].concat();
    check(PLAY, &bytes(&frames), "output was expected, a tunnel's bytes came").await;
}

#[tokio::test]
async fn what_is_honest_in_the_tunnel_does_not_disturb_the_program() {
    let many = (0..TUNNEL_STREAMS_LIMIT as u32).flat_map(|stream| opened(2 * stream + 1)).collect();
    let frames = [started(), tunnel(many), vec![output("hi"), finished()]].concat();
    let outcome = install(PLAY, &bytes(&frames)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (3, "hi"));
}

/// It asks without end and reads no answer. The host then stops to read, and the deadline ends it.
#[tokio::test]
async fn a_flood_in_the_tunnel_lasts_until_the_timeout() {
    let head = bytes(&started());
    let pings = (0..4000).flat_map(|number| yamux(PING, SYN, 0, number, b"")).collect();
    let frames = [head.clone(), bytes(&tunnel(pings))].concat();
    let script =
        format!("head -c {} $frames >&3; while :; do tail -c +{} $frames >&3; done", head.len(), head.len() + 1);
    let begun = Instant::now();
    let outcome = install(&script, &frames).await.unwrap();
    assert!(outcome.timed_out, "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nothing_of_the_server_is_inherited() {
    // A descriptor without close-on-exec, as a careless parent leaves them.
    let leaked = fs::File::open("/etc/hostname").unwrap();
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let script = "ls -l /proc/$$/fd >&2; env >&2; cat /proc/net/dev >&2; exit 1";
    let (result, _) = execute(script, b"").await;
    let words = result.unwrap_err().to_string();
    assert!(!words.contains("/etc/hostname"), "{words}");
    assert!(!words.contains("HOME="), "{words}");
    let interfaces: Vec<&str> =
        words.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    let host = fs::read_to_string("/proc/net/dev").unwrap();
    for name in host.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()) {
        assert!(name == "lo" || !interfaces.contains(&name), "QEMU sees the host's {name}");
    }
}

/// Plays what comes behind the first frame a moment later, when a session has its call.
const PLAY_LATER: &str = "head -c 5 $frames >&3; sleep 0.5; tail -c +6 $frames >&3; exec sleep 100";

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
