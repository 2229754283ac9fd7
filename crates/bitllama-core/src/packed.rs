//! Codes packed into bits: the in-memory and on-disk form of a low-bit matrix.
//!
//! Rows start at byte boundaries and the spare bits of a row's last byte are zero. Within a row:
//! - `binary`: one bit a code, most significant bit first (NumPy's `packbits`; 1 is +1);
//! - all others: [`Scheme::code_bits`] bits a code, least significant bit first, as one stream (a 3-bit field may
//!   cross into the next byte; for 4 bits the low nibble is the even element).

use bytes::Bytes;

use crate::{DenseMatrix, Error, Scheme, unpack};

/// A packed matrix `[rows, columns]` = `[out_features, in_features]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    scheme: Scheme,
    rows: usize,
    columns: usize,
    bytes: Bytes,
    scales: Vec<f32>,
    zero_points: Option<Vec<i32>>,
}

/// Bytes that one packed row of `columns` codes takes.
pub const fn row_bytes(scheme: Scheme, columns: usize) -> usize {
    (columns * scheme.code_bits() as usize).div_ceil(8)
}

impl PackedMatrix {
    /// Takes packed bytes as they stand, for instance out of a memory map.
    ///
    /// `zero_points` are for files of other tools only: there the weight is `(field - zero_point) * scale`.
    ///
    /// # Errors
    /// [`Error::Packed`] if the bytes, scales or zero points are not as many as the shape asks for.
    pub fn new(
        scheme: Scheme,
        [rows, columns]: [usize; 2],
        bytes: Bytes,
        scales: Vec<f32>,
        zero_points: Option<Vec<i32>>,
    ) -> Result<Self, Error> {
        let expected = columns
            .checked_mul(scheme.code_bits() as usize)
            .map(|bits| bits.div_ceil(8))
            .and_then(|row| row.checked_mul(rows))
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| Error::Packed(format!("a shape of {rows} x {columns} is empty or too large")))?;
        if bytes.len() != expected {
            return Err(Error::Packed(format!(
                "{rows} x {columns} in {scheme} takes {expected} bytes, not {}",
                bytes.len()
            )));
        }
        if scales.len() != rows || zero_points.as_ref().is_some_and(|z| z.len() != rows) {
            return Err(Error::Packed(format!("{rows} rows need as many scales and zero points")));
        }
        Ok(Self { scheme, rows, columns, bytes, scales, zero_points })
    }

    /// Packs `codes` (`[rows, columns]`, whole numbers in range) with one scale a row.
    ///
    /// # Errors
    /// [`Error::Packed`] if a code is outside the scheme's range, or the lengths do not match.
    pub fn pack(scheme: Scheme, codes: &DenseMatrix, scales: Vec<f32>) -> Result<Self, Error> {
        let (rows, columns) = (scales.len(), codes.columns);
        if columns == 0 || codes.data.len() != rows * columns {
            return Err(Error::Packed(format!("{} codes are not {rows} rows of {columns}", codes.data.len())));
        }
        let (low, high) = scheme.code_range();
        let stride = row_bytes(scheme, columns);
        let mut bytes = vec![0u8; rows * stride];
        for (row, out) in codes.data.chunks_exact(columns).zip(bytes.chunks_exact_mut(stride)) {
            for (column, code) in row.iter().enumerate() {
                if !(code.fract() == 0.0 && *code >= low as f32 && *code <= high as f32) {
                    return Err(Error::Packed(format!("{code} is no code of {scheme}")));
                }
                put_field(scheme, out, column, scheme.field_of(*code as i32));
            }
        }
        Self::new(scheme, [rows, columns], bytes.into(), scales, None)
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

    /// All packed rows, one after the other.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// One scale a row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Zero points of an asymmetric matrix, one a row, counted in packed fields.
    pub fn zero_points(&self) -> Option<&[i32]> {
        self.zero_points.as_deref()
    }

    /// The packed bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let stride = row_bytes(self.scheme, self.columns);
        &self.bytes[row * stride..(row + 1) * stride]
    }

    /// Writes the codes of one row, as numbers that `scale` multiplies, into `out` (`[columns]`).
    pub fn codes_into(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns);
        let packed = self.row(row);
        match &self.zero_points {
            Some(zero_points) => {
                let zero_point = zero_points[row];
                for (column, code) in out.iter_mut().enumerate() {
                    *code = (field(self.scheme, packed, column) as i32 - zero_point) as f32;
                }
            }
            None => unpack::codes(self.scheme, packed, out),
        }
    }

    /// Writes the weights of one row into `out` (`[columns]`).
    pub fn dequantize_row_into(&self, row: usize, out: &mut [f32]) {
        self.codes_into(row, out);
        let scale = self.scales[row];
        out.iter_mut().for_each(|x| *x *= scale);
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

/// The packed field of element `column` of a row.
pub fn field(scheme: Scheme, row: &[u8], column: usize) -> u8 {
    let bits = scheme.code_bits() as usize;
    if let Scheme::Binary = scheme {
        return row[column / 8] >> (7 - column % 8) & 1;
    }
    let bit = column * bits;
    let low = row[bit / 8] as u16;
    let high = row.get(bit / 8 + 1).copied().unwrap_or(0) as u16;
    let mask = (1u16 << bits) - 1;
    ((low | high << 8) >> (bit % 8) & mask) as u8
}

fn put_field(scheme: Scheme, row: &mut [u8], column: usize, field: u8) {
    if let Scheme::Binary = scheme {
        row[column / 8] |= field << (7 - column % 8);
        return;
    }
    let bit = column * scheme.code_bits() as usize;
    let shifted = (field as u16) << (bit % 8);
    row[bit / 8] |= shifted as u8;
    if shifted > 0xff {
        row[bit / 8 + 1] |= (shifted >> 8) as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantize;

    #[test]
    fn binary_is_numpy_packbits() {
        let codes = DenseMatrix { data: vec![1., -1., 1., 1., -1., -1., -1., -1., 1.], columns: 9 };
        let packed = PackedMatrix::pack(Scheme::Binary, &codes, vec![1.0]).unwrap();
        assert_eq!(packed.bytes().as_ref(), [0b1011_0000, 0b1000_0000]);
    }

    #[test]
    fn int4_puts_the_even_element_in_the_low_nibble() {
        let codes = DenseMatrix { data: vec![-8., 7., 0.], columns: 3 };
        let packed = PackedMatrix::pack(Scheme::Int4, &codes, vec![1.0]).unwrap();
        assert_eq!(packed.bytes().as_ref(), [0xf0, 0x08]);
    }

    #[test]
    fn wrong_sizes_and_codes_are_refused() {
        let two = DenseMatrix { data: vec![2.0], columns: 1 };
        assert!(PackedMatrix::pack(Scheme::Ternary, &two, vec![1.0]).is_err());
        let short = PackedMatrix::new(Scheme::Int4, [2, 4], Bytes::from_static(&[0; 3]), vec![1.0; 2], None);
        assert!(short.is_err());
        let huge = PackedMatrix::new(Scheme::Int8, [usize::MAX, 2], Bytes::new(), vec![], None);
        assert!(huge.is_err());
    }

    #[test]
    fn zero_points_shift_the_fields() {
        let packed =
            PackedMatrix::new(Scheme::Int2, [1, 4], Bytes::from_static(&[0b1110_0100]), vec![0.5], Some(vec![1]));
        assert_eq!(packed.unwrap().dequantize().data, [-0.5, 0.0, 0.5, 1.0]);
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(rows in 1usize..5, columns in 1usize..40, seed in 0u32..1000, which in 0usize..6) {
            let scheme = Scheme::ALL[which];
            let data: Vec<f32> = (0..rows * columns)
                .map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed * 97) % 2001) as f32 / 1000.0 - 1.0)
                .collect();
            let q = quantize(scheme, DenseMatrix { data, columns });
            let packed = PackedMatrix::pack(scheme, &q.codes, q.scales.data.clone()).unwrap();
            let mut row = vec![0.0; columns];
            for r in 0..rows {
                packed.codes_into(r, &mut row);
                prop_assert_eq!(&row, &q.codes.data[r * columns..(r + 1) * columns]);
                for (c, code) in row.iter().enumerate() {
                    prop_assert_eq!(scheme.code_of(field(scheme, packed.row(r), c)) as f32, *code);
                }
            }
            prop_assert_eq!(packed.dequantize(), q.dequantize());
        }
    }
}
