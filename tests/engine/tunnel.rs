//! Connections of an installing VM, served by this process: whole, many at once, stalled, cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sandbox_engine::{CancellationToken, Engine, ExecuteError, Installation, Target, TunnelHandler, TunnelStream};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{MEMORY_DEFAULT_MB, TUNNEL_STREAMS_MAX, writable_mb};
use sandbox_schemas::outcome::ExecuteOutcome;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Barrier, watch};

use crate::harness::{Text, engine};

/// A connection, and the path of its one request.
struct Request {
    stream: BufReader<TunnelStream>,
    path: String,
    length: u64,
}

impl Request {
    async fn read(target: Target, stream: TunnelStream) -> Request {
        assert_eq!(target, Target::Registry);
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let path = line.split(' ').nth(1).expect("a request").to_string();
        let mut length = 0;
        loop {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            match line.trim().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => return Request { stream, path, length },
            }
        }
    }

    async fn answer(mut self, body: &[u8]) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.stream.write_all(head.as_bytes()).await.unwrap();
        self.stream.write_all(body).await.unwrap();
        self.stream.shutdown().await.unwrap();
    }
}

/// Bytes that no compression and no confusion of chunks leaves as they are.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn install(
    engine: &Engine,
    language: Language,
    code: &str,
    handler: impl TunnelHandler,
    cancel: CancellationToken,
) -> Result<ExecuteOutcome, ExecuteError> {
    let mut request = ExecuteInput::new(language, code);
    request.timeout_seconds = Some(300);
    let installation = Installation { writable_mb: 1500, parts: 0, disk: None, handler: Arc::new(handler) };
    engine.run_installer(installation, request, &mut Text::default(), cancel).await
}

/// What a program prints that ends well.
async fn output(engine: &Engine, language: Language, code: &str, handler: impl TunnelHandler) -> String {
    let outcome = install(engine, language, code, handler, CancellationToken::new()).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.stderr.as_str()), (0, ""), "{}", outcome.stdout);
    outcome.stdout
}

#[tokio::test]
async fn a_program_is_served_by_the_host_in_a_vm_that_boots_and_in_one_that_is_restored() {
    for uses_templates in [false, true] {
        let engine = engine(uses_templates).await;
        let code = "curl -sS http://127.0.0.1:3141/simple/ && df -m --output=size /workspace | tail -1 | tr -d ' '";
        let said = output(&engine, Language::Shell, code, |target, stream| async move {
            let request = Request::read(target, stream).await;
            assert_eq!(request.path, "/simple/");
            request.answer(b"hello\n").await;
        });
        assert_eq!(said.await, "hello\n1500\n");
        engine.shut_down().await;
    }
}

#[tokio::test]
async fn a_program_of_another_vm_reaches_nothing() {
    let engine = engine(true).await;
    let code = "curl -sS http://127.0.0.1:3141/ || df -m --output=size /workspace | tail -1 | tr -d ' '";
    let request = ExecuteInput::new(Language::Shell, code);
    let outcome = engine.execute(request, &mut Text::default(), CancellationToken::new()).await.unwrap();
    assert!(outcome.stderr.contains("Failed to connect"), "{outcome:?}");
    // As much room as goes with its memory.
    assert_eq!(outcome.stdout, format!("{}\n", writable_mb(MEMORY_DEFAULT_MB)));
    engine.shut_down().await;
}

