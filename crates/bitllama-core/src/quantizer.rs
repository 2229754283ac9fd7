//! A quantizer: the number format, where its scales come from, and which weights share one.
//!
//! In recipes a quantizer is the name of a scheme, or a table:
//!
//! ```toml
//! [bits]
//! "layers.*" = { scheme = "int2", method = "lsq", group_size = 64 }
//! "layers.0.*" = { scheme = "int4", group_size = 32, scale_dtype = "f16" }
//! "layers.1.*" = { scheme = "nf4", double_quant = true }
//! "layers.2.*" = "int4"
//! lm_head = "f32"
//! ```

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::panel::COLUMN_UNIT;
use crate::{Error, ScaleFormat, Scheme};

/// Where the scales of a quantizer come from, and with them its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Mean of |w|, anew in every step. `binary`: XNOR-Net (<https://arxiv.org/abs/1603.05279>); `ternary`: BitNet b1.58
    /// (<https://arxiv.org/abs/2402.17764>).
    Absmean,
    /// Ternary weight networks (<https://arxiv.org/abs/1605.04711>), with the threshold at half the mean of |w|: below it
    /// a weight is 0, and the scale is the mean of |w| of the others.
    Twn,
    /// From the largest |w|, or from the smallest and the largest weight where there are zero points, anew in every step
    /// (torchao's `MappingType.SYMMETRIC` and `ASYMMETRIC`; of `nf4`, bitsandbytes' absmax).
    #[serde(alias = "absmax")]
    Minmax,
    /// A scale that is trained; weights pass their gradient straight through.
    Learned,
    /// Elastic binarization: a scale that is trained; weights beyond it get no gradient (ParetoQ,
    /// <https://arxiv.org/abs/2502.02631>, after BiT, <https://arxiv.org/abs/2205.13016>).
    Elastic,
    /// Learned step size quantization (<https://arxiv.org/abs/1902.08153>).
    Lsq,
    /// Stretched elastic quantization: levels evenly spread over -alpha to alpha, alpha is trained (ParetoQ).
    Seq,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of a matrix.
    Tensor,
    /// Those of an output row.
    Row,
    /// So many neighbours of a row.
    Group(usize),
}

/// A number format with its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantizer {
    /// The codes.
    pub scheme: Scheme,
    /// Where scales come from.
    pub method: Method,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Whether each scale has a zero point beside it (asymmetric quantization).
    pub zero_point: bool,
    /// Which numbers scales can be.
    pub scales: ScaleFormat,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 7] =
        [Method::Absmean, Method::Twn, Method::Minmax, Method::Learned, Method::Elastic, Method::Lsq, Method::Seq];

    /// The name in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Absmean => "absmean",
            Method::Twn => "twn",
            Method::Minmax => "minmax",
            Method::Learned => "learned",
            Method::Elastic => "elastic",
            Method::Lsq => "lsq",
            Method::Seq => "seq",
        }
    }

    /// Whether scales are parameters of the training.
    pub const fn trains_scales(self) -> bool {
        matches!(self, Method::Learned | Method::Elastic | Method::Lsq | Method::Seq)
    }

    /// Whether the method is defined for `scheme`.
    pub const fn takes(self, scheme: Scheme) -> bool {
        match self {
            Method::Absmean => matches!(scheme, Scheme::Binary | Scheme::Ternary),
            Method::Twn => matches!(scheme, Scheme::Ternary),
            Method::Minmax => !matches!(scheme, Scheme::Binary | Scheme::Ternary),
            Method::Learned | Method::Elastic => matches!(scheme, Scheme::Binary),
            Method::Lsq => !matches!(scheme, Scheme::Binary | Scheme::Seq2),
            Method::Seq => matches!(scheme, Scheme::Ternary | Scheme::Seq2),
        }
    }
}

impl From<Scheme> for Quantizer {
    /// The plainest method of a scheme, one f32 scale a row; of `nf4` one for each 64 columns, as QLoRA has them.
    fn from(scheme: Scheme) -> Self {
        let method = if Method::Absmean.takes(scheme) { Method::Absmean } else { Method::Minmax };
        let granularity = if scheme == Scheme::Nf4 { Granularity::Group(64) } else { Granularity::Row };
        Self { scheme, method, granularity, zero_point: false, scales: ScaleFormat::F32 }
    }
}

impl Quantizer {
    /// This quantizer with another method.
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// This quantizer with other groups.
    pub fn with_granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// This quantizer with zero points.
    pub fn with_zero_point(self) -> Self {
        Self { zero_point: true, ..self }
    }

    /// This quantizer with scales in another format.
    pub fn with_scales(self, scales: ScaleFormat) -> Self {
        Self { scales, ..self }
    }

