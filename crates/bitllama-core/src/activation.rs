//! Low-bit activations, and keys and values: their codes, the one rounding function, and which matrix of a model reads
//! its input how.
//!
//! A row is here the input of a matrix for one token, or the key or value of one head for one position. It has one scale
//! and no zero point. [`round_rows`] is written over [`RowMatrix`], as the rounding of weights is: training calls it on
//! Burn tensors. The kernels compute the same numbers from [`steps`], which a test of theirs compares.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bit_plan::{Glob, ResolvedPlan};
use crate::rule::FULL_PRECISION;
use crate::weights::{Kind, WeightSpec};
use crate::{Error, Quantized, RowMatrix, excerpt};

/// How a row is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activation {
    /// Codes -127 ..= 127, scale = max |x| / 127: the 8-bit activations of BitNet
    /// (<https://arxiv.org/abs/2402.17764>), and per-token quantization in LLM-QAT (<https://arxiv.org/abs/2305.17888>).
    Int8,
    /// Codes -7 ..= 7, scale = max |x| / 7 (LLM-QAT).
    Int4,
    /// -1 or +1, scale = mean |x|: the inputs of XNOR-Net (<https://arxiv.org/abs/1603.05279>). Of 0 the code is +1, and
    /// of what differs from 0 by no more than [`NEAR_ZERO`].
    Sign,
}

impl Activation {
    /// Every kind, from the most bits down.
    pub const ALL: [Activation; 3] = [Activation::Int8, Activation::Int4, Activation::Sign];

    /// The name in recipes and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Int8 => "int8",
            Activation::Int4 => "int4",
            Activation::Sign => "sign",
        }
    }

    /// The largest code.
    pub const fn largest_code(self) -> f32 {
        match self {
            Activation::Int8 => 127.0,
            Activation::Int4 => 7.0,
            Activation::Sign => 1.0,
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
            Error::Activation(format!(
                "unknown kind `{}`, expected one of {names} or `{FULL_PRECISION}`",
                excerpt(name)
            ))
        })
    }
}

/// What stands behind a glob of a recipe's `[activations]`: a kind, or `f32` for no rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationRule(pub Option<Activation>);

impl FromStr for ActivationRule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(Self(if name == FULL_PRECISION { None } else { Some(name.parse()?) }))
    }
}

impl Serialize for ActivationRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.map_or(FULL_PRECISION, Activation::name))
    }
}

impl<'de> Deserialize<'de> for ActivationRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Of a row's mean |x|, how far a number may be below 0 and still count as +1. Products of signs with low-bit weights are
/// sums of a few equal numbers, which often are exactly 0; whether a sum of floats then is a little above or below depends
/// on its order, and the whole model behind the sign would depend on it.
pub const NEAR_ZERO: f32 = 1e-5;

/// `[codes a unit, units a code]` of a row whose largest magnitude is `largest`: a code is the whole number next to
/// `x * steps[0]` (ties to even), and stands for `code * steps[1]`. Of a row of zeros both are 0.
pub fn steps(largest: f32, largest_code: f32) -> [f32; 2] {
    if largest == 0.0 { [0.0; 2] } else { [largest_code / largest, largest / largest_code] }
}

/// Rounds each row of `x`.
pub fn round_rows<M: RowMatrix>(activation: Activation, x: M) -> Quantized<M> {
    let magnitude = x.clone().abs();
    if activation == Activation::Sign {
        let scales = magnitude.row_mean();
        let codes = x.add_rows(scales.clone().scale(NEAR_ZERO)).sign_or_one();
        return Quantized { codes, scales, offsets: None, parts: None };
    }
    let code = activation.largest_code();
    // Codes of a row of zeros are 0, whatever it is divided by.
    let largest = magnitude.row_max().one_where_zero();
    let inverse = largest.clone().scale(0.0).shift(code).div_rows(largest.clone());
    Quantized { codes: x.mul_rows(inverse).round(), scales: largest.divide(code), offsets: None, parts: None }
}

/// How a model reads activations: what a student was trained with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActivationPlan {
    /// Names of weights, such as `layers.0.mlp.up_proj.weight`, whose inputs are rounded, and how.
    pub inputs: BTreeMap<String, Activation>,
    /// How keys (rotated) and values are rounded: `Int8` or `Int4`, a scale for each position and head.
    pub kv_cache: Option<Activation>,
}

