//! Who a VM's process is, what it can reach, and how it ends, for each kind of server: root, root without some rights or all,
//! an ordinary user, each where namespaces are allowed and where they are not.
//!
//! Root can be all of them. Whoever is not, and runs these tests, hears of the kinds that it cannot be, by a failure.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use sandbox_tests::skip::skip;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{DEADLINE, Server, command, execute_request};
use crate::lifecycle::{check_gone, start_sleeping};

/// A server that was started in some way, and what its VMs must be.
struct Kind {
    name: &'static str,
    /// What it is started by; the command follows.
    by: &'static [&'static str],
    /// Whether it is somebody else than who runs the test, and needs a cache of its own.
    is_other_user: bool,
    /// Whether only root can start one.
    needs_root: bool,
    expected: Expected,
}

#[derive(Default)]
struct Expected {
    /// Whether each VM is a user of its own.
    own_uid: bool,
    user_namespace: bool,
    /// A PID namespace, and the others.
    namespaces: bool,
}

const AS_USER: &[&str] = &["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"];

/// Root in a user namespace that allows no other, after which the command follows.
const ROOT_WITHOUT_USER_NAMESPACES: &[&str] =
    &["unshare", "-r", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"", "sh"];

/// The same as an ordinary user, in the end without any rights: a container that is allowed nothing.
const NOBODY_ANYWHERE: &[&str] = &[
    "setpriv",
    "--reuid",
    "1000",
    "--regid",
    "1000",
    "--clear-groups",
    "unshare",
    "-r",
    "sh",
    "-c",
    "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"",
    "sh",
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
];

/// What containers have by default: no right to make namespaces.
const CONTAINER: &[&str] = &[
    "setpriv",
    "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+mknod",
    "--inh-caps=-all",
];

const OWN_UID: Expected = Expected { own_uid: true, user_namespace: false, namespaces: true };
const USER_NAMESPACE: Expected = Expected { own_uid: false, user_namespace: true, namespaces: true };

const KINDS: [Kind; 8] = [
    Kind { name: "root", by: &[], is_other_user: false, needs_root: true, expected: OWN_UID },
    Kind {
        name: "root of a container",
        by: CONTAINER,
        is_other_user: false,
        needs_root: true,
        expected: Expected { own_uid: true, user_namespace: false, namespaces: false },
    },
    Kind {
        name: "root without capabilities",
        by: &["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
        is_other_user: false,
        needs_root: true,
        expected: USER_NAMESPACE,
    },
    Kind {
        name: "root that may change its user and kill no other",
        by: &["setpriv", "--bounding-set=-all,+setuid,+setgid", "--inh-caps=-all"],
        is_other_user: false,
        needs_root: true,
        expected: USER_NAMESPACE,
    },
    Kind {
        name: "root of a user namespace",
        by: &["unshare", "-r"],
        is_other_user: false,
        needs_root: false,
        expected: USER_NAMESPACE,
    },
    Kind {
        name: "root of a user namespace that allows no other",
        by: ROOT_WITHOUT_USER_NAMESPACES,
        is_other_user: false,
        needs_root: false,
        expected: Expected { own_uid: false, user_namespace: false, namespaces: true },
    },
    Kind { name: "an ordinary user", by: AS_USER, is_other_user: true, needs_root: true, expected: USER_NAMESPACE },
    Kind {
        name: "a user that is allowed nothing",
        by: NOBODY_ANYWHERE,
        is_other_user: true,
        needs_root: true,
        expected: Expected { own_uid: false, user_namespace: false, namespaces: false },
    },
];

/// The binary, beside an ordinary user's copy of the cache.
const PRODUCT: &str = "sandbox-mcp";

/// The tests' cache, or a copy that an ordinary user owns.
struct Cache {
    copy: Option<TempDir>,
}

impl Cache {
    fn of(kind: &Kind) -> Cache {
        if !kind.is_other_user {
            return Cache { copy: None };
        }
        let copy = TempDir::with_prefix_in("privileges-", "/tmp").unwrap();
        let images = users_cache().join("images");
        // The links keep what they mean: the image, and no lock of somebody else's.
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&images).arg(copy.path()));
        // So is the product: where it was built may be its builder's alone.
        fs::copy(command().get_program(), copy.path().join(PRODUCT)).unwrap();
        run(Command::new("chown").args(["-R", "1000:1000"]).arg(copy.path()));
        Cache { copy: Some(copy) }
    }

    fn program(&self) -> PathBuf {
        self.copy.as_ref().map_or_else(|| command().get_program().into(), |copy| copy.path().join(PRODUCT))
    }

    fn arguments(&self) -> Vec<String> {
        match &self.copy {
            // A template of its own would take the longest of all.
            Some(copy) => vec!["--cache-dir".into(), copy.path().display().to_string(), "--no-templates".into()],
            None => Vec::new(),
        }
    }
}

