//! The place of a field in packed bytes: the layout "panels16", which files and kernels share.
//!
//! A **panel** is 16 rows, a **block** is some columns of a panel; blocks follow each other along the columns, panels
//! along the rows. A block consists of vectors of 64 bytes. Byte `4 * r + b` of a vector belongs to row `r` of the
//! panel, so a 32-bit lane of a 512-bit register is a row, and four neighbouring columns, a **quad**, lie in the four bytes of
//! a lane, as the dot-product instructions of x86 and Arm want them. Above that, quads are stacked in the bits of a byte:
//!
//! | bits | schemes | columns of a block | vectors | column `c` of a block |
//! |---|---|---|---|---|
//! | 1 | `binary` | 32 | 1 | byte `c % 4`, bit `c / 4` |
//! | 2 | `ternary`, `seq2`, `int2` | 16 | 1 | byte `c % 4`, bits `2 * (c / 4)` and up |
//! | 3 | `int3` | 32 | 3 | its low two bits as of 2 bits in vectors 0 and 1, its high bit as of 1 bit in vector 2 |
//! | 4 | `int4`, `nf4`, `iq4` | 8 | 1 | byte `c % 4`, bits `4 * (c / 4)` and up |
//! | 5 | `int5` | 32 | 5 | its low four bits as of 4 bits in vectors 0 to 3, its high bit as of 1 bit in vector 4 |
//! | 6 | `int6` | 32 | 6 | its low four bits as of 4 bits in vectors 0 to 3, its high two as of 2 bits in vectors 4 and 5 |
//! | 8 | `int8` | 4 | 1 | byte `c` |
//!
//! Rows and columns that a matrix has not, but its last panel or block, are fields of 0.

use bytes::Bytes;

use crate::Scheme;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of a vector: four columns of every row of a panel.
pub const VECTOR_BYTES: usize = 4 * PANEL_ROWS;
/// A multiple of the columns of any block. Groups of columns with a scale of their own are whole multiples.
pub const COLUMN_UNIT: usize = 32;

/// The bytes that `fill` makes of `len` zeros. They start at a multiple of [`VECTOR_BYTES`], as those in the map of an artifact do:
/// a vector that lies across two cache lines takes longer to read.
///
/// # Errors
/// Whatever `fill` fails with.
pub fn aligned_bytes<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
    let mut buffer = vec![0u8; len.saturating_add(VECTOR_BYTES)];
    let start = buffer.as_ptr().align_offset(VECTOR_BYTES).min(VECTOR_BYTES);
    fill(&mut buffer[start..][..len])?;
    Ok(Bytes::from(buffer).slice(start..start + len))
}

/// Columns of a quad.
const QUAD: usize = 4;

/// Bits that a field takes in a panel, which are all that its place depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldBits {
    /// Fields 0 and 1.
    One,
    /// Fields 0 to 3.
    Two,
    /// Fields 0 to 7.
    Three,
    /// Fields 0 to 15.
    Four,
    /// Fields 0 to 31.
    Five,
    /// Fields 0 to 63.
    Six,
    /// Fields 0 to 255.
    Eight,
}

impl FieldBits {
    /// All widths, from the fewest bits up.
    pub const ALL: [FieldBits; 7] = [
        FieldBits::One,
        FieldBits::Two,
        FieldBits::Three,
        FieldBits::Four,
        FieldBits::Five,
        FieldBits::Six,
        FieldBits::Eight,
    ];

    /// The number of bits.
    pub const fn count(self) -> usize {
        let (low, high) = self.parts();
        low + high
    }

    /// The largest field.
    pub const fn largest(self) -> u8 {
        u8::MAX >> (8 - self.count())
    }

    /// Bits that stand in a block's first vectors, and bits that stand in vectors behind them, maybe none.
    pub const fn parts(self) -> (usize, usize) {
        match self {
            FieldBits::One => (1, 0),
            FieldBits::Two => (2, 0),
            FieldBits::Three => (2, 1),
            FieldBits::Four => (4, 0),
            FieldBits::Five => (4, 1),
            FieldBits::Six => (4, 2),
            FieldBits::Eight => (8, 0),
        }
    }

