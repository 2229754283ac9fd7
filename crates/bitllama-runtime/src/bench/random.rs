//! Models with random weights, to be timed: their text is nonsense, their speed is that of trained ones.

use bitllama_core::panel::aligned_bytes;
use bitllama_core::scales::{DOUBLE_BLOCK, DoubleScales, PackedScales};
use bitllama_core::size::StoredSize;
use bitllama_core::weights::WeightSpec;
use bitllama_core::{BitPlan, ModelConfig, PackedMatrix, Quantizer, RoundedMatrix, ScaleFormat, Scheme};
use bitllama_formats::StoredWeight;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Decoder, Result, memory};

/// A decoder of `config` with random weights as `plan` stores them.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if the config describes no model, or the plan does not fit it;
/// [`Error::Memory`](crate::Error::Memory) for a model that does not fit into memory.
pub fn random_decoder(config: &ModelConfig, plan: &BitPlan) -> Result<Decoder> {
    config.validate()?;
    let resolved = plan.resolve(config)?;
    memory::ensure(StoredSize::of(&resolved).bytes as u128, 1)?;
    decoder_of(config, |spec, shape, seed| random_weight(plan.quantizer_of(config, spec), shape, seed))
}

/// A decoder of `config` with the matrices that `matrix` gives for a weight, its shape and a seed; norms and biases do
/// nothing.
pub(super) fn decoder_of(
    config: &ModelConfig,
    matrix: impl Fn(&WeightSpec, [usize; 2], u64) -> Result<StoredWeight>,
) -> Result<Decoder> {
    let mut seed = 0;
    Decoder::new(config.clone(), |spec| {
        seed += 1;
        match spec.shape[..] {
            [width] => Ok(StoredWeight::Full(vec![spec.kind.neutral(); width])),
            [rows, columns] => matrix(spec, [rows, columns], seed),
            _ => Err(bitllama_core::Error::Config(format!("{} is no matrix", spec.name)).into()),
        }
    })
}

/// A matrix `[out_features, in_features]` of random codes as `quantizer` stores them, or of random numbers in f32. All scales
/// are the same number, zero points are the two fields next to the middle.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if the quantizer contradicts itself or does not fit the shape, or the shape is
/// empty or too large.
pub fn random_weight(quantizer: Option<Quantizer>, shape: [usize; 2], seed: u64) -> Result<StoredWeight> {
    let [rows, columns] = shape;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let Some(quantizer) = quantizer else {
        // Uniform, with the variance that keeps activations at their size.
        let size = (12.0 / columns as f32).sqrt();
        let data = (0..rows * columns).map(|_| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * size);
        return Ok(StoredWeight::Full(data.collect()));
    };
    quantizer.check()?;
    quantizer.check_shape(shape)?;
    let scheme = quantizer.scheme;
    if quantizer.is_of_blocks() {
        let data = (0..rows * columns).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5);
        return Ok(RoundedMatrix::quantize(&quantizer, shape, data.collect(), None)?.into());
    }
    let bytes = aligned_bytes(scheme.packed_bytes(shape).unwrap_or(0), |bytes| {
        rng.fill_bytes(bytes);
        if scheme == Scheme::Ternary {
            // The field 3, which ternary does not have, becomes 1, the code 0.
            bytes.iter_mut().for_each(|byte| *byte ^= *byte & (*byte << 1) & 0xaa);
        }
        Ok::<_, bitllama_core::Error>(())
    })?;
    let scale = 1.0 / (scheme.levels() as f32 * (columns as f32).sqrt());
    let count = rows * quantizer.scales_a_row(columns);
    let middle = (scheme.levels() / 2) as i32;
    let zero_points =
        quantizer.has_zero_points().then(|| (0..count).map(|_| middle - (rng.next_u32() & 1) as i32).collect());
    let scales = constant_scales(&quantizer, scale, count)?;
    Ok(StoredWeight::Packed(PackedMatrix::new(scheme, shape, bytes, scales, zero_points)?))
}

