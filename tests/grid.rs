//! A grid: killed and gone on with, a run that fails among others that do not, and what is wrong with its file.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{failure, start, train};
use serde_json::Value;

const GRID: &str = r#"
recipe = "recipes/quickstart.toml"
output = "OUTPUT"
seeds = [0, 1]

[set]
"data.sequence_length" = 32
"data.cache" = "CACHE"
"train.steps" = 40
"train.batch_size" = 2
"train.warmup_steps" = 2
"train.log_every" = 1
"train.checkpoint_every" = 4
"train.histograms" = false
"eval.chunks" = 2

[schemes.int4]
set = { "bits.layers.*" = { scheme = "int4", method = "lsq" } }
with.rtn = { "bits.layers.*" = "int4" }

[schemes.f32]
set = { "bits.layers.*" = "f32", "bits.embed_tokens" = "f32" }
methods = ["distill"]

[methods.rtn]
set = { "train.steps" = 0 }
seeds = [0]

[methods.distill]

[eval]
texts = { emma = "data/austen/sense-and-sensibility.txt" }
ctx = 64
chunks = 2

[bench]
prompt = 16
generate = 4
repetitions = 1
"#;

/// Writes the grid, with its runs in the folder `name`.
fn write(folder: &Path, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let text = GRID.replace("OUTPUT", &folder.join(name).display().to_string());
    let text = text.replace("CACHE", &folder.join("tokens").display().to_string());
    fs::write(&path, change(text)).unwrap();
    path
}

fn args(grid: &Path) -> Vec<String> {
    ["grid", "--config", grid.to_str().unwrap()].map(String::from).to_vec()
}

/// All that does not depend on the machine's speed, by run.
fn figures(folder: &Path) -> Vec<(String, Value)> {
    let results: Value = serde_json::from_slice(&fs::read(folder.join("results.json")).unwrap()).unwrap();
    let cells = results["cells"].as_array().unwrap();
    let name = |cell: &Value| format!("{} {} {}", cell["scheme"], cell["method"], cell["seed"]);
    cells.iter().map(|cell| (name(cell), cell["texts"].clone())).collect()
}

fn checkpoints(run: &Path) -> usize {
    fs::read_dir(run.join("checkpoints")).map_or(0, |entries| entries.count())
}

