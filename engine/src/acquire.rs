//! The ways to a VM for a program: one that waits in the pool, a clone of a template, one that boots. Each falls through to the
//! next, and a program that was not seen to start is started elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{MEMORY_DEFAULT_MB, VM_OVERHEAD_MB};
use sandbox_schemas::wire::Hello;
use sandbox_store::CacheDir;

use crate::accelerate;
use crate::admission::{Growth, Place};
use crate::environment::Environment;
use crate::error::{ExecuteError, Fault, VmError};
use crate::host::Host;
use crate::pool::{Wish, layer_of};
use crate::qemu::LaunchSpec;
use crate::run::Preparation;
use crate::stats::{Counted, Stats};
use crate::template::{Templates, rehearsal};
use crate::vm::{Booting, Open, Program, Running, Waiting, hello};

/// What somebody needs of a VM.
pub(crate) struct Wanted<B> {
    pub(crate) accepted: Instant,
    pub(crate) language: Language,
    pub(crate) environment: Option<Arc<Environment>>,
    pub(crate) memory_mb: u64,
    /// What is begun in it.
    pub(crate) begin: B,
}

/// A VM in which what was wanted has begun.
pub(crate) struct Acquired<V> {
    pub(crate) vm: V,
    pub(crate) preparation: Preparation,
}

/// What a VM is given to.
pub(crate) trait Begin: Sync {
    /// The VM then.
    type Vm: Begun;

    /// In one that waits.
    fn waiting(&self, vm: Waiting, deadline: Duration) -> impl Future<Output = Result<Self::Vm, VmError>> + Send;

    /// In one that is being restored.
    fn restoring(&self, vm: Booting, deadline: Duration) -> impl Future<Output = Result<Self::Vm, VmError>> + Send;
}

/// When a VM got that far.
pub(crate) trait Begun: Send {
    fn ready(&self) -> Instant;
    fn begun(&self) -> Instant;
}

/// A program, after which the VM is gone.
impl Begin for Program {
    type Vm = Running;

    fn waiting(&self, vm: Waiting, deadline: Duration) -> impl Future<Output = Result<Running, VmError>> + Send {
        vm.start(self, deadline)
    }

    fn restoring(&self, vm: Booting, deadline: Duration) -> impl Future<Output = Result<Running, VmError>> + Send {
        // The program lies there when the guest wakes.
        vm.start(self, deadline)
    }
}

impl Begun for Running {
    fn ready(&self) -> Instant {
        self.ready
    }

    fn begun(&self) -> Instant {
        self.started
    }
}

/// A session, whose programs come later.
pub(crate) struct ForSession;

impl Begin for ForSession {
    type Vm = Open;

    async fn waiting(&self, vm: Waiting, _: Duration) -> Result<Open, VmError> {
        vm.open()
    }

    async fn restoring(&self, vm: Booting, deadline: Duration) -> Result<Open, VmError> {
        vm.ready(deadline).await?.into_waiting().open()
    }
}

impl Begun for Open {
    fn ready(&self) -> Instant {
        self.opened
    }

    fn begun(&self) -> Instant {
        self.opened
    }
}

/// Memory of a VM that waits, in MiB: what most programs ask for.
const WAITING_MEMORY_MB: u64 = MEMORY_DEFAULT_MB + VM_OVERHEAD_MB;

/// How long a guest that was ready may take to lay a program out and say that it starts: milliseconds, if it is not hung.
/// What waits may be lost by a hang of the whole machine, and is not waited for as long.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(30);
const WAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How often a VM of the pool rehearses each language. Under TCG each time translates what the last one has not met, and that
/// is what the first run of a clone waits for.
const REHEARSED_TIMES: usize = 3;

/// The same where the template brings translated code along: a second time gains nothing.
const REHEARSED_TIMES_WITH_CODE: usize = 1;

/// How long the pool is not filled when there was no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a program waits for the template to be loaded or built, which takes 0.1 s or 10-20 s, before its VM boots. It goes on being
/// built then, and no other program waits for longer.
const TEMPLATE_DEADLINE: Duration = Duration::from_secs(60);

/// The same for one with packages, which it has to import; a VM that boots would have to do that as well.
pub(crate) const ENVIRONMENT_DEADLINE: Duration = Duration::from_secs(600);

