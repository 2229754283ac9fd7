//! `quantize`: a model to an artifact without training.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bitllama_console::TextFlags;
use bitllama_core::weights::WeightSpec;
use bitllama_core::{
    ActivationPlan, BitPlan, Granularity, ModelConfig, Offset, Quantizer, Rule, ScaleFormat, Scheme, excerpt, rule,
};
use bitllama_formats::output;
use bitllama_formats::{Error as FormatError, Model, StoredWeight};
use bitllama_nn::device::default_name;
use bitllama_runtime::text::{encode, own_bos};
use clap::ValueEnum;
use rayon::prelude::*;
use serde_json::json;

use super::export::print;
use crate::export::{self, Format, Options, Source};
use crate::models::{self, ResolvedPlan};
use crate::monitor::progress::tell;
use crate::monitor::work::Work;
use crate::ptq::reconstruct::{self, Report};
use crate::ptq::{self, Method, gptq};

/// Round a model into an artifact, without training
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, GGUF file, hub id, checkpoint, artifact, or folder of a run (then its best student)
    #[arg(long)]
    model: String,
    /// Round the latent weights of the checkpoint, not those that its student has rounded already
    #[arg(long)]
    latent_weights: bool,
    /// Folder to write, or for GGUF the file; what an earlier `export` or `quantize` wrote there is replaced
    #[arg(long)]
    output: PathBuf,
    /// Format to write
    #[arg(long, value_name = "FORMAT", default_value = "artifact", help = format!("Format to write: {}", export::names()))]
    to: Format,
    /// Refuse weights that the format cannot hold to the bit
    #[arg(long)]
    exact: bool,
    /// Bits per weight of the matrices of all blocks: 1 (binary), 1.58 (ternary), 2, 3, 4, 5, 6 or 8 (integers)
    #[arg(long, value_parser = of_bits, required_unless_present = "scheme")]
    bits: Option<Scheme>,
    /// Scheme of the matrices of all blocks, in place of --bits
    #[arg(long, conflicts_with = "bits", help = format!(
        "Scheme of the matrices of all blocks, in place of --bits: {}. A scheme with a colon is the grid of a format of other \
         programs, which decides groups and scales itself", rule::names()
    ))]
    scheme: Option<Rule>,
    /// Columns that share a scale (a multiple of 32), or `row`, or `tensor` [default: 64 where that divides all matrices,
    /// else row]
    #[arg(long, value_parser = granularity)]
    group_size: Option<Granularity>,
    /// A zero point beside each scale (asymmetric)
    #[arg(long)]
    zero_point: bool,
    /// What scales are rounded to and stored in
    #[arg(long, value_enum, default_value = "f16")]
    scale_dtype: ScaleDtype,
    /// Quantize scales themselves, to 8 bits in blocks of 256 (QLoRA), in place of --scale-dtype
    #[arg(long, conflicts_with = "scale_dtype")]
    double_quant: bool,
    /// How codes and scales are found
    #[arg(long, value_enum, default_value = "search")]
    method: Method,
    /// Scheme of the embedding and the head, with the same --group-size, or f32 [default: int8; for a mix of GGUF types its own]
    #[arg(long, value_name = "SCHEME")]
    embedding: Option<Rule>,
    /// Round the first N blocks only
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Another scheme for some matrices: a glob over parameter paths and a scheme or f32, for instance
    /// *.down_proj=int8; may be given several times, the last one that matches decides
    #[arg(long, value_name = "GLOB=SCHEME")]
    rule: Vec<String>,
    /// Calibration text for --method importance, gptq and block, a file or folder as `eval --text` reads it; may be given
    /// several times
    #[arg(long, value_name = "FILE")]
    calibration: Vec<PathBuf>,
    #[command(flatten)]
    text_flags: TextFlags,
    /// Tokens of calibration text to use, spread evenly over all of it
    #[arg(long, default_value_t = 32768)]
    calibration_tokens: usize,
    /// Tokens a row of calibration text
    #[arg(long, default_value_t = 512)]
    calibration_ctx: usize,
    /// GPTQ takes columns in the order of their inputs' size
    #[arg(long)]
    act_order: bool,
    /// What GPTQ adds to the diagonal of the Hessian, as a share of its mean
    #[arg(long, default_value_t = 0.01)]
    damping: f64,
    /// Times that --method block goes through the calibration text
    #[arg(long, default_value_t = 2)]
    epochs: usize,
    /// Learning rate of the weights in --method block
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Learning rate of the scales in --method block
    #[arg(long, default_value_t = 4e-4)]
    scale_lr: f64,
    /// Of the order in which --method block goes through the text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device for the calibration: flex, ndarray, tch, cuda:N or wgpu
    #[arg(long, default_value = default_name())]
    device: String,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleDtype {
    F16,
    F32,
}

