//! Codes packed into bits: the in-memory and on-disk form of a low-bit matrix. [`crate::panel`] says where each bit is.

use bytes::Bytes;

use crate::panel::{self, COLUMN_UNIT, PANEL_ROWS};
use crate::rounding::{DoubleQuantized, Offsets, Quantized, ScaleParts, Scales, quantize};
use crate::scales::{DOUBLE_BLOCK, DoubleScales, PackedScales};
use crate::{DenseMatrix, Error, Quantizer, ScaleFormat, Scheme};

/// A packed matrix `[rows, columns]` = `[out_features, in_features]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    scheme: Scheme,
    rows: usize,
    columns: usize,
    bytes: Bytes,
    scales: PackedScales,
    /// The scales in f32, where they are stored otherwise.
    widened: Vec<f32>,
    zero_points: Option<Vec<i32>>,
}

impl PackedMatrix {
    /// Takes packed panels as they stand, for instance out of a memory map.
    ///
    /// `scales` is `[rows, groups]`: one scale a row, or one for each group of `columns / groups` columns, which must be
    /// a multiple of [`COLUMN_UNIT`]. `zero_points`, of the same shape, are for files of other tools only: there the
    /// weight is `(field - zero_point) * scale`.
    ///
    /// # Errors
    /// [`Error::Packed`] if the bytes, scales or zero points are not as many as the shape asks for, or for zero points of
    /// a scheme with a table.
    pub fn new(
        scheme: Scheme,
        [rows, columns]: [usize; 2],
        bytes: Bytes,
        scales: impl Into<PackedScales>,
        zero_points: Option<Vec<i32>>,
    ) -> Result<Self, Error> {
        let scales = scales.into();
        let expected = scheme
            .packed_bytes([rows, columns])
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| Error::Packed(format!("a shape of {rows} x {columns} is empty or too large")))?;
        if bytes.len() != expected {
            return Err(Error::Packed(format!(
                "{rows} x {columns} in {scheme} takes {expected} bytes, not {}",
                bytes.len()
            )));
        }
        check_scales([rows, columns], scales.len())?;
        if zero_points.as_ref().is_some_and(|z| z.len() != scales.len()) {
            return Err(Error::Packed(format!("{} scales need as many zero points", scales.len())));
        }
        if let PackedScales::Double(DoubleScales { codes, steps, .. }) = &scales
            && steps.len() != codes.len().div_ceil(DOUBLE_BLOCK)
        {
            return Err(Error::Packed(format!("{} scales do not have {} steps", codes.len(), steps.len())));
        }
        if zero_points.is_some() && scheme.table().is_some() {
            return Err(Error::Packed(format!("{scheme} has no zero points")));
        }
        let widened = if scales.format() == ScaleFormat::F32 { Vec::new() } else { scales.values() };
        Ok(Self { scheme, rows, columns, bytes, scales, widened, zero_points })
    }

    /// Packs what `quantizer` made of a matrix `[rows, columns]`, whose rows are in the matrix one after the other,
    /// whatever shared a scale.
    ///
    /// # Errors
    /// [`Error::Packed`] if a code is outside the scheme's range (a weight that is not finite has none), or the lengths do
    /// not match.
    pub fn pack(
        quantizer: &Quantizer,
        [rows, columns]: [usize; 2],
        quantized: Quantized<DenseMatrix>,
    ) -> Result<Self, Error> {
        let (scheme, codes) = (quantizer.scheme, quantized.codes.data);
        if codes.len() != rows * columns {
            return Err(Error::Packed(format!("{} codes are no {rows} rows of {columns}", codes.len())));
        }
        let scales = pack_scales(quantizer, quantizer.per_row(quantized.scales.data, rows), quantized.parts)?;
        let zero_points: Option<Vec<i32>> = match quantized.offsets {
            None => None,
            Some(Offsets::ZeroPoints(points)) => {
                Some(quantizer.per_row(points.data, rows).into_iter().map(|point| point as i32).collect())
            }
            Some(Offsets::Minimums(_)) => return Err(in_blocks(quantizer)),
        };
        let is_field = zero_points.is_some();
        Self::from_fields(scheme, [rows, columns], scales, zero_points, |row, out| {
            for (field, code) in out.iter_mut().zip(&codes[row * columns..]) {
                let found = if is_field { scheme.whole_field(*code) } else { scheme.field_of(*code) };
                *field = found.ok_or_else(|| Error::Packed(format!("{code} is no code of {scheme}")))?;
            }
            Ok(())
        })
    }

    /// Rounds `weight`, row-major `[rows, columns]`, by the scales that it gives, and packs it.
    ///
    /// # Errors
    /// [`Error::Packed`] if a weight is not finite, [`Error::Quantizer`] if groups do not divide the columns.
    pub fn quantize(quantizer: &Quantizer, shape: [usize; 2], weight: Vec<f32>) -> Result<Self, Error> {
        Self::quantize_by(quantizer, shape, weight, None)
    }

    /// As [`PackedMatrix::quantize`], by `trained` scales if there are any: `[rows, groups]`, or one of the whole matrix.
    ///
    /// # Errors
    /// As [`PackedMatrix::quantize`].
    pub fn quantize_by(
        quantizer: &Quantizer,
        shape: [usize; 2],
        weight: Vec<f32>,
        trained: Option<Scales<DenseMatrix>>,
    ) -> Result<Self, Error> {
        quantizer.check_shape(shape)?;
        let weight = DenseMatrix { data: weight, columns: quantizer.group_len(shape) };
        Self::pack(quantizer, shape, quantize(quantizer, weight, trained))
    }

    /// Packs fields, one a byte. `fields` writes those of a row into its second argument (`[columns]`).
    ///
    /// # Errors
    /// Whatever `fields` fails with; [`Error::Packed`] if a field is outside the scheme's levels, or for a wrong shape.
    pub fn from_fields<E: From<Error>>(
        scheme: Scheme,
        [rows, columns]: [usize; 2],
        scales: impl Into<PackedScales>,
        zero_points: Option<Vec<i32>>,
        mut fields: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let scales = scales.into();
        check_scales([rows, columns], scales.len())?;
        let len = scheme.packed_bytes([rows, columns]).unwrap_or(0);
        let mut row_fields = vec![0u8; columns];
        let bytes = panel::aligned_bytes(len, |bytes| {
            for (index, panel) in bytes.chunks_exact_mut(scheme.panel_bytes(columns).max(1)).enumerate() {
                for (row, global) in (index * PANEL_ROWS..rows).take(PANEL_ROWS).enumerate() {
                    fields(global, &mut row_fields)?;
                    if let Some(column) = row_fields.iter().position(|field| u32::from(*field) >= scheme.levels()) {
                        let field = row_fields[column];
                        let message = format!("the value {field} in column {column} is no field of {scheme}");
                        return Err(Error::Packed(message).into());
                    }
                    panel::put_row(scheme.field_bits(), panel, row, &row_fields);
                }
            }
            Ok::<_, E>(())
        })?;
        Ok(Self::new(scheme, [rows, columns], bytes, scales, zero_points)?)
    }

    /// Number format of the codes.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns that share a scale: all of a row, or a multiple of [`COLUMN_UNIT`].
    pub fn group_size(&self) -> usize {
        self.columns / self.groups()
    }

    /// Scales of a row.
    pub fn groups(&self) -> usize {
        self.scales.len() / self.rows
    }

    /// All panels, one after the other.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Scales, `[rows, groups]`.
    pub fn scales(&self) -> &[f32] {
        match &self.scales {
            PackedScales::F32(scales) => scales,
            _ => &self.widened,
        }
    }

    /// Scales as they are stored.
    pub fn packed_scales(&self) -> &PackedScales {
        &self.scales
    }

    /// Zero points of an asymmetric matrix, `[rows, groups]`, counted in packed fields.
    pub fn zero_points(&self) -> Option<&[i32]> {
        self.zero_points.as_deref()
    }

    /// Bytes of codes, scales and zero points.
    pub fn stored_bytes(&self) -> usize {
        let points = self.zero_points.as_ref().map_or(0, |points| size_of_val(points.as_slice()));
        self.bytes.len() + self.scales.format().bytes(self.scales.len()) + points
    }

    /// The packed bytes of one panel.
    pub fn panel(&self, panel: usize) -> &[u8] {
        let stride = self.scheme.panel_bytes(self.columns);
        &self.bytes[panel * stride..(panel + 1) * stride]
    }

    /// Writes the packed fields of one row, one a byte, into `out` (`[columns]`).
    pub fn fields_into(&self, row: usize, out: &mut [u8]) {
        assert_eq!(out.len(), self.columns);
        panel::row_fields(self.scheme.field_bits(), self.panel(row / PANEL_ROWS), row % PANEL_ROWS, out);
    }

    /// Writes the codes of one row, as numbers that its scales multiply, into `out` (`[columns]`).
    pub fn codes_into(&self, row: usize, out: &mut [f32]) {
        let mut fields = vec![0; self.columns];
        self.fields_into(row, &mut fields);
        match &self.zero_points {
            None => out.iter_mut().zip(fields).for_each(|(out, field)| *out = self.scheme.code_of(field)),
            Some(zero_points) => {
                let zero_points = &zero_points[row * self.groups()..][..self.groups()];
                let groups = out.chunks_mut(self.group_size()).zip(fields.chunks(self.group_size()));
                for ((out, fields), zero_point) in groups.zip(zero_points) {
                    out.iter_mut().zip(fields).for_each(|(out, field)| *out = (*field as i32 - zero_point) as f32);
                }
            }
        }
    }

    /// Writes the weights of one row into `out` (`[columns]`).
    pub fn dequantize_row_into(&self, row: usize, out: &mut [f32]) {
        self.codes_into(row, out);
        let scales = &self.scales()[row * self.groups()..][..self.groups()];
        for (out, scale) in out.chunks_mut(self.group_size()).zip(scales) {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// All weights, `[rows, columns]`.
    pub fn dequantize(&self) -> DenseMatrix {
        let mut data = vec![0.0; self.rows * self.columns];
        for (row, out) in data.chunks_exact_mut(self.columns).enumerate() {
            self.dequantize_row_into(row, out);
        }
        DenseMatrix { data, columns: self.columns }
    }
}

fn in_blocks(quantizer: &Quantizer) -> Error {
    Error::Packed(format!("{quantizer} is stored in blocks, not in panels"))
}

/// Scales of a packed matrix that `quantizer` rounded, as it stores them.
fn pack_scales(
    quantizer: &Quantizer,
    scales: Vec<f32>,
    parts: Option<ScaleParts<DenseMatrix>>,
) -> Result<PackedScales, Error> {
    match (quantizer.scales, parts) {
        (ScaleFormat::F32, _) => Ok(scales.into()),
        (ScaleFormat::F16, _) => PackedScales::f16(&scales),
        (ScaleFormat::Double, Some(ScaleParts::Double(DoubleQuantized { codes, steps, mean }))) => {
            if !scales.iter().all(|scale| scale.is_finite()) {
                return Err(Error::Packed("a weight is not finite".into()));
            }
            let codes = codes.data.iter().take(scales.len()).map(|code| *code as i8).collect();
            let mean = mean.data.first().copied().unwrap_or_default();
            Ok(PackedScales::Double(DoubleScales { codes, steps: steps.data, mean }))
        }
        (ScaleFormat::Double, _) => Err(Error::Packed("the scales were not double-quantized".into())),
        (ScaleFormat::Nested(_), _) => Err(in_blocks(quantizer)),
    }
}

/// Whether `scales` are one a row, or one for each group of columns.
fn check_scales([rows, columns]: [usize; 2], scales: usize) -> Result<(), Error> {
    if rows == 0 || columns == 0 || scales == 0 || !scales.is_multiple_of(rows) {
        return Err(Error::Packed(format!("{scales} scales do not fit {rows} rows of {columns} columns")));
    }
    let groups = scales / rows;
    if groups > 1 && (!columns.is_multiple_of(groups) || !(columns / groups).is_multiple_of(COLUMN_UNIT)) {
        let message =
            format!("{groups} scales a row of {columns} columns are no groups of a multiple of {COLUMN_UNIT}");
        return Err(Error::Packed(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Granularity;

    fn codes(data: Vec<f32>, columns: usize, scales: Vec<f32>) -> Quantized<DenseMatrix> {
        let (codes, scales) = (DenseMatrix { data, columns }, DenseMatrix { data: scales, columns: 1 });
        Quantized { codes, scales, offsets: None, parts: None }
    }

    #[test]
    fn int4_stacks_columns_four_apart() {
        let codes = codes(vec![-8., 7., 0., 1., -7., 6.], 6, vec![1.0]);
        let packed = PackedMatrix::pack(&Scheme::Int4.into(), [1, 6], codes).unwrap();
        assert_eq!(packed.bytes()[..4], [0x10, 0xef, 0x08, 0x09]);
        assert_eq!(packed.bytes().len(), 64);
        assert!(packed.bytes()[4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn wrong_sizes_and_codes_are_refused() {
        for (scheme, code) in
            [(Scheme::Ternary, 2.0), (Scheme::Seq2, 0.0), (Scheme::Nf4, 0.1), (Scheme::Int8, f32::NAN)]
        {
            assert!(PackedMatrix::pack(&scheme.into(), [1, 1], codes(vec![code], 1, vec![1.0])).is_err());
        }
        let points = PackedMatrix::new(Scheme::Nf4, [1, 8], Bytes::from_static(&[0; 64]), vec![1.0], Some(vec![0]));
        assert!(points.is_err());
        let short = PackedMatrix::new(Scheme::Int4, [2, 4], Bytes::from_static(&[0; 63]), vec![1.0; 2], None);
        assert!(short.is_err());
        let huge = PackedMatrix::new(Scheme::Int8, [usize::MAX, 2], Bytes::new(), vec![], None);
        assert!(huge.is_err());
        let pack = |scales| PackedMatrix::pack(&Scheme::Int4.into(), [1, 96], codes(vec![1.0; 96], 96, scales));
        assert!(pack(vec![1.0; 3]).is_ok());
        assert!(pack(vec![1.0; 2]).is_err());
        assert!(pack(vec![]).is_err());
    }

    #[test]
    fn zero_points_shift_the_fields() {
        let packed = PackedMatrix::from_fields(Scheme::Int2, [1, 4], vec![0.5], Some(vec![1]), |_, out| {
            out.copy_from_slice(&[0, 1, 2, 3]);
            Ok::<_, Error>(())
        });
        assert_eq!(packed.unwrap().dequantize().data, [-0.5, 0.0, 0.5, 1.0]);
    }

    #[test]
    fn groups_have_scales_of_their_own() {
        let codes = codes(vec![1.0; 2 * 64], 32, vec![1.0, 2.0, 3.0, 4.0]);
        let quantizer = Quantizer::from(Scheme::Int4).with_granularity(Granularity::Group(32));
        let packed = PackedMatrix::pack(&quantizer, [2, 64], codes).unwrap();
        assert_eq!((packed.group_size(), packed.groups()), (32, 2));
        let weights = packed.dequantize().data;
        assert_eq!((weights[31], weights[32], weights[64], weights[127]), (1.0, 2.0, 3.0, 4.0));
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(rows in 1usize..40, columns in 1usize..80, seed in 0u32..1000, which in 0usize..1000) {
            let all = crate::quantizer::tests::all();
            let quantizer = all[which % all.len()];
            let columns = match quantizer.granularity {
                Granularity::Group(size) => columns.next_multiple_of(size),
                _ => columns,
            };
            let data: Vec<f32> = (0..rows * columns)
                .map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed * 97) % 2001) as f32 / 1000.0 - 1.0)
                .collect();
            let weight = DenseMatrix { data, columns: quantizer.group_len([rows, columns]) };
            let quantized = quantize(&quantizer, weight, None);
            let packed = PackedMatrix::pack(&quantizer, [rows, columns], quantized.clone()).unwrap();
            prop_assert_eq!(packed.dequantize().data, quantized.dequantize().data);
            prop_assert_eq!(packed.groups(), quantizer.scales_a_row(columns));
            prop_assert_eq!(packed.packed_scales().format(), quantizer.scales);
        }
    }
}
