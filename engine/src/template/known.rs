//! What is known of one template: it is there, a task makes it, or it rests. Never waited for with a lock in hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandbox_schemas::environment::EnvironmentId;
use sandbox_schemas::image::Digest;
use sandbox_schemas::status::{TemplateState, TemplateStatus};
use tokio::sync::watch;

use crate::error::Fault;
use crate::template::Template;
use crate::template::saved::Origin;
use crate::template::standing::{Consequence, Standing};

/// What is known of one template.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// Whose it is; the base has none.
    pub(crate) id: Option<EnvironmentId>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    template: Option<Arc<Template>>,
    making: Option<Making>,
    /// The state of a template whose clones did not come up: whatever has it is damaged, wherever it lies.
    distrusted: Option<Digest>,
    last_used: Instant,
}

/// A task that makes the template, as those who wait for it see it.
#[derive(Debug, Clone)]
pub(crate) struct Making {
    since: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

type Outcome = Option<Arc<Template>>;

/// What a template is worth to who asks for it.
#[derive(Debug)]
pub(crate) enum Look {
    There(Arc<Template>),
    /// A task makes it.
    Making(Making),
    /// Nobody does, and who asks has to see to it that it is done.
    ToBeMade(Maker, Making),
    /// It was tried in vain, and is not for some time.
    Resting,
}

/// What became of waiting.
#[derive(Debug)]
pub(crate) enum Waited {
    /// There is one, or none to be had.
    Done(Outcome),
    /// It is still being made.
    InVain,
}

/// The duty to make a template. Its drop says that it was given up.
#[derive(Debug)]
pub(crate) struct Maker {
    known: Arc<Known>,
    told: watch::Sender<Option<Outcome>>,
}

impl Known {
    pub(crate) fn new(name: String, origin: Origin, id: Option<EnvironmentId>) -> Known {
        let (template, making, distrusted) = (None, None, None);
        let state = State { standing: Standing::default(), template, making, distrusted, last_used: Instant::now() };
        Known { name, origin, id, state: Mutex::new(state) }
    }

    /// How it is doing, and whose task it is to make it.
    pub(crate) fn look(self: &Arc<Self>) -> Look {
        let mut state = self.lock();
        state.last_used = Instant::now();
        if let Some(template) = &state.template {
            return Look::There(template.clone());
        }
        if let Some(making) = &state.making {
            return Look::Making(making.clone());
        }
        if !state.standing.may_be_tried(Instant::now()) {
            return Look::Resting;
        }
        let (told, outcome) = watch::channel(None);
        let making = Making { since: Instant::now(), outcome };
        state.making = Some(making.clone());
        Look::ToBeMade(Maker { known: self.clone(), told }, making)
    }

    /// The template, if it is there now.
    pub(crate) fn template(&self) -> Option<Arc<Template>> {
        self.lock().template.clone()
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.lock().last_used
    }

    pub(crate) fn distrusted(&self) -> Option<Digest> {
        self.lock().distrusted
    }

    /// A clone came up.
    pub(crate) fn came_up(&self) {
        self.lock().standing.came_up();
    }

    /// A clone of `template` did not.
    pub(crate) fn did_not_come_up(&self, template: &Arc<Template>, fault: Fault, reason: String) -> Consequence {
        let mut state = self.lock();
        // What became of an earlier one is settled.
        if !state.template.as_ref().is_some_and(|current| Arc::ptr_eq(current, template)) {
            return Consequence::Keep;
        }
        let consequence = state.standing.did_not_come_up(fault, reason, Instant::now());
        match consequence {
            Consequence::Keep => {}
            Consequence::Replace => {
                state.distrusted = Some(template.state_sha256);
                state.template = None;
            }
            Consequence::Rest(_) => state.template = None,
        }
        consequence
    }

