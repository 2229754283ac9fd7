//! A bit plan says which weight is stored in which scheme, by globs over parameter paths.

use globset::{GlobBuilder, GlobMatcher};

use crate::weights::{Kind, WeightSpec, specs};
use crate::{Error, ModelConfig, Scheme};

/// Rules in order; the last one that matches a weight decides.
///
/// A glob is matched against the path with and without its final `.weight`; `*` also crosses dots. Embedding, norms
/// and head stay in full precision unless a rule names them, that is, unless the glob without wildcards' help begins
/// with their name (`embed_tokens*`, `lm_head`); norms are vectors and can never be quantized.
#[derive(Debug, Clone)]
pub struct BitPlan {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    glob: String,
    matcher: GlobMatcher,
    /// `None` keeps full precision.
    scheme: Option<Scheme>,
}

/// The word that keeps a weight in full precision.
pub const FULL_PRECISION: &str = "f32";

impl BitPlan {
    /// Reads rules of glob → scheme name, in order of increasing precedence.
    ///
    /// # Errors
    /// [`Error::BitPlan`] for a glob that cannot be read, [`Error::UnknownScheme`] for a name that is neither a
    /// scheme nor `f32`.
    pub fn new<'a>(rules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Error> {
        let rules = rules.into_iter().map(|(glob, scheme)| {
            let matcher = GlobBuilder::new(glob)
                .literal_separator(false)
                .build()
                .map_err(|e| Error::BitPlan(format!("glob `{glob}`: {}", e.kind())))?
                .compile_matcher();
            let scheme = if scheme == FULL_PRECISION { None } else { Some(scheme.parse()?) };
            Ok(Rule { glob: glob.to_string(), matcher, scheme })
        });
        Ok(Self { rules: rules.collect::<Result<_, Error>>()? })
    }

    /// One scheme for every linear layer of the blocks.
    pub fn uniform(scheme: Scheme) -> Self {
        Self::new([("layers.*", scheme.name())]).unwrap_or_else(|_| Self { rules: Vec::new() })
    }

    /// The scheme of one weight, or `None` for full precision.
    pub fn scheme_of(&self, weight: &WeightSpec) -> Option<Scheme> {
        if weight.kind == Kind::Norm {
            return None;
        }
        self.rules.iter().rev().find(|rule| rule.applies_to(weight)).and_then(|rule| rule.scheme)
    }

    /// The weights of a model with their schemes, in the order of [`specs`].
    ///
    /// # Errors
    /// [`Error::BitPlan`] if a rule reaches no weight at all: a misspelt glob must not pass in silence.
    pub fn resolve(&self, config: &ModelConfig) -> Result<Vec<(WeightSpec, Option<Scheme>)>, Error> {
        let weights = specs(config);
        for rule in &self.rules {
            let reached = weights.iter().filter(|w| w.kind != Kind::Norm).any(|w| rule.applies_to(w));
            if !reached {
                return Err(Error::BitPlan(format!(
                    "`{}` matches no matrix of the model; paths look like `layers.0.mlp.gate_proj` or `embed_tokens`",
                    rule.glob
                )));
            }
        }
        Ok(weights.into_iter().map(|w| (w.clone(), self.scheme_of(&w))).collect())
    }
}

impl Rule {
    fn applies_to(&self, weight: &WeightSpec) -> bool {
        let path = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
        let named = match weight.kind {
            Kind::Embedding | Kind::Head => self.glob.starts_with(path),
            Kind::Linear | Kind::Norm => true,
        };
        named && (self.matcher.is_match(path) || self.matcher.is_match(&weight.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    fn scheme(plan: &BitPlan, name: &str) -> Option<Scheme> {
        let mut config = tiny();
        config.tie_word_embeddings = false;
        let all = plan.resolve(&config).unwrap();
        all.into_iter().find(|(w, _)| w.name == name).unwrap().1
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let plan =
            BitPlan::new([("*", "ternary"), ("layers.*.mlp.*", "int4"), ("layers.1.mlp.down_proj", "f32")]).unwrap();
        assert_eq!(scheme(&plan, "layers.0.self_attn.q_proj.weight"), Some(Scheme::Ternary));
        assert_eq!(scheme(&plan, "layers.0.mlp.up_proj.weight"), Some(Scheme::Int4));
        assert_eq!(scheme(&plan, "layers.1.mlp.down_proj.weight"), None);
    }

    #[test]
    fn embedding_head_and_norms_stay_whole_unless_named() {
        let plan = BitPlan::new([("*", "binary")]).unwrap();
        for name in ["embed_tokens.weight", "lm_head.weight", "norm.weight", "layers.0.input_layernorm.weight"] {
            assert_eq!(scheme(&plan, name), None, "{name}");
        }
        let plan = BitPlan::new([("embed_tokens", "int8"), ("lm_head.weight", "int4")]).unwrap();
        assert_eq!(scheme(&plan, "embed_tokens.weight"), Some(Scheme::Int8));
        assert_eq!(scheme(&plan, "lm_head.weight"), Some(Scheme::Int4));
    }

    #[test]
    fn a_rule_that_reaches_nothing_is_an_error() {
        for glob in ["layers.*.mpl.*", "norm", "lm_head"] {
            let plan = BitPlan::new([(glob, "int4")]).unwrap();
            assert!(plan.resolve(&tiny()).is_err(), "{glob}");
        }
        assert!(BitPlan::new([("layers.[", "int4")]).is_err());
        assert!(BitPlan::new([("*", "int5")]).is_err());
    }
}
