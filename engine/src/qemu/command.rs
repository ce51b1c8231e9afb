//! QEMU's command line, as a pure function of what is to be launched.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::limits::TCG_CODE_BUFFER_MB;

use crate::qemu::version::Version;

/// KVM's device.
pub(crate) const KVM_DEVICE: &str = "/dev/kvm";

/// From this version on, QEMU maps a file privately that it has opened for reading alone. Before, it wants one that it may
/// write to, and must not be trusted not to.
pub(crate) const OPENS_RAM_READ_ONLY: Version = Version { major: 8, minor: 2 };

/// The guest's wire, as QEMU sees it. The numbers are ours to choose: nothing else is open in QEMU.
pub(crate) const WIRE_FD: RawFd = 3;
/// The kernel.
pub(crate) const KERNEL_FD: RawFd = 4;
/// The initial RAM file system, which is the agent.
pub(crate) const INITRD_FD: RawFd = 5;
/// The root image.
pub(crate) const ROOT_FD: RawFd = 6;

/// The memory, where it is a file.
pub(crate) const RAM_FD: RawFd = 7;
/// The monitor, where there is one.
pub(crate) const MONITOR_FD: RawFd = 8;
/// What the monitor calls the slot for packages, in which another disk can be put.
pub(crate) const SLOT_NODE: &str = "slot-disk";

/// The disk in that slot.
pub(crate) const SLOT_FD: RawFd = 9;
/// QEMU itself.
pub(crate) const BINARY_FD: RawFd = 10;
/// Translated code to begin with.
pub(crate) const CODE_FD: RawFd = 11;
/// Where translated code is saved.
pub(crate) const SAVED_CODE_FD: RawFd = 12;

/// What is to be launched.
#[derive(Debug, Clone)]
pub(crate) struct LaunchSpec {
    pub(crate) accelerator: Accelerator,
    /// Memory of the VM, in MiB.
    pub(crate) memory_mb: u64,
    /// What it starts with in its memory.
    pub(crate) start: Start,
    /// Frequency of the host's time stamp counter, in kHz.
    pub(crate) tsc_khz: u64,
    pub(crate) image: BootImage,
    /// The disk for packages.
    pub(crate) slot: Slot,
    /// Code that need not be translated. Only for a QEMU that [keeps code](crate::qemu::Qemu::keeps_code).
    pub(crate) code: Code,
}

impl LaunchSpec {
    /// How long a boot may take. It takes 3-6 s under TCG on two idle cores, well under 1 s on hardware; a machine that is busy
    /// with other things must not make it fail.
    pub(crate) fn boot_deadline(&self) -> Duration {
        match self.accelerator {
            Accelerator::Kvm => Duration::from_secs(20),
            Accelerator::Tcg => Duration::from_secs(120),
        }
    }
}

/// Guest code that QEMU has translated, in files of its own make. A guest does the same without them, later.
#[derive(Debug, Clone, Default)]
pub(crate) struct Code {
    /// What is there already; as dangerous as QEMU itself, which executes it.
    pub(crate) load: Option<Arc<OwnedFd>>,
    /// An empty file with room, for what there is when the VM is saved.
    pub(crate) save: Option<Arc<OwnedFd>>,
}

/// The second disk, which every VM has: a clone has the devices of its template, and what is in the slot may differ.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    /// A file of [`LAYER_SLOT_BYTES`](sandbox_schemas::limits::LAYER_SLOT_BYTES); `None` for one with nothing in it.
    pub(crate) file: Option<Arc<OwnedFd>>,
    /// Whether the VM is there to write it. All others only read.
    pub(crate) is_writable: bool,
}

/// The difference between a VM that boots and one that is restored, as data.
#[derive(Debug, Clone)]
pub(crate) enum Start {
    /// It boots, in memory that is gone with it.
    Boot,
    /// It boots, in memory that stays: a template in the making.
    BootIn(Arc<OwnedFd>),
    /// It continues where a template was saved, with whose memory it begins; what it writes is its own.
    Restore {
        /// The memory, read-only by its opening or by a seal.
        ram: Arc<OwnedFd>,
        /// The state of the devices.
        state: Arc<[u8]>,
    },
    /// It continues likewise, in memory that stays: a template that is made of another.
    RestoreIn {
        /// A copy of the memory.
        ram: Arc<OwnedFd>,
        /// The state of the devices.
        state: Arc<[u8]>,
    },
}