    /// Without waiting for who makes it.
    pub(crate) fn status(&self) -> TemplateStatus {
        let state = self.lock();
        let rest = state.standing.rest_left(Instant::now());
        TemplateStatus {
            state: match &*state {
                State { template: Some(_), .. } => TemplateState::Ready,
                State { making: None, .. } if rest.is_some() => TemplateState::Failed,
                _ => TemplateState::Preparing,
            },
            key: Some(self.origin.key.to_string()),
            last_error: state.standing.reason().map(Into::into),
            retry_in_seconds: rest.map(|rest| rest.as_secs() + 1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making {
    /// Waits for what comes of it, but no longer than until `patience` after its beginning: who comes later waits for less, and
    /// nobody waits once it was waited for in vain.
    pub(crate) async fn wait(mut self, patience: Duration) -> Waited {
        let left = patience.saturating_sub(self.since.elapsed());
        match tokio::time::timeout(left, self.outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => Waited::Done(outcome.clone().flatten()),
            // It was given up: the engine ends.
            Ok(Err(_)) => Waited::Done(None),
            Err(_) => Waited::InVain,
        }
    }
}

impl Maker {
    pub(crate) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// It was made, or it is not for some time.
    pub(crate) fn finish(self, made: Result<Template, String>) -> Result<(), (String, Duration)> {
        let mut state = self.known.lock();
        let finished = match made {
            Ok(template) => {
                state.template = Some(Arc::new(template));
                Ok(())
            }
            Err(reason) => {
                let rest = state.standing.was_not_made(reason.clone(), Instant::now());
                Err((reason, rest))
            }
        };
        state.making = None;
        let template = state.template.clone();
        drop(state);
        self.told.send_replace(Some(template));
        finished
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let mut state = self.known.lock();
        // Unless it is another's already.
        if state.making.as_ref().is_some_and(|making| making.outcome.same_channel(&self.told.subscribe())) {
            state.making = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::accelerator::Accelerator;

    fn known() -> Arc<Known> {
        let (key, accelerator) = (Digest([1; 32]), Accelerator::Tcg);
        Arc::new(Known::new("base".into(), Origin { key, tsc_khz: 1, accelerator, qemu: "QEMU".into() }, None))
    }

    fn to_be_made(known: &Arc<Known>) -> (Maker, Making) {
        match known.look() {
            Look::ToBeMade(maker, making) => (maker, making),
            other => panic!("{other:?}"),
        }
    }

    fn making(known: &Arc<Known>) -> Making {
        match known.look() {
            Look::Making(making) => making,
            other => panic!("{other:?}"),
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_makes_it_and_all_others_wait_for_that() {
        let known = known();
        let (maker, first) = to_be_made(&known);
        let second = making(&known);
        assert_eq!(known.status().state, TemplateState::Preparing);
        let waiting = tokio::spawn(async move { tokio::join!(first.wait(MINUTE), second.wait(MINUTE)) });
        tokio::task::yield_now().await;
        let template = Template::for_tests(1);
        assert!(maker.finish(Ok(template)).is_ok());
        let (first, second) = waiting.await.unwrap();
        let (Waited::Done(Some(first)), Waited::Done(Some(second))) = (first, second) else { panic!() };
        let Look::There(there) = known.look() else { panic!() };
        assert!(Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first, &there));
        assert_eq!(known.status().state, TemplateState::Ready);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_ends_nothing_and_one_wait_in_vain_is_enough() {
        let known = known();
        let (maker, first) = to_be_made(&known);
        assert!(matches!(first.wait(Duration::from_millis(20)).await, Waited::InVain));
        let begun = Instant::now();
        assert!(matches!(making(&known).wait(Duration::from_millis(20)).await, Waited::InVain));
        assert!(begun.elapsed() < Duration::from_millis(20), "waited once more");
        assert!(maker.finish(Ok(Template::for_tests(1))).is_ok());
        assert!(matches!(known.look(), Look::There(_)));
    }

    #[tokio::test]
    async fn what_is_given_up_can_be_begun_again_and_what_fails_rests() {
        let known = known();
        let (maker, waiting) = to_be_made(&known);
        drop(maker);
        assert!(matches!(waiting.wait(MINUTE).await, Waited::Done(None)));
        let (maker, _) = to_be_made(&known);
        let (reason, rest) = maker.finish(Err("no memory".into())).unwrap_err();
        assert_eq!((reason.as_str(), rest), ("no memory", MINUTE));
        assert!(matches!(known.look(), Look::Resting));
        let status = known.status();
        assert_eq!((status.state, status.last_error.as_deref()), (TemplateState::Failed, Some("no memory")));
        assert!((59..=60).contains(&status.retry_in_seconds.unwrap()));
    }

    #[test]
    fn what_does_not_restore_is_made_anew_and_never_used_again() {
        let known = known();
        let (maker, _) = to_be_made(&known);
        assert!(maker.finish(Ok(Template::for_tests(1))).is_ok());
        let Look::There(bad) = known.look() else { panic!() };
        let fails = || known.did_not_come_up(&bad, Fault::Vm, "it hangs".into());
        assert_eq!([fails(), fails(), fails()], [Consequence::Keep, Consequence::Keep, Consequence::Replace]);
        assert_eq!(known.distrusted(), Some(bad.state_sha256));
        assert_eq!(known.status().last_error.as_deref(), Some("it hangs"));
        assert_eq!(fails(), Consequence::Keep, "it is gone already");
        let (maker, _) = to_be_made(&known);
        assert!(maker.finish(Ok(Template::for_tests(2))).is_ok());
        assert_eq!(fails(), Consequence::Keep, "the new one has done nothing");
        known.came_up();
        assert_eq!(known.status().last_error, None);
    }
}
