//! A low-bit matrix as the kernels read it: fields in panels, and scales and offsets in the order of panels beside them.

use bitllama_core::blocks::{BlockScales, Codes, IQ4};
use bitllama_core::panel::{COLUMN_UNIT, FieldBits, PANEL_ROWS};
use bitllama_core::scales::PackedScales;
use bitllama_core::{Activation, BlockMatrix, PackedMatrix, Scheme};
use half::f16;

use crate::packed::fields::by_fields;
use crate::simd::{LANES, Simd};

/// A low-bit matrix `[out_features, in_features]`, ready to be multiplied with: packed, or a GGUF's blocks in panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    source: Source,
    kind: FieldKind,
    /// A field's code is `low + step * field`, where no zero point says otherwise.
    line: (i32, i32),
    /// How its inputs were rounded in training.
    activation: Option<Activation>,
}

#[derive(Debug, Clone, PartialEq)]
enum Source {
    Packed {
        matrix: PackedMatrix,
        scales: Scales,
        /// `-zero_point`, in the order of the scales; `None` where a code of 0 is the same field everywhere.
        lows: Option<Vec<[i16; LANES]>>,
    },
    Blocks {
        matrix: BlockMatrix,
        /// Bytes that the blocks take in their file.
        stored_bytes: usize,
    },
}

/// Scales, `[panels, groups, PANEL_ROWS]`; 0 for rows that the matrix has not.
#[derive(Debug, Clone, PartialEq)]
enum Scales {
    F32(Vec<[f32; LANES]>),
    /// In half the bytes, where the matrix has no others.
    F16(Vec<[f16; LANES]>),
}

/// How a field becomes a number: which of the kernels' [`Fields`](crate::packed::fields::Fields) it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldKind {
    Bits1,
    Bits2,
    Bits3,
    Bits4,
    Bits5,
    Bits6,
    Bits8,
    /// An index into the levels of `nf4`.
    Nf4,
    /// An index into [`IQ4`].
    Iq4,
}

