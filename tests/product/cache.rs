//! What is kept on the disk: shown, bounded, removed, and never under a process that uses it.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{DEADLINE, Server, command, execute_request, initialize_params, pipe_through, request};

const KEYS: [&str; 2] = ["1111111111111111", "2222222222222222"];

pub(crate) fn with_cache(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = command();
    command.env_remove("SANDBOX_MCP_CACHE_MAX_GB").arg("--cache-dir").arg(cache).args(arguments);
    command
}

/// Both outputs of a command that succeeds.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> (String, String) {
    let (stdout, stderr, status) = pipe_through(command, b"");
    assert!(status.success(), "{status}: {stdout}{stderr}");
    (stdout, stderr)
}

#[track_caller]
fn status(cache: &Path) -> Value {
    let (stdout, _) = run(&mut with_cache(cache, &["cache", "status", "--json"]));
    serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("not JSON: {stdout}"))
}

/// Kind, name and whether it is in use, of each entry that the cache has.
#[track_caller]
fn entries(cache: &Path) -> Vec<(String, String, bool)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entry = |entry: &Value| (text(&entry["kind"]), text(&entry["name"]), entry["in_use"].as_bool().unwrap());
    status(cache)["entries"].as_array().unwrap().iter().map(entry).collect()
}

/// What could be an entry, and takes 64 KiB on the disk and a gigabyte by its length.
fn put(cache: &Path, entry: &str, days_unused: u64) -> PathBuf {
    let path = cache.join(entry);
    DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
    let file = path.join("file");
    fs::write(&file, [1; 65536]).unwrap();
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(1 << 30).unwrap();
    file.sync_all().unwrap();
    let used = SystemTime::now() - Duration::from_secs(days_unused * 24 * 3600 + 10);
    File::open(&path).unwrap().set_modified(used).unwrap();
    path
}

#[test]
fn an_empty_cache_is_shown_and_cleared_without_being_made() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    assert_eq!(status(&cache)["entries"], json!([]));
    let (shown, _) = run(&mut with_cache(&cache, &["cache", "status"]));
    assert!(shown.ends_with("images and templates take 0.0 MB of 10.0 GB\n"), "{shown}");
    let (cleared, _) = run(&mut with_cache(&cache, &["cache", "clear"]));
    assert!(cleared.starts_with("0.0 MB removed, 0.0 MB kept in"), "{cleared}");
    assert!(!cache.exists());
}

#[test]
fn what_is_there_is_shown_and_only_what_nobody_uses_is_removed() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    let used = put(cache, &format!("images/kernel-{}", KEYS[0]), 3);
    let idle = put(cache, &format!("templates/base-{}", KEYS[1]), 0);
    let foreign = put(cache, "images/mine", 0);
    fs::create_dir(cache.join("downloads")).unwrap();
    fs::write(cache.join("downloads/file"), "content").unwrap();
    let lease = File::open(&used).unwrap();
    lease.lock_shared().unwrap();

    let found = status(cache);
    let [kernel, base] = found["entries"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert_eq!((&kernel["kind"], &kernel["key"], &kernel["in_use"]), (&json!("image"), &json!(KEYS[0]), &json!(true)));
    assert_eq!((&base["kind"], &base["path"], &base["in_use"]), (&json!("template"), &json!(idle), &json!(false)));
    let size = base["size_bytes"].as_u64().unwrap();
    assert!((65536..1 << 20).contains(&size), "holes are not on the disk: {size}");
    assert_eq!(found["other"][0]["kind"], "downloads");
    assert_eq!(found["total_bytes"].as_u64().unwrap(), kernel["size_bytes"].as_u64().unwrap() + size);
    assert_eq!(found["limit_bytes"], 10_000_000_000_u64);

    let (shown, _) = run(with_cache(cache, &["cache", "status"]).env("SANDBOX_MCP_CACHE_MAX_GB", "0"));
    let line = |name: &str| shown.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{shown}"));
    assert!(line(KEYS[0]).contains("3 days ago") && line(KEYS[0]).ends_with("in use"), "{shown}");
    assert!(line(KEYS[1]).ends_with("just now"), "{shown}");
    assert!(shown.contains(" of 0.0 MB\nthat is too much"), "{shown}");

    let (cleared, _) = run(&mut with_cache(cache, &["cache", "clear"]));
    let line = |name: &str| cleared.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{cleared}"));
    assert!(line(KEYS[0]).starts_with("kept ") && line(KEYS[0]).ends_with(": in use"), "{cleared}");
    assert!(line(KEYS[1]).starts_with("removed "), "{cleared}");
    assert!(line("downloads").starts_with("removed "), "{cleared}");
    assert!(used.join("file").is_file() && !idle.exists() && foreign.exists());

    drop(lease);
    run(&mut with_cache(cache, &["cache", "clear"]));
    assert!(!used.exists() && foreign.exists());
}

