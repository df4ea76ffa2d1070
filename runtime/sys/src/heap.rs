//! The heap of a program that works for strangers: counted, and given back.
//!
//! What a guest makes its host hold (handles, headers, bodies, buffers) comes from the
//! host's own heap, whatever library holds it. So it is measured there, and not
//! estimated: [`CountedHeap`] is the C library's allocator with a sum beside it.
//!
//! ```text
//!   thread ─▶ its part of the sum (one of SHARDS, a cache line each) ─▶ heap_held()
//! ```
//!
//! **How it fails.** It does not: the sum only counts. It is exact once all threads rest,
//! and off by what is being allocated right now while they work.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicIsize, AtomicUsize, Ordering},
};

/// Parts of the sum: threads that allocate at once rarely share one.
const SHARDS: usize = 16;

/// A part of the sum, alone on its cache lines.
#[repr(align(128))]
struct Shard(AtomicIsize);

static HELD: [Shard; SHARDS] = [const { Shard(AtomicIsize::new(0)) }; SHARDS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Which part this thread adds to. Constant and without a destructor, so that it can
    /// be asked by the allocator at any time of a thread's life.
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn add(bytes: isize) {
    let shard = MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    });
    HELD[shard].0.fetch_add(bytes, Ordering::Relaxed);
}

/// The C library's allocator, counted. Made the program's own with `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountedHeap;

// JUSTIFICATION: an allocator is an unsafe trait; nothing safe counts a heap.
// SAFETY: every call is passed on to `System` as it came, and its answer back; counting
// allocates nothing and does not unwind.
unsafe impl GlobalAlloc for CountedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let start = unsafe { System.alloc(layout) };
        if !start.is_null() {
            add(layout.size() as isize);
        }
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let start = unsafe { System.alloc_zeroed(layout) };
        if !start.is_null() {
            add(layout.size() as isize);
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(start, layout) };
        add(-(layout.size() as isize));
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(start, layout, size) };
        if !moved.is_null() {
            add(size as isize - layout.size() as isize);
        }
        moved
    }
}

/// Bytes that this program has allocated and not freed; 0 where its allocator is not
/// [`CountedHeap`].
pub fn heap_held() -> u64 {
    let sum: isize = HELD.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
    u64::try_from(sum).unwrap_or(0)
}

/// Makes the C library give freed memory back to the kernel: what [`heap_held`] says is
/// then what the program really has, but for a few pages. Before the first thread.
pub fn give_heap_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        // Large blocks are mappings of their own; setting it also keeps it from moving.
        (libc::M_MMAP_THRESHOLD, 128 << 10),
        (libc::M_TRIM_THRESHOLD, 256 << 10),
        // Each has a free list of its own: what one guest gave back must serve the next,
        // whichever thread that runs on.
        (libc::M_ARENA_MAX, 1),
    ] {
        // JUSTIFICATION: mallopt(3) has no safe form.
        // SAFETY: it sets a number of the allocator's, takes its lock, and touches nothing
        // of ours; an unknown parameter is answered with 0.
        unsafe { libc::mallopt(parameter, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_elsewhere_is_counted_too() {
        let before: isize = HELD.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        let layout = Layout::from_size_align(1 << 20, 16).unwrap();
        // SAFETY: the layout has a size; the block is freed once, with the same layout.
        let start = unsafe { CountedHeap.alloc(layout) } as usize;
        let held: isize = HELD.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        assert_eq!(held - before, 1 << 20);
        let freed = std::thread::spawn(move || {
            // SAFETY: as above; nobody else knows the block.
            let start = unsafe { CountedHeap.realloc(start as *mut u8, layout, 2 << 20) };
            let larger = Layout::from_size_align(2 << 20, 16).unwrap();
            // SAFETY: as above.
            unsafe { CountedHeap.dealloc(start, larger) };
        });
        freed.join().unwrap();
        let after: isize = HELD.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        assert_eq!(after, before);
    }
}