/// `count` scales of about `scale`, as `quantizer` stores them.
fn constant_scales(quantizer: &Quantizer, scale: f32, count: usize) -> Result<PackedScales> {
    if quantizer.scales == ScaleFormat::Double {
        let (codes, steps) = (vec![0; count], vec![scale; count.div_ceil(DOUBLE_BLOCK)]);
        return Ok(PackedScales::Double(DoubleScales { codes, steps, mean: scale }));
    }
    let scales = vec![quantizer.scales.round(scale); count];
    Ok(if quantizer.scales == ScaleFormat::F16 { PackedScales::f16(&scales)? } else { scales.into() })
}

#[cfg(test)]
mod tests {
    use bitllama_core::weights::Kind;
    use bitllama_core::{Granularity, Method, Offset, Rule};

    use super::*;
    use crate::LogitsOf;
    use crate::testing::tiny_config;

    /// [`tiny_config`] with columns that groups of 64 divide.
    fn grouped_config() -> ModelConfig {
        ModelConfig { hidden_size: 64, intermediate_size: 128, head_dim: 16, ..tiny_config() }
    }

    #[test]
    fn every_quantizer_has_random_weights_of_the_bytes_that_it_stores() {
        for scheme in Scheme::ALL {
            for granularity in [Granularity::Row, Granularity::Tensor, Granularity::Group(32), Granularity::Group(64)] {
                for scales in [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Double] {
                    for offset in [Offset::None, Offset::ZeroPoint] {
                        let plain = Quantizer { offset, ..Quantizer::from(scheme) };
                        let quantizer = plain.with_granularity(granularity).with_scales(scales);
                        if quantizer.check().is_err() {
                            assert!(random_weight(Some(quantizer), [20, 128], 1).is_err());
                            continue;
                        }
                        let StoredWeight::Packed(packed) = random_weight(Some(quantizer), [20, 128], 1).unwrap() else {
                            panic!("{quantizer} is packed");
                        };
                        let spec = WeightSpec { name: "w".into(), shape: vec![20, 128], kind: Kind::Linear };
                        let size = StoredSize::of(&[(spec, Some(quantizer))]);
                        assert_eq!(packed.stored_bytes(), size.bytes, "{quantizer}");
                        assert_eq!(packed.zero_points().is_some(), offset == Offset::ZeroPoint);
                        let weights = packed.dequantize().data;
                        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
                        let square = weights.iter().map(|weight| weight * weight).sum::<f32>() / weights.len() as f32;
                        assert!(square > 0.0 && mean.abs() < 0.5 * square.sqrt(), "{quantizer}: {mean}, {square}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_decoder_has_the_bits_of_its_plan() {
        let config = grouped_config();
        let layers =
            Quantizer::from(Scheme::Int4).with_granularity(Granularity::Group(64)).with_scales(ScaleFormat::F16);
        let head = Quantizer::from(Scheme::Int8).with_granularity(Granularity::Group(32)).with_scales(ScaleFormat::F16);
        for layers in [layers, layers.with_zero_point()] {
            let rules = [("layers.*", Rule::Quantizer(layers)), ("embed_tokens", Rule::Quantizer(head))];
            let plan = BitPlan::new(rules).unwrap();
            let decoder = random_decoder(&config, &plan).unwrap();
            assert_eq!(decoder.size(), StoredSize::of(&plan.resolve(&config).unwrap()));
            let logits = decoder.forward(&[1, 2, 3], &mut decoder.new_cache(), LogitsOf::All).unwrap();
            assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0), "{layers}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let plan = |quantizer| BitPlan::new([("layers.*", Rule::Quantizer(quantizer))]).unwrap();
        let groups = |size| Quantizer::from(Scheme::Int4).with_granularity(Granularity::Group(size));
        let error = |quantizer| random_decoder(&grouped_config(), &plan(quantizer)).err().unwrap().to_string();
        let found = error(groups(96));
        assert!(
            found.contains("q_proj.weight: quantizer: a matrix of 64 x 64 has no whole groups of 96 columns"),
            "{found}"
        );
        assert!(random_weight(Some(groups(48)), [16, 96], 1).is_err());
        assert!(random_weight(Some(groups(64)), [16, 96], 1).is_err());
        let twn = Quantizer::from(Scheme::Int4).with_method(Method::Twn);
        assert!(random_weight(Some(twn), [16, 96], 1).is_err());
    }
}
