//! What is fuzzed: each reader of this project as a function of one file's bytes. `tests/fuzz/main.rs` calls them on the stable
//! toolchain, `fuzz/` under cargo-fuzz.

#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use bitllama_core::weights::specs;
use bitllama_formats::{Artifact, Model, gguf, hf, model, npz, scales, vectors};
use bitllama_runtime::evaluate::{Task, TaskFile};
use bitllama_train::grid::config::Grid;
use bitllama_train::grid::report;
use bitllama_train::recipe::load;
use bitllama_train::teacher_cache::TeacherCache;
use bitllama_train::training::checkpoint::CheckpointState;

/// One reader.
pub struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// Files of the repository to start from, beside those of the corpus.
    pub seeds: &'static [&'static str],
    /// Prepares the folder that it works in, once.
    pub prepare: fn(&Path),
    /// Reads a file of these bytes, in that folder. Whether it is one does not matter.
    pub read: fn(&Path, &[u8]),
}

/// All readers.
pub static TARGETS: [Target; 19] = [
    Target {
        name: "recipe",
        seeds: &["recipes/quickstart.toml", "tests/fixtures/v0.1.0/run/recipe.toml"],
        prepare: nothing,
        read: recipe,
    },
    Target { name: "set", seeds: &[], prepare: nothing, read: set },
    Target { name: "grid", seeds: &["experiments/grid-quickstart.toml"], prepare: nothing, read: grid },
    Target {
        name: "config",
        seeds: &["configs/nano.json", "configs/llama-3.2-1b.json"],
        prepare: nothing,
        read: config,
    },
    Target {
        name: "safetensors",
        seeds: &["tests/fixtures/v0.1.0/teacher/model.safetensors"],
        prepare: teacher,
        read: safetensors,
    },
    Target { name: "index", seeds: &[], prepare: sharded, read: index },
    Target {
        name: "tokenizer",
        seeds: &["tests/fixtures/v0.1.0/artifact/tokenizer.json"],
        prepare: nothing,
        read: tokenizer,
    },
    Target { name: "gguf", seeds: &[], prepare: nothing, read: gguf_file },
    Target { name: "npz", seeds: &["tests/golden/v2_compressed.npz"], prepare: nothing, read: npz_file },
    Target { name: "npy", seeds: &[], prepare: nothing, read: npy },
    Target {
        name: "manifest",
        seeds: &["tests/fixtures/v0.1.0/artifact/manifest.json"],
        prepare: artifact,
        read: manifest,
    },
    Target {
        name: "weights",
        seeds: &["tests/fixtures/v0.1.0/artifact/weights.npz"],
        prepare: artifact,
        read: weights,
    },
    Target {
        name: "v2-manifest",
        seeds: &["tests/golden/v2_artifact/manifest.json"],
        prepare: v2_artifact,
        read: manifest,
    },
    Target {
        name: "state",
        seeds: &["tests/fixtures/v0.1.0/run/checkpoints/step-000010/state.json"],
        prepare: nothing,
        read: state,
    },
    Target {
        name: "scales",
        seeds: &["tests/fixtures/v0.1.0/run/checkpoints/step-000010/scales.safetensors"],
        prepare: nothing,
        read: trained_scales,
    },
    Target { name: "teacher-index", seeds: &[], prepare: nothing, read: teacher_index },
    Target { name: "teacher-rows", seeds: &[], prepare: teacher_cache, read: teacher_rows },
    Target {
        name: "task",
        seeds: &["tests/data/tasks/arc.jsonl", "tests/data/tasks/piqa.jsonl"],
        prepare: nothing,
        read: task,
    },
    Target { name: "results", seeds: &["experiments/grid-quickstart/results.json"], prepare: nothing, read: results },
];

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("recipes").is_dir()).unwrap_or(here).to_path_buf()
}

fn nothing(_: &Path) {}

/// `bytes` as a file of the folder.
fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a scratch folder that can be written");
    path
}

/// The files of a folder of the repository, copied.
fn copied(from: &str, folder: &Path) {
    for entry in fs::read_dir(root().join(from)).expect("a folder of the repository") {
        let path = entry.expect("a folder that can be read").path();
        fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))
            .expect("a scratch folder that can be written");
    }
}

fn teacher(folder: &Path) {
    copied("tests/fixtures/v0.1.0/teacher", folder);
}

/// The teacher with its weights in a file that only an index names.
fn sharded(folder: &Path) {
    teacher(folder);
    fs::rename(folder.join(hf::WEIGHTS), folder.join("a.safetensors")).expect("weights");
}

