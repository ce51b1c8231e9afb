//! A registry of our own on loopback, which does what a test tells it to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

/// How a request is answered.
#[derive(Clone)]
pub enum Answer {
    Body(Vec<u8>),
    /// Honours ranges, and breaks off after so many bytes.
    BreaksOff {
        body: Vec<u8>,
        after: usize,
    },
    /// Sends so many bytes and nothing more, for longer than anybody waits.
    Stalls {
        body: Vec<u8>,
        after: usize,
    },
    /// Takes its time before the body's second half.
    Slow {
        body: Vec<u8>,
        pause: Duration,
    },
    Status(u16),
    Redirect(String),
    /// Sends without an end.
    Endless,
    /// Says nothing and closes.
    Closes,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Vec<Answer>>,
    requests: Vec<Request>,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<usize>,
}

pub struct Registry {
    pub base: String,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        // Ends with the process: it holds a port and nothing else.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Registry { base, state }
    }

    /// How a path is answered from now on. Of several answers each is given once, the last one for ever.
    pub fn answer(&self, path: &str, answers: impl Into<Vec<Answer>>) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answers.into());
    }

    pub fn requests(&self, path: &str) -> Vec<Request> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    pub fn count(&self) -> usize {
        self.state.lock().unwrap().requests.len()
    }

    /// A project with files, each with its content.
    pub fn project(&self, name: &str, files: &[(&str, &[u8])]) {
        let listed = files.iter().map(|(file, content)| listed(file, content)).collect();
        self.page(name, listed);
        for (file, content) in files {
            self.answer(&format!("/files/{file}"), [Answer::Body(content.to_vec())]);
        }
    }

    pub fn page(&self, name: &str, files: Vec<Value>) {
        let page = json!({ "meta": { "api-version": "1.1" }, "name": name, "files": files });
        self.answer(&format!("/simple/{name}/"), [Answer::Body(page.to_string().into_bytes())]);
    }

    /// A package of npm with one version that needs others.
    pub fn package(&self, name: &str, content: &[u8], needs: Value) {
        let mut version = json!({ "name": name, "version": "1.0.0", "dist": {
            "tarball": format!("{}/files/{name}.tgz", self.base), "integrity": integrity(content) } });
        version.as_object_mut().unwrap().extend(needs.as_object().unwrap().clone());
        let packument = json!({ "name": name, "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": version } });
        self.answer(&format!("/npm/{}", name.replace('/', "%2f")), [Answer::Body(packument.to_string().into_bytes())]);
        self.answer(&format!("/files/{name}.tgz"), [Answer::Body(content.to_vec())]);
    }
}

pub fn listed(file: &str, content: &[u8]) -> Value {
    json!({ "filename": file, "url": format!("../../files/{file}"), "hashes": { "sha256": sha256(content) },
            "size": content.len() })
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn integrity(content: &[u8]) -> String {
    use base64::Engine;
    format!("sha512-{}", base64::engine::general_purpose::STANDARD.encode(Sha512::digest(content)))
}

/// A wheel that needs others.
pub fn wheel(name: &str, version: &str, needs: &[&str]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let mut add = |path: String, text: String| {
        writer.start_file(path, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    };
    let info = format!("{name}-{version}.dist-info");
    let needs: String = needs.iter().map(|need| format!("Requires-Dist: {need}\n")).collect();
    add(format!("{name}.py"), "answer = 42\n".into());
    add(format!("{info}/METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"));
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    add(format!("{info}/WHEEL"), tags.into());
    add(format!("{info}/RECORD"), String::new());
    writer.finish().unwrap().into_inner()
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(&stream);
    let Some(request) = read(&mut reader) else { return };
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        match state.answers.get_mut(&request.path) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => Answer::Status(404),
        }
    };
    // Whoever asked may have had enough.
    let _ = send(&stream, &request, answer);
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut request = Request { path: line.split(' ').nth(1)?.to_owned(), authorization: None, range: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim().split_once(": ") else { return Some(request) };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            _ => {}
        }
    }
}

fn send(mut stream: &TcpStream, request: &Request, answer: Answer) -> std::io::Result<()> {
    let kind =
        if request.path.starts_with("/simple/") { "application/vnd.pypi.simple.v1+json" } else { "application/json" };
    let from = request.range.unwrap_or(0);
    let mut head = |status: &str, length: usize, more: &str| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n{more}\r\n"
        )
    };
    match answer {
        Answer::Body(body) => {
            head("200 OK", body.len(), "")?;
            stream.write_all(&body)
        }
        Answer::BreaksOff { body, after } => {
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            head(status, body.len() - from, "")?;
            stream.write_all(&body[from..body.len().min(from + after)])
        }
        Answer::Stalls { body, after } => {
            head("200 OK", body.len(), "")?;
            stream.write_all(&body[..after])?;
            thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        Answer::Slow { body, pause } => {
            head("200 OK", body.len(), "")?;
            stream.write_all(&body[..body.len() / 2])?;
            thread::sleep(pause);
            stream.write_all(&body[body.len() / 2..])
        }
        Answer::Status(status) => head(&format!("{status} No"), 0, ""),
        Answer::Redirect(to) => head("302 Found", 0, &format!("location: {to}\r\n")),
        Answer::Endless => {
            head("200 OK", usize::MAX >> 1, "")?;
            let chunk = vec![b' '; 1 << 20];
            // More than any limit; it ends when nobody listens.
            for _ in 0..4096 {
                stream.write_all(&chunk)?;
            }
            Ok(())
        }
        Answer::Closes => Ok(()),
    }
}