#[test]
fn a_killed_grid_goes_on_inside_of_its_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (write(folder.path(), "whole", |text| text), write(folder.path(), "killed", |text| text));
    let output = train(&["grid", "--config", whole.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let has =
        |scheme: &str, method: &str| table.lines().any(|line| line.split_whitespace().take(2).eq([scheme, method]));
    assert!(has("int4", "rtn") && has("int4", "distill") && has("f32", "distill"), "{table}");
    for file in ["results.csv", "report.md", "report.html", "perplexity-bits.svg"] {
        assert!(fs::read_to_string(folder.path().join("whole").join(file)).unwrap().contains("int4"), "{file}");
    }
    // The same table without running anything.
    let report = train(&["report", folder.path().join("whole").to_str().unwrap()]).output().unwrap();
    assert!(report.status.success() && table.starts_with(&String::from_utf8(report.stdout).unwrap()), "{table}");
    let expected = figures(&folder.path().join("whole"));
    assert_eq!(expected.len(), 5);
    let perplexity = |run: usize| expected[run].1["emma"]["perplexity"].as_f64().unwrap();
    assert!(perplexity(0) > 1.0 && perplexity(0) != perplexity(1), "{expected:?}");
    // Runs of a seed read its teacher from one cache.
    assert_eq!(fs::read_dir(folder.path().join("whole/teacher-cache")).unwrap().count(), 2);

    for run in ["int4/distill/seed-0", "int4/distill/seed-1", "f32/distill/seed-0"] {
        let run = folder.path().join("killed").join(run);
        let mut child = start(&args(&killed));
        let since = Instant::now();
        while checkpoints(&run) == 0 {
            assert!(since.elapsed() < Duration::from_secs(120), "{}: no checkpoint", run.display());
            sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = train(&["grid", "--config", killed.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(figures(&folder.path().join("killed")), expected);

    // A finished grid has nothing to do, not even without what was trained, and another recipe is not mixed with what is there.
    for run in ["int4/distill/seed-0", "int4/distill/seed-1", "int4/rtn/seed-0"] {
        fs::remove_dir_all(folder.path().join("killed").join(run).join("artifact")).unwrap();
    }
    let listed = train(&["grid", "--config", killed.to_str().unwrap(), "--dry-run"]).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().matches(": finished").count(), 5);
    let other = "\"bits.embed_tokens\" = \"f32\", \"train.lr\" = 1e-9";
    write(folder.path(), "killed", |text| text.replace("\"bits.embed_tokens\" = \"f32\"", other));
    let output = train(&["grid", "--config", killed.to_str().unwrap(), "--only", "int4/*"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("f32/distill/seed-0: "), "{table}");
    assert!(
        figures(&folder.path().join("killed")).iter().eq(expected.iter().filter(|(name, _)| name.contains("int4")))
    );
    write(folder.path(), "killed", |text| text.replace("\"train.batch_size\" = 2", "\"train.batch_size\" = 3"));
    let listed = train(&["grid", "--config", killed.to_str().unwrap(), "--dry-run"]).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().matches("made with another recipe").count(), 5);
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let grid = write(folder.path(), "grid", |text| {
        let text = text.replace("\"train.steps\" = 40", "\"train.steps\" = 4").replace("seeds = [0, 1]", "seeds = [0]");
        text.replace("[methods.distill]", "[methods.wrong]\nset = { \"student.layers\" = 9 }\n[methods.distill]")
    });
    let output =
        train(&["grid", "--config", grid.to_str().unwrap(), "--only", "int4/*", "--jobs", "2"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("int4/wrong/seed-0 failed") && message.contains("one of the 4 blocks"), "{message}");
    let done: Vec<String> = figures(&folder.path().join("grid")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(done, ["\"int4\" \"rtn\" 0", "\"int4\" \"distill\" 0"]);
}

#[test]
fn what_is_wrong_with_a_grid_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        ("seeds = [0, 1]", "sedes = [0, 1]", ":4: unknown key `sedes`; did you mean `seeds`"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "must be different"),
        ("methods = [\"distill\"]", "methods = [\"distil\"]", "names a method `distil` that is not there"),
        ("methods = [\"distill\"]", "seeds.distil = [0]", "names a method `distil` that is not there"),
        ("methods = [\"distill\"]", "seeds.distill = []", "must be different, and at least one"),
        ("[schemes.int4]", "[schemes.\"../int4\"]", "part of a folder's name"),
        ("\"train.steps\" = 40", "output = \"x\"", "`output` is set by the grid itself"),
        ("\"train.steps\" = 40", "\"train.stesp\" = 40", "did you mean `steps`"),
        ("recipes/quickstart.toml", "recipes/none.toml", "recipes/none.toml: cannot read the recipe"),
        ("sense-and-sensibility", "none", "none.txt"),
    ];
    for (old, new, expected) in wrong {
        let grid = write(folder.path(), "grid", |text| text.replace(old, new));
        let message = failure(&train(&["grid", "--config", grid.to_str().unwrap()]).output().unwrap());
        assert!(message.contains(expected), "{new}: {message}");
    }
    let grid = write(folder.path(), "grid", |text| text);
    let args = ["grid", "--config", grid.to_str().unwrap(), "--only", "int5/*"];
    assert!(failure(&train(&args).output().unwrap()).contains("no run has such a name"));
}

#[test]
fn seeds_of_a_method_are_those_beside_the_scheme_if_it_names_some() {
    let folder = tempfile::tempdir().unwrap();
    let changed = |text: String| text.replace("with.rtn", "seeds.distill = [7]\nwith.rtn");
    let grid = write(folder.path(), "grid", changed);
    let listed = train(&["grid", "--config", grid.to_str().unwrap(), "--dry-run"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let runs: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": to be trained")).collect();
    let expected = ["int4/rtn/seed-0", "int4/distill/seed-7", "f32/distill/seed-0", "f32/distill/seed-1"];
    assert_eq!(runs, expected);
}
