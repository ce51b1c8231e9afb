//! What a host waits for that finds in a bucket what another one has built.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::packages::{DATA, set};
use crate::rows::{Row, Sampler, new_cache};
use crate::subject::{Server, Subject, milliseconds};
use crate::weed::{self, Weed};

const BARE: Program = Program { code: "print(6*7)", packages: &[] };
const WITH_DATA: Program =
    Program { code: "import pandas; print(pandas.DataFrame({'a': [6 * 7]})['a'].sum())", packages: &DATA };

pub(crate) const ALL: &[Row] = &[
    Row::time("bucket: a first run, empty cache", 5, |subject| first_run(subject, &BARE, tempfile::tempdir)),
    Row::time("bucket: the same, the image on the disk", 5, |subject| first_run(subject, &BARE, || Ok(new_cache()))),
    Row::time("bucket: with numpy, pandas, matplotlib, empty cache", 5, |subject| {
        first_run(subject, &WITH_DATA, tempfile::tempdir)
    }),
    Row::time("bucket: the same, the image on the disk", 5, |subject| {
        first_run(subject, &WITH_DATA, || Ok(new_cache()))
    }),
];

/// What a host runs first.
struct Program {
    code: &'static str,
    packages: &'static [&'static str],
}

impl Program {
    fn arguments(&self) -> Value {
        let mut arguments = json!({"language": "python", "code": self.code});
        if !self.packages.is_empty() {
            arguments["packages"] = json!(self.packages);
        }
        arguments
    }
}

/// How long what was built may take to be in the bucket.
const PATIENCE: Duration = Duration::from_secs(300);

/// From the start of a server to its first answer, on a host with what `new_host` has on its disk.
fn first_run(subject: &Subject, program: &'static Program, new_host: fn() -> io::Result<TempDir>) -> Sampler {
    let weed = weed::shared().expect("there is an S3 server: the tests install it");
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, "a key of the fleet that has 32 bytes or more\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let bucket = options(weed, &key);
    let subject = subject.clone();
    build(&subject, program, &bucket);
    Box::new(move || {
        // The key is in it.
        let _folder = &folder;
        let cache = new_host().unwrap();
        let begun = Instant::now();
        let mut server = start(&subject, cache.path(), &bucket);
        assert_eq!(server.call("execute_code", &program.arguments())["stdout"], "42\n");
        milliseconds(begun.elapsed())
    })
}

/// The first host: it has sent all that the run needs once this is done.
fn build(subject: &Subject, program: &Program, bucket: &[String]) {
    let cache = new_cache();
    let folder = cache.path().to_str().unwrap();
    let options = ["image", "build", "--cache-dir", folder].into_iter().chain(bucket.iter().map(String::as_str));
    let built =
        subject.command(&options.collect::<Vec<_>>()).stderr(Stdio::null()).status().expect("the image is built");
    assert!(built.success());
    let mut server = start(subject, cache.path(), bucket);
    if !program.packages.is_empty() {
        server.call("install_packages", &set("python", program.packages));
    }
    server.call("execute_code", &program.arguments());
    let until = Instant::now() + PATIENCE;
    loop {
        let tier = server.call("pool_status", &json!({}))["tiers"][0].clone();
        if tier["uploads_pending"] == 0 {
            return;
        }
        assert!(Instant::now() < until, "it is not sent: {tier}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn start(subject: &Subject, cache: &Path, bucket: &[String]) -> Server {
    let options = ["--warm-pool-size", "0", "--cache-dir", cache.to_str().unwrap()].into_iter();
    subject.start(&options.chain(bucket.iter().map(String::as_str)).collect::<Vec<_>>())
}

fn options(weed: &Weed, key: &Path) -> Vec<String> {
    let bucket = weed.make_bucket();
    let options = ["--s3-bucket", &bucket, "--s3-endpoint-url", &weed.url(), "--s3-force-path-style"];
    let key = ["--s3-hmac-key-file", key.to_str().unwrap()];
    options.into_iter().chain(key).map(String::from).collect()
}
