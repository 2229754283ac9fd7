//! A quantizer: the number format, where its scales come from, and which weights share one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::panel::COLUMN_UNIT;
use crate::scales::Nesting;
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

/// The number beside a scale that moves the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Offset {
    /// None: codes of 0 are weights of 0 (symmetric quantization).
    #[default]
    None,
    /// A zero point, the field that stands for 0: `(field - zero_point) * scale` (asymmetric quantization).
    ZeroPoint,
    /// A minimum, as blocks of ggml have it: `scale * field - minimum`. It is stored in the format of the scales.
    Minimum,
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
    /// The offset beside each scale.
    pub offset: Offset,
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

    /// Whether `scheme` supports the method.
    pub fn takes(self, scheme: Scheme) -> bool {
        scheme.description().methods.contains(&self)
    }
}

impl From<Scheme> for Quantizer {
    /// The default method of a scheme with f32 scales: one per row, or one per group for schemes that are used in groups
    /// (`nf4`: 64 columns, `iq4`: 32).
    fn from(scheme: Scheme) -> Self {
        let description = scheme.description();
        let method = description.methods[0];
        let granularity = description.group_size.map_or(Granularity::Row, Granularity::Group);
        Self { scheme, method, granularity, offset: Offset::None, scales: ScaleFormat::F32 }
    }
}

impl Quantizer {
    /// This quantizer with another method.
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// This quantizer with other groups.
    pub const fn with_granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// This quantizer with zero points.
    pub fn with_zero_point(self) -> Self {
        Self { offset: Offset::ZeroPoint, ..self }
    }

    /// Whether there are zero points.
    pub fn has_zero_points(&self) -> bool {
        self.offset == Offset::ZeroPoint
    }

    /// Whether matrices are stored in blocks of ggml, which have minimums or scales of scales, and not in panels.
    pub fn is_of_blocks(&self) -> bool {
        self.offset == Offset::Minimum || matches!(self.scales, ScaleFormat::Nested(_))
    }

    /// Weights of a matrix `[rows, columns]` whose scales are rounded together: those of [`Quantizer::group_len`], or a block of
    /// groups with nested scales.
    pub fn block_len(&self, shape: [usize; 2]) -> usize {
        self.unit(self.group_len(shape))
    }

    /// Columns that a scale reaches, with those whose scales are multiples of the same factor.
    fn unit(&self, size: usize) -> usize {
        size * self.nested_groups()
    }

    /// Groups whose scales are multiples of the same factor; 1 for scales that are not nested.
    pub fn nested_groups(&self) -> usize {
        match self.scales {
            ScaleFormat::Nested(Nesting { groups, .. }) => groups,
            _ => 1,
        }
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
        let Self { scheme, method, granularity, offset, scales } = *self;
        if !method.takes(scheme) {
            let names = scheme.description().methods.iter().map(|method| format!("`{}`", method.name()));
            let names = names.collect::<Vec<_>>().join(", ");
            let message = format!("`{scheme}` does not support method `{}`; use one of {names}", method.name());
            return Err(Error::Quantizer(message));
        }
        if let Granularity::Group(size) = granularity
            && (size == 0 || !self.unit(size).is_multiple_of(COLUMN_UNIT))
        {
            return Err(Error::Quantizer(format!("group_size = {size} is no multiple of {COLUMN_UNIT}")));
        }
        if offset != Offset::None && !(scheme.has_zero_points() && matches!(method, Method::Minmax | Method::Lsq)) {
            let message = format!("`{scheme}` with `{}` has no zero_point", method.name());
            return Err(Error::Quantizer(message));
        }
        let grouped = matches!(granularity, Granularity::Group(_));
        if scales == ScaleFormat::Double && (offset != Offset::None || !grouped) {
            return Err(Error::Quantizer("double_quant needs a group_size and excludes zero_point".into()));
        }
        if self.is_of_blocks() && (!grouped || offset == Offset::ZeroPoint || scales == ScaleFormat::F32) {
            return Err(Error::Quantizer("blocks have groups, no zero_point, and scales in half precision".into()));
        }
        Ok(())
    }

    /// Checks that the quantizer fits a matrix `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Quantizer`] if the columns are no whole number of groups.
    pub fn check_shape(&self, [rows, columns]: [usize; 2]) -> Result<(), Error> {
        match self.granularity {
            Granularity::Group(size) if !columns.is_multiple_of(self.unit(size)) => {
                let unit = self.unit(size);
                Err(Error::Quantizer(format!("a matrix of {rows} x {columns} has no whole groups of {unit} columns")))
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
        match self.offset {
            Offset::None => {}
            Offset::ZeroPoint => write!(f, " with zero points")?,
            Offset::Minimum => write!(f, " with minimums")?,
        }
        match self.scales {
            ScaleFormat::F32 => Ok(()),
            ScaleFormat::F16 => write!(f, ", f16 scales"),
            ScaleFormat::Double => write!(f, ", double quantization"),
            ScaleFormat::Nested(Nesting { groups, bits, .. }) => write!(f, ", {bits}-bit scales in blocks of {groups}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every quantizer in panels that passes its check, with two sizes of groups.
    pub(crate) fn all() -> Vec<Quantizer> {
        let granularities = [Granularity::Tensor, Granularity::Row, Granularity::Group(32), Granularity::Group(64)];
        let mut all = Vec::new();
        for scheme in Scheme::ALL {
            for method in Method::ALL {
                for granularity in granularities {
                    for offset in [Offset::None, Offset::ZeroPoint] {
                        for scales in [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Double] {
                            all.push(Quantizer { scheme, method, granularity, offset, scales });
                        }
                    }
                }
            }
        }
        all.retain(|quantizer| quantizer.check().is_ok());
        all
    }
}
