//! The flags that every command with a recipe has.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::recipe::{Recipe, load};

/// A recipe and what is changed of it.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// The recipe, a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key of the recipe, for instance train.lr=1e-4; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Device to run on: flex, ndarray, tch, cuda:N or wgpu; overrides the recipe
    #[arg(long)]
    device: Option<String>,
}

impl RecipeArgs {
    /// The recipe that they ask for.
    ///
    /// # Errors
    /// A file or an override that cannot be read, or what its device does not have.
    pub fn read(&self) -> Result<Recipe> {
        let mut recipe = load::load(&self.config, &self.set)?;
        if let Some(device) = &self.device {
            recipe.device.clone_from(device);
        }
        recipe.check_device().with_context(|| self.at())?;
        Ok(recipe)
    }

    /// The recipe's path, for messages.
    pub fn at(&self) -> String {
        self.config.display().to_string()
    }
}