/// A restored guest takes 0.1-0.2 s under TCG to do all that; one that is not there by then will not come.
const RESTORE_DEADLINE: Duration = Duration::from_secs(20);

/// Where the VMs of programs come from.
#[derive(Debug)]
pub(crate) struct Vms {
    pub(crate) host: Arc<Host>,
    pub(crate) cache: CacheDir,
    pub(crate) templates: Option<Arc<Templates>>,
    pub(crate) stats: Stats,
}

impl Vms {
    /// Has what is wanted begin in a VM of its own: the first of the three ways that leads there.
    pub(crate) async fn acquire<B: Begin>(&self, wanted: &Wanted<B>) -> Result<Acquired<B::Vm>, ExecuteError> {
        if let Some(started) = self.wake(wanted).await {
            return Ok(started);
        }
        match self.restore(wanted).await? {
            Some(started) => Ok(started),
            None => self.boot(wanted).await,
        }
    }

    /// In a VM of the pool; `None` when there is none that serves.
    async fn wake<B: Begin>(&self, wanted: &Wanted<B>) -> Option<Acquired<B::Vm>> {
        let more = match wanted.memory_mb.saturating_sub(WAITING_MEMORY_MB) {
            0 => None,
            more_mb => Some(self.host.admission.try_grow(more_mb)?),
        };
        let (vm, growth) = self.host.pool.take(layer_of(wanted.environment.as_ref()))?;
        // Until its VM is gone, whoever drops this.
        if let Some(more) = more {
            growth.add(more);
        }
        let handed_over = Instant::now();
        match wanted.begin.waiting(vm, WAKE_DEADLINE).await {
            Ok(vm) => {
                let connect = vm.begun() - handed_over;
                let preparation = Preparation { connect, warm_pool_hit: true, ..self.preparation(wanted, true) };
                Some(Acquired { vm, preparation })
            }
            Err(error) => {
                tracing::warn!(%error, "a VM of the pool did not start its program; another one will");
                None
            }
        }
    }

    /// In a clone of the template; `None` when there is none, or it does not serve.
    async fn restore<B: Begin>(&self, wanted: &Wanted<B>) -> Result<Option<Acquired<B::Vm>>, ExecuteError> {
        let Some(templates) = &self.templates else { return Ok(None) };
        let environment = wanted.environment.as_ref();
        let patience = if environment.is_none() { TEMPLATE_DEADLINE } else { ENVIRONMENT_DEADLINE };
        let Some(template) = templates.of(environment, patience).await else { return Ok(None) };
        let place = self.host.enter(wanted.memory_mb).await?;
        let _restoring = Counted::new(&self.stats.restoring);
        let launched = Instant::now();
        let started = async {
            let vm =
                Booting::launch(&self.host.qemu, &templates.clone_of(&template), hello(Vec::new())?, place).await?;
            wanted.begin.restoring(vm, RESTORE_DEADLINE).await
        };
        match started.await {
            Ok(vm) => {
                templates.came_up(&template);
                self.stats.restores.add(vm.ready() - launched);
                Ok(Some(Acquired { preparation: self.timed(wanted, launched, &vm, true), vm }))
            }
            Err(error) => {
                tracing::warn!(%error, "a clone of the template did not start its program; a VM that boots will");
                templates.did_not_come_up(&template, &error);
                Ok(None)
            }
        }
    }

    /// In a VM that boots.
    async fn boot<B: Begin>(&self, wanted: &Wanted<B>) -> Result<Acquired<B::Vm>, ExecuteError> {
        let place = self.host.enter(wanted.memory_mb).await?;
        let _restoring = Counted::new(&self.stats.restoring);
        let launched = Instant::now();
        // No larger than it must be: it bounds the VM on the host too.
        let mut spec = LaunchSpec { memory_mb: wanted.memory_mb, ..self.host.spec.clone() };
        if let Some(environment) = &wanted.environment {
            spec.slot = environment.slot();
        }
        let deadline = self.host.spec.boot_deadline();
        let started = async {
            let hello = Hello {
                parts: wanted.environment.as_ref().map_or(0, |environment| environment.parts),
                ..hello(vec![wanted.language])?
            };
            let vm = Booting::launch(&self.host.qemu, &spec, hello, place).await?.ready(deadline).await?;
            // Its clock was set before it had booted.
            wanted.begin.waiting(vm.into_waiting(), START_DEADLINE).await
        };
        let vm = started.await.map_err(|error| {
            self.doubt_accelerator(&error);
            ExecuteError::before_run(error)
        })?;
        Ok(Acquired { preparation: self.timed(wanted, launched, &vm, false), vm })
    }

