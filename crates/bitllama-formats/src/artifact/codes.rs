//! One code a byte, to bits and back: what the older tools keep is unpacked, what this house computes on is packed.

use bitllama_core::packed::{field, row_bytes};
use bitllama_core::{PackedMatrix, Scheme};

/// Packs fields (`[rows, columns]`, one a byte) into the rows of a `PackedMatrix`.
///
/// Binary is not meant here: it has no unpacked form.
///
/// # Errors
/// The first field that the scheme does not have.
pub(super) fn pack_fields(
    scheme: Scheme,
    columns: usize,
    fields: impl ExactSizeIterator<Item = u8>,
) -> Result<Vec<u8>, String> {
    let bits = scheme.code_bits();
    let rows = fields.len() / columns;
    let mut packed = Vec::with_capacity(rows * row_bytes(scheme, columns));
    let (mut pending, mut pending_bits, mut column) = (0u32, 0, 0);
    for field in fields {
        if field as u32 >= scheme.levels() {
            return Err(format!("the value {field} in column {column} is no field of {scheme}"));
        }
        pending |= (field as u32) << pending_bits;
        pending_bits += bits;
        column += 1;
        while pending_bits >= 8 || (column == columns && pending_bits > 0) {
            packed.push(pending as u8);
            pending >>= 8;
            pending_bits = pending_bits.saturating_sub(8);
        }
        if column == columns {
            column = 0;
        }
    }
    Ok(packed)
}

/// Writes the fields of one row, one a byte, into `out` (`[columns]`).
pub(super) fn row_fields(matrix: &PackedMatrix, row: usize, out: &mut [u8]) {
    let packed = matrix.row(row);
    for (column, out) in out.iter_mut().enumerate() {
        *out = field(matrix.scheme(), packed, column);
    }
}

/// Checks what a file can get wrong inside packed rows (`[rows, row_bytes]`): fields that mean nothing, and spare
/// bits that are not zero, which kernels count on.
///
/// # Errors
/// What is wrong, and in which row.
pub(super) fn check_packed(scheme: Scheme, columns: usize, packed: &[u8]) -> Result<(), String> {
    let stride = row_bytes(scheme, columns);
    let used = (columns * scheme.code_bits() as usize - 1) % 8 + 1;
    let spare = match scheme {
        Scheme::Binary => 0xffu8.checked_shr(used as u32),
        _ => 0xffu8.checked_shl(used as u32),
    }
    .unwrap_or(0);
    for (row, bytes) in packed.chunks_exact(stride).enumerate() {
        if bytes[stride - 1] & spare != 0 {
            return Err(format!("the spare bits of row {row} are not zero"));
        }
        // Both bits of a two-bit field set is 3, and a ternary field is 0, 1 or 2.
        if scheme == Scheme::Ternary && bytes.iter().fold(0, |all, byte| all | (byte & (byte >> 1) & 0x55)) != 0 {
            return Err(format!("row {row} holds the value 3, which is no field of ternary"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_pack_as_the_core_packs_them() {
        for scheme in &Scheme::ALL[1..] {
            for columns in [1, 2, 3, 7, 8, 9, 31, 64] {
                let fields: Vec<u8> = (0..3 * columns).map(|i| (i as u32 * 7 % scheme.levels()) as u8).collect();
                let packed = pack_fields(*scheme, columns, fields.iter().copied()).unwrap();
                check_packed(*scheme, columns, &packed).unwrap();
                let matrix = PackedMatrix::new(*scheme, [3, columns], packed.into(), vec![1.0; 3], None).unwrap();
                let mut row = vec![0; columns];
                for r in 0..3 {
                    row_fields(&matrix, r, &mut row);
                    assert_eq!(row, fields[r * columns..(r + 1) * columns], "{scheme} {columns}");
                }
            }
        }
    }

    #[test]
    fn damage_inside_rows_is_found() {
        assert!(pack_fields(Scheme::Int4, 2, [3, 16].into_iter()).unwrap_err().contains("16 in column 1"));
        assert!(check_packed(Scheme::Ternary, 4, &[0b1001_1000]).is_ok());
        assert!(check_packed(Scheme::Ternary, 4, &[0b1011_0000]).unwrap_err().contains("value 3"));
        assert!(check_packed(Scheme::Binary, 9, &[0xff, 0x80]).is_ok());
        assert!(check_packed(Scheme::Binary, 9, &[0xff, 0xc0]).unwrap_err().contains("row 0"));
        assert!(check_packed(Scheme::Int3, 3, &[0xff, 0x01]).is_ok());
        assert!(check_packed(Scheme::Int3, 3, &[0xff, 0x03]).is_err());
        assert!(check_packed(Scheme::Int8, 1, &[0xff]).is_ok());
    }
}
