//! The engine with real VMs, for what no tool reaches by itself.
//!
//! Needs QEMU and the image: `make test` sees to both.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod harness;

mod tunnel;
