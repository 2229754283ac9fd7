//! I2_S, the type of bitnet.cpp: ternary codes of a whole matrix with one scale behind them (`quantize_i2_s` in its
//! `ggml-bitnet-mad.cpp`, in the layout of x86, which the published files have).
//!
//! Fields are codes plus 1. Those of 128 columns take 32 bytes: byte `i` holds columns `i`, `32 + i`, `64 + i` and `96 + i`, the
//! first one in its highest bits. The scale, an f32, follows the last row; 28 bytes after it are unused.

use bitllama_core::{Error, PackedMatrix, Scheme};

/// Columns that share bytes.
pub(super) const BLOCK: usize = 128;
const BLOCK_BYTES: usize = BLOCK / 4;
/// Bytes behind the codes: the scale, and what is unused.
const TAIL: usize = 32;

/// Bytes of a tensor; `None` for a shape of so many that they cannot be counted.
pub(super) fn bytes(shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
    (elements / 4).checked_add(TAIL)
}

/// Some rows of a tensor `[_, columns]` whose data are `bytes`, in the order of `rows`.
///
/// # Errors
/// A field that is none, or a scale that is not finite, in one line without the file.
pub(super) fn unpack(
    bytes: &[u8],
    columns: usize,
    rows: impl ExactSizeIterator<Item = usize>,
) -> Result<PackedMatrix, String> {
    let (codes, tail) = bytes.split_at(bytes.len() - TAIL);
    let mut scale = [0; 4];
    scale.copy_from_slice(&tail[..4]);
    let scale = f32::from_le_bytes(scale);
    if !scale.is_finite() {
        return Err(format!("has the scale {scale}"));
    }
    let rows: Vec<usize> = rows.collect();
    let shape = [rows.len(), columns];
    let scales = vec![scale; rows.len()];
    let row_bytes = columns / BLOCK * BLOCK_BYTES;
    let packed = PackedMatrix::from_fields::<Error>(Scheme::Ternary, shape, scales, None, |row, out| {
        let row = &codes[rows[row] * row_bytes..][..row_bytes];
        for (bytes, out) in row.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            for (at, byte) in bytes.iter().enumerate() {
                (0..4).for_each(|place| out[place * BLOCK_BYTES + at] = byte >> (6 - 2 * place) & 3);
            }
        }
        Ok(())
    });
    packed.map_err(|e| e.to_string())
}

/// Whether matrices that share a tensor fit into this type: ternary or binary ones of whole blocks with one scale for all.
pub(super) fn holds(matrices: &[&PackedMatrix]) -> bool {
    let scales = || matrices.iter().flat_map(|matrix| matrix.scales());
    let first = scales().next().map(|scale| scale.to_bits());
    first.is_some()
        && scales().all(|scale| Some(scale.to_bits()) == first)
        && matrices.iter().all(|matrix| {
            matches!(matrix.scheme(), Scheme::Ternary | Scheme::Binary)
                && matrix.zero_points().is_none()
                && matrix.columns().is_multiple_of(BLOCK)
        })
}

/// Appends the codes of rows of `matrix`, which [`holds`] found to fit, in the order of `rows`.
pub(super) fn put_rows(matrix: &PackedMatrix, rows: impl Iterator<Item = usize>, out: &mut Vec<u8>) {
    let mut codes = vec![0.0; matrix.columns()];
    for row in rows {
        matrix.codes_into(row, &mut codes);
        for codes in codes.chunks_exact(BLOCK) {
            let field = |column: usize| (codes[column] as i32 + 1) as u8;
            let byte = |at: usize| (0..4).map(|place| field(place * BLOCK_BYTES + at) << (6 - 2 * place)).sum::<u8>();
            out.extend((0..BLOCK_BYTES).map(byte));
        }
    }
}

/// Appends the scale that stands behind the codes.
pub(super) fn put_scale(scale: f32, out: &mut Vec<u8>) {
    out.extend(scale.to_le_bytes());
    out.extend([0; TAIL - size_of::<f32>()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_four_columns_has_the_highest_bits() {
        // Codes -1, 0, 1 by turns of columns; row 1 begins with 0.
        let shape = [2, 256];
        let of = |row, out: &mut [u8]| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = ((row + column) % 3) as u8);
            Ok::<_, Error>(())
        };
        let matrix = PackedMatrix::from_fields(Scheme::Ternary, shape, vec![0.75; 2], None, of).unwrap();
        assert!(holds(&[&matrix]));
        let mut out = Vec::new();
        put_rows(&matrix, 0..2, &mut out);
        put_scale(0.75, &mut out);
        assert_eq!(Some(out.len()), bytes(&shape));
        // Columns 0, 32, 64, 96 have the fields 0, 2, 1, 0; those of the next row one more each.
        assert_eq!((out[0], out[64]), (0b00_10_01_00, 0b01_00_10_01));
        assert_eq!(out[128..132], 0.75f32.to_le_bytes());
        let back = unpack(&out, 256, [1, 0].into_iter()).unwrap();
        let (mut found, mut expected) = (vec![0.0; 256], vec![0.0; 256]);
        for (row, place) in [(0, 1), (1, 0)] {
            back.dequantize_row_into(row, &mut found);
            matrix.dequantize_row_into(place, &mut expected);
            assert_eq!(found, expected);
        }
        // Field 3 is none, and so is a scale that is not finite.
        out[5] = 0xff;
        assert!(unpack(&out, 256, 0..2).unwrap_err().contains("no field of ternary"));
        out[128..132].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(unpack(&out, 256, 0..2).unwrap_err().contains("scale NaN"));
    }
}