/// No PCI, no ACPI, no BIOS, no serial port: less to emulate, less to attack. The interval timer and the interrupt
/// controller stay, since without them a guest under TCG has no timers (KVM may do without). The clock chip stays, since
/// the kernel waits a whole second for one that is not there: 2.0 s to boot without it, 1.0 s with it.
const MACHINE: &str = "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=off,x-option-roms=off,\
                       auto-kernel-cmdline=on,usb=off,graphics=off,memory-backend=ram";

/// What the guest's processor does not have although QEMU, or the host's, could offer it: each is code that a guest could attack, or
/// a way to look at the host, and no program is compiled for it. Every QEMU that is supported knows these names; what it, or the host,
/// does not have is not there either way.
const UNNEEDED_OF_CPU: &[&str] = &[
    // A hypervisor in the guest. What KVM and TCG do for one can be reached from the guest's ring 0, and has been a way out.
    "svm", "vmx",
    // Counters, branch records and traces of the host's processor: clocks for side channels. The guest's kernel has no use for them.
    "pmu", "arch-lbr", "intel-pt",
    // Transactions in memory: switched off on most processors that had them, for what they let be seen.
    "hle", "rtm", // Enclaves.
    "sgx", "sgxlc", // What would have the host's processor wait.
    "monitor", "waitpkg", // Given up by those who made them, and by compilers and kernels.
    "mpx", "3dnow", "3dnowext", // For kernels with more memory, or more to protect, than these.
    "la57", "pks",
];

/// Told that string instructions are fast, the guest kernel copies and clears with them, which takes twice as long where each is
/// emulated byte by byte.
const SLOW_UNDER_TCG: &[&str] = &["erms", "fsrm"];

/// QEMU's own system call filter, above [ours](crate::qemu::filter): no obsolete calls, no new rights, no new processes, no scheduling games.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What the process is called in a list of processes (15 bytes), where it would be the number of its descriptor.
const PROCESS_NAME: &str = "qemu-system-x86";

/// The arguments of one launch.
pub(crate) fn arguments(spec: &LaunchSpec, version: Version) -> Vec<String> {
    arguments_to(spec.start.kind(), spec, version)
}

/// The arguments of a launch like `spec`, but with this start.
pub(crate) fn arguments_to(start: StartKind, spec: &LaunchSpec, version: Version) -> Vec<String> {
    let accelerator = match spec.accelerator {
        Accelerator::Kvm => "kvm".to_string(),
        // One virtual CPU: a thread per CPU would only add locking.
        Accelerator::Tcg => {
            format!("tcg,thread=single,tb-size={TCG_CODE_BUFFER_MB}{}", code_options(&spec.code))
        }
    };
    let memory = spec.memory_mb;
    let mut pairs = vec![
        ("-name", format!("process={PROCESS_NAME}")),
        ("-cpu", cpu(spec.accelerator)),
        ("-accel", accelerator),
        ("-m", format!("{memory}M")),
        ("-smp", "1".to_string()),
        ("-object", format!("{},id=ram,size={memory}M,prealloc=off,merge=off,dump=off", backend(start, version))),
        ("-M", MACHINE.to_string()),
        ("-global", "virtio-mmio.force-legacy=false".to_string()),
        ("-drive", format!("if=none,id=root,format=raw,readonly=on,file={},file.locking=off", open(ROOT_FD))),
        ("-device", "virtio-blk-device,drive=root".to_string()),
        (
            "-drive",
            format!(
                "if=none,id=slot,node-name={SLOT_NODE},format=raw,{},file={},file.locking=off",
                access(&spec.slot),
                open(SLOT_FD)
            ),
        ),
        // A disk that is full is the installer's to hear of; by default QEMU would stop the VM and wait for somebody.
        ("-device", "virtio-blk-device,drive=slot,werror=report".to_string()),
        ("-device", "virtio-serial-device,max_ports=2".to_string()),
        ("-chardev", format!("socket,id=wire,fd={WIRE_FD}")),
        ("-device", "virtserialport,chardev=wire,name=agent,nr=1".to_string()),
        ("-sandbox", SANDBOX.to_string()),
    ];
    if start.boots() {
        pairs.extend([
            ("-kernel", open(KERNEL_FD)),
            ("-initrd", open(INITRD_FD)),
            ("-append", kernel_arguments(start, spec)),
        ]);
    } else {
        pairs.push(("-incoming", "defer".to_string()));
    }
    if start.has_monitor() {
        pairs.extend([
            ("-chardev", format!("socket,id=monitor,fd={MONITOR_FD}")),
            ("-mon", "chardev=monitor,mode=control".to_string()),
        ]);
    }
    let switches = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(String::from);
    switches.into_iter().chain(pairs.into_iter().flat_map(|(name, value)| [name.to_string(), value])).collect()
}

