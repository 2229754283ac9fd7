//! What the system's allocator does with memory that is freed.

/// Lets the allocator keep what is freed, in place of giving it back to the system: a program that takes and frees the same
/// gigabytes step after step would otherwise have every page of them cleared each time. To be called once, before threads
/// are started. It does something with the allocator of the GNU C library only.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The most that the library takes: larger blocks are mapped by themselves, and unmapped when freed.
        const LARGEST_IN_HEAP: libc::c_int = 32 << 20;
        // SAFETY: these set numbers of the allocator; settings that it does not take change nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_IN_HEAP);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            // Heaps of other threads are smaller than one of our blocks.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}
