//! `bitllama bench --shape`: random weights in the shape of a config.

use std::path::PathBuf;

use anyhow::bail;
use bitllama_core::{BitPlan, Granularity, ModelConfig, Offset, Quantizer, Rule, ScaleFormat, excerpt, scheme};
use bitllama_formats::gguf::BlockFormat;
use bitllama_formats::hf;
use bitllama_runtime::{Decoder, bench};
use clap::Args;
use include_dir::{Dir, include_dir};

use crate::source::SchemeOrFull;

/// How random weights are stored.
#[derive(Debug, Args)]
pub struct RandomPlan {
    /// Scheme of the random weights
    #[arg(long, value_name = "SCHEME", default_value = "ternary", help = format!(
        "Scheme of the random weights: {} or f32", scheme::names()
    ))]
    scheme: SchemeOrFull,
    /// Type of a GGUF file for the random weights, in place of --scheme, such as q4_k or q6_k: they are multiplied as weights
    /// out of such a file are
    #[arg(
        long,
        value_name = "TYPE",
        value_parser = block_format,
        conflicts_with_all = ["artifact", "kernels", "scheme", "group_size", "zero_point", "scale_dtype"]
    )]
    gguf_type: Option<BlockFormat>,
    /// Scheme of the random embedding and head, with the same --group-size and --scale-dtype [default: as --scheme, zero
    /// points included, or as --gguf-type]
    #[arg(long, value_name = "SCHEME")]
    embedding: Option<SchemeOrFull>,
    /// Columns that share a scale, a multiple of 32; 0 for one scale a row [default: 0, for nf4 64, for iq4 32]
    #[arg(long, value_name = "N", conflicts_with_all = ["artifact", "kernels"])]
    group_size: Option<usize>,
    /// A zero point beside each scale of --scheme (asymmetric)
    #[arg(long, conflicts_with_all = ["artifact", "kernels"])]
    zero_point: bool,
    /// Number format of stored scales: f32 or f16
    #[arg(long, value_name = "TYPE", value_parser = scale_format, default_value = "f32", conflicts_with_all = ["artifact", "kernels"])]
    scale_dtype: ScaleFormat,
}

fn block_format(name: &str) -> Result<BlockFormat, String> {
    let format = BlockFormat::named(name);
    format.filter(|format| format.form().is_some()).ok_or_else(|| {
        let fault = match format {
            Some(_) => "weights of this type are not multiplied as codes",
            None => "unknown type",
        };
        let names: Vec<_> = bench::formats_with_codes().map(|format| format.name().to_ascii_lowercase()).collect();
        format!("{fault}, expected one of {}", names.join(", "))
    })
}

fn scale_format(name: &str) -> Result<ScaleFormat, String> {
    match name {
        "f32" => Ok(ScaleFormat::F32),
        "f16" => Ok(ScaleFormat::F16),
        _ => Err("expected `f32` or `f16`".into()),
    }
}

impl RandomPlan {
    /// A decoder in the shape of a config, and a line about it.
    pub fn decoder(&self, shape: &str) -> anyhow::Result<(String, Decoder)> {
        let config = config_of(shape)?;
        let name = |rule: Option<Quantizer>| rule.map_or("f32".into(), described);
        let label = |layers: String, head: Option<Option<Quantizer>>| match head {
            None => format!("{shape}, random {layers}"),
            Some(head) => format!("{shape}, random {layers}, embedding and head {}", name(head)),
        };
        if let Some(format) = self.gguf_type {
            let head = self.embedding.map(|SchemeOrFull(scheme)| scheme.map(Quantizer::from));
            let decoder = bench::random_block_decoder(&config, format, head.map(Rule::from))?;
            return Ok((label(format.name().into(), head), decoder));
        }
        let (layers, head) = self.rules()?;
        let mut rules = vec![("layers.*", layers), ("embed_tokens", head)];
        if !config.tie_word_embeddings {
            rules.push(("lm_head", head));
        }
        let label = label(name(layers), Some(head).filter(|head| *head != layers));
        let rules = rules.into_iter().map(|(glob, quantizer)| (glob, Rule::from(quantizer)));
        Ok((label, bench::random_decoder(&config, &BitPlan::new(rules)?)?))
    }

    /// The quantizer of linear layers, and that of embedding and head.
    fn rules(&self) -> anyhow::Result<(Option<Quantizer>, Option<Quantizer>)> {
        let with_groups = |quantizer: Quantizer| {
            let granularity = match self.group_size {
                None => quantizer.granularity,
                Some(0) => Granularity::Row,
                Some(size) => Granularity::Group(size),
            };
            quantizer.with_granularity(granularity).with_scales(self.scale_dtype)
        };
        let rule = |SchemeOrFull(scheme): SchemeOrFull| scheme.map(|scheme| with_groups(scheme.into()));
        let (mut layers, head) = (rule(self.scheme), self.embedding.map(rule));
        match &mut layers {
            Some(quantizer) => {
                quantizer.offset = if self.zero_point { Offset::ZeroPoint } else { Offset::None };
                quantizer.check()?;
            }
            None if self.zero_point => bail!("--zero-point: weights in f32 have none"),
            None => {}
        }
        Ok((layers, head.unwrap_or(layers)))
    }
}

/// A quantizer as far as random weights have it: without the method that would find its scales.
fn described(quantizer: Quantizer) -> String {
    let mut text = quantizer.scheme.to_string();
    if let Granularity::Group(size) = quantizer.granularity {
        text += &format!(" in groups of {size}");
    }
    if quantizer.has_zero_points() {
        text += " with zero points";
    }
    if quantizer.scales == ScaleFormat::F16 {
        text += ", f16 scales";
    }
    text
}

/// The configs that come with the program: `configs/`.
static CONFIGS: Dir = include_dir!("$CARGO_MANIFEST_DIR/../../configs");

/// A config by its path, or by its name out of [`CONFIGS`].
fn config_of(shape: &str) -> anyhow::Result<ModelConfig> {
    if let Some(file) = CONFIGS.get_file(format!("{shape}.json")) {
        let json = serde_json::from_slice(file.contents())?;
        return Ok(hf::parse_config(&PathBuf::from(format!("configs/{shape}.json")), &json)?);
    }
    let path = PathBuf::from(shape);
    if !path.is_file() {
        let names = CONFIGS.files().filter_map(|file| file.path().file_stem()?.to_str());
        let nearest = names.max_by(|a, b| strsim::jaro_winkler(shape, a).total_cmp(&strsim::jaro_winkler(shape, b)));
        let shape = excerpt(shape);
        let nearest = nearest.unwrap_or_default();
        bail!("--shape {shape}: no such file, nor a config that comes with the program; did you mean `{nearest}`?");
    }
    Ok(hf::read_config(&path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_config_describes_a_model() {
        let names: Vec<_> = CONFIGS.files().map(|file| file.path().file_stem().unwrap().to_str().unwrap()).collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            config_of(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let error = config_of("gemma-3-270").unwrap_err().to_string();
        assert!(error.ends_with("did you mean `gemma-3-270m`?"), "{error}");
    }
}
