//! A packed matrix as the kernels read it: panels where they are, scales and zero points beside them in their order.

use bitllama_core::panel::PANEL_ROWS;
use bitllama_core::scales::PackedScales;
use bitllama_core::{Activation, PackedMatrix, Scheme};
use half::f16;

use crate::simd::{LANES, Simd};

/// A packed matrix `[out_features, in_features]`, ready to be multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    packed: PackedMatrix,
    scales: Scales,
    /// `-zero_point`, in the order of `scales`; `None` where a code of 0 is the same field everywhere.
    lows: Option<Vec<[i16; LANES]>>,
    /// How its inputs were rounded in training.
    activation: Option<Activation>,
}

/// Scales, `[panels, groups, PANEL_ROWS]`; 0 for rows that the matrix has not.
#[derive(Debug, Clone, PartialEq)]
enum Scales {
    F32(Vec<[f32; LANES]>),
    /// In half the bytes, where the matrix has no others.
    F16(Vec<[f16; LANES]>),
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
        if largest > i32::MAX as u64 || largest_code > MAX_ZERO_POINT {
            return Err(packed);
        }
        let scales = match packed.packed_scales() {
            PackedScales::F16(scales) => Scales::F16(in_panels(&packed, scales, |scale| *scale)),
            _ => Scales::F32(in_panels(&packed, packed.scales(), |scale| *scale)),
        };
        let lows = packed.zero_points().map(|points| in_panels(&packed, points, |point| -*point as i16));
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

    /// Bytes that a product with one row of activations reads.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::F32(scales) => size_of_val(&scales[..]),
            Scales::F16(scales) => size_of_val(&scales[..]),
        };
        self.packed.bytes().len() + scales + self.lows.as_ref().map_or(0, |lows| size_of_val(&lows[..]))
    }

    /// Panels of [`PANEL_ROWS`] rows.
    pub fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL_ROWS)
    }

    /// Whether a code of 0 is a field that differs between groups.
    pub(crate) fn has_zero_points(&self) -> bool {
        self.lows.is_some()
    }

    /// One panel.
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let groups = self.packed.groups();
        let constants = index * groups..(index + 1) * groups;
        Panel {
            scheme: self.scheme(),
            bytes: self.packed.panel(index),
            groups,
            group_size: self.packed.group_size(),
            scales: match &self.scales {
                Scales::F32(scales) => PanelScales::F32(&scales[constants.clone()]),
                Scales::F16(scales) => PanelScales::F16(&scales[constants.clone()]),
            },
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
    pub groups: usize,
    /// Whole blocks of columns, or all columns.
    pub group_size: usize,
    pub scales: PanelScales<'a>,
    /// `[groups, PANEL_ROWS]`.
    pub lows: Option<&'a [[i16; LANES]]>,
}

/// Scales of a panel, `[groups, PANEL_ROWS]`.
#[derive(Clone, Copy)]
pub(crate) enum PanelScales<'a> {
    F32(&'a [[f32; LANES]]),
    F16(&'a [[f16; LANES]]),
}

impl PanelScales<'_> {
    /// The scales of a group.
    #[inline(always)]
    pub fn at<S: Simd>(self, s: S, group: usize) -> S::Floats {
        match self {
            Self::F32(scales) => s.load(&scales[group]),
            Self::F16(scales) => s.load_f16(&scales[group]),
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
