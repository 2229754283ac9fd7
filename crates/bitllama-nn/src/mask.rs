//! Which positions attend to which: the past, and only within one's own document.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Tensor, TensorData};

/// For each token of some rows the first position that it sees; it sees all from there to its own.
#[derive(Debug, Clone)]
pub struct Mask {
    rows: usize,
    seq: usize,
    first: Arc<[u32]>,
    device: Device,
    additive: Arc<OnceLock<Tensor<4>>>,
}

impl Mask {
    /// Every token sees its whole past, in `rows` rows of `seq` tokens on `device`.
    pub fn causal(rows: usize, seq: usize, device: &Device) -> Self {
        Self::new(vec![0; rows * seq], seq, device)
    }

    /// As [`Mask::causal`], for rows that hold several documents, one after the other: `documents` (`[rows, seq]`, row-major)
    /// numbers the document of each token, and no token sees another document's.
    pub fn within_documents(documents: &[u32], seq: usize, device: &Device) -> Self {
        let of_row = |row: &[u32]| {
            let mut start = 0;
            let first = |i: usize| {
                if i > 0 && row[i] != row[i - 1] {
                    start = i as u32;
                }
                start
            };
            (0..row.len()).map(first).collect::<Vec<_>>()
        };
        Self::new(documents.chunks_exact(seq).flat_map(of_row).collect(), seq, device)
    }

    /// As this one, but no token sees more than `window` positions, its own included.
    pub fn within_window(&self, window: usize) -> Self {
        let first = self.first.iter().enumerate();
        let bound = |(token, first): (usize, &u32)| (*first).max((token % self.seq + 1).saturating_sub(window) as u32);
        Self::new(first.map(bound).collect(), self.seq, &self.device)
    }

    fn new(first: Vec<u32>, seq: usize, device: &Device) -> Self {
        let device = device.clone().inner();
        Self { rows: first.len() / seq, seq, first: first.into(), device, additive: Arc::default() }
    }

    /// The first position that each token sees, `[rows, seq]`.
    pub fn first(&self) -> &Arc<[u32]> {
        &self.first
    }

    /// Tokens of a row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Where it is made, without autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Added to scores: 0 where a query may see a key, else minus infinity. `[1 or rows, 1, seq, seq]`, for tensors with a
    /// gradient if `tracked`.
    pub fn additive(&self, tracked: bool) -> Tensor<4> {
        let plain = self.additive.get_or_init(|| {
            let one = &self.first[..self.seq.min(self.first.len())];
            let alike = self.first.chunks_exact(self.seq).all(|row| row == one);
            let rows = if alike { 1 } else { self.rows };
            let mut mask = Vec::with_capacity(rows * self.seq * self.seq);
            for (token, first) in self.first[..rows * self.seq].iter().enumerate() {
                let seen = *first as usize..=token % self.seq;
                mask.extend((0..self.seq).map(|key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY }));
            }
            Tensor::from_data(TensorData::new(mask, [rows, 1, self.seq, self.seq]), &self.device)
        });
        if tracked { Tensor::from_inner(plain.clone()) } else { plain.clone() }
    }
}
