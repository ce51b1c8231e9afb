//! The rights that a server has over its VMs, and those that a QEMU gives up.

use std::io;

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

/// What a server needs for a QEMU that is somebody else, with the names that an operator knows.
const TO_HAVE_ANOTHER_USER: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    // To end it: the kernel asks for it when a server kills a process of another user, and when it does so for a server that has died.
    (CapabilitySet::KILL, "CAP_KILL"),
];

/// Above any that there will be: capability sets have 64 bits.
const CAPABILITIES: u32 = 64;

/// The capabilities that a server lacks for VMs of other users; unknown ones it has.
pub(crate) fn missing_for_another_user() -> Vec<&'static str> {
    let has = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    missing(has)
}

fn missing(has: CapabilitySet) -> Vec<&'static str> {
    TO_HAVE_ANOTHER_USER.iter().filter(|(needed, _)| !has.contains(*needed)).map(|(_, name)| *name).collect()
}

/// Empties the set that bounds what any program can ever get. Not all who may have no rights may do that; `false` for them.
pub(crate) fn empty_bounding_set() -> bool {
    for number in 0..CAPABILITIES {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Beyond the kernel's last.
            Err(rustix::io::Errno::INVAL) => break,
            Err(_) => return false,
        }
    }
    // To be root is to be no more than anybody, for good. A change of user then takes no capabilities either: see `give_up`.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits).is_ok()
}

/// Gives up all capabilities, and that any program could give some back.
pub(crate) fn give_up() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(CapabilitySet::all()), [""; 0]);
        assert_eq!(missing(CapabilitySet::all() - CapabilitySet::KILL), ["CAP_KILL"]);
        assert_eq!(missing(CapabilitySet::empty()), ["CAP_SETUID", "CAP_SETGID", "CAP_KILL"]);
    }
}
