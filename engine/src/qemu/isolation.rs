//! What holds a QEMU on this host, found out once, by trying.
//!
//! What a server may do follows from its user, its capabilities, its namespaces, the filters of a container and the modules of
//! the kernel; some of them say one thing and do another. So a child takes every step that QEMU's process will take, and is killed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sched::CloneFlags;
use nix::unistd::Uid;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::qemu::child::{self, Beginning, Voice, Way};
use crate::qemu::confine::{Confinement, Degree, confine};
use crate::qemu::group::{Group, Groups};
use crate::qemu::user::{UserId, Users};
use crate::qemu::{namespace, privileges};

/// How much sooner than the server its VMs are ended by a host that is out of memory: as if each had half of it.
const OOM_SCORE_RAISED_BY: i32 = 500;

/// The largest score there is.
const OOM_SCORE_MAX: i32 = 1000;

/// How long a trial waits to be killed, in milliseconds. Whoever cannot kill it waits no longer.
const TRIAL_MS: u16 = 2000;

/// What holds the QEMUs of a server.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) facts: Facts,
    way: Way,
    users: Option<Arc<Users>>,
    groups: Option<Groups>,
    /// This process, as its children know it.
    pub(crate) server: OwnedFd,
    /// What is written as a VM's `oom_score_adj`.
    pub(crate) oom_score: String,
}

/// The same in plain words and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) user: UserFact,
    pub(crate) user_namespace: bool,
    pub(crate) pid_namespace: bool,
    pub(crate) network_namespace: bool,
    pub(crate) ipc_namespace: bool,
    pub(crate) uts_namespace: bool,
    /// Why there are not all of them.
    pub(crate) namespaces_missing: Option<String>,
    /// Whether no program can have capabilities any more. That none can get any is sure in any case (`no_new_privs`).
    pub(crate) no_bounding_set: bool,
    /// A VM's `oom_score_adj`; `None` where it is the server's.
    pub(crate) oom_score_adj: Option<i32>,
    /// Where each VM has a cgroup, or why it has none.
    pub(crate) cgroup: Result<String, String>,
}

/// Who QEMU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserFact {
    /// Each is another, of these.
    OwnUid {
        /// The first id.
        first: u32,
        /// The last id.
        last: u32,
    },
    /// The server's user.
    Servers {
        /// Why.
        why: String,
    },
}

/// What one VM has of its own. Dropped once its process is reaped.
#[derive(Debug, Default)]
pub(crate) struct Belongings {
    pub(crate) user: Option<UserId>,
    pub(crate) group: Option<Group>,
}

/// Why a child could not be confined, as the end of a sentence.
type Reason = String;

impl Isolation {
    /// Tries what can be had here, beginning with the most. Blocks for some milliseconds. May move this process into another cgroup.
    pub(crate) fn find_out() -> Result<Isolation, Reason> {
        let server = pidfd_open(getpid(), PidfdFlags::empty()).map_err(io::Error::from).and_then(child::not_given);
        let server = server.map_err(|error| format!("pidfd_open: {error} (Linux 5.9 or later is needed)"))?;
        let (oom_score_adj, oom_score) = oom_score();
        let missing = privileges::missing_for_another_user();
        let (mut users, mut why) = match missing[..] {
            [] => Users::find().map_or_else(|why| (None, why), |users| (Some(Arc::new(users)), String::new())),
            _ if !Uid::effective().is_root() => (None, "the server is not root".into()),
            _ => (None, format!("the server is root without {}", missing.join(", "))),
        };
        let (mut groups, mut no_group) = match Groups::find() {
            Ok(groups) => (Some(groups), String::new()),
            Err(why) => (None, why),
        };
        let trial = |way: Way, users: &Option<Arc<Users>>, groups: Option<&Groups>| {
            let belongings = Belongings {
                user: users.as_ref().and_then(Users::take),
                group: groups.map(|groups| groups.make(0)).transpose().map_err(|error| error.to_string())?,
            };
            try_out(way, &belongings, &server, &oom_score)
        };
        // A first call waits for this: mostly all that is wanted is there, and one trial says so.
        let mut way = Way::Clone(namespace::all(users.is_none()));
        let mut degree = trial(way, &users, groups.as_ref());
        if degree.is_err() {
            way = best_way(users.is_none());
            if users.is_some()
                && let Err(reason) = trial(way, &users, None)
            {
                (users, why, way) = (None, reason, best_way(true));
            }
            if way == Way::Fork && groups.is_some() {
                (groups, no_group) = (None, "clone3 is not allowed".into());
            }
            degree = trial(way, &users, groups.as_ref());
        }
        if let Err(reason) = &degree
            && groups.is_some()
        {
            (groups, no_group) = (None, reason.clone());
            degree = trial(way, &users, None);
        }
        let degree = degree?;
        let has = |flag| matches!(way, Way::Clone(flags) if flags.contains(flag));
        let facts = Facts {
            user: match &users {
                Some(users) => UserFact::OwnUid { first: users.ids().start, last: users.ids().end - 1 },
                None => UserFact::Servers { why },
            },
            user_namespace: has(CloneFlags::CLONE_NEWUSER),
            pid_namespace: has(CloneFlags::CLONE_NEWPID),
            network_namespace: has(CloneFlags::CLONE_NEWNET),
            ipc_namespace: has(CloneFlags::CLONE_NEWIPC),
            uts_namespace: has(CloneFlags::CLONE_NEWUTS),
            namespaces_missing: namespaces_missing(way),
            no_bounding_set: degree.has_no_bounding_set,
            oom_score_adj: degree.has_oom_score.then_some(oom_score_adj),
            cgroup: groups.as_ref().map(|groups| groups.folder().display().to_string()).ok_or(no_group),
        };
        Ok(Isolation { facts, way, users, groups, server, oom_score })
    }

