//! Codes, scales and zero points of packed matrices in the layouts of ONNX operators, each number as it is.
//!
//! `MatMulNBits` and `GatherBlockQuantized` read rows of unsigned codes in 2, 4 or 8 bits, in blocks of 16 to 256 columns with a scale
//! each; a code counts from the zero point of its block, `2^(bits - 1)` where there are none. `DequantizeLinear` reads signed codes, or
//! unsigned ones with zero points, in 4 or 8 bits. Both compute `(code - zero point) * scale` in f32, as
//! [`PackedMatrix::dequantize`] does.

use bitllama_core::scales::PackedScales;
use bitllama_core::{PackedMatrix, Scheme};

use super::proto::DataType;

/// Block sizes that are written: powers of two in this range, which `MatMulNBits` has at least.
const BLOCKS: std::ops::RangeInclusive<usize> = 16..=256;
/// Block size where rows are no whole blocks of any size; the last block is then filled up.
const PADDED_BLOCK: usize = 32;

/// How codes stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// Whether codes are in two's complement, which have no zero points.
    pub signed: bool,
    /// Number that is added to each field and zero point of a matrix with zero points.
    shift: i32,
    /// Columns that share a scale.
    pub block: usize,
}

/// The grid of the fewest bits in which `MatMulNBits` holds a matrix.
///
/// # Errors
/// The reason why it does not, in one line.
pub(super) fn nbits(matrix: &PackedMatrix) -> Result<Grid, String> {
    Ok(Grid { block: nbits_block(matrix), ..grid(matrix, &[2, 4, 8], false)? })
}

/// As [`nbits`], for `GatherBlockQuantized`, whose rows are whole blocks.
///
/// # Errors
/// As [`nbits`].
pub(super) fn gathered_nbits(matrix: &PackedMatrix) -> Result<Grid, String> {
    let grid = nbits(matrix)?;
    match matrix.columns().is_multiple_of(grid.block) {
        true => Ok(grid),
        false => Err(format!("rows of {} columns are no whole blocks of {}", matrix.columns(), BLOCKS.start())),
    }
}

/// The grid of one of `widths` bits in which `DequantizeLinear` holds a matrix.
///
/// # Errors
/// As [`nbits`].
pub(super) fn dequantized(matrix: &PackedMatrix, widths: &[u32]) -> Result<Grid, String> {
    Ok(Grid { block: matrix.group_size(), ..grid(matrix, widths, matrix.zero_points().is_none())? })
}

/// The first of `widths` that holds all codes and zero points that a matrix can have; its block is not decided yet.
fn grid(matrix: &PackedMatrix, widths: &[u32], signed: bool) -> Result<Grid, String> {
    let scheme = matrix.scheme();
    if scheme.table().is_some() {
        return Err(format!("no ONNX operator has the levels of {scheme}"));
    }
    let largest_field = scheme.levels() as i32 - 1;
    let (low, high, shift) = match matrix.zero_points() {
        None => {
            let (low, high) = scheme.code_range();
            (low as i32, high as i32, 0)
        }
        Some(points) => {
            let (low, high) =
                points.iter().fold((0, largest_field), |(low, high), point| (low.min(*point), high.max(*point)));
            (0, high.saturating_sub(low), low.saturating_neg())
        }
    };
    let fits = |bits: u32| match matrix.zero_points() {
        None => low >= -(1 << (bits - 1)) && high < 1 << (bits - 1),
        Some(_) => high < 1 << bits,
    };
    match widths.iter().copied().find(|bits| fits(*bits)) {
        Some(bits) => Ok(Grid { bits, signed, shift, block: 0 }),
        None => Err(format!("codes of {scheme} and their zero points need more than 8 bits")),
    }
}

/// The largest block of `MatMulNBits` of which groups of columns are multiples.
fn nbits_block(matrix: &PackedMatrix) -> usize {
    let power = 1 << matrix.group_size().trailing_zeros().min(BLOCKS.end().trailing_zeros());
    if power >= *BLOCKS.start() { power } else { PADDED_BLOCK }
}

impl Grid {
    /// Blocks of a row, the last of which may be filled up.
    pub fn blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.block)
    }

    /// The element type of a tensor of codes that is no string of bytes.
    pub fn dtype(&self) -> DataType {
        match (self.signed, self.bits) {
            (true, 4) => DataType::Int4,
            (false, 4) => DataType::Uint4,
            (true, _) => DataType::Int8,
            (false, _) => DataType::Uint8,
        }
    }

    /// The number in the file for each field of a scheme.
    fn table(&self, scheme: Scheme, has_points: bool) -> [u8; 256] {
        let mut table = [0; 256];
        for field in 0..scheme.levels() {
            let number = match (has_points, self.signed) {
                (true, _) => field as i32 + self.shift,
                (false, true) => scheme.code_of(field as u8) as i32,
                (false, false) => scheme.code_of(field as u8) as i32 + (1 << (self.bits - 1)),
            };
            table[field as usize] = self.masked(number);
        }
        table
    }

    /// The lower bits of a number.
    fn masked(&self, number: i32) -> u8 {
        (number & ((1 << self.bits) - 1)) as u8
    }
}

