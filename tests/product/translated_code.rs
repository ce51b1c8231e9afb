//! Translated code that VMs leave to their clones, as our own QEMU writes and reads it (`images/qemu/code-cache.patch`): it has
//! no address in it, it is for one guest processor, and a file that says what cannot be does less and no harm.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_schemas::language::Language;
use sandbox_schemas::limits::LAYER_SLOT_BYTES;
use sandbox_schemas::wire::{self, Hello, HostFrame, PROTOCOL_VERSION, Role};
use sandbox_store::for_each_run;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::harness::{DEADLINE, Server, execute_request, new_cache, request};
use crate::own_qemu::{own, own_in, template};

const PAGE: usize = 4096;
const NONE: u32 = u32::MAX;
/// What a jump's offset is that is not there.
const NO_JUMP: u16 = 0xffff;
/// Of QEMU's structure of a translation block, in bytes.
const TB_BYTES: i64 = 152;

/// A file, as code-cache.c lays it out.
#[derive(Clone)]
struct Code(Vec<u8>);

/// What a header has, by its place. Their order is that of the file, and so is that of [`block`]'s.
mod header {
    pub const MAGIC: usize = 0;
    pub const BUILD: usize = 16;
    pub const CPUINFO: usize = 36;
    pub const GUEST_CPU: usize = 40;
    pub const PROLOGUE_BYTES: usize = 72;
    pub const BLOCKS: usize = 76;
    pub const TBS: usize = 80;
    pub const BUCKETS: usize = 84;
    pub const MADE_OF_BYTES: usize = 88;
    pub const CODE_BYTES: usize = 96;
}

/// What a block has.
mod block {
    pub const PHYS_PC: usize = 0;
    pub const PHYS_PAGE1: usize = 8;
    pub const CODE_SIZE: usize = 32;
    pub const BYTES: usize = 36;
    pub const NEXT: usize = 40;
    pub const JUMP_TO: usize = 44;
    pub const SIZE: usize = 52;
    pub const ICOUNT: usize = 54;
    pub const JMP_RESET: usize = 56;
    pub const JMP_INSN: usize = 60;
    pub const CHECKSUM: usize = 64;
    pub const LENGTH: usize = 72;
}

