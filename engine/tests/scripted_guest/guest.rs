//! The engine whose "QEMU" is a shell script, and what that can say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use sandbox_engine::{
    AcceleratorChoice, CancellationToken, Engine, EngineConfig, ExecuteError, Limits, OutputSink, Stream,
};
use sandbox_packages::GatewayConfig;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::language::Language;
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::wire::{self, Exit, Finished, GuestFrame};
use sandbox_store::CacheDir;
use tempfile::TempDir;

#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl OutputSink for Text {
    fn output(&mut self, _: Stream, text: &str) {
        self.0.push_str(text);
    }
}

/// An engine whose QEMU is `script`, with `frames` in the file `$frames`.
pub(crate) async fn engine(script: &str, frames: &[u8]) -> (Engine, TempDir) {
    engine_of(script, frames, 2, 4096).await
}

/// The same with room for so many VMs, and so many MiB.
pub(crate) async fn engine_of(script: &str, frames: &[u8], vms: usize, memory_mb: u64) -> (Engine, TempDir) {
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
pub(crate) async fn execute(script: &str, frames: &[u8]) -> (Result<ExecuteOutcome, ExecuteError>, String) {
    let (engine, _folder) = engine(script, frames).await;
    let mut input = ExecuteInput::new(Language::Python, "print(1)");
    input.timeout_seconds = Some(1);
    let mut text = Text::default();
    let result = engine.execute(input, &mut text, CancellationToken::new()).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    (result, text.0)
}

pub(crate) fn bytes(frames: &[GuestFrame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| wire::encode(frame).unwrap()).collect()
}

pub(crate) fn started() -> Vec<GuestFrame> {
    vec![GuestFrame::Ready, GuestFrame::Started(1)]
}

pub(crate) fn output(text: &str) -> GuestFrame {
    GuestFrame::Output { run: 1, stream: Stream::Stdout, bytes: text.into() }
}

pub(crate) fn finished() -> GuestFrame {
    GuestFrame::Finished(finished_of())
}

pub(crate) fn finished_of() -> Finished {
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

pub(crate) const PLAY: &str = "cat $frames >&3; exec sleep 100";

/// The frames that follow, and the error that they come to.
pub(crate) async fn check(script: &str, frames: &[u8], expected: &str) {
    let (result, _) = execute(script, frames).await;
    let found = result.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
    assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
}
