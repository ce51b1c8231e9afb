//! What makes this VM another than the one it may have been cloned from. Applied before any user byte runs.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use sandbox_schemas::wire::Hello;

use crate::error::{Context, Result};

const MACHINE_ID: &str = "/run/machine-id";

/// `struct rand_pool_info` of <linux/random.h> with its flexible array filled in.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; 32],
}

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 3, 2 * size_of::<libc::c_int>()), RandPoolInfo);
nix::ioctl_none!(reseed_generator, b'R', 7);

/// Clock, randomness and names.
pub(crate) fn apply(hello: &Hello) -> Result<()> {
    set_clock(hello.realtime_ns)?;
    mix_in(&hello.entropy)?;
    let short = hello.vm_id.get(..12).unwrap_or(&hello.vm_id);
    nix::unistd::sethostname(format!("sandbox-{short}")).context("setting the host name")?;
    let is_bound = Path::new(MACHINE_ID).exists();
    fs::write(MACHINE_ID, format!("{}\n", hello.vm_id)).context("writing the machine id")?;
    if !is_bound {
        mount(Some(MACHINE_ID), "/etc/machine-id", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("binding the machine id")?;
    }
    Ok(())
}

/// The wall clock, in nanoseconds since 1970.
pub(crate) fn set_clock(realtime_ns: u64) -> Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(realtime_ns)))
        .context("setting the clock")
}

fn mix_in(entropy: &[u8; 32]) -> Result<()> {
    let device = fs::File::open("/dev/urandom").context("opening the random device")?;
    let info = RandPoolInfo { entropy_bits: 256, buffer_bytes: 32, buffer: *entropy };
    #[allow(unsafe_code, reason = "the kernel takes entropy and a reseed through these ioctls only")]
    // SAFETY: the descriptor is open, `info` has the layout that the kernel reads and outlives the calls.
    unsafe {
        add_entropy(device.as_raw_fd(), &info).context("adding entropy")?;
        reseed_generator(device.as_raw_fd()).context("reseeding the generator")?;
    }
    Ok(())
}
