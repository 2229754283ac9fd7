//! `distill` and `pretrain`: train a student by a recipe, with or without a teacher.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use bitllama_core::size::StoredSize;
use bitllama_core::weights::parameter_count;
use bitllama_formats::output::{Growing, Kind, claim_folder, claim_growing};
use bitllama_formats::{Model, hf};
use bitllama_nn::Llama;
use bitllama_runtime::evaluate::Perplexity;
use bitllama_runtime::text::own_bos;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::identity::{fingerprint, provenance};
use super::outcome::{Outcome, Row};
use super::outputs::{self, apart, caches};
use super::prepare::{Lesson, compared, initialized, resume_point, sources, student, with_calibrated_sub_norms};
use super::recipe_args::RecipeArgs;
use crate::data::batches::Rows;
use crate::data::{self, Split};
use crate::export::{self, Format, save_hf};
use crate::grid::run::SPENT;
use crate::models::to_device_for_inference;
use crate::monitor::progress::{Log, tell};
use crate::ptq;
use crate::recipe::{Quant, Recipe, dry_run};
use crate::training::checkpoint::{self, CheckpointState, FOLDER};
use crate::training::interrupt;
use crate::training::run::{Outcome as LoopOutcome, Run, restored};
use crate::training::teacher::Teacher;

/// Train a student by a recipe
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Go on from the newest checkpoint of the run's folder, if it has one
    #[arg(long)]
    resume: bool,
    /// Start anew in a folder that holds an earlier run, and delete what that run wrote; refused if the folder holds anything
    /// else
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Print the resolved recipe, sizes and a memory estimate, and stop
    #[arg(long)]
    dry_run: bool,
    /// How to report progress on standard error
    #[arg(long, value_enum, default_value = "auto")]
    log: Log,
    /// Print the result as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// `distill`
///
/// # Errors
/// Whatever keeps the run from its end, in one line.
pub fn distill(args: Args) -> Result<ExitCode> {
    let recipe = args.recipe.read()?;
    ensure!(recipe.teacher.is_some(), "{}: distill needs a `[teacher]`", args.recipe.at());
    ensure!(!recipe.bits.is_empty(), "{}: distill needs a bit plan in `[bits]`", args.recipe.at());
    train(&args, &recipe)
}

/// `pretrain`
///
/// # Errors
/// Whatever keeps the run from its end, in one line.
pub fn pretrain(args: Args) -> Result<ExitCode> {
    let recipe = args.recipe.read()?;
    ensure!(recipe.teacher.is_none(), "{}: pretrain takes no `[teacher]`; use distill", args.recipe.at());
    ensure!(recipe.bits.is_empty(), "{}: pretrain takes no `[bits]`; use distill", args.recipe.at());
    ensure!(recipe.activations.is_empty(), "{}: pretrain takes no `[activations]`; use distill", args.recipe.at());
    ensure!(recipe.distill.is_none(), "{}: pretrain takes no `[distill]`; use distill", args.recipe.at());
    ensure!(
        recipe.export.is_empty(),
        "{}: pretrain takes no `export`; its model is a Hugging Face directory",
        args.recipe.at()
    );
    ensure!(recipe.quant == Quant::default(), "{}: pretrain takes no `[quant]`; use distill", args.recipe.at());
    train(&args, &recipe)
}

const BASELINE: &str = "baseline.json";

/// Figures of the models before training; kept so that a resumed run need not take them again.
#[derive(Serialize, Deserialize)]
struct Baseline {
    teacher: Perplexity,
    round_to_nearest: Perplexity,
}

