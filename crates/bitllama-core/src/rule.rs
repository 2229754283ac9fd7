//! A rule of a bit plan: full precision, a quantizer, or a format of another program.
//!
//! In recipes a rule is a name or a table:
//!
//! ```toml
//! [bits]
//! "layers.*" = { scheme = "int2", method = "lsq", group_size = 64 }
//! "layers.0.*" = { scheme = "int4", group_size = 32, scale_dtype = "f16" }
//! "layers.1.*" = { scheme = "nf4", double_quant = true }
//! "layers.2.*" = "int4"
//! "layers.3.*" = "gguf:q4_0"
//! "layers.4.*" = { scheme = "gguf:q2_0", method = "lsq" }
//! lm_head = "f32"
//! ```

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::quantizer::Offset;
use crate::targets::{self, Target};
use crate::weights::WeightSpec;
use crate::{Error, Granularity, Method, ModelConfig, Quantizer, ScaleFormat, Scheme, scheme};

/// The value of a glob in a bit plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Full precision.
    Full,
    /// One quantizer.
    Quantizer(Quantizer),
    /// The grid of a format of another program, with a method.
    Target(&'static Target, Method),
}

/// The word that keeps a weight in full precision.
pub const FULL_PRECISION: &str = "f32";

impl From<Option<Quantizer>> for Rule {
    fn from(quantizer: Option<Quantizer>) -> Self {
        quantizer.map_or(Rule::Full, Rule::Quantizer)
    }
}

impl From<&'static Target> for Rule {
    fn from(target: &'static Target) -> Self {
        Rule::Target(target, target.quantizers[0].method)
    }
}

impl Rule {
    /// The quantizer of a matrix of a model; `None` for full precision, which a target also leaves to matrices that it does not fit.
    pub fn quantizer(self, config: &ModelConfig, weight: &WeightSpec) -> Option<Quantizer> {
        let &[rows, columns] = &weight.shape[..] else { return None };
        match self {
            Rule::Full => None,
            Rule::Quantizer(quantizer) => Some(quantizer),
            Rule::Target(target, method) => target.chosen(config, weight).quantizer(method, [rows, columns]),
        }
    }

    /// The rule with its quantizer changed. Grids of other programs stay as they are.
    pub fn map(self, change: impl FnOnce(Quantizer) -> Quantizer) -> Self {
        match self {
            Rule::Quantizer(quantizer) => Rule::Quantizer(change(quantizer)),
            other => other,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Full => f.write_str(FULL_PRECISION),
            Rule::Quantizer(quantizer) => quantizer.fmt(f),
            Rule::Target(target, method) => write!(f, "{} {}", target.name, method.name()),
        }
    }
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(match name.parse()? {
            Name::Full => Rule::Full,
            Name::Scheme(scheme) => Rule::Quantizer(scheme.into()),
            Name::Target(target) => target.into(),
        })
    }
}