/// As one connection and as several, in each direction; and how fast that is, for who reads it.
#[tokio::test]
async fn megabytes_arrive_as_they_were_sent() {
    let engine = engine(true).await;
    let bytes = Arc::new(noise(20_000_000));
    let hash = sha256(&bytes);
    let handler = move |target, stream| {
        let bytes = bytes.clone();
        async move {
            let mut request = Request::read(target, stream).await;
            if request.path == "/up" {
                let mut body = vec![0; request.length as usize];
                request.stream.read_exact(&mut body).await.unwrap();
                let hash = sha256(&body);
                request.answer(hash.as_bytes()).await;
            } else {
                request.answer(&bytes).await;
            }
        }
    };
    let code = r#"
        set -e
        cd /tmp
        url=http://127.0.0.1:3141
        curl -sS -o /dev/null -w 'down %{speed_download} bytes/s\n' $url/down
        curl -sS -o file -w 'down to a file %{speed_download} bytes/s\n' $url/down
        curl -sS -T file -H 'Expect:' -o answer -w 'up %{speed_upload} bytes/s\n' $url/up
        curl -sS -Z --parallel-immediate -o 1 $url/down -o 2 $url/down -o 3 $url/down -o 4 $url/down
        echo $(sha256sum <file) $(cat answer) $(cat 1 2 3 4 | sha256sum)
    "#;
    let said = output(&engine, Language::Shell, code, handler).await;
    println!("{said}");
    let four = sha256(&noise(20_000_000).repeat(4));
    assert_eq!(said.lines().last().unwrap(), format!("{hash} - {hash} {four} -"));
    engine.shut_down().await;
}

/// The answers begin when all have asked.
#[tokio::test]
async fn fifty_connections_at_once() {
    let engine = engine(true).await;
    let barrier = Arc::new(Barrier::new(50));
    let handler = move |target, stream| {
        let barrier = barrier.clone();
        async move {
            let request = Request::read(target, stream).await;
            barrier.wait().await;
            let body = format!("{}\n", request.path).into_bytes();
            request.answer(&body).await;
        }
    };
    let code = r#"
        curl -sS -Z --parallel-immediate --parallel-max 50 'http://127.0.0.1:3141/[101-150]' | sort | md5sum
        seq 101 150 | sed s,^,/, | md5sum
    "#;
    let said = output(&engine, Language::Shell, code, handler).await;
    let (found, expected) = said.split_once('\n').unwrap();
    assert_eq!(found, expected.trim_end());
    engine.shut_down().await;
}

/// More than the guest may have open: they wait for their turn, and none is lost.
#[tokio::test]
async fn two_hundred_connections_wait_for_their_turn() {
    let engine = engine(true).await;
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(watch::Sender::new(0)));
    let seen = most.clone();
    let handler = move |target, stream| {
        let (open, most) = (open.clone(), most.clone());
        async move {
            let now = open.fetch_add(1, Ordering::SeqCst) + 1;
            most.send_if_modified(|most| now > std::mem::replace(most, now.max(*most)));
            let request = Request::read(target, stream).await;
            most.subscribe().wait_for(|&most| most >= TUNNEL_STREAMS_MAX).await.unwrap();
            // Time for one too many to come.
            tokio::time::sleep(Duration::from_millis(200)).await;
            open.fetch_sub(1, Ordering::SeqCst);
            request.answer(b"x").await;
        }
    };
    let code = r#"
import asyncio
async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", 3141)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.endswith(b"x")
async def main():
    print(sum(await asyncio.gather(*(ask() for _ in range(200)))))
asyncio.run(main())
"#;
    assert_eq!(output(&engine, Language::Python, code, handler).await, "200\n");
    assert_eq!(*seen.borrow(), TUNNEL_STREAMS_MAX);
    engine.shut_down().await;
}

/// The host does not read, and the guest sends what it can: that is bounded, output goes on, and other connections are served.
#[tokio::test]
async fn who_stalls_holds_up_nobody_else() {
    let engine = engine(true).await;
    let handler = |target, stream| async move {
        let request = Request::read(target, stream).await;
        match request.path.as_str() {
            "/quick" => request.answer(b"quick\n").await,
            _ => std::future::pending().await,
        }
    };
    // A connection of the guest's own holds up to 10 MB within the guest.
    let code = r#"
import socket, subprocess, time
def stalled():
    s = socket.create_connection(("127.0.0.1", 3141))
    s.sendall(b"PUT /stalled HTTP/1.1\r\n\r\n")
    s.setblocking(False)
    return s
sockets = [stalled() for _ in range(5)]
sent, chunk, moved = 0, b"x" * 65536, time.monotonic()
while time.monotonic() - moved < 2 and sent < 100e6:
    for s in sockets:
        try:
            sent += s.send(chunk)
            moved = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
print("bounded" if sent < 100e6 else "unbounded")
print(subprocess.check_output(["curl", "-sS", "http://127.0.0.1:3141/quick"], text=True), end="")
"#;
    assert_eq!(output(&engine, Language::Python, code, handler).await, "bounded\nquick\n");
    engine.shut_down().await;
}

