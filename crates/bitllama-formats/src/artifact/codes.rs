//! Codes in the forms of the older tools, to panels and back, and what can be wrong inside panels.

use bitllama_core::panel::{self, PANEL_ROWS, VECTOR_BYTES};
use bitllama_core::scales::PackedScales;
use bitllama_core::{Error, PackedMatrix, Scheme};

use super::forms::Cells;

/// A matrix out of the cells of a file. Panels are taken as they stand, unread; others are packed into panels.
///
/// # Errors
/// The first cell that means nothing, or what does not fit the shape.
pub(super) fn pack(
    (scheme, cells): (Scheme, Cells),
    [rows, columns]: [usize; 2],
    data: bytes::Bytes,
    scales: impl Into<PackedScales>,
    zero_points: Option<Vec<i32>>,
) -> Result<PackedMatrix, Error> {
    let stride = if cells == Cells::Bits { columns.div_ceil(8) } else { columns };
    if cells != Cells::Panels && rows.checked_mul(stride) != Some(data.len()) {
        return Err(Error::Packed(format!("{} bytes do not hold {rows} rows of {stride}", data.len())));
    }
    let bits = |row: usize, out: &mut [u8]| {
        let packed = &data[row * stride..][..stride];
        if !columns.is_multiple_of(8) && packed[columns / 8] << (columns % 8) != 0 {
            return Err(Error::Packed(format!("the spare bits of row {row} are not zero")));
        }
        out.iter_mut().enumerate().for_each(|(column, out)| *out = packed[column / 8] >> (7 - column % 8) & 1);
        Ok(())
    };
    let bytes = |row: usize, out: &mut [u8]| {
        out.copy_from_slice(&data[row * stride..][..stride]);
        if cells == Cells::Codes {
            // Two's complement of -1, 0, 1 to 0, 1, 2; whatever else there is becomes no field of ternary.
            out.iter_mut().for_each(|code| *code = code.wrapping_add(1));
        }
        Ok(())
    };
    match cells {
        Cells::Panels => PackedMatrix::new(scheme, [rows, columns], data, scales, zero_points),
        Cells::Bits => PackedMatrix::from_fields(scheme, [rows, columns], scales, zero_points, bits),
        Cells::Codes | Cells::Fields => PackedMatrix::from_fields(scheme, [rows, columns], scales, zero_points, bytes),
    }
}

/// One row of `matrix` in the cells of the older tools, appended to `out`.
pub(super) fn unpack_row(matrix: &PackedMatrix, cells: Cells, row: usize, fields: &mut [u8], out: &mut Vec<u8>) {
    matrix.fields_into(row, fields);
    match cells {
        Cells::Bits => {
            let byte = |fields: &[u8]| (0..).zip(fields).fold(0, |byte, (bit, field)| byte | field << (7 - bit));
            out.extend(fields.chunks(8).map(byte));
        }
        // As two's complement: 255 is the i8 -1.
        Cells::Codes => out.extend(fields.iter().map(|field| field.wrapping_sub(1))),
        Cells::Fields | Cells::Panels => out.extend_from_slice(fields),
    }
}