    /// Checks that the parts go together.
    ///
    /// # Errors
    /// [`Error::Quantizer`] for a method that the scheme has not, groups of a size that cannot be packed, zero points of a
    /// scheme without, or double quantization of scales that are few or have zero points.
    pub fn check(&self) -> Result<(), Error> {
        let Self { scheme, method, granularity, zero_point, scales } = *self;
        if !method.takes(scheme) {
            let takes = Method::ALL.into_iter().filter(|method| method.takes(scheme));
            let takes: Vec<String> = takes.map(|method| format!("`{}`", method.name())).collect();
            let message = format!("`{scheme}` has no method `{}`, but {}", method.name(), takes.join(", "));
            return Err(Error::Quantizer(message));
        }
        if let Granularity::Group(size) = granularity
            && (size == 0 || !size.is_multiple_of(COLUMN_UNIT))
        {
            return Err(Error::Quantizer(format!("group_size = {size} is no multiple of {COLUMN_UNIT}")));
        }
        if zero_point && !(scheme.has_zero_points() && matches!(method, Method::Minmax | Method::Lsq)) {
            let message = format!("`{scheme}` with `{}` has no zero_point", method.name());
            return Err(Error::Quantizer(message));
        }
        if scales == ScaleFormat::Double && (zero_point || !matches!(granularity, Granularity::Group(_))) {
            return Err(Error::Quantizer("double_quant needs a group_size and excludes zero_point".into()));
        }
        Ok(())
    }

    /// Checks that the quantizer fits a matrix `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Quantizer`] if the columns are no whole number of groups.
    pub fn check_shape(&self, [rows, columns]: [usize; 2]) -> Result<(), Error> {
        match self.granularity {
            Granularity::Group(size) if !columns.is_multiple_of(size) => {
                Err(Error::Quantizer(format!("a matrix of {rows} x {columns} has no whole groups of {size} columns")))
            }
            _ => Ok(()),
        }
    }

    /// This quantizer, or the same with one scale a row where its groups do not fit a matrix `[rows, columns]`.
    pub fn fitting(self, shape: [usize; 2]) -> Self {
        if self.check_shape(shape).is_ok() { self } else { self.with_granularity(Granularity::Row) }
    }

    /// Weights of a matrix `[rows, columns]` that share a scale.
    pub fn group_len(&self, [rows, columns]: [usize; 2]) -> usize {
        match self.granularity {
            Granularity::Tensor => rows * columns,
            Granularity::Row => columns,
            Granularity::Group(size) => size,
        }
    }

    /// One number for each of the weights that share a scale, as the numbers of a packed matrix, `[rows, groups]`.
    pub fn per_row<T: Copy>(&self, numbers: Vec<T>, rows: usize) -> Vec<T> {
        match self.granularity {
            Granularity::Tensor => numbers.iter().copied().cycle().take(rows).collect(),
            Granularity::Row | Granularity::Group(_) => numbers,
        }
    }

    /// Scales that a file holds of a row of so many columns: one where all of a row or of the matrix share it.
    pub fn scales_a_row(&self, columns: usize) -> usize {
        match self.granularity {
            Granularity::Tensor | Granularity::Row => 1,
            Granularity::Group(size) => columns.div_ceil(size),
        }
    }
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scheme, self.method.name())?;
        match self.granularity {
            Granularity::Tensor => write!(f, " per tensor")?,
            Granularity::Row => {}
            Granularity::Group(size) => write!(f, " groups of {size}")?,
        }
        if self.zero_point {
            write!(f, " with zero points")?;
        }
        match self.scales {
            ScaleFormat::F32 => Ok(()),
            ScaleFormat::F16 => write!(f, ", f16 scales"),
            ScaleFormat::Double => write!(f, ", double quantization"),
        }
    }
}

impl FromStr for Quantizer {
    type Err = Error;

    fn from_str(scheme: &str) -> Result<Self, Error> {
        Ok(Self::from(scheme.parse::<Scheme>()?))
    }
}

/// What stands behind a glob of a bit plan: a quantizer, or `f32` for full precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule(pub Option<Quantizer>);

/// The word that keeps a weight in full precision.
pub const FULL_PRECISION: &str = "f32";

impl FromStr for Rule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(Self(if name == FULL_PRECISION { None } else { Some(name.parse()?) }))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    scheme: Scheme,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<Method>,
    #[serde(skip_serializing_if = "Option::is_none")]
    granularity: Option<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_size: Option<usize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    zero_point: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale_dtype: Option<ScaleFormat>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    double_quant: bool,
}

