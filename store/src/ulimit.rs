//! The limits that this process was started with (`ulimit`, `prlimit`, systemd's `Limit...=`), and which of them is behind an
//! error: the system says "File too large", and not that somebody has said `ulimit -f 100`.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t};

/// A limit, what says that it was met, and how it is told.
struct Limit {
    resource: Resource,
    name: &'static str,
    /// As shells set it.
    flag: &'static str,
    unit: Unit,
    errno: Option<Errno>,
    /// What other programs say of it, QEMU above all.
    words: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
    Seconds,
}

/// A QEMU reserves its guest's memory and as much again, most of which it never touches.
const MEMORY_LOW_BYTES: rlim_t = 8 << 30;

const MEMORY_WORDS: &[&str] =
    &["Cannot allocate memory", "failed to allocate", "failed to map segment", "out of memory"];

const LIMITS: [Limit; 7] = [
    Limit {
        resource: Resource::RLIMIT_FSIZE,
        name: "RLIMIT_FSIZE",
        flag: "ulimit -f",
        unit: Unit::Bytes,
        errno: Some(Errno::EFBIG),
        words: &["File too large", "SIGXFSZ", "signal 25"],
    },
    Limit {
        resource: Resource::RLIMIT_NPROC,
        name: "RLIMIT_NPROC",
        flag: "ulimit -u",
        unit: Unit::Count,
        errno: Some(Errno::EAGAIN),
        words: &["Resource temporarily unavailable", "can't spawn worker thread"],
    },
    Limit {
        resource: Resource::RLIMIT_NOFILE,
        name: "RLIMIT_NOFILE",
        flag: "ulimit -n",
        unit: Unit::Count,
        errno: Some(Errno::EMFILE),
        words: &["Too many open files"],
    },
    Limit {
        resource: Resource::RLIMIT_AS,
        name: "RLIMIT_AS",
        flag: "ulimit -v",
        unit: Unit::Bytes,
        errno: Some(Errno::ENOMEM),
        words: MEMORY_WORDS,
    },
    Limit {
        resource: Resource::RLIMIT_DATA,
        name: "RLIMIT_DATA",
        flag: "ulimit -d",
        unit: Unit::Bytes,
        errno: Some(Errno::ENOMEM),
        words: MEMORY_WORDS,
    },
    Limit {
        resource: Resource::RLIMIT_STACK,
        name: "RLIMIT_STACK",
        flag: "ulimit -s",
        unit: Unit::Bytes,
        errno: None,
        words: &[],
    },
    Limit {
        resource: Resource::RLIMIT_CPU,
        name: "RLIMIT_CPU",
        flag: "ulimit -t",
        unit: Unit::Seconds,
        errno: None,
        words: &["SIGXCPU", "signal 24"],
    },
];

/// The limit that an error comes of, as the end of a sentence: empty when none of ours does.
pub fn limit_behind(error: &io::Error) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw);
    tail(LIMITS.iter().filter(|limit| errno.is_some() && limit.errno == errno))
}

/// The same for what is only known in words, such as QEMU's; empty also when they name the limit already.
pub fn limits_behind_words(words: &str) -> String {
    let says = |limit: &&Limit| limit.words.iter().any(|word| words.contains(word)) && !words.contains(limit.name);
    tail(LIMITS.iter().filter(says))
}

fn tail<'l>(limits: impl Iterator<Item = &'l Limit>) -> String {
    let named: Vec<_> = limits.filter_map(in_force).collect();
    if named.is_empty() { String::new() } else { format!(": {}", named.join("; ")) }
}

/// The limits that are so low that a VM may have ended for them, as the end of a sentence: for an end without a word.
pub fn limits_too_low() -> String {
    let is_low = |limit: &&Limit| {
        let soft = getrlimit(limit.resource).map_or(nix::libc::RLIM_INFINITY, |(soft, _)| soft);
        match limit.resource {
            Resource::RLIMIT_AS | Resource::RLIMIT_DATA => soft < MEMORY_LOW_BYTES,
            Resource::RLIMIT_CPU => soft < nix::libc::RLIM_INFINITY,
            _ => false,
        }
    };
    tail(LIMITS.iter().filter(is_low))
}

/// The named limit, if there is one: a sentence without its full stop.
pub fn limit_in_force(resource: Resource) -> Option<String> {
    LIMITS.iter().find(|limit| limit.resource == resource).and_then(in_force)
}

fn in_force(limit: &Limit) -> Option<String> {
    let (soft, _) = getrlimit(limit.resource).ok()?;
    tell(limit, soft)
}

fn tell(limit: &Limit, soft: rlim_t) -> Option<String> {
    let value = match limit.unit {
        _ if soft == nix::libc::RLIM_INFINITY => return None,
        Unit::Count => soft.to_string(),
        Unit::Seconds => format!("{soft} s"),
        Unit::Bytes => format!("{} KiB", soft / 1024),
    };
    Some(format!("the limit {} of this process is {value} ({})", limit.name, limit.flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(resource: Resource, soft: rlim_t) -> Option<String> {
        tell(LIMITS.iter().find(|limit| limit.resource == resource).unwrap(), soft)
    }

    #[test]
    fn a_limit_is_told_as_it_is_set() {
        let files = told(Resource::RLIMIT_FSIZE, 100 * 1024).unwrap();
        assert_eq!(files, "the limit RLIMIT_FSIZE of this process is 100 KiB (ulimit -f)");
        assert!(told(Resource::RLIMIT_NPROC, 20).unwrap().contains("RLIMIT_NPROC of this process is 20 (ulimit -u)"));
        assert!(told(Resource::RLIMIT_CPU, 5).unwrap().contains(" 5 s "));
        assert_eq!(told(Resource::RLIMIT_AS, nix::libc::RLIM_INFINITY), None);
    }

    #[test]
    fn an_error_has_the_limit_that_is_behind_it() {
        // Every process has this one.
        let told = limit_behind(&Errno::EMFILE.into());
        assert!(told.starts_with(": the limit RLIMIT_NOFILE of this process is "), "{told}");
        let told = limits_behind_words("qemu: Too many open files");
        assert!(told.contains("RLIMIT_NOFILE"), "{told}");
        assert_eq!(limits_behind_words("Too many open files: the limit RLIMIT_NOFILE"), "");
        for error in [Errno::ENOENT.into(), io::Error::other("Too many open files")] {
            assert_eq!(limit_behind(&error), "");
        }
        assert_eq!(limits_behind_words("no such machine"), "");
    }
}
