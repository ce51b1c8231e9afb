//! What the tests of all crates share.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the product as its users do"
)]

// In the order in which to read them.
pub mod harness;

pub mod program;

pub mod skip;

pub mod weed;
