//! The scales of a packed matrix as files hold them: in f32, in f16, or quantized themselves.
//!
//! Which numbers a scale can be is part of a quantizer ([`ScaleFormat`]): scales are rounded before codes are chosen, by
//! [`quantize`](crate::quantize) as all else is, so that a file can hold exactly what a model was trained or searched with.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Which numbers scales can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleFormat {
    /// f32.
    #[default]
    F32,
    /// f16, rounded to nearest, ties to even. Magnitudes below [`SMALLEST_F16`] or above [`LARGEST_F16`] become these.
    F16,
    /// Double quantization, as in QLoRA (<https://arxiv.org/abs/2305.14314>, section 3): less the mean of all scales of the
    /// matrix, in 8 bits with an f32 step for each [`DOUBLE_BLOCK`] of them. The 8 bits are whole numbers, as in torchao's
    /// `NF4Tensor.double_quantize_scalers`; bitsandbytes has floating-point ones out of a table, which are finer near the
    /// mean and coarser far from it, and for which a reader needs the table.
    ///
    /// A scale is a product and a sum, rounded one after the other. A device that rounds them once (fused multiply-add) may
    /// train with a scale that differs in its last bit from the one in the file.
    #[serde(skip)]
    Double,
    /// Whole multiples of a factor in f16 that neighbouring groups share, as in the K-quants of ggml. Minimums have factors of
    /// their own.
    #[serde(skip)]
    Nested(Nesting),
}

/// Scales that are whole multiples of a factor: `factor * step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nesting {
    /// Groups that share a factor.
    pub groups: usize,
    /// Bits that a step takes in a file.
    pub bits: usize,
    /// Whether steps can be negative. Those of minimums cannot.
    pub signed: bool,
}

impl Nesting {
    /// The largest step.
    pub const fn top(self) -> i8 {
        let bits = if self.signed { self.bits - 1 } else { self.bits };
        ((1 << bits) - 1) as i8
    }

    /// The smallest step.
    pub const fn low(self) -> i8 {
        if self.signed { -self.top() - 1 } else { 0 }
    }
}

/// Neighbouring scales, row after row, that share a step in double quantization: QLoRA's 256.
pub const DOUBLE_BLOCK: usize = 256;

/// The smallest f16 above 0, a subnormal number: 2^-24.
pub const SMALLEST_F16: f32 = 5.960_464_5e-8;

/// The largest f16.
pub const LARGEST_F16: f32 = 65504.0;

impl ScaleFormat {
    /// Bytes that so many scales of a matrix take.
    pub const fn bytes(self, scales: usize) -> usize {
        match self {
            ScaleFormat::F32 => 4 * scales,
            ScaleFormat::F16 => 2 * scales,
            ScaleFormat::Double => scales + 4 * scales.div_ceil(DOUBLE_BLOCK) + 4,
            ScaleFormat::Nested(Nesting { groups, bits, .. }) => scales * bits / 8 + 2 * (scales / groups),
        }
    }

    /// A single scale as the format can hold it, of either sign. Formats that round several scales together leave this one as it
    /// is.
    pub fn round(self, scale: f32) -> f32 {
        match self {
            ScaleFormat::F16 => {
                let magnitude = f16::from_f32(scale.abs().clamp(SMALLEST_F16, LARGEST_F16)).to_f32();
                magnitude.copysign(scale)
            }
            ScaleFormat::F32 | ScaleFormat::Double | ScaleFormat::Nested(_) => scale,
        }
    }

    /// A minimum as the format can hold it; see [`ScaleFormat::round`].
    pub fn round_offset(self, minimum: f32) -> f32 {
        match self {
            ScaleFormat::F16 => f16::from_f32(minimum.clamp(0.0, LARGEST_F16)).to_f32(),
            ScaleFormat::F32 | ScaleFormat::Double | ScaleFormat::Nested(_) => minimum,
        }
    }
}

/// Numbers in f32, by the processor's conversion where there is one; Miri knows none.
pub(crate) fn widen(halves: &[f16], out: &mut [f32]) {
    match cfg!(miri) {
        true => halves.iter().zip(out).for_each(|(half, out)| *out = half.to_f32_const()),
        false => halves.convert_to_f32_slice(out),
    }
}

