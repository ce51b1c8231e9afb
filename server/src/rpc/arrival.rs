//! The order in which requests came in, for those that have to begin in it: each is worked on by a task of its own, and tasks
//! overtake one another.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::poll;
use tokio::sync::OwnedMutexGuard;
use tokio::task::unconstrained;

/// Where requests come in, one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entrance(Arc<tokio::sync::Mutex<()>>);

type Way = Pin<Box<dyn Future<Output = OwnedMutexGuard<()>> + Send>>;

/// A request's place among those that came in.
#[derive(Clone)]
pub(crate) struct Arrival(Arc<Mutex<Option<Way>>>);

impl Entrance {
    /// The next place.
    pub(crate) fn arrive(&self) -> Arrival {
        let mut way: Way = Box::pin(self.0.clone().lock_owned());
        // Only once it was asked does it wait among the others.
        let way = match unconstrained(&mut way).now_or_never() {
            Some(free) => Box::pin(std::future::ready(free)),
            None => way,
        };
        Arrival(Arc::new(Mutex::new(Some(way))))
    }
}

impl Arrival {
    /// Begins some work when all has begun that came before it and begins like this: by as much as it does without waiting.
    pub(crate) async fn begin<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let Some(way) = self.take() else { return work.await };
        let free = way.await;
        if let Poll::Ready(result) = poll!(&mut work) {
            return result;
        }
        drop(free);
        work.await
    }

    /// It may begin at any time, and others need not wait for it.
    pub(crate) fn let_pass(&self) {
        drop(self.take());
    }

    fn take(&self) -> Option<Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arrival")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_begins_in_the_order_in_which_it_came() {
        let entrance = Entrance::default();
        let (begun, end) = (Mutex::new(Vec::new()), tokio::sync::Semaphore::new(0));
        let work = |number: u32| {
            let (begun, end) = (&begun, &end);
            async move {
                begun.lock().unwrap().push(number);
                drop(end.acquire().await);
                number
            }
        };
        let [first, second, third] = [(); 3].map(|()| entrance.arrive());
        second.let_pass();
        let mut late = pin!(third.begin(work(3)));
        assert!((&mut late).now_or_never().is_none());
        assert!(begun.lock().unwrap().is_empty(), "it began before the first");
        let mut early = pin!(first.begin(work(1)));
        assert!((&mut early).now_or_never().is_none());
        // The first goes on waiting, for what it waits for.
        assert!((&mut late).now_or_never().is_none());
        assert_eq!(*begun.lock().unwrap(), [1, 3]);
        end.add_permits(2);
        assert_eq!((late.await, early.await), (3, 1));
        // What came in before and was dropped holds nobody up.
        drop(entrance.arrive());
        assert_eq!(entrance.arrive().begin(work(4)).await, 4);
    }
}
