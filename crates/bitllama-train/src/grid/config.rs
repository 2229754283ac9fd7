//! The file that describes a grid.
//!
//! ```toml
//! recipe = "recipes/quickstart.toml"     # what every run starts from
//! output = "runs/grid-quickstart"        # each run in a folder of its own, SCHEME/METHOD/seed-N
//! seeds = [0, 1, 2]
//! others = "others.csv"                  # models of other tools, see `grid::others`; none if absent
//! set = { "train.steps" = 200 }          # keys of the recipe, as --set takes them, for all runs
//!
//! [schemes.int4]
//! set = { "bits.layers.*" = { scheme = "int4", method = "lsq" } }
//! with.rtn = { "bits.layers.*" = "int4" }   # beside the method `rtn` only
//!
//! [schemes.f32]
//! set = { "bits.*" = "f32" }
//! methods = ["ce"]                       # all of them if absent
//! seeds.ce = [0]                         # beside this scheme, those of the method if absent
//!
//! [methods.rtn]
//! set = { "train.steps" = 0 }            # rounded, not trained
//! seeds = [0]                            # those of the grid if absent
//!
//! [methods.ce]
//! set = { "distill.alpha" = 1.0 }
//!
//! [eval]                                 # by llama.cpp's protocol
//! texts = { emma = "data/emma.txt" }
//! text_field = "text"                    # of JSON objects in them
//! ctx = 128                              # 512 if absent
//! chunks = 20                            # all if absent
//! ```
//!
//! Of keys that several of them set, the last one holds: the grid, the scheme, the method, the scheme's `with`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitllama_core::excerpt;
use bitllama_formats::identity::Identity;
use bitllama_runtime::text::Reading;
use indexmap::IndexMap;
use serde::Deserialize;
use toml::Value;

use crate::models;
use crate::recipe::{Recipe, load};

/// Overrides of a recipe, by key.
type Sets = IndexMap<String, Value>;

/// A grid, as its file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// What reports are headed with; the file's name if absent.
    pub title: Option<String>,
    /// The recipe that every run starts from.
    pub recipe: PathBuf,
    /// Folder of all runs.
    pub output: PathBuf,
    /// Of data, order and start weights.
    #[serde(default = "defaults::seeds")]
    pub seeds: Vec<u64>,
    /// Models of other tools to compare with, a CSV.
    pub others: Option<PathBuf>,
    /// Overrides for all runs.
    #[serde(default)]
    set: Sets,
    /// What the student is rounded to.
    schemes: IndexMap<String, Scheme>,
    /// How it comes to its weights.
    methods: IndexMap<String, Method>,
    /// What artifacts are evaluated on.
    pub eval: Eval,
    /// How their speed is measured.
    #[serde(default)]
    pub bench: Bench,
    /// Whether runs that learn from the same teacher on the same rows read it from a cache that is made first.
    #[serde(default = "defaults::yes")]
    pub cache_teacher: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scheme {
    #[serde(default)]
    set: Sets,
    methods: Option<Vec<String>>,
    #[serde(default)]
    with: IndexMap<String, Sets>,
    #[serde(default)]
    seeds: IndexMap<String, Vec<u64>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    #[serde(default)]
    set: Sets,
    seeds: Option<Vec<u64>>,
}

/// `[eval]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Files or folders of text by name; the first is the main one in reports.
    pub texts: IndexMap<String, PathBuf>,
    /// Field of a JSON object that has the text; `text` if absent.
    text_field: Option<String>,
    /// Control tokens that a text spells, like `</s>`, are read as such and not as text.
    #[serde(default)]
    parse_special: bool,
    /// Tokens a chunk.
    #[serde(default = "defaults::ctx")]
    pub ctx: usize,
    /// The first so many chunks only.
    pub chunks: Option<usize>,
}

impl Eval {
    /// How the texts are read.
    pub fn reading(&self) -> Reading {
        Reading { text_field: self.text_field.clone(), parse_special: self.parse_special }
    }
}

/// `[bench]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bench {
    /// Tokens of the prompt test.
    pub prompt: usize,
    /// Tokens of the generation test.
    pub generate: usize,
    /// Times that each is run.
    pub repetitions: usize,
}

impl Default for Bench {
    fn default() -> Self {
        Self { prompt: 128, generate: 64, repetitions: 3 }
    }
}

mod defaults {
    pub fn seeds() -> Vec<u64> {
        vec![0]
    }
    pub fn yes() -> bool {
        true
    }
    pub fn ctx() -> usize {
        512
    }
}

/// One run of a grid.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Of the grid's schemes.
    pub scheme: String,
    /// Of its methods.
    pub method: String,
    /// Of its seeds.
    pub seed: u64,
    /// What is changed of the recipe, as `--set` takes it.
    pub sets: Vec<String>,
    /// The recipe with that.
    pub recipe: Recipe,
    /// Its teacher and the model that its student starts from, as [`identify`] finds them; `None` where a model is not at hand.
    pub models: [Option<Identity>; 2],
}

/// The names of the models of a recipe: the teacher's, and that of the student's start.
pub fn model_names(recipe: &Recipe) -> [Option<&str>; 2] {
    [recipe.teacher.as_ref().map(|teacher| teacher.model.as_str()), recipe.student.model.as_deref()]
}