    /// A VM that boots has failed: what was found out about KVM may not be so any more.
    fn doubt_accelerator(&self, error: &VmError) {
        if self.host.spec.accelerator == Accelerator::Kvm && error.fault() != Fault::Host {
            accelerate::forget(self.cache.root());
        }
    }

    /// Keeps the pool full until it is closed.
    pub(crate) async fn fill_pool(&self) {
        let pool = &self.host.pool;
        while let Some(wish) = pool.wish().await {
            let made = tokio::select! {
                made = self.make_waiting(&wish) => made,
                // What is half done is dropped, and its VM with it.
                () = pool.is_disturbed() => continue,
            };
            match made {
                Ok(Made::Vm(vm, growth)) => pool.put(&wish, *vm, growth),
                Ok(Made::NoTemplate) => pool.put_off(&wish),
                Ok(Made::NoRoom) => tokio::time::sleep(RETRY_AFTER).await,
                Err(error) => {
                    tracing::warn!(%error, "a VM for the pool did not come up");
                    pool.put_off(&wish);
                }
            }
        }
    }

    /// A VM for the pool, as far as it can be had without anybody waiting for it.
    async fn make_waiting(&self, wish: &Wish) -> Result<Made, VmError> {
        let Some(templates) = &self.templates else { return Ok(Made::NoTemplate) };
        let template = match &wish.environment {
            // All else is made of it.
            None => templates.of(None, Duration::MAX).await,
            // Importing takes long; something else is made meanwhile.
            Some(environment) => templates.at_hand(Some(environment)),
        };
        let Some(template) = template else { return Ok(Made::NoTemplate) };
        let Some(place) = self.host.try_enter(WAITING_MEMORY_MB) else { return Ok(Made::NoRoom) };
        let _restoring = Counted::new(&self.stats.restoring);
        let growth = place.growth();
        match self.rehearsed(&templates.clone_of(&template), &wish.languages, place).await {
            Ok(vm) => {
                templates.came_up(&template);
                Ok(Made::Vm(Box::new(vm), growth))
            }
            Err(error) => {
                templates.did_not_come_up(&template, &error);
                Err(error)
            }
        }
    }

    /// A clone that has rehearsed these languages.
    async fn rehearsed(&self, spec: &LaunchSpec, languages: &[Language], place: Place) -> Result<Waiting, VmError> {
        let vm = Booting::launch(&self.host.qemu, spec, hello(Vec::new())?, place).await?;
        let mut vm = vm.ready(RESTORE_DEADLINE).await?;
        let times = if spec.code.load.is_some() { REHEARSED_TIMES_WITH_CODE } else { REHEARSED_TIMES };
        for round in 0..times {
            for program in rehearsal::in_clone(languages, round) {
                vm = vm.rehearse(&program?, RESTORE_DEADLINE).await?;
            }
        }
        Ok(vm.into_waiting())
    }

    fn timed<B>(&self, wanted: &Wanted<B>, launched: Instant, vm: &impl Begun, template_hit: bool) -> Preparation {
        Preparation {
            setup: launched - wanted.accepted,
            boot: vm.ready() - launched,
            connect: vm.begun() - vm.ready(),
            ..self.preparation(wanted, template_hit)
        }
    }

    fn preparation<B>(&self, wanted: &Wanted<B>, template_hit: bool) -> Preparation {
        Preparation {
            accepted: wanted.accepted,
            setup: Duration::ZERO,
            boot: Duration::ZERO,
            connect: Duration::ZERO,
            accelerator: self.host.spec.accelerator,
            warm_pool_hit: false,
            template_hit,
        }
    }
}

/// What came of making a VM for the pool.
enum Made {
    Vm(Box<Waiting>, Growth),
    /// There is none to restore it from, or not yet.
    NoTemplate,
    /// What runs comes first.
    NoRoom,
}