impl Code {
    fn read(path: &Path) -> Code {
        let code = Code(fs::read(path).unwrap());
        assert_eq!(&code.0[..16], b"sandbox code 2\n\0", "the layout is another: see code-cache.c");
        assert_eq!(code.code() + code.u64(header::CODE_BYTES) as usize, code.0.len());
        code
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn blocks(&self) -> usize {
        self.u32(header::BLOCKS) as usize
    }

    fn block(&self, index: usize) -> usize {
        PAGE + index * block::LENGTH
    }

    /// Of a block's place: its code, then its structure.
    fn place(&self, index: usize) -> usize {
        self.block(self.blocks()) + index * 8
    }

    fn buckets(&self) -> usize {
        self.place(self.blocks())
    }

    fn made_of(&self) -> usize {
        self.buckets() + self.u32(header::BUCKETS) as usize * 4
    }

    fn code(&self) -> usize {
        (self.made_of() + self.u64(header::MADE_OF_BYTES) as usize).next_multiple_of(PAGE)
    }

    /// Where a block's code is in the buffer, and where at most what belongs to it ends.
    fn room(&self, index: usize) -> (usize, usize) {
        let end = if index + 1 < self.blocks() {
            self.u32(self.place(index + 1)).into()
        } else {
            self.u64(header::CODE_BYTES)
        };
        (self.u32(self.place(index)) as usize, end as usize)
    }

    /// What a block's code was made of, and the conditions for it.
    fn key(&self, index: usize) -> (&[u8], &[u8]) {
        let at = self.block(index);
        let bytes = self.made_of() + self.u32(at + block::BYTES) as usize;
        (&self.0[at..at + block::CODE_SIZE], &self.0[bytes..bytes + usize::from(self.u16(at + block::SIZE))])
    }

    fn code_of(&self, index: usize) -> &[u8] {
        let at = self.code() + self.room(index).0;
        &self.0[at..at + self.u32(self.block(index) + block::CODE_SIZE) as usize]
    }

    /// Has a block be what its checksum says: as a QEMU would write it that is wrong.
    fn seal(&mut self, index: usize) {
        let (at, place) = (self.block(index), self.place(index));
        let mut sum = (u64::from(self.u32(place)) << 32) | u64::from(self.u32(place + 4));
        for word in (0..block::CHECKSUM).step_by(8) {
            sum = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.u64(at + word);
        }
        self.put(at + block::CHECKSUM, &sum.to_le_bytes());
    }
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// QEMU by itself, as the product starts it for a VM that boots, but with a monitor, and without a wire.
struct Bench {
    qemu: PathBuf,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Bench {
    fn new() -> Option<Bench> {
        let mut command = own()?;
        let mut server = Server::start_as(command.arg("--no-templates"));
        let program = json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300});
        let params = json!({"name": "execute_code", "arguments": program, "_meta": {"progressToken": 1}});
        server.send(&request(1, "tools/call", params));
        assert_eq!(server.receive()["params"]["progressToken"], 1);
        let machine = server.virtual_machines()[0];
        let line = fs::read_to_string(format!("/proc/{machine}/cmdline")).unwrap();

        let status = crate::harness::command().args(["image", "status"]).output().unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        let file = |component: &str| {
            let line = status.lines().find(|line| line.starts_with(component)).expect("every component is listed");
            line.split("  ").last().unwrap().trim().to_owned()
        };
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("slot");
        File::create(&slot).unwrap().set_len(LAYER_SLOT_BYTES).unwrap();
        let files = [(4, file("kernel")), (5, file("agent")), (6, file("root")), (9, slot.display().to_string())];
        let mut arguments: Vec<String> = line.trim_end_matches('\0').split('\0').skip(1).map(str::to_owned).collect();
        for argument in &mut arguments {
            for (fd, path) in &files {
                // At the end, or before a comma.
                let (name, path) = (format!("/proc/self/fd/{fd}"), path.as_str());
                *argument = argument.replace(&format!("{name},"), &format!("{path},"));
                *argument = argument.strip_suffix(&name).map_or(argument.clone(), |rest| format!("{rest}{path}"));
            }
            let wire = format!("socket,id=wire,path={}", folder.path().join("wire").display());
            *argument = argument.replace("socket,id=wire,fd=3", &wire);
        }
        let monitor = ["-chardev", "stdio,id=monitor,signal=off", "-mon", "chardev=monitor,mode=control"];
        arguments.extend(monitor.map(str::to_owned));
        Some(Bench { qemu: file("qemu").into(), arguments, folder })
    }

    /// With more to the values of options; and what the VM's agent connects to.
    fn command(&self, more: &[(&str, &str)]) -> (Command, UnixListener) {
        let wire = self.folder.path().join("wire");
        let _ = fs::remove_file(&wire);
        let listener = UnixListener::bind(wire).unwrap();
        let mut arguments = self.arguments.clone();
        for (option, text) in more {
            let at = arguments.iter().position(|argument| argument == option).expect("it is there");
            arguments[at + 1].push_str(text);
        }
        let mut command = Command::new(&self.qemu);
        command.args(arguments);
        (command, listener)
    }

    /// What a VM has translated that boots, and where it was loaded.
    fn save(&self, name: &str) -> (PathBuf, String) {
        let path = self.folder.path().join(name);
        File::create(&path).unwrap().set_len(512 << 20).unwrap();
        let (mut command, listener) = self.command(&[("-accel", &format!(",code-save={}", path.display()))]);
        let mut machine = Server::start_as(&mut command);
        let (mut agent, _) = listener.accept().unwrap();
        agent.set_read_timeout(Some(DEADLINE)).unwrap();
        agent.write_all(&wire::encode(&HostFrame::Hello(hello())).unwrap()).unwrap();
        // It answers once its interpreters are warm.
        agent.read_exact(&mut [0]).expect("the VM boots");
        let maps = fs::read_to_string(format!("/proc/{}/maps", machine.child.id())).unwrap();
        let state = self.folder.path().join("state");
        machine.send(&json!({"execute": "qmp_capabilities"}));
        let capability = json!({"capability": "events", "state": true});
        machine.send(&json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": [capability]}}));
        machine.send(&json!({"execute": "migrate", "arguments": {"uri": format!("file:{}", state.display())}}));
        loop {
            let message = machine.receive();
            assert!(message["error"].is_null() && message["data"]["status"] != "failed", "{message}");
            if message["data"]["status"] == "completed" {
                break;
            }
        }
        let own = maps.lines().find(|line| line.contains("r-xp") && line.contains("qemu")).expect("its code is mapped");
        (path, own.split('-').next().unwrap().to_owned())
    }

    /// What QEMU says of this file, if anything, and that it says it and is there then. Like every VM it is killed: told to quit, one of some
    /// thousand was seen to end by SIGSEGV instead.
    #[track_caller]
    fn words_on(&self, path: &Path, cpu: &str) -> String {
        let load = format!(",code-load={}", path.display());
        let (mut command, _listener) = self.command(&[("-accel", &load), ("-cpu", cpu)]);
        let mut machine = Server::start_as(command.arg("-S").stderr(Stdio::piped()));
        assert!(machine.receive()["QMP"].is_object());
        machine.send(&json!({"execute": "qmp_capabilities"}));
        assert_eq!(machine.receive(), json!({"return": {}}));
        machine.child.kill().unwrap();
        machine.wait();
        let mut words = String::new();
        machine.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        words
    }
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        realtime_ns: 0,
        entropy: [0; 32],
        vm_id: "0".repeat(32),
        warm: vec![Language::Python],
        role: Role::Runs,
        parts: 0,
    }
}

/// What of one block's code in `one` is another in `other` that is not what it has to be: displacements to what is at another
/// distance, because the block or its structure is. Jumps to other blocks depend on which there were, and are passed over.
fn unexplained(one: (&Code, usize), other: (&Code, usize)) -> Option<String> {
    let (ours, theirs) = (one.0.code_of(one.1), other.0.code_of(other.1));
    if ours.len() != theirs.len() {
        return Some(format!("{} and {} bytes", ours.len(), theirs.len()));
    }
    let place = |(code, index): (&Code, usize)| {
        (i64::from(code.u32(code.place(index))), i64::from(code.u32(code.place(index) + 4)))
    };
    let ((code, tb), (other_code, other_tb)) = (place(one), place(other));
    let moved = other_code - code;
    let allowed = [moved, moved + (tb - other_tb) * TB_BYTES];
    let at = one.0.block(one.1);
    let is_jump = |byte: usize| {
        (0..2).any(|n| {
            let jump = one.0.u16(at + block::JMP_INSN + 2 * n);
            one.0.u16(at + block::JMP_RESET + 2 * n) != NO_JUMP
                && (usize::from(jump)..usize::from(jump) + 4).contains(&byte)
        })
    };
    let mut byte = 0;
    while byte < ours.len() {
        if ours[byte] == theirs[byte] || is_jump(byte) {
            byte += 1;
            continue;
        }
        let value = |code: &[u8], from: usize| {
            code.get(from..from + 4).map(|word| i32::from_le_bytes(word.try_into().unwrap()).into())
        };
        let is_explained = |from: &usize| {
            let differs_by = |one: i64, other: i64| allowed.contains(&(one - other));
            value(ours, *from).zip(value(theirs, *from)).is_some_and(|(one, other)| differs_by(one, other))
        };
        match (byte.saturating_sub(3)..=byte).find(is_explained) {
            Some(from) => byte = from + 4,
            None => return Some(format!("byte {byte} of {ours:02x?} and {theirs:02x?}, moved by {moved}")),
        }
    }
    None
}

#[test]
fn translated_code_has_no_address_in_it() {
    let Some(bench) = Bench::new() else { return };
    let ((one, here), (other, there)) = (bench.save("one"), bench.save("other"));
    assert_ne!(here, there, "addresses are random on this host");
    let (one, other) = (Code::read(&one), Code::read(&other));
    let known: HashMap<_, _> = (0..other.blocks()).map(|index| (other.key(index), index)).collect();
    let pairs = (0..one.blocks()).filter_map(|index| Some((index, *known.get(&one.key(index))?)));
    let pairs: Vec<(usize, usize)> = pairs.collect();
    assert!(pairs.len() > 5000, "{} of {} and {}", pairs.len(), one.blocks(), other.blocks());
    for &(index, same) in &pairs {
        let found = unexplained((&one, index), (&other, same));
        assert!(found.is_none(), "block {index} of {:02x?}: {found:?}", one.key(index).1);
    }

    // An address would have been found: this is one of where each was loaded.
    let address = |text: &str| u64::from_str_radix(text, 16).unwrap() + 0x1234;
    let (index, same) = *pairs.iter().find(|pair| one.code_of(pair.0).len() > 40).unwrap();
    let with = |mut code: Code, index: usize, base: &str| {
        let at = code.code() + code.room(index).0 + 20;
        code.put(at, &address(base).to_le_bytes());
        code
    };
    let (one, other) = (with(one, index, &here), with(other, same, &there));
    assert!(unexplained((&one, index), (&other, same)).is_some());
}

#[test]
fn code_for_another_guest_or_that_cannot_be_is_not_used() {
    let Some(bench) = Bench::new() else { return };
    let (path, _) = bench.save("code");
    assert_eq!(bench.words_on(&path, ""), "");
    for cpu in [",-avx2", ",-cmov", ",-sse4.2", ",level=7", ",family=6", ",phys-bits=39", ",vendor=GenuineIntel"] {
        let words = bench.words_on(&path, cpu);
        assert!(words.contains("is of a guest with another processor"), "{cpu}: {words}");
    }

    let good = Code::read(&path);
    let refused = |what: &str, code: &[u8], reason: &str| {
        fs::write(&path, code).unwrap();
        let words = bench.words_on(&path, "");
        assert!(words.contains("translated code is not used") && words.contains(reason), "{what}: {words}");
    };
    for (what, at, reason) in [
        ("its kind", header::MAGIC, "not of this kind"),
        ("its build", header::BUILD + 3, "another build"),
        ("the host's processor", header::CPUINFO, "of another processor"),
        ("the guest's processor", header::GUEST_CPU + 31, "another processor"),
        ("the prologue", header::PROLOGUE_BYTES, "begins otherwise"),
        ("how many blocks", header::BLOCKS, "not"),
        ("how many buckets", header::BUCKETS, "not fit"),
        ("what all is made of", header::MADE_OF_BYTES + 2, "not fit"),
        ("how much is more than 4 GiB", header::MADE_OF_BYTES + 4, "not fit"),
        ("how much code", header::CODE_BYTES, "not fit"),
        ("how much code, in pages", header::CODE_BYTES + 2, "not fit"),
        ("how much code is more than 4 GiB", header::CODE_BYTES + 6, "not fit"),
        ("the prologue's code", good.code() + 5, "begins otherwise"),
    ] {
        for bits in [1, 0x80, 0xff] {
            let mut code = good.clone();
            code.0[at] ^= bits;
            refused(what, &code.0, reason);
        }
    }
    for value in [0, 1, NONE, NONE - 1, 1 << 31, (1 << 19) + 1] {
        for at in [header::BLOCKS, header::BUCKETS, header::PROLOGUE_BYTES, header::TBS] {
            let mut code = good.clone();
            code.put(at, &value.to_le_bytes());
            refused(&format!("{value} at {at}"), &code.0, "");
        }
    }
    for length in [0, 1, 100, PAGE, good.code(), good.0.len() - PAGE, good.0.len() - 1] {
        refused("what is cut", &good.0[..length], "");
    }
    refused("what is longer", &[&good.0[..], &[0; PAGE]].concat(), "not fit");

    let mut random = Random(7);
    for _ in 0..8 {
        let (index, mut code) = (1 + random.below(good.blocks() - 1), good.clone());
        let at = good.place(index) + random.pick(&[0, 4]);
        code.put(at, &random.pick(&[0, good.u32(at - 8), good.u32(at) ^ (1 << 30), NONE]).to_le_bytes());
        refused("a place", &code.0, "not in order");
    }
    fs::write(&path, &good.0).unwrap();
    assert_eq!(bench.words_on(&path, ""), "");
}

type Damage = fn(&mut Code, &mut Random);

/// What is done to a file. All that is said of single blocks is found when the block would be used.
const DAMAGES: [(&str, Damage); 8] = [
    ("a bit of every other block", |code, random| {
        for index in 0..code.blocks() {
            if random.below(2) == 0 {
                let at = code.block(index) + random.below(block::LENGTH);
                code.0[at] ^= 1 << random.below(8);
            }
        }
    }),
    ("noise instead of half of the blocks", |code, random| {
        for index in 0..code.blocks() {
            for word in (0..block::LENGTH / 8).filter(|_| index % 2 == 0) {
                let value = random.pick(&[0, u64::MAX, 1 << 63, 4096]) ^ (random.next() & random.next());
                code.put(code.block(index) + word * 8, &value.to_le_bytes());
            }
        }
    }),
    ("code that is a little elsewhere", |code, random| {
        for index in 0..code.blocks() {
            let (start, end) = code.room(index);
            if random.below(4) == 0 && start + 32 < end {
                code.put(code.place(index), &(start as u32 + 16).to_le_bytes());
            }
        }
    }),
    ("other buckets", |code, random| {
        for at in (code.buckets()..code.made_of()).step_by(4) {
            let blocks = code.blocks();
            if random.below(2) == 0 {
                let values = [random.below(blocks) as u32, random.next() as u32];
                let value = random.pick(&values);
                code.put(at, &value.to_le_bytes());
            }
        }
    }),
    ("chains that go round or out", |code, random| {
        for index in 0..code.blocks() {
            if random.below(2) == 0 {
                let other = random.below(code.blocks()) as u32;
                let next = random.pick(&[index as u32, index as u32 + 1, other, NONE - 1, 1 << 31]);
                code.put(code.block(index) + block::NEXT, &next.to_le_bytes());
                code.seal(index);
            }
        }
    }),
    ("what cannot be, in half of the blocks", |code, random| {
        for index in 0..code.blocks() {
            if random.below(2) == 0 {
                make_impossible(code, random, index);
                code.seal(index);
            }
        }
    }),
    ("what unwinds without an end", |code, random| {
        for index in 0..code.blocks() {
            let (start, end) = code.room(index);
            let from = start + code.u32(code.block(index) + block::CODE_SIZE) as usize;
            if random.below(2) == 0 {
                let base = code.code();
                code.0[base + from..base + end].fill(random.pick(&[0x80, 0xff]));
            }
        }
    }),
    ("other guests' bytes", |code, random| {
        for at in code.made_of()..code.code() {
            if random.below(16) == 0 {
                code.0[at] ^= 1 << random.below(8);
            }
        }
    }),
];

/// Makes one field of a block what it cannot be.
fn make_impossible(code: &mut Code, random: &mut Random, index: usize) {
    let at = code.block(index);
    let (start, end) = code.room(index);
    let (code_size, size) = (code.u32(at + block::CODE_SIZE), u32::from(code.u16(at + block::SIZE)));
    let n = random.below(2);
    match random.below(9) {
        0 => {
            let last = code.u64(header::MADE_OF_BYTES) as u32 - size;
            code.put(at + block::BYTES, &random.pick(&[last + 1, NONE, 1 << 31]).to_le_bytes());
        }
        1 => {
            let room = (end - start) as u32;
            code.put(at + block::CODE_SIZE, &random.pick(&[0, room + 1, NONE, 1 << 31]).to_le_bytes());
        }
        2 => code.put(at + block::SIZE, &random.pick(&[0, 4097, u16::MAX]).to_le_bytes()),
        3 => code.put(at + block::ICOUNT, &random.pick(&[0, 513, u16::MAX]).to_le_bytes()),
        4 => {
            // A jump that is taken back to behind the code.
            code.put(at + block::JMP_RESET + 2 * n, &random.pick(&[code_size as u16 + 1, 0xfffe]).to_le_bytes());
        }
        5 => {
            code.put(at + block::JMP_RESET + 2 * n, &[0, 0]);
            let insn = random.pick(&[code_size as u16 - 3, code_size as u16, 0xfffc, 1]);
            code.put(at + block::JMP_INSN + 2 * n, &insn.to_le_bytes());
        }
        6 => {
            code.put(at + block::JMP_RESET + 2 * n, &NO_JUMP.to_le_bytes());
            code.put(at + block::JUMP_TO + 4 * n, &(index as u32).to_le_bytes());
        }
        7 => {
            let blocks = code.blocks() as u32;
            code.put(at + block::JUMP_TO + 4 * n, &random.pick(&[blocks, NONE - 1, 1 << 31]).to_le_bytes());
        }
        _ => {
            // To another page, which a jump never leads to.
            let other = random.below(code.blocks());
            let page = |index: usize| code.u64(code.block(index) + block::PHYS_PC) / PAGE as u64;
            if page(other) != page(index) || code.u64(code.block(other) + block::PHYS_PAGE1) != u64::MAX {
                code.put(at + block::JUMP_TO + 4 * n, &(other as u32).to_le_bytes());
            }
        }
    }
}

/// Has an entry's manifest be of its code as that is now.
fn vouch_for(entry: &Path) {
    let file = File::open(entry.join("code")).unwrap();
    let (mut hasher, mut data_bytes) = (Sha256::new(), 0);
    for_each_run(&file, |start, run| {
        for (index, page) in run.chunks(PAGE).enumerate() {
            hasher.update((start + (index * PAGE) as u64).to_le_bytes());
            hasher.update(page);
        }
        data_bytes += run.len();
        Ok(())
    })
    .unwrap();
    let path = entry.join("manifest.json");
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let sha256: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let size_bytes = file.metadata().unwrap().len();
    manifest["code"] = json!({"size_bytes": size_bytes, "data_bytes": data_bytes, "sha256": sha256});
    fs::write(&path, manifest.to_string()).unwrap();
}

/// Beyond the hash that an entry's files have: as if it had been written like this.
#[test]
fn code_of_which_something_is_damaged_runs_right_or_not_at_all() {
    let cache = new_cache();
    let Some(entry) = template(cache.path()) else { return };
    let path = entry.join("code");
    let good = Code::read(&path);
    // More of them by hand: TEST_ROUNDS=30.
    let rounds = std::env::var("TEST_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let none: (&str, Damage) = ("nothing", |_, _| ());
    for round in 1..=rounds {
        for (what, damage) in [none].into_iter().chain(DAMAGES) {
            let mut code = good.clone();
            damage(&mut code, &mut Random(round * 0x9e37_79b9));
            fs::write(&path, &code.0).unwrap();
            vouch_for(&entry);
            let mut server = Server::start_as(&mut own_in(cache.path()).unwrap());
            for (language, program) in [
                ("python", "import json, re, sqlite3; print(json.dumps(len(re.findall('b+', 'abba')) * 42))"),
                ("javascript", "console.log(await Promise.resolve(6 * 7))"),
                ("shell", "for i in 6 7; do echo $i | cat; done | tr -d '\\n' | sed s/67/42/; echo"),
            ] {
                server.send(&execute_request(1, json!({"language": language, "code": program})));
                let answer = server.receive();
                let outcome = &answer["result"]["structuredContent"];
                let found = (&outcome["stdout"], &outcome["exit_code"], &outcome["template_hit"]);
                assert_eq!(found, (&json!("42\n"), &json!(0), &json!(true)), "{what}, round {round}: {answer}");
            }
            drop(server);
            assert!(fs::read(&path).unwrap() == code.0, "{what}, round {round}: it was built anew");
        }
    }
}
