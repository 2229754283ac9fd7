//! A bit plan says which weight is rounded by which quantizer, by globs over parameter paths.

use globset::{GlobBuilder, GlobMatcher};

use crate::weights::{Kind, WeightSpec, specs};
use crate::{Error, ModelConfig, Quantizer, Rule, excerpt};

/// The weights of a model, each with its quantizer or `None` for full precision.
pub type ResolvedPlan = Vec<(WeightSpec, Option<Quantizer>)>;

/// Rules in order; the last one that matches a weight decides.
///
/// A glob is matched against the path with and without its final `.weight`; `*` also crosses dots. Embedding, norms
/// and head stay in full precision unless a rule names them, that is, unless the glob without wildcards' help begins
/// with their name (`embed_tokens*`, `lm_head`), or it is a [mix](crate::mixes), which has a type for each of them; norms are
/// vectors and can never be quantized.
#[derive(Debug, Clone)]
pub struct BitPlan {
    rules: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    glob: Glob,
    rule: Rule,
}

/// A pattern of parameter paths, as [`BitPlan`] matches them.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    text: String,
    matcher: GlobMatcher,
}

impl BitPlan {
    /// Compiles rules of glob → quantizer, in order of increasing precedence.
    ///
    /// # Errors
    /// [`Error::BitPlan`] for a glob that cannot be read.
    pub fn new<'a>(rules: impl IntoIterator<Item = (&'a str, Rule)>) -> Result<Self, Error> {
        let rules =
            rules.into_iter().map(|(glob, rule)| Ok(Line { glob: Glob::new(glob).map_err(Error::BitPlan)?, rule }));
        Ok(Self { rules: rules.collect::<Result<_, Error>>()? })
    }

    /// One quantizer for every linear layer of the blocks.
    pub fn uniform(quantizer: impl Into<Quantizer>) -> Self {
        let rule = Rule::Quantizer(quantizer.into());
        Self::new([("layers.*", rule)]).unwrap_or_else(|_| Self { rules: Vec::new() })
    }

    /// The quantizer of one weight of a model, or `None` for full precision.
    pub fn quantizer_of(&self, config: &ModelConfig, weight: &WeightSpec) -> Option<Quantizer> {
        self.rule_of(weight)?.quantizer(config, weight)
    }

    /// The last rule that matches a matrix.
    fn rule_of(&self, weight: &WeightSpec) -> Option<Rule> {
        let matrix = !weight.kind.is_vector();
        self.rules.iter().rev().find(|line| matrix && line.applies_to(weight)).map(|line| line.rule)
    }

    /// Matrices that do not get the grid of the target that a rule names for them, a line for each shape: which grid they get, or
    /// that they stay in full precision.
    pub fn remarks(&self, config: &ModelConfig) -> Vec<String> {
        let mut remarks: Vec<String> = Vec::new();
        for weight in specs(config) {
            let (Some(Rule::Target(target, method)), &[rows, columns]) = (self.rule_of(&weight), &weight.shape[..])
            else {
                continue;
            };
            let target = target.chosen(config, &weight);
            let own = target.quantizers[0];
            let why = format!("rows of {columns} columns are no whole blocks of {}", own.block_len([rows, columns]));
            let remark = match target.quantizer(method, [rows, columns]) {
                Some(quantizer) if quantizer.scheme == own.scheme && quantizer.granularity == own.granularity => {
                    continue;
                }
                Some(quantizer) => format!("{}: {why}; matrices such as {} take {quantizer}", target.name, weight.name),
                None => format!("{}: {why}; matrices such as {} stay in full precision", target.name, weight.name),
            };
            let same = |other: &String| other.split(';').next() == remark.split(';').next();
            if !remarks.iter().any(same) {
                remarks.push(remark);
            }
        }
        remarks
    }

    /// The weights of a model with their quantizers, in the order of [`specs`].
    ///
    /// # Errors
    /// [`Error::BitPlan`] if a rule reaches no weight at all (a misspelt glob must not pass in silence), or one that its
    /// groups do not divide.
    pub fn resolve(&self, config: &ModelConfig) -> Result<ResolvedPlan, Error> {
        let weights = specs(config);
        for rule in &self.rules {
            let reached = weights.iter().filter(|w| !w.kind.is_vector()).any(|w| rule.applies_to(w));
            if !reached {
                return Err(Error::BitPlan(format!(
                    "`{}` matches no matrix of the model; paths look like `layers.0.mlp.gate_proj` or `embed_tokens`",
                    excerpt(&rule.glob.text)
                )));
            }
        }
        let resolved = weights.into_iter().map(|weight| {
            let quantizer = self.quantizer_of(config, &weight);
            if let (Some(quantizer), [rows, columns]) = (quantizer, &weight.shape[..]) {
                let fits = quantizer.check_shape([*rows, *columns]);
                fits.map_err(|e| Error::BitPlan(format!("{}: {e}", weight.name)))?;
            }
            Ok((weight, quantizer))
        });
        resolved.collect()
    }
}

impl Line {
    fn applies_to(&self, weight: &WeightSpec) -> bool {
        match self.rule {
            Rule::Target(target, _) if target.mix.is_some() => self.glob.matches(weight),
            _ => self.glob.applies_to(weight),
        }
    }
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// The fault of a pattern that cannot be read.
    pub fn new(text: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(text).literal_separator(false).build();
        let matcher = glob.map_err(|e| format!("glob `{}`: {}", excerpt(text), e.kind()))?.compile_matcher();
        Ok(Self { text: text.to_string(), matcher })
    }

