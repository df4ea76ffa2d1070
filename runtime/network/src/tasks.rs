//! The thread on which this room's sockets are served.
//!
//! Names and the userland path of published ports are answered on a runtime of
//! their own: they go on while the engine is busy, and when a socket has to be
//! closed, whoever closes it can wait for that without being in its own way.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::mpsc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot, task::AbortHandle};

/// The thread; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts it, in the network namespace of the caller.
    pub(crate) fn start() -> io::Result<Self> {
        // Threads for what blocks: flows that are forgotten, a file that is read.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("knarr-network".into())
            .stack_size(512 << 10)
            .spawn(move || {
                let _ = runtime.block_on(stopped);
            })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Does something that takes its time, elsewhere.
    pub(crate) fn blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.handle.spawn_blocking(work);
    }

    /// A group of tasks.
    pub(crate) fn tasks(&self) -> Tasks {
        let (gone, ended) = mpsc::channel();
        Tasks { handle: self.handle.clone(), aborts: Vec::new(), gone: Some(gone), ended }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The last to let go may be a task on the thread itself.
        let other =
            |thread: &thread::JoinHandle<()>| thread.thread().id() != thread::current().id();
        if let Some(thread) = self.thread.take().filter(other) {
            let _ = thread.join();
        }
    }
}

/// Tasks that end together, and with them the sockets they own.
#[derive(Debug)]
pub(crate) struct Tasks {
    handle: Handle,
    aborts: Vec<AbortHandle>,
    gone: Option<mpsc::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Tasks {
    /// Adds one.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(gone) = self.gone.clone() else { return };
        let task = Last { task: Box::pin(task), _gone: gone };
        self.aborts.push(self.handle.spawn(task).abort_handle());
    }

    /// Lets the tasks run until the thread ends.
    pub(crate) fn detach(mut self) {
        self.aborts.clear();
        self.gone = None;
        // Nobody waits for them.
        self.ended = mpsc::channel().1;
    }
}

/// A task that says when the last of it is gone: fields are dropped in order.
struct Last {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    _gone: mpsc::Sender<()>,
}

impl Future for Last {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.task.as_mut().poll(context)
    }
}

impl Drop for Tasks {
    /// Returns when the tasks are gone and their sockets closed.
    fn drop(&mut self) {
        for task in &self.aborts {
            task.abort();
        }
        drop(self.gone.take());
        // Bounded, in case the thread is gone or the caller is on it.
        let _ = self.ended.recv_timeout(Duration::from_secs(1));
    }
}