fn train(args: &Args, recipe: &Recipe) -> Result<ExitCode> {
    let at_recipe = || args.recipe.at();
    if args.dry_run {
        dry_run::print(recipe, args.json).with_context(at_recipe)?;
        return Ok(ExitCode::SUCCESS);
    }
    let device = bitllama_nn::device(&recipe.device).with_context(at_recipe)?;
    apart(&recipe.output, recipe, (!args.resume).then_some(&*args.recipe.config))?;
    let _claim = claim_growing(&recipe.output, Kind::Run)?;
    let start = earlier_run(args, recipe)?;
    let sources = sources(recipe, start.as_ref().map(|(_, folder)| folder.as_path())).with_context(at_recipe)?;
    sources.notes().iter().for_each(|note| say(args, note));
    recipe.bit_plan()?.remarks(&sources.config).iter().for_each(|remark| say(args, remark));
    let teacher_config = sources.teacher.as_ref().map(|teacher| &teacher.config);
    dry_run::ensure_memory(recipe, &sources.plan, &sources.config, teacher_config).with_context(at_recipe)?;
    let student = student(recipe, &sources, start.as_ref(), &device).with_context(at_recipe)?;
    let (teacher, tokenizer, plan) = (&sources.teacher, &sources.tokenizer, &sources.plan);
    let config = sources.config.clone();
    let Split { train, valid } = data::load(recipe, tokenizer, &config)?;
    ensure!(
        valid.token_count() >= recipe.eval_ctx(),
        "{}: {} held-out tokens are fewer than one chunk of {}; hold out more with `data.valid_fraction` or lower `eval.ctx`",
        args.recipe.at(),
        valid.token_count(),
        recipe.eval_ctx()
    );
    say(
        args,
        &format!(
            "{} parameters; {} tokens in {} documents to train on, {} tokens in {} documents held out",
            parameter_count(&config),
            train.token_count(),
            train.document_count(),
            valid.token_count(),
            valid.document_count(),
        ),
    );
    let hashes = json!({ "train": train.hashes, "valid": valid.hashes });
    let provenance = provenance(recipe, teacher.as_ref(), hashes)?;
    let cache = Lesson::cache(recipe, &sources, &provenance).with_context(at_recipe)?;
    let fingerprint = fingerprint(recipe, &provenance, &config, cache.as_ref())?;
    if let Some((state, folder)) = &start {
        state.ensure_same(folder, &fingerprint)?;
        say(args, &format!("going on after step {} from {}", state.step, folder.display()));
    }
    let lesson = Lesson::of(recipe, &sources, cache, &device).with_context(at_recipe)?;
    let mut rows = Rows::new(train, recipe.data.sequence_length, recipe.seed)?;
    let tracked = device.clone().autodiff();
    let (compared, projections) = compared(recipe, &sources, &tracked).with_context(at_recipe)?;
    let run = Run {
        recipe,
        teacher: &lesson.teacher(),
        compared: &compared,
        projections,
        device: &tracked,
        plan,
        tokenizer: sources.tokenizer_files(),
        valid: &valid.all_tokens(),
        eval_bos: own_bos(tokenizer)?,
        log: args.log,
        fingerprint,
    };
    match start {
        Some(_) => outputs::adopt(&recipe.output)?,
        None => Growing::new(&recipe.output, Kind::Run).clear(&untouched(args, recipe))?,
    }
    // What is written at the end must have its place.
    let (model, kind) = if teacher.is_some() { ("artifact", Kind::Artifact) } else { ("model", Kind::Model) };
    drop(claim_folder(&recipe.output.join(model), kind)?);
    write_json(recipe, "run.json", &provenance)?;
    Growing::new(&recipe.output, Kind::Run).write("recipe.toml", toml::to_string(recipe)?.as_bytes())?;
    let student = match sources.calibrate_sub_norms {
        true => with_calibrated_sub_norms(recipe, &student, plan, &mut rows, &device)?,
        false => student,
    };
    let baseline = match teacher {
        Some(teacher) => Some(baseline(args, &run, teacher, &student, start.is_some(), &device)?),
        None => None,
    };
    let student = match start {
        None if recipe.quant.init != ptq::Method::Rtn => {
            let student = initialized(recipe, &student, plan, &mut rows, &provenance, &device)?;
            let perplexity = run.evaluate(&student)?.perplexity;
            say(args, &format!("after quant.init = \"{}\": perplexity {perplexity:.3}", recipe.quant.init.name()));
            student
        }
        _ => student,
    };

    interrupt::listen()?;
    match run.train(student, rows, start)? {
        LoopOutcome::Interrupted(folder) => {
            say(args, &format!("stopped; `--resume` goes on from {}", folder.display()));
            Ok(ExitCode::from(interrupt::exit_code()))
        }
        LoopOutcome::Finished { best, perplexity } => {
            let student = restored(&best, &config, plan, &tracked)?;
            match (baseline, teacher) {
                (Some(baseline), Some(teacher)) => {
                    finish_distill(args, &run, teacher, &student, baseline, perplexity, provenance)?;
                }
                _ => finish_pretrain(args, &run, &student, perplexity)?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Makes sure that a run neither mixes with nor destroys an earlier one, or what is not this program's; the checkpoint to
/// resume from.
fn earlier_run(args: &Args, recipe: &Recipe) -> Result<Option<(CheckpointState, PathBuf)>> {
    if args.resume {
        let found = resume_point(recipe)?;
        if found.is_none() {
            new_run(args, recipe)?;
            say(args, &format!("{}: no checkpoint yet, starting from the first step", recipe.output.display()));
        }
        return Ok(found);
    }
    match checkpoint::newest_step(&recipe.output.join(FOLDER))? {
        Some(step) if !args.overwrite => bail!(
            "{}: holds a run of {} steps; pass `--resume` to go on with it, `--overwrite` to start anew, or set \
             another `output`",
            recipe.output.display(),
            step
        ),
        _ => new_run(args, recipe).map(|()| None),
    }
}

/// Makes sure that a new run may have its folder to itself.
fn new_run(args: &Args, recipe: &Recipe) -> Result<()> {
    match Growing::new(&recipe.output, Kind::Run).foreign(&untouched(args, recipe))? {
        Some(foreign) => Err(foreign.refusal("no new run starts in its folder").into()),
        None => Ok(()),
    }
}

/// Paths that a new run leaves as they are, should they lie in its folder.
fn untouched(args: &Args, recipe: &Recipe) -> Vec<PathBuf> {
    let mut paths = caches(recipe);
    // A grid counts what a run took over all its starts.
    paths.extend(args.resume.then(|| recipe.output.join(SPENT)));
    paths
}

fn baseline(
    args: &Args,
    run: &Run,
    teacher: &Model,
    student: &Llama,
    resumed: bool,
    device: &Device,
) -> Result<Baseline> {
    if resumed
        && let Ok(bytes) = fs::read(run.recipe.output.join(BASELINE))
        && let Ok(kept) = serde_json::from_slice(&bytes)
    {
        return Ok(kept);
    }
    ensure!(!resumed, "{}: {BASELINE} is gone, start anew with `--overwrite`", run.recipe.output.display());
    let of_teacher = match run.teacher {
        Teacher::Model(llama) => run.evaluate(llama)?,
        Teacher::Cache(cache) if cache.index.evaluation.protocol == run.fingerprint["eval"] => {
            cache.index.evaluation.perplexity
        }
        _ => run.evaluate(&to_device_for_inference(teacher, device)?)?,
    };
    let baseline = Baseline { teacher: of_teacher, round_to_nearest: run.evaluate(student)? };
    say(
        args,
        &format!(
            "before training: teacher perplexity {:.3}, round to nearest {:.3}",
            baseline.teacher.perplexity, baseline.round_to_nearest.perplexity
        ),
    );
    write_json(run.recipe, BASELINE, &serde_json::to_value(&baseline)?)?;
    Ok(baseline)
}

fn finish_distill(
    args: &Args,
    run: &Run,
    teacher: &Model,
    student: &Llama,
    baseline: Baseline,
    perplexity: Perplexity,
    provenance: Value,
) -> Result<()> {
    let artifact = run.recipe.output.join("artifact");
    Growing::new(&run.recipe.output, Kind::Run).subfolder("artifact")?;
    export::student(Format::Artifact, &artifact, student, run.plan, run.tokenizer, provenance.clone())?;
    for format in &run.recipe.export {
        let written = export::beside(*format, &run.recipe.output, student, run.plan, run.tokenizer, provenance.clone());
        let (path, summary) = written.with_context(|| format!("export to {format}"))?;
        for tensor in summary.tensors.iter().filter(|tensor| tensor.error > 0.0) {
            let why = tensor.remark.as_deref().unwrap_or("rounded");
            say(args, &format!("{}: {} is off by {:.1e}: {why}", path.display(), tensor.tensor, tensor.error));
        }
        say(args, &format!("{}: {} bytes of weights", path.display(), summary.bytes));
    }
    let size = StoredSize::of(run.plan);
    let low_bit = |perplexity| Row { perplexity, bits_per_weight: size.bits_per_weight(), bytes: size.bytes as u64 };
    let bytes = teacher.weights.stored_bytes();
    let bits_per_weight = bytes as f64 * 8.0 / parameter_count(&teacher.config) as f64;
    let outcome = Outcome::new(
        Row { perplexity: baseline.teacher, bits_per_weight, bytes },
        low_bit(baseline.round_to_nearest),
        low_bit(perplexity),
        artifact.display().to_string(),
    );
    write_json(run.recipe, "result.json", &serde_json::to_value(&outcome)?)?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        outcome.print();
    }
    Ok(())
}

fn finish_pretrain(args: &Args, run: &Run, student: &Llama, perplexity: Perplexity) -> Result<()> {
    let folder = run.recipe.output.join("model");
    Growing::new(&run.recipe.output, Kind::Run).subfolder("model")?;
    save_hf(&folder, student, run.tokenizer, hf::Dtype::F16)?;
    if args.json {
        let mut result = serde_json::to_value(perplexity)?;
        result["model"] = json!(folder);
        println!("{result}");
    } else {
        println!(
            "perplexity {:.3} ± {:.3} on {} held-out tokens; Hugging Face directory (f16): {}",
            perplexity.perplexity,
            perplexity.error,
            perplexity.tokens_scored,
            folder.display()
        );
    }
    Ok(())
}

fn write_json(recipe: &Recipe, name: &str, value: &Value) -> Result<()> {
    Ok(Growing::new(&recipe.output, Kind::Run).write(name, format!("{value:#}\n").as_bytes())?)
}

fn say(args: &Args, text: &str) {
    if args.log != Log::Json {
        tell(text);
    }
}
