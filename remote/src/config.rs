//! Where the bucket is, and how long it is waited for.

use std::time::Duration;

use crate::secret::Secret;

/// A bucket, and how it is used.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Its name.
    pub bucket: String,
    /// Its region; what AWS's own variables and files say when `None`.
    pub region: Option<String>,
    /// What every object's key begins with.
    pub prefix: String,
    /// Another service than Amazon's.
    pub endpoint_url: Option<String>,
    /// Whether the bucket is named in the path instead of in the host's name.
    pub force_path_style: bool,
    /// Entries that are sent at the same time.
    pub uploads: usize,
    /// What the hosts that share templates have in common.
    pub secret: Option<Secret>,
    /// How long is waited for what.
    pub timing: Timing,
}

/// How long is waited for what. A service that is slower than this is not worth waiting for: the entry is built instead. What is sent
/// has no time of its own: it takes what the line takes.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A connection; a region away takes 0.1-0.3 s.
    pub connect: Duration,
    /// Whether there is an entry, credentials included: a run may wait for this.
    pub answer: Duration,
    /// Between two pieces of what is being fetched.
    pub stall: Duration,
    /// After so long, what is fetched is given up if it would take more than its user has patience for.
    pub estimate_after: Duration,
    /// Between two pieces of what is being sent, and from the last to the answer. What the kernel has taken by then, at most 4 MiB,
    /// goes out within it over 0.6 Mbit/s.
    pub send: Duration,
    /// Until a manifest that was written is looked at again, where nothing but that tells whether another host has written it too.
    pub settle: Duration,
    /// How long nothing is asked after a failure; doubled with each that follows.
    pub retry: Duration,
    /// The longest of these times.
    pub retry_max: Duration,
    /// How long an entry that was not what it should be is not asked for.
    pub rejected: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(3),
            stall: Duration::from_secs(2),
            estimate_after: Duration::from_secs(1),
            send: Duration::from_secs(60),
            settle: Duration::from_secs(2),
            retry: Duration::from_secs(5),
            retry_max: Duration::from_secs(300),
            rejected: Duration::from_secs(600),
        }
    }
}