/// The scheme of `--bits`.
pub(super) fn of_bits(bits: &str) -> Result<Scheme, String> {
    Scheme::of_bits_flag(bits).ok_or_else(|| {
        let known: Vec<_> = Scheme::ALL.into_iter().filter_map(|scheme| scheme.description().bits_flag).collect();
        format!("expected one of {}", known.join(", "))
    })
}

fn granularity(text: &str) -> Result<Granularity, String> {
    match text {
        "row" => Ok(Granularity::Row),
        "tensor" => Ok(Granularity::Tensor),
        size => {
            size.parse().map(Granularity::Group).map_err(|_| "expected a number of columns, `row` or `tensor`".into())
        }
    }
}

/// Runs the command.
///
/// # Errors
/// A model or text that is missing or damaged, groups that do not fit the model, a folder that cannot be written.
pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    match (args.method.calibrates(), args.calibration.is_empty()) {
        (true, true) => bail!("--method {} needs text: pass --calibration FILE", args.method.name()),
        (false, false) => bail!("--method {} uses no text: leave --calibration out", args.method.name()),
        (false, true) if args.text_flags != TextFlags::default() => {
            bail!("--text-field and --parse-special are of no use without --calibration")
        }
        _ => {}
    }
    ensure!(args.epochs > 0, "--epochs must be at least 1");
    for (flag, rate) in [("--lr", args.lr), ("--scale-lr", args.scale_lr)] {
        ensure!(rate >= 0.0 && rate.is_finite(), "{flag} must be a number from 0 up");
    }
    ensure!(args.damping > 0.0 && args.damping.is_finite(), "--damping must be positive");
    let device = bitllama_nn::device(&args.device)?;
    let model = models::open(&args.model, args.latent_weights)?;
    let inputs = args.calibration.iter().map(|path| ("--calibration", &**path));
    output::apart(&args.output, inputs.chain([("--model", &*model.path)]))?;
    let _claim = export::claim(args.to, &args.output)?;
    let plan = plan(&args, &model.config)?;

    let rounded = match args.method.calibrates() {
        true => {
            let rows = calibration_rows(&args, &model)?;
            let work = Work::new(model.config.num_hidden_layers as u64, 0, "blocks");
            let gptq = gptq::Options { damping: args.damping, act_order: args.act_order };
            let Args { epochs, lr, scale_lr, seed, .. } = args;
            let options = ptq::Options { gptq, block: reconstruct::Options { epochs, lr, scale_lr, seed } };
            let progress = |done: usize, report: Option<reconstruct::Report>| {
                if let Some(Report { first, last }) = report {
                    work.say(&format!(
                        "block {done}: relative squared error {first:.5} in the first epoch, {last:.5} in the last"
                    ));
                }
                work.advance(1);
            };
            let rounded = ptq::calibrated(
                args.method,
                models::to_device(&model, &device)?,
                &plan,
                &rows,
                options,
                &device,
                progress,
            )?;
            work.finish();
            rounded
        }
        false => Default::default(),
    };
    let weights = weights(&model, &plan, args.method, rounded);
    let provenance = json!({
        "command": "quantize",
        "model": model.path,
        "latent_weights": args.latent_weights.then_some(true),
        "method": args.method.name(),
        "calibration": args.calibration,
        "reading": args.method.calibrates().then(|| args.text_flags.reading()),
        "calibration_tokens": args.method.calibrates().then_some(args.calibration_tokens),
        "act_order": args.act_order,
        "damping": args.damping,
        "block": (args.method == Method::Block).then(|| json!({
            "epochs": args.epochs, "lr": args.lr, "scale_lr": args.scale_lr, "seed": args.seed,
        })),
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    let source = Source {
        config: &model.config,
        activations: &ActivationPlan::default(),
        tokenizer: model.tokenizer_files(),
        provenance,
    };
    let options = Options { exact: args.exact, ..Options::default() };
    let summary = export::write(args.to, &args.output, source, weights, options)?;
    print(&args.output, &summary, Some(start.elapsed().as_secs_f64()), args.json);
    Ok(())
}

const GROUP_SIZE: usize = 64;

/// The choices that a bit plan is made of.
pub(super) struct Choices {
    /// Scheme of the matrices of all blocks; a mix is that of embedding and head too.
    pub scheme: Rule,
    /// Columns that share a scale; by default 64 where that divides all matrices, else rows.
    pub granularity: Option<Granularity>,
    /// What scales have beside them, where the scheme leaves that open.
    pub offset: Offset,
    /// Format of scales, where the scheme leaves that open.
    pub scales: ScaleFormat,
    /// Scheme of embedding and head; by default int8, but for mixes.
    pub embedding: Option<Rule>,
    /// The first blocks that are rounded; all by default.
    pub layers: Option<usize>,
    /// Rules for some matrices.
    pub more: Vec<(String, Rule)>,
}

impl Choices {
    /// A scheme and the defaults for everything else.
    pub fn of(scheme: Rule) -> Self {
        let (offset, scales) = (Offset::None, ScaleFormat::F16);
        Self { scheme, granularity: None, offset, scales, embedding: None, layers: None, more: Vec::new() }
    }

    /// The bit plan for a model, which is called `name` in errors.
    ///
    /// # Errors
    /// Groups that do not fit the model, rules that reach nothing, more layers than there are.
    pub fn plan(&self, name: &str, config: &ModelConfig) -> Result<ResolvedPlan> {
        let divides = |size: usize| {
            [config.hidden_size, config.intermediate_size, config.q_size()].iter().all(|n| n.is_multiple_of(size))
        };
        let default = if divides(GROUP_SIZE) { Granularity::Group(GROUP_SIZE) } else { Granularity::Row };
        let granularity = self.granularity.unwrap_or(default);
        let with_groups = |quantizer: Quantizer| quantizer.with_granularity(granularity).with_scales(self.scales);
        let blocks = self.scheme.map(|quantizer| with_groups(Quantizer { offset: self.offset, ..quantizer }));
        if let Rule::Quantizer(quantizer) = blocks {
            quantizer.check()?;
        }
        let is_mix = matches!(self.scheme, Rule::Target(target, _) if target.mix.is_some());
        let mut rules = vec![(if is_mix { "*" } else { "layers.*" }.to_string(), blocks)];
        let head = self.embedding.or((!is_mix).then_some(Rule::Quantizer(Scheme::Int8.into())));
        if let Some(head) = head.map(|head| head.map(with_groups)) {
            rules.push(("embed_tokens".to_string(), head));
            if !config.tie_word_embeddings {
                rules.push(("lm_head".to_string(), head));
            }
        }
        let layers = config.num_hidden_layers;
        if let Some(first) = self.layers {
            ensure!(first <= layers, "--layers {first}: {name} has {layers} blocks");
            rules.extend((first..layers).map(|layer| (format!("layers.{layer}.*"), Rule::Full)));
        }
        rules.extend(self.more.iter().map(|(glob, scheme)| (glob.clone(), scheme.map(with_groups))));
        let plan = BitPlan::new(rules.iter().map(|(glob, rule)| (glob.as_str(), *rule)))?;
        plan.remarks(config).iter().for_each(|remark| tell(remark));
        plan.resolve(config).with_context(|| name.to_string())
    }
}

/// The bit plan that the flags ask for.
fn plan(args: &Args, config: &ModelConfig) -> Result<ResolvedPlan> {
    let of_bits = args.bits.map(|scheme| Rule::Quantizer(scheme.into()));
    let scheme = args.scheme.or(of_bits).context("pass --bits or --scheme")?;
    ensure!(scheme != Rule::Full, "--scheme f32: nothing would be quantized");
    if let Rule::Target(target, _) = scheme {
        let flags = [
            ("--group-size", args.group_size.is_some()),
            ("--zero-point", args.zero_point),
            ("--double-quant", args.double_quant),
            ("--scale-dtype", args.scale_dtype != ScaleDtype::F16),
        ];
        let given = flags.into_iter().find(|(_, given)| *given);
        ensure!(
            given.is_none(),
            "--scheme {}: it decides {} itself; leave that out",
            target.name,
            given.map_or("", |g| g.0)
        );
    }
    let scales = match (args.double_quant, args.scale_dtype) {
        (true, _) => ScaleFormat::Double,
        (false, ScaleDtype::F16) => ScaleFormat::F16,
        (false, ScaleDtype::F32) => ScaleFormat::F32,
    };
    let mut more = Vec::new();
    for rule in &args.rule {
        let (glob, scheme) =
            rule.split_once('=').with_context(|| format!("--rule {}: expected GLOB=SCHEME", excerpt(rule)))?;
        let scheme: Rule = scheme.parse().with_context(|| format!("--rule {}", excerpt(rule)))?;
        more.push((glob.to_string(), scheme));
    }
    let offset = if args.zero_point { Offset::ZeroPoint } else { Offset::None };
    let Args { group_size: granularity, embedding, layers, .. } = *args;
    Choices { scheme, granularity, offset, scales, embedding, layers, more }.plan(&args.model, config)
}

/// The weights of a model as its plan has them: those that were `rounded` already, others rounded by `method`, which needs no text.
pub(super) fn weights<'a>(
    model: &'a Model,
    plan: &'a ResolvedPlan,
    method: Method,
    mut rounded: HashMap<String, gptq::Rounded>,
) -> impl Iterator<Item = std::result::Result<(WeightSpec, StoredWeight), FormatError>> + 'a {
    let round = move |(spec, quantizer): &(WeightSpec, Option<Quantizer>), found: Option<gptq::Rounded>| {
        if let Some(gptq::Rounded { packed, .. }) = found {
            return Ok((spec.clone(), packed.into()));
        }
        let weight = model.weights.read(spec)?;
        let stored = match quantizer {
            Some(quantizer) => ptq::round(method, quantizer, spec, weight)
                .map_err(|e| FormatError::invalid(&model.path, format!("{e:#}")))?
                .into(),
            None => StoredWeight::Full(weight),
        };
        Ok((spec.clone(), stored))
    };
    batches(plan).flat_map(move |batch| {
        let found: Vec<_> = batch.iter().map(|(spec, _)| rounded.remove(&spec.name)).collect();
        batch.par_iter().zip(found).map(|(planned, found)| round(planned, found)).collect::<Vec<_>>()
    })
}