fn users_cache() -> PathBuf {
    let in_home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let users = || std::env::var_os("XDG_CACHE_HOME").map_or_else(in_home, PathBuf::from).join("sandbox-mcp");
    std::env::var_os("SANDBOX_MCP_CACHE_DIR").map_or_else(users, PathBuf::from)
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// The command of the harness, by way of others.
fn started_by(by: &[&str], cache: &Cache) -> Command {
    let words = by.iter().map(OsString::from).chain([cache.program().into()]);
    let mut words = words.chain(cache.arguments().into_iter().map(OsString::from));
    let mut started = Command::new(words.next().unwrap());
    started.args(words);
    for (name, value) in command().get_envs() {
        match value {
            Some(value) => started.env(name, value),
            None => started.env_remove(name),
        };
    }
    started
}

/// A field of a process's status.
fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_string()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn uid(pid: u32) -> u32 {
    let uids = field(pid, "Uid:");
    let mut uids = uids.split_whitespace().map(|uid| uid.parse::<u32>().unwrap());
    let uid = uids.next().unwrap();
    assert!(uids.all(|other| other == uid), "a user to go back to: {}", field(pid, "Uid:"));
    uid
}

/// What every VM's process has given up, and what depends on the kind.
#[track_caller]
fn check_process(pid: u32, server: u32, expected: &Expected) {
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!((field(pid, "NoNewPrivs:"), field(pid, "Seccomp:")), ("1".into(), "2".into()));
    let is_own = uid(pid) != uid(server);
    assert_eq!(is_own, expected.own_uid, "{} of a server that is {}", uid(pid), uid(server));
    if expected.own_uid {
        assert!(uid(pid) >= 61184 && uid(pid) != 65534, "{}", uid(pid));
        let groups = (field(pid, "Gid:"), field(pid, "Groups:"));
        assert!(groups.0.starts_with(&uid(pid).to_string()), "{groups:?}");
        assert!(!groups.1.split_whitespace().any(|group| group == "0"), "{groups:?}");
    }
    assert_eq!(namespace(pid, "user") != namespace(server, "user"), expected.user_namespace);
    for kind in ["pid", "net", "ipc", "uts"] {
        assert_eq!(namespace(pid, kind) != namespace(server, kind), expected.namespaces, "{kind}");
    }
    if expected.namespaces {
        assert_eq!(field(pid, "NSpid:").split_whitespace().last(), Some("1"), "it knows no other process");
    }
    assert_ne!(field(pid, "NSsid:"), field(server, "NSsid:"), "a terminal's signals are not for it");
    let score =
        |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse::<i32>().unwrap();
    assert_eq!(score(pid), (score(server) + 500).min(1000));
}

/// One program that prints, then one that sleeps while the server is killed.
fn check(kind: &Kind) {
    let cache = Cache::of(kind);
    let mut server = Server::start_as(&mut started_by(kind.by, &cache));
    server.send(&execute_request(1, json!({"language": "python", "code": "print(6 * 7)"})));
    let answer = server.receive();
    assert_eq!(answer["result"]["structuredContent"]["stdout"], "42\n", "{}: {answer}", kind.name);
    server.wait_for_machines(0, DEADLINE);
    start_sleeping(&mut server, 2);
    let machines = server.virtual_machines();
    assert_eq!(machines.len(), 1, "{}", kind.name);
    check_process(machines[0], server.child.id(), &kind.expected);
    kill(Pid::from_raw(server.child.id() as i32), Signal::SIGKILL).unwrap();
    server.wait();
    check_gone(&machines, Duration::from_secs(10));
}

#[test]
fn every_kind_of_server_runs_programs_and_leaves_no_vm_when_it_is_killed() {
    let (possible, others): (Vec<&Kind>, Vec<&Kind>) =
        KINDS.iter().partition(|kind| Uid::effective().is_root() || !kind.needs_root);
    for kind in possible {
        println!("{}", kind.name);
        check(kind);
    }
    let names: Vec<&str> = others.iter().map(|kind| kind.name).collect();
    if !names.is_empty() {
        skip(&format!("only root can be: {}", names.join("; ")));
    }
}

#[test]
fn vms_are_strangers_to_one_another() {
    let mut server = Server::initialized();
    for id in 1..=2 {
        start_sleeping(&mut server, id);
    }
    let machines = server.virtual_machines();
    let [one, other] = machines[..] else { panic!("{machines:?}") };
    // By another user, or by a user namespace: either forbids to look into the other, and into the server.
    let kinds = ["user", "pid", "net", "ipc"];
    let strange = |pid: u32| (uid(pid), namespace(pid, "user"));
    assert_ne!(strange(one), strange(other));
    assert_ne!(strange(one), strange(server.child.id()));
    for kind in &kinds[1..] {
        assert_ne!(namespace(one, kind), namespace(other, kind), "{kind}");
    }
    // What they share, neither can write to.
    let inodes = |pid: u32| {
        descriptors(pid).into_iter().filter(|held| held.is_shared()).map(|held| held.inode).collect::<Vec<_>>()
    };
    let others = inodes(other);
    for held in descriptors(one).into_iter().filter(|held| others.contains(&held.inode)) {
        assert!(held.is_read_only(uid(one)), "{held:?} is the other's too");
    }
}

/// What a process holds by one of its descriptors.
#[derive(Debug)]
struct Held {
    number: String,
    target: String,
    inode: (u64, u64),
    owner: u32,
    mode: u32,
    flags: OFlag,
    seals: Option<SealFlag>,
}

fn descriptors(pid: u32) -> Vec<Held> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    fs::read_dir(&folder).unwrap().flatten().map(|entry| held(pid, &entry.path())).collect()
}

