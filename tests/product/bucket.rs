//! Hosts that share a bucket: each is a cache directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cache::{run, with_cache, with_image};
use crate::harness::{DEADLINE, Server, execute_request, initialize_params, pipe_through, request};
use crate::weed::{self, Weed};
use sandbox_tests::skip::has_registries;

/// A host's product: its cache, the bucket, and the key if it has it.
struct Fleet {
    url: String,
    bucket: String,
    key: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn new(weed: &Weed) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        fs::write(&key, "a key of the fleet that has 32 bytes or more\n").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        Fleet { url: weed.url(), bucket: weed.make_bucket(), key, _folder: folder }
    }

    fn host(&self, cache: &Path, arguments: &[&str]) -> Command {
        let mut command = with_cache(cache, arguments);
        command.env("SANDBOX_MCP_S3_BUCKET", &self.bucket).env("SANDBOX_MCP_S3_ENDPOINT_URL", &self.url);
        command.env("SANDBOX_MCP_S3_FORCE_PATH_STYLE", "true").env("SANDBOX_MCP_S3_HMAC_KEY_FILE", &self.key);
        command
    }
}

/// What a shell program says in a host's VM, with the whole result, and what the server says of its tiers after.
fn say(command: &mut Command, code: &str) -> (Value, Value) {
    let mut server = Server::start_as(command);
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    server.receive();
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    server.send(&execute_request(1, json!({"language": "shell", "code": code})));
    let result = server.receive()["result"]["structuredContent"].clone();
    server.send(&request(2, "tools/call", json!({"name": "pool_status", "arguments": {}})));
    let tiers = server.receive()["result"]["structuredContent"]["tiers"].clone();
    server.close_stdin();
    assert!(server.wait().success());
    (result, tiers)
}

#[test]
fn what_one_host_has_built_another_runs_on() {
    let Some(weed) = weed::shared() else { return };
    let fleet = Fleet::new(weed);
    let (builder, fresh) = (with_image(), tempfile::tempdir().unwrap());
    let (_, stderr) = run(&mut fleet.host(builder.path(), &["image", "build", "--without-qemu"]));
    assert!(stderr.lines().any(|line| line.starts_with("sending what was built to the bucket: ")), "{stderr}");

    // It has nothing, and builds nothing.
    let (result, tiers) = say(&mut fleet.host(fresh.path(), &[]), "echo hi");
    assert_eq!((&result["stdout"], &result["template_hit"]), (&json!("hi\n"), &json!(true)), "{result}");
    let tier = &tiers[0];
    let found = ["name", "state", "hits", "misses", "uploads_done"].map(|field| tier[field].clone());
    assert_eq!(found, [json!("s3"), json!("ok"), json!(3), json!(0), json!(0)], "kernel, root, template: {tier}");

    let (pulled, _) = run(&mut fleet.host(fresh.path(), &["image", "pull"]));
    assert_eq!(pulled.lines().filter(|line| line.contains(" present ")).count(), 3, "{pulled}");
    // By hand, with the digits that `cache status` shows.
    let (status, _) = run(&mut with_cache(builder.path(), &["cache", "status", "--json"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    let template = status["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "template").unwrap();
    let digits = template["key"].as_str().unwrap();
    let (pushed, _) = run(&mut fleet.host(builder.path(), &["cache", "push", digits]));
    assert_eq!(pushed, format!("was there  templates/base-{digits}\n"));
    let other = tempfile::tempdir().unwrap();
    let (pulled, _) = run(&mut fleet.host(other.path(), &["cache", "pull", digits]));
    assert_eq!(Path::new(pulled.trim()), other.path().join(format!("templates/base-{digits}")));
    let (_, stderr, status) = pipe_through(
        fleet.host(other.path(), &["cache", "pull", digits]).env_remove("SANDBOX_MCP_S3_HMAC_KEY_FILE"),
        b"",
    );
    assert!(status.success(), "it is here: {stderr}");
    let keyless = tempfile::tempdir().unwrap();
    let mut command = fleet.host(keyless.path(), &["cache", "pull", digits]);
    let (_, stderr, status) = pipe_through(command.env_remove("SANDBOX_MCP_S3_HMAC_KEY_FILE"), b"");
    assert!(!status.success() && stderr.contains("it is taken only with s3_hmac_key_file"), "{stderr}");
}

#[test]
fn a_bucket_that_is_not_there_costs_no_run() {
    let Some(weed) = weed::shared() else { return };
    let cache = with_image();
    let gone = Fleet { url: "http://127.0.0.1:1".into(), ..Fleet::new(weed) };
    let (result, tiers) = say(&mut gone.host(cache.path(), &[]), "echo hi");
    assert_eq!((&result["stdout"], &result["template_hit"]), (&json!("hi\n"), &json!(true)), "{result}");
    assert_eq!((&tiers[0]["state"], &tiers[0]["hits"]), (&json!("failing"), &json!(0)), "{tiers}");
    let (_, stderr, status) = pipe_through(&mut gone.host(cache.path(), &["cache", "pull", "0123"]), b"");
    assert!(!status.success() && stderr.contains("the bucket cannot be searched: "), "{stderr}");
}

#[test]
fn a_key_that_others_can_read_ends_the_server() {
    let Some(weed) = weed::shared() else { return };
    let fleet = Fleet::new(weed);
    fs::set_permissions(&fleet.key, fs::Permissions::from_mode(0o644)).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let (_, stderr, status) = pipe_through(&mut fleet.host(cache.path(), &[]), b"");
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("SANDBOX_MCP_S3_HMAC_KEY_FILE: s3_hmac_key_file: ") && stderr.contains("(mode 644)"),
        "{stderr}"
    );
}

#[test]
fn packages_that_one_host_has_installed_another_has_without_a_registry() {
    let Some(weed) = weed::shared() else { return };
    if !has_registries() {
        return;
    }
    let fleet = Fleet::new(weed);
    let (builder, fresh) = (with_image(), with_image());
    let program = json!({"language": "python", "code": "import click; print(click.__name__)", "packages": ["click"]});
    let mut server = Server::start_as(&mut fleet.host(builder.path(), &[]));
    let run = |server: &mut Server| {
        server.send(&execute_request(1, program.clone()));
        let response = server.receive();
        assert_eq!(response["result"]["structuredContent"]["stdout"], "click\n", "{response}");
        response["result"]["structuredContent"].clone()
    };
    run(&mut server);
    let until = Instant::now() + DEADLINE;
    loop {
        server.send(&request(2, "tools/call", json!({"name": "pool_status", "arguments": {}})));
        let tier = server.receive()["result"]["structuredContent"]["tiers"][0].clone();
        // Kernel and root, the templates of nothing and of the set, the layer, and what the request became.
        if tier["uploads_pending"] == 0 && tier["uploads_done"].as_u64() >= Some(6) {
            break;
        }
        assert!(Instant::now() < until, "{tier}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // It has the image alone, and nobody to ask but the bucket.
    let mut server = Server::start_as(fleet.host(fresh.path(), &[]).env("HTTPS_PROXY", "http://127.0.0.1:9"));
    assert_eq!(run(&mut server)["template_hit"], true);
}
