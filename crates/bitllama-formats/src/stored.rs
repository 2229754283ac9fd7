//! Matrices that stay in 16 bits or in blocks of ggml, in their memory-mapped file or in memory: rows become f32 when they are read,
//! so that a model opens without 4 bytes per weight.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bitllama_core::{BlockMatrix, RoundedMatrix, StoredRows};
use bytes::Bytes;
use memmap2::Mmap;

use crate::gguf::{self, BlockFormat};
use crate::{StoredWeight, finite};

/// A matrix whose rows follow each other in bytes. Where these are a mapped file's, it keeps the map; what has been read can be given
/// back to the system meanwhile.
#[derive(Clone)]
pub(crate) struct TypedRows {
    bytes: Bytes,
    format: BlockFormat,
    rows: usize,
    columns: usize,
    /// Rows of a head that llama.cpp keeps in the order of its rotary embedding.
    head_dim: Option<usize>,
}

impl TypedRows {
    /// The `[rows, columns]` in the bytes `range` of a file; `None` where they are not as many as the shape takes, or are not within
    /// the file.
    pub fn mapped(map: &Arc<Mmap>, range: Range<usize>, format: BlockFormat, shape: [usize; 2]) -> Option<Self> {
        map.get(range.clone())?;
        Self::new(Bytes::from_owner(Map(Arc::clone(map))).slice(range), format, shape)
    }

    /// The `[rows, columns]` in `bytes`; `None` where they are not as many as the shape takes.
    pub fn new(bytes: Bytes, format: BlockFormat, [rows, columns]: [usize; 2]) -> Option<Self> {
        let row_bytes = columns / format.block_len() * format.block_bytes();
        let fits = columns > 0
            && columns.is_multiple_of(format.block_len())
            && row_bytes.checked_mul(rows) == Some(bytes.len());
        fits.then_some(TypedRows { bytes, format, rows, columns, head_dim: None })
    }

    /// The same rows in Hugging Face's order: llama.cpp turns neighbouring rows of a head together (`2i`, `2i + 1`), Hugging
    /// Face rows `i` and `i + head_dim / 2`. It is the inverse of `permute` in `convert_hf_to_gguf.py`.
    pub fn of_half_rotation(self, head_dim: usize) -> Self {
        Self { head_dim: Some(head_dim).filter(|width| *width > 0), ..self }
    }

    /// The first value that is infinite or NaN with its place in the file, as an error says it after the weight's name.
    pub fn fault(&self) -> Option<String> {
        if gguf::are_finite(self.format, self.run(0, self.rows)) == Some(true) {
            return None;
        }
        let mut tile = vec![0.0; (TILE / self.columns).clamp(1, self.rows.max(1)) * self.columns];
        (0..self.rows).step_by(tile.len() / self.columns).find_map(|first| {
            let count = (tile.len() / self.columns).min(self.rows - first);
            let tile = &mut tile[..count * self.columns];
            self.run_into(first, tile);
            finite::fault_from(first * self.columns, &[self.rows, self.columns], tile)
        })
    }

    /// Rows that follow each other in the file.
    fn run_into(&self, first: usize, out: &mut [f32]) {
        self.format.dequantize_into(self.run(first, out.len() / self.columns), out);
    }

    /// The bytes of rows that follow each other in the file.
    fn run(&self, first: usize, count: usize) -> &[u8] {
        let row_bytes = self.columns / self.format.block_len() * self.format.block_bytes();
        &self.bytes[first * row_bytes..][..count * row_bytes]
    }

    /// The place in the file of a row.
    fn place(&self, row: usize) -> usize {
        place_in_rotation(row, self.head_dim)
    }
}

/// The place in a file of llama.cpp of Hugging Face's row `row`, where rows of `head_dim` are in the order of its rotary embedding.
pub(crate) fn place_in_rotation(row: usize, head_dim: Option<usize>) -> usize {
    let Some(width) = head_dim else { return row };
    let (head, within) = (row / width, row % width);
    let (half, pair) = (within / (width / 2).max(1), within % (width / 2).max(1));
    head * width + 2 * pair + half
}

/// Numbers that are looked at in one go.
const TILE: usize = 1 << 14;

/// A shared map as bytes.
struct Map(Arc<Mmap>);

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A rounded matrix as artifacts and GGUF files hold it: blocks become rows of the type of ggml that has their form.
impl From<RoundedMatrix> for StoredWeight {
    fn from(matrix: RoundedMatrix) -> Self {
        match matrix {
            RoundedMatrix::Packed(matrix) => Self::Packed(matrix),
            RoundedMatrix::Blocks(matrix) => {
                let shape = [matrix.rows(), matrix.columns()];
                let typed = gguf::put_matrix(&matrix);
                match typed.and_then(|(format, bytes)| TypedRows::new(bytes.into(), format, shape)) {
                    Some(rows) => Self::Rows(Arc::new(rows)),
                    // Unreachable for the quantizers of targets, whose forms are those of types.
                    None => Self::Full(RoundedMatrix::Blocks(matrix).dequantize().data),
                }
            }
        }
    }
}

