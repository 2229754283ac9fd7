//! Activations as XNOR networks see them: one bit each, and their mean magnitude (Rastegari et al. 2016,
//! <https://arxiv.org/abs/1603.05279>).

use bitllama_core::activation::NEAR_ZERO;
use bitllama_core::panel::COLUMN_UNIT;

use crate::activations::mean_magnitude;

/// The signs of rows of activations (`[n, in_features]`), in the order of bits of a binary panel.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    columns: usize,
    /// `[n, units]`: bit `8 * (c % 4) + c / 4` is 1 where column `c` of the unit is not negative.
    bits: Vec<u32>,
    /// `[n]`: the mean |x| of each row.
    scales: Vec<f32>,
}

impl Signs {
    /// The signs of `x` (`[n, columns]`) and their scales: [`Activation::Sign`](bitllama_core::Activation::Sign).
    pub fn new(x: &[f32], columns: usize) -> Self {
        let mut signs = Self::default();
        signs.set(x, columns);
        signs
    }

    /// [`Signs::new`] into the memory that is there.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn set(&mut self, x: &[f32], columns: usize) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} activations are no rows of {columns}", x.len());
        self.columns = columns;
        self.bits.clear();
        self.scales.clear();
        for row in x.chunks_exact(columns) {
            let scale = mean_magnitude(row);
            let near = scale * NEAR_ZERO;
            self.scales.push(scale);
            self.bits.extend(row.chunks(COLUMN_UNIT).map(|unit| {
                let bit = |(c, x): (usize, &f32)| ((*x + near >= 0.0) as u32) << (8 * (c % 4) + c / 4);
                unit.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit)
            }));
        }
    }

    /// Takes signs packed as NumPy's `packbits` does: most significant bit first, the spare bits of the last byte of a
    /// row ignored. `bytes` is `[scales.len(), ceil(columns / 8)]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn from_packbits(bytes: &[u8], columns: usize, scales: Vec<f32>) -> Self {
        let stride = columns.div_ceil(8);
        assert_eq!(bytes.len(), stride * scales.len(), "sign bits and scales do not fit {columns} columns");
        let units = columns.div_ceil(COLUMN_UNIT);
        let mut bits = vec![0u32; units * scales.len()];
        for (row, bytes) in bits.chunks_exact_mut(units).zip(bytes.chunks_exact(stride)) {
            for column in 0..columns {
                let c = column % COLUMN_UNIT;
                let bit = bytes[column / 8] >> (7 - column % 8) & 1;
                row[column / COLUMN_UNIT] |= (bit as u32) << (8 * (c % 4) + c / 4);
            }
        }
        Self { columns, bits, scales }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn bits(&self) -> &[u32] {
        &self.bits
    }

    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }
}
