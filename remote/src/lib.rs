//! A tier of the cache in an S3 bucket: what one host has built, another fetches instead of building it.
//!
//! ```text
//! <prefix><kind>/<name>-<key>/<upload>/<file>.zst                frames, each compressed on its own
//! <prefix><kind>/<name>-<key>/manifest-v<format>.json            written last, if there is none that is sound and young enough
//! <prefix><kind>/<name>-<key>/manifest-v<format>-<key id>.json   the same, where hosts share a key
//! ```
//!
//! Whoever can write to the bucket can write anything into it: nothing of it is believed that was not looked at, and what
//! QEMU trusts is taken only from who knows the hosts' key. Whatever is wrong with an object, or with the bucket, is a miss.

// In the order in which to read them: what its user sees, what it does, then what that is made with.
mod tier;
pub use tier::S3;

mod config;
pub use config::{S3Config, Timing};

mod secret;
pub use secret::{Secret, SecretError};

mod fetch;
mod push;
pub use push::{PushError, Pushed};

mod queue;

mod health;

mod bucket;
mod frame;
mod manifest;
mod names;
mod outgoing;
