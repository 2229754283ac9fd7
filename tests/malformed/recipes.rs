//! Recipes, overrides and grids.

use bitllama_train::grid::config::Grid;
use bitllama_train::recipe::load::load;

use super::Group;
use super::edit::{nested, replaced, write};

const RECIPE: &str = r#"output = "runs/x"
[teacher]
model = "t"
[student]
layers = 4
[bits]
"layers.*" = { scheme = "int4", group_size = 64 }
[quant]
delay_steps = 0
[distill]
alpha = 0.5
temperature = 1.0
[data]
train = ["a.txt"]
sequence_length = 64
valid_fraction = 0.1
[train]
steps = 10
batch_size = 2
lr = 1e-3
beta1 = 0.9
[eval]
ctx = 64
"#;

/// What is replaced in the good recipe, and by what.
const CHANGES: [(&str, &str, &str); 45] = [
    ("unknown key", "batch_size", "batchsize"),
    ("unknown section", "[eval]", "[evals]"),
    ("key twice", "steps = 10", "steps = 10\nsteps = 11"),
    ("section twice", "[eval]", "[train]"),
    ("no section of data", "[data]", "[eval.data]"),
    ("no steps", "steps = 10\n", ""),
    ("no output", "output = \"runs/x\"\n", ""),
    ("number as text", "steps = 10", "steps = \"ten\""),
    ("text as number", "output = \"runs/x\"", "output = 5"),
    ("negative steps", "steps = 10", "steps = -1"),
    ("fraction of steps", "steps = 10", "steps = 1.5"),
    ("steps beyond 64 bits", "steps = 10", "steps = 99999999999999999999"),
    ("huge steps", "steps = 10", "steps = 9223372036854775807"),
    ("huge batch", "batch_size = 2", "batch_size = 9223372036854775807"),
    ("product that wraps", "batch_size = 2", "batch_size = 1000000000000\ngrad_accumulation = 1000000000000"),
    ("huge sequence", "sequence_length = 64", "sequence_length = 4611686018427387904"),
    (
        "huge delay and warmup",
        "delay_steps = 0",
        "delay_steps = 9223372036854775807\nwarmup_steps = 9223372036854775807",
    ),
    (
        "huge stages",
        "delay_steps = 0",
        "stages = [{ scheme = \"int8\", steps = 9223372036854775807 }, { scheme = \"int4\", steps = 9223372036854775807 }]",
    ),
    ("huge calibration", "delay_steps = 0", "calibration_tokens = 9223372036854775807"),
    ("huge checkpoint interval", "steps = 10", "steps = 10\ncheckpoint_every = 9223372036854775807"),
    ("no batch", "batch_size = 2", "batch_size = 0"),
    ("short sequence", "sequence_length = 64", "sequence_length = 7"),
    ("no share held out", "valid_fraction = 0.1", "valid_fraction = 0.0"),
    ("NaN held out", "valid_fraction = 0.1", "valid_fraction = nan"),
    ("negative rate", "lr = 1e-3", "lr = -1e-3"),
    ("infinite rate", "lr = 1e-3", "lr = inf"),
    ("NaN rate", "lr = 1e-3", "lr = nan"),
    ("beta of 1", "beta1 = 0.9", "beta1 = 1.0"),
    ("alpha above 1", "alpha = 0.5", "alpha = 1.5"),
    ("NaN alpha", "alpha = 0.5", "alpha = nan"),
    ("temperature of 0", "temperature = 1.0", "temperature = 0.0"),
    ("beta without jsd", "alpha = 0.5", "alpha = 0.5\nbeta = 0.5"),
    ("unknown loss", "alpha = 0.5", "alpha = 0.5\nloss = \"l2\""),
    ("unknown scheme", "scheme = \"int4\"", "scheme = \"int7\""),
    ("long unknown scheme", "scheme = \"int4\"", "scheme = \"LONG\""),
    ("unknown method", "scheme = \"int4\"", "scheme = \"int4\", method = \"best\""),
    ("method of another scheme", "scheme = \"int4\"", "scheme = \"int4\", method = \"twn\""),
    ("groups of 48", "group_size = 64", "group_size = 48"),
    ("groups of 0", "group_size = 64", "group_size = 0"),
    ("glob that is none", "\"layers.*\"", "\"layers.[\""),
    ("long glob that is none", "\"layers.*\"", "\"[LONG\""),
    ("layers as text", "layers = 4", "layers = \"all\""),
    ("text for data.train", "train = [\"a.txt\"]", "train = \"a.txt\""),
    ("no text at all", "train = [\"a.txt\"]", "train = []"),
    ("quote that does not end", "output = \"runs/x\"", "output = \"runs/x"),
];

/// Wherever a table has `LONG`, there are a hundred thousand characters.
fn long(text: &str) -> String {
    text.replace("LONG", &"x".repeat(100_000))
}

