//! The engine against guests that lie, hang, flood or die. The "QEMU" is a shell script that plays back prepared bytes on
//! the wire: what a conquered guest could send.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod files;
mod guest;
mod session;
mod tunnel;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_engine::{CancellationToken, ExecuteError, Installation, Stream, Target, TunnelStream};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::wire::GuestFrame;

use crate::guest::{PLAY, Text, bytes, check, engine, engine_of, execute, finished, output, started};

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
    assert!((999_990..1_000_050).contains(&outcome.stdout.len()), "{}", outcome.stdout.len());
    assert_eq!(text.len(), 1_000_000);
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
