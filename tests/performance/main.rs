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
use sandbox_tests::weed;

mod subject;
mod table;

use std::path::PathBuf;

use sandbox_tests::program::program;

use crate::subject::Subject;
use crate::table::Table;

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20);
    let other = std::env::var_os("AGAINST").map(|path| Subject::new(PathBuf::from(path)));
    let subjects: Vec<Subject> = [Subject::new(program().to_owned())].into_iter().chain(other).collect();
    let mut table = Table::new(&subjects, runs);
    let wanted = std::env::var("ROWS").unwrap_or_default();
    for row in rows::ALL.iter().chain(packages::ALL).chain(bucket::ALL).filter(|row| row.name.contains(&wanted)) {
        table.measure(row, &subjects, runs);
    }
}
