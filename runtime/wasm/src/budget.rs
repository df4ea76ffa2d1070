//! How the memory of a container is divided between the guest and its host.
//!
//! ```text
//!   the container's limit
//!   ├── the host's own: threads, kernel objects, socket buffers, pages that malloc keeps
//!   ├── margin ──── upper half: nobody's
//!   │          └─── lower half: host calls still work, growth does not
//!   └── growth ──── memories + tables + stacks + the host's heap, counted together
//! ```
//!
//! The kernel ends a whole container that goes beyond its limit, so a guest must fail
//! first: `memory.grow` and `table.grow` answer -1 where the growth does not fit, an
//! instance that does not fit is not made, and a guest whose host calls make the heap grow
//! past the margin's middle traps ([`Budget::is_over`]). What a guest makes the host hold
//! is not estimated: the heap itself is counted (`knarr_sys::heap_held`).
//!
//! Everything is charged as if it were touched: a promise that the kernel cannot keep is
//! none.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use wasmtime::{ResourceLimiter, Result};

/// Where no limit is set: what one 32-bit memory can hold.
const NO_LIMIT: u64 = 4 << 30;
/// What the host needs beside its heap. Measured of an idle service: 3 to 4 MiB of relocated
/// data, stacks of threads and kernel memory; the code itself is pages of files, which the
/// kernel takes back.
const HOST: u64 = 6 << 20;
/// The kernel's part of an idle connection, in bytes: socket, file, timers.
const CONNECTION: u64 = 8 << 10;
/// Bytes of one element of a table of functions.
const ELEMENT: u64 = 8;
/// Elements of one table; a function table of clang's size has 30,000.
const MAX_TABLE: usize = 1_000_000;
/// Core instances, memories and tables of one program, each.
const MAX_PARTS: usize = 1_000;
/// Stack of a guest that has the process alone, at most: as much as Linux gives a native
/// thread.
const STACK: u64 = 8 << 20;
/// Of one among many; wasmtime's own default is half of it.
const SERVED_STACK: u64 = 1 << 20;
/// What host functions need of a guest's stack.
pub(crate) const HOST_STACK: u64 = 256 << 10;
/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: u64 = 1024;

/// Sizes that follow from a container's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Division {
    /// Memories, tables, stacks and heap, in bytes: nothing grows beyond it.
    growth: u64,
    /// The same, in bytes: who makes it more than this traps.
    ceiling: u64,
    /// A guest's own stack, in bytes.
    pub(crate) stack: u64,
    /// What one host call may copy out of a guest, in bytes.
    pub(crate) call: usize,
    /// Connections of a service.
    pub(crate) connections: usize,
    /// The kernel's buffer for each direction of a connection, in bytes; none leaves it to
    /// the kernel.
    pub(crate) socket: Option<usize>,
    /// What an idle slot of a service's pool keeps of its memory, in bytes.
    pub(crate) resident: usize,
}

impl Division {
    /// Of a program that has the process alone. `limit` is the container's; none is none.
    pub(crate) fn alone(limit: Option<u64>) -> Self {
        let stack = (limit.unwrap_or(NO_LIMIT) / 16).clamp(512 << 10, STACK);
        Self::of(limit, HOST, stack)
    }

    /// Of a service. `code` is the size of its compiled code, in bytes: the first contents
    /// of its memories are copied from there once.
    pub(crate) fn served(limit: Option<u64>, code: u64) -> Self {
        let whole = limit.unwrap_or(NO_LIMIT);
        let stack = (whole / 128).clamp(512 << 10, SERVED_STACK);
        let connections = (whole / (128 << 10)).clamp(64, MAX_CONNECTIONS);
        let buffers = if limit.is_some() { whole / 16 } else { 0 };
        let host = HOST + code / 2 + connections * CONNECTION + buffers;
        Self {
            connections: usize_of(connections),
            // All of them full at once take the sixteenth above.
            socket: limit.map(|_| usize_of((buffers / 256).clamp(16 << 10, 512 << 10))),
            resident: usize_of((whole / (64 << 10)).clamp(4 << 10, 64 << 10)),
            ..Self::of(limit, host, stack)
        }
    }

