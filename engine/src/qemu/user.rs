//! Users of their own for QEMUs: one for each VM, which is nobody else's.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};

/// Where ids are looked for. The first are what systemd leaves to nobody: behind those of its containers and below 2^31. The
/// second, for containers that have 65536 ids, what it gives to services for as long as they run.
const RANGES: [Range<u32>; 2] = [0x7A00_0000..0x7E00_0000, 61184..65520];

/// How many ids a server has: more than it can have VMs.
pub(crate) const COUNT: u32 = 1024;

/// How many places are looked at. Most are free.
const TRIES: usize = 64;

/// The ids of one server. Used in turn, so that the last to be used again is the one that was used last.
#[derive(Debug)]
pub(crate) struct Users {
    first: u32,
    free: Mutex<VecDeque<u32>>,
    /// Tells other servers that these are taken, for as long as the process lives.
    _claim: Option<UnixDatagram>,
}

/// An id for one VM. Free again when dropped, which must not be before its process is reaped.
#[derive(Debug)]
pub(crate) struct UserId {
    users: Arc<Users>,
    pub(crate) id: u32,
}

impl Users {
    /// Ids that are mapped here and are nobody's; an error says why there are none.
    pub(crate) fn find() -> Result<Users, String> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let maps = [mapped(&read("/proc/self/uid_map")), mapped(&read("/proc/self/gid_map"))];
        let is_mapped = |ids: &Range<u32>| maps.iter().all(|map| covers(map, ids));
        let named: Vec<Range<u32>> = ["/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid"]
            .iter()
            .flat_map(|path| named(&read(path), path.contains("sub")))
            .collect();
        let living = living();
        let is_anybodys = |ids: &Range<u32>| {
            living.iter().any(|id| ids.contains(id)) || named.iter().any(|named| overlap(named, ids))
        };
        let random = random().map_err(|error| format!("reading random bytes: {error}"))?;
        let candidates: Vec<Range<u32>> =
            places(random).filter(is_mapped).filter(|ids| !is_anybodys(ids)).take(TRIES).collect();
        let claimed = candidates.iter().find_map(|ids| Some((ids.start, Some(claim(ids.start)?))));
        // Where somebody has claimed all there are, two servers may have the same: no worse than one user for all.
        let (first, claim) = claimed
            .or_else(|| candidates.first().map(|ids| (ids.start, None)))
            .ok_or("no ids that a VM could have are mapped in this user namespace (/proc/self/uid_map, gid_map)")?;
        Ok(Users { first, free: Mutex::new((first..first + COUNT).collect()), _claim: claim })
    }

    pub(crate) fn ids(&self) -> Range<u32> {
        self.first..self.first + COUNT
    }

    /// One that no process has; `None` when all are in use.
    pub(crate) fn take(self: &Arc<Users>) -> Option<UserId> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        Some(UserId { users: self.clone(), id })
    }
}

impl Drop for UserId {
    fn drop(&mut self) {
        self.users.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
    }
}

fn random() -> Result<u32, getrandom::Error> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// All places for a server's ids, from a random one on in each range.
fn places(random: u32) -> impl Iterator<Item = Range<u32>> {
    RANGES.into_iter().flat_map(move |range| {
        let places = (range.end - range.start) / COUNT;
        (0..places).map(move |at| {
            let first = range.start + (random % places + at) % places * COUNT;
            first..first + COUNT
        })
    })
}

/// The ids that a user namespace has, by its map: inside, outside, how many.
fn mapped(map: &str) -> Vec<Range<u64>> {
    let read = |line: &str| {
        let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        match fields[..] {
            [inside, _, count] => Some(inside..inside + count),
            _ => None,
        }
    };
    map.lines().filter_map(read).collect()
}

fn covers(map: &[Range<u64>], ids: &Range<u32>) -> bool {
    map.iter().any(|mapped| mapped.start <= ids.start.into() && u64::from(ids.end) <= mapped.end)
}

