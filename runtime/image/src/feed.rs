//! Bytes on their way from async code to a blocking reader.
//!
//! **How it fails.** A feed that ends without [`Piece::End`] was broken off: the
//! reader sees an error, never a clean end, so that what is half there is not
//! taken for whole.

use std::io::{self, Read};

use bytes::Bytes;
use knarr_store::Ingest;
use tokio::sync::mpsc;

use crate::progress::Bar;

/// How many pieces wait at most.
pub(crate) const DEPTH: usize = 16;

/// One piece of a feed.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// Everything so far is void; what follows begins at 0.
    Restart,
    /// Nothing follows.
    End,
}

/// The blocking end.
#[derive(Debug)]
pub(crate) struct Feed {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    /// A [`Piece::Restart`] came.
    pub(crate) restarted: bool,
}

impl Feed {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), ended: false, restarted: false }
    }

    /// Data that is there, waiting for it where there is none; empty at the end.
    fn fill(&mut self) -> io::Result<&mut Bytes> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Restart) => {
                    self.restarted = true;
                    return Err(io::Error::other("the content changed during the transfer"));
                }
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the transfer broke off",
                    ));
                }
            }
        }
        Ok(&mut self.current)
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill()?;
        let take = data.len().min(buffer.len());
        buffer[..take].copy_from_slice(&data.split_to(take));
        Ok(take)
    }
}

/// Reads a feed and keeps a copy: what an earlier attempt left comes first.
#[derive(Debug)]
pub(crate) struct Tee {
    pub(crate) ingest: Ingest,
    pub(crate) feed: Feed,
    pub(crate) bar: Bar,
    /// The store's failure, which an `io::Error` cannot carry in full.
    pub(crate) failed: Option<knarr_store::Error>,
}

impl Tee {
    /// Begins anew after a restart of the feed.
    pub(crate) fn restart(&mut self) -> knarr_store::Result<()> {
        self.feed.restarted = false;
        self.failed = None;
        self.ingest.discard()
    }

    fn fail(&mut self, error: knarr_store::Error) -> io::Error {
        let message = error.to_string();
        self.failed.get_or_insert(error);
        io::Error::other(message)
    }
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ingest.read_back(buffer) {
            Ok(0) => {}
            Ok(read) => {
                self.bar.downloading(self.ingest.written());
                return Ok(read);
            }
            Err(e) => return Err(self.fail(e)),
        }
        let read = self.feed.read(buffer)?;
        if let Err(e) = self.ingest.write(&buffer[..read]) {
            return Err(self.fail(e));
        }
        self.bar.downloading(self.ingest.written());
        Ok(read)
    }
}
