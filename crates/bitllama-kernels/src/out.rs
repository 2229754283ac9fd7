//! An output that several threads fill, each one some of its columns.

use crate::simd::{LANES, Simd};

/// A place in a matrix `[n, rows]`, for the products of some rows of a weight.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    data: *mut f32,
    rows: usize,
    /// Rows of the weight from this place on.
    left: usize,
}

// SAFETY: the pointer is only written through in `store` and `as_ptr`, whose callers give each task columns of its own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// The whole of `data` (`[n, rows]`), which must live and not be touched otherwise as long as this is used.
    pub fn new(data: &mut [f32], rows: usize) -> Self {
        Self { data: data.as_mut_ptr(), rows, left: rows }
    }

    /// The place of a token's products with the rows from `row` on.
    #[inline(always)]
    pub fn at(self, token: usize, row: usize) -> Self {
        Self { data: self.data.wrapping_add(token * self.rows + row), left: self.left.saturating_sub(row), ..self }
    }

    /// Elements from a token to the next.
    pub fn stride(self) -> isize {
        self.rows as isize
    }

    /// The address of this place.
    pub fn as_ptr(self) -> *mut f32 {
        self.data
    }

    /// Stores a token's products with the rows of the panel that begins here. Rows that the weight has not are left out.
    ///
    /// # Safety
    /// The token is one of the matrix, and no other thread writes these rows.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(self, s: S, token: usize, products: S::Floats) {
        let to = self.at(token, 0);
        if to.left >= LANES {
            // SAFETY: there are as many rows from here on, and they are the caller's.
            return s.store(products, unsafe { &mut *to.data.cast::<[f32; LANES]>() });
        }
        let mut all = [0.0; LANES];
        s.store(products, &mut all);
        // SAFETY: `left` elements are within the matrix, and the caller's.
        unsafe { to.data.copy_from_nonoverlapping(all.as_ptr(), to.left) };
    }
}
