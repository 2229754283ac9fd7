//! Reads a recipe. An error is one line: file, line, what is wrong, the nearest right name.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitllama_core::excerpt;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::Recipe;

/// Reads `path` and applies `sets` (`a.b=c`, in order).
///
/// # Errors
/// One line: the file and line (or the `--set`), the cause, and for an unknown key the nearest that exists.
pub fn load(path: &Path, sets: &[String]) -> Result<Recipe> {
    let text = read_text(path, "recipe")?;
    if sets.is_empty() {
        return checked(parse(path, &text)?, path, &text);
    }
    // Types and unknown keys of the file are judged before the overrides, so that the line is right. What is only
    // missing may still come from an override.
    if let Err(e) = toml::from_str::<Recipe>(&text)
        && !e.message().starts_with("missing field")
    {
        return Err(at_line(path, &text, &e));
    }
    let mut table: Table = text.parse().map_err(|e| at_line(path, &text, &e))?;
    for set in sets {
        apply(&mut table, set)?;
        if let Err(e) = table.clone().try_into::<Recipe>()
            && !e.message().starts_with("missing field")
        {
            bail!("--set {}: {}", excerpt(set), with_suggestion(e.message()));
        }
    }
    let recipe = table.try_into().map_err(|e| anyhow!("{}: {}", path.display(), with_suggestion(e.message())))?;
    checked(recipe, path, &text)
}

/// Bytes of a recipe, or a grid. What is made of TOML takes a hundred times the bytes of its shortest values.
const MAX_BYTES: usize = 256 << 10;

/// The text of a TOML file, of a `kind` that is written by hand.
///
/// # Errors
/// A file that cannot be read, or that is larger than anybody writes.
pub fn read_text(path: &Path, kind: &str) -> Result<String> {
    let at = || format!("{}: cannot read the {kind}", path.display());
    let length = std::fs::metadata(path).with_context(at)?.len();
    ensure!(
        length <= MAX_BYTES as u64,
        "{}: {length} bytes are no {kind}, which has at most {MAX_BYTES}",
        path.display()
    );
    std::fs::read_to_string(path).with_context(at)
}

/// A TOML file of which `text` is.
///
/// # Errors
/// As [`load`]'s.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| at_line(path, text, &e))
}

fn checked(recipe: Recipe, path: &Path, text: &str) -> Result<Recipe> {
    if let Err(faults) = recipe.check() {
        let faults: Vec<_> = faults.iter().map(|(key, must)| format!("`{key}` {must}")).collect();
        bail!("{}: {}", path.display(), faults.join("; "));
    }
    recipe.bit_plan().map_err(|e| {
        let line = text.lines().position(|l| l.trim() == "[bits]").map_or(1, |i| i + 1);
        anyhow!("{}:{line}: {e}", path.display())
    })?;
    Ok(recipe)
}

/// More parts than a key of any recipe has. Tables are gone through by recursion.
const MAX_PARTS: usize = 8;

/// Sets `a.b=c` in a table; `c` is TOML, or else a plain string.
fn apply(table: &mut Table, set: &str) -> Result<()> {
    let at = || format!("--set {}", excerpt(set));
    let (key, value) = set.split_once('=').with_context(|| format!("{}: expected key=value", at()))?;
    let value = match format!("v = {value}").parse::<Table>() {
        // Of several lines the others would be lost.
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("v").unwrap_or_else(|| Value::String(value.into())),
        _ => Value::String(value.into()),
    };
    // The keys of `[bits]` and `[activations]` are globs and may themselves hold dots.
    let path: Vec<&str> = match key.trim().split_once('.') {
        Some((section @ ("bits" | "activations"), glob)) => vec![section, glob.trim_matches('"')],
        _ => key.trim().split('.').collect(),
    };
    ensure!(
        path.len() <= MAX_PARTS,
        "{}: the key has {} parts, no key of a recipe has more than {MAX_PARTS}",
        at(),
        path.len()
    );
    let [sections @ .., last] = path.as_slice() else { bail!("{}: expected key=value", at()) };
    let mut table = table;
    for section in sections {
        let entry = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().with_context(|| format!("{}: `{}` is no section", at(), excerpt(section)))?;
    }
    table.insert((*last).to_string(), value);
    Ok(())
}

