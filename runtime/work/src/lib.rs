//! Threads for work that takes its time.
//!
//! ```text
//!   work with a bound on its time ──► tokio's blocking pool      (rows, netlink, fork)
//!   everything else ──► a lane:  wait for a place ──► a thread of its own ──► answer
//! ```
//!
//! tokio's pool of blocking threads is small and shared, and every start of a
//! container needs it several times. Work whose end depends on a peer, or on
//! how much somebody stored, would fill it and stop all starts. Such work has
//! a [`Lane`]: so many places, waited for in order and without a thread, and a
//! thread for as long as the work lasts. Lanes do not wait for each other.
//!
//! Which lane: a peer decides how long it takes, [`FEEDS`]; a tree or an
//! archive on the disk does, one of the others. What touches a few rows, a few
//! files of ours or the kernel stays with `tokio::task::spawn_blocking`. Work
//! in a lane never waits for a place in the same lane.
//!
//! **How it fails.** [`Error`] when no thread can be had or the work panicked.
//! A caller that goes away while it waits takes its work with it; work that has
//! begun goes on to its end.

#![forbid(unsafe_code)]

use std::{io, thread};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// Content on its way in: each thread lasts as long as a registry or a client
/// takes to send it. Three layers of a pull, one archive of a load.
pub static FEEDS: Lane = Lane::new("knarr-feed", 128);
/// Content that is here: unpacking, hashing, detecting, publishing, sweeping.
pub static CONTENT: Lane = Lane::new("knarr-content", 6);
/// Copies of an image's files into a new volume: a start waits for its own.
pub static COPIES: Lane = Lane::new("knarr-copy", 16);
/// Trees that are deleted.
pub static DELETIONS: Lane = Lane::new("knarr-delete", 4);
/// Trees that are measured.
pub static WALKS: Lane = Lane::new("knarr-walk", 4);
/// Wasm modules that are checked, and wait for the turn to be compiled.
pub static COMPILES: Lane = Lane::new("knarr-compile", 4);

/// Enough for any work here, none of which recurses; only what is touched is memory.
const STACK: usize = 1 << 20;

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system has no thread to give.
    #[error("start a thread of {lane}")]
    Thread {
        /// Which lane.
        lane: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It panicked; the panic's message is on standard error.
    #[error("work of {0} panicked")]
    Panicked(&'static str),
}

/// A number of places for one kind of work.
#[derive(Debug)]
pub struct Lane {
    /// Of its threads, at most 15 bytes.
    name: &'static str,
    places: Semaphore,
}

/// A place that was waited for.
#[derive(Debug)]
pub struct Place {
    lane: &'static Lane,
    permit: SemaphorePermit<'static>,
}

/// Work that has begun.
#[derive(Debug)]
pub struct Running<T> {
    lane: &'static str,
    answer: oneshot::Receiver<T>,
}

impl Lane {
    /// A lane with so many places.
    pub const fn new(name: &'static str, places: usize) -> Self {
        Self { name, places: Semaphore::const_new(places) }
    }

    /// Waits for a place, first come first served.
    pub async fn place(&'static self) -> Place {
        loop {
            // The semaphore is never closed; the loop is for the types alone.
            if let Ok(permit) = self.places.acquire().await {
                return Place { lane: self, permit };
            }
        }
    }

    /// Waits for a place, does the work there and answers its outcome.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.place().await.start(work)?.outcome().await
    }
}

impl Place {
    /// Begins the work on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Running<T>, Error> {
        let Self { lane, permit } = self;
        let (say, answer) = oneshot::channel();
        let begin = thread::Builder::new().name(lane.name.to_owned()).stack_size(STACK);
        begin
            .spawn(move || {
                // Free before the answer is heard; a panic frees it, too.
                let outcome = work();
                drop(permit);
                let _ = say.send(outcome);
            })
            .map_err(|source| Error::Thread { lane: lane.name, source })?;
        Ok(Running { lane: lane.name, answer })
    }
}

impl<T> Running<T> {
    /// What came of it.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub async fn outcome(self) -> Result<T, Error> {
        self.answer.await.map_err(|_| Error::Panicked(self.lane))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc,
        task::{Context, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn a_full_lane_waits_without_holding_up_another() {
        static ONE: Lane = Lane::new("one", 2);
        static OTHER: Lane = Lane::new("other", 1);
        let (end, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let mut running = Vec::new();
        for _ in 0..2 {
            let wait = wait.clone();
            running.push(ONE.place().await.start(move || wait.lock().unwrap().recv()).unwrap());
        }
        let mut third = pin!(ONE.place());
        let looked = third.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(looked.is_pending(), "there are two places, and both are taken");
        assert_eq!(OTHER.run(|| 7).await.unwrap(), 7);
        end.send(()).unwrap();
        assert_eq!(third.await.start(|| 3).unwrap().outcome().await.unwrap(), 3);
        end.send(()).unwrap();
        for one in running {
            one.outcome().await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_frees_its_place_and_is_an_error() {
        static ONE: Lane = Lane::new("one", 1);
        let panicked = ONE.run(|| panic!("on purpose")).await;
        assert!(matches!(panicked, Err(Error::Panicked("one"))), "{panicked:?}");
        assert_eq!(ONE.run(|| 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn who_no_longer_waits_takes_its_work_along() {
        static ONE: Lane = Lane::new("one", 1);
        let (end, wait) = mpsc::channel::<()>();
        let running = ONE.place().await.start(move || wait.recv()).unwrap();
        let (say, heard) = mpsc::channel::<()>();
        let second = tokio::spawn(ONE.run(move || say.send(())));
        tokio::task::yield_now().await;
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        end.send(()).unwrap();
        running.outcome().await.unwrap().unwrap();
        assert!(heard.recv().is_err(), "the work was dropped, not done");
    }
}
