//! What stands between a host and the server, and can be as bad as a network.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it does with what goes through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    Pass,
    /// So many bytes a second from the server.
    SlowDown(u64),
    /// So many bytes a second to the server.
    SlowUp(u64),
    /// Every connection is closed at once.
    Dead,
    /// Connections are taken, and nothing is ever said.
    Silent,
    /// Every request is answered so.
    Answer(&'static str),
    /// After so many requests more, of which the last is passed on in part only, it is dead.
    DieAfterRequests(u64),
    /// After so many bytes more from the server, it is dead.
    DieAfterBytes(u64),
    /// After so many bytes more from the server, nothing comes any more.
    SilentAfterBytes(u64),
}

pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    manner: Mutex<Manner>,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Proxy {
    pub fn to(server: SocketAddr) -> Proxy {
        Proxy::listening(TcpListener::bind("127.0.0.1:0").unwrap(), server)
    }

    /// One that takes no more than it passes on, as a line does: else the kernel takes some MiB at once.
    pub fn narrow_to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::RcvBuf, &(64 << 10)).unwrap();
        Proxy::listening(listener, server)
    }

    fn listening(listener: TcpListener, server: SocketAddr) -> Proxy {
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { server, manner: Mutex::new(Manner::Pass), connections, requests });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = accepting.clone();
                shared.connections.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Proxy { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    pub fn manner(&self) -> Manner {
        self.shared.manner()
    }

    /// Requests that have come so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The same, once no more come: what a fetch had under way when it was given up is counted when it arrives.
    pub fn requests_at_rest(&self) -> u64 {
        let mut before = self.requests();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            match self.requests() {
                now if now == before => return now,
                now => before = now,
            }
        }
    }

    /// Connections that have come so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    fn serve(self: Arc<Shared>, client: TcpStream) {
        match self.manner() {
            Manner::Dead => return,
            Manner::Silent => return self.hold(&client),
            Manner::Answer(answer) => return self.answer(client, answer),
            _ => {}
        }
        let Ok(server) = TcpStream::connect(self.server) else { return };
        let back = {
            let (shared, from, to) = (self.clone(), server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || shared.pass(from, to, false))
        };
        self.pass(client, server, true);
        let _ = back.join();
    }

    /// Until the other side gives up.
    fn hold(&self, mut client: &TcpStream) {
        let mut buffer = [0; 4096];
        while client.read(&mut buffer).is_ok_and(|count| count > 0) {}
    }

    fn answer(&self, mut client: TcpStream, answer: &str) {
        let mut buffer = vec![0; 1 << 20];
        // A request of these tests that is not read whole would be one that was refused before it was.
        let Ok(count) = client.read(&mut buffer) else { return };
        self.requests.fetch_add(begun(&buffer[..count]), Ordering::Relaxed);
        let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
        while client.read(&mut buffer).is_ok_and(|count| count > 0) {}
        let body = "<Error><Code>Refused</Code><Message>by the test</Message></Error>";
        let length = body.len();
        let text = format!("HTTP/1.1 {answer}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        let _ = client.write_all(text.as_bytes());
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, is_request: bool) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // Small bites where every byte counts.
            let bite = match self.manner() {
                Manner::SlowDown(rate) | Manner::SlowUp(rate) => (rate / 20).clamp(1, 64 * 1024) as usize,
                _ => buffer.len(),
            };
            let Ok(count @ 1..) = from.read(&mut buffer[..bite]) else { break };
            if !self.lets_pass(&buffer[..count], is_request, &from) {
                break;
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }

    /// Whether these bytes are passed on, after as long as they take.
    fn lets_pass(&self, bytes: &[u8], is_request: bool, from: &TcpStream) -> bool {
        let begun = if is_request { begun(bytes) } else { 0 };
        self.requests.fetch_add(begun, Ordering::Relaxed);
        let mut manner = self.manner.lock().unwrap();
        let spent = if is_request { 0 } else { bytes.len() as u64 };
        match *manner {
            Manner::Dead => return false,
            Manner::DieAfterRequests(0) if begun > 0 => *manner = Manner::Dead,
            Manner::DieAfterRequests(left) => *manner = Manner::DieAfterRequests(left.saturating_sub(begun)),
            Manner::DieAfterBytes(left) if spent > left => *manner = Manner::Dead,
            Manner::DieAfterBytes(left) => *manner = Manner::DieAfterBytes(left - spent),
            Manner::SilentAfterBytes(left) if spent > left => {
                drop(manner);
                while matches!(self.manner(), Manner::SilentAfterBytes(_)) && from.take_error().is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                return false;
            }
            Manner::SilentAfterBytes(left) => *manner = Manner::SilentAfterBytes(left - spent),
            _ => {}
        }
        let rate = match *manner {
            Manner::SlowDown(rate) if !is_request => rate,
            Manner::SlowUp(rate) if is_request => rate,
            _ => return true,
        };
        drop(manner);
        std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / rate as f64));
        true
    }
}

/// Requests that begin in these bytes. A client of ours writes each in one go, with its head at the front.
fn begun(bytes: &[u8]) -> u64 {
    let methods = ["GET /", "PUT /", "POST /", "HEAD /", "DELETE /"];
    u64::from(methods.iter().any(|method| bytes.starts_with(method.as_bytes())))
}
