//! `dequantize`: the low-bit weights of a manifest as f32 arrays.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bitllama_core::excerpt;
use bitllama_formats::artifact::LowBit;
use bitllama_formats::npz::{self, Dtype};
use bitllama_formats::output::{self, Growing, Kind};
use bitllama_formats::{Error, atomic};
use serde_json::{Value, json};

/// Write the low-bit weights that a manifest names as f32 arrays, NAME_fp32.npy with _ for every dot and slash of NAME
#[derive(clap::Args)]
pub struct Args {
    /// A manifest of an artifact or of the older tools, in JSON
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// Folder to write the arrays into; what an earlier `dequantize` wrote there is replaced
    #[arg(long, value_name = "DIR", required_unless_present = "update_manifest")]
    output_dir: Option<PathBuf>,
    /// Write the arrays beside the manifest, and their names into it, as `fp32` in the entries of the weights
    #[arg(long, conflicts_with = "output_dir")]
    update_manifest: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A manifest or a weight that is missing or damaged; an output that cannot be written, or holds what this program did not write.
pub fn run(args: Args) -> Result<()> {
    let manifest = output::followed(&args.manifest)?;
    ensure!(manifest.is_file(), "{}: no such manifest", args.manifest.display());
    let folder = match manifest.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let weights = LowBit::open(&manifest)?;
    let files = file_names(&manifest, &weights)?;
    let output = match &args.output_dir {
        Some(output) => {
            output::apart(output, [("--manifest", manifest.as_path())])?;
            atomic::write_folder(output, Kind::Weights, |folder| {
                let mut arrays = arrays(&weights, &files);
                arrays.try_for_each(|array| array.and_then(|(name, bytes)| write(&folder.join(name), &bytes)))
            })?;
            output.clone()
        }
        None => {
            update(&manifest, &folder, &weights, &files)?;
            folder
        }
    };
    let numbers: usize = weights.weights().map(|weight| weight.shape.iter().product::<usize>()).sum();
    match args.json {
        true => println!("{}", json!({ "output": output, "weights": files.len(), "parameters": numbers })),
        false => println!("{}: {} weights of {numbers} numbers in f32", output.display(), files.len()),
    }
    Ok(())
}

/// Writes the arrays beside the manifest, then the manifest. Whatever can go wrong but the disk does so before the first.
fn update(manifest: &Path, folder: &Path, weights: &LowBit, files: &[String]) -> Result<()> {
    let _claim = output::claim_growing(folder, Kind::Artifact)?;
    let growing = Growing::new(folder, Kind::Artifact);
    files.iter().try_for_each(|file| growing.replaceable(file))?;
    arrays(weights, files).try_for_each(|array| array.map(drop))?;
    for array in arrays(weights, files) {
        let (name, bytes) = array?;
        growing.write(name, &bytes)?;
    }
    let mut edited = weights.manifest().clone();
    for (weight, file) in weights.weights().zip(files) {
        // Loaders older than format version 2 look for an entry at the root.
        let (inner, root) = (format!("/weights/{}", pointer(&weight.name)), format!("/{}", pointer(&weight.name)));
        for place in [inner, root] {
            if let Some(entry) = edited.pointer_mut(&place).and_then(Value::as_object_mut) {
                entry.insert("fp32".into(), json!(file));
            }
        }
    }
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    let text = serde_json::to_string_pretty(&edited)? + "\n";
    Ok(growing.edit(&name, text.as_bytes())?)
}

/// A key as RFC 6901 writes it.
fn pointer(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The files of all weights, as the older tools' `dequantize_manifest_weights.py` names them.
fn file_names(manifest: &Path, weights: &LowBit) -> Result<Vec<String>> {
    let mut seen = HashSet::new();
    let names = weights.weights().map(|weight| {
        let name = weight.name.replace(['.', '/'], "_");
        let plain = name.chars().all(|c| c.is_alphanumeric() || ['_', '-', ' '].contains(&c));
        let (path, shown) = (manifest.display(), excerpt(&weight.name));
        ensure!(plain && name.len() < 200, "{path}: no file can be named after the weight {shown}");
        ensure!(seen.insert(name.clone()), "{path}: the file of the weight {shown} would be another weight's too");
        Ok(format!("{name}_fp32.npy"))
    });
    let names: Vec<String> = names.collect::<Result<_>>()?;
    ensure!(!names.is_empty(), "{}: no weight has codes, so that there is nothing to dequantize", manifest.display());
    Ok(names)
}

/// The files of all weights with their bytes.
fn arrays<'a>(
    weights: &'a LowBit,
    files: &'a [String],
) -> impl Iterator<Item = bitllama_formats::Result<(&'a str, Vec<u8>)>> {
    weights.weights().zip(files).enumerate().map(|(index, (weight, file))| {
        let values = weights.values(index)?;
        let mut bytes = npz::header(Dtype::F32, &weight.shape);
        bytes.extend_from_slice(bytemuck::cast_slice(&values));
        Ok((file.as_str(), bytes))
    })
}

fn write(path: &Path, bytes: &[u8]) -> bitllama_formats::Result<()> {
    atomic::write_file(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}