    /// Whether QEMU is somebody else than the server.
    pub(crate) fn is_another_user(&self) -> bool {
        self.users.is_some()
    }

    /// What a VM of so much memory gets; an error says what there is no more of.
    pub(crate) fn belongings(&self, memory_mb: u64) -> Result<Belongings, Reason> {
        let user = match &self.users {
            Some(users) => Some(users.take().ok_or("all user ids for VMs are in use")?),
            None => None,
        };
        // One that a host has taken away meanwhile is missed by nobody but a conquered QEMU.
        let make = |groups: &Groups| {
            let made = groups.make(memory_mb);
            made.inspect_err(|error| tracing::warn!(%error, "a VM has no cgroup")).ok()
        };
        Ok(Belongings { user, group: self.groups.as_ref().and_then(make) })
    }

    /// What a QEMU with these begins in.
    pub(crate) fn beginning<'a>(&self, belongings: &'a Belongings) -> Beginning<'a> {
        Beginning { way: self.way, group: belongings.group.as_ref().map(|group| group.directory.as_fd()) }
    }
}

impl Facts {
    /// Which namespaces each VM has of its own.
    pub(crate) fn namespaces(&self) -> Vec<&'static str> {
        let namespaces = [
            (self.user_namespace, "user"),
            (self.pid_namespace, "PID"),
            (self.network_namespace, "network"),
            (self.ipc_namespace, "IPC"),
            (self.uts_namespace, "UTS"),
        ];
        namespaces.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            UserFact::OwnUid { first, last } => {
                write!(formatter, "each VM is a user of its own, of {first} to {last}")?
            }
            UserFact::Servers { why } => write!(formatter, "VMs are the server's user ({why})")?,
        }
        let namespaces = self.namespaces();
        match namespaces[..] {
            [] => write!(formatter, "; no namespaces of their own")?,
            _ => write!(formatter, "; namespaces of their own: {}", namespaces.join(", "))?,
        }
        if let Some(missing) = &self.namespaces_missing {
            write!(formatter, " ({missing})")?;
        }
        match &self.cgroup {
            Ok(folder) => write!(formatter, "; a cgroup each in {folder}"),
            Err(why) => write!(formatter, "; no cgroups ({why})"),
        }
    }
}

/// The way with the most namespaces that is allowed. In a user namespace of its own, where QEMU is the server's user.
fn best_way(is_servers_user: bool) -> Way {
    let works = |flags| make(Way::Clone(flags)).is_ok();
    let most = namespace::most(is_servers_user, works);
    if most.is_empty() && make(Way::Clone(most)).is_err() { Way::Fork } else { Way::Clone(most) }
}

/// Makes a child that does nothing.
fn make(way: Way) -> io::Result<()> {
    #[allow(unsafe_code, reason = "it does nothing")]
    // SAFETY: as above.
    let (mut child, _) = unsafe { child::start(Beginning { way, group: None }, |_| {})? };
    child.wait_here().map(drop)
}