impl StoredRows for TypedRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.rows * (self.columns / self.format.block_len()) * self.format.block_bytes()
    }

    fn rows_into(&self, first: usize, out: &mut [f32]) {
        let count = out.len() / self.columns;
        assert_eq!(count * self.columns, out.len(), "{} numbers are no rows of {}", out.len(), self.columns);
        assert!(first + count <= self.rows, "rows {first} to {} of {}", first + count, self.rows);
        match self.head_dim {
            None => self.run_into(first, out),
            Some(_) => {
                for (index, out) in out.chunks_exact_mut(self.columns).enumerate() {
                    self.run_into(self.place(first + index), out);
                }
            }
        }
    }

    fn stored_row(&self, row: usize) -> Option<(&'static str, &[u8])> {
        Some((self.format.name(), self.run(self.place(row), 1)))
    }

    fn panels(&self) -> Option<BlockMatrix> {
        gguf::panels(self.format, [self.rows, self.columns], |row| self.run(self.place(row), 1))
    }
}

impl fmt::Debug for TypedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}] of {}", self.rows, self.columns, self.format.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 4 in F16 whose numbers are `10 * row + column`, behind 6 other bytes.
    fn mapped(rows: usize, spoil: impl Fn(&mut [f32])) -> (tempfile::NamedTempFile, Arc<Mmap>, Range<usize>) {
        let mut numbers: Vec<f32> = (0..4 * rows).map(|i| (10 * (i / 4) + i % 4) as f32).collect();
        spoil(&mut numbers);
        let mut bytes = vec![0; 6];
        bytes.extend(numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let map = Arc::new(crate::map::open(file.path()).unwrap());
        (file, map, 6..bytes.len())
    }

    #[test]
    fn any_rows_are_read_alone() {
        let (_file, map, bytes) = mapped(5, |_| ());
        let matrix = TypedRows::mapped(&map, bytes.clone(), BlockFormat::F16, [5, 4]).unwrap();
        let mut out = [0.0; 8];
        matrix.rows_into(3, &mut out);
        assert_eq!(out, [30.0, 31.0, 32.0, 33.0, 40.0, 41.0, 42.0, 43.0]);
        assert_eq!((matrix.rows(), matrix.columns(), matrix.bytes()), (5, 4, 40));
        for shape in [[4, 4], [5, 3], [0, 4], [5, 0], [usize::MAX, 4]] {
            assert!(TypedRows::mapped(&map, bytes.clone(), BlockFormat::F16, shape).is_none(), "{shape:?}");
        }
        assert!(TypedRows::mapped(&map, 8..bytes.end + 2, BlockFormat::F16, [5, 4]).is_none());
        assert!(TypedRows::mapped(&map, bytes, BlockFormat::Q8_0, [5, 4]).is_none());
    }

    #[test]
    fn rows_of_a_head_come_in_half_rotation_order() {
        let (_file, map, bytes) = mapped(8, |_| ());
        let matrix = TypedRows::mapped(&map, bytes, BlockFormat::F16, [8, 4]).unwrap().of_half_rotation(4);
        let first: Vec<f32> = (&matrix as &dyn StoredRows).to_f32().iter().step_by(4).copied().collect();
        assert_eq!(first, [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
        let mut row = [0.0; 4];
        matrix.rows_into(5, &mut row);
        assert_eq!(row, [60.0, 61.0, 62.0, 63.0]);
    }

    #[test]
    fn blocks_become_panels_in_the_order_of_rows() {
        let (rows, columns) = (24, 64);
        // Blocks of Q8_0, a scale of 1 and 32 codes, which are the block's number.
        let bytes: Vec<u8> = (0..48).flat_map(|i| [0, 0x3c].into_iter().chain([i; 32])).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let map = Arc::new(crate::map::open(file.path()).unwrap());
        let of = |format, columns| {
            TypedRows::mapped(&map, 0..map.len(), format, [rows, columns]).unwrap().of_half_rotation(8)
        };
        let matrix = of(BlockFormat::Q8_0, columns);
        let panels = matrix.panels().unwrap();
        let (mut found, mut expected) = (vec![0.0; columns], vec![0.0; columns]);
        for row in 0..rows {
            panels.dequantize_row_into(row, &mut found);
            matrix.rows_into(row, &mut expected);
            assert_eq!(found, expected);
            assert_eq!(found[0], 2.0 * matrix.place(row) as f32);
        }
        assert!(of(BlockFormat::F16, columns * 34 / 64).panels().is_none());
    }

    #[test]
    fn a_number_that_is_not_finite_is_placed_as_in_the_file() {
        let rows = 3 * TILE / 4;
        let last = 4 * rows - 2;
        let (_file, map, bytes) = mapped(rows, |numbers| {
            numbers.iter_mut().for_each(|x| *x = 1.0);
            numbers[last] = f32::NAN;
        });
        let matrix = TypedRows::mapped(&map, bytes, BlockFormat::F16, [rows, 4]).unwrap();
        assert!(matrix.fault().unwrap().starts_with(&format!("holds NaN at [{}, 2];", rows - 1)));
        let (_file, map, bytes) = mapped(5, |_| ());
        assert_eq!(TypedRows::mapped(&map, bytes, BlockFormat::F16, [5, 4]).unwrap().fault(), None);
    }
}
