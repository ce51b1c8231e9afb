//! What all VMs of an engine share: QEMU, what it boots, and who may start one now.

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::limits::TCG_CODE_BUFFER_MB;
use sandbox_schemas::status::Confinement;

use crate::admission::{Admission, Place};
use crate::error::ExecuteError;
use crate::pool::Pool;
use crate::qemu::{LaunchSpec, Qemu};

/// The machine that VMs are started on.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) qemu: Qemu,
    /// What holds QEMU's processes.
    pub(crate) confinement: Confinement,
    /// A VM that boots.
    pub(crate) spec: LaunchSpec,
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
}

impl Host {
    /// Waits for a place of a VM with so much memory. What only waits in the pool gives its own up first.
    pub(crate) async fn enter(&self, memory_mb: u64) -> Result<Place, ExecuteError> {
        if let Some(place) = self.try_enter(memory_mb) {
            return Ok(place);
        }
        let _pressing = self.pool.press();
        self.admission.enter(memory_mb + self.beside_mb()).await
    }

    /// A place that can be had now, and that nobody waits for.
    pub(crate) fn try_enter(&self, memory_mb: u64) -> Option<Place> {
        self.admission.try_enter(memory_mb + self.beside_mb())
    }

    /// The largest VM that there can be a place for, in MiB.
    pub(crate) fn most_mb(&self) -> u64 {
        self.admission.most_mb().saturating_sub(self.beside_mb())
    }

    /// What QEMU has beside a VM's memory, in MiB.
    fn beside_mb(&self) -> u64 {
        match self.spec.accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => TCG_CODE_BUFFER_MB,
        }
    }
}