fn held(pid: u32, path: &Path) -> Held {
    let number = path.file_name().unwrap().to_str().unwrap().to_owned();
    let metadata = fs::metadata(path).unwrap();
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    Held {
        target: fs::read_link(path).unwrap().to_string_lossy().into_owned(),
        inode: (metadata.dev(), metadata.ino()),
        owner: metadata.uid(),
        mode: metadata.mode(),
        flags: OFlag::from_bits_truncate(i32::from_str_radix(flags, 8).unwrap()),
        seals: metadata.is_file().then(|| seals(path)).flatten(),
        number,
    }
}

fn seals(path: &Path) -> Option<SealFlag> {
    let file = fs::File::open(path).unwrap();
    fcntl(&file, FcntlArg::F_GET_SEALS).ok().map(SealFlag::from_bits_truncate)
}

impl Held {
    /// A file: what has a name, or is in memory. All else is of the process that made it.
    fn is_shared(&self) -> bool {
        self.target.starts_with('/') && self.target != "/dev/null"
    }

    /// Whether who has this descriptor, and is `user`, can change what is behind it in no way: not by opening it once more either.
    fn is_read_only(&self, user: u32) -> bool {
        let is_sealed = self.seals.is_some_and(|seals| {
            seals.contains(
                SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL,
            )
        });
        let may_open = self.owner == user || self.mode & 0o002 != 0;
        is_sealed || (self.flags & OFlag::O_ACCMODE == OFlag::O_RDONLY && !may_open)
    }
}

/// A VM from each place, with its descriptors.
#[test]
fn a_vm_can_write_to_nothing_but_its_own() {
    let sleep = |server: &mut Server| {
        start_sleeping(server, 1);
        server.virtual_machines()
    };
    for (from, arguments) in [
        ("pool", &["--warm-pool-size", "1"][..]),
        ("template", &["--warm-pool-size", "0"]),
        ("boot", &["--warm-pool-size", "0", "--no-templates"]),
    ] {
        let mut server = Server::start_as(command().args(arguments));
        let machines = match from {
            "pool" => {
                server.wait_for_pool(1);
                server.virtual_machines()
            }
            _ => sleep(&mut server),
        };
        let [machine] = machines[..] else { panic!("{from}: {machines:?}") };
        let user = uid(machine);
        let all = descriptors(machine);
        assert!(all.len() >= 7, "{from}: {all:?}");
        for held in all.iter().filter(|held| held.is_shared()) {
            let is_written = held.flags & OFlag::O_ACCMODE != OFlag::O_RDONLY;
            assert!(
                !is_written || held.seals.is_some_and(|seals| seals.contains(SealFlag::F_SEAL_WRITE)),
                "{from}: {held:?}"
            );
            // The server's own user can open a file of its own once more: that is for another layer to forbid.
            if user != uid(server.child.id()) {
                assert!(held.is_read_only(user), "{from}: {held:?}");
            }
        }
        let slot = all.iter().find(|held| held.number == "9").expect("every VM has a slot");
        assert!(slot.target.starts_with("/memfd:") && slot.is_read_only(user), "{from}: {slot:?}");
        for own in all.iter().filter(|held| !held.is_shared()) {
            let kinds = ["socket:", "pipe:", "anon_inode:", "/dev/null"];
            assert!(kinds.iter().any(|kind| own.target.starts_with(kind)), "{from}: {own:?}");
        }
    }
}
