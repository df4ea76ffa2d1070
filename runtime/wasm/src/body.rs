//! Bodies that a guest writes: complete only where it was the guest that ended them.
//!
//! ```text
//!   guest ── writes ──▶ queue ──▶ reader
//!     │ finish ────────────────▶ end            the body is complete
//!     └ trap, or dropped ──────▶ end ─ Fate ──▶ error: the reader breaks off, and whoever
//!                                               is behind it sees a chunk without an end,
//!                                               too few bytes, or a reset
//! ```
//!
//! wasmtime ends the queue of a guest that is gone as that of one that has finished. So the
//! [`Fate`] of each instance is known to all that it writes, before its queues end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::Error;

/// Whether an instance broke off. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fate(Arc<AtomicBool>);

impl Fate {
    /// Whether it trapped or was dropped while it ran.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// What is dropped before the instance's store: broken, unless [`Ending::well`] was said.
    pub(crate) fn ending(&self) -> Ending {
        Ending { fate: self.clone(), well: false }
    }
}

/// The last moment of an instance.
#[derive(Debug)]
pub(crate) struct Ending {
    fate: Fate,
    well: bool,
}

impl Ending {
    /// It came to its end by itself.
    pub(crate) fn well(&mut self) {
        self.well = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.well {
            self.fate.0.store(true, Ordering::Release);
        }
    }
}

/// A guest's body that ends with an error where its guest broke off.
pub(crate) struct Whole<B> {
    body: B,
    fate: Fate,
}

impl<B> Whole<B> {
    /// The body of the instance whose fate that is.
    pub(crate) fn new(body: B, fate: &Fate) -> Self {
        Self { body, fate: fate.clone() }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Whole<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(None) if self.fate.is_broken() => Poll::Ready(Some(Err(
                Error::InternalError(Some("the program ended before its body did".to_owned())),
            ))),
            other => other,
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
    use http_body_util::{BodyExt as _, Empty};

    use super::*;

    #[test]
    fn w14_the_body_of_a_guest_that_broke_off_is_broken() {
        let end = |well| {
            let fate = Fate::default();
            let mut ending = fate.ending();
            if well {
                ending.well();
            }
            drop(ending);
            let empty = Empty::<Bytes>::new().map_err(|never| match never {});
            let mut body = Whole::new(empty, &fate);
            let mut context = Context::from_waker(std::task::Waker::noop());
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(None) => true,
                Poll::Ready(Some(Err(_))) => false,
                _ => panic!("neither an end nor an error"),
            }
        };
        assert!(end(true));
        assert!(!end(false));
    }
}
