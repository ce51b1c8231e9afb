//! Ten thousand runs through one server: `make soak`. Of all languages, in VMs of the pool and of the template; some fail, some are
//! cancelled, some never end, some want too much. Prints what the server holds as it goes on, and fails when that grows, or
//! when any run comes to anything but what it must.
//!
//! `RUNS=3000` runs fewer, `AT_ONCE=2` so many at the same time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program of its own that prints, and starts the product as its users do"
)]

// In the order in which to read them.
mod traffic;

mod programs;

mod holdings;

use sandbox_tests::harness;

use std::process::ExitCode;
use std::time::Instant;

use crate::holdings::Holdings;
use crate::traffic::Traffic;

/// Rows that are printed.
const ROWS: usize = 20;

/// The first runs open what stays open, and fill the caches of the allocator.
const WARMING: usize = 200;

fn main() -> ExitCode {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (runs, at_once) = (number("RUNS", 10_000), number("AT_ONCE", 4));
    let mut traffic = Traffic::start(at_once);
    traffic.run(WARMING.min(runs));
    let before = Holdings::of(traffic.settle());
    let begun = Instant::now();
    println!("{}", Holdings::HEADER);
    println!("{}", before.row(traffic.ran(), 0.0));
    let mut wrong = Vec::new();
    while traffic.ran() < runs {
        traffic.run((runs / ROWS).max(1).min(runs - traffic.ran()));
        let now = Holdings::of(traffic.settle());
        println!("{}", now.row(traffic.ran(), begun.elapsed().as_secs_f64()));
        wrong = now.beyond(&before);
    }
    println!("{}", traffic.counts());
    if wrong.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED: {}", wrong.join("; "));
    ExitCode::FAILURE
}
