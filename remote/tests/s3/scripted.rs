//! An S3 server in memory that keeps to as many rules as a test wants: what other services do and no server at hand does.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::weed;

/// What it does with a condition under which an object is to be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conditions {
    Heeded,
    /// Answered with 501; so is the removal of several objects at once.
    Unsupported,
    /// It writes whatever the condition is.
    Ignored,
}

#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub conditions: Conditions,
    /// Writing is forbidden.
    pub is_read_only: bool,
    /// How long a manifest takes to be written.
    pub manifest_takes: Duration,
}

pub struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    rules: Mutex<Rules>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

struct Request {
    method: String,
    /// The object's key, without the bucket.
    key: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Scripted {
    pub fn start(rules: Rules) -> Scripted {
        weed::set_credentials();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { rules: Mutex::new(rules), objects: Mutex::default() });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        Scripted { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, rules: Rules) {
        *self.shared.rules.lock().unwrap() = rules;
    }

    /// All keys, in their order.
    pub fn keys(&self) -> Vec<String> {
        self.shared.objects.lock().unwrap().keys().cloned().collect()
    }
}

impl Shared {
    fn serve(&self, mut stream: &TcpStream) {
        let Some(request) = read(stream) else { return };
        let (status, headers, body) = self.answer(&request);
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }

    fn answer(&self, request: &Request) -> (&'static str, String, Vec<u8>) {
        let rules = *self.rules.lock().unwrap();
        let error =
            |status, code: &str| (status, String::new(), format!("<Error><Code>{code}</Code></Error>").into_bytes());
        let Request { method, key, query, headers, body } = request;
        let done = |status| (status, String::new(), Vec::new());
        match method.as_str() {
            "GET" => {
                let objects = self.objects.lock().unwrap();
                let Some(bytes) = objects.get(key) else { return error("404 Not Found", "NoSuchKey") };
                let tag = format!("ETag: {}\r\n", tag(bytes));
                let Some(range) = headers.get("range") else { return ("200 OK", tag, bytes.clone()) };
                let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                ("206 Partial Content", tag, bytes[first..(last + 1).min(bytes.len())].to_vec())
            }
            _ if rules.is_read_only => error("403 Forbidden", "AccessDenied"),
            "PUT" => {
                if key.contains("/manifest-") {
                    std::thread::sleep(rules.manifest_takes);
                }
                let mut objects = self.objects.lock().unwrap();
                let there = objects.get(key).map(|bytes| tag(bytes));
                let is_unmet = headers.get("if-none-match").is_some_and(|_| there.is_some())
                    || headers.get("if-match").is_some_and(|wanted| there.as_ref() != Some(wanted));
                let is_conditional = headers.contains_key("if-none-match") || headers.contains_key("if-match");
                match rules.conditions {
                    Conditions::Heeded if is_unmet => return error("412 Precondition Failed", "PreconditionFailed"),
                    Conditions::Unsupported if is_conditional => {
                        return error("501 Not Implemented", "NotImplemented");
                    }
                    _ => {}
                }
                objects.insert(key.clone(), body.clone());
                ("200 OK", format!("ETag: {}\r\n", tag(body)), Vec::new())
            }
            "POST" if query.contains("delete") => {
                if rules.conditions == Conditions::Unsupported {
                    return error("501 Not Implemented", "NotImplemented");
                }
                let text = String::from_utf8(body.clone()).unwrap();
                for found in text.split("<Key>").skip(1) {
                    self.objects.lock().unwrap().remove(found.split("</Key>").next().unwrap());
                }
                ("200 OK", String::new(), b"<DeleteResult/>".to_vec())
            }
            "DELETE" => {
                self.objects.lock().unwrap().remove(key);
                done("204 No Content")
            }
            _ => error("405 Method Not Allowed", "MethodNotAllowed"),
        }
    }
}

fn tag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// The one request of a connection.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    Some(Request { method, key: key.into(), query: query.into(), headers, body })
}
