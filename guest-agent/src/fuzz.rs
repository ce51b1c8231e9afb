//! What comes over the port, fed with anything: `cargo test` runs a thousand random inputs each; `cargo bolero test fuzz::port` goes
//! on for as long as one likes. The host is trusted, but an agent that breaks over a frame would be a VM that hangs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::HOST_FRAME_MAX_BYTES;
use sandbox_schemas::wire::{self, Execute, HostFrame, Kind};

use crate::port::Port;

/// The frames in `input`, and whether it was read to its end.
fn frames(input: &[u8]) -> (Vec<HostFrame>, bool) {
    let mut file = File::from(memfd_create("port", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(input).unwrap();
    let mut port = Port::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).unwrap();
    let mut frames = Vec::new();
    loop {
        let is_there = port.fill();
        loop {
            match port.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
        match is_there {
            Ok(true) => {}
            Ok(false) => return (frames, true),
            Err(_) => return (frames, false),
        }
    }
}

fn parts() -> Vec<Vec<u8>> {
    let execute = HostFrame::Execute(Execute {
        run: 1,
        language: Language::Shell,
        kind: Kind::Call { number: 1 },
        code: "echo hi".into(),
        stdin: String::new(),
        env: vec![("A".into(), "B".into())],
        memory_bytes: 1 << 20,
        stdout_max: 1,
        stderr_max: u64::MAX,
        window: 1,
    });
    let frames = [
        HostFrame::Interrupt(1),
        HostFrame::Kill(u32::MAX),
        HostFrame::Clock(7),
        HostFrame::Input { run: 1, bytes: vec![1; 300], is_last: true },
        HostFrame::Credit { run: 2, bytes: u64::MAX },
        HostFrame::Tunnel(vec![0; 5000]),
        execute,
    ];
    let encoded = frames.iter().map(|frame| wire::encode(frame).unwrap());
    let lies = [u32::MAX, HOST_FRAME_MAX_BYTES as u32, 0, 1].map(|length| length.to_le_bytes().to_vec());
    encoded.chain(lies).collect()
}

#[test]
fn port() {
    let parts = parts();
    bolero::check!().for_each(|input: &[u8]| {
        frames(input);
        let part = |byte: &u8| match parts.get(usize::from(*byte) % (2 * parts.len())) {
            Some(part) => part.clone(),
            None => vec![*byte],
        };
        frames(&input.iter().flat_map(part).collect::<Vec<_>>());
    });
}

#[test]
fn what_the_host_says_is_read_as_it_was_said_whatever_follows() {
    let said: Vec<HostFrame> =
        vec![HostFrame::Interrupt(3), HostFrame::Tunnel(vec![9; 9000]), HostFrame::Clock(u64::MAX)];
    let bytes: Vec<u8> = said.iter().flat_map(|frame| wire::encode(frame).unwrap()).collect();
    assert_eq!(frames(&bytes), (said.clone(), true));
    bolero::check!().for_each(|input: &[u8]| {
        let (heard, _) = frames(&[&bytes[..], input].concat());
        assert_eq!(heard[..said.len()], said[..]);
    });
}
