//! Connections of a service: how many, whose, and how slow they may be.
//!
//! ```text
//!   accept ─▶ Seats: so many in all, so many of one source
//!     │
//!     ▼            first byte of a head              answer begins
//!   waiting ─────────────────────────────▶ busy ──────────────────▶ busy ─▶ waiting …
//!     │ HEAD, or HEAD_CROWDED where             │ Pace: nothing moves for STALL, or less
//!     │ hardly a seat is free                   │ than a kibibyte for STALL_CROWDED where
//!     ▼                                         ▼ requests wait for their turn
//!   closed                                    closed, and its instance ends
//! ```
//!
//! Nobody is hurried while there is room. Where others wait, a client that does not send
//! its head, does not send its body or does not read its answer gives up its place.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, Sleep, sleep_until},
};
use wasmtime_wasi_http::Error;

use crate::turns::Turns;

/// How long a client may take for a request's head, or idle before it.
pub(crate) const HEAD: Duration = Duration::from_secs(30);
/// The same where hardly a seat is free.
const HEAD_CROWDED: Duration = Duration::from_secs(2);
/// How long nothing may move in a body that somebody waits for.
const STALL: Duration = Duration::from_secs(60);
/// How long [`LITTLE`] may take to move where other requests wait.
const STALL_CROWDED: Duration = Duration::from_secs(5);
/// Less than this is no progress to speak of, in bytes.
const LITTLE: usize = 1024;
/// How often it is looked at.
const STEP: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The places for connections.
#[derive(Debug)]
pub(crate) struct Seats {
    free: Arc<Semaphore>,
    all: usize,
    sources: Mutex<HashMap<Source, usize>>,
    crowded: watch::Sender<bool>,
}

/// Who a connection is from: an address, or an IPv6 network of the size that one
/// subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source([u8; 8]);

impl Source {
    fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(four) => bytes[4..].copy_from_slice(&four.octets()),
            IpAddr::V6(six) => bytes.copy_from_slice(&six.octets()[..8]),
        }
        Self(bytes)
    }
}

impl Seats {
    /// So many, all of them free.
    pub(crate) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(all)),
            all,
            sources: Mutex::default(),
            crowded: watch::Sender::new(false),
        })
    }

    /// Waits for a free one. None only where there are none any more.
    pub(crate) async fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Waits until all are free.
    pub(crate) async fn all_free(&self) {
        let all = u32::try_from(self.all).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.free.acquire_many(all).await;
    }

    /// Gives it to a client; none where its source has more than its part: three quarters,
    /// for a proxy in front of a service is one source.
    pub(crate) fn seat(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        client: IpAddr,
    ) -> Option<Seat> {
        let source = Source::of(client);
        let mut sources = lock(&self.sources);
        let taken = sources.entry(source).or_default();
        if *taken >= self.all - self.all / 4 {
            return None;
        }
        *taken += 1;
        drop(sources);
        self.look();
        Some(Seat { seats: Arc::clone(self), source, permit: Some(permit) })
    }

    /// Crowded is where less than an eighth is free.
    fn look(&self) {
        let crowded = self.free.available_permits() < self.all / 8;
        self.crowded.send_if_modified(|before| std::mem::replace(before, crowded) != crowded);
    }
}

/// A client's place.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    source: Source,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sources = lock(&self.seats.sources);
        if let Some(taken) = sources.get_mut(&self.source) {
            *taken -= 1;
            if *taken == 0 {
                sources.remove(&self.source);
            }
        }
        drop(sources);
        self.permit = None;
        self.seats.look();
    }
}

/// What its stream, its requests and its clock know of one connection.
#[derive(Debug)]
pub(crate) struct Life {
    /// Since when it waits for a head; none while a request is answered.
    waiting: Mutex<Option<Instant>>,
    changed: Notify,
    /// Closed with a reset: its end would look like the end of an answer.
    reset: AtomicBool,
}