    /// Columns of a block.
    pub const fn block_columns(self) -> usize {
        block_columns(self.parts())
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.block_columns() * self.count() * PANEL_ROWS / 8
    }

    /// Bytes of a panel of `columns` columns.
    pub const fn panel_bytes(self, columns: usize) -> usize {
        columns.div_ceil(self.block_columns()) * self.block_bytes()
    }

    /// Bytes of all panels of a matrix `[rows, columns]`; `None` if that is no number.
    pub fn packed_bytes(self, [rows, columns]: [usize; 2]) -> Option<usize> {
        let blocks = columns.div_ceil(self.block_columns());
        blocks.checked_mul(self.block_bytes())?.checked_mul(rows.div_ceil(PANEL_ROWS))
    }
}

/// Columns of a block: those that fill a vector, or 32 where some bits have vectors of their own.
const fn block_columns((low, high): (usize, usize)) -> usize {
    if high == 0 { QUAD * 8 / low } else { 32 }
}

impl Scheme {
    /// Columns of a block.
    pub const fn block_columns(self) -> usize {
        self.field_bits().block_columns()
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.field_bits().block_bytes()
    }

    /// Bytes of a panel of `columns` columns.
    pub const fn panel_bytes(self, columns: usize) -> usize {
        self.field_bits().panel_bytes(columns)
    }

    /// Bytes of a packed matrix `[rows, columns]`; `None` if that is no number.
    pub fn packed_bytes(self, shape: [usize; 2]) -> Option<usize> {
        self.field_bits().packed_bytes(shape)
    }
}

/// The field of `column` of row `row` (below [`PANEL_ROWS`]) of a panel.
pub fn field(bits: FieldBits, panel: &[u8], row: usize, column: usize) -> u8 {
    let (low, high) = bits.parts();
    let (block, c) = (column / bits.block_columns(), column % bits.block_columns());
    let block = &panel[block * bits.block_bytes()..];
    // Column `c` of those that are stacked, `bits` each, from vector `first` on.
    let stacked = |first: usize, bits: usize| {
        let (vector, plane) = (first + c * bits / 32, c / QUAD % (8 / bits));
        block[vector * VECTOR_BYTES + QUAD * row + c % QUAD] >> (plane * bits) & u8::MAX >> (8 - bits)
    };
    match high {
        0 => stacked(0, low),
        _ => stacked(0, low) | stacked(low, high) << low,
    }
}

/// Writes the fields of row `row` (below [`PANEL_ROWS`]) of a panel, or of some whole blocks of one, from column 0 on. Columns
/// after the last of `fields` in its block become 0; other rows and later blocks stay as they are.
///
/// # Panics
/// If the panel is of fewer columns. Bits of a field beyond `bits` spoil fields beside it.
pub fn put_row(bits: FieldBits, panel: &mut [u8], row: usize, fields: &[u8]) {
    match bits {
        FieldBits::One => put::<1, 0>(panel, row, fields),
        FieldBits::Two => put::<2, 0>(panel, row, fields),
        FieldBits::Three => put::<2, 1>(panel, row, fields),
        FieldBits::Four => put::<4, 0>(panel, row, fields),
        FieldBits::Five => put::<4, 1>(panel, row, fields),
        FieldBits::Six => put::<4, 2>(panel, row, fields),
        FieldBits::Eight => put::<8, 0>(panel, row, fields),
    }
}