impl ActivationPlan {
    /// Whether nothing is rounded.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.kv_cache.is_none()
    }

    /// Compiles rules of glob -> kind, in order of increasing precedence, for the matrices that `weights` rounds; the
    /// globs are those of a [`BitPlan`](crate::BitPlan). A matrix in full precision has its input as it is: no kernel
    /// multiplies it with codes.
    ///
    /// # Errors
    /// [`Error::Activation`] if a glob cannot be read or reaches no low-bit matrix, or for keys and values of one bit.
    pub fn resolve<'a>(
        rules: impl IntoIterator<Item = (&'a str, ActivationRule)>,
        kv_cache: Option<Activation>,
        weights: &ResolvedPlan,
    ) -> Result<Self, Error> {
        if kv_cache == Some(Activation::Sign) {
            return Err(Error::Activation("keys and values are `int8`, `int4` or `f32`, not `sign`".into()));
        }
        // The rows of an embedding that is no head are looked up and multiplied with nothing.
        let tied = !weights.iter().any(|(weight, _)| weight.kind == Kind::Head);
        let multiplied = |weight: &WeightSpec| tied || weight.kind != Kind::Embedding;
        let mut inputs = BTreeMap::new();
        for (text, rule) in rules {
            let glob = Glob::new(text).map_err(Error::Activation)?;
            let low_bit = weights.iter().filter(|(weight, quantizer)| quantizer.is_some() && multiplied(weight));
            let reached: Vec<_> = low_bit.filter(|(weight, _)| glob.applies_to(weight)).collect();
            if reached.is_empty() {
                let message = format!("`{}` matches no matrix of the model that `[bits]` rounds", excerpt(text));
                return Err(Error::Activation(message));
            }
            for (weight, _) in reached {
                match rule.0 {
                    Some(activation) => drop(inputs.insert(weight.name.clone(), activation)),
                    None => drop(inputs.remove(&weight.name)),
                }
            }
        }
        Ok(Self { inputs, kv_cache })
    }
}

impl fmt::Display for ActivationPlan {
    /// `int8 into 28 matrices, keys and values in int4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for kind in Activation::ALL {
            let matrices = self.inputs.values().filter(|input| **input == kind).count();
            if matrices > 0 {
                parts.push(format!("{kind} into {matrices} matrices"));
            }
        }
        parts.extend(self.kv_cache.map(|kind| format!("keys and values in {kind}")));
        if parts.is_empty() { f.write_str(FULL_PRECISION) } else { f.write_str(&parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::{BitPlan, DenseMatrix, Scheme};

    fn rounded(activation: Activation, data: &[f32], columns: usize) -> (Vec<f32>, Vec<f32>) {
        let q = round_rows(activation, DenseMatrix { data: data.to_vec(), columns });
        (q.codes.data.clone(), q.dequantize().data)
    }

    #[test]
    fn rows_by_hand() {
        let (codes, values) = rounded(Activation::Int4, &[-7.0, 1.4, 0.5, 3.5, 0.0, 0.0, 0.0, 0.0], 4);
        assert_eq!(codes, [-7.0, 1.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(values, codes);
        let (codes, values) = rounded(Activation::Int8, &[254.0, -3.0, 1.0, 5.0], 4);
        assert_eq!((codes, values), (vec![127.0, -2.0, 0.0, 2.0], vec![254.0, -4.0, 0.0, 4.0]));
        let (codes, values) = rounded(Activation::Sign, &[0.0, -3.0, 1.0, 4.0], 4);
        assert_eq!((codes, values), (vec![1.0, -1.0, 1.0, 1.0], vec![2.0, -2.0, 2.0, 2.0]));
        assert_eq!(rounded(Activation::Sign, &[-1e-5, -1e-4, 1.0, 4.0], 4).0, [1.0, -1.0, 1.0, 1.0]);
    }

    #[test]
    fn steps_are_those_of_the_rows() {
        let row: Vec<f32> = (0..97).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.173).collect();
        let largest = row.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        for activation in [Activation::Int8, Activation::Int4] {
            let [inverse, scale] = steps(largest, activation.largest_code());
            let q = round_rows(activation, DenseMatrix { data: row.clone(), columns: row.len() });
            let codes: Vec<f32> = row.iter().map(|x| (x * inverse).round_ties_even()).collect();
            assert_eq!((q.codes.data, q.scales.data[0]), (codes, scale));
        }
        assert_eq!(steps(0.0, 127.0), [0.0, 0.0]);
    }

    fn plan(rules: &[(&str, &str)], kv_cache: Option<Activation>) -> Result<ActivationPlan, Error> {
        let bits = BitPlan::new([("layers.*", Scheme::Ternary.name().parse()?), ("layers.1.*", "f32".parse()?)])?;
        let rules = rules.iter().map(|(glob, rule)| Ok((*glob, rule.parse()?))).collect::<Result<Vec<_>, Error>>()?;
        ActivationPlan::resolve(rules, kv_cache, &bits.resolve(&tiny())?)
    }

    #[test]
    fn the_last_rule_decides_and_full_precision_stays() {
        let found = plan(&[("layers.*", "int8"), ("*.down_proj", "f32"), ("*q_proj", "sign")], None).unwrap();
        assert_eq!(found.inputs.len(), 6);
        assert_eq!(found.inputs["layers.0.self_attn.q_proj.weight"], Activation::Sign);
        assert_eq!(found.inputs["layers.0.mlp.up_proj.weight"], Activation::Int8);
        assert_eq!(found.to_string(), "int8 into 5 matrices, sign into 1 matrices");
    }

    #[test]
    fn what_reaches_nothing_is_an_error() {
        for rules in [("layers.1.*", "int8"), ("embed_tokens", "int8"), ("layers.[", "int8"), ("*", "int5")] {
            assert!(plan(&[rules], None).is_err(), "{rules:?}");
        }
        assert!(plan(&[], Some(Activation::Sign)).unwrap_err().to_string().contains("`int4`"));
        assert!(plan(&[], Some(Activation::Int4)).is_ok_and(|plan| !plan.is_empty()));
    }
}
