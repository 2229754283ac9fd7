//! Floating-point types of tensors: which of them keep every number.
//!
//! Readers cast all of a model to the one type that `config.json` names. So each tensor takes the smallest type that keeps its own
//! numbers, and the config names the smallest that keeps those of all.

use half::{bf16, f16};

use super::super::Dtype;
use super::super::write::encode;
use crate::exports::Loss;

/// Types that keep every number of some tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    f16: bool,
    bf16: bool,
}

impl Kept {
    /// Types that keep the numbers of no tensor.
    pub const ALL: Kept = Kept { f16: true, bf16: true };

    /// Types that keep `values` to the bit.
    pub fn by(values: &[f32]) -> Self {
        let holds = |round: fn(f32) -> f32| values.iter().all(|value| round(*value).to_bits() == value.to_bits());
        Self { f16: holds(|value| f16::from_f32(value).to_f32()), bf16: holds(|value| bf16::from_f32(value).to_f32()) }
    }

    /// Types that keep both.
    pub fn and(self, other: Self) -> Self {
        Self { f16: self.f16 && other.f16, bf16: self.bf16 && other.bf16 }
    }

    /// The smallest type; of the two small ones that of scales.
    pub fn smallest(self) -> Dtype {
        match self {
            Kept { f16: true, .. } => Dtype::F16,
            Kept { bf16: true, .. } => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }
}

/// Numbers as they stand in a file.
#[derive(Debug)]
pub(super) struct Floats {
    pub dtype: Dtype,
    /// Little-endian.
    pub bytes: Vec<u8>,
    /// The numbers of the bytes; `None` where they are the ones that were given.
    rounded: Option<Vec<f32>>,
    /// Types that keep the numbers of the bytes.
    pub kept: Kept,
}

impl Floats {
    /// `values` in `forced`, or in the smallest type that keeps them. `None` if one is too large for the type.
    pub fn new(values: &[f32], forced: Option<Dtype>) -> Option<Self> {
        let kept = Kept::by(values);
        let dtype = forced.unwrap_or(kept.smallest());
        let bytes = encode(values, dtype)?;
        let round: fn(f32) -> f32 = match dtype {
            Dtype::F32 => |value| value,
            Dtype::F16 => |value| f16::from_f32(value).to_f32(),
            Dtype::Bf16 => |value| bf16::from_f32(value).to_f32(),
        };
        let is_kept = match dtype {
            Dtype::F32 => true,
            Dtype::F16 => kept.f16,
            Dtype::Bf16 => kept.bf16,
        };
        let rounded = (!is_kept).then(|| values.iter().copied().map(round).collect::<Vec<f32>>());
        let kept = rounded.as_deref().map_or(kept, Kept::by);
        Some(Self { dtype, bytes, rounded, kept })
    }

    /// The numbers of the bytes, of those that were given to [`Floats::new`].
    pub fn values<'a>(&'a self, given: &'a [f32]) -> &'a [f32] {
        self.rounded.as_deref().unwrap_or(given)
    }

    /// The relative error of numbers that were given, to which readers add `offset`.
    pub fn error(&self, given: &[f32], expected: &[f32], offset: f32) -> f64 {
        let mut loss = Loss::default();
        let found: Vec<f32> = self.values(given).iter().map(|value| value + offset).collect();
        loss.add(expected, &found);
        loss.relative()
    }
}
