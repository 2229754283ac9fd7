//! The rules by which a student reads its activations and keeps its keys and values, as recipes and checkpoints have them.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::bit_plan::ResolvedPlan;
use crate::{Activation, ActivationPlan, ActivationRule, Error};

/// The key among the globs that is none.
const KV_CACHE: &str = "kv_cache";

/// Rules in order, of glob over parameter paths, and what stands behind `kv_cache`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActivationRules(IndexMap<String, ActivationRule>);

impl ActivationRules {
    /// True if nothing is rounded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rounded inputs of a model whose weights are rounded by `weights`.
    ///
    /// # Errors
    /// [`Error::Activation`] for a glob that cannot be read or reaches no low-bit matrix, and for keys and values as signs.
    pub fn plan_for(&self, weights: &ResolvedPlan) -> Result<ActivationPlan, Error> {
        let rules = self.0.iter().filter(|(glob, _)| *glob != KV_CACHE).map(|(glob, rule)| (glob.as_str(), *rule));
        ActivationPlan::resolve(rules, self.kv_cache(), weights)
    }

    fn kv_cache(&self) -> Option<Activation> {
        self.0.get(KV_CACHE).and_then(|rule| rule.0)
    }
}
