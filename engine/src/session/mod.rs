//! Sessions: VMs that stay for several programs of one caller.
//!
//! ```text
//! Sessions (ids, how many) --> Session (calls, queue) --> Call: one program, from its turn to its end
//!                                   |                       | ^
//!                                   '--> Owner <------------' | frames of that program
//!                                        (the VM, its wire) --'
//! ```
//!
//! The owner is a task that holds the VM. It reads all that the guest says, and never waits for whoever listens: what may be under
//! way to a listener is bounded by what the guest was granted. When the owner ends, the VM is gone.

// In the order in which to read them.
mod sessions;

#[allow(clippy::module_inception, reason = "a session is what this is about")]
mod session;

mod background;

mod files;
mod kept;
mod outputs;

mod contents;

mod call;
mod queue;

mod owner;
mod state;

pub(crate) use background::Backgrounds;
pub(crate) use contents::{is_picture, of_part as contents_of_part};
pub(crate) use outputs::Outputs;
pub(crate) use queue::Queued;
pub(crate) use session::{Opening, Session};
pub(crate) use sessions::Sessions;
pub(crate) use state::Ended;