/// Checks what a file can get wrong inside panels: fields that mean nothing, and rows or columns beyond the shape that
/// are not zero.
///
/// # Errors
/// What is wrong, and in which row.
pub(super) fn check_panels(matrix: &PackedMatrix) -> Result<(), String> {
    let (scheme, rows, columns) = (matrix.scheme(), matrix.rows(), matrix.columns());
    let padded = columns.next_multiple_of(scheme.block_columns());
    let lane = VECTOR_BYTES / PANEL_ROWS;
    for first in (0..rows).step_by(PANEL_ROWS) {
        let panel = matrix.panel(first / PANEL_ROWS);
        let there = PANEL_ROWS.min(rows - first);
        // Both bits of a two-bit field set is 3, and a ternary field is 0, 1 or 2.
        let three = |byte: &u8| byte & (byte >> 1) & 0x55 != 0;
        if scheme == Scheme::Ternary
            && let Some(at) = panel.iter().position(three)
        {
            let row = first + at % VECTOR_BYTES / lane;
            return Err(format!("row {row} holds the value 3, which is no field of ternary"));
        }
        if panel.chunks_exact(VECTOR_BYTES).any(|vector| vector[there * lane..].iter().any(|byte| *byte != 0)) {
            return Err(format!("the spare rows after row {} are not zero", rows - 1));
        }
        for row in 0..there {
            if (columns..padded).any(|column| panel::field(scheme.field_bits(), panel, row, column) != 0) {
                return Err(format!("the spare columns of row {} are not zero", first + row));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_the_older_tools_survive() {
        for scheme in Scheme::ALL {
            let cells = match scheme {
                Scheme::Binary => Cells::Bits,
                Scheme::Ternary => Cells::Codes,
                _ => Cells::Fields,
            };
            for (rows, columns) in [(1, 1), (3, 7), (16, 8), (17, 9), (31, 33), (32, 64)] {
                let scales = vec![1.0; rows];
                let shape = [rows, columns];
                let matrix = PackedMatrix::from_fields(scheme, shape, scales.clone(), None, |row, out| {
                    let fields = (0..columns).map(|column| ((row * 5 + column * 7) as u32 % scheme.levels()) as u8);
                    out.iter_mut().zip(fields).for_each(|(out, field)| *out = field);
                    Ok::<_, Error>(())
                });
                let matrix = matrix.unwrap();
                check_panels(&matrix).unwrap();
                let (mut fields, mut data) = (vec![0; columns], Vec::new());
                (0..rows).for_each(|row| unpack_row(&matrix, cells, row, &mut fields, &mut data));
                let bytes = if cells == Cells::Bits { columns.div_ceil(8) } else { columns };
                assert_eq!(data.len(), rows * bytes);
                let again = pack((scheme, cells), shape, data.into(), scales, None).unwrap();
                assert_eq!(again, matrix, "{scheme} {rows} x {columns}");
            }
        }
    }

    #[test]
    fn cells_that_mean_nothing_are_found() {
        let pack = |scheme, cells, columns, data: &'static [u8]| {
            pack((scheme, cells), [1, columns], data.into(), vec![1.0], None).map_err(|e| e.to_string())
        };
        let bits = pack(Scheme::Binary, Cells::Bits, 3, &[0b1010_0000]).unwrap();
        assert_eq!(bits.dequantize().data, [1.0, -1.0, 1.0]);
        assert!(pack(Scheme::Binary, Cells::Bits, 9, &[0xff, 0xc0]).unwrap_err().contains("spare bits of row 0"));
        assert!(pack(Scheme::Binary, Cells::Bits, 8, &[0xff]).is_ok());
        assert!(pack(Scheme::Int4, Cells::Fields, 2, &[3, 16]).unwrap_err().contains("16 in column 1"));
        assert!(pack(Scheme::Ternary, Cells::Codes, 3, &[255, 0, 1]).is_ok());
        assert!(pack(Scheme::Ternary, Cells::Codes, 1, &[2]).unwrap_err().contains("no field of ternary"));
        assert!(pack(Scheme::Ternary, Cells::Codes, 1, &[0x80]).unwrap_err().contains("no field of ternary"));
    }

    #[test]
    fn damage_inside_panels_is_found() {
        // The byte `at` of a matrix of zeros, or what is wrong with it.
        let checked = |scheme: Scheme, shape: [usize; 2], at: usize, byte: u8| {
            let mut bytes = vec![0; scheme.packed_bytes(shape).unwrap()];
            bytes[at] = byte;
            check_panels(&PackedMatrix::new(scheme, shape, bytes.into(), vec![1.0; shape[0]], None).unwrap())
        };
        assert!(checked(Scheme::Ternary, [16, 16], 4, 0b1001_1000).is_ok());
        assert!(
            checked(Scheme::Ternary, [18, 32], 128 + 68, 0b1000_1100).unwrap_err().contains("row 17 holds the value 3")
        );
        assert!(checked(Scheme::Int2, [16, 16], 4, 0xff).is_ok());
        assert!(checked(Scheme::Int8, [15, 4], 59, 1).is_ok());
        assert!(checked(Scheme::Int8, [15, 4], 60, 1).unwrap_err().contains("spare rows after row 14"));
        assert!(checked(Scheme::Int8, [16, 7], 64 + 2, 1).is_ok());
        assert!(checked(Scheme::Int8, [16, 7], 64 + 4 * 5 + 3, 1).unwrap_err().contains("spare columns of row 5"));
        // Three bits: column 31 is bit 7 of byte 3, and its high bit lies in the third vector.
        assert!(checked(Scheme::Int3, [16, 31], 2 * 64 + 2, 0x80).is_ok());
        assert!(checked(Scheme::Int3, [16, 31], 2 * 64 + 3, 0x80).unwrap_err().contains("spare columns of row 0"));
        assert!(checked(Scheme::Int3, [16, 31], 64 + 3, 0xc0).unwrap_err().contains("spare columns of row 0"));
        assert!(checked(Scheme::Binary, [16, 30], 4 + 2, 0x80).unwrap_err().contains("spare columns of row 1"));
    }
}
