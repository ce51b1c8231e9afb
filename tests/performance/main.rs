//! How long a user waits, and what a VM costs: `make bench`. Never fails on a time.
//!
//! `RUNS=50` changes the number of samples a row (default 20). `ROWS=pool` measures the rows whose name has that in it. `AGAINST=/path/to/another/sandbox-mcp` measures that binary
//! as well, in turn with ours, sample by sample, so that what else the machine does befalls both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark is a program of its own that prints, and starts the product as its users do"
)]

// In the order in which to read them.
mod rows;

mod packages;

mod bucket;
#[path = "../../remote/tests/s3/weed.rs"]
#[allow(dead_code, unreachable_pub, reason = "a file of tests, of which some do more with it")]
mod weed;

mod subject;
mod table;

use std::path::PathBuf;

use crate::subject::Subject;
use crate::table::Table;

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20);
    let other = std::env::var_os("AGAINST").map(|path| Subject::new(PathBuf::from(path)));
    let subjects: Vec<Subject> =
        [Subject::new(env!("CARGO_BIN_EXE_sandbox-mcp").into())].into_iter().chain(other).collect();
    let mut table = Table::new(&subjects, runs);
    let wanted = std::env::var("ROWS").unwrap_or_default();
    for row in rows::ALL.iter().chain(packages::ALL).chain(bucket::ALL).filter(|row| row.name.contains(&wanted)) {
        table.measure(row, &subjects, runs);
    }
}
