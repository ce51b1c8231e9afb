//! QEMU's command line, as a pure function of what is to be launched.

use std::os::fd::RawFd;

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::BootImage;

/// The guest's wire, as QEMU sees it. The numbers are ours to choose: nothing else is open in QEMU.
pub(crate) const WIRE_FD: RawFd = 3;
/// The kernel.
pub(crate) const KERNEL_FD: RawFd = 4;
/// The initial RAM file system, which is the agent.
pub(crate) const INITRD_FD: RawFd = 5;
/// The root image.
pub(crate) const ROOT_FD: RawFd = 6;

/// What is to be launched.
#[derive(Debug, Clone)]
pub(crate) struct LaunchSpec {
    pub(crate) accelerator: Accelerator,
    /// Memory of the VM, in MiB.
    pub(crate) memory_mb: u64,
    /// Frequency of the host's time stamp counter, in kHz.
    pub(crate) tsc_khz: u64,
    pub(crate) image: BootImage,
}

/// No PCI, no ACPI, no BIOS, no serial port: less to emulate, less to attack. The interval timer and the interrupt
/// controller stay, since without them a guest under TCG has no timers (KVM may do without). The clock chip stays, since
/// the kernel waits a whole second for one that is not there: 2.0 s to boot without it, 1.0 s with it.
const MACHINE: &str = "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=off,x-option-roms=off,\
                       auto-kernel-cmdline=on,usb=off,graphics=off,memory-backend=ram";

/// QEMU's own system call filter: no obsolete calls, no new rights, no new processes, no scheduling games.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The arguments of one launch.
pub(crate) fn arguments(spec: &LaunchSpec) -> Vec<String> {
    let accelerator = match spec.accelerator {
        Accelerator::Kvm => "kvm",
        // One virtual CPU: a thread per CPU would only add locking.
        Accelerator::Tcg => "tcg,thread=single",
    };
    let memory = spec.memory_mb;
    // The files are opened by the server and named by descriptor: QEMU may run as a user who cannot reach their folder.
    let open = |fd: RawFd| format!("/proc/self/fd/{fd}");
    let pairs = [
        ("-cpu", "max".to_string()),
        ("-accel", accelerator.to_string()),
        ("-m", format!("{memory}M")),
        ("-smp", "1".to_string()),
        // Anonymous memory that is only there once touched, and never in a core dump.
        ("-object", format!("memory-backend-ram,id=ram,size={memory}M,prealloc=off,merge=off,dump=off")),
        ("-M", MACHINE.to_string()),
        ("-global", "virtio-mmio.force-legacy=false".to_string()),
        ("-kernel", open(KERNEL_FD)),
        ("-initrd", open(INITRD_FD)),
        ("-append", kernel_arguments(spec)),
        ("-drive", format!("if=none,id=root,format=raw,readonly=on,file={},file.locking=off", open(ROOT_FD))),
        ("-device", "virtio-blk-device,drive=root".to_string()),
        ("-device", "virtio-serial-device,max_ports=2".to_string()),
        ("-chardev", format!("socket,id=wire,fd={WIRE_FD}")),
        ("-device", "virtserialport,chardev=wire,name=agent,nr=1".to_string()),
        ("-sandbox", SANDBOX.to_string()),
    ];
    let switches = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(String::from);
    switches.into_iter().chain(pairs.into_iter().flat_map(|(name, value)| [name.to_string(), value])).collect()
}

/// `reboot=t panic=-1`: a guest that panics or stops triple-faults, at which QEMU exits.
fn kernel_arguments(spec: &LaunchSpec) -> String {
    let timers = match spec.accelerator {
        // The paravirtual clock says all.
        Accelerator::Kvm => String::new(),
        // The kernel would wait for emulated ticks to find out what is known: 0.2 s to calibrate the local APIC's timer (the
        // interval timer is as exact here), 0.05 s to see whether interrupts of a timer arrive.
        Accelerator::Tcg => {
            format!(" tsc=reliable tsc_early_khz={} nolapic_timer no_timer_check", spec.tsc_khz)
        }
    };
    format!("quiet reboot=t panic=-1{timers}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(accelerator: Accelerator) -> String {
        let digest = "0".repeat(64).parse().unwrap();
        let image = BootImage {
            kernel: "vmlinux".into(),
            kernel_sha256: digest,
            root: "root.erofs".into(),
            root_sha256: digest,
            initrd: "agent.cpio".into(),
            initrd_sha256: digest,
        };
        arguments(&LaunchSpec { accelerator, memory_mb: 256, tsc_khz: 2_000_000, image }).join(" ")
    }

    #[test]
    fn a_vm_has_one_way_out_and_no_other_device() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let line = line(accelerator);
            let devices: Vec<&str> =
                line.split(" -device ").skip(1).map(|rest| rest.split([' ', ',']).next().unwrap()).collect();
            assert_eq!(devices, ["virtio-blk-device", "virtio-serial-device", "virtserialport"]);
            assert!(line.contains("-nodefaults") && line.contains("-no-user-config"));
            for absent in ["netdev", "-nic", "virtfs", "vhost", "monitor", "-qmp ", "-serial ", "-incoming"] {
                assert!(!line.contains(absent), "{absent} in {line}");
            }
            assert!(line.contains("-sandbox on,") && line.contains("spawn=deny"));
            assert!(line.contains("readonly=on,file=/proc/self/fd/6"));
        }
    }

    #[test]
    fn the_accelerator_and_its_clock_are_the_only_difference() {
        let tcg = line(Accelerator::Tcg).replace("tcg,thread=single", "kvm");
        assert_eq!(
            line(Accelerator::Kvm),
            tcg.replace(" tsc=reliable tsc_early_khz=2000000 nolapic_timer no_timer_check", "")
        );
    }
}