fn artifact(folder: &Path) {
    copied("tests/fixtures/v0.1.0/artifact", folder);
}

fn v2_artifact(folder: &Path) {
    copied("tests/golden/v2_artifact", folder);
}

fn teacher_cache(folder: &Path) {
    copied("tests/fuzz/corpus/teacher-index", folder);
}

/// All weights of a model.
fn read_all(model: &Model) {
    for spec in specs(&model.config) {
        drop(model.weights.read(&spec));
    }
}

fn recipe(folder: &Path, bytes: &[u8]) {
    drop(load::load(&file(folder, "recipe.toml", bytes), &[]));
}

fn set(folder: &Path, bytes: &[u8]) {
    let recipe = folder.join("recipe.toml");
    if !recipe.is_file() {
        fs::copy(root().join("recipes/quickstart.toml"), &recipe).expect("a scratch folder that can be written");
    }
    let sets: Vec<String> = String::from_utf8_lossy(bytes).split('\0').map(String::from).collect();
    drop(load::load(&recipe, &sets));
}

fn grid(folder: &Path, bytes: &[u8]) {
    // A grid's recipe is named by a path, which is not to lead out of the scratch folder.
    if let Ok(grid) = Grid::read(&file(folder, "grid.toml", bytes))
        && grid.recipe.components().count() < 3
        && grid.seeds.len() < 100
    {
        drop(grid.plan());
    }
}

fn config(folder: &Path, bytes: &[u8]) {
    if let Ok(config) = hf::read_config(&file(folder, hf::CONFIG, bytes)) {
        drop(hf::config_json(&config, hf::Dtype::F32));
    }
}

fn safetensors(folder: &Path, bytes: &[u8]) {
    file(folder, hf::WEIGHTS, bytes);
    if let Ok(model) = hf::open(folder) {
        read_all(&model);
    }
}

fn index(folder: &Path, bytes: &[u8]) {
    file(folder, hf::INDEX, bytes);
    if let Ok(model) = hf::open(folder) {
        read_all(&model);
    }
}

fn tokenizer(folder: &Path, bytes: &[u8]) {
    drop(hf::read_tokenizer(&file(folder, hf::TOKENIZER, bytes)));
}

fn gguf_file(folder: &Path, bytes: &[u8]) {
    let path = file(folder, "model.gguf", bytes);
    drop(gguf::Gguf::open(&path));
    if let Ok(model) = model::open(&path) {
        read_all(&model);
    }
}

fn npz_file(folder: &Path, bytes: &[u8]) {
    let Ok(npz) = npz::Npz::open(&file(folder, "a.npz", bytes)) else { return };
    for key in npz.keys() {
        drop(npz.header(key));
        drop(npz.array(key));
    }
    drop(npz.verify());
}

fn npy(_: &Path, bytes: &[u8]) {
    drop(npz::parse(&bytes.to_vec().into()));
}

fn manifest(folder: &Path, bytes: &[u8]) {
    file(folder, "manifest.json", bytes);
    opened(folder);
}

fn weights(folder: &Path, bytes: &[u8]) {
    file(folder, "weights.npz", bytes);
    opened(folder);
}

fn opened(folder: &Path) {
    if let Ok(artifact) = Artifact::open(folder) {
        for spec in specs(&artifact.config) {
            drop(artifact.weight(&spec));
        }
        drop(artifact.verify());
    }
}

fn state(folder: &Path, bytes: &[u8]) {
    file(folder, "state.json", bytes);
    drop(CheckpointState::read(folder));
}

fn trained_scales(folder: &Path, bytes: &[u8]) {
    let path = file(folder, "scales.safetensors", bytes);
    drop(scales::read(&path));
    drop(vectors::read(&path));
}

fn teacher_index(folder: &Path, bytes: &[u8]) {
    file(folder, "index.json", bytes);
    drop(TeacherCache::open(folder, None));
}

fn teacher_rows(folder: &Path, bytes: &[u8]) {
    file(folder, "rows-000000.bin", bytes);
    if let Ok(cache) = TeacherCache::open(folder, None) {
        drop(cache.rows(0, cache.index.rows));
    }
}

fn task(folder: &Path, bytes: &[u8]) {
    let path = file(folder, "task.jsonl", bytes);
    drop(Task::read(&TaskFile { layout: None, path }, None));
}

fn results(folder: &Path, bytes: &[u8]) {
    file(folder, report::RESULTS_FILE, bytes);
    if let Ok(results) = report::read(folder) {
        drop(report::terminal(&results));
    }
}
