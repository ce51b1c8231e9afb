//! Whether a template may be tried: what has become of its clones, and of its making, until now. Events and time alone decide.
//!
//! What the host has done to a clone says nothing of its template. One whose clones do not come up again and again is made anew,
//! once; if that does not help, and if it cannot be made at all, it rests for minutes, longer each time, and is tried again.

use std::time::{Duration, Instant};

use crate::error::Fault;

/// As many points make a template one of no use. A clone that comes up takes them all back.
const DOUBT_MAX: u32 = 6;

/// The first rest. Whoever waits for a template that cannot be had boots meanwhile, which takes some seconds.
const REST_FIRST: Duration = Duration::from_secs(60);

/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(30 * 60);

/// What a clone that did not come up says about its template.
fn doubt(fault: Fault) -> u32 {
    match fault {
        Fault::Host => 0,
        Fault::Unclear => 1,
        Fault::Vm => 2,
    }
}

/// What is to be done with a template after an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Consequence {
    /// It is used as before.
    Keep,
    /// It is made anew.
    Replace,
    /// It is not used for so long.
    Rest(Duration),
}

/// What is thought of a template.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Points since a clone has come up.
    doubt: u32,
    /// Whether it was made anew since then.
    was_replaced: bool,
    /// Rests since then.
    rests: u32,
    resting_until: Option<Instant>,
    /// What went wrong last, since then.
    reason: Option<String>,
}

impl Standing {
    /// Whether it may be made, or loaded, now.
    pub(crate) fn may_be_tried(&self, now: Instant) -> bool {
        self.rest_left(now).is_none()
    }

    /// How long it still rests, if it does.
    pub(crate) fn rest_left(&self, now: Instant) -> Option<Duration> {
        self.resting_until.filter(|until| *until > now).map(|until| until - now)
    }

    /// What went wrong last, unless a clone has come up since.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// A clone came up.
    pub(crate) fn came_up(&mut self) {
        *self = Standing::default();
    }

    /// A clone did not.
    pub(crate) fn did_not_come_up(&mut self, fault: Fault, reason: String, now: Instant) -> Consequence {
        self.doubt += doubt(fault);
        self.reason = Some(reason);
        // One that was made anew and has rested has shown enough of itself.
        let is_on_probation = self.was_replaced && self.rests > 0;
        let bearable = if is_on_probation { doubt(Fault::Vm) } else { DOUBT_MAX };
        if self.doubt < bearable {
            return Consequence::Keep;
        }
        self.doubt = 0;
        if std::mem::replace(&mut self.was_replaced, true) {
            Consequence::Rest(self.rest(now))
        } else {
            Consequence::Replace
        }
    }

    /// It could not be loaded or made.
    pub(crate) fn was_not_made(&mut self, reason: String, now: Instant) -> Duration {
        self.reason = Some(reason);
        self.rest(now)
    }

    fn rest(&mut self, now: Instant) -> Duration {
        let rest = REST_FIRST.saturating_mul(2_u32.saturating_pow(self.rests)).min(REST_MAX);
        self.rests = self.rests.saturating_add(1);
        self.resting_until = Some(now + rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of these failures leads to, a second after the other.
    #[track_caller]
    fn check(standing: &mut Standing, now: &mut Instant, faults: &[(Fault, Consequence)]) {
        for (number, (fault, consequence)) in faults.iter().enumerate() {
            *now += Duration::from_secs(1);
            let found = standing.did_not_come_up(*fault, "it hangs".into(), *now);
            assert_eq!(found, *consequence, "{number}: {fault:?}");
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_the_host_does_is_not_the_templates_fault() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        for _ in 0..1000 {
            check(&mut standing, &mut now, &[(Fault::Host, Consequence::Keep)]);
        }
        assert!(standing.may_be_tried(now));
        assert_eq!(standing.reason(), Some("it hangs"));
    }

    #[test]
    fn a_template_that_does_not_restore_is_replaced_once_and_then_rests_longer_and_longer() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        let keep = || (Fault::Vm, Consequence::Keep);
        check(&mut standing, &mut now, &[keep(), keep(), (Fault::Vm, Consequence::Replace)]);
        assert!(standing.may_be_tried(now), "at once");
        check(&mut standing, &mut now, &[keep(), keep(), (Fault::Vm, Consequence::Rest(MINUTE))]);
        for minutes in [1, 2, 4, 8, 16, 30, 30, 30] {
            let rest = minutes * MINUTE;
            assert!(!standing.may_be_tried(now) && !standing.may_be_tried(now + rest - Duration::from_secs(1)));
            assert_eq!(standing.rest_left(now), Some(rest));
            now += rest;
            assert!(standing.may_be_tried(now));
            // A single one is enough now.
            let next = (2 * minutes).min(30) * MINUTE;
            check(&mut standing, &mut now, &[(Fault::Host, Consequence::Keep), (Fault::Vm, Consequence::Rest(next))]);
        }
    }

    #[test]
    fn a_clone_that_comes_up_takes_all_back() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        let keep = || (Fault::Vm, Consequence::Keep);
        for _ in 0..10 {
            check(&mut standing, &mut now, &[keep(), keep()]);
            standing.came_up();
            assert_eq!(standing.reason(), None);
        }
        check(&mut standing, &mut now, &[keep(), keep(), (Fault::Vm, Consequence::Replace)]);
    }

    #[test]
    fn what_is_not_clear_counts_for_half() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        let unclear = [(); 5].map(|()| (Fault::Unclear, Consequence::Keep));
        check(&mut standing, &mut now, &unclear);
        check(&mut standing, &mut now, &[(Fault::Unclear, Consequence::Replace)]);
    }

    #[test]
    fn what_cannot_be_made_is_tried_again_after_minutes() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        for minutes in [1, 2, 4, 8, 16, 30, 30] {
            assert!(standing.may_be_tried(now));
            assert_eq!(standing.was_not_made("no memory".into(), now), minutes * MINUTE);
            assert!(!standing.may_be_tried(now));
            now += minutes * MINUTE;
        }
        standing.came_up();
        assert_eq!(standing.was_not_made("no memory".into(), now), MINUTE);
    }
}