/// Codes row by row, each filled up to whole blocks: `[rows, blocks, block * bits / 8]` bytes.
pub(super) fn rows(matrix: &PackedMatrix, grid: Grid) -> Vec<u8> {
    let padded = grid.blocks(matrix.columns()) * grid.block;
    let table = grid.table(matrix.scheme(), matrix.zero_points().is_some());
    let mut fields = vec![0; matrix.columns()];
    let mut out = Vec::with_capacity(matrix.rows() * padded * grid.bits as usize / 8);
    let mut row_codes = vec![0; padded];
    for row in 0..matrix.rows() {
        matrix.fields_into(row, &mut fields);
        row_codes.iter_mut().zip(&fields).for_each(|(code, field)| *code = table[*field as usize]);
        pack(&row_codes, grid.bits, padded, &mut out);
    }
    out
}

/// Codes column by column, `[columns, rows]`, packed as one run.
pub(super) fn columns(matrix: &PackedMatrix, grid: Grid) -> Vec<u8> {
    let table = grid.table(matrix.scheme(), matrix.zero_points().is_some());
    let mut codes = vec![0; matrix.rows() * matrix.columns()];
    for (row, codes) in codes.chunks_exact_mut(matrix.columns()).enumerate() {
        matrix.fields_into(row, codes);
        codes.iter_mut().for_each(|code| *code = table[*code as usize]);
    }
    let codes = transposed(&codes, matrix.columns());
    let mut out = Vec::with_capacity(codes.len() * grid.bits as usize / 8 + 1);
    pack(&codes, grid.bits, codes.len(), &mut out);
    out
}

/// Order in which a file has the scales and zero points of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[rows, blocks]`; a scale is repeated where its group has several blocks.
    Rows,
    /// `[groups, rows]`.
    Columns,
}

/// Positions in the matrix's own list, in that order.
fn positions(matrix: &PackedMatrix, grid: Grid, order: Order) -> Vec<usize> {
    let (groups, size) = (matrix.groups(), matrix.group_size());
    let blocks = grid.blocks(matrix.columns());
    match order {
        Order::Rows => {
            let row = |row: usize| (0..blocks).map(move |block| row * groups + block * grid.block / size);
            (0..matrix.rows()).flat_map(row).collect()
        }
        Order::Columns => {
            (0..groups).flat_map(|group| (0..matrix.rows()).map(move |row| row * groups + group)).collect()
        }
    }
}

/// Scales in the type in which the matrix has them: f16, or f32.
pub(super) fn scales(matrix: &PackedMatrix, grid: Grid, order: Order) -> (DataType, Vec<u8>) {
    let positions = positions(matrix, grid, order);
    match matrix.packed_scales() {
        PackedScales::F16(scales) => {
            (DataType::Float16, positions.into_iter().flat_map(|at| scales[at].to_le_bytes()).collect())
        }
        _ => {
            let scales = matrix.scales();
            (DataType::Float, positions.into_iter().flat_map(|at| scales[at].to_le_bytes()).collect())
        }
    }
}

/// Zero points, packed like codes: row by row, or as one run. `None` where there are none.
pub(super) fn zero_points(matrix: &PackedMatrix, grid: Grid, order: Order) -> Option<Vec<u8>> {
    let points = matrix.zero_points()?;
    let positions = positions(matrix, grid, order);
    let points: Vec<u8> = positions.into_iter().map(|at| grid.masked(points[at] + grid.shift)).collect();
    let run = if order == Order::Rows { grid.blocks(matrix.columns()) } else { points.len() };
    let mut out = Vec::new();
    pack(&points, grid.bits, run, &mut out);
    Some(out)
}

/// Numbers of `bits` bits in bytes, the first in the lowest bits; each run of so many begins with a byte of its own.
fn pack(numbers: &[u8], bits: u32, run: usize, out: &mut Vec<u8>) {
    let per_byte = (8 / bits) as usize;
    for run in numbers.chunks(run.max(1)) {
        out.extend(run.chunks(per_byte).map(|numbers| {
            numbers.iter().enumerate().fold(0, |byte, (place, number)| byte | number << (place as u32 * bits))
        }));
    }
}

/// A matrix with rows of `columns` elements, transposed.
pub(super) fn transposed<T: Copy + Default>(matrix: &[T], columns: usize) -> Vec<T> {
    const TILE: usize = 32;
    let rows = matrix.len() / columns;
    let mut out = vec![T::default(); matrix.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_packed_from_the_lowest_bits_up_and_runs_begin_with_a_byte() {
        let packed = |numbers: &[u8], bits, run| {
            let mut out = Vec::new();
            pack(numbers, bits, run, &mut out);
            out
        };
        assert_eq!(packed(&[1, 2, 3, 0, 1], 2, 5), [0b00_11_10_01, 0b01]);
        assert_eq!(packed(&[1, 2, 3, 4, 5, 6], 4, 3), [0x21, 0x03, 0x54, 0x06]);
        assert_eq!(packed(&[200, 3], 8, 2), [200, 3]);
    }

    #[test]
    fn a_matrix_is_transposed_over_the_borders_of_tiles() {
        let (rows, columns) = (35, 70);
        let matrix: Vec<u32> = (0..rows * columns).collect();
        let turned = transposed(&matrix, columns as usize);
        assert!((0..rows * columns).all(|i| turned[(i % columns * rows + i / columns) as usize] == i));
    }
}
