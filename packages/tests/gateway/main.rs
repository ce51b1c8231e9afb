//! The gateway from outside: with the real installers and the real registries, and with a registry of our own that fails in
//! every way we could think of.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests may do what the product must not"
)]

mod harness;

mod faults;
mod refusals;
mod registry;

mod javascript;
mod python;
mod tools;
