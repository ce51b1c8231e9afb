//! The settings: every one of them from every place, and what is said when one is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{DEADLINE, Server, command, execute_request, pipe_through};

/// A setting's values in a file, in the environment and as a flag, as TOML has them. Each differs from the next, and the
/// first from the default where that does not depend on the machine.
const SAMPLES: [(&str, [&str; 3]); 31] = [
    ("accel", [r#""kvm""#, r#""auto""#, r#""tcg""#]),
    ("require_kvm", ["true", "false", "true"]),
    ("qemu", [r#""/file/qemu""#, r#""/variable/qemu""#, r#""/flag/qemu""#]),
    ("max_concurrent_vms", ["501", "502", "503"]),
    ("max_sessions", ["1", "2", "3"]),
    ("warm_pool_size", ["61", "62", "63"]),
    ("templates", ["false", "true", "false"]),
    ("cache_dir", [r#""/file/cache""#, r#""/variable/cache""#, r#""/flag/cache""#]),
    ("cache_max_gb", ["1", "2", "3"]),
    ("s3_bucket", [r#""file-bucket""#, r#""variable-bucket""#, r#""flag-bucket""#]),
    ("s3_region", [r#""eu-central-1""#, r#""eu-west-1""#, r#""us-east-2""#]),
    ("s3_prefix", [r#""file/""#, r#""variable/""#, r#""/""#]),
    ("s3_endpoint_url", [r#""http://file""#, r#""http://variable""#, r#""https://flag:1""#]),
    ("s3_force_path_style", ["true", "false", "true"]),
    ("max_concurrent_s3_uploads", ["3", "4", "5"]),
    ("s3_hmac_key_file", [r#""/file/key""#, r#""/variable/key""#, r#""/flag/key""#]),
    ("package_allowlist", ["false", "true", "false"]),
    ("pypi_allowlist", [r#""/file/pypi""#, r#""/variable/pypi""#, r#""/flag/pypi""#]),
    ("npm_allowlist", [r#""/file/npm""#, r#""/variable/npm""#, r#""/flag/npm""#]),
    ("allow_pypi", [r#""one""#, r#""two three""#, r#""four""#]),
    ("allow_npm", [r#""@one/one""#, r#""two three""#, r#""four""#]),
    ("pypi_index_url", [r#""http://file/simple/""#, r#""http://variable/simple/""#, r#""https://flag/simple/""#]),
    ("npm_registry_url", [r#""http://file/""#, r#""http://variable/""#, r#""https://flag/""#]),
    ("pypi_sources", [r#""a=http://file/""#, r#""a,b-*=http://variable/ c=http://x/""#, r#""a=https://***@flag/""#]),
    ("npm_sources", [r#""@a=http://file/""#, r#""@b=http://variable/""#, r#""@c=https://flag/""#]),
    ("warm_sets", [r#""python numpy""#, r#""javascript lodash""#, r#""python a b>=2 | javascript c""#]),
    ("share", [r#""/file""#, r#""/variable | /other:rw""#, r#""/flag:rw""#]),
    ("results", [r#""model""#, r#""data""#, r#""model""#]),
    ("tools", [r#""execute_code""#, r#""pool_status execute_code""#, r#""read_file""#]),
    ("max_output_chars", ["1001", "1002", "1003"]),
    ("log", [r#""error""#, r#""info""#, r#""debug""#]),
];

/// A product that nobody has set.
fn unset() -> Command {
    let mut command = command();
    for name in ["ACCEL", "CACHE_DIR", "QEMU", "RESULTS", "WARM_POOL_SIZE"] {
        command.env_remove(format!("SANDBOX_MCP_{name}"));
    }
    command
}

/// What `sandbox-mcp settings` says: key, value and origin of each.
fn shown(command: &mut Command) -> Vec<(String, String, String)> {
    let (stdout, stderr, status) = pipe_through(command.arg("settings"), b"");
    assert!(status.success() && stderr.is_empty(), "{stderr}");
    // It is a file that could be used.
    let lines = stdout.lines().filter(|line| !line.starts_with("# /"));
    lines
        .map(|line| {
            let (setting, origin) = line.rsplit_once("  # ").unwrap();
            let (key, value) = match setting.trim().strip_prefix("# ") {
                Some(unset) => (unset.strip_suffix(" is not set").unwrap(), ""),
                None => setting.trim().split_once(" = ").unwrap(),
            };
            (key.to_string(), value.to_string(), origin.to_string())
        })
        .collect()
}

#[track_caller]
fn check_shown(command: &mut Command, key: &str, value: Option<&str>, origin: &str) {
    let all = shown(command);
    let (_, shown_value, shown_origin) = all.iter().find(|(name, ..)| name == key).unwrap();
    assert!(value.is_none_or(|value| value == shown_value), "{key} = {shown_value}");
    assert!(shown_origin.starts_with(origin), "{key}: {shown_origin} instead of {origin}");
}

fn plain(value: &str) -> String {
    value.trim_matches('"').to_string()
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let keys: Vec<_> = shown(&mut unset()).into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, SAMPLES.map(|(key, _)| key), "each setting needs a sample here");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.toml");
    for (key, [in_file, in_variable, in_flag]) in SAMPLES {
        check_shown(&mut unset(), key, None, "default");

        fs::write(&file, format!("# mine\n{key} = {in_file}\n")).unwrap();
        let with_file = || {
            let mut command = unset();
            command.arg("--config").arg(&file);
            command
        };
        let at = format!("{}:2", file.display());
        check_shown(&mut with_file(), key, Some(in_file), &at);

        let variable = format!("SANDBOX_MCP_{}", key.to_uppercase());
        let with_variable = || {
            let mut command = with_file();
            command.env(&variable, plain(in_variable));
            command
        };
        check_shown(&mut with_variable(), key, Some(in_variable), &format!("the environment variable {variable}"));

        let flag = key.replace('_', "-");
        let arguments = match in_flag {
            "true" => vec![format!("--{flag}")],
            "false" => vec![format!("--no-{flag}")],
            value => vec![format!("--{flag}"), plain(value)],
        };
        check_shown(with_variable().args(&arguments), key, Some(in_flag), &arguments[0]);
    }
}

#[test]
fn the_file_is_the_named_one_or_that_of_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &Path, size: u32| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("warm_pool_size = {size}")).unwrap();
    };
    let [user, variable, flag] =
        ["sandbox-mcp/config.toml", "variable.toml", "flag.toml"].map(|name| folder.path().join(name));
    let of_user = || {
        let mut command = unset();
        command.env("XDG_CONFIG_HOME", folder.path());
        command
    };
    check_shown(&mut of_user(), "warm_pool_size", None, "default");
    write(&user, 51);
    check_shown(&mut of_user(), "warm_pool_size", Some("51"), user.to_str().unwrap());
    write(&variable, 52);
    check_shown(
        of_user().env("SANDBOX_MCP_CONFIG", &variable),
        "warm_pool_size",
        Some("52"),
        variable.to_str().unwrap(),
    );
    write(&flag, 53);
    let both = || {
        let mut command = of_user();
        command.env("SANDBOX_MCP_CONFIG", &variable).arg("--config").arg(&flag);
        command
    };
    check_shown(&mut both(), "warm_pool_size", Some("53"), flag.to_str().unwrap());
    fs::remove_file(&flag).unwrap();
    check_refused(&mut both(), &format!("{}: the settings cannot be read: No such file", flag.display()));
}

#[track_caller]
fn check_refused(command: &mut Command, expected: &str) {
    let (stdout, stderr, status) = pipe_through(command, b"");
    assert_eq!((status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
}

#[test]
fn a_mistake_ends_the_server_and_says_where_it_is() {
    let expected = "--max-concurrent-vms: max_concurrent_vms is `0`, and must be a whole number from 1 to 1000";
    check_refused(unset().args(["--max-concurrent-vms", "0"]), expected);
    let expected = "SANDBOX_MCP_REQUIRE_KVM: require_kvm is `yes`, and must be true or false";
    check_refused(unset().env("SANDBOX_MCP_REQUIRE_KVM", "yes"), expected);
    let expected = "--log: log is `wran`, and must be a level (error, warn, info, debug, trace, off) or a filter such as `sandbox_engine=debug`";
    check_refused(unset().args(["--log", "wran"]), expected);
    // What is seen to be wrong only when it is used.
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("none");
    let expected = format!("--npm-allowlist: cannot read the list of packages {}: No such file", list.display());
    check_refused(unset().arg("--npm-allowlist").arg(&list), &expected);
    let expected = "SANDBOX_MCP_ALLOW_PYPI: \"a/b\" is no python package's name: it consists of ";
    check_refused(unset().env("SANDBOX_MCP_ALLOW_PYPI", "a/b"), expected);
    let expected = "--pypi-sources: \"*\" is no python package's name: it stands for every name";
    check_refused(unset().args(["--pypi-sources", "*=https://example.com/"]), expected);
    let expected = "npm_registry_url: \"https://example.com/?x\" is no URL of a registry: it has no ? and no # in it";
    check_refused(unset().args(["--npm-registry-url", "https://example.com/?x"]), expected);
    let file = folder.path().join("config.toml");
    fs::write(&file, "accel = \"tcg\"\nwarm_pool = 3\n").unwrap();
    let expected = format!("{}:2: there is no setting `warm_pool`, but accel, ", file.display());
    check_refused(unset().arg("--config").arg(&file), &expected);
}

#[test]
fn a_variable_that_is_no_setting_is_told_and_does_not_stop_anybody() {
    let (stdout, stderr, status) =
        pipe_through(unset().env("SANDBOX_MCP_PORT", "tcp://10.0.0.1:80").arg("settings"), b"");
    assert!(status.success() && stdout.contains("accel = "), "{stdout}");
    assert!(stderr.contains("SANDBOX_MCP_PORT is set, but there is no such setting"), "{stderr}");
}

#[test]
fn calls_beyond_the_vms_wait_and_beyond_the_queue_are_told_when_to_come_back() {
    const WAITING_MAX: u32 = 256;
    let mut server = Server::start_as(command().args(["--max-concurrent-vms", "1", "--no-templates"]));
    let sleep = json!({"language": "shell", "code": "sleep 1000", "memory_mb": 64, "timeout_seconds": 300});
    server.send(&execute_request(0, sleep.clone()));
    server.wait_for_machines(1, DEADLINE);
    // Which of them is the one too many is up to the order in which their tasks begin.
    for id in 1..=WAITING_MAX + 1 {
        server.send(&execute_request(id, sleep.clone()));
    }
    let answer = server.receive();
    let error = &answer["result"]["_meta"]["sandbox-mcp/error"];
    assert_eq!((&error["code"], &error["retry_after_ms"]), (&json!("capacity"), &json!(60_000)), "{answer}");
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.ends_with("1 VMs are busy and 256 calls wait. Try again in 60 s"), "{text}");
    assert_eq!(server.virtual_machines().len(), 1);
}