/// Scales of a matrix, `[rows, groups]`, as a file holds them.
#[derive(Debug, Clone, PartialEq)]
pub enum PackedScales {
    /// As they are.
    F32(Vec<f32>),
    /// In half the bytes.
    F16(Vec<f16>),
    /// Double-quantized.
    Double(DoubleScales),
}

/// Scales `code * step + mean`, with a step for each [`DOUBLE_BLOCK`] of them.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleScales {
    /// One for each scale.
    pub codes: Vec<i8>,
    /// One for each block of scales, the last of which may be short.
    pub steps: Vec<f32>,
    /// The mean of all scales, from which codes count.
    pub mean: f32,
}

impl From<Vec<f32>> for PackedScales {
    fn from(scales: Vec<f32>) -> Self {
        Self::F32(scales)
    }
}

impl PackedScales {
    /// Scales that [`ScaleFormat::round`] gave, in f16.
    ///
    /// # Errors
    /// [`Error::Packed`] if one is no f16.
    pub fn f16(scales: &[f32]) -> Result<Self, Error> {
        let narrow = |scale: &f32| {
            let half = f16::from_f32_const(*scale);
            let exact = half.to_f32_const() == *scale || scale.is_nan();
            exact.then_some(half).ok_or_else(|| Error::Packed(format!("the scale {scale} is no f16")))
        };
        Ok(Self::F16(scales.iter().map(narrow).collect::<Result<_, _>>()?))
    }

    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(scales) => scales.len(),
            Self::F16(scales) => scales.len(),
            Self::Double(scales) => scales.codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How they are stored.
    pub fn format(&self) -> ScaleFormat {
        match self {
            Self::F32(_) => ScaleFormat::F32,
            Self::F16(_) => ScaleFormat::F16,
            Self::Double(_) => ScaleFormat::Double,
        }
    }

    /// The scales in f32.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Self::F32(scales) => scales.clone(),
            Self::F16(scales) => {
                let mut wide = vec![0.0; scales.len()];
                widen(scales, &mut wide);
                wide
            }
            Self::Double(DoubleScales { codes, steps, mean }) => {
                let blocks = codes.chunks(DOUBLE_BLOCK).zip(steps);
                // Two roundings, as tensors have them, and not one.
                blocks.flat_map(|(codes, step)| codes.iter().map(move |code| f32::from(*code) * step + mean)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_rounds_to_even_and_keeps_within_its_range() {
        let round = |scale| ScaleFormat::F16.round(scale);
        // Neighbouring f16 above 1 are 2^-10 apart.
        let step = 2f32.powi(-10);
        assert_eq!((round(1.0 + 0.5 * step), round(1.0 + 1.5 * step)), (1.0, 1.0 + 2.0 * step));
        assert_eq!(round(-0.1), -f16::from_f32(0.1).to_f32());
        assert_eq!(SMALLEST_F16, f16::from_bits(1).to_f32());
        assert_eq!(LARGEST_F16, f16::MAX.to_f32());
        // Nothing becomes 0 or infinite; subnormal numbers have steps of 2^-24.
        assert_eq!((round(1e-12), round(-1e-12), round(1e9)), (SMALLEST_F16, -SMALLEST_F16, LARGEST_F16));
        assert_eq!(round(3.4 * SMALLEST_F16), 3.0 * SMALLEST_F16);
        assert_eq!(ScaleFormat::F32.round(1e-12), 1e-12);
        assert!(PackedScales::f16(&[0.5, -0.25, round(0.3)]).is_ok());
        assert!(PackedScales::f16(&[0.3]).unwrap_err().to_string().contains("the scale 0.3 is no f16"));
    }

    #[test]
    fn steps_are_those_of_their_block() {
        let codes: Vec<i8> = (0..300).map(|i| (i % 3) as i8 - 1).collect();
        let scales = PackedScales::Double(DoubleScales { codes, steps: vec![0.5, 0.25], mean: 2.0 });
        let values = scales.values();
        assert_eq!((values[0], values[1], values[2], values[257], values[299]), (1.5, 2.0, 2.5, 2.25, 2.25));
        assert_eq!((scales.len(), scales.format().bytes(300)), (300, 300 + 8 + 4));
    }
}
