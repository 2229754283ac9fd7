//! Where a field lies in packed bytes: the layout "panels16", which is that of files and of the kernels.
//!
//! A **panel** is 16 rows, a **block** is some columns of a panel; blocks follow each other along the columns, panels
//! along the rows. A block consists of vectors of 64 bytes. Byte `4 * r + b` of a vector belongs to row `r` of the
//! panel, so a 32-bit lane of a 512-bit register is a row, and four neighbouring columns lie in the four bytes of a lane,
//! as the dot-product instructions of x86 and Arm want them. Above that, columns are stacked in the bits of a byte:
//!
//! | scheme | columns of a block | vectors | column `c` of a block |
//! |---|---|---|---|
//! | `binary` | 32 | 1 | byte `c % 4`, bit `c / 4` |
//! | `ternary`, `seq2`, `int2` | 16 | 1 | byte `c % 4`, bits `2 * (c / 4)` and up |
//! | `int3` | 32 | 3 | its low two bits like `int2` in vectors 0 and 1, its high bit like `binary` in vector 2 |
//! | `int4`, `nf4` | 8 | 1 | byte `c % 4`, bits `4 * (c / 4)` and up |
//! | `int8` | 4 | 1 | byte `c` |
//!
//! Rows and columns that a matrix has not, but its last panel or block, are fields of 0.

use crate::Scheme;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of a vector: four columns of every row of a panel.
pub const VECTOR_BYTES: usize = 4 * PANEL_ROWS;
/// A multiple of the columns of any scheme's block. Groups of columns with a scale of their own are whole multiples.
pub const COLUMN_UNIT: usize = 32;

impl Scheme {
    /// Columns of a block.
    pub const fn block_columns(self) -> usize {
        match self {
            Scheme::Binary | Scheme::Int3 => 32,
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => 16,
            Scheme::Int4 | Scheme::Nf4 => 8,
            Scheme::Int8 => 4,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Scheme::Int3 => 3 * VECTOR_BYTES,
            _ => VECTOR_BYTES,
        }
    }

    /// Bytes of a panel of `columns` columns.
    pub const fn panel_bytes(self, columns: usize) -> usize {
        columns.div_ceil(self.block_columns()) * self.block_bytes()
    }

    /// Bytes of a packed matrix `[rows, columns]`; `None` if that is no number.
    pub fn packed_bytes(self, [rows, columns]: [usize; 2]) -> Option<usize> {
        let blocks = columns.div_ceil(self.block_columns());
        blocks.checked_mul(self.block_bytes())?.checked_mul(rows.div_ceil(PANEL_ROWS))
    }
}

/// The field of `column` of row `row` (below [`PANEL_ROWS`]) of a panel.
pub fn field(scheme: Scheme, panel: &[u8], row: usize, column: usize) -> u8 {
    let (block, c) = (column / scheme.block_columns(), column % scheme.block_columns());
    let block = &panel[block * scheme.block_bytes()..];
    let (byte, plane) = (4 * row + c % 4, c / 4);
    match scheme {
        Scheme::Binary => block[byte] >> plane & 1,
        Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => block[byte] >> (2 * plane) & 3,
        Scheme::Int3 => {
            let low = block[plane / 4 * VECTOR_BYTES + byte] >> (2 * (plane % 4)) & 3;
            low | (block[2 * VECTOR_BYTES + byte] >> plane & 1) << 2
        }
        Scheme::Int4 | Scheme::Nf4 => block[byte] >> (4 * plane) & 15,
        Scheme::Int8 => block[byte],
    }
}

/// Puts `field` where [`field`] finds it. The place must be 0 before.
pub(crate) fn put_field(scheme: Scheme, panel: &mut [u8], row: usize, column: usize, field: u8) {
    let (block, c) = (column / scheme.block_columns(), column % scheme.block_columns());
    let block = &mut panel[block * scheme.block_bytes()..];
    let (byte, plane) = (4 * row + c % 4, c / 4);
    match scheme {
        Scheme::Binary => block[byte] |= field << plane,
        Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => block[byte] |= field << (2 * plane),
        Scheme::Int3 => {
            block[plane / 4 * VECTOR_BYTES + byte] |= (field & 3) << (2 * (plane % 4));
            block[2 * VECTOR_BYTES + byte] |= (field >> 2) << plane;
        }
        Scheme::Int4 | Scheme::Nf4 => block[byte] |= field << (4 * plane),
        Scheme::Int8 => block[byte] = field,
    }
}

/// The fields of one row of a panel, from column 0 on, into `out`. What [`field`] gives one by one, a block at a time.
pub(crate) fn row_fields(scheme: Scheme, panel: &[u8], row: usize, out: &mut [u8]) {
    let blocks = panel.chunks_exact(scheme.block_bytes());
    for (block, out) in blocks.zip(out.chunks_mut(scheme.block_columns())) {
        let lane = |vector: usize| &block[vector * VECTOR_BYTES + 4 * row..][..4];
        let stacked = |vector: usize, bits: usize, out: &mut [u8]| {
            for (plane, out) in out.chunks_mut(4).enumerate() {
                for (out, byte) in out.iter_mut().zip(lane(vector)) {
                    *out = byte >> (plane * bits) & ((1 << bits) - 1) as u8;
                }
            }
        };
        match scheme {
            Scheme::Binary => stacked(0, 1, out),
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => stacked(0, 2, out),
            Scheme::Int4 | Scheme::Nf4 => stacked(0, 4, out),
            Scheme::Int8 => out.iter_mut().zip(lane(0)).for_each(|(out, byte)| *out = *byte),
            Scheme::Int3 => {
                for (vector, out) in out.chunks_mut(16).enumerate() {
                    stacked(vector, 2, out);
                }
                for (plane, out) in out.chunks_mut(4).enumerate() {
                    for (out, byte) in out.iter_mut().zip(lane(2)) {
                        *out |= (byte >> plane & 1) << 2;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_apart_and_rows_read_back() {
        for scheme in Scheme::ALL {
            for columns in [1, 3, 4, 5, 16, 31, 32, 33, 70] {
                let mut panel = vec![0; scheme.panel_bytes(columns)];
                let value = |row: usize, column: usize| ((row * 31 + column * 7) as u32 % scheme.levels()) as u8;
                for row in 0..PANEL_ROWS {
                    (0..columns).for_each(|column| put_field(scheme, &mut panel, row, column, value(row, column)));
                }
                let mut out = vec![0; columns];
                for row in 0..PANEL_ROWS {
                    row_fields(scheme, &panel, row, &mut out);
                    for (column, found) in out.iter().enumerate() {
                        assert_eq!(*found, value(row, column), "{scheme} {row} {column}");
                        assert_eq!(*found, field(scheme, &panel, row, column));
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_holds_its_bits_and_divides_the_unit() {
        for scheme in Scheme::ALL {
            assert_eq!(COLUMN_UNIT % scheme.block_columns(), 0);
            let bits = scheme.block_columns() * PANEL_ROWS * scheme.code_bits() as usize;
            assert_eq!(bits, scheme.block_bytes() * 8);
        }
        assert_eq!(Scheme::Int8.packed_bytes([usize::MAX, 1 << 40]), None);
    }
}
