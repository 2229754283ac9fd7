//! Matrices whose weights are `scale * code - minimum`, with a scale and maybe a minimum for each small group of columns, as
//! the blocks of ggml have them: everything in the order of panels, for the kernels.
//!
//! The numbers are those of `dequantize_row_*` in ggml's `ggml-quants.c` to the bit, whose order of rounding is the same for all
//! of these formats: `scale = factor * step` (or the number in half precision that stands in the block) is rounded to f32, and so
//! is `minimum`; `scale * code` is rounded, then the difference.

use bytes::Bytes;
use half::slice::HalfBitsSliceExt;

use crate::Error;
use crate::panel::{self, COLUMN_UNIT, FieldBits, PANEL_ROWS, VECTOR_BYTES, aligned_bytes};
use crate::scales::widen;

/// Codes of the formats `IQ4_NL` and `IQ4_XS` (`kvalues_iq4nl` in ggml's `ggml-common.h`).
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The number that a field stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// `low + step * field`.
    Line {
        /// The code of field 0.
        low: i32,
        /// Distance of neighbouring codes.
        step: i32,
    },
    /// The entry of the field, which has 4 bits.
    Table([i8; 16]),
}

impl Codes {
    /// The code of a field.
    #[inline(always)]
    pub const fn code(&self, field: u8) -> i32 {
        match self {
            Codes::Line { low, step } => *low + *step * field as i32,
            Codes::Table(table) => table[(field & 15) as usize] as i32,
        }
    }

    /// Weights of a group, `scale * code - minimum`, as ggml rounds them.
    #[inline(always)]
    pub fn weights_into(&self, fields: &[u8], scale: f32, minimum: Option<f32>, out: &mut [f32]) {
        // Plain loops, which become vectors of the widest kind that the caller allows; closures may stay functions of their own.
        match minimum {
            None => {
                for (out, field) in out.iter_mut().zip(fields) {
                    *out = scale * self.code(*field) as f32;
                }
            }
            Some(minimum) => {
                for (out, field) in out.iter_mut().zip(fields) {
                    *out = scale * self.code(*field) as f32 - minimum;
                }
            }
        }
    }
}

/// How the numbers of a matrix are made up: the same for all matrices of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockForm {
    /// Bits of a field.
    pub bits: FieldBits,
    /// Codes of the fields.
    pub codes: Codes,
    /// Columns that share a scale.
    pub group_size: usize,
    /// Groups whose scales are whole multiples of one factor; `None` where each has a number in half precision.
    pub nested: Option<usize>,
    /// Whether there are minimums, made up as the scales are.
    pub has_minimums: bool,
}

/// Scales or minimums, in the order of panels: those of the 16 rows of a panel for one group lie side by side.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockScales {
    /// Bits of numbers in half precision, `[panels, groups, 16]`.
    F16(Vec<u16>),
    /// `factor * step` in f32.
    Nested {
        /// Bits of numbers in half precision, `[panels, groups / per_factor, 16]`.
        factors: Vec<u16>,
        /// `[panels, groups, 16]`.
        steps: Vec<i8>,
        /// Groups of one factor.
        per_factor: usize,
    },
}

impl BlockScales {
    /// Zeros of `panels` panels of `groups` groups.
    fn zeros(panels: usize, groups: usize, nested: Option<usize>) -> Self {
        match nested {
            None => BlockScales::F16(vec![0; panels * groups * PANEL_ROWS]),
            Some(per_factor) => BlockScales::Nested {
                factors: vec![0; panels * (groups / per_factor) * PANEL_ROWS],
                steps: vec![0; panels * groups * PANEL_ROWS],
                per_factor,
            },
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            BlockScales::F16(halves) => size_of_val(halves.as_slice()),
            BlockScales::Nested { factors, steps, .. } => size_of_val(factors.as_slice()) + steps.len(),
        }
    }