    fn of(limit: Option<u64>, host: u64, stack: u64) -> Self {
        let whole = limit.unwrap_or(NO_LIMIT);
        let margin = (whole / 16).clamp(1 << 20, 32 << 20);
        // So little that nothing is safe: a quarter is the guest's, whatever happens.
        let growth = whole.saturating_sub(host + margin).max(whole / 4);
        Self {
            growth,
            ceiling: growth.saturating_add(margin / 2),
            stack,
            call: usize_of((whole / 64).clamp(1 << 20, 128 << 20)),
            connections: usize_of(MAX_CONNECTIONS),
            socket: None,
            resident: 64 << 10,
        }
    }

    /// How many instances of a program run at once that begins with so much, in bytes.
    pub(crate) fn instances(&self, beginning: u64, most: u32) -> u32 {
        let one = beginning.saturating_add(self.stack + HOST_STACK).max(1);
        u32::try_from(self.growth / one).unwrap_or(u32::MAX).clamp(1, most)
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What all instances of a container may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    division: Division,
    taken: AtomicU64,
    heap: fn() -> u64,
}

impl Budget {
    /// Nothing taken yet, but the heap.
    pub(crate) fn new(division: Division) -> Arc<Self> {
        Arc::new(Self { division, taken: AtomicU64::new(0), heap: knarr_sys::heap_held })
    }

    /// The sizes that it is made of.
    pub(crate) fn division(&self) -> &Division {
        &self.division
    }

    fn take(&self, bytes: u64) -> bool {
        let heap = (self.heap)();
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                let sum = taken.checked_add(bytes)?;
                sum.checked_add(heap).filter(|all| *all <= self.division.growth)?;
                Some(sum)
            })
            .is_ok()
    }

    /// Whether an instance that begins with so much fits, in bytes, beside its stack.
    pub(crate) fn has_room(&self, beginning: u64) -> bool {
        let taken = self.taken.load(Ordering::Relaxed).saturating_add((self.heap)());
        let one = beginning.saturating_add(self.division.stack + HOST_STACK);
        taken.saturating_add(one) <= self.division.growth
    }

    /// The host holds so much that the kernel would soon end the container.
    pub(crate) fn is_over(&self) -> bool {
        let heap = (self.heap)();
        self.taken.load(Ordering::Relaxed).saturating_add(heap) > self.division.ceiling
    }
}

/// One instance's part of the [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Limits {
    budget: Arc<Budget>,
    held: u64,
    refused: bool,
}

impl Limits {
    /// Nothing held yet but the stack that the instance runs on; none where not even that
    /// fits.
    pub(crate) fn new(budget: &Arc<Budget>) -> Option<Self> {
        let stack = budget.division.stack + HOST_STACK;
        budget.take(stack).then(|| Self { budget: Arc::clone(budget), held: stack, refused: false })
    }

    /// Of a program that has the process alone: its stack is as small as it must be to
    /// leave room, and there is nobody to wait for.
    pub(crate) fn alone(budget: &Arc<Budget>) -> Self {
        Self::new(budget).unwrap_or(Self { budget: Arc::clone(budget), held: 0, refused: false })
    }

    /// The pot that it is part of.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether something was asked for that did not fit.
    pub(crate) fn refused(&self) -> bool {
        self.refused
    }

    fn grow(&mut self, bytes: u64) -> bool {
        let fits = self.budget.take(bytes);
        // Stays taken where the growth then fails for want of host memory: the
        // failure does not say which growth it was, and a guest must not be able
        // to get back what it holds.
        if fits {
            self.held += bytes;
        } else {
            self.refused = true;
        }
        fits
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, now: usize, wanted: usize, max: Option<usize>) -> Result<bool> {
        let more = wanted.saturating_sub(now) as u64;
        Ok(max.is_none_or(|max| wanted <= max) && self.grow(more))
    }

