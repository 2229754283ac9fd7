//! The scales and zero points of a weight: where they are, checked when a folder is opened, and read when a weight is.

use bitllama_core::ScaleFormat;
use bitllama_core::Scheme;
use bitllama_core::panel::COLUMN_UNIT;
use bitllama_core::scales::{DOUBLE_BLOCK, DoubleScales, PackedScales};
use half::f16;
use serde_json::Value;

use super::files::{Files, Part};
use super::forms::{Cells, Form, MEAN, STEPS};
use crate::npz::Dtype;
use crate::{Result, finite};

/// Where the scales of a matrix are.
pub(super) struct Scales {
    /// Scales of a row.
    pub groups: usize,
    pub format: ScaleFormat,
    part: Part,
    /// Steps and mean of double quantization.
    double: Option<[Part; 2]>,
}

impl Files {
    /// Finds the scales that belong to `codes`, and checks their shape and type.
    pub(super) fn scales(&self, name: &str, form: &Form, codes: &Part, [rows, columns]: [usize; 2]) -> Result<Scales> {
        let part = self.scales_part(name, form, codes)?;
        if form.cells != Cells::Panels {
            return Ok(Scales { groups: 1, format: ScaleFormat::F32, part, double: None });
        }
        let groups = self.groups(name, &part, [rows, columns])?;
        let (format, double) = match self.header(&part)?.dtype {
            Dtype::F16 => (ScaleFormat::F16, None),
            Dtype::I8 => {
                let beside = |suffix: &str| Part::Member(format!("{name}{}{suffix}", form.scales));
                let double = [beside(STEPS), beside(MEAN)];
                let shapes = [(rows * groups).div_ceil(DOUBLE_BLOCK), 1];
                for (part, len) in double.iter().zip(shapes) {
                    self.expect(part, &self.header(part)?, &[Dtype::F32], &[len])?;
                }
                (ScaleFormat::Double, Some(double))
            }
            _ => (ScaleFormat::F32, None),
        };
        Ok(Scales { groups, format, part, double })
    }

    /// The scales of a matrix of so many rows.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if there are more or fewer than expected, or one is infinite or NaN.
    pub(super) fn packed_scales(&self, scales: &Scales, rows: usize) -> Result<PackedScales> {
        let Scales { groups, part, double, .. } = scales;
        let array = self.array(part)?;
        let damaged = || self.damaged(part, format!("{} scales are expected", rows * groups));
        let floats = |part: &Part| Ok(self.array(part)?.to_f32().unwrap_or_default());
        let packed = match (double, array.dtype) {
            (Some([steps, mean]), _) => {
                let (steps, mean) = (floats(steps)?, floats(mean)?);
                let codes = array.to_i64().unwrap_or_default().into_iter().map(|code| code as i8).collect();
                let mean = mean.first().copied().ok_or_else(damaged)?;
                PackedScales::Double(DoubleScales { codes, steps, mean })
            }
            (None, Dtype::F16) if scales.format == ScaleFormat::F16 => {
                PackedScales::F16(array.data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect())
            }
            (None, _) => PackedScales::F32(array.to_f32().unwrap_or_default()),
        };
        let values = packed.values();
        if packed.len() != rows * groups || values.len() != packed.len() {
            return Err(damaged());
        }
        match finite::fault(&[rows, *groups], &values) {
            Some(fault) => Err(self.damaged(part, fault)),
            None => Ok(packed),
        }
    }

    /// Where the scales that belong to `codes` are: in the same NPZ, or in a file of their own.
    fn scales_part(&self, name: &str, form: &Form, codes: &Part) -> Result<Part> {
        if let Part::Member(_) = codes {
            return Ok(Part::Member(format!("{name}{}", form.scales)));
        }
        let entry = self.entry(name).unwrap_or(&Value::Null);
        let field = if form.cells == Cells::Fields { "q_scales" } else { "scales" };
        if let Some(path) = self.loose(entry, field)? {
            return Ok(Part::Npy(path));
        }
        let text = self.loose(entry, &format!("{field}_txt"))?;
        text.map(Part::Text).ok_or_else(|| self.damaged(codes, format!("the manifest names no {field} for {name}")))
    }

    /// How many scales a row has beside panels: as many as the array and the manifest agree on.
    fn groups(&self, name: &str, scales: &Part, [rows, columns]: [usize; 2]) -> Result<usize> {
        let header = self.header(scales)?;
        let groups = match header.shape[..] {
            [_, groups] => groups,
            _ => 1,
        };
        let shape = if header.shape.len() == 2 { vec![rows, groups] } else { vec![rows] };
        self.expect(scales, &header, &[Dtype::F32, Dtype::F16, Dtype::I8], &shape)?;
        let size = columns.checked_div(groups).unwrap_or(0);
        if groups != 1 && (size * groups != columns || size == 0 || !size.is_multiple_of(COLUMN_UNIT)) {
            let reason = format!("{groups} scales a row of {columns} are no groups of a multiple of {COLUMN_UNIT}");
            return Err(self.damaged(scales, reason));
        }
        let stated = self.entry(name).and_then(|entry| entry.get("group_size")).filter(|stated| !stated.is_null());
        if let Some(stated) = stated
            && *stated != size
        {
            return Err(self.damaged(scales, format!("groups of {size} columns found, {stated} expected")));
        }
        Ok(groups)
    }

    /// Zero points, as many as scales, unless they are those that a symmetric matrix has anyway.
    pub(super) fn zero_points(&self, name: &str, form: &Form, codes: &Part, scales: usize) -> Result<Option<Vec<i32>>> {
        let Some(suffix) = form.zero_point else { return Ok(None) };
        let part = match codes {
            Part::Member(_) => {
                let key = format!("{name}{suffix}");
                let there = self.npz.as_ref().is_some_and(|npz| npz.contains(&key));
                (there || form.cells == Cells::Fields).then_some(Part::Member(key))
            }
            _ if form.cells != Cells::Fields => None,
            _ => {
                let entry = self.entry(name).unwrap_or(&Value::Null);
                let path = self.loose(entry, "q_zero_point")?;
                Some(Part::Npy(path.ok_or_else(|| self.damaged(codes, "the manifest names no q_zero_point"))?))
            }
        };
        let Some(part) = part else { return Ok(None) };
        let array = self.array(&part)?;
        let points: Option<Vec<i32>> =
            array.to_i64().and_then(|points| points.into_iter().map(|point| i32::try_from(point).ok()).collect());
        let points = points.ok_or_else(|| self.damaged(&part, "zero points must be whole numbers of 32 bits"))?;
        if points.len() != scales {
            return Err(self.damaged(&part, format!("{} zero points for {scales} scales", points.len())));
        }
        // Beyond this a difference to a field would not be exact in f32.
        if points.iter().any(|point| point.unsigned_abs() >= 1 << 24) {
            return Err(self.damaged(&part, "a zero point is too large"));
        }
        let symmetric = form.scheme != Scheme::Binary && points.iter().all(|p| *p == -form.scheme.line().0);
        Ok((!symmetric).then_some(points))
    }
}