/// A cache of its own with the kernel and the root that the user's cache holds: they are not built by a test.
pub(crate) fn with_image() -> TempDir {
    let (shown, _, _) = pipe_through(command().args(["image", "status"]), b"");
    let folder = tempfile::tempdir().unwrap();
    for name in ["kernel", "root"] {
        let line = shown.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains("present"), "{shown}");
        let entry = Path::new(line.rsplit("  ").next().unwrap()).parent().unwrap();
        let copy = folder.path().join("images").join(entry.file_name().unwrap());
        // Whatever the umask is: what others could write would not be used.
        DirBuilder::new().recursive(true).mode(0o700).create(&copy).unwrap();
        for file in fs::read_dir(entry).unwrap().flatten() {
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn a_template_is_built_with_the_image_makes_room_and_is_in_use_while_a_server_lives() {
    let cache = with_image();
    let cache = cache.path();
    let old_template = put(cache, &format!("templates/base-{}", KEYS[0]), 1);
    let old_image = put(cache, &format!("images/kernel-{}", KEYS[1]), 2);

    let mut missing = with_cache(cache, &["--qemu", "/nonexistent/qemu", "image", "build"]);
    let (_, stderr, code) = pipe_through(&mut missing, b"");
    assert!(!code.success());
    assert!(stderr.contains("the image is built; building the template: ") && stderr.contains("/nonexistent/qemu"));

    let (_, stderr) =
        run(with_cache(cache, &["image", "build", "--without-qemu"]).env("SANDBOX_MCP_CACHE_MAX_GB", "0"));
    assert!(stderr.lines().any(|line| line.starts_with("template: building: ") && line.ends_with(" s")), "{stderr}");
    assert!(!old_template.exists() && !old_image.exists(), "room is made");
    let expected = |in_use| {
        [("image", "agent"), ("image", "kernel"), ("image", "root"), ("template", "base")]
            .map(|(kind, name)| (kind.to_owned(), name.to_owned(), in_use))
    };
    assert_eq!(entries(cache), expected(false), "what the build has made or used stays");

    let (_, stderr) = run(&mut with_cache(cache, &["image", "build", "--without-qemu"]));
    assert!(!stderr.contains("template"), "it is there: {stderr}");

    let mut server = Server::start_as(&mut with_cache(cache, &["--warm-pool-size", "0"]));
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    server.receive();
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    server.send(&execute_request(1, json!({"language": "shell", "code": "echo hi"})));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "hi\n");
    assert_eq!(entries(cache), expected(true));
    let (cleared, _) = run(&mut with_cache(cache, &["cache", "clear"]));
    assert_eq!(cleared.lines().filter(|line| line.ends_with(": in use")).count(), 4, "{cleared}");
    server.send(&execute_request(2, json!({"language": "shell", "code": "echo still"})));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "still\n");

    server.close_stdin();
    assert!(server.wait().success());
    // A VM that is being killed has nothing locked, but the server's own end may take a moment.
    let until = Instant::now() + DEADLINE;
    while entries(cache) != expected(false) {
        assert!(Instant::now() < until, "still in use: {:?}", entries(cache));
    }
    run(&mut with_cache(cache, &["cache", "clear"]));
    assert_eq!(entries(cache), []);
}
