//! `export`: a model to another format.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use bitllama_core::weights::specs;
use bitllama_formats::{hf, output};
use clap::ValueEnum;
use serde_json::json;

use crate::export::{self, Format, Options, Source, Summary};
use crate::models;
use crate::monitor::progress::tell;

/// Write a model or trained student in another format
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint, artifact, Hugging Face directory, GGUF file, hub id, or folder of a run (then its best student). Weights of a
    /// checkpoint are rounded by its bit plan
    #[arg(long, alias = "checkpoint", value_name = "MODEL")]
    from: String,
    /// Folder to write, or for GGUF the file; what an earlier `export` or `quantize` wrote there is replaced
    #[arg(long)]
    output: PathBuf,
    /// Format to write
    #[arg(long, alias = "layout", value_name = "FORMAT", default_value = "artifact", help = format!(
        "Format to write: {}. GGUF files take for each matrix the type of the fewest bits that holds it without loss, or TYPE \
         where that does. compressed-tensors, gptq, mlx and bitnet are Hugging Face directories of packed weights, for transformers, \
         vLLM, GPTQModel and mlx-lm; a matrix that one cannot hold stays in full precision there", export::names()
    ))]
    to: Format,
    /// Use operators of ONNX itself only, not those of ONNX Runtime (--to onnx)
    #[arg(long)]
    opset_only: bool,
    /// Number format of weights that are not packed [default: for hf and onnx f32, else the smallest that keeps every number]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Refuse weights that the format cannot hold to the bit
    #[arg(long)]
    exact: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl From<Dtype> for hf::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => hf::Dtype::F32,
            Dtype::F16 => hf::Dtype::F16,
            Dtype::Bf16 => hf::Dtype::Bf16,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// A model that is missing or damaged, or that the format cannot hold; an output that cannot be written, or holds what this program
/// did not write.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.dtype.is_none() || args.to.takes_dtype(), "--dtype is of no use with --to artifact, v2 and apl");
    let to = match args.to {
        Format::Onnx { .. } => Format::Onnx { opset_only: args.opset_only },
        _ if args.opset_only => bail!("--opset-only is of use with --to onnx only"),
        other => other,
    };
    output::apart(&args.output, [("--from", Path::new(&args.from))])?;
    let _claim = export::claim(to, &args.output)?;
    let model = models::open(&args.from, false)?;
    let weights = specs(&model.config).into_iter().map(|spec| {
        let weight = model.weights.stored(&spec)?;
        Ok((spec, weight))
    });
    let provenance = json!({
        "checkpoint": model.path.file_name().map(|n| n.to_string_lossy()),
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    let source = Source {
        config: &model.config,
        activations: &model.activations,
        tokenizer: model.tokenizer_files(),
        provenance,
    };
    let options = Options { dtype: args.dtype.map(hf::Dtype::from), exact: args.exact };
    if !to.rounds_as(&model.activations) {
        tell(
            "the student was trained with rounded activations; other programs round theirs in their own way, or not at all",
        );
    }
    let summary = export::write(to, &args.output, source, weights, options)?;
    print(&args.output, &summary, None, args.json);
    Ok(())
}

/// Prints sizes, and for GGUF files the types of tensors and what they lose.
pub fn print(output: &Path, summary: &Summary, seconds: Option<f64>, as_json: bool) {
    let Summary { bytes, parameters, tensors } = summary;
    if as_json {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|tensor| {
                json!({
                    "tensor": tensor.tensor, "type": tensor.dtype, "bytes": tensor.bytes, "error": tensor.error,
                    "remark": tensor.remark,
                })
            })
            .collect();
        let mut result = json!({
            "output": output, "bits_per_weight": summary.bits_per_weight(), "bytes": bytes, "parameters": parameters,
        });
        if let Some(seconds) = seconds {
            result["seconds"] = json!(seconds);
        }
        if !tensors.is_empty() {
            result["tensors"] = json!(tensors);
        }
        println!("{result}");
        return;
    }
    for line in by_type(summary) {
        println!("{line}");
    }
    let seconds = seconds.map(|seconds| format!(", {seconds:.1} s")).unwrap_or_default();
    println!("{}: {bytes} bytes packed, {:.3} bits per weight{seconds}", output.display(), summary.bits_per_weight());
}

/// A line for each type of tensors, and one for each tensor that is not exact or takes more bits than its codes have.
fn by_type(summary: &Summary) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut seen = Vec::new();
    for tensor in &summary.tensors {
        if !seen.contains(&&tensor.dtype) {
            seen.push(&tensor.dtype);
            let same: Vec<_> = summary.tensors.iter().filter(|other| other.dtype == tensor.dtype).collect();
            let bytes: usize = same.iter().map(|tensor| tensor.bytes).sum();
            let exact = same.iter().filter(|tensor| tensor.error == 0.0).count();
            let name = &tensor.dtype;
            lines.push(format!("{name:<7} {:>4} tensors, {exact} of them exact, {bytes} bytes", same.len()));
        }
    }
    for tensor in &summary.tensors {
        if let Some(remark) = &tensor.remark {
            let error = match tensor.error {
                0.0 => "exact".to_string(),
                error => format!("relative error {error:.1e}"),
            };
            lines.push(format!("{} ({}, {error}): {remark}", tensor.tensor, tensor.dtype));
        }
    }
    lines
}