/// Codes of the table [`IQ4`] have 128 added in products, which makes them bytes without sign.
const IQ4_LINE: (i32, i32) = (-128, 1);

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
        if largest > i32::MAX as u64 || largest_code > MAX_ZERO_POINT {
            return Err(packed);
        }
        let scales = match packed.packed_scales() {
            PackedScales::F16(scales) => Scales::F16(in_panels(&packed, scales, |scale| *scale)),
            _ => Scales::F32(in_panels(&packed, packed.scales(), |scale| *scale)),
        };
        let lows = packed.zero_points().map(|points| in_panels(&packed, points, |point| -*point as i16));
        let (kind, line) = match packed.scheme() {
            Scheme::Nf4 => (FieldKind::Nf4, packed.scheme().line()),
            Scheme::Iq4 => (FieldKind::Iq4, IQ4_LINE),
            scheme => (FieldKind::of_bits(scheme.field_bits()), scheme.line()),
        };
        Ok(Self { source: Source::Packed { matrix: packed, scales, lows }, kind, line, activation: None })
    }

    /// The weight of a GGUF's blocks, which take `stored_bytes` in their file. `None` for codes that the kernels do not
    /// have: of another table than [`IQ4`], those other than the fields beside minimums, or in groups of another size than GGUF's
    /// types have.
    pub fn of_blocks(matrix: BlockMatrix, stored_bytes: usize) -> Option<Self> {
        let (kind, line) = match matrix.form().codes {
            Codes::Line { low, step } => (FieldKind::of_bits(matrix.form().bits), (low, step)),
            Codes::Table(table) => (Some(FieldKind::Iq4).filter(|_| table == IQ4)?, IQ4_LINE),
        };
        let form = *matrix.form();
        let weight = Self { source: Source::Blocks { matrix, stored_bytes }, kind, line, activation: None };
        let size_fits = match form.nested {
            None => form.group_size.is_multiple_of(COLUMN_UNIT),
            Some(_) => form.group_size == by_fields!(weight, nested_columns(())),
        };
        // Sums of fields are sums of codes where there are minimums.
        let codes_fit = !form.has_minimums || line == (0, 1);
        (size_fits && codes_fit).then_some(weight)
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

    /// `out_features`.
    pub fn rows(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.rows(),
            Source::Blocks { matrix, .. } => matrix.rows(),
        }
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.columns(),
            Source::Blocks { matrix, .. } => matrix.columns(),
        }
    }

    /// Groups of columns that share a scale.
    pub fn groups(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.groups(),
            Source::Blocks { matrix, .. } => matrix.groups(),
        }
    }

    /// Columns that share a scale.
    pub fn group_size(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.group_size(),
            Source::Blocks { matrix, .. } => matrix.form().group_size,
        }
    }

    /// Whether its weights are a scale or its opposite, so that it can be multiplied with signs.
    pub fn is_binary(&self) -> bool {
        matches!(&self.source, Source::Packed { matrix, .. } if matrix.scheme() == Scheme::Binary)
    }

    /// Panels of [`PANEL_ROWS`] rows.
    pub fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL_ROWS)
    }

    /// Bytes that a product with one row of activations reads.
    pub fn bytes(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, scales, lows } => {
                let scales = match scales {
                    Scales::F32(scales) => size_of_val(&scales[..]),
                    Scales::F16(scales) => size_of_val(&scales[..]),
                };
                matrix.bytes().len() + scales + lows.as_ref().map_or(0, |lows| size_of_val(&lows[..]))
            }
            Source::Blocks { matrix, .. } => matrix.bytes(),
        }
    }

    /// Bytes that it takes in a file.
    pub fn stored_bytes(&self) -> usize {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.stored_bytes(),
            Source::Blocks { stored_bytes, .. } => *stored_bytes,
        }
    }

    /// Writes the weights of one row into `out` (`[in_features]`).
    pub fn dequantize_row_into(&self, row: usize, out: &mut [f32]) {
        match &self.source {
            Source::Packed { matrix, .. } => matrix.dequantize_row_into(row, out),
            Source::Blocks { matrix, .. } => matrix.dequantize_row_into(row, out),
        }
    }

    /// How its fields become numbers.
    pub(crate) fn kind(&self) -> FieldKind {
        self.kind
    }

    /// A field's code is `low + step * field`, where no zero point says otherwise.
    pub(crate) fn line(&self) -> (i32, i32) {
        self.line
    }

    /// Whether a code of 0 is a field that differs between groups.
    pub(crate) fn has_zero_points(&self) -> bool {
        matches!(self.source, Source::Packed { lows: Some(_), .. })
    }

    /// Whether scales, and minimums if there are any, are whole multiples of a factor per super-block.
    pub(crate) fn is_nested(&self) -> bool {
        matches!(&self.source, Source::Blocks { matrix, .. } if matrix.form().nested.is_some())
    }

    /// Whether groups have minimums.
    pub(crate) fn has_minimums(&self) -> bool {
        matches!(&self.source, Source::Blocks { matrix, .. } if matrix.minimums().is_some())
    }

    /// One panel.
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let (line, groups, group_size) = (self.line, self.groups(), self.group_size());
        let here = index * groups..(index + 1) * groups;
        match &self.source {
            Source::Packed { matrix, scales, lows } => Panel {
                line,
                bytes: matrix.panel(index),
                groups,
                group_size,
                scales: match scales {
                    Scales::F32(scales) => PanelScales::F32(&scales[here.clone()]),
                    Scales::F16(scales) => PanelScales::F16(&scales[here.clone()]),
                },
                lows: lows.as_ref().map(|lows| &lows[here]),
                minimums: None,
            },
            Source::Blocks { matrix, .. } => Panel {
                line,
                bytes: matrix.panel(index),
                groups,
                group_size,
                scales: PanelScales::of_blocks(matrix.scales(), index, groups),
                lows: None,
                minimums: matrix.minimums().map(|minimums| PanelScales::of_blocks(minimums, index, groups)),
            },
        }
    }
}

