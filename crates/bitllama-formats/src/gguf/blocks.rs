//! The block formats of ggml that are read: a block is a run of a row's values with scales of its own.
//!
//! Layouts and arithmetic are those of `ggml-quants.c` (`dequantize_row_*`), in f32, so that weights come out bit for bit
//! as llama.cpp has them.

use half::{bf16, f16};

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of an F32.
    Bf16,
    /// 4 bits, scale; values -8 to 7.
    Q4_0,
    /// 4 bits, scale and minimum.
    Q4_1,
    /// 5 bits, scale; values -16 to 15.
    Q5_0,
    /// 5 bits, scale and minimum.
    Q5_1,
    /// 8 bits, scale.
    Q8_0,
}

/// Values of a quantized block.
const BLOCK: usize = 32;

impl BlockFormat {
    /// All formats that are read.
    pub const ALL: [BlockFormat; 8] = [
        BlockFormat::F32,
        BlockFormat::F16,
        BlockFormat::Bf16,
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
    ];

    /// Number in a file (`enum ggml_type`).
    pub fn id(self) -> u32 {
        match self {
            BlockFormat::F32 => 0,
            BlockFormat::F16 => 1,
            BlockFormat::Q4_0 => 2,
            BlockFormat::Q4_1 => 3,
            BlockFormat::Q5_0 => 6,
            BlockFormat::Q5_1 => 7,
            BlockFormat::Q8_0 => 8,
            BlockFormat::Bf16 => 30,
        }
    }

    /// The format of a number, if it is read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Name in llama.cpp.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::F32 => "F32",
            BlockFormat::F16 => "F16",
            BlockFormat::Bf16 => "BF16",
            BlockFormat::Q4_0 => "Q4_0",
            BlockFormat::Q4_1 => "Q4_1",
            BlockFormat::Q5_0 => "Q5_0",
            BlockFormat::Q5_1 => "Q5_1",
            BlockFormat::Q8_0 => "Q8_0",
        }
    }

    /// Values in one block.
    pub fn block_len(self) -> usize {
        match self {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Bf16 => 1,
            _ => BLOCK,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockFormat::F32 => 4,
            BlockFormat::F16 | BlockFormat::Bf16 => 2,
            BlockFormat::Q4_0 => 2 + BLOCK / 2,
            BlockFormat::Q4_1 => 4 + BLOCK / 2,
            BlockFormat::Q5_0 => 2 + 4 + BLOCK / 2,
            BlockFormat::Q5_1 => 4 + 4 + BLOCK / 2,
            BlockFormat::Q8_0 => 2 + BLOCK,
        }
    }

    /// The values of whole blocks; bytes after the last whole block are left out.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            BlockFormat::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            BlockFormat::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            BlockFormat::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            BlockFormat::Q4_0 => blocks(bytes, |b: &[u8; 18], out| {
                let d = half(b, 0);
                nibbles(&b[2..], 0, |i, q| out[i] = f32::from(q as i8 - 8) * d);
            }),
            BlockFormat::Q4_1 => blocks(bytes, |b: &[u8; 20], out| {
                let (d, m) = (half(b, 0), half(b, 2));
                nibbles(&b[4..], 0, |i, q| out[i] = f32::from(q) * d + m);
            }),
            BlockFormat::Q5_0 => blocks(bytes, |b: &[u8; 22], out| {
                let d = half(b, 0);
                nibbles(&b[6..], fifth_bits(b, 2), |i, q| out[i] = f32::from(q as i8 - 16) * d);
            }),
            BlockFormat::Q5_1 => blocks(bytes, |b: &[u8; 24], out| {
                let (d, m) = (half(b, 0), half(b, 2));
                nibbles(&b[8..], fifth_bits(b, 4), |i, q| out[i] = f32::from(q) * d + m);
            }),
            BlockFormat::Q8_0 => blocks(bytes, |b: &[u8; 34], out| {
                let d = half(b, 0);
                for (value, q) in out.iter_mut().zip(&b[2..]) {
                    *value = f32::from(*q as i8) * d;
                }
            }),
        }
    }
}

fn blocks<const N: usize>(bytes: &[u8], one: impl Fn(&[u8; N], &mut [f32; BLOCK])) -> Vec<f32> {
    let blocks = bytes.as_chunks::<N>().0;
    let mut values = vec![0.0; blocks.len() * BLOCK];
    for (block, out) in blocks.iter().zip(values.as_chunks_mut().0) {
        one(block, out);
    }
    values
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The lower nibbles are the first half of a block, the upper ones the second; bit `i` of `fifth` belongs to value `i`.
fn nibbles(bytes: &[u8], fifth: u32, mut put: impl FnMut(usize, u8)) {
    let upper_bit = |i: usize| ((fifth >> i) as u8 & 1) << 4;
    for (i, byte) in bytes.iter().enumerate() {
        put(i, byte & 0x0f | upper_bit(i));
        put(i + BLOCK / 2, byte >> 4 | upper_bit(i + BLOCK / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks and their values by the `gguf` Python package; `tests/golden/gguf_blocks.py` makes the file.
    const GOLDEN: &str = include_str!("../../../../tests/golden/gguf_blocks.json");

    #[test]
    fn values_are_bit_for_bit_those_of_the_gguf_package() {
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        for format in BlockFormat::ALL {
            let entry = &golden[format.name()];
            let numbers = |key: &str| -> Vec<u64> {
                entry[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
            };
            let bytes: Vec<u8> = numbers("bytes").iter().map(|b| *b as u8).collect();
            let found: Vec<u64> = format.dequantize(&bytes).iter().map(|v| v.to_bits().into()).collect();
            assert_eq!(found.len(), bytes.len() / format.block_bytes() * format.block_len());
            assert!(found.len() >= 64, "{} has too few values", format.name());
            assert_eq!(found, numbers("bits"), "{}", format.name());
        }
    }
}
