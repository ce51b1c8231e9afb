//! How the house is built: what ARCHITECTURE.md says of crates and files that no lint holds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

// In the order in which to read them.
mod files;

mod uses;

use std::collections::BTreeSet;
use std::path::Path;

use crate::files::{CRATES, files_of};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn no_two_files_use_one_another() {
    let mut circles = Vec::new();
    for name in CRATES {
        let files = files_of(root(), name);
        assert!(files.len() > 1, "{name}");
        let uses: BTreeSet<_> =
            files.iter().flat_map(|file| file.uses(&files).map(|used| (&file.module, used))).collect();
        let both = uses.iter().filter(|(one, other)| one < other && uses.contains(&(*other, *one)));
        circles.extend(both.map(|(one, other)| format!("{name}: {} and {}", one.join("::"), other.join("::"))));
    }
    assert!(
        circles.is_empty(),
        "files use one another, which should have what both need in a third:\n{}",
        circles.join("\n")
    );
}

#[test]
fn no_file_is_too_long_to_be_read() {
    // Without its tests.
    const MAX: usize = 500;
    for name in CRATES {
        for file in files_of(root(), name) {
            let lines = file.code.lines().count();
            assert!(lines <= MAX, "{name}: {} has {lines} lines, more than {MAX}", file.module.join("::"));
        }
    }
}