impl Life {
    /// Of a connection that has just begun.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Some(Instant::now())),
            changed: Notify::new(),
            reset: AtomicBool::new(false),
        })
    }

    /// A request is being answered, as long as what comes back is held.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        *lock(&self.waiting) = None;
        self.changed.notify_one();
        Busy(Arc::clone(self))
    }

    /// Its end must not look like the end of what was sent.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Returns when it has waited too long.
    pub(crate) async fn waited(&self, seat: &Seat) {
        let mut crowded = seat.seats.crowded.subscribe();
        loop {
            let limit = if *crowded.borrow_and_update() { HEAD_CROWDED } else { HEAD };
            let since = *lock(&self.waiting);
            let over = async {
                match since {
                    Some(since) => sleep_until(since + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => if *lock(&self.waiting) == since { return },
                () = self.changed.notified() => {}
                _ = crowded.changed() => {}
            }
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Life>);

impl Busy {
    /// The connection that it came by.
    pub(crate) fn life(&self) -> &Life {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.0.waiting) = Some(Instant::now());
        self.0.changed.notify_one();
    }
}

/// How far a transfer has come that somebody waits for.
#[derive(Debug, Default)]
struct Progress {
    /// While somebody waits: since when, and when something moved last.
    waiting: Option<(Instant, Instant)>,
    moved: usize,
}

impl Progress {
    /// So many bytes moved; whether that was enough to begin anew.
    fn moved(&mut self, bytes: usize, now: Instant) -> bool {
        self.moved += bytes;
        match &mut self.waiting {
            Some((_, last)) if self.moved < LITTLE => {
                *last = now;
                false
            }
            _ => {
                *self = Self::default();
                true
            }
        }
    }

    /// Nothing moves now: whether it has been so for too long.
    fn is_late(&mut self, now: Instant, crowded: bool) -> bool {
        let (since, last) = *self.waiting.get_or_insert((now, now));
        now - last >= STALL || (crowded && now - since >= STALL_CROWDED)
    }
}

/// [`Progress`] with a clock.
#[derive(Debug)]
struct Pace {
    turns: Arc<Turns>,
    progress: Progress,
    next: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(turns: Arc<Turns>) -> Self {
        Self { turns, progress: Progress::default(), next: None }
    }

    fn moved(&mut self, bytes: usize) {
        if self.progress.moved(bytes, Instant::now()) {
            self.next = None;
        }
    }

    /// Nothing moved at this look: whether it has been so for too long. Looks again in time.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            let now = Instant::now();
            if self.progress.is_late(now, self.turns.are_out()) {
                return true;
            }
            let next = self.next.get_or_insert_with(|| Box::pin(sleep_until(now + STEP)));
            match next.as_mut().poll(context) {
                Poll::Pending => return false,
                Poll::Ready(()) => self.next = None,
            }
        }
    }
}

/// A connection whose client must read what it asked for.
#[derive(Debug)]
pub(crate) struct Paced {
    stream: TcpStream,
    pace: Pace,
    life: Arc<Life>,
}

impl Paced {
    /// `turns` are those of all requests.
    pub(crate) fn new(stream: TcpStream, turns: &Arc<Turns>, life: &Arc<Life>) -> Self {
        Self { stream, pace: Pace::new(Arc::clone(turns)), life: Arc::clone(life) }
    }

    fn written(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match done {
            Poll::Ready(Ok(bytes)) => {
                self.pace.moved(bytes);
                // What is on its way to the client is no idleness of its.
                if let Some(since) = &mut *lock(&self.life.waiting) {
                    *since = Instant::now();
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending if self.pace.is_late(context) => {
                self.life.reset();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, data);
        self.written(context, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.written(context, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.life.reset.load(Ordering::Relaxed) {
            // An orderly end is what it must not look like.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        if self.life.reset.load(Ordering::Relaxed) {
            // A socket that lingers for no time at all is closed with a reset.
            let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

/// A request's body whose client must send it while the guest waits for it.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    pace: Pace,
}

impl Upload {
    /// `turns` are those of all requests.
    pub(crate) fn new(body: Incoming, turns: &Arc<Turns>) -> Self {
        Self { body, pace: Pace::new(Arc::clone(turns)) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending if self.pace.is_late(context) => {
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
            frame => {
                let frame = ready!(frame);
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                self.pace.moved(data.map_or(LITTLE, |data| data.len()));
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn w14_no_source_has_all_the_seats() {
        let seats = Seats::new(8);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let mut taken = Vec::new();
        for _ in 0..6 {
            taken.push(seats.seat(seats.free().await.unwrap(), one).unwrap());
        }
        assert!(seats.seat(seats.free().await.unwrap(), one).is_none());
        // The same client by another name.
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(seats.seat(seats.free().await.unwrap(), mapped).is_none());
        let other = "192.0.2.2".parse().unwrap();
        taken.push(seats.seat(seats.free().await.unwrap(), other).unwrap());
        assert!(!*seats.crowded.borrow());
        taken.push(seats.seat(seats.free().await.unwrap(), other).unwrap());
        assert!(*seats.crowded.borrow());
        taken.clear();
        assert!(!*seats.crowded.borrow());
        assert!(lock(&seats.sources).is_empty());
        seats.all_free().await;
    }

    #[test]
    fn w14_a_crowd_makes_trickles_too_slow() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut quiet = Progress::default();
        assert!(!quiet.is_late(at(0), false));
        assert!(!quiet.is_late(at(59), false));
        // The least progress is enough where there is room.
        assert!(!quiet.moved(1, at(59)));
        assert!(!quiet.is_late(at(118), false));
        assert!(quiet.is_late(at(119), false));
        // A byte now and then keeps no place from others.
        let mut trickle = Progress::default();
        assert!(!trickle.is_late(at(0), true));
        assert!(!trickle.moved(LITTLE - 1, at(4)));
        assert!(trickle.is_late(at(5), true));
        // A kibibyte does, for as long again.
        let mut slow = Progress::default();
        assert!(!slow.is_late(at(0), true));
        assert!(slow.moved(LITTLE, at(4)));
        assert!(!slow.is_late(at(5), true));
        assert!(!slow.is_late(at(9), true));
        assert!(slow.is_late(at(10), true));
    }
}