    fn table_growing(&mut self, now: usize, wanted: usize, max: Option<usize>) -> Result<bool> {
        let more = (wanted.saturating_sub(now) as u64).saturating_mul(ELEMENT);
        Ok(wanted <= MAX_TABLE && max.is_none_or(|max| wanted <= max) && self.grow(more))
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

    /// A budget of so many bytes, with a heap of its own choice and no stacks.
    fn of(growth: u64, heap: fn() -> u64) -> Arc<Budget> {
        let division = Division { growth, ceiling: growth + 10, stack: 0, ..Division::alone(None) };
        Arc::new(Budget { division, taken: AtomicU64::new(0), heap })
    }

    fn part(budget: &Arc<Budget>) -> Limits {
        Limits { budget: Arc::clone(budget), held: 0, refused: false }
    }

    #[test]
    fn w02_instances_share_one_budget() {
        let budget = of(100, || 0);
        let mut one = part(&budget);
        let mut two = part(&budget);
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(!two.memory_growing(0, 60, None).unwrap());
        assert!(two.memory_growing(0, 40, None).unwrap());
        assert!(!one.memory_growing(60, 61, None).unwrap());
        drop(two);
        assert!(one.memory_growing(60, 100, None).unwrap());
        drop(one);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn w02_a_failed_growth_frees_nothing() {
        let budget = of(100, || 0);
        let mut one = part(&budget);
        assert!(one.memory_growing(0, 50, None).unwrap());
        // wasmtime says so too of growths that it never asked about.
        one.memory_grow_failed(wasmtime::Error::msg("beyond the type's limits")).unwrap();
        assert!(!one.memory_growing(50, 101, None).unwrap());
        assert!(one.memory_growing(50, 100, None).unwrap());
    }

    #[test]
    fn w03_tables_end_at_a_million_elements_and_are_charged() {
        let budget = of(u64::MAX / 2, || 0);
        let mut one = part(&budget);
        assert!(one.table_growing(0, MAX_TABLE, None).unwrap());
        assert!(!one.table_growing(0, MAX_TABLE + 1, None).unwrap());
        assert!(!one.table_growing(0, 11, Some(10)).unwrap());
        // Ninety of the largest take 720 MB of the host's memory.
        let small = of(16 << 20, || 0);
        let mut one = part(&small);
        assert!(one.table_growing(0, MAX_TABLE, None).unwrap());
        assert!(one.table_growing(0, MAX_TABLE, None).unwrap());
        assert!(!one.table_growing(0, MAX_TABLE, None).unwrap());
        assert!(one.refused());
    }

    #[test]
    fn w07_what_the_host_holds_is_part_of_it() {
        let budget = of(100, || 60);
        let mut one = part(&budget);
        assert!(!one.memory_growing(0, 41, None).unwrap());
        assert!(one.memory_growing(0, 40, None).unwrap());
        assert!(!budget.is_over());
        assert!(of(100, || 111).is_over());
        assert!(!of(100, || 110).is_over());
    }

    #[test]
    fn w02_every_division_leaves_the_host_its_room() {
        for mebibytes in [24, 32, 64, 128, 512, 4096, 1 << 20] {
            let limit = mebibytes << 20;
            for division in [Division::alone(Some(limit)), Division::served(Some(limit), 1 << 20)] {
                assert!(division.ceiling + HOST <= limit, "{mebibytes} MiB: {division:?}");
                assert!(division.growth >= limit / 4, "{mebibytes} MiB: {division:?}");
                assert!(division.stack <= division.growth / 2, "{mebibytes} MiB: {division:?}");
            }
        }
        // Too little for anything: still something for the guest.
        assert_eq!(Division::alone(Some(6 << 20)).growth, 3 << 19);
        assert!(Division::alone(None).growth < NO_LIMIT);
        let small = Division::served(Some(64 << 20), 1 << 20);
        assert!((8..128).contains(&small.instances(2 << 20, 128)));
        assert_eq!(Division::served(None, 1 << 20).instances(2 << 20, 128), 128);
    }
}
