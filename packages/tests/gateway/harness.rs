//! A gateway on loopback, and what its clients see.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_packages::{Allowlist, Gateway, GatewayConfig, Patience, Session, parse};
use sandbox_schemas::language::Language;
use sandbox_store::CacheDir;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A gateway with a cache of its own.
pub struct Fixture {
    pub folder: TempDir,
    pub gateway: Gateway,
}

impl Fixture {
    /// In front of registries at `base`, which gives up soon.
    pub fn before(base: &str, allowlist: Allowlist) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let gateway = gateway(folder.path(), base, allowlist);
        Fixture { folder, gateway }
    }

    pub fn files(&self) -> Vec<String> {
        let found = std::fs::read_dir(self.folder.path().join("packages/files")).unwrap();
        found.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub async fn client(&self, language: Language, specifiers: &[&str]) -> Client {
        let specifiers: Vec<_> = specifiers.iter().map(|text| text.to_string()).collect();
        let requirements = parse(language, &specifiers).unwrap();
        Client::of(Session::new(self.gateway.clone(), language, requirements, None)).await
    }

    pub async fn python(&self, specifiers: &[&str]) -> Client {
        self.client(Language::Python, specifiers).await
    }

    pub async fn npm(&self, specifiers: &[&str]) -> Client {
        self.client(Language::Javascript, specifiers).await
    }
}

pub fn gateway(cache: &Path, base: &str, allowlist: Allowlist) -> Gateway {
    Gateway::new(config(cache, base, allowlist)).unwrap()
}

pub fn config(cache: &Path, base: &str, allowlist: Allowlist) -> GatewayConfig {
    let mut config = GatewayConfig::new(CacheDir::new(cache.to_owned(), u64::MAX));
    config.pypi_index_url = format!("{base}/simple");
    config.npm_registry_url = format!("{base}/npm");
    config.allowlist = allowlist;
    // Long for a loopback that is busy, short for a test.
    config.patience = Patience {
        connect: Duration::from_secs(10),
        stall: Duration::from_secs(2),
        page: Duration::from_secs(20),
        attempts: 3,
    };
    config
}

/// A session that is served on a port of loopback, until the drop.
pub struct Client {
    pub session: Session,
    pub base: String,
    server: JoinHandle<()>,
}

impl Client {
    pub async fn of(session: Session) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serving = session.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let session = serving.clone();
                connections.spawn(async move { session.serve(stream).await });
            }
        });
        Client { session, base, server }
    }

    /// Status and content, or that the connection broke off.
    pub async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), reqwest::Error> {
        let accept = "application/vnd.pypi.simple.v1+json";
        let response = http().get(format!("{}{path}", self.base)).header("accept", accept).send().await?;
        let status = response.status().as_u16();
        Ok((status, response.bytes().await?.to_vec()))
    }

    pub async fn text(&self, path: &str) -> (u16, String) {
        let (status, body) = self.get(path).await.unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    /// What registries failed to send, as texts.
    pub fn failures(&self) -> Vec<String> {
        self.session.report().failures.iter().map(ToString::to_string).collect()
    }

    pub fn refusals(&self) -> Vec<String> {
        self.session.report().refusals.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A client without proxies: the gateway is on this machine.
pub fn http() -> reqwest::Client {
    // Set up by whoever is first, for the whole process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Waits for something that is about to happen.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not within 10 s: {what}");
}

/// A session's observer that keeps what it is told.
pub fn recorder() -> (sandbox_packages::Observer, Arc<std::sync::Mutex<Vec<String>>>) {
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = events.clone();
    let observer: sandbox_packages::Observer =
        Arc::new(move |event: &sandbox_packages::Event| kept.lock().unwrap().push(format!("{event:?}")));
    (observer, events)
}