/// An answer that the handler breaks off must not look like a whole one, not even to who waits for the end alone.
#[tokio::test]
async fn an_answer_that_is_cut_is_seen_to_be_cut() {
    let engine = engine(true).await;
    let handler = |target, stream| async move {
        let mut request = Request::read(target, stream).await;
        request.stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhalf of it").await.unwrap();
        if request.path == "/whole" {
            request.stream.shutdown().await.unwrap();
        }
    };
    let code = r#"
        curl -sS http://127.0.0.1:3141/whole; echo " $?"
        curl -sS http://127.0.0.1:3141/cut 2>&1 | grep -o reset
    "#;
    assert_eq!(output(&engine, Language::Shell, code, handler).await, "half of it 0\nreset\n");
    engine.shut_down().await;
}

/// In the middle of a transfer: the VM goes, and what served it is dropped.
#[tokio::test]
async fn a_cancel_ends_what_is_served() {
    struct Ended(Arc<AtomicUsize>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let engine = engine(true).await;
    let ended = Arc::new(AtomicUsize::new(0));
    let cancel = CancellationToken::new();
    let (counter, canceller) = (ended.clone(), cancel.clone());
    let handler = move |target, stream| {
        let (ended, cancel) = (Ended(counter.clone()), canceller.clone());
        async move {
            let _ended = ended;
            let mut request = Request::read(target, stream).await;
            request.stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
            let chunk = noise(65536);
            for count in 0.. {
                request.stream.write_all(&chunk).await.unwrap();
                if count == 40 {
                    cancel.cancel();
                }
            }
        }
    };
    let code = "curl -sS http://127.0.0.1:3141/ >/dev/null";
    let result = install(&engine, Language::Shell, code, handler, cancel).await;
    assert!(matches!(result, Err(ExecuteError::Cancelled)), "{result:?}");
    let until = Instant::now() + Duration::from_secs(10);
    while ended.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until, "the handler still serves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.shut_down().await;
}

/// While a transfer fills the wire both ways, the deadline's interrupt and kill arrive.
#[tokio::test]
async fn a_program_that_transfers_is_interrupted_in_time() {
    let engine = engine(true).await;
    let handler = |target, stream| async move {
        let mut request = Request::read(target, stream).await;
        let chunk = noise(65536);
        while request.stream.write_all(&chunk).await.is_ok() {}
    };
    // Thirty seconds: an installer starts its interpreter cold, which took 6.4 s on a machine with a load of 10.
    let code = r#"
        trap 'echo interrupted; exit 130' INT
        exec 3<>/dev/tcp/127.0.0.1/3141
        printf 'GET / HTTP/1.1\r\n\r\n' >&3
        head -c 100000 <&3 >/dev/null && echo transferring
        cat <&3 >/dev/null
    "#;
    let mut request = ExecuteInput::new(Language::Shell, code);
    request.timeout_seconds = Some(30);
    let installation = Installation { writable_mb: 1500, parts: 0, disk: None, handler: Arc::new(handler) };
    let begun = Instant::now();
    let outcome =
        engine.run_installer(installation, request, &mut Text::default(), CancellationToken::new()).await.unwrap();
    assert!(outcome.timed_out && outcome.stdout == "transferring\ninterrupted\n", "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    engine.shut_down().await;
}
