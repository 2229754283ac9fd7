//! True bits per weight: everything that a model needs is counted, scales, embeddings and head included, and the rows
//! that a matrix lacks to whole panels.

use crate::Quantizer;
use crate::quantizer::Offset;
use crate::weights::WeightSpec;

/// Stored size of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoredSize {
    /// Number of parameters; a tied head counts once.
    pub parameters: usize,
    /// Bytes of codes, scales and full-precision (f32) weights.
    pub bytes: usize,
}

impl StoredSize {
    /// Size of weights stored by the given quantizers (`None`: f32).
    pub fn of(weights: &[(WeightSpec, Option<Quantizer>)]) -> Self {
        Self {
            parameters: weights.iter().map(|(weight, _)| weight.len()).sum(),
            bytes: weights.iter().map(|(weight, quantizer)| weight_bytes(weight, *quantizer)).sum(),
        }
    }

    /// Bits that one parameter takes on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters as f64
    }
}

fn weight_bytes(weight: &WeightSpec, quantizer: Option<Quantizer>) -> usize {
    match (quantizer, weight.shape.as_slice()) {
        (Some(quantizer), [rows, columns]) => {
            let scales = rows * quantizer.scales_a_row(*columns);
            let offsets = match quantizer.offset {
                Offset::None => 0,
                Offset::ZeroPoint => scales * size_of::<i32>(),
                Offset::Minimum => quantizer.scales.bytes(scales),
            };
            let constants = quantizer.scales.bytes(scales) + offsets;
            if quantizer.is_of_blocks() {
                // Rows stand one after the other, not in panels.
                return weight.len() * quantizer.scheme.code_bits() as usize / 8 + constants;
            }
            quantizer.scheme.packed_bytes([*rows, *columns]).map_or(usize::MAX, |codes| codes + constants)
        }
        _ => weight.len() * size_of::<f32>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::{BitPlan, ScaleFormat, Scheme};

    #[test]
    fn nf4_takes_the_bits_that_qlora_says() {
        let weight = WeightSpec { name: "w".into(), shape: vec![4096, 4096], kind: crate::weights::Kind::Linear };
        let bits = |quantizer: Quantizer| StoredSize::of(&[(weight.clone(), Some(quantizer))]).bits_per_weight();
        let nf4 = Quantizer::from(Scheme::Nf4);
        assert_eq!(bits(nf4), 4.5);
        assert_eq!(bits(nf4.with_scales(ScaleFormat::F16)), 4.25);
        // 8 / 64 + 32 / (64 * 256), and the mean.
        assert!((bits(nf4.with_scales(ScaleFormat::Double)) - 4.127).abs() < 5e-4);
    }

    #[test]
    fn scales_and_full_precision_weights_count() {
        let weights = BitPlan::uniform(Scheme::Int8).resolve(&tiny()).unwrap();
        let size = StoredSize::of(&weights);
        // Per block: q and o 16x16, k and v 8x16, gate and up 24x16, down 16x24; 5 norms of 16; embedding 32x16. Panels
        // have 16 rows: k and v take as much as q, gate and up as 32 rows.
        let codes = 2 * (4 * 256 + 2 * 32 * 16 + 16 * 24);
        let (linear, rows) = (2 * (256 + 128 + 128 + 256 + 3 * 384), 2 * (16 + 8 + 8 + 16 + 24 + 24 + 16));
        assert_eq!(size.bytes, codes + rows * 4 + (5 * 16 + 32 * 16) * 4);
        assert_eq!(size.parameters, linear + 5 * 16 + 32 * 16);
        assert!(size.bits_per_weight() > 8.0);
    }
}