impl FieldKind {
    fn of_bits(bits: FieldBits) -> Self {
        match bits {
            FieldBits::One => Self::Bits1,
            FieldBits::Two => Self::Bits2,
            FieldBits::Three => Self::Bits3,
            FieldBits::Four => Self::Bits4,
            FieldBits::Five => Self::Bits5,
            FieldBits::Six => Self::Bits6,
            FieldBits::Eight => Self::Bits8,
        }
    }
}

/// Sixteen rows of a [`Weight`].
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// See [`Weight::line`].
    pub line: (i32, i32),
    /// `[blocks, block_bytes]`.
    pub bytes: &'a [u8],
    pub groups: usize,
    /// Whole blocks of columns, or half a block, or all columns.
    pub group_size: usize,
    pub scales: PanelScales<'a>,
    /// `[groups, PANEL_ROWS]`.
    pub lows: Option<&'a [[i16; LANES]]>,
    /// Numbers that are taken from the weights of each group.
    pub minimums: Option<PanelScales<'a>>,
}

impl<'a> Panel<'a> {
    /// The `-zero_point` of each row in a group, where there are zero points.
    #[inline(always)]
    pub fn low(&self, group: usize) -> Option<&'a [i16; LANES]> {
        match self.lows {
            Some(lows) => Some(&lows[group]),
            None => None,
        }
    }
}

/// Scales or minimums of a panel, `[groups, PANEL_ROWS]`.
#[derive(Clone, Copy)]
pub(crate) enum PanelScales<'a> {
    F32(&'a [[f32; LANES]]),
    F16(&'a [[f16; LANES]]),
    /// `factors[group >> shift] * steps[group]`.
    Nested {
        factors: &'a [[f16; LANES]],
        steps: &'a [[i8; LANES]],
        shift: u32,
    },
}

impl<'a> PanelScales<'a> {
    fn of_blocks(scales: &'a BlockScales, panel: usize, groups: usize) -> Self {
        let halves = |bits: &'a [u16], count: usize| {
            let (halves, _) = bytemuck::cast_slice::<u16, f16>(bits).as_chunks::<LANES>();
            &halves[panel * count..(panel + 1) * count]
        };
        match scales {
            BlockScales::F16(bits) => Self::F16(halves(bits, groups)),
            BlockScales::Nested { factors, steps, per_factor } => Self::Nested {
                factors: halves(factors, groups / per_factor),
                steps: &steps.as_chunks().0[panel * groups..(panel + 1) * groups],
                shift: per_factor.trailing_zeros(),
            },
        }
    }

    /// Those of a group.
    #[inline(always)]
    pub fn at<S: Simd>(self, s: S, group: usize) -> S::Floats {
        match self {
            Self::F32(scales) => s.load(&scales[group]),
            Self::F16(scales) => s.load_f16(&scales[group]),
            Self::Nested { factors, steps, shift } => {
                s.mul(s.load_f16(&factors[group >> shift]), s.load_i8(&steps[group]))
            }
        }
    }
}

/// Zero points beyond this are not multiplied in 16 bits.
const MAX_ZERO_POINT: u32 = 32_000;

/// `[rows, groups]` as `[panels, groups, PANEL_ROWS]`.
fn in_panels<T, U: Copy + Default>(
    packed: &PackedMatrix,
    values: &[T],
    convert: impl Fn(&T) -> U,
) -> Vec<[U; PANEL_ROWS]> {
    let groups = packed.groups();
    let panels = packed.rows().div_ceil(PANEL_ROWS);
    let mut out = vec![[U::default(); PANEL_ROWS]; panels * groups];
    for (row, values) in values.chunks_exact(groups).enumerate() {
        let panel = &mut out[row / PANEL_ROWS * groups..];
        for (group, value) in values.iter().enumerate() {
            panel[group][row % PANEL_ROWS] = convert(value);
        }
    }
    out
}
