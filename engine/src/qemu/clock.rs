//! The frequency of the host's time stamp counter, which a guest under TCG reads directly.
//!
//! The guest kernel would find it by counting against the emulated interval timer. Under load that fails now and then
//! (2 of 6 boots on a busy machine), and the guest is left with a clock of 10 ms steps. Told the frequency, it never is,
//! and boots 50 ms sooner.

use std::time::{Duration, Instant};

/// Long enough that the two readings at its ends, some 50 ns apart from the clock's, matter by 20 parts in a million: a guest's
/// clock is then wrong by 6 ms in the longest run. Short, since the first call of a server waits for it.
const WINDOW: Duration = Duration::from_millis(5);

/// Ticks per millisecond.
pub(crate) fn tsc_khz() -> u64 {
    let (start, start_ticks) = reading();
    std::thread::sleep(WINDOW);
    let (end, end_ticks) = reading();
    let nanoseconds = u128::from(u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX).max(1));
    let ticks = u128::from(end_ticks.saturating_sub(start_ticks));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(0)
}

/// Clock and counter at nearly the same moment: the attempt that was disturbed least.
fn reading() -> (Instant, u64) {
    let attempt = || {
        let before = Instant::now();
        let ticks = counter();
        (before.elapsed(), before, ticks)
    };
    let (_, at, ticks) = (0..16).map(|_| attempt()).min_by_key(|(took, ..)| *took).unwrap_or_else(attempt);
    (at, ticks)
}

fn counter() -> u64 {
    #[allow(unsafe_code, reason = "the counter has no safe wrapper")]
    // SAFETY: every x86-64 processor has the instruction.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree() {
        let (first, second) = (super::tsc_khz(), super::tsc_khz());
        assert!(first > 100_000, "{first} kHz is no counter of a processor");
        assert!(first.abs_diff(second) * 1000 < first, "{first} and {second} kHz differ by more than 0.1 %");
    }
}