/// [`put_row`] of fields with `LOW` and `HIGH` bits in two parts.
#[inline(always)]
fn put<const LOW: usize, const HIGH: usize>(panel: &mut [u8], row: usize, fields: &[u8]) {
    let columns = const { block_columns((LOW, HIGH)) };
    let bytes = columns * (LOW + HIGH) * PANEL_ROWS / 8;
    assert!(row < PANEL_ROWS && panel.len() >= fields.len().div_ceil(columns) * bytes, "the panel is too small");
    let (blocks, rest) = fields.as_chunks::<QUAD>().0.split_at(fields.len() / columns * (columns / QUAD));
    let (panel, last) = panel.split_at_mut(fields.len() / columns * bytes);
    for (block, quads) in panel.chunks_exact_mut(bytes).zip(blocks.chunks_exact(columns / QUAD)) {
        put_block::<LOW, HIGH>(block, row, quads);
    }
    if !fields.len().is_multiple_of(columns) {
        let mut quads = [[0; QUAD]; COLUMN_UNIT / QUAD];
        quads[..rest.len()].copy_from_slice(rest);
        let tail = fields.as_chunks::<QUAD>().1;
        quads.as_flattened_mut()[QUAD * rest.len()..][..tail.len()].copy_from_slice(tail);
        put_block::<LOW, HIGH>(&mut last[..bytes], row, &quads[..columns / QUAD]);
    }
}

/// One block of [`put`], a lane at a time.
#[inline(always)]
fn put_block<const LOW: usize, const HIGH: usize>(block: &mut [u8], row: usize, quads: &[[u8; QUAD]]) {
    let low = if HIGH == 0 { u32::MAX } else { u32::MAX / 255 * ((1 << LOW) - 1) };
    for (vector, quads) in block.chunks_exact_mut(VECTOR_BYTES).zip(quads.chunks_exact(8 / LOW)) {
        let lane = (0..).zip(quads).fold(0, |lane, (i, quad)| lane | (u32::from_le_bytes(*quad) & low) << (LOW * i));
        vector[QUAD * row..][..QUAD].copy_from_slice(&lane.to_le_bytes());
    }
    if HIGH > 0 {
        let (mask, high) = (u32::MAX / 255 * ((1 << HIGH) - 1), &mut block[LOW * VECTOR_BYTES..]);
        for (vector, quads) in high.chunks_exact_mut(VECTOR_BYTES).zip(quads.chunks_exact(8 / HIGH.max(1))) {
            let upper = |quad: &[u8; QUAD]| u32::from_le_bytes(*quad) >> LOW & mask;
            let lane = (0..).zip(quads).fold(0, |lane, (i, quad)| lane | upper(quad) << (HIGH * i));
            vector[QUAD * row..][..QUAD].copy_from_slice(&lane.to_le_bytes());
        }
    }
}

/// The fields of one row of a panel, from column 0 on, into `out`. What [`field`] gives one by one, a block at a time.
pub fn row_fields(bits: FieldBits, panel: &[u8], row: usize, out: &mut [u8]) {
    let (low, high) = bits.parts();
    for (block, out) in panel.chunks_exact(bits.block_bytes()).zip(out.chunks_mut(bits.block_columns())) {
        let (vectors, _) = block.as_chunks::<VECTOR_BYTES>();
        unstack(&vectors[..vectors.len() * low / (low + high)], row, low, out, |out, field| *out = field);
        if high > 0 {
            unstack(&vectors[low..], row, high, out, |out, field| *out |= field << low);
        }
    }
}

