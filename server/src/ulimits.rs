//! What the host allows this process, seen to before anything else starts: later a limit would show as a signal, a panic, or a
//! server that waits for a thread that it never gets.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc::{c_int, rlim_t};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use sandbox_store::{limit_behind, limit_in_force};
use tokio::runtime::{Builder, Runtime};

/// Why this process cannot do anything here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{told}, and must be at least {needed}")]
    TooLow { told: String, needed: String },
    #[error("{needed} threads are needed, and cannot be had: {source}{}", limit_behind(source))]
    Threads { needed: usize, source: io::Error },
    #[error("the runtime does not start: {source}{}", limit_behind(source))]
    Runtime { source: io::Error },
}

/// Descriptors that a server must be allowed: QEMU has so many, and the server some 25 and 4 for each VM.
const DESCRIPTORS_MIN: rlim_t = 64;

/// More than these are of no use, and would make each start of a process by an old C library slow.
const DESCRIPTORS_MAX: rlim_t = 65_536;

/// What QEMU's threads must have, each: they get what the limit says, where it says anything.
const STACK_MIN_BYTES: rlim_t = 512 * 1024;
const STACK_BYTES: rlim_t = 8 * 1024 * 1024;

/// Threads that run tasks. A server waits for VMs most of the time; on a host of a hundred processors as on one of eight.
const WORKERS_MAX: usize = 8;

/// Threads that are there for what blocks, from the start and for good: one waits in a read of stdin, one may be writing
/// stdout, and the others are never all waited for, so that what is asked of them is done also where there will be no more.
const BLOCKING_MIN: usize = 4;

/// Most of them. Work that finds none waits for one.
const BLOCKING_MAX: usize = 64;

/// None of them is given up: where threads are few, another one might not be had when it is needed.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Those of a bucket's two runtimes.
pub(crate) const BUCKET_THREADS: usize = 6;

/// How long threads that were promised may take to run.
const THREADS_DEADLINE: Duration = Duration::from_secs(30);

/// Takes in what can be taken in: signals become errors, and limits are raised as far as they may be.
pub(crate) fn prepare() -> Result<(), Refused> {
    fail_writes_over_the_limit();
    raise(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MIN, &DESCRIPTORS_MIN.to_string())?;
    raise(Resource::RLIMIT_STACK, STACK_BYTES, STACK_MIN_BYTES, &format!("{} KiB", STACK_MIN_BYTES / 1024))
}

/// What will end this process without a word, for the log.
pub(crate) fn warning() -> Option<String> {
    let told = limit_in_force(Resource::RLIMIT_CPU)?;
    Some(format!("{told}: the kernel ends this server, or a VM of it, when that has been used up"))
}

/// A runtime whose threads are there.
pub(crate) fn runtime() -> Result<Runtime, Refused> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let needed = workers + BLOCKING_MIN;
    // Tokio panics where it cannot have its threads. That it gets them is tried before.
    try_threads(needed)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(FOR_GOOD)
        .enable_all()
        .build()
        .map_err(|source| Refused::Runtime { source })?;
    let spawn = |work| {
        drop(runtime.spawn_blocking(work));
        Ok(())
    };
    match meet(BLOCKING_MIN, spawn) {
        Ok(()) => Ok(runtime),
        Err(source) => {
            // Some of its threads will never come, and need not be waited for.
            runtime.shutdown_background();
            Err(Refused::Threads { needed, source })
        }
    }
}

/// Has as many threads as are needed, for a moment, all at the same time.
pub(crate) fn try_threads(needed: usize) -> Result<(), Refused> {
    let mut threads = Vec::with_capacity(needed);
    let met = meet(needed, |work| {
        threads.push(thread::Builder::new().name("trial".into()).spawn(work)?);
        Ok(())
    });
    // What they take must be free again.
    threads.into_iter().for_each(|thread| drop(thread.join()));
    met.map_err(|source| Refused::Threads { needed, source })
}

/// Starts `count` pieces of work, each of which ends when all have begun, or one could not.
fn meet(count: usize, mut start: impl FnMut(Box<dyn FnOnce() + Send>) -> io::Result<()>) -> io::Result<()> {
    let (begun, all) = mpsc::channel();
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        let (end, ended) = mpsc::channel::<()>();
        ends.push(end);
        let begun = begun.clone();
        start(Box::new(move || {
            let _ = begun.send(());
            // Until the other end is dropped.
            let _ = ended.recv();
        }))?;
    }
    for _ in 0..count {
        if all.recv_timeout(THREADS_DEADLINE).is_err() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

/// Raises a limit to what is of use, as far as it may be raised.
fn raise(resource: Resource, useful: rlim_t, least: rlim_t, least_told: &str) -> Result<(), Refused> {
    let Ok((soft, hard)) = getrlimit(resource) else { return Ok(()) };
    let raised = hard.min(useful);
    if soft < raised {
        // Refused, it stays as it is; whether that is enough is seen below.
        let _ = setrlimit(resource, raised, hard);
    }
    match getrlimit(resource) {
        Ok((soft, _)) if soft < least => Err(Refused::TooLow {
            told: limit_in_force(resource).unwrap_or_else(|| format!("{resource:?} is {soft}")),
            needed: least_told.into(),
        }),
        _ => Ok(()),
    }
}

/// A file that would become larger than it may be costs a process its life, unless it handles the signal; then the write
/// fails. It is handled and not ignored, because only what is ignored is inherited by the programs that we start.
fn fail_writes_over_the_limit() {
    extern "C" fn nothing(_: c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    #[allow(unsafe_code, reason = "a signal is handled")]
    // SAFETY: the handler does nothing at all, which is safe at any time.
    let _ = unsafe { sigaction(Signal::SIGXFSZ, &action) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn what_meets_runs_at_the_same_time_and_ends() {
        let ended = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        meet(5, |work| {
            let ended = ended.clone();
            threads.push(thread::spawn(move || {
                work();
                ended.fetch_add(1, Ordering::Relaxed);
            }));
            Ok(())
        })
        .unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(ended.load(Ordering::Relaxed), 5);
        // One that cannot begin ends the others.
        let mut threads = Vec::new();
        let refused = meet(5, |work| {
            if threads.len() == 3 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            threads.push(thread::spawn(work));
            Ok(())
        });
        assert!(refused.is_err());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn work_that_blocks_does_not_keep_other_work_from_being_done() {
        let runtime = runtime().unwrap();
        // A read of stdin, and a writer whose client does not read.
        let (held, hold) = mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        for _ in 0..BLOCKING_MIN - 1 {
            let hold = hold.clone();
            runtime.spawn_blocking(move || hold.lock().unwrap().recv());
        }
        assert_eq!(runtime.block_on(runtime.spawn_blocking(|| 7)).unwrap(), 7);
        drop(held);
    }
}