/// A name that a rule can have.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
enum Name {
    Full,
    Scheme(Scheme),
    Target(&'static Target),
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match (name, Target::named(name)) {
            (FULL_PRECISION, _) => Ok(Name::Full),
            (_, Some(target)) => Ok(Name::Target(target)),
            _ if name.contains(':') => Err(Error::UnknownTarget { name: name.into() }),
            _ => name.parse().map(Name::Scheme),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    scheme: Name,
    method: Option<Method>,
    granularity: Option<Word>,
    group_size: Option<usize>,
    #[serde(default)]
    zero_point: bool,
    scale_dtype: Option<ScaleFormat>,
    #[serde(default)]
    double_quant: bool,
}

/// A table as it is written: what differs from the scheme's defaults.
#[derive(Serialize)]
struct Written {
    scheme: &'static str,
    method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    granularity: Option<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_size: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    zero_point: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale_dtype: Option<ScaleFormat>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    double_quant: bool,
}

/// Granularities without a number.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Tensor,
    Row,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match *self {
            Rule::Full => return serializer.serialize_str(FULL_PRECISION),
            Rule::Target(target, _) if *self == Rule::from(target) => return serializer.serialize_str(target.name),
            Rule::Quantizer(quantizer) if quantizer == Quantizer::from(quantizer.scheme) => {
                return serializer.serialize_str(quantizer.scheme.name());
            }
            Rule::Target(target, method) => Written {
                scheme: target.name,
                method,
                granularity: None,
                group_size: None,
                zero_point: false,
                scale_dtype: None,
                double_quant: false,
            },
            Rule::Quantizer(Quantizer { scheme, method, granularity, offset, scales }) => {
                let zero_point = offset == Offset::ZeroPoint;
                let (granularity, group_size) = match granularity {
                    plain if plain == Quantizer::from(scheme).granularity => (None, None),
                    Granularity::Row => (Some(Word::Row), None),
                    Granularity::Tensor => (Some(Word::Tensor), None),
                    Granularity::Group(size) => (None, Some(size)),
                };
                let scale_dtype = (scales == ScaleFormat::F16).then_some(scales);
                let double_quant = scales == ScaleFormat::Double;
                Written {
                    scheme: scheme.name(),
                    method,
                    granularity,
                    group_size,
                    zero_point,
                    scale_dtype,
                    double_quant,
                }
            }
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RuleVisitor)
    }
}

struct RuleVisitor;

impl<'de> Visitor<'de> for RuleVisitor {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scheme, `f32`, or a table like { scheme = \"int4\", group_size = 64 }")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Rule, E> {
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rule, A::Error> {
        Table::deserialize(MapAccessDeserializer::new(map))?.rule().map_err(serde::de::Error::custom)
    }
}

impl Table {
    fn rule(self) -> Result<Rule, Error> {
        let invalid = |message: String| Err(Error::Quantizer(message));
        let scheme = match self.scheme {
            Name::Scheme(scheme) => scheme,
            Name::Target(target) => return self.target(target),
            Name::Full => return invalid("`f32` has no table; write \"f32\"".into()),
        };
        let plain = Quantizer::from(scheme);
        let granularity = match (self.granularity, self.group_size) {
            (None, None) => plain.granularity,
            (Some(Word::Row), None) => Granularity::Row,
            (Some(Word::Tensor), None) => Granularity::Tensor,
            (None, Some(size)) => Granularity::Group(size),
            (Some(_), Some(_)) => return invalid("`granularity` and `group_size` exclude each other".into()),
        };
        let method = self.method.unwrap_or(plain.method);
        let scales = match (self.scale_dtype, self.double_quant) {
            (None, true) => ScaleFormat::Double,
            (scales, false) => scales.unwrap_or_default(),
            (Some(_), true) => return invalid("`scale_dtype` and `double_quant` exclude each other".into()),
        };
        let offset = if self.zero_point { Offset::ZeroPoint } else { Offset::None };
        let quantizer = Quantizer { method, granularity, offset, scales, ..plain };
        quantizer.check()?;
        Ok(Rule::Quantizer(quantizer))
    }

    fn target(self, target: &'static Target) -> Result<Rule, Error> {
        let given = [
            ("granularity", self.granularity.is_some()),
            ("group_size", self.group_size.is_some()),
            ("zero_point", self.zero_point),
            ("scale_dtype", self.scale_dtype.is_some()),
            ("double_quant", self.double_quant),
        ];
        if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(Error::Quantizer(format!("`{}` decides `{key}` itself; leave that out", target.name)));
        }
        let plain = target.quantizers[0];
        let quantizer = plain.with_method(self.method.unwrap_or(plain.method));
        quantizer.check()?;
        Ok(Rule::Target(target, quantizer.method))
    }
}

