//! Models with random weights of a GGUF file's type, to be timed: multiplied in the panels that weights of such a file get.

use std::sync::Arc;

use bitllama_core::blocks::{BlockForm, PanelMut};
use bitllama_core::panel::{PANEL_ROWS, VECTOR_BYTES};
use bitllama_core::size::StoredSize;
use bitllama_core::weights::{self, Kind, WeightSpec};
use bitllama_core::{BlockMatrix, ModelConfig, Rule, StoredRows};
use bitllama_formats::StoredWeight;
use bitllama_formats::gguf::BlockFormat;
use half::f16;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::random::{decoder_of, random_weight};
use crate::{Decoder, Error, Result, memory};

/// The formats that random weights can have: those with a [form](BlockFormat::form).
pub fn formats_with_codes() -> impl Iterator<Item = BlockFormat> {
    BlockFormat::ALL.into_iter().filter(|format| format.form().is_some())
}

/// A decoder of `config` whose matrices are random blocks of `format`; embedding and head are stored by the rule `head` if there
/// is one. Norms and biases do nothing.
///
/// # Errors
/// [`Error::Config`] if the config describes no model, or the rule does not fit it; [`Error::Options`] for a format without a
/// form, or whose blocks do not divide the columns of a matrix; [`Error::Memory`] for a model that does not fit into memory.
pub fn random_block_decoder(config: &ModelConfig, format: BlockFormat, head: Option<Rule>) -> Result<Decoder> {
    config.validate()?;
    let form = format.form().ok_or_else(|| Error::Options(format!("{} has no whole codes", format.name())))?;
    let rule_of = |spec: &WeightSpec| head.filter(|_| matches!(spec.kind, Kind::Embedding | Kind::Head));
    let specs = weights::specs(config);
    let mut bytes = 0;
    for spec in &specs {
        bytes += match (rule_of(spec), spec.shape.as_slice()) {
            (None, &[rows, columns]) => file_bytes(format, [rows, columns]) as u128,
            (rule, _) => {
                let quantizer = rule.and_then(|rule: Rule| rule.quantizer(config, spec));
                StoredSize::of(&[(spec.clone(), quantizer)]).bytes as u128
            }
        };
    }
    memory::ensure(bytes, 1)?;
    let blocks: Vec<_> = specs.iter().filter(|spec| !spec.kind.is_vector() && rule_of(spec).is_none()).collect();
    let fits = |format: BlockFormat, spec: &WeightSpec| spec.shape[1].is_multiple_of(format.block_len());
    if let Some(spec) = blocks.iter().find(|spec| !fits(format, spec)) {
        let others = formats_with_codes().filter(|format| blocks.iter().all(|spec| fits(*format, spec)));
        let others: Vec<_> = others.map(|format| format.name().to_ascii_lowercase()).collect();
        let others = match others.is_empty() {
            true => String::new(),
            false => format!(", or one of the types {}", others.join(", ")),
        };
        return Err(Error::Options(format!(
            "{}: {} columns are no whole number of {}'s blocks of {}; choose another shape{others}",
            spec.name,
            spec.shape[1],
            format.name(),
            format.block_len()
        )));
    }
    decoder_of(config, |spec, shape, seed| match rule_of(spec) {
        Some(rule) => random_weight(rule.quantizer(config, spec), shape, seed),
        None => {
            let matrix = BlockMatrix::new(shape, form, |panels| fill(format, &form, shape, seed, panels))?;
            Ok(StoredWeight::Rows(Arc::new(RandomBlocks { format, matrix })))
        }
    })
}

/// Bytes of a matrix `[rows, columns]` in a file.
fn file_bytes(format: BlockFormat, [rows, columns]: [usize; 2]) -> usize {
    (columns / format.block_len()).saturating_mul(format.block_bytes()).saturating_mul(rows)
}

/// Steps of nested scales are from 1 to this, which 4 bits hold, those of Q2_K.
const STEPS: u8 = 15;

/// Fills panels of a matrix `[rows, columns]` with random fields and steps. Factors are the same number everywhere, one that keeps
/// activations about at their size, but is no subnormal number; minimums are those that make the mean weight of a group 0.
fn fill(format: BlockFormat, form: &BlockForm, [rows, columns]: [usize; 2], seed: u64, panels: Vec<PanelMut<'_>>) {
    let ternary = matches!(format, BlockFormat::TQ1_0 | BlockFormat::TQ2_0);
    let largest = if ternary { 2 } else { form.bits.largest() };
    let codes = (0..=largest).map(|field| form.codes.code(field) as f32);
    let count = f32::from(largest) + 1.0;
    let mean = codes.clone().sum::<f32>() / count;
    let size = (codes.map(|code| (code - mean).powi(2)).sum::<f32>() / count).sqrt();
    let step = if form.nested.is_some() { f32::from(STEPS + 1) / 2.0 } else { 1.0 };
    let factor = f16::from_f32(1.0 / (size * step * (columns as f32).sqrt())).max(f16::MIN_POSITIVE);
    let minimum = f16::from_f32(factor.to_f32() * mean);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for PanelMut { index, fields, scales, minimums } in panels {
        let lanes = PANEL_ROWS.min(rows - index * PANEL_ROWS);
        rng.fill_bytes(fields);
        if ternary {
            // The field 3, which ternary formats do not have, becomes 1, the code 0.
            fields.iter_mut().for_each(|byte| *byte ^= *byte & (*byte << 1) & 0xaa);
        }
        // Rows beyond the last are zeros.
        let lane_bytes = VECTOR_BYTES / PANEL_ROWS;
        fields.as_chunks_mut::<VECTOR_BYTES>().0.iter_mut().for_each(|vector| vector[lanes * lane_bytes..].fill(0));
        put(scales.halves, lanes, || factor.to_bits());
        put(scales.steps, lanes, || (rng.next_u32() % u32::from(STEPS)) as i8 + 1);
        if let Some(minimums) = minimums {
            put(minimums.halves, lanes, || minimum.to_bits());
            minimums.steps.copy_from_slice(scales.steps);
        }
    }
}