    /// Whether it reaches a weight.
    pub fn applies_to(&self, weight: &WeightSpec) -> bool {
        let named = match weight.kind {
            Kind::Embedding | Kind::Head => self.text.starts_with(path_of(weight)),
            Kind::Linear | Kind::Norm | Kind::Bias => true,
        };
        named && self.matches(weight)
    }

    /// Whether it matches the path of a weight, named or not.
    fn matches(&self, weight: &WeightSpec) -> bool {
        self.matcher.is_match(path_of(weight)) || self.matcher.is_match(&weight.name)
    }
}

/// The path of a weight's parameter, without its final `.weight`.
fn path_of(weight: &WeightSpec) -> &str {
    weight.name.strip_suffix(".weight").unwrap_or(&weight.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::{Granularity, Scheme};

    fn plan(rules: &[(&str, &str)]) -> Result<BitPlan, Error> {
        let rules = rules.iter().map(|(glob, rule)| Ok((*glob, rule.parse()?)));
        BitPlan::new(rules.collect::<Result<Vec<_>, Error>>()?)
    }

    fn scheme(plan: &BitPlan, name: &str) -> Option<Scheme> {
        let mut config = tiny();
        config.tie_word_embeddings = false;
        let all = plan.resolve(&config).unwrap();
        all.into_iter().find(|(w, _)| w.name == name).unwrap().1.map(|quantizer| quantizer.scheme)
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let plan = plan(&[("*", "ternary"), ("layers.*.mlp.*", "int4"), ("layers.1.mlp.down_proj", "f32")]).unwrap();
        assert_eq!(scheme(&plan, "layers.0.self_attn.q_proj.weight"), Some(Scheme::Ternary));
        assert_eq!(scheme(&plan, "layers.0.mlp.up_proj.weight"), Some(Scheme::Int4));
        assert_eq!(scheme(&plan, "layers.1.mlp.down_proj.weight"), None);
    }

    #[test]
    fn embedding_head_and_norms_stay_whole_unless_named() {
        let all = plan(&[("*", "binary")]).unwrap();
        for name in ["embed_tokens.weight", "lm_head.weight", "norm.weight", "layers.0.input_layernorm.weight"] {
            assert_eq!(scheme(&all, name), None, "{name}");
        }
        let plan = plan(&[("embed_tokens", "int8"), ("lm_head.weight", "int4")]).unwrap();
        assert_eq!(scheme(&plan, "embed_tokens.weight"), Some(Scheme::Int8));
        assert_eq!(scheme(&plan, "lm_head.weight"), Some(Scheme::Int4));
    }

    #[test]
    fn a_mix_is_a_plan_for_all_matrices() {
        let mut config = ModelConfig { hidden_size: 256, intermediate_size: 512, ..tiny() };
        config.tie_word_embeddings = false;
        let mix = plan(&[("*", "gguf:q4_k_m"), ("layers.1.*", "gguf:q8_0")]).unwrap().resolve(&config).unwrap();
        let of =
            |name: &str| mix.iter().find(|(spec, _)| spec.name == name).unwrap().1.map(|quantizer| quantizer.scheme);
        assert_eq!(of("embed_tokens.weight"), Some(Scheme::Int4));
        assert_eq!(of("lm_head.weight"), Some(Scheme::Int6));
        assert_eq!(of("layers.0.mlp.up_proj.weight"), Some(Scheme::Int4));
        assert_eq!(of("layers.1.mlp.up_proj.weight"), Some(Scheme::Int8));
    }

    #[test]
    fn targets_say_which_matrices_they_do_not_fit() {
        let config = ModelConfig { hidden_size: 64, intermediate_size: 24, ..tiny() };
        let plan = plan(&[("layers.*", "gguf:q1_0"), ("embed_tokens", "gguf:q4_0")]).unwrap();
        let remarks = plan.remarks(&config);
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        assert!(
            remarks[0]
                .starts_with("gguf:q1_0: rows of 64 columns are no whole blocks of 128; matrices such as layers.0.")
        );
        assert!(remarks[0].contains("take int2 minmax groups of 64, f16 scales"), "{remarks:?}");
        assert!(remarks.last().unwrap().contains("mlp.down_proj.weight stay in full precision"), "{remarks:?}");
        let down =
            plan.resolve(&config).unwrap().into_iter().find(|(spec, _)| spec.name.contains("down_proj")).unwrap();
        assert_eq!(down.1, None);
    }

    #[test]
    fn what_cannot_be_applied_is_an_error() {
        for glob in ["layers.*.mpl.*", "norm", "lm_head"] {
            let plan = plan(&[(glob, "int4")]).unwrap();
            assert!(plan.resolve(&tiny()).is_err(), "{glob}");
        }
        assert!(plan(&[("layers.[", "int4")]).is_err());
        assert!(plan(&[("*", "int7")]).is_err());
        let groups = Quantizer::from(Scheme::Int4).with_granularity(Granularity::Group(32));
        let error = BitPlan::uniform(groups).resolve(&tiny()).unwrap_err().to_string();
        assert!(error.contains("layers.0.self_attn.q_proj.weight") && error.contains("groups of 32"), "{error}");
    }
}
