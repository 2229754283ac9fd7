//! `cache-teacher`: the teacher's likeliest tokens of a recipe's training rows, once and on disk.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bitllama_core::ModelConfig;
use bitllama_formats::identity::{Identity, Likeness};
use bitllama_formats::notes;
use bitllama_formats::output::{Growing, Kind, claim_growing};
use bitllama_nn::{Llama, Mask, ops};
use bitllama_runtime::evaluate::{Options, Perplexity, perplexity};
use bitllama_runtime::text::own_bos;
use burn::tensor::Device;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::identity::{protocol, rows};
use super::outputs::{apart, caches};
use super::prepare::sources;
use super::recipe_args::RecipeArgs;
use crate::data::batches::Rows;
use crate::data::{self, Split};
use crate::evaluate::{Scored, token_tensor};
use crate::models::to_device_for_inference;
use crate::monitor::work::Work;
use crate::recipe::Recipe;
use crate::teacher_cache::{
    Dtype, Evaluation, FORMAT_VERSION, INDEX, Index, Likeliest, MAX_ROWS, TeacherCache, shard_path, tokenizer_sha256,
};
use crate::training::divergence::TeacherSide;

/// Store the teacher's likeliest tokens of a recipe's training rows, so that training needs no teacher in memory
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Tokens to keep of each position [default: the recipe's distill.top_k, or 64]
    #[arg(long)]
    top_k: Option<usize>,
    /// How the logarithms of their probabilities are stored
    #[arg(long, value_enum, default_value = "f16")]
    dtype: Dtype,
    /// Replace a cache that was made with other settings
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

const TOP_K: usize = 64;
/// Positions in a part of the cache, about: what is lost when the command is stopped.
const SHARD_POSITIONS: usize = 16384;

/// Runs the command. It goes on where an earlier one was stopped.
///
/// # Errors
/// A recipe without a teacher or `teacher.cache`, models and text as for `distill`, a folder that holds something else.
pub fn run(args: Args) -> Result<()> {
    let recipe = args.recipe.read()?;
    let at_recipe = || args.recipe.at();
    let Some(folder) = recipe.teacher.as_ref().and_then(|teacher| teacher.cache.clone()) else {
        bail!("{}: name the folder to write: `teacher.cache`", args.recipe.at())
    };
    let device = bitllama_nn::device(&recipe.device).with_context(at_recipe)?;
    apart(&folder, &recipe, Some(&args.recipe.config))?;
    let _claim = claim_growing(&folder, Kind::TeacherCache)?;
    let sources = sources(&recipe, None).with_context(at_recipe)?;
    let Some(teacher) = &sources.teacher else { bail!("{}: there is no `[teacher]`", args.recipe.at()) };
    let Split { train, valid } = data::load(&recipe, &sources.tokenizer, &sources.config)?;
    let hashes = json!({ "train": train.hashes, "valid": valid.hashes });
    let mut rows = Rows::new(train, recipe.data.sequence_length, recipe.seed)?;
    let llama = to_device_for_inference(teacher, &device)?;

    let top_k = args.top_k.or(recipe.distill().top_k).unwrap_or(TOP_K);
    ensure!(
        top_k > 0 && top_k < sources.config.vocab_size,
        "--top-k {top_k}: the vocabulary has {} tokens",
        sources.config.vocab_size
    );
    let bos = own_bos(&sources.tokenizer)?;
    let options = Options { ctx: recipe.eval_ctx(), chunks: recipe.eval.chunks, bos };
    let perplexity = perplexity(&mut Scored::new(&llama, &device), &valid.all_tokens(), options, |_| {})
        .context("evaluation of the held-out documents")?;
    let sequence_length = recipe.data.sequence_length;
    let needed = rows_needed(&recipe);
    ensure!(
        needed < MAX_ROWS,
        "{}: train.steps, train.batch_size and train.grad_accumulation ask for {needed} rows, a cache has fewer than {MAX_ROWS}",
        args.recipe.at()
    );
    let index = Index {
        format_version: FORMAT_VERSION,
        top_k,
        dtype: args.dtype,
        temperature: recipe.distill().temperature,
        vocab_size: sources.config.vocab_size,
        sequence_length,
        rows: needed,
        rows_per_shard: (SHARD_POSITIONS / sequence_length).max(1),
        tokenizer_sha256: tokenizer_sha256(&sources.tokenizer)?,
        data: self::rows(&recipe, &hashes),
        teacher: Identity::of(teacher)?,
        evaluation: Evaluation { protocol: protocol(&recipe, &hashes), perplexity },
    };
    let index = begun(&folder, index, args.overwrite, &kept(&recipe, &folder))?;
    index.write(&folder)?;

    let start = Instant::now();
    let missing = index.missing(&folder)?;
    let length: usize = missing.iter().map(|shard| index.rows_of(*shard).len()).sum();
    let work = Work::new(length as u64, 0, "rows");
    for shard in &missing {
        let of_shard = index.rows_of(*shard);
        let mut all = Likeliest { tokens: Vec::new(), log_p: Vec::new() };
        for first in of_shard.clone().step_by(recipe.train.batch_size) {
            let count = recipe.train.batch_size.min(of_shard.end - first);
            let batch = rows.batch(first as u64, count);
            let mask = Mask::within_documents(&batch.documents, sequence_length, &device);
            let side = likeliest(&llama, &batch.inputs, count, &mask, &index, &device)?;
            all.tokens.extend(side.tokens);
            all.log_p.extend(side.log_p);
            work.advance(count as u64);
        }
        index.write_shard(&folder, *shard, &all)?;
    }
    work.finish();
    let positions = length * sequence_length;
    report(&args, &folder, &index, positions as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// The index to go on with in `folder`: the wished one, or that of the folder if it differs in having more rows only. A cache
/// of version 0.1.0, which knew its teacher by path and size, is gone on with as well: that the perplexity is the same to the
/// last bit tells that the teacher is. Paths in `keep` are not the cache's.
fn begun(folder: &Path, wished: Index, overwrite: bool, keep: &[PathBuf]) -> Result<Index> {
    let files = Growing::new(folder, Kind::TeacherCache);
    let Some(found) = Index::read(folder)? else {
        return match files.foreign(keep)? {
            Some(foreign) => Err(foreign.refusal("no cache is begun in its folder").into()),
            None => Ok(wished),
        };
    };
    let rows = found.rows.max(wished.rows);
    let same_teacher = found.teacher.compare(&wished.teacher) != Likeness::Different;
    let wanted = Index { rows, ..wished.clone() };
    let alike = Index { rows, format_version: wished.format_version, teacher: wished.teacher.clone(), ..found.clone() };
    if same_teacher && alike == wanted {
        if !files.is_recorded() {
            // Of version 0.1.0, which kept no record.
            let shards = (0..found.shards()).filter(|shard| found.has_shard(folder, *shard));
            let shards: Vec<PathBuf> = shards.map(|shard| shard_path(folder, shard)).collect();
            files.adopt(&[&[INDEX.into()], &shards[..]].concat(), &[])?;
        }
        return Ok(wanted);
    }
    let at = folder.display();
    let other = if same_teacher { "with other settings" } else { "of another teacher" };
    ensure!(overwrite, "{at}: holds a cache {other}; `--overwrite` replaces it");
    files.clear(keep)?;
    Ok(wished)
}

/// Other caches of the recipe, should they lie in this one's folder.
fn kept(recipe: &Recipe, folder: &Path) -> Vec<PathBuf> {
    caches(recipe).into_iter().filter(|path| path != folder).collect()
}

fn likeliest(
    llama: &Llama,
    tokens: &[u32],
    rows: usize,
    mask: &Mask,
    index: &Index,
    device: &Device,
) -> Result<Likeliest> {
    let tokens_in = token_tensor(tokens, rows, llama.config.vocab_size, device)?;
    let (hidden, head) = llama.forward_observed(tokens_in, mask, &mut |_, _, _| ());
    ensure!(index.top_k < head.vocab(), "the vocabulary has no more than {} tokens", index.top_k);
    let (tokens, log_p) = if ops::fused(device) {
        let width = hidden.dims()[2];
        ops::loss::likeliest_of(hidden.reshape([tokens.len(), width]), &head, index.temperature, index.top_k)
    } else {
        let logits = head.logits(hidden).reshape([tokens.len(), index.vocab_size]);
        let TeacherSide { tokens, log_p } = TeacherSide::of(logits, index.temperature, Some(index.top_k));
        let tokens = tokens.context("all tokens are asked for")?;
        let tokens: Vec<i32> = tokens.into_data().convert::<i32>().try_into_vec()?;
        (tokens.into_iter().map(|token| token as u32).collect(), log_p.into_data_as::<f32>().try_into_vec()?)
    };
    ensure!(log_p.iter().all(|x| x.is_finite()), "the teacher's logits are not finite");
    Ok(Likeliest { tokens, log_p })
}

fn report(args: &Args, folder: &Path, index: &Index, speed: f64) {
    let (tokens, per_token) = (index.rows * index.sequence_length, index.bytes_per_token());
    if args.json {
        let report = json!({
            "cache": folder, "tokens": tokens, "top_k": index.top_k, "dtype": index.dtype,
            "bytes_per_token": per_token, "bytes": tokens * per_token,
            "perplexity": index.evaluation.perplexity,
        });
        println!("{report}");
        return;
    }
    let Perplexity { perplexity, error, .. } = index.evaluation.perplexity;
    println!(
        "{}: {tokens} tokens, the {} likeliest of each in {:?}: {per_token} bytes a token, {:.1} MB; {speed:.0} tok/s; teacher perplexity {perplexity:.3} ± {error:.3}",
        folder.display(),
        index.top_k,
        index.dtype,
        (tokens * per_token) as f64 / 1e6,
    );
}

/// Rows that the training of a recipe takes.
fn rows_needed(recipe: &Recipe) -> usize {
    recipe.train.steps * recipe.train.batch_size * recipe.train.grad_accumulation
}

/// The cache of the recipe, if it has one, its checksums verified. One of version 0.1.0, which knew its teacher by path and
/// size, is used with a note on standard error.
///
/// # Errors
/// If it is damaged or not whole, or not of this run's teacher, tokenizer and rows.
pub fn cache_of(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    provenance: &Value,
) -> Result<Option<TeacherCache>> {
    let Some(folder) = recipe.teacher.as_ref().and_then(|teacher| teacher.cache.as_ref()) else { return Ok(None) };
    let cache = TeacherCache::open(folder, recipe.distill().top_k)?;
    let at = folder.display();
    ensure!(
        cache.index.tokenizer_sha256 == tokenizer_sha256(tokenizer)?,
        "{at}: made by a teacher with another tokenizer than the student's: their tokens do not mean the same"
    );
    let hashes = &provenance["data_sha256"];
    let teacher: Identity = serde_json::from_value(provenance["teacher"].clone())?;
    match cache.index.teacher.compare(&teacher) {
        Likeness::Same => {}
        Likeness::Unproven => notes::tell(
            folder,
            "made by version 0.1.0, which knew its teacher by path and size only; `cache-teacher` with this recipe finds out \
             if that has changed",
        ),
        Likeness::Different => bail!(
            "{at}: made with another teacher, not with what {} holds now; `cache-teacher --overwrite` with this recipe \
             makes a new one",
            teacher.path
        ),
    }
    for (what, of_cache, of_run) in [
        ("vocabulary", json!(cache.index.vocab_size), json!(config.vocab_size)),
        ("data.sequence_length", json!(cache.index.sequence_length), json!(recipe.data.sequence_length)),
        (
            "data (text, seed, data.valid_fraction or data.sequence_length)",
            cache.index.data.clone(),
            rows(recipe, hashes),
        ),
        ("distill.temperature", json!(cache.index.temperature), json!(recipe.distill().temperature)),
    ] {
        ensure!(of_cache == of_run, "{at}: made with another {what}; `cache-teacher` with this recipe makes a new one");
    }
    let needed = rows_needed(recipe);
    ensure!(
        needed <= cache.index.rows,
        "{at}: has {} rows and the run takes {needed}; `cache-teacher` with this recipe adds them",
        cache.index.rows
    );
    cache.verify(needed)?;
    Ok(Some(cache))
}