fn at_line(path: &Path, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    anyhow!("{}:{line}: {}", path.display(), with_suggestion(error.message()))
}

/// Adds the nearest known key to "unknown field `x`, expected one of `a`, `b`" and leaves out the long list.
fn with_suggestion(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.as_slice() {
        [unknown, known @ ..] if message.starts_with("unknown field") => {
            let nearest = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
            match nearest {
                Some(nearest) => format!("unknown key `{}`; did you mean `{nearest}`?", excerpt(unknown)),
                None => format!("unknown key `{}`", excerpt(unknown)),
            }
        }
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "output = \"runs/x\"\n[bits]\n\"*\" = \"ternary\"\n\"layers.0.*\" = \"int8\"\n[data]\n\
                           train = [\"a.txt\"]\n[train]\nsteps = 10\nlr = 1e-3\n";

    fn load_text(text: &str, sets: &[&str]) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        std::fs::write(&path, text).unwrap();
        load(&path, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    fn error(text: &str, sets: &[&str]) -> String {
        let message = format!("{:#}", load_text(text, sets).unwrap_err());
        assert!(!message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn rules_of_the_bit_plan_keep_their_order() {
        let recipe = load_text(MINIMAL, &[]).unwrap();
        assert_eq!(recipe.bits.keys().collect::<Vec<_>>(), ["*", "layers.0.*"]);
        // A name alone is the rule of all matrices.
        let one = load_text(MINIMAL, &["bits=gguf:q4_k_m"]).unwrap();
        assert_eq!(one.bits.first(), Some((&"*".to_string(), &"gguf:q4_k_m".parse().unwrap())));
        let error = format!("{:#}", load_text(MINIMAL, &["bits=gguf:q4_x"]).unwrap_err());
        assert!(error.contains("unknown target `gguf:q4_x`"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_nearest() {
        let message = error(&MINIMAL.replace("steps", "stesp"), &[]);
        assert!(message.contains("r.toml:8:") && message.contains("`stesp`; did you mean `steps`"), "{message}");
        let message = error(&format!("{MINIMAL}[evals]\nctx = 3\n"), &[]);
        assert!(message.contains(":10:") && message.contains("`eval`"), "{message}");
    }

    #[test]
    fn wrong_types_and_values_are_named() {
        let message = error(&MINIMAL.replace("10", "\"ten\""), &[]);
        assert!(message.contains("r.toml:8:"), "{message}");
        let message = error(&MINIMAL.replace("1e-3", "-1.0"), &[]);
        assert!(message.contains("`train.lr` must be positive"), "{message}");
        let message = error(&MINIMAL.replace("int8", "int9"), &[]);
        assert!(message.contains("r.toml:4:") && message.contains("`int9`"), "{message}");
    }

    #[test]
    fn set_overrides_and_is_judged_too() {
        let recipe = load_text(MINIMAL, &["train.lr=0.5", "output=elsewhere", "bits.layers.1.*=int4"]).unwrap();
        assert_eq!((recipe.train.lr, recipe.output.to_str()), (0.5, Some("elsewhere")));
        assert_eq!(recipe.bits.last(), Some((&"layers.1.*".to_string(), &"int4".parse().unwrap())));
        let message = error(MINIMAL, &["train.lrr=0.5"]);
        assert!(message.contains("--set train.lrr=0.5") && message.contains("did you mean `lr`"), "{message}");
        assert!(error(MINIMAL, &["train.lr"]).contains("key=value"));
        let deep = format!("{}=1", "a.".repeat(50_000));
        let message = error(MINIMAL, &[&deep]);
        assert!(message.contains("has 50001 parts") && message.len() < 200, "{message}");
        let message = error(MINIMAL, &["train.lr=1\nb = 2"]);
        assert!(message.contains("invalid type: string"), "{message}");
        assert!(load_text(&MINIMAL.replace("lr = 1e-3\n", ""), &["train.lr=1"]).is_ok());
    }
}