/// Granularities without a number.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Tensor,
    Row,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(quantizer) = self.0 else { return serializer.serialize_str(FULL_PRECISION) };
        if quantizer == Quantizer::from(quantizer.scheme) {
            return quantizer.scheme.serialize(serializer);
        }
        let Quantizer { scheme, method, granularity, zero_point, scales } = quantizer;
        let (granularity, group_size) = match granularity {
            plain if plain == Quantizer::from(scheme).granularity => (None, None),
            Granularity::Row => (Some(Word::Row), None),
            Granularity::Tensor => (Some(Word::Tensor), None),
            Granularity::Group(size) => (None, Some(size)),
        };
        let (scale_dtype, double_quant) = match scales {
            ScaleFormat::F32 => (None, false),
            ScaleFormat::F16 => (Some(scales), false),
            ScaleFormat::Double => (None, true),
        };
        let method = Some(method);
        Table { scheme, method, granularity, group_size, zero_point, scale_dtype, double_quant }.serialize(serializer)
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
        use serde::de::Error as _;

        let table = Table::deserialize(MapAccessDeserializer::new(map))?;
        let plain = Quantizer::from(table.scheme);
        let granularity = match (table.granularity, table.group_size) {
            (None, None) => plain.granularity,
            (Some(Word::Row), None) => Granularity::Row,
            (Some(Word::Tensor), None) => Granularity::Tensor,
            (None, Some(size)) => Granularity::Group(size),
            (Some(_), Some(_)) => return Err(A::Error::custom("`granularity` and `group_size` exclude each other")),
        };
        let method = table.method.unwrap_or(plain.method);
        let scales = match (table.scale_dtype, table.double_quant) {
            (None, true) => ScaleFormat::Double,
            (scales, false) => scales.unwrap_or_default(),
            (Some(_), true) => return Err(A::Error::custom("`scale_dtype` and `double_quant` exclude each other")),
        };
        let quantizer = Quantizer { method, granularity, zero_point: table.zero_point, scales, ..plain };
        quantizer.check().map_err(A::Error::custom)?;
        Ok(Rule(Some(quantizer)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every quantizer that passes its check, with two sizes of groups.
    pub(crate) fn all() -> Vec<Quantizer> {
        let granularities = [Granularity::Tensor, Granularity::Row, Granularity::Group(32), Granularity::Group(64)];
        let mut all = Vec::new();
        for scheme in Scheme::ALL {
            for method in Method::ALL {
                for granularity in granularities {
                    for zero_point in [false, true] {
                        for scales in [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Double] {
                            all.push(Quantizer { scheme, method, granularity, zero_point, scales });
                        }
                    }
                }
            }
        }
        all.retain(|quantizer| quantizer.check().is_ok());
        all
    }

    #[test]
    fn rules_read_back() {
        for quantizer in all() {
            let json = serde_json::to_string(&Rule(Some(quantizer))).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&json).unwrap().0, Some(quantizer), "{json}");
        }
        assert_eq!(serde_json::to_string(&Rule(Some(Scheme::Int4.into()))).unwrap(), "\"int4\"");
        assert_eq!(serde_json::from_str::<Rule>("\"f32\"").unwrap(), Rule(None));
        let read = |json: &str| serde_json::from_str::<Rule>(json).unwrap().0.unwrap();
        let nf4 = read("\"nf4\"");
        assert_eq!(nf4, read(r#"{"scheme":"nf4","method":"absmax","group_size":64}"#));
        assert_eq!((nf4.method, nf4.granularity), (Method::Minmax, Granularity::Group(64)));
        assert_eq!(read(r#"{"scheme":"nf4","granularity":"row"}"#).granularity, Granularity::Row);
        assert_eq!(read(r#"{"scheme":"nf4","double_quant":true}"#), nf4.with_scales(ScaleFormat::Double));
        assert_eq!(read(r#"{"scheme":"nf4","scale_dtype":"f16"}"#), nf4.with_scales(ScaleFormat::F16));
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_what_would() {
        let error = |json: &str| serde_json::from_str::<Rule>(json).unwrap_err().to_string();
        assert!(
            error(r#"{"scheme":"int4","method":"twn"}"#).contains("`int4` has no method `twn`, but `minmax`, `lsq`")
        );
        assert!(error(r#"{"scheme":"int4","group_size":48}"#).contains("group_size = 48 is no multiple of 32"));
        assert!(error(r#"{"scheme":"ternary","zero_point":true}"#).contains("no zero_point"));
        assert!(error(r#"{"scheme":"nf4","zero_point":true}"#).contains("no zero_point"));
        assert!(error(r#"{"scheme":"int4","group":32}"#).contains("unknown field `group`"));
        assert!(error(r#"{"scheme":"int4","granularity":"row","group_size":32}"#).contains("exclude"));
        assert!(error(r#"{"scheme":"nf4","scale_dtype":"f16","double_quant":true}"#).contains("exclude"));
        assert!(error(r#"{"scheme":"int4","double_quant":true}"#).contains("double_quant needs a group_size"));
        assert!(error(r#"{"scheme":"int4","scale_dtype":"bf16"}"#).contains("expected `f32` or `f16`"));
        assert!(error("\"int5\"").contains("unknown scheme `int5`"));
        assert!(error("4").contains("a scheme, `f32`, or a table"));
    }
}