    /// Those of one panel in f32, into `out` (`[groups, 16]`).
    fn panel_into(&self, panel: usize, out: &mut [f32]) {
        let n = out.len();
        match self {
            BlockScales::F16(halves) => {
                widen(halves[panel * n..][..n].reinterpret_cast(), out);
            }
            BlockScales::Nested { factors, steps, per_factor } => {
                let factors = &factors[panel * n / per_factor..][..n / per_factor];
                let (factors, steps) = (factors.as_chunks::<PANEL_ROWS>().0, steps[panel * n..][..n].as_chunks().0);
                let groups = out.as_chunks_mut::<PANEL_ROWS>().0.chunks_mut(*per_factor);
                for ((out, steps), factors) in groups.zip(steps.chunks(*per_factor)).zip(factors) {
                    let mut wide = [0.0; PANEL_ROWS];
                    widen(factors.reinterpret_cast(), &mut wide);
                    for (out, steps) in out.iter_mut().zip(steps as &[[i8; PANEL_ROWS]]) {
                        *out = std::array::from_fn(|row| wide[row] * f32::from(steps[row]));
                    }
                }
            }
        }
    }

    /// Those of each panel, to be written.
    fn split(&mut self, panels: usize) -> Vec<ScalesMut<'_>> {
        let (halves, mut steps): (&mut [u16], &mut [i8]) = match self {
            BlockScales::F16(halves) => (halves, &mut []),
            BlockScales::Nested { factors, steps, .. } => (factors, steps),
        };
        let each = steps.len() / panels;
        let of_panel = |halves| {
            let (first, rest) = std::mem::take(&mut steps).split_at_mut(each);
            steps = rest;
            ScalesMut { halves, steps: first }
        };
        halves.chunks_exact_mut(halves.len() / panels).map(of_panel).collect()
    }
}

/// Scales or minimums of one panel, to be written: zeros at first.
#[derive(Debug)]
pub struct ScalesMut<'a> {
    /// Bits of numbers in half precision: of every group, `[groups, 16]`, or factors, `[groups / per_factor, 16]`.
    pub halves: &'a mut [u16],
    /// Steps of every group, `[groups, 16]`; empty where scales are not nested.
    pub steps: &'a mut [i8],
}

/// One panel of a matrix, to be written: zeros at first, which is what rows beyond the last stay.
#[derive(Debug)]
pub struct PanelMut<'a> {
    /// Number of the panel, whose rows are those from `16 * index` on.
    pub index: usize,
    /// The fields, where [`panel::put_row`] puts them.
    pub fields: &'a mut [u8],
    /// Scales.
    pub scales: ScalesMut<'a>,
    /// Minimums, if the form has some.
    pub minimums: Option<ScalesMut<'a>>,
}

/// A matrix `[rows, columns]` = `[out_features, in_features]` of weights `scale * code - minimum`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMatrix {
    rows: usize,
    columns: usize,
    form: BlockForm,
    /// `[panels, panel_bytes]`, from an address on that is a multiple of a vector's bytes.
    panels: Bytes,
    scales: BlockScales,
    minimums: Option<BlockScales>,
}

