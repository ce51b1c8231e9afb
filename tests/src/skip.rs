//! What is not tested, because this machine has not what it needs.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use crate::program::target;

/// Lets tests be skipped, if it is `1`.
pub const VARIABLE: &str = "SANDBOX_MCP_TEST_ALLOW_SKIPS";

/// Says that something is not tested, and why. A test that skips looks like one that has passed: so this fails it, unless
/// [`VARIABLE`] allows it; then `make test` tells in the end what was skipped.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var(VARIABLE).is_ok_and(|value| value == "1"), "not tested: {why} ({VARIABLE}=1 lets that pass)");
    // Not by a macro, whose words are kept back when a test passes.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {why}\n");
    let mut skipped = File::options().append(true).create(true).open(target().join("skipped")).unwrap();
    skipped.write_all(format!("{why}\n").as_bytes()).unwrap();
}

/// Whether both registries can be reached; else the test is skipped.
#[track_caller]
pub fn has_registries() -> bool {
    let answers = |url: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--max-time", "20", "--output", "/dev/null", url]);
        curl.status().is_ok_and(|status| status.success())
    };
    let all = answers("https://pypi.org/simple/six/") && answers("https://registry.npmjs.org/lodash");
    if !all {
        skip("a package registry cannot be reached");
    }
    all
}