fn namespaces_missing(way: Way) -> Option<String> {
    let Way::Clone(flags) = way else { return Some("clone3 is not allowed".into()) };
    let missing = namespace::missing(flags);
    let all = flags | namespace::all(false);
    let error = (!missing.is_empty()).then(|| make(Way::Clone(all)).err())?;
    let error = error.map_or_else(String::new, |error| format!(": {error}"));
    Some(format!("no {} namespace{error}", missing.join(", ")))
}

/// Takes the steps of QEMU's process in a child, and kills it.
fn try_out(way: Way, belongings: &Belongings, server: &OwnedFd, oom_score: &str) -> Result<Degree, Reason> {
    let confinement = Confinement {
        descriptors: &[],
        user: belongings.user.as_ref().map(|user| user.id),
        group: None,
        file_bytes: 0,
        server: server.as_fd(),
        oom_score,
        // What they are depends on which QEMU it is; they need no right.
        landlock: None,
        filter: None,
    };
    let body = |voice: &Voice| match confine(&confinement) {
        Ok(degree) => {
            voice.say(degree.into());
            voice.end();
            // To be killed: that is tried, too.
            let _ = nix::poll::poll(&mut [], TRIAL_MS);
        }
        Err(refused) => voice.say(refused.into()),
    };
    let group = belongings.group.as_ref().map(|group| group.directory.as_fd());
    #[allow(unsafe_code, reason = "`confine` is made for it")]
    // SAFETY: `confine` and what follows it make system calls only.
    let started = unsafe { child::start(Beginning { way, group }, body) };
    let (mut child, word) = started.map_err(|error| format!("a process for QEMU: {error}"))?;
    let killed = child.kill();
    let _ = child.wait_here();
    let degree = match word {
        Some(word) => Degree::try_from(word).map_err(|refused| refused.to_string())?,
        None => return Err("a process that was tried out has said nothing".into()),
    };
    killed.map(|()| degree).map_err(|error| format!("killing QEMU: {error}"))
}

/// What a VM's score shall be, and how it is written.
fn oom_score() -> (i32, String) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    let own = own.and_then(|own| own.trim().parse::<i32>().ok()).unwrap_or(0);
    let score = own.saturating_add(OOM_SCORE_RAISED_BY).min(OOM_SCORE_MAX);
    (score, score.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_holds_for_who_looks_for_it() {
        let begun = std::time::Instant::now();
        let isolation = Isolation::find_out().unwrap();
        let facts = &isolation.facts;
        println!("{facts} ({:?})", begun.elapsed());
        let is_root = Uid::effective().is_root() && privileges::missing_for_another_user().is_empty();
        assert_eq!(matches!(facts.user, UserFact::OwnUid { .. }), isolation.is_another_user());
        // Whoever is not root has no right to another user, and hears of it.
        match &facts.user {
            UserFact::OwnUid { first, last } => assert!(is_root && first < last, "{facts}"),
            UserFact::Servers { why } => assert!(!why.is_empty(), "{facts}"),
        }
        let all = [facts.pid_namespace, facts.network_namespace, facts.ipc_namespace, facts.uts_namespace];
        assert_eq!(all.contains(&false), facts.namespaces_missing.is_some(), "{facts}");
        // Two have nothing in common.
        let (one, other) = (isolation.belongings(256).unwrap(), isolation.belongings(256).unwrap());
        let ids = [one, other].map(|belongings| belongings.user.map(|user| user.id));
        assert!(ids[0] != ids[1] || ids == [None, None], "{ids:?}");
    }

    #[test]
    fn a_trial_that_is_refused_says_where() {
        let isolation = Isolation::find_out().unwrap();
        // A process that has ended can have no VMs.
        #[allow(unsafe_code, reason = "it does nothing")]
        // SAFETY: as above.
        let (mut child, _) = unsafe { child::start(Beginning { way: Way::Fork, group: None }, |_| {}).unwrap() };
        let ended =
            pidfd_open(rustix::process::Pid::from_raw(child.id() as i32).unwrap(), PidfdFlags::empty()).unwrap();
        child.wait_here().unwrap();
        let tried = try_out(isolation.way, &Belongings::default(), &ended, "500");
        assert_eq!(tried, Err("tying its life to the server's: No such process (os error 3)".into()));
    }
}
