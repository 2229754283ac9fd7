//! Where the numbers of a factor are: any rows and columns of a slice, so that a transposed weight, a slice of a fused
//! one or a batch in `bf16` need no copy before they are packed.

use half::bf16;

/// Numbers that a [`View`] looks at.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// The upper half of single precision.
    Bf16(&'a [bf16]),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self::F32(data)
    }
}

impl<'a> From<&'a [bf16]> for Elements<'a> {
    fn from(data: &'a [bf16]) -> Self {
        Self::Bf16(data)
    }
}

/// A matrix `[rows, columns]` somewhere in a slice: element `(i, j)` is number `i * row_stride + j * column_stride`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: Elements<'a>,
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// A matrix `shape` whose rows follow each other without gaps from the start of `data`.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn row_major(data: impl Into<Elements<'a>>, shape: [usize; 2]) -> Self {
        Self::strided(data, shape, [shape[1], 1])
    }

    /// A matrix `shape` whose neighbouring elements are `strides` apart, down a column and along a row.
    ///
    /// # Panics
    /// If the last element is past the end of `data`.
    pub fn strided(data: impl Into<Elements<'a>>, shape: [usize; 2], strides: [usize; 2]) -> Self {
        let data = data.into();
        if !shape.contains(&0) {
            let steps = |i: usize| (shape[i] - 1).checked_mul(strides[i]);
            let last = steps(0).zip(steps(1)).and_then(|(down, along)| down.checked_add(along));
            assert!(
                last.is_some_and(|last| last < data.len()),
                "a matrix {shape:?} with strides {strides:?} does not fit into {} numbers",
                data.len()
            );
        }
        Self { data, shape, strides }
    }

    /// The same numbers with rows for columns: `[columns, rows]`.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [down, along]) = (self.shape, self.strides);
        Self { shape: [columns, rows], strides: [along, down], ..self }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    /// The numbers, of which those of the matrix are a part.
    pub(super) fn elements(&self) -> Elements<'a> {
        self.data
    }

    /// Numbers from a row to the next, and from a column to the next.
    pub(super) fn strides(&self) -> [usize; 2] {
        self.strides
    }
}
