//! Which positions attend to which: the past, and only within one's own document.

use burn::tensor::{Device, Tensor, TensorData};

/// Added to scores: 0 where a query may see a key, else minus infinity. `[1 or batch, 1, seq, seq]`.
pub fn causal(seq: usize, device: &Device) -> Tensor<4> {
    build(1, seq, |_, query, key| key <= query, device)
}

/// As [`causal`], for rows that hold several documents: `documents` (`[batch, seq]`, row-major) numbers the document
/// of each token, and no token sees another document's.
pub fn causal_within_documents(documents: &[u32], seq: usize, device: &Device) -> Tensor<4> {
    if documents.chunks_exact(seq).all(|row| row.iter().all(|d| *d == row[0])) {
        return causal(seq, device);
    }
    let same = |row: usize, a: usize, b: usize| documents[row * seq + a] == documents[row * seq + b];
    build(documents.len() / seq, seq, |row, query, key| key <= query && same(row, query, key), device)
}

fn build(rows: usize, seq: usize, sees: impl Fn(usize, usize, usize) -> bool, device: &Device) -> Tensor<4> {
    let mut mask = Vec::with_capacity(rows * seq * seq);
    for row in 0..rows {
        for query in 0..seq {
            mask.extend((0..seq).map(|key| if sees(row, query, key) { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    Tensor::from_data(TensorData::new(mask, [rows, 1, seq, seq]), device)
}
