//! Vectors of numbers that start at a cache line, as 64-byte loads want.

use half::f16;

use crate::simd::Nibbles;

/// Numbers that any bits are a value of, and no bits set are zero.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f16 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for Nibbles {}

/// A vector of numbers that starts at a cache line, as 64-byte loads want.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    numbers: std::marker::PhantomData<T>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A clone has memory for as many numbers as the original.
impl<T> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut lines = Vec::with_capacity(self.lines.capacity());
        lines.extend_from_slice(&self.lines);
        Self { lines, numbers: self.numbers }
    }
}

impl<T: Plain> Aligned<T> {
    const PER_LINE: usize = size_of::<Line>() / size_of::<T>();

    pub(crate) fn new() -> Self {
        Self { lines: Vec::new(), numbers: std::marker::PhantomData }
    }

    /// Appends zeros until it holds `len` numbers.
    pub(crate) fn grow(&mut self, len: usize) {
        let lines = len.div_ceil(Self::PER_LINE);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    /// Takes memory for `len` numbers.
    pub(crate) fn reserve(&mut self, len: usize) {
        let lines = len.div_ceil(Self::PER_LINE);
        self.lines.reserve_exact(lines.saturating_sub(self.lines.len()));
    }

    /// Asks the system for large pages where nothing is stored yet. It need not have them.
    pub(crate) fn ask_for_large_pages(&mut self) {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let spare = self.lines.spare_capacity_mut();
            let (start, bytes) = (spare.as_mut_ptr().cast::<u8>(), size_of_val(spare));
            let skipped = start.align_offset(PAGE);
            let pages = bytes.saturating_sub(skipped) / PAGE;
            if pages > 0 {
                // SAFETY: whole pages of memory that this vector owns; the advice does not change what they hold.
                unsafe { libc::madvise(start.wrapping_add(skipped).cast(), pages * PAGE, libc::MADV_HUGEPAGE) };
            }
        }
    }

    /// Bytes of memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// All numbers, at least as many as it was grown to.
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the lines are initialized bytes, aligned for any number, and any bits are a value of a `Plain`
        // number; the length is that of the lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * Self::PER_LINE) }
    }

    /// All numbers, at least as many as it was grown to.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and the lines are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * Self::PER_LINE) }
    }
}