impl BlockMatrix {
    /// A matrix whose panels `fill` writes, in any order and by any threads.
    ///
    /// # Errors
    /// [`Error::Packed`] if the columns are no whole number of groups, factors and blocks, or there is no memory of that size.
    pub fn new(
        [rows, columns]: [usize; 2],
        form: BlockForm,
        fill: impl FnOnce(Vec<PanelMut<'_>>),
    ) -> Result<Self, Error> {
        let unit = form.group_size * form.nested.unwrap_or(1);
        if rows == 0
            || columns == 0
            || unit == 0
            || !columns.is_multiple_of(unit)
            || !columns.is_multiple_of(COLUMN_UNIT)
        {
            let message = format!("{rows} rows of {columns} columns are no whole number of blocks of {unit} columns");
            return Err(Error::Packed(message));
        }
        let (count, groups) = (rows.div_ceil(PANEL_ROWS), columns / form.group_size);
        let len = form.bits.packed_bytes([rows, columns]).filter(|len| *len < isize::MAX as usize - VECTOR_BYTES);
        let len = len.ok_or_else(|| Error::Packed(format!("{rows} rows of {columns} columns are too many")))?;
        let zeros = || BlockScales::zeros(count, groups, form.nested);
        let (mut scales, mut minimums) = (zeros(), form.has_minimums.then(zeros));
        let panels = aligned_bytes(len, |panels| {
            let mut of_minimums = minimums.iter_mut().flat_map(|minimums| minimums.split(count));
            let panels = panels.chunks_exact_mut(form.bits.panel_bytes(columns)).zip(scales.split(count)).enumerate();
            fill(
                panels
                    .map(|(index, (fields, scales))| PanelMut { index, fields, scales, minimums: of_minimums.next() })
                    .collect(),
            );
            Ok::<_, Error>(())
        })?;
        Ok(BlockMatrix { rows, columns, form, panels, scales, minimums })
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How its numbers are made up.
    pub fn form(&self) -> &BlockForm {
        &self.form
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.columns / self.form.group_size
    }

    /// All panels, one after the other. They start at a multiple of [`VECTOR_BYTES`].
    pub fn panels(&self) -> &Bytes {
        &self.panels
    }

    /// The packed bytes of one panel.
    pub fn panel(&self, panel: usize) -> &[u8] {
        let stride = self.form.bits.panel_bytes(self.columns);
        &self.panels[panel * stride..][..stride]
    }

    /// Scales as they are stored.
    pub fn scales(&self) -> &BlockScales {
        &self.scales
    }

    /// Minimums as they are stored, if there are some.
    pub fn minimums(&self) -> Option<&BlockScales> {
        self.minimums.as_ref()
    }

    /// Bytes that a product reads: fields, scales and minimums.
    pub fn bytes(&self) -> usize {
        self.panels.len() + self.scales.bytes() + self.minimums.as_ref().map_or(0, BlockScales::bytes)
    }

    /// Scales of one panel in f32, into `out` (`[groups, 16]`).
    ///
    /// # Panics
    /// If `out` is of another length, or there is no such panel.
    pub fn scales_into(&self, panel: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.groups() * PANEL_ROWS);
        self.scales.panel_into(panel, out);
    }

    /// Minimums of one panel in f32, into `out` (`[groups, 16]`): zeros if there are none.
    ///
    /// # Panics
    /// If `out` is of another length, or there is no such panel.
    pub fn minimums_into(&self, panel: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.groups() * PANEL_ROWS);
        match &self.minimums {
            Some(minimums) => minimums.panel_into(panel, out),
            None => out.fill(0.0),
        }
    }

