//! How many descriptors strangers may make us hold.
//!
//! The userland path of published ports and the name server open sockets at the
//! wish of whoever connects or asks. They share a part of the process' limit
//! (`RLIMIT_NOFILE`) and no more, so that a flood finds an end before the engine
//! lacks a descriptor (CATALOGUE N09, N11):
//!
//! ```text
//!   limit ──┬── 1/8 connections (two sockets each), half of them of one port
//!           ├── 1/8 questions to name servers outside
//!           └── 1/16 connections to the name server
//! ```
//!
//! A connection that finds all seats taken gets that of the one that has been
//! silent for the longest time, if it was silent for a while; otherwise it waits.
//! So idle connections are kept for as long as nobody else needs their place.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::timeout,
};

/// Who was silent for so long gives way to another.
const SILENT: Duration = Duration::from_secs(10);

/// The shares.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Connections, or peers over UDP, of all ports.
    pub(crate) seats: Arc<Seats>,
    /// Questions that wait for an answer from outside.
    pub(crate) questions: Arc<Semaphore>,
    /// Of one container.
    pub(crate) questions_each: usize,
    /// TCP connections to the name server.
    pub(crate) conversations: Arc<Semaphore>,
    /// Of one container.
    pub(crate) conversations_each: usize,
}

impl Budget {
    /// Shares of so many descriptors.
    pub(crate) fn of(descriptors: u64) -> Self {
        let share = |part: u64, least, most| (descriptors / part).clamp(least, most) as usize;
        let connections = share(8, 16, 2048);
        let questions = share(8, 16, 1024);
        let conversations = share(16, 8, 512);
        Self {
            seats: Arc::new(Seats::new(connections, (connections / 2).min(512), SILENT)),
            questions: Arc::new(Semaphore::new(questions)),
            questions_each: (questions / 2).min(128),
            conversations: Arc::new(Semaphore::new(conversations)),
            conversations_each: (conversations / 2).min(32),
        }
    }
}

/// Places for connections of published ports.
#[derive(Debug)]
pub(crate) struct Seats {
    all: usize,
    each: usize,
    silent: Duration,
    start: Instant,
    taken: Mutex<Taken>,
    /// Somebody left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    seats: HashMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    port: u64,
    heard: Arc<AtomicU64>,
    /// Dropped to send it away.
    _stay: oneshot::Sender<()>,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    id: u64,
    ear: Ear,
    stay: oneshot::Receiver<()>,
}

/// Hears the holder of a seat.
#[derive(Debug, Clone)]
pub(crate) struct Ear {
    seats: Arc<Seats>,
    /// Milliseconds since the start when the holder was last heard.
    heard: Arc<AtomicU64>,
}

impl Seats {
    pub(crate) fn new(all: usize, each: usize, silent: Duration) -> Self {
        let (taken, left) = (Mutex::default(), Notify::new());
        Self { all, each, silent, start: Instant::now(), taken, left }
    }

    /// A number that tells one port's seats from another's.
    pub(crate) fn port(&self) -> u64 {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.next += 1;
        taken.next
    }

    /// A seat at once, that of a silent one perhaps, or none.
    pub(crate) fn try_take(self: &Arc<Self>, port: u64) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.seats.values().filter(|holder| holder.port == port).count();
        if own >= self.each || taken.seats.len() >= self.all {
            // A port that has its share makes room among its own.
            let crowded = own >= self.each;
            let rivals = taken.seats.iter().filter(|(_, rival)| !crowded || rival.port == port);
            let heard = |holder: &Holder| holder.heard.load(Ordering::Relaxed);
            let (id, last) =
                rivals.map(|(id, rival)| (*id, heard(rival))).min_by_key(|(_, last)| *last)?;
            if Duration::from_millis(self.now().saturating_sub(last)) < self.silent {
                return None;
            }
            taken.seats.remove(&id);
        }
        taken.next += 1;
        let id = taken.next;
        let heard = Arc::new(AtomicU64::new(self.now()));
        let (stay, staying) = oneshot::channel();
        taken.seats.insert(id, Holder { port, heard: Arc::clone(&heard), _stay: stay });
        let ear = Ear { seats: Arc::clone(self), heard };
        Some(Seat { id, ear, stay: staying })
    }

    /// A seat, as soon as somebody leaves or was silent for long enough.
    pub(crate) async fn take(self: &Arc<Self>, port: u64) -> Seat {
        loop {
            let left = self.left.notified();
            if let Some(seat) = self.try_take(port) {
                return seat;
            }
            // Silence makes no noise: it is looked for.
            let _ = timeout(Duration::from_secs(1), left).await;
        }
    }

    /// How many seats a port has taken.
    #[cfg(test)]
    pub(crate) fn taken(&self, port: u64) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.seats.values().filter(|holder| holder.port == port).count()
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

impl Seat {
    /// What hears its holder.
    pub(crate) fn ear(&self) -> &Ear {
        &self.ear
    }

    /// Returns when the seat is another's.
    pub(crate) async fn lost(&mut self) {
        let _ = (&mut self.stay).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = &self.ear.seats;
        seats.taken.lock().unwrap_or_else(PoisonError::into_inner).seats.remove(&self.id);
        seats.left.notify_waiters();
    }
}

impl Ear {
    /// The holder was heard just now.
    pub(crate) fn heard(&self) {
        self.heard.store(self.seats.now(), Ordering::Relaxed);
    }

    /// How long the holder has been silent.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.seats.now().saturating_sub(self.heard.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_the_data_path_never_has_half_of_the_descriptors() {
        for limit in [256, 1024, 4096, 1 << 20] {
            let budget = Budget::of(limit);
            let held = 2 * budget.seats.all
                + budget.questions.available_permits()
                + budget.conversations.available_permits();
            assert!(held as u64 <= limit / 2, "{held} of {limit}");
            assert!(budget.seats.each * 2 <= budget.seats.all, "no port has all seats");
            assert!(budget.questions_each * 2 <= budget.questions.available_permits());
        }
    }

    #[tokio::test]
    async fn n11_the_longest_silent_gives_way_and_nobody_else() {
        let seats = Arc::new(Seats::new(3, 2, Duration::ZERO));
        let (one, other) = (seats.port(), seats.port());
        let mut first = seats.try_take(one).unwrap();
        let mut second = seats.try_take(one).unwrap();
        let elsewhere = seats.try_take(other).unwrap();
        while seats.now() < 2 {
            tokio::task::yield_now().await;
        }
        // The first was heard since; the other port's was not, and is left alone.
        first.ear().heard();
        let third = seats.try_take(one).unwrap();
        second.lost().await;
        assert!(timeout(Duration::ZERO, first.lost()).await.is_err());
        drop(second);
        assert_eq!(seats.taken.lock().unwrap().seats.len(), 3);
        drop((first, third, elsewhere));
        assert!(seats.taken.lock().unwrap().seats.is_empty());
    }

    #[tokio::test]
    async fn n11_who_was_heard_keeps_its_seat() {
        let seats = Arc::new(Seats::new(4, 1, Duration::from_secs(1000)));
        let (one, other) = (seats.port(), seats.port());
        let held = seats.try_take(one).unwrap();
        assert!(seats.try_take(one).is_none());
        assert!(seats.try_take(other).is_some(), "another port has seats of its own");
        let waiting = {
            let seats = Arc::clone(&seats);
            tokio::spawn(async move { seats.take(one).await.id })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
    }
}
