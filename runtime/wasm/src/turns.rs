//! Who runs: so many requests at once, and only while there is memory for one more.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::budget::Budget;

/// How often it is looked whether there is memory again.
const PAUSE: Duration = Duration::from_millis(20);

/// The turns of all requests.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Arc<Semaphore>,
    all: u32,
    budget: Arc<Budget>,
    /// What an instance begins with, in bytes.
    beginning: u64,
}

impl Turns {
    /// As many as there is memory for instances that begin with so much, in bytes; `most` at
    /// most.
    pub(crate) fn new(budget: &Arc<Budget>, beginning: u64, most: u32) -> Arc<Self> {
        let all = budget.division().instances(beginning, most);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(all as usize)),
            all,
            budget: Arc::clone(budget),
            beginning,
        })
    }

    /// Waits for one, so long at most.
    pub(crate) async fn take(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let taken = timeout(patience, async {
            // It is never closed.
            let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
            while !self.budget.has_room(self.beginning) {
                sleep(PAUSE).await;
            }
            Some(permit)
        });
        taken.await.ok().flatten()
    }

    /// Whether the next request has to wait.
    pub(crate) fn are_out(&self) -> bool {
        self.free.available_permits() == 0 || !self.budget.has_room(self.beginning)
    }

    /// Waits until nobody runs.
    pub(crate) async fn all_free(&self) {
        let _ = self.free.acquire_many(self.all).await;
    }
}