/// Names of schemes and targets, for help and error messages.
pub fn names() -> String {
    format!("{}, {}", scheme::names(), targets::names())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::quantizer::tests::all;
    use crate::weights::Kind;

    #[test]
    fn rules_read_back() {
        for quantizer in all() {
            let json = serde_json::to_string(&Rule::Quantizer(quantizer)).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), Rule::Quantizer(quantizer), "{json}");
        }
        assert_eq!(serde_json::to_string(&Rule::Quantizer(Scheme::Int4.into())).unwrap(), "\"int4\"");
        assert_eq!(serde_json::from_str::<Rule>("\"f32\"").unwrap(), Rule::Full);
        let read = |json: &str| match serde_json::from_str::<Rule>(json).unwrap() {
            Rule::Quantizer(quantizer) => quantizer,
            other => panic!("{other}"),
        };
        let nf4 = read("\"nf4\"");
        assert_eq!(nf4, read(r#"{"scheme":"nf4","method":"absmax","group_size":64}"#));
        assert_eq!((nf4.method, nf4.granularity), (Method::Minmax, Granularity::Group(64)));
        assert_eq!(read(r#"{"scheme":"nf4","granularity":"row"}"#).granularity, Granularity::Row);
        assert_eq!(read(r#"{"scheme":"nf4","double_quant":true}"#), nf4.with_scales(ScaleFormat::Double));
        assert_eq!(read(r#"{"scheme":"nf4","scale_dtype":"f16"}"#), nf4.with_scales(ScaleFormat::F16));
    }

    #[test]
    fn targets_read_back_with_their_methods() {
        for target in &targets::ALL {
            for method in target.quantizers[0].scheme.description().methods {
                let rule = Rule::Target(target, *method);
                let json = serde_json::to_string(&rule).unwrap();
                assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule, "{json}");
            }
        }
        assert_eq!(serde_json::to_string(&"gguf:q4_0".parse::<Rule>().unwrap()).unwrap(), "\"gguf:q4_0\"");
        let weight = WeightSpec { name: "embed_tokens.weight".into(), shape: vec![8, 64], kind: Kind::Embedding };
        let q4_0 = "gguf:q4_0".parse::<Rule>().unwrap().quantizer(&tiny(), &weight).unwrap();
        assert_eq!(q4_0.to_string(), "int4 minmax groups of 32, f16 scales");
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_what_would() {
        let error = |json: &str| serde_json::from_str::<Rule>(json).unwrap_err().to_string();
        assert!(
            error(r#"{"scheme":"int4","method":"twn"}"#)
                .contains("`int4` does not support method `twn`; use one of `minmax`, `lsq`")
        );
        assert!(error(r#"{"scheme":"int4","group_size":48}"#).contains("group_size = 48 is no multiple of 32"));
        assert!(error(r#"{"scheme":"ternary","zero_point":true}"#).contains("no zero_point"));
        assert!(error(r#"{"scheme":"nf4","zero_point":true}"#).contains("no zero_point"));
        assert!(error(r#"{"scheme":"int4","group":32}"#).contains("unknown field `group`"));
        assert!(error(r#"{"scheme":"int4","granularity":"row","group_size":32}"#).contains("exclude"));
        assert!(error(r#"{"scheme":"nf4","scale_dtype":"f16","double_quant":true}"#).contains("exclude"));
        assert!(error(r#"{"scheme":"int4","double_quant":true}"#).contains("double_quant needs a group_size"));
        assert!(error(r#"{"scheme":"int4","scale_dtype":"bf16"}"#).contains("expected `f32` or `f16`"));
        assert!(error("\"int7\"").contains("unknown scheme `int7`"));
        assert!(error("\"gguf:q9_0\"").contains("unknown target `gguf:q9_0`, expected one of gguf:q1_0, "));
        assert!(
            error(r#"{"scheme":"gguf:q4_0","group_size":64}"#)
                .contains("`gguf:q4_0` decides `group_size` itself; leave that out")
        );
        assert!(error(r#"{"scheme":"gguf:q4_0","method":"twn"}"#).contains("does not support method `twn`"));
        assert!(error("4").contains("a scheme, `f32`, or a table"));
    }
}
