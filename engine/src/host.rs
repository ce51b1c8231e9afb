//! What all VMs of an engine share: QEMU, what it boots, and who may start one now.

use crate::admission::{Admission, Place};
use crate::error::ExecuteError;
use crate::pool::Pool;
use crate::qemu::{LaunchSpec, Qemu};

/// The machine that VMs are started on.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) qemu: Qemu,
    /// A VM that boots.
    pub(crate) spec: LaunchSpec,
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
}

impl Host {
    /// Waits for a place. What only waits in the pool gives its own up first.
    pub(crate) async fn enter(&self, memory_mb: u64) -> Result<Place, ExecuteError> {
        if let Some(place) = self.admission.try_enter(memory_mb) {
            return Ok(place);
        }
        let _pressing = self.pool.press();
        self.admission.enter(memory_mb).await
    }
}