/// The same, without what it is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartKind {
    Boot,
    BootIn,
    Restore,
    RestoreIn,
}

impl Start {
    pub(crate) fn kind(&self) -> StartKind {
        match self {
            Start::Boot => StartKind::Boot,
            Start::BootIn(_) => StartKind::BootIn,
            Start::Restore { .. } => StartKind::Restore,
            Start::RestoreIn { .. } => StartKind::RestoreIn,
        }
    }

    /// The device state that it continues from.
    pub(crate) fn state(&self) -> Option<&Arc<[u8]>> {
        match self {
            Start::Boot | Start::BootIn(_) => None,
            Start::Restore { state, .. } | Start::RestoreIn { state, .. } => Some(state),
        }
    }

    /// The file that the memory is in.
    pub(crate) fn ram(&self) -> Option<&Arc<OwnedFd>> {
        match self {
            Start::Boot => None,
            Start::BootIn(ram) | Start::Restore { ram, .. } | Start::RestoreIn { ram, .. } => Some(ram),
        }
    }
}

impl StartKind {
    /// Whether the kernel is needed.
    pub(crate) fn boots(self) -> bool {
        !matches!(self, StartKind::Restore | StartKind::RestoreIn)
    }

    /// Whether QEMU takes commands: without need it does not.
    pub(crate) fn has_monitor(self) -> bool {
        self != StartKind::Boot
    }
}

/// The files are opened by the server and named by descriptor: QEMU may run as a user who cannot reach their folder.
pub(crate) fn open(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

/// The processor: all that the accelerator can do, but for what no guest needs.
fn cpu(accelerator: Accelerator) -> String {
    let slow = if accelerator == Accelerator::Tcg { SLOW_UNDER_TCG } else { &[] };
    let without = UNNEEDED_OF_CPU.iter().chain(slow).map(|feature| format!(",{feature}=off"));
    std::iter::once("max".to_string()).chain(without).collect()
}

fn code_options(code: &Code) -> String {
    let files = [("load", &code.load, CODE_FD), ("save", &code.save, SAVED_CODE_FD)];
    let given = files.into_iter().filter(|(_, file, _)| file.is_some());
    given.map(|(name, _, fd)| format!(",code-{name}={}", open(fd))).collect()
}

fn access(slot: &Slot) -> &'static str {
    if slot.is_writable { "discard=unmap,cache=unsafe" } else { "readonly=on" }
}

/// Memory that is only there once touched.
fn backend(start: StartKind, version: Version) -> String {
    let path = open(RAM_FD);
    match start {
        StartKind::Boot => "memory-backend-ram".into(),
        StartKind::BootIn | StartKind::RestoreIn => format!("memory-backend-file,mem-path={path},share=on"),
        StartKind::Restore if version >= OPENS_RAM_READ_ONLY => {
            format!("memory-backend-file,mem-path={path},share=off,readonly=on,rom=off")
        }
        StartKind::Restore => format!("memory-backend-file,mem-path={path},share=off"),
    }
}

