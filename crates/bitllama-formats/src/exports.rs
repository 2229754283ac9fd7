//! Parts that writers of other programs' formats share: the list of tensors that they wrote with what each loses, and the check of
//! weights on their way in.

use std::borrow::Cow;
use std::path::Path;

use bitllama_core::weights::WeightSpec;

use crate::{Error, Result, StoredWeight, finite};

/// A tensor of a file that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Name in the file.
    pub tensor: String,
    /// Type, in the format's own words: `Q4_0`, `F16`.
    pub dtype: Cow<'static, str>,
    /// Bytes of its data.
    pub bytes: usize,
    /// Root of the mean squared error over the root of the mean square: 0 where every number is kept to the bit.
    pub error: f64,
    /// Reason why it takes more bits than its codes have, or loses something.
    pub remark: Option<String>,
}

/// Refuses a tensor that loses something, where an export must be exact. `path` is for the error.
///
/// # Errors
/// [`Error::Invalid`] with the tensor, its type and the reason.
pub(crate) fn refuse_loss(path: &Path, written: &Written) -> Result<()> {
    if written.error == 0.0 {
        return Ok(());
    }
    let Written { tensor, dtype, error, remark, .. } = written;
    let why = remark.as_ref().map(|remark| format!(": {remark}")).unwrap_or_default();
    Err(Error::invalid(path, format!("{tensor} would not be exact in {dtype} (relative error {error:.1e}){why}")))
}

/// Squared error and squared size of numbers.
#[derive(Default)]
pub(crate) struct Loss {
    error: f64,
    size: f64,
}

impl Loss {
    pub fn add(&mut self, expected: &[f32], found: &[f32]) {
        for (expected, found) in expected.iter().zip(found) {
            self.error += f64::from(expected - found).powi(2);
            self.size += f64::from(*expected).powi(2);
        }
    }

    pub fn relative(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { (self.error / self.size.max(f64::MIN_POSITIVE)).sqrt() }
    }
}

/// All numbers of a weight.
pub(crate) fn values(weight: &StoredWeight) -> Vec<f32> {
    match weight {
        StoredWeight::Packed(matrix) => matrix.dequantize().data,
        StoredWeight::Full(values) => values.clone(),
        StoredWeight::Rows(rows) => rows.to_f32(),
    }
}

/// A weight that is the expected one, and finite. `path` is for the error.
///
/// # Errors
/// [`Error::Invalid`] for another weight or shape, and for a number that is not finite.
pub(crate) fn checked(
    path: &Path,
    expected: &WeightSpec,
    (spec, weight): (WeightSpec, StoredWeight),
) -> Result<(WeightSpec, StoredWeight)> {
    let shape = match &weight {
        StoredWeight::Packed(matrix) => vec![matrix.rows(), matrix.columns()],
        StoredWeight::Rows(rows) => vec![rows.rows(), rows.columns()],
        StoredWeight::Full(values) if values.len() == expected.len() => expected.shape.clone(),
        StoredWeight::Full(values) => vec![values.len()],
    };
    let invalid = |reason: String| Err(Error::invalid(path, reason));
    if spec != *expected || shape != expected.shape {
        let (found, wanted) = (&spec.name, &expected.name);
        return invalid(format!("weight {found} {shape:?} was given, {wanted} {:?} expected", expected.shape));
    }
    let fault = match &weight {
        StoredWeight::Full(values) => finite::fault(&spec.shape, values),
        StoredWeight::Packed(matrix) if matrix.scales().iter().any(|scale| !scale.is_finite()) => {
            Some("has a scale that is not finite".into())
        }
        _ => None,
    };
    match fault {
        Some(fault) => invalid(format!("weight {} {fault}", spec.name)),
        None => Ok((spec, weight)),
    }
}
