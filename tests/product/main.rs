//! The product, tested from outside: the built binary, real VMs, real clients. One binary, so that it is linked once.
//!
//! Needs QEMU and the image: `make test` sees to both.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the product as its users do"
)]

use sandbox_tests::{harness, weed};

mod adding;
mod background;
mod bad_input;
mod bucket;
mod bundle;
mod cache;
mod cancelling;
mod clients;
mod confinement;
mod containment;
mod ending;
mod eras;
mod files;
mod host_limits;
mod javascript;
mod killed;
mod lifecycle;
mod limits;
mod making;
mod mixed;
mod order;
mod own_qemu;
mod packages;
mod plain;
mod privileges;
mod protocol;
mod python;
mod results;
mod sdks;
mod sessions;
mod settings;
mod shell;
mod shown;
mod streaming;
mod tasks;
mod templates;
mod translated_code;
mod warnings;
