//! Namespaces of its own for a QEMU: as many as the host lets it have.

use nix::sched::CloneFlags;

/// A namespace, and what it keeps from a conquered QEMU.
pub(crate) const WANTED: [(CloneFlags, &str); 4] = [
    // Other processes: their ids mean nothing in it.
    (CloneFlags::CLONE_NEWPID, "PID"),
    // The host's network, and what listens on abstract sockets.
    (CloneFlags::CLONE_NEWNET, "network"),
    // System V's shared memory.
    (CloneFlags::CLONE_NEWIPC, "IPC"),
    // The host's name, which says where it is.
    (CloneFlags::CLONE_NEWUTS, "UTS"),
];

/// All of them, with a user namespace if that `user_comes_first`: whoever has no rights has them there, and no right over processes
/// outside.
pub(crate) fn all(user_comes_first: bool) -> CloneFlags {
    WANTED.iter().fold(user(user_comes_first), |all, (flag, _)| all | *flag)
}

fn user(comes_first: bool) -> CloneFlags {
    if comes_first { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() }
}

/// As many of them as `works` allows.
pub(crate) fn most(user_comes_first: bool, mut works: impl FnMut(CloneFlags) -> bool) -> CloneFlags {
    let all = all(user_comes_first);
    if works(all) {
        return all;
    }
    let single = std::iter::once(user(user_comes_first))
        .chain(WANTED.iter().map(|(flag, _)| *flag))
        .filter(|flag| !flag.is_empty());
    let mut most = CloneFlags::empty();
    for flag in single {
        if works(most | flag) {
            most |= flag;
        }
    }
    most
}

/// The names of those that are missing.
pub(crate) fn missing(found: CloneFlags) -> Vec<&'static str> {
    WANTED.iter().filter(|(flag, _)| !found.contains(*flag)).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: CloneFlags = CloneFlags::CLONE_NEWUSER;
    const NETWORK: CloneFlags = CloneFlags::CLONE_NEWNET;

    #[test]
    fn a_host_that_allows_all_is_asked_once() {
        let mut asked = 0;
        let found = most(true, |_| {
            asked += 1;
            true
        });
        assert_eq!((asked, missing(found), found.contains(USER)), (1, vec![], true));
        assert!(!most(false, |_| true).contains(USER), "a user namespace only where it was asked for");
    }

    #[test]
    fn one_that_is_refused_costs_no_other() {
        let found = most(true, |flags| !flags.contains(NETWORK));
        assert_eq!((missing(found), found.contains(USER)), (vec!["network"], true));
        // Without rights of their own, users have them in a user namespace or not at all.
        let needs_user = |flags: CloneFlags| flags.contains(USER) && !flags.contains(NETWORK);
        assert_eq!(missing(most(true, needs_user)), ["network"]);
        let only_user = |flags: CloneFlags| flags == USER;
        assert_eq!(most(true, only_user), USER);
        // Root may have rights without one.
        let no_user = |flags: CloneFlags| !flags.contains(USER);
        assert_eq!(missing(most(true, no_user)), [""; 0]);
        assert!(most(true, |_| false).is_empty() && most(false, |_| false).is_empty());
    }
}
