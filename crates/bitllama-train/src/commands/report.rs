//! `report`: the main table of a grid that was run.

use std::path::PathBuf;

use anyhow::Result;

use crate::grid::report;

/// Print the results of a grid of runs
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the grid's report, which has its results.json
    dir: PathBuf,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A folder without results, or with damaged ones.
pub fn run(args: Args) -> Result<()> {
    let results = report::read(&args.dir)?;
    match args.json {
        true => println!("{}", serde_json::to_string(&results)?),
        false => print!("{}", report::terminal(&results)),
    }
    Ok(())
}
