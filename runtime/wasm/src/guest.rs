//! What the host keeps for one instance, and how much of the host it may use.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use wasmtime::{ResourceLimiter, Result, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::outgoing::Outgoing;

/// Elements of one table; a function table of clang's size has 30,000.
const MAX_TABLE: usize = 1_000_000;
/// Core instances, memories and tables of one program, each.
const MAX_PARTS: usize = 1_000;
/// Files, sockets, streams and requests that one instance holds.
const MAX_HANDLES: usize = 100_000;

/// State of a component's instance.
pub(crate) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    outgoing: Outgoing,
    /// Its share of the memory.
    pub(crate) limits: Limits,
}

impl Guest {
    /// An instance that has used nothing yet.
    pub(crate) fn new(wasi: WasiCtx, outgoing: Outgoing, limits: Limits) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        Self { wasi, http: WasiHttpCtx::new(), table, outgoing, limits }
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

/// The linear memory that all instances of a container share.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget in bytes; none leaves it to the container's cgroup.
    pub(crate) fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit: limit.unwrap_or(u64::MAX), used: AtomicU64::new(0) })
    }

    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }
}

/// One instance's part of the [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Limits {
    budget: Arc<Budget>,
    held: u64,
}

impl Limits {
    /// Nothing held yet.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), held: 0 }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, now: usize, wanted: usize, max: Option<usize>) -> Result<bool> {
        let more = wanted.saturating_sub(now) as u64;
        if max.is_some_and(|max| wanted > max) || !self.budget.take(more) {
            return Ok(false);
        }
        // Stays taken where the growth then fails for want of host memory: the
        // failure does not say which growth it was, and a guest must not be able
        // to get back what it holds.
        self.held += more;
        Ok(true)
    }

    fn table_growing(&mut self, _now: usize, wanted: usize, max: Option<usize>) -> Result<bool> {
        Ok(wanted <= MAX_TABLE && max.is_none_or(|max| wanted <= max))
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w02_instances_share_one_budget() {
        let budget = Budget::new(Some(100));
        let mut one = Limits::new(&budget);
        let mut two = Limits::new(&budget);
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(!two.memory_growing(0, 60, None).unwrap());
        assert!(two.memory_growing(0, 40, None).unwrap());
        assert!(!one.memory_growing(60, 61, None).unwrap());
        drop(two);
        assert!(one.memory_growing(60, 100, None).unwrap());
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn w02_a_failed_growth_frees_nothing() {
        let budget = Budget::new(Some(100));
        let mut one = Limits::new(&budget);
        assert!(one.memory_growing(0, 50, None).unwrap());
        // wasmtime says so too of growths that it never asked about.
        one.memory_grow_failed(wasmtime::Error::msg("beyond the type's limits")).unwrap();
        assert!(!one.memory_growing(50, 101, None).unwrap());
        assert!(one.memory_growing(50, 100, None).unwrap());
    }

    #[test]
    fn w03_tables_end_at_a_million() {
        let mut one = Limits::new(&Budget::new(None));
        assert!(one.table_growing(0, MAX_TABLE, None).unwrap());
        assert!(!one.table_growing(0, MAX_TABLE + 1, None).unwrap());
        assert!(!one.table_growing(0, 11, Some(10)).unwrap());
    }
}
