//! Runs programs in microVMs, for an ideal caller: `engine.execute(request, sink, cancel)`. Knows no JSON-RPC and no MCP.
//!
//! ```text
//! execute -> pool ----------------------------> Waiting --.
//!       '--> admission -> template -> Booting -----------+--> Running -> spent (destroyed)
//!                      '--> boot ---> Booting -> Ready --'
//! ```
//!
//! A session gets its VM in the same three ways, and keeps it: `Open` instead of `Running`.
//!
//! Invariants: nothing outside `qemu/` starts a process or knows QEMU; a VM that has run a program cannot run another,
//! because no function leads back; dropping a VM in any phase destroys it.

// In the order in which to read them.
mod engine;
mod service;

mod request;

mod acquire;

mod accelerate;
mod admission;
mod memory;

mod error;
mod id;

mod session;

mod capture;
mod run;
mod tunnel;
mod vm;
mod wire;

mod host;

mod opened;
mod turn;

mod environment;

mod pool;
mod stats;
mod template;

mod qemu;

#[cfg(test)]
mod fuzz;

pub use accelerate::AcceleratorChoice;
pub use admission::Limits;
pub use engine::{Engine, EngineConfig};
pub use environment::{InstallError, Installation};
pub use error::{ExecuteError, StartError};
pub use id::Id;
pub use request::{FileSource, Request};
pub use run::OutputSink;
pub use sandbox_schemas::tunnel::Target;
pub use sandbox_schemas::wire::Stream;
pub use service::PackageSet;
pub use tokio_util::sync::CancellationToken;
pub use tunnel::{TunnelHandler, TunnelStream};