/// Parts of fields, `bits` each, out of the vectors where they are stacked.
fn unstack(vectors: &[[u8; VECTOR_BYTES]], row: usize, bits: usize, out: &mut [u8], put: impl Fn(&mut u8, u8)) {
    for (vector, out) in vectors.iter().zip(out.chunks_mut(32 / bits)) {
        let lane = &vector[QUAD * row..][..QUAD];
        for (plane, out) in out.chunks_mut(QUAD).enumerate() {
            let fields = lane.iter().map(|byte| byte >> (plane * bits) & u8::MAX >> (8 - bits));
            out.iter_mut().zip(fields).for_each(|(out, field)| put(out, field));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts one field where the table above says, as [`Scheme`]s had them before there were other widths.
    fn put_field(bits: FieldBits, panel: &mut [u8], row: usize, column: usize, field: u8) {
        let (block, c) = (column / bits.block_columns(), column % bits.block_columns());
        let block = &mut panel[block * bits.block_bytes()..];
        let (byte, plane) = (4 * row + c % 4, c / 4);
        match bits {
            FieldBits::One => block[byte] |= field << plane,
            FieldBits::Two => block[byte] |= field << (2 * plane),
            FieldBits::Three => {
                block[plane / 4 * VECTOR_BYTES + byte] |= (field & 3) << (2 * (plane % 4));
                block[2 * VECTOR_BYTES + byte] |= (field >> 2) << plane;
            }
            FieldBits::Four => block[byte] |= field << (4 * plane),
            FieldBits::Five => {
                block[plane / 2 * VECTOR_BYTES + byte] |= (field & 15) << (4 * (plane % 2));
                block[4 * VECTOR_BYTES + byte] |= (field >> 4) << plane;
            }
            FieldBits::Six => {
                block[plane / 2 * VECTOR_BYTES + byte] |= (field & 15) << (4 * (plane % 2));
                block[(4 + plane / 4) * VECTOR_BYTES + byte] |= (field >> 4) << (2 * (plane % 4));
            }
            FieldBits::Eight => block[byte] = field,
        }
    }

    #[test]
    fn fields_stay_apart_and_rows_read_back() {
        for bits in FieldBits::ALL {
            for columns in [1, 3, 4, 5, 16, 31, 32, 33, 70, 256] {
                let mut panel = vec![0; bits.panel_bytes(columns)];
                let mut by_rows = panel.clone();
                let value = |row: usize, column: usize| (row * 31 + column * 7 + column / 5) as u8 & bits.largest();
                for row in 0..PANEL_ROWS {
                    (0..columns).for_each(|column| put_field(bits, &mut panel, row, column, value(row, column)));
                    let fields: Vec<u8> = (0..columns).map(|column| value(row, column)).collect();
                    put_row(bits, &mut by_rows, row, &fields);
                }
                assert_eq!(panel, by_rows, "{bits:?} {columns}");
                let mut out = vec![0; columns];
                for row in 0..PANEL_ROWS {
                    row_fields(bits, &panel, row, &mut out);
                    for (column, found) in out.iter().enumerate() {
                        assert_eq!(*found, value(row, column), "{bits:?} {row} {column}");
                        assert_eq!(*found, field(bits, &panel, row, column));
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_overwritten_and_nothing_beside_it() {
        for bits in FieldBits::ALL {
            let mut panel = vec![0xff; bits.panel_bytes(64)];
            put_row(bits, &mut panel, 5, &[0; 30]);
            for row in 0..PANEL_ROWS {
                for column in 0..64 {
                    let cleared = row == 5 && column < 30usize.next_multiple_of(bits.block_columns());
                    let expected = if cleared { 0 } else { bits.largest() };
                    assert_eq!(field(bits, &panel, row, column), expected, "{bits:?} {row} {column}");
                }
            }
        }
    }

    #[test]
    #[ignore = "prints times"]
    fn rows_are_written_in_this_time() {
        let (rows, columns) = (4096, 4096);
        for bits in FieldBits::ALL {
            let fields: Vec<u8> = (0..columns).map(|i| (i * 7) as u8 & bits.largest()).collect();
            let mut panels = vec![0; bits.packed_bytes([rows, columns]).unwrap()];
            for _ in 0..2 {
                let start = std::time::Instant::now();
                for panel in panels.chunks_exact_mut(bits.panel_bytes(columns)) {
                    (0..PANEL_ROWS).for_each(|row| put_row(bits, panel, row, &fields));
                }
                println!("{bits:?}: {:.2} GB/s", (rows * columns) as f64 / 1e9 / start.elapsed().as_secs_f64());
            }
        }
    }

    #[test]
    fn a_block_holds_its_bits_and_divides_the_unit() {
        for bits in FieldBits::ALL {
            assert_eq!(COLUMN_UNIT % bits.block_columns(), 0);
            assert_eq!(bits.block_columns() * PANEL_ROWS * bits.count(), bits.block_bytes() * 8);
            assert_eq!(bits.block_bytes() % VECTOR_BYTES, 0);
        }
        for scheme in Scheme::ALL {
            assert_eq!(scheme.field_bits().count(), scheme.code_bits() as usize);
        }
        assert_eq!(Scheme::Int8.packed_bytes([usize::MAX, 1 << 40]), None);
    }
}