/// Recipes with something wrong in them.
pub fn recipe(group: &mut Group) {
    let mut try_text = |name: &str, bytes: &[u8]| {
        group.input(name, |folder| load(&write(folder, "r.toml", bytes), &[]));
    };
    for (name, from, to) in CHANGES {
        try_text(name, replaced(RECIPE, from, &long(to)).as_bytes());
    }
    try_text("empty file", b"");
    try_text("no UTF-8", b"output = \"\xff\"");
    try_text("only NULs", &[0; 1000]);
    try_text("a key of 50000 parts", format!("{}b = 1\n{RECIPE}", "a.".repeat(50_000)).as_bytes());
    try_text("a header of 50000 parts", format!("{RECIPE}[{}b]\n", "a.".repeat(50_000)).as_bytes());
    try_text("deep list", format!("a = {}", nested(100_000)).as_bytes());
    try_text("deep table", format!("a = {}", "{b=".repeat(100_000)).as_bytes());
    try_text("long key", replaced(RECIPE, "steps", &"s".repeat(100_000)).as_bytes());
    try_text("control characters in a key", format!("{RECIPE}\"\\u001b[2J\" = 1\n").as_bytes());
    group.input("a folder", |folder| load(folder, &[]));
    group.input("no such file", |folder| load(&folder.join("none.toml"), &[]));
}

/// Overrides of a good recipe that make it a bad one.
const SETS: [(&str, &str); 24] = [
    ("no value", "train.lr"),
    ("nothing", ""),
    ("only =", "="),
    ("no key", "=5"),
    ("empty parts", "..=5"),
    ("unknown key", "train.lrr=5"),
    ("unknown section", "trains.lr=5"),
    ("below a number", "train.lr.x=5"),
    ("below a text", "output.x=5"),
    ("section as number", "train=5"),
    ("section as list", "train=[1, 2]"),
    ("text for a number", "train.steps=many"),
    ("negative", "train.steps=-5"),
    ("NaN", "train.lr=nan"),
    ("huge", "train.steps=9223372036854775807"),
    ("two lines", "train.lr=1\nsteps = 2"),
    ("unknown scheme", "bits.layers.*=int7"),
    ("table that does not end", "bits.layers.*={ scheme = \"int4\""),
    ("unknown word of a table", "bits.layers.*={ scheme = \"int4\", groups = 2 }"),
    ("glob that is none", "bits.[=int4"),
    ("unknown kind of activations", "activations.layers.*=int7"),
    ("long key", "LONG=5"),
    ("long value", "train.steps=LONG"),
    ("long text without =", "LONG"),
];

/// Overrides with something wrong in them.
pub fn set(group: &mut Group) {
    let mut try_set = |name: &str, set: String| {
        group.input(name, |folder| load(&write(folder, "r.toml", RECIPE), &[set]));
    };
    for (name, set) in SETS {
        try_set(name, long(set));
    }
    try_set("a key of 50000 parts", format!("{}b=1", "a.".repeat(50_000)));
    try_set("deep list", format!("train.steps={}", nested(100_000)));
    try_set("deep table", format!("train={}", "{b=".repeat(100_000)));
    try_set("control characters", "\x1b[2J=1".into());
}

const GRID: &str = r#"recipe = "$/r.toml"
output = "runs/grid"
seeds = [0, 1]
[schemes.int4]
set = { "bits.layers.*" = "int4" }
with.rtn = { "train.lr" = 0.1 }
[methods.rtn]
set = { "train.steps" = 10 }
[methods.distill]
[eval]
texts = { emma = "emma.txt" }
"#;

const GRID_CHANGES: [(&str, &str, &str); 21] = [
    ("unknown key", "seeds = ", "seed = "),
    ("no recipe", "recipe = \"$/r.toml\"\n", ""),
    ("recipe that is not there", "$/r.toml", "$/none.toml"),
    (
        "no schemes",
        "[schemes.int4]\nset = { \"bits.layers.*\" = \"int4\" }\nwith.rtn = { \"train.lr\" = 0.1 }\n",
        "[schemes]\n",
    ),
    ("no methods", "[methods.rtn]\nset = { \"train.steps\" = 10 }\n[methods.distill]\n", "[methods]\n"),
    ("no texts", "{ emma = \"emma.txt\" }", "{}"),
    ("a name that leads out", "[schemes.int4]", "[schemes.\"../x\"]"),
    ("an empty name", "[schemes.int4]", "[schemes.\"\"]"),
    ("a long name", "[schemes.int4]", "[schemes.\"a/LONG\"]"),
    ("unknown method", "with.rtn", "with.best"),
    ("method list of unknown ones", "with.rtn = { \"train.lr\" = 0.1 }", "methods = [\"LONG\"]"),
    ("seed twice", "seeds = [0, 1]", "seeds = [1, 1]"),
    ("no seeds", "seeds = [0, 1]", "seeds = []"),
    ("negative seed", "seeds = [0, 1]", "seeds = [-1]"),
    ("output set by hand", "\"train.steps\" = 10", "output = \"elsewhere\""),
    ("cache set by hand", "\"train.steps\" = 10", "\"teacher.cache\" = \"c\""),
    ("an override that is none", "\"train.steps\" = 10", "\"train.stesp\" = 10"),
    ("an override that is too large", "\"train.steps\" = 10", "\"train.steps\" = 9223372036854775807"),
    ("an override of 50000 parts", "\"train.steps\" = 10", "\"DOTS\" = 10"),
    ("no repetitions", "[eval]", "[bench]\nrepetitions = 0\n[eval]"),
    ("no tokens to time", "[eval]", "[bench]\nprompt = 0\n[eval]"),
];

/// Grids with something wrong in them.
pub fn grid(group: &mut Group) {
    for (name, from, to) in GRID_CHANGES {
        let text = replaced(GRID, from, &long(to)).replace("DOTS", &format!("{}b", "a.".repeat(50_000)));
        group.input(name, |folder| {
            write(folder, "r.toml", RECIPE);
            let grid = text.replace('$', &folder.display().to_string());
            Grid::read(&write(folder, "g.toml", grid))?.plan()
        });
    }
}