/// The ids that a file of the system names: by the third field, or by where they begin and how many they are.
fn named(text: &str, are_ranges: bool) -> Vec<Range<u32>> {
    let read = |line: &str| {
        let mut fields = line.split(':').skip(1);
        let (second, third) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
        let (first, count) = if are_ranges { (second.parse::<u32>().ok()?, third) } else { (third, 1) };
        Some(first..first.saturating_add(count))
    };
    text.lines().filter_map(read).collect()
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Whose processes there are. Some hide whose they are, and count as root's; a QEMU does not.
fn living() -> HashSet<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes =
        processes.filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit));
    processes.filter_map(|entry| Some(entry.metadata().ok()?.uid())).collect()
}

/// A name that one process of a network namespace can have, and that is gone with it. No server is told of another by files,
/// which would have to be somewhere.
fn claim(first: u32) -> Option<UnixDatagram> {
    let address = SocketAddr::from_abstract_name(format!("sandbox-mcp/users/{first}")).ok()?;
    let claimed: io::Result<UnixDatagram> = UnixDatagram::bind_addr(&address);
    // Whoever sends to it shall not fill anything.
    claimed.and_then(|socket| socket.shutdown(std::net::Shutdown::Read).map(|()| socket)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_all_there_are_and_begin_anywhere() {
        let from = |random| places(random).collect::<Vec<_>>();
        let all: HashSet<u32> = from(0).iter().map(|ids| ids.start).collect();
        assert_eq!(all.len(), from(0).len());
        assert_eq!(from(0)[0], 0x7A00_0000..0x7A00_0400);
        assert_eq!(from(3)[0].start, 0x7A00_0C00);
        for random in [1, 0x1234_5678, u32::MAX] {
            assert_eq!(from(random).iter().map(|ids| ids.start).collect::<HashSet<_>>(), all);
        }
        // Never `nobody`, and not beyond what is positive everywhere.
        assert!(from(0).iter().all(|ids| ids.end <= 65520 || (ids.start >= 0x7A00_0000 && ids.end < 1 << 31)));
    }

    #[test]
    fn ids_must_be_mapped_and_nobodys() {
        let (all, container) = ("0 0 4294967295\n", "         0     100000      65536\n");
        let covers = |map: &str, ids: &Range<u32>| covers(&mapped(map), ids);
        assert!(covers(all, &(0x7A00_0000..0x7A00_0400)) && covers(all, &(61184..62208)));
        assert!(!covers(container, &(0x7A00_0000..0x7A00_0400)) && covers(container, &(61184..62208)));
        for map in ["0 0 1\n", "0 1000 1\n1 100000 61184\n", "", "nonsense\n"] {
            assert!(!covers(map, &(61184..62208)), "{map}");
        }
        let passwd = "root:x:0:0:root:/root:/bin/bash\nodd:x:61200:61200::/:/bin/sh\nbroken\n";
        assert_eq!(named(passwd, false), [0..1, 61200..61201]);
        assert_eq!(named("user:100000:65536\n", true).first(), Some(&(100_000..165_536)));
        assert!(overlap(&(61200..61201), &(61184..62208)) && !overlap(&(0..1), &(61184..62208)));
        assert!(living().contains(&nix::unistd::Uid::effective().as_raw()), "ours");
    }

    #[test]
    fn an_id_is_used_again_after_all_others() {
        let users = Arc::new(Users { first: 100, free: Mutex::new((100..103).collect()), _claim: None });
        let take = || users.take().unwrap();
        let (a, b) = (take(), take());
        assert_eq!((a.id, b.id), (100, 101));
        drop(a);
        let (c, d) = (take(), take());
        assert_eq!((c.id, d.id), (102, 100));
        assert!(users.take().is_none());
        drop(b);
        assert_eq!(take().id, 101);
    }

    #[test]
    fn a_claim_is_held_against_others() {
        // No server's.
        let first = 0xFFFF_0000 | std::process::id();
        let claimed = claim(first).unwrap();
        assert!(claim(first).is_none());
        drop(claimed);
        assert!(claim(first).is_some());
    }
}