    /// Writes the weights of one row into `out` (`[columns]`).
    ///
    /// # Panics
    /// If `out` is of another length, or there is no such row.
    pub fn dequantize_row_into(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "row {row} of {} numbers", out.len());
        let (panel, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let (mut fields, mut scales) = (vec![0; self.columns], vec![0.0; self.groups() * PANEL_ROWS]);
        panel::row_fields(self.form.bits, self.panel(panel), lane, &mut fields);
        self.scales_into(panel, &mut scales);
        let mut minimums = vec![0.0; scales.len()];
        self.minimums_into(panel, &mut minimums);
        let groups = out.chunks_mut(self.form.group_size).zip(fields.chunks(self.form.group_size));
        for (group, (out, fields)) in groups.enumerate() {
            let at = group * PANEL_ROWS + lane;
            let minimum = self.minimums.is_some().then_some(minimums[at]);
            self.form.codes.weights_into(fields, scales[at], minimum, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    const FORM: BlockForm = BlockForm {
        bits: FieldBits::Four,
        codes: Codes::Line { low: -8, step: 1 },
        group_size: 32,
        nested: Some(2),
        has_minimums: true,
    };

    /// 18 rows of 128 columns, whose codes are 1. The factor of row `r` is `r + 1`, that of its minimums 0.5; steps of group `g`
    /// are `g - 1` and `g`. Without steps, scales are the factors.
    fn matrix(form: BlockForm) -> BlockMatrix {
        let half = |x: f32| f16::from_f32(x).to_bits();
        let fill = |panels: Vec<PanelMut<'_>>| {
            for PanelMut { index, fields, scales, minimums } in panels {
                let rows = 16.min(18 - 16 * index);
                for row in 0..rows {
                    panel::put_row(form.bits, fields, row, &[9; 128]);
                    let halves = scales.halves.as_chunks_mut::<PANEL_ROWS>().0;
                    halves.iter_mut().for_each(|halves| halves[row] = half((16 * index + row + 1) as f32));
                }
                for (step, steps) in (-1..).zip(scales.steps.as_chunks_mut::<PANEL_ROWS>().0) {
                    steps[..rows].fill(step);
                }
                if let Some(minimums) = minimums {
                    minimums.halves.fill(half(0.5));
                    for (step, steps) in (0..).zip(minimums.steps.as_chunks_mut::<PANEL_ROWS>().0) {
                        steps[..rows].fill(step);
                    }
                }
            }
        };
        BlockMatrix::new([18, 128], form, fill).unwrap()
    }

    /// The first weight of each group of a row.
    fn row(matrix: &BlockMatrix, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; matrix.columns()];
        matrix.dequantize_row_into(row, &mut out);
        out.iter().step_by(matrix.form().group_size).copied().collect()
    }

    #[test]
    fn a_weight_is_its_scale_times_its_code_less_its_minimum() {
        assert_eq!(row(&matrix(FORM), 1), [-2.0, -0.5, 1.0, 2.5]);
        assert_eq!(row(&matrix(FORM), 17), [-18.0, -0.5, 17.0, 34.5]);
        assert_eq!(row(&matrix(BlockForm { has_minimums: false, ..FORM }), 17), [-18.0, 0.0, 18.0, 36.0]);
        let plain = BlockForm { nested: None, ..FORM };
        assert_eq!(row(&matrix(plain), 17), [17.5; 4]);
        let mut table = [0; 16];
        table[9] = -3;
        let levels = BlockForm { nested: None, has_minimums: false, codes: Codes::Table(table), ..FORM };
        assert_eq!(row(&matrix(levels), 17), [-54.0; 4]);
    }

    #[test]
    fn panels_are_aligned_and_rows_that_are_not_there_are_zeros() {
        let matrix = matrix(FORM);
        assert!(matrix.panels().as_ptr().addr().is_multiple_of(VECTOR_BYTES));
        let mut scales = [f32::NAN; 4 * PANEL_ROWS];
        matrix.scales_into(1, &mut scales);
        for group in scales.as_chunks::<PANEL_ROWS>().0 {
            assert!(group[2..].iter().all(|scale| *scale == 0.0));
        }
        assert_eq!((scales[1], scales[3 * PANEL_ROWS + 1]), (-18.0, 36.0));
        matrix.minimums_into(1, &mut scales);
        assert_eq!((scales[1], scales[3 * PANEL_ROWS + 1], scales[3 * PANEL_ROWS + 2]), (0.0, 1.5, 0.0));
        assert!((0..128).all(|column| panel::field(FORM.bits, matrix.panel(1), 2, column) == 0));
        // Two panels: 4 bits each of 128 columns; per row four steps and two factors, each twice.
        assert_eq!(matrix.bytes(), 2 * 16 * (64 + 2 * (4 + 4)));
    }

    #[test]
    fn columns_that_are_no_whole_blocks_are_refused() {
        let of = |shape, form| BlockMatrix::new(shape, form, |_| ()).is_ok();
        assert!(of([1, 64], FORM) && of([1, 96], BlockForm { nested: None, ..FORM }));
        for shape in [[1, 96], [1, 32], [0, 64], [1, 0], [usize::MAX, 64], [1 << 40, 1 << 40]] {
            assert!(!of(shape, FORM), "{shape:?}");
        }
        assert!(!of([1, 16], BlockForm { nested: None, group_size: 16, ..FORM }));
    }
}
