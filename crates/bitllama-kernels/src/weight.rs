//! A packed matrix as the kernels read it: panels where they are, scales and zero points beside them in their order.

use bitllama_core::panel::{COLUMN_UNIT, PANEL_ROWS};
use bitllama_core::{Activation, PackedMatrix, Scheme};

/// A packed matrix `[out_features, in_features]`, ready to be multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    packed: PackedMatrix,
    /// In f32, however files have them, `[panels, groups, PANEL_ROWS]`; 0 for rows that the matrix has not.
    scales: Vec<f32>,
    /// `-zero_point`, in the order of `scales`; `None` where a code of 0 is the same field everywhere.
    lows: Option<Vec<i32>>,
    /// How its inputs were rounded in training.
    activation: Option<Activation>,
}

impl Weight {
    /// Puts the scales in order. Packed bytes are neither read nor copied.
    ///
    /// # Errors
    /// Gives the matrix back if sums of its codes may not fit into 32 bits: in_features above some 60,000, or zero points
    /// far outside the scheme's fields. Such a matrix is to be run in full precision.
    #[allow(clippy::result_large_err)] // It moves once, when a file is opened.
    pub fn new(packed: PackedMatrix) -> Result<Self, PackedMatrix> {
        // 127 is the largest activation; products are summed over a group of columns.
        let largest_code =
            packed.zero_points().map_or(0, |points| points.iter().map(|z| z.unsigned_abs()).fold(0, u32::max));
        let largest = 255 * 127 * packed.group_size() as u64 + largest_code as u64 * 127 * packed.group_size() as u64;
        if largest > i32::MAX as u64 {
            return Err(packed);
        }
        let scales = in_panels(&packed, packed.scales(), |scale| *scale);
        let lows = packed.zero_points().map(|points| in_panels(&packed, points, |point| -point));
        Ok(Self { packed, scales, lows, activation: None })
    }

    /// The weight of a student that was trained with inputs of this kind, which [`Input::trained`](crate::Input::trained)
    /// keeps to.
    pub fn with_activation(self, activation: Option<Activation>) -> Self {
        Self { activation, ..self }
    }

    /// How its inputs were rounded in training, if they were.
    pub fn activation(&self) -> Option<Activation> {
        self.activation
    }

    /// The matrix.
    pub fn packed(&self) -> &PackedMatrix {
        &self.packed
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        self.packed.rows()
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        self.packed.columns()
    }

    /// Number format.
    pub fn scheme(&self) -> Scheme {
        self.packed.scheme()
    }

    /// Panels of [`PANEL_ROWS`] rows.
    pub fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL_ROWS)
    }

    /// One panel.
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let groups = self.packed.groups();
        let constants = index * groups * PANEL_ROWS..(index + 1) * groups * PANEL_ROWS;
        Panel {
            scheme: self.scheme(),
            bytes: self.packed.panel(index),
            columns: self.columns(),
            groups,
            group_size: self.packed.group_size(),
            scales: &self.scales[constants.clone()],
            lows: self.lows.as_ref().map(|lows| &lows[constants]),
        }
    }
}

/// Sixteen rows of a [`Weight`].
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub scheme: Scheme,
    /// `[blocks, block_bytes]`.
    pub bytes: &'a [u8],
    pub columns: usize,
    pub groups: usize,
    /// A multiple of [`COLUMN_UNIT`], or all columns.
    pub group_size: usize,
    /// `[groups, PANEL_ROWS]`.
    pub scales: &'a [f32],
    /// `[groups, PANEL_ROWS]`.
    pub lows: Option<&'a [i32]>,
}

impl Panel<'_> {
    /// The columns of a group in units of [`COLUMN_UNIT`]: first and end.
    pub fn group_units(&self, group: usize) -> (usize, usize) {
        match self.groups {
            1 => (0, self.columns.div_ceil(COLUMN_UNIT)),
            _ => (group * self.group_size / COLUMN_UNIT, (group + 1) * self.group_size / COLUMN_UNIT),
        }
    }

    /// The blocks of a group: first and end.
    pub fn group_blocks(&self, group: usize) -> (usize, usize) {
        let block = self.scheme.block_columns();
        match self.groups {
            1 => (0, self.columns.div_ceil(block)),
            _ => (group * self.group_size / block, (group + 1) * self.group_size / block),
        }
    }
}

/// `[rows, groups]` as `[panels, groups, PANEL_ROWS]`.
fn in_panels<T, U: Clone + Default>(packed: &PackedMatrix, values: &[T], convert: impl Fn(&T) -> U) -> Vec<U> {
    let groups = packed.groups();
    let panels = packed.rows().div_ceil(PANEL_ROWS);
    let mut out = vec![U::default(); panels * groups * PANEL_ROWS];
    for (row, values) in values.chunks_exact(groups).enumerate() {
        let panel = &mut out[row / PANEL_ROWS * groups * PANEL_ROWS..];
        for (group, value) in values.iter().enumerate() {
            panel[group * PANEL_ROWS + row % PANEL_ROWS] = convert(value);
        }
    }
    out
}
