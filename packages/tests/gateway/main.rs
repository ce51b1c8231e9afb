//! The gateway from outside: with the real installers and the real registries, and with a registry of our own that fails in
//! every way we could think of.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says what it skips, and starts installers as their users do"
)]

mod harness;

mod faults;
mod gpu;
mod private;
mod refusals;
mod registry;

mod javascript;
mod python;
mod tools;