/// Writes numbers of the first `lanes` rows of a panel into `[.., 16]`.
fn put<T>(out: &mut [T], lanes: usize, mut number: impl FnMut() -> T) {
    for rows in out.as_chunks_mut::<PANEL_ROWS>().0 {
        rows[..lanes].fill_with(&mut number);
    }
}

/// A matrix that no file has, with the size that blocks of `format` would give it there.
#[derive(Debug)]
struct RandomBlocks {
    format: BlockFormat,
    matrix: BlockMatrix,
}

impl StoredRows for RandomBlocks {
    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    fn columns(&self) -> usize {
        self.matrix.columns()
    }

    fn bytes(&self) -> usize {
        file_bytes(self.format, [self.rows(), self.columns()])
    }

    fn rows_into(&self, first: usize, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.columns()), "{} numbers are no whole rows", out.len());
        for (row, out) in (first..).zip(out.chunks_exact_mut(self.columns())) {
            self.matrix.dequantize_row_into(row, out);
        }
    }

    fn panels(&self) -> Option<BlockMatrix> {
        Some(self.matrix.clone())
    }
}

#[cfg(test)]
mod tests {
    use bitllama_core::Scheme;

    use super::*;
    use crate::LogitsOf;
    use crate::testing::tiny_config;

    /// [`tiny_config`] with columns that blocks of 256 divide.
    fn config() -> ModelConfig {
        ModelConfig { hidden_size: 256, intermediate_size: 512, head_dim: 64, ..tiny_config() }
    }

    #[test]
    fn every_format_with_codes_runs_and_has_the_bytes_of_its_file() {
        assert_eq!(formats_with_codes().count(), 16);
        let matrices: Vec<_> = weights::specs(&config()).into_iter().filter(|spec| !spec.kind.is_vector()).collect();
        let elements: usize = matrices.iter().map(WeightSpec::len).sum();
        for format in formats_with_codes() {
            let decoder = random_block_decoder(&config(), format, None).unwrap();
            let size = decoder.size();
            let vectors = size.parameters - elements;
            let expected = elements / format.block_len() * format.block_bytes() + vectors * size_of::<f32>();
            assert_eq!(size.bytes, expected, "{}", format.name());
            let logits = decoder.forward(&[1, 2, 3], &mut decoder.new_cache(), LogitsOf::All).unwrap();
            let good = logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0);
            assert!(good && logits[..258] != logits[258..516], "{}", format.name());
        }
    }

    #[test]
    fn weights_keep_activations_at_their_size() {
        for format in formats_with_codes() {
            let (form, shape) = (format.form().unwrap(), [20, 512]);
            let of = |seed| BlockMatrix::new(shape, form, |panels| fill(format, &form, shape, seed, panels)).unwrap();
            let matrix = of(1);
            assert!(matrix == of(1) && matrix != of(2), "{}", format.name());
            let rows = RandomBlocks { format, matrix };
            assert_eq!(rows.bytes(), 20 * 512 / format.block_len() * format.block_bytes());
            let numbers = (&rows as &dyn StoredRows).to_f32();
            let square = numbers.iter().map(|x| x * x).sum::<f32>() / 20.0;
            assert!((0.5..2.5).contains(&square), "{}: {square}", format.name());
            // Rows 20 to 31 of the second panel are not there.
            let vectors = rows.matrix.panel(1).as_chunks::<VECTOR_BYTES>().0;
            assert!(vectors.iter().all(|vector| vector[16..].iter().all(|byte| *byte == 0)), "{}", format.name());
        }
    }

    #[test]
    fn embedding_and_head_may_have_a_scheme() {
        let untied = ModelConfig { tie_word_embeddings: false, ..config() };
        for rule in [Rule::Full, Rule::Quantizer(Scheme::Int8.into())] {
            let [plain, mixed] =
                [None, Some(rule)].map(|head| random_block_decoder(&untied, BlockFormat::Q4_K, head).unwrap().size());
            let spec = WeightSpec { name: "w".into(), shape: vec![258, 256], kind: Kind::Embedding };
            let difference = StoredSize::of(&[(spec.clone(), rule.quantizer(&untied, &spec))]).bytes
                - file_bytes(BlockFormat::Q4_K, [258, 256]);
            assert_eq!(mixed.bytes, plain.bytes + 2 * difference);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let error =
            |config: &ModelConfig, format| random_block_decoder(config, format, None).err().unwrap().to_string();
        assert_eq!(error(&config(), BlockFormat::IQ2_S), "IQ2_S has no whole codes");
        let narrow = ModelConfig { intermediate_size: 320, ..config() };
        assert_eq!(
            error(&narrow, BlockFormat::Q6_K),
            "layers.0.mlp.down_proj.weight: 320 columns are no whole number of Q6_K's blocks of 256; choose another shape, \
             or one of the types q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, q2_0"
        );
        assert!(random_block_decoder(&narrow, BlockFormat::Q2_0, None).is_ok());
        assert!(error(&tiny_config(), BlockFormat::Q4_0).ends_with("blocks of 32; choose another shape"));
    }
}