/// Elements of the weights that are rounded side by side, at most, unless one has more: rounding takes several copies of them.
const BATCH: usize = 1 << 26;

/// The plan in parts of at most [`BATCH`] elements.
fn batches(plan: &ResolvedPlan) -> impl Iterator<Item = &[(WeightSpec, Option<Quantizer>)]> {
    let mut rest = &plan[..];
    std::iter::from_fn(move || {
        let mut elements = 0;
        let more = rest.iter().take_while(|(spec, _)| {
            elements += spec.shape.iter().product::<usize>();
            elements <= BATCH
        });
        let (batch, others) = rest.split_at(more.count().max(1).min(rest.len()));
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Rows of tokens, spread evenly over the calibration text.
fn calibration_rows(args: &Args, model: &Model) -> Result<Vec<Vec<u32>>> {
    let (ctx, limit) = (args.calibration_ctx, model.config.max_position_embeddings);
    ensure!(ctx > 0 && ctx <= limit, "--calibration-ctx {ctx} is not within the model's context of {limit} tokens");
    let bos = own_bos(&model.tokenizer)?;
    let tokenizer = args.text_flags.reading().tokenizer(&model.tokenizer)?;
    let mut tokens = Vec::new();
    for path in &args.calibration {
        let text = args.text_flags.reading().text(path)?;
        tokens.extend(encode(&tokenizer, bos, &text).with_context(|| format!("{}", path.display()))?);
    }
    let rows = (tokens.len() / ctx).min(args.calibration_tokens / ctx);
    ensure!(
        rows > 0,
        "{} calibration tokens are no row of {ctx}: give more text or tokens, or lower --calibration-ctx",
        tokens.len().min(args.calibration_tokens)
    );
    let apart = (tokens.len() - ctx) / rows.max(2).saturating_sub(1);
    Ok((0..rows).map(|row| tokens[row * apart..row * apart + ctx].to_vec()).collect())
}