/// Finds the identities of all models of a grid, each once. Models of the hub stay as they are in its cache, and go by their names.
///
/// # Errors
/// A model that is there and cannot be read.
pub fn identify(all: &mut [Planned]) -> Result<()> {
    let mut known: IndexMap<(String, bool), Identity> = IndexMap::new();
    for planned in all {
        let of_teacher = planned.recipe.teacher.as_ref().is_some_and(|teacher| teacher.latent_weights);
        let latent = [of_teacher, planned.recipe.student.latent_weights];
        for ((name, found), latent) in model_names(&planned.recipe).into_iter().zip(&mut planned.models).zip(latent) {
            let Some(name) = name.filter(|name| Path::new(name).exists()) else { continue };
            let key = (name.to_string(), latent);
            let identity = match known.get(&key) {
                Some(identity) => identity.clone(),
                None => Identity::of(&models::open(name, latent)?)?,
            };
            known.insert(key, identity.clone());
            *found = Some(identity);
        }
    }
    Ok(())
}

impl fmt::Display for Planned {
    /// `int4/distill/seed-0`: the run's folder.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/seed-{}", self.scheme, self.method, self.seed)
    }
}

impl Grid {
    /// Reads a grid's file.
    ///
    /// # Errors
    /// One line: the file, its line, the cause.
    pub fn read(path: &Path) -> Result<Self> {
        let text = load::read_text(path, "grid")?;
        let grid: Self = load::parse(path, &text)?;
        grid.check().with_context(|| format!("{}", path.display()))?;
        Ok(grid)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.schemes.is_empty() && !self.methods.is_empty(), "needs at least one scheme and one method");
        ensure!(!self.eval.texts.is_empty(), "`eval.texts` must name at least one text");
        ensure!(self.bench.prompt > 0 && self.bench.generate > 0, "`bench` needs tokens of both kinds");
        ensure!(self.bench.repetitions > 0, "`bench.repetitions` must be at least 1");
        for name in self.schemes.keys().chain(self.methods.keys()).chain(self.eval.texts.keys()) {
            let fit = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let fits = name.chars().all(fit) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
            ensure!(
                fits,
                "`{}` is to be part of a folder's name: letters, digits, `.`, `_` and `-` only",
                excerpt(name)
            );
        }
        for (name, scheme) in &self.schemes {
            let named = scheme.methods.iter().flatten().chain(scheme.with.keys()).chain(scheme.seeds.keys());
            for method in named {
                ensure!(
                    self.methods.contains_key(method),
                    "`schemes.{name}` names a method `{}` that is not there",
                    excerpt(method)
                );
            }
        }
        let of_methods = self.methods.values().filter_map(|method| method.seeds.as_ref());
        let of_schemes = self.schemes.values().flat_map(|scheme| scheme.seeds.values());
        for seeds in of_methods.chain(of_schemes).chain([&self.seeds]) {
            let different: BTreeSet<_> = seeds.iter().collect();
            ensure!(!seeds.is_empty() && different.len() == seeds.len(), "`seeds` must be different, and at least one");
        }
        Ok(())
    }

    /// All runs in order, with their recipes.
    ///
    /// # Errors
    /// A recipe that cannot be read with what the grid changes of it; which run that is stands before it.
    pub fn plan(&self) -> Result<Vec<Planned>> {
        let mut all = Vec::new();
        for (scheme_name, scheme) in &self.schemes {
            for (method_name, method) in &self.methods {
                if scheme.methods.as_ref().is_some_and(|methods| !methods.contains(method_name)) {
                    continue;
                }
                let mut changed = Sets::new();
                let with = scheme.with.get(method_name);
                for sets in [&self.set, &scheme.set, &method.set].into_iter().chain(with) {
                    changed.extend(sets.clone());
                }
                for key in ["output", "seed", "teacher.cache", "quant.cache"] {
                    if changed.contains_key(key) {
                        bail!("`{key}` is set by the grid itself, not by `set` ({scheme_name}, {method_name})");
                    }
                }
                let seeds = scheme.seeds.get(method_name).or(method.seeds.as_ref());
                for seed in seeds.unwrap_or(&self.seeds) {
                    all.push(self.planned([scheme_name, method_name], *seed, &changed)?);
                }
            }
        }
        Ok(all)
    }

    fn planned(&self, [scheme, method]: [&String; 2], seed: u64, changed: &Sets) -> Result<Planned> {
        let folder = format!("{scheme}/{method}/seed-{seed}");
        let output = self.output.join(&folder);
        let output = output.to_str().ok_or_else(|| anyhow!("{}: not UTF-8", output.display()))?;
        let mut sets: Vec<String> = changed.iter().map(|(key, value)| format!("{key}={value}")).collect();
        sets.push(format!("seed={seed}"));
        sets.push(format!("output={}", Value::from(output)));
        let recipe = load::load(&self.recipe, &sets).with_context(|| folder.clone())?;
        ensure!(recipe.teacher.is_some(), "{}: a grid needs a `[teacher]`", self.recipe.display());
        ensure!(!recipe.bits.is_empty(), "{folder}: no bit plan; `bits` is to be set by the recipe or its scheme");
        recipe.check_device().with_context(|| folder.clone())?;
        Ok(Planned { scheme: scheme.clone(), method: method.clone(), seed, sets, recipe, models: [None, None] })
    }
}