/// `reboot=t panic=-1`: a guest that panics or stops triple-faults, at which QEMU exits.
fn kernel_arguments(start: StartKind, spec: &LaunchSpec) -> String {
    let timers = match (spec.accelerator, start) {
        // The paravirtual clock says all.
        (Accelerator::Kvm, _) => String::new(),
        // The kernel would wait for emulated ticks to find out what is known: 0.05 s to see whether interrupts of a timer
        // arrive, 0.2 s to calibrate the local APIC's timer. A template has the time for that: without it, an idle clone is
        // woken 40 times a second by the interval timer, which cannot count any further.
        (Accelerator::Tcg, start) => {
            let timer = if start == StartKind::Boot { " nolapic_timer" } else { "" };
            format!(" tsc=reliable tsc_early_khz={} no_timer_check{timer}", spec.tsc_khz)
        }
    };
    format!("quiet reboot=t panic=-1{timers}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version { major: 7, minor: 2 };
    const NEW: Version = Version { major: 10, minor: 0 };

    fn line(accelerator: Accelerator, start: Start, version: Version) -> String {
        let digest = "0".repeat(64).parse().unwrap();
        let image = BootImage {
            kernel: "vmlinux".into(),
            kernel_sha256: digest,
            root: "root.erofs".into(),
            root_sha256: digest,
            initrd: "agent.cpio".into(),
            initrd_sha256: digest,
        };
        let slot = Slot::default();
        let (memory_mb, tsc_khz, code) = (256, 2_000_000, Code::default());
        arguments(&LaunchSpec { accelerator, memory_mb, start, tsc_khz, image, slot, code }, version).join(" ")
    }

    fn file() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn restore() -> Start {
        Start::Restore { ram: file(), state: Arc::new([]) }
    }

    fn restore_in() -> Start {
        Start::RestoreIn { ram: file(), state: Arc::new([]) }
    }

    #[test]
    fn a_vm_has_one_way_out_and_no_other_device() {
        let starts = [Start::Boot, Start::BootIn(file()), restore(), restore_in()];
        let launches = starts.into_iter().flat_map(|start| {
            [
                (Accelerator::Kvm, start.clone(), OLD),
                (Accelerator::Tcg, start.clone(), OLD),
                (Accelerator::Tcg, start, NEW),
            ]
        });
        for (accelerator, start, version) in launches {
            let has_monitor = start.kind().has_monitor();
            let line = line(accelerator, start, version);
            let devices: Vec<&str> =
                line.split(" -device ").skip(1).map(|rest| rest.split([' ', ',']).next().unwrap()).collect();
            assert_eq!(devices, ["virtio-blk-device", "virtio-blk-device", "virtio-serial-device", "virtserialport"]);
            assert!(line.contains("-nodefaults") && line.contains("-no-user-config"));
            assert_eq!(line.contains("chardev=monitor"), has_monitor, "a monitor only where it is needed");
            for absent in ["netdev", "-nic", "virtfs", "vhost", "-qmp ", "-serial ", "-monitor "] {
                assert!(!line.contains(absent), "{absent} in {line}");
            }
            assert!(line.contains("-sandbox on,") && line.contains("spawn=deny"));
            assert!(
                line.contains("readonly=on,file=/proc/self/fd/6") && line.contains("readonly=on,file=/proc/self/fd/9")
            );
        }
    }

    #[test]
    fn what_tcg_does_worse_is_the_only_difference() {
        let tcg = line(Accelerator::Tcg, Start::Boot, OLD)
            .replace(&format!("tcg,thread=single,tb-size={TCG_CODE_BUFFER_MB}"), "kvm");
        let tcg = tcg.replace(",erms=off,fsrm=off", "");
        assert_eq!(
            line(Accelerator::Kvm, Start::Boot, OLD),
            tcg.replace(" tsc=reliable tsc_early_khz=2000000 no_timer_check nolapic_timer", "")
        );
    }

    #[test]
    fn no_guest_has_a_hypervisor_or_counters() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let cpu = cpu(accelerator);
            for feature in ["svm=off", "vmx=off", "pmu=off"] {
                assert!(cpu.split(',').any(|part| part == feature), "{cpu}");
            }
            assert!(!cpu.contains("avx") && !cpu.contains("aes"), "what programs are compiled for stays: {cpu}");
        }
    }

    #[test]
    fn translated_code_is_an_option_of_the_translator() {
        let options = |load: bool, save: bool| code_options(&Code { load: load.then(file), save: save.then(file) });
        assert_eq!(options(false, false), "");
        assert_eq!(options(true, false), ",code-load=/proc/self/fd/11");
        assert_eq!(options(true, true), ",code-load=/proc/self/fd/11,code-save=/proc/self/fd/12");
    }

    #[test]
    fn a_template_is_written_once_and_then_only_read() {
        let made = line(Accelerator::Tcg, Start::BootIn(file()), NEW);
        assert!(made.contains("share=on") && made.contains(" -kernel ") && !made.contains("-incoming"));
        for version in [OLD, NEW] {
            let restored = line(Accelerator::Tcg, restore(), version);
            assert!(restored.contains("share=off") && restored.contains("-incoming defer"));
            assert!(!restored.contains(" -kernel "), "what it would load is in memory already");
            assert_eq!(restored.contains("readonly=on,rom=off"), version == NEW);
            let remade = line(Accelerator::Tcg, restore_in(), version);
            assert_eq!(
                remade,
                restored.replace("share=off,readonly=on,rom=off", "share=on").replace("share=off", "share=on")
            );
        }
    }
}
