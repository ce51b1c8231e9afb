//! PID 1 of the VM. It brings up the guest, keeps interpreters warm, and runs programs as an ordinary user: one, or those of a session.
//!
//! ```text
//! boot -> port: Hello -> identity, warm runners -> Ready -> Execute -> Started, Output... -> Finished -> (VM destroyed)
//!                                                       ^--------- session ---------'
//! ```
//!
//! One thread and one `poll` loop: what can wake the agent is listed in `agent.rs` and nowhere else. When the host end
//! of the port goes away the VM stops, so that no orphan is left spinning.
//!
//! In a VM that installs, the same binary runs a second time, as another user: `multiplexer.rs` turns connections of the guest
//! into streams of the tunnel, whose bytes the agent carries (`tunnel.rs`).

// In the order in which to read them.
mod agent;

mod boot;
mod identity;
mod partition;
mod port;
mod settings;

mod cgroup;
mod confine;
mod program;
mod runner;

mod output;
mod run;
mod transfer;

mod tunnel;

mod multiplexer;

mod error;

#[cfg(test)]
mod fuzz;

use std::io::Write;

fn main() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == tunnel::MULTIPLEXER) {
        // The agent hears of its end, and tells the host these words.
        if let Err(error) = multiplexer::run() {
            let _ = writeln!(std::io::stderr(), "{error}");
        }
        return;
    }
    if let Err(error) = boot::bring_up().and_then(agent::Agent::new).and_then(|mut agent| agent.serve()) {
        // Nobody but a developer with a serial console reads this: the port is what failed.
        let _ = writeln!(std::io::stderr(), "sandbox agent: {error}");
    }
    boot::stop_machine();
}
