//! `import`: an archive of the older tools to an artifact.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use bitllama_core::ModelConfig;
use bitllama_core::weights::{EMBEDDING, FINAL_NORM, HEAD, WeightSpec, specs};
use bitllama_formats::artifact::{self, Artifact};
use bitllama_formats::model::{Model, beyond};
use bitllama_formats::npz::{self, map_file};
use bitllama_formats::{Companions, Error, StoredWeight, TokenizerFiles, hf, output};
use serde_json::json;

use super::export::print;
use crate::export::{self, Format, Options, Source};
use crate::models;
use crate::monitor::progress::tell;

/// Make an artifact of an archive that the older tools wrote
#[derive(clap::Args)]
pub struct Args {
    /// An NPZ file, a manifest of any name with its files beside it, or a folder with a manifest.json
    #[arg(long, value_name = "ARCHIVE")]
    from: PathBuf,
    /// Folder to write; what an earlier command wrote there is replaced
    #[arg(long)]
    output: PathBuf,
    /// The architecture, a config.json as Hugging Face directories have it, in place of what the archive says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The tokenizer, a tokenizer.json; chat template and settings beside it come along
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The weight of the final norm, a NumPy file (.npy)
    #[arg(long, value_name = "FILE")]
    final_norm: Option<PathBuf>,
    /// The model that the archive was made from, which gives whatever the archive lacks: architecture, tokenizer, weights
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Take what the older tools meant where the archive says nothing: Llama 2's constants, and ones for the final norm
    #[arg(long)]
    assume: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// An archive that is damaged or no Llama's; something that it lacks, with the flag that gives it; an output that cannot be
/// written, or holds what this program did not write.
pub fn run(args: Args) -> Result<()> {
    let files = [("--config", &args.config), ("--tokenizer", &args.tokenizer), ("--final-norm", &args.final_norm)];
    let given = files.iter().filter_map(|(flag, path)| path.as_deref().map(|path| (*flag, path)));
    let base = args.base.iter().map(|base| ("--base", Path::new(base)));
    output::apart(&args.output, given.chain(base).chain([("--from", args.from.as_path())]))?;
    let _claim = export::claim(Format::Artifact, &args.output)?;
    ensure!(args.from.exists(), "{}: no such archive", args.from.display());
    let base = args.base.as_ref().map(|base| models::open(base, false)).transpose()?;
    let archive = Artifact::open_incomplete(&args.from, config(&args, base.as_ref())?)?;
    let archive = with_tokenizer(archive, &args, base.as_ref())?;
    archive.tell_notes();
    let lacking = Lacking::of(&args, &archive, base.as_ref())?;
    let config = tied(&archive)?;
    let weights = specs(&config).into_iter().map(|spec| {
        let weight = lacking.weight(&archive, &spec)?;
        Ok((spec, weight))
    });
    let tokenizer = match (&archive.tokenizer, &base) {
        (Some(tokenizer), _) => TokenizerFiles { tokenizer, companions: Some(&archive.companions) },
        (None, Some(base)) => base.tokenizer_files(),
        (None, None) => {
            bail!("{}: the archive has no tokenizer; give --tokenizer FILE or --base MODEL", args.from.display())
        }
    };
    let provenance = json!({
        "command": "import",
        "archive": args.from.file_name().map(|name| name.to_string_lossy()),
        "from_base": lacking.names,
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    let source = Source { config: &config, activations: &archive.activations, tokenizer, provenance };
    let summary = export::write(Format::Artifact, &args.output, source, weights, Options::default())?;
    print(&args.output, &summary, None, args.json);
    Ok(())
}

/// The architecture: that of a flag, or else the archive's own if it says all of it.
fn config(args: &Args, base: Option<&Model>) -> Result<ModelConfig> {
    const GIVE: &str = "give --config FILE or --base MODEL";
    let mut config = match (&args.config, base) {
        (Some(path), _) => hf::read_config(path)?,
        (None, Some(base)) => base.config.clone(),
        (None, None) => {
            let (config, assumed) = artifact::read_config(&args.from).map_err(|e| anyhow::anyhow!("{e}; {GIVE}"))?;
            let said = assumed.join("; ");
            ensure!(
                assumed.is_empty() || args.assume,
                "{}: {said} with --assume only; else {GIVE}",
                args.from.display()
            );
            assumed.iter().for_each(|note| tell(&format!("{}: {note}", args.from.display())));
            config
        }
    };
    // The older tools write the head of a tied model too; [`tied`] holds it against the embedding.
    if config.tie_word_embeddings {
        config.tie_word_embeddings = !artifact::has_weight(&args.from, HEAD)?;
    }
    Ok(config)
}

/// The archive with the tokenizer of a flag; without one, with its own, if it has one.
fn with_tokenizer(mut archive: Artifact, args: &Args, base: Option<&Model>) -> Result<Artifact> {
    if let Some(path) = &args.tokenizer {
        let folder = path.parent().unwrap_or(Path::new(""));
        archive.give_tokenizer(path, Companions::read(folder)?)?;
    } else if let (None, Some(base)) = (&archive.tokenizer, base) {
        let too_large = beyond(&base.tokenizer, archive.config.vocab_size);
        ensure!(too_large.is_none(), "{}: {}", base.path.display(), too_large.unwrap_or_default());
        let (config, ids) = (&mut archive.config, &base.config);
        (config.bos_token_id, config.eos_token_ids) = (ids.bos_token_id, ids.eos_token_ids.clone());
        config.end_token_ids.clone_from(&ids.end_token_ids);
    }
    Ok(archive)
}

/// The config with the head tied to the embedding where the archive holds the same weights for both.
fn tied(archive: &Artifact) -> Result<ModelConfig> {
    let mut config = archive.config.clone();
    let all = specs(&config);
    let there = |name: &str| all.iter().find(|spec| spec.name == name && archive.absent().all(|absent| absent != name));
    if let (Some(head), Some(embedding)) = (there(HEAD), there(EMBEDDING)) {
        config.tie_word_embeddings = archive.weight(head)? == archive.weight(embedding)?;
    }
    Ok(config)
}

/// Sources of weights that the archive lacks.
struct Lacking<'a> {
    names: Vec<String>,
    final_norm: Option<Vec<f32>>,
    base: Option<&'a Model>,
}

impl<'a> Lacking<'a> {
    fn of(args: &Args, archive: &Artifact, base: Option<&'a Model>) -> Result<Self> {
        let from = args.from.display();
        let mut names: Vec<String> = archive.absent().map(String::from).collect();
        ensure!(names.len() < archive.weights().len(), "{from}: no weight of this config is in it");
        let norm = names.iter().position(|name| name == FINAL_NORM);
        if let (Some(path), None) = (&args.final_norm, norm) {
            bail!("--final-norm {}: {from} has a final norm", path.display());
        }
        let mut final_norm = None;
        if let Some(index) = norm {
            final_norm = match (&args.final_norm, base) {
                (Some(path), _) => Some(read_norm(path, archive.config.hidden_size)?),
                (None, Some(_)) => None,
                (None, None) if args.assume => {
                    tell(&format!("{from}: the final norm is not there; all ones are used"));
                    Some(vec![1.0; archive.config.hidden_size])
                }
                (None, None) => bail!(
                    "{from}: the final norm is not there; give --final-norm FILE or --base MODEL, or --assume to take all ones"
                ),
            };
            if final_norm.is_some() {
                names.remove(index);
            }
        }
        if let (Some(first), None) = (names.first(), base) {
            let others = match names.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            bail!(
                "{from}: weight {first}{others} not there; give --base MODEL, the model that the archive was made from"
            );
        }
        if let (Some(first), Some(base)) = (names.first(), base) {
            let count = names.len();
            tell(&format!("{from}: {count} weights that are not there come from {}: {first}, ..", base.path.display()));
        }
        Ok(Self { names, final_norm, base })
    }

    /// A weight, of the archive where it has it.
    fn weight(&self, archive: &Artifact, spec: &WeightSpec) -> Result<StoredWeight, Error> {
        match (&self.final_norm, self.base) {
            (Some(values), _) if spec.name == FINAL_NORM => Ok(StoredWeight::Full(values.clone())),
            (_, Some(base)) if self.names.contains(&spec.name) => base.weights.stored(spec),
            _ => archive.weight(spec),
        }
    }
}

/// A NumPy file of so many floating-point numbers.
fn read_norm(path: &Path, width: usize) -> Result<Vec<f32>> {
    let array = npz::parse(&map_file(path)?).map_err(|reason| Error::invalid(path, reason))?;
    let values = array.to_f32().filter(|_| array.shape == [width]);
    let found =
        || format!("{:?} of {} found, [{width}] floating-point numbers expected", array.shape, array.dtype.descr());
    Ok(values.ok_or_else(|| Error::invalid(path, found()))?)
}
