//! Matrices that stay as their file has them, in 16 bits or in blocks: rows become f32 when they are read.

use std::fmt;

use crate::BlockMatrix;

/// A matrix `[rows, columns]` whose rows are made f32 a few at a time. Reading the same rows again gives the same numbers.
pub trait StoredRows: fmt::Debug + Send + Sync {
    /// Rows.
    fn rows(&self) -> usize;

    /// Columns.
    fn columns(&self) -> usize;

    /// Bytes that it takes as it is stored.
    fn bytes(&self) -> usize;

    /// Fills `out` (`[n, columns]`, row-major) with the `n` rows from `first` on.
    ///
    /// # Panics
    /// If `out` is no whole number of rows, or the matrix has not so many from `first` on.
    fn rows_into(&self, first: usize, out: &mut [f32]);

    /// The bytes of one row as they are stored, and the name that ggml has for their type; `None` where that is no type of ggml.
    ///
    /// # Panics
    /// If there is no such row.
    fn stored_row(&self, row: usize) -> Option<(&'static str, &[u8])> {
        let _ = row;
        None
    }

    /// The same numbers in panels, for products with codes: made anew by each call, on the threads of rayon's pool. `None` for
    /// formats without whole codes, such as those of 16 bits.
    fn panels(&self) -> Option<BlockMatrix> {
        None
    }
}

impl dyn StoredRows + '_ {
    /// All rows in f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.columns()];
        self.rows_into(0, &mut out);
        out
    }
}

/// Equal are matrices of one shape with the same numbers, however they are stored.
impl PartialEq for dyn StoredRows + '_ {
    fn eq(&self, other: &Self) -> bool {
        let row = |matrix: &Self, index| {
            let mut out = vec![0.0; matrix.columns()];
            matrix.rows_into(index, &mut out);
            out
        };
        let shapes = [self, other].map(|matrix| [matrix.rows(), matrix.columns()]);
        shapes[0] == shapes[1] && (0..self.rows()).all(|index| row(self, index) == row(other, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row `r` is `factor * r`.
    #[derive(Debug)]
    struct Counting(usize, f32);

    impl StoredRows for Counting {
        fn rows(&self) -> usize {
            3
        }

        fn columns(&self) -> usize {
            self.0
        }

        fn bytes(&self) -> usize {
            0
        }

        fn rows_into(&self, first: usize, out: &mut [f32]) {
            for (index, row) in out.chunks_mut(self.0).enumerate() {
                row.fill((first + index) as f32 * self.1);
            }
        }
    }

    #[test]
    fn matrices_are_compared_by_their_numbers() {
        let of = |columns, factor| -> Box<dyn StoredRows> { Box::new(Counting(columns, factor)) };
        assert_eq!(of(2, 0.5).to_f32(), [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]);
        assert!(*of(2, 0.5) == *of(2, 0.5));
        assert!(*of(2, 0.5) != *of(2, 1.0) && *of(2, 0.5) != *of(3, 0.5));
    }
}
