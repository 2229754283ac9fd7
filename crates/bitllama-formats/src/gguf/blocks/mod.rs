//! The block formats of ggml that are read: a block is a run of a row's values with scales of its own.
//!
//! Layouts are those of `ggml-common.h`, arithmetic that of `ggml-quants.c` (`dequantize_row_*`), in f32 and without fused
//! multiply-add, so that weights come out bit for bit as llama.cpp has them.
//!
//! | file | formats |
//! |---|---|
//! | `basic.rs` | floats; Q4_0 to Q8_0 |
//! | `k_quants.rs` | Q2_K to Q8_K |
//! | `i_quants.rs` | IQ1_S to IQ4_XS, with the tables of `grids.rs` |
//! | `low_bit.rs` | ternary ones, floats of 4 bits, Q1_0 and Q2_0 |
//!
//! Those whose values are `scale * code - minimum` are taken apart there into fields and constants; `codes.rs` makes values of
//! these, or the panels that kernels multiply. `encode.rs` is the way back.

mod basic;
pub(crate) mod codes;
pub(crate) mod encode;
mod grids;
mod i_quants;
mod k_quants;
mod low_bit;

use bitllama_core::blocks::BlockForm;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
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
    /// 2 bits, scales and minima of 4 bits.
    Q2_K,
    /// 3 bits, scales of 6 bits.
    Q3_K,
    /// 4 bits, scales and minima of 6 bits.
    Q4_K,
    /// 5 bits, scales and minima of 6 bits.
    Q5_K,
    /// 6 bits, scales of 8 bits.
    Q6_K,
    /// 8 bits, scale in single precision: what llama.cpp rounds activations to.
    Q8_K,
    /// 8 values from a table of 2048, 1.56 bits each.
    IQ1_S,
    /// 8 values from a table of 2048, 1.75 bits each.
    IQ1_M,
    /// 8 values from a table of 256 with even signs, 2.06 bits each.
    IQ2_XXS,
    /// 8 values from a table of 512 with even signs, 2.31 bits each.
    IQ2_XS,
    /// 8 values from a table of 1024 with signs, 2.56 bits each.
    IQ2_S,
    /// 4 values from a table of 256 with even signs, 3.06 bits each.
    IQ3_XXS,
    /// 4 values from a table of 512 with signs, 3.44 bits each.
    IQ3_S,
    /// Levels of a table of 16, scale of 32 of them.
    IQ4_NL,
    /// Levels of a table of 16, scales of 6 bits.
    IQ4_XS,
    /// Ternary, five to a byte.
    TQ1_0,
    /// Ternary, four to a byte.
    TQ2_0,
    /// Floats of 4 bits with a power of two for 32 of them.
    MxFp4,
    /// Floats of 4 bits with a float of 8 bits for 16 of them.
    NvFp4,
    /// Signs with a scale for 128 of them.
    Q1_0,
    /// 2 bits with a scale for 64 of them; values -1 to 2.
    Q2_0,
}

use BlockFormat::*;

impl BlockFormat {
    /// All formats that are read.
    pub const ALL: [BlockFormat; 29] = [
        F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ1_S, IQ1_M, IQ2_XXS,
        IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MxFp4, NvFp4, Q1_0, Q2_0,
    ];

    /// Number in a file (`enum ggml_type`), name in llama.cpp, values and bytes of a block.
    const fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            F32 => (0, "F32", 1, 4),
            F16 => (1, "F16", 1, 2),
            Q4_0 => (2, "Q4_0", 32, 18),
            Q4_1 => (3, "Q4_1", 32, 20),
            Q5_0 => (6, "Q5_0", 32, 22),
            Q5_1 => (7, "Q5_1", 32, 24),
            Q8_0 => (8, "Q8_0", 32, 34),
            Q2_K => (10, "Q2_K", 256, 84),
            Q3_K => (11, "Q3_K", 256, 110),
            Q4_K => (12, "Q4_K", 256, 144),
            Q5_K => (13, "Q5_K", 256, 176),
            Q6_K => (14, "Q6_K", 256, 210),
            Q8_K => (15, "Q8_K", 256, 292),
            IQ2_XXS => (16, "IQ2_XXS", 256, 66),
            IQ2_XS => (17, "IQ2_XS", 256, 74),
            IQ3_XXS => (18, "IQ3_XXS", 256, 98),
            IQ1_S => (19, "IQ1_S", 256, 50),
            IQ4_NL => (20, "IQ4_NL", 32, 18),
            IQ3_S => (21, "IQ3_S", 256, 110),
            IQ2_S => (22, "IQ2_S", 256, 82),
            IQ4_XS => (23, "IQ4_XS", 256, 136),
            IQ1_M => (29, "IQ1_M", 256, 56),
            Bf16 => (30, "BF16", 1, 2),
            TQ1_0 => (34, "TQ1_0", 256, 54),
            TQ2_0 => (35, "TQ2_0", 256, 66),
            MxFp4 => (39, "MXFP4", 32, 17),
            NvFp4 => (40, "NVFP4", 64, 36),
            Q1_0 => (41, "Q1_0", 128, 18),
            Q2_0 => (42, "Q2_0", 64, 18),
        }
    }

    /// Number in a file (`enum ggml_type`).
    pub const fn id(self) -> u32 {
        self.facts().0
    }

    /// The format of a number, if it is read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Name in llama.cpp.
    pub const fn name(self) -> &'static str {
        self.facts().1
    }

    /// The format that llama.cpp calls `name`, in capitals or not.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// The types that packed matrices are written in, from the fewest bits up.
    pub fn written() -> impl Iterator<Item = BlockFormat> {
        encode::WRITTEN.into_iter()
    }

    /// How its numbers are made up, if they are whole codes with scales: such blocks are multiplied as they are, in the panels of
    /// a [`BlockMatrix`](bitllama_core::BlockMatrix). `None` for floats, Q8_K, and codes that stand in tables of whole vectors.
    pub const fn form(self) -> Option<BlockForm> {
        codes::form(self)
    }

    /// Values in one block.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// The values of whole blocks; bytes after the last whole block are left out.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.len() / self.block_bytes();
        let mut values = vec![0.0; blocks * self.block_len()];
        self.dequantize_into(&bytes[..blocks * self.block_bytes()], &mut values);
        values
    }

    /// Fills `out` with the values of as many whole blocks.
    ///
    /// # Panics
    /// If `bytes` are no whole blocks, or not of as many values as `out` takes.
    pub fn dequantize_into(self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes.len() / self.block_bytes();
        assert_eq!(blocks * self.block_bytes(), bytes.len(), "{} bytes are no whole {}", bytes.len(), self.name());
        assert_eq!(blocks * self.block_len(), out.len(), "{blocks} blocks of {} have other values", self.name());
        fill(true, self, bytes, out);
    }
}

/// Fills `out` with the values of blocks, in `vectors` of eight where the processor has them; the numbers are the same.
fn fill(vectors: bool, format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if vectors && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: this processor has the instructions.
        return unsafe { fill_with_avx2(format, bytes, out) };
    }
    fill_with(vectors, format, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn fill_with_avx2(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    fill_with(true, format, bytes, out);
}

/// Calls a function for one block after the other. It is called by its name: calls through `Fn` may stay without the caller's
/// instructions.
macro_rules! blocks {
    ($bytes:expr, $out:expr, $one:path) => {
        for (block, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            $one(block, out);
        }
    };
}

#[inline(always)]
fn fill_with(vectors: bool, format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        F32 => blocks!(bytes, out, basic::f32),
        F16 => basic::f16(bytes, out),
        Bf16 => blocks!(bytes, out, basic::bf16),
        Q8_K => blocks!(bytes, out, k_quants::q8_k),
        IQ1_S => blocks!(bytes, out, i_quants::iq1_s),
        IQ1_M => blocks!(bytes, out, i_quants::iq1_m),
        IQ2_XXS => blocks!(bytes, out, i_quants::iq2_xxs),
        IQ2_XS => blocks!(bytes, out, i_quants::iq2_xs),
        IQ2_S => blocks!(bytes, out, i_quants::iq2_s),
        IQ3_XXS => blocks!(bytes, out, i_quants::iq3_xxs),
        IQ3_S => blocks!(bytes, out, i_quants::iq3_s),
        MxFp4 => blocks!(bytes, out, low_bit::mxfp4),
        NvFp4 => blocks!(bytes, out, low_bit::nvfp4),
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS | TQ1_0 | TQ2_0
        | Q1_0 | Q2_0 => codes::values(vectors, format, bytes, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks and their values by the `gguf` Python package; `tests/golden/gguf_blocks.py` makes the file.
    const GOLDEN: &str = include_str!("../../../../../tests/golden/gguf_blocks.json");

    /// Bytes and values, whose bits are written in hexadecimal digits, most significant first.
    pub(super) fn golden(format: BlockFormat) -> (Vec<u8>, Vec<u32>) {
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        let digits = |key: &str, width: usize| -> Vec<u32> {
            let text = golden[format.name()][key].as_str().unwrap().as_bytes();
            text.chunks(width)
                .map(|digits| u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
                .collect()
        };
        (digits("bytes", 2).into_iter().map(|byte| byte as u8).collect(), digits("bits", 8))
    }

    #[test]
    fn values_are_bit_for_bit_those_of_the_gguf_package() {
        for format in BlockFormat::ALL {
            let (bytes, bits) = golden(format);
            let found: Vec<u32> = format.dequantize(&bytes).iter().map(|v| v.to_bits()).collect();
            assert_eq!(found.len(), bytes.len() / format.block_bytes() * format.block_len());
            assert!(found.len() >= 64, "{} has too few values", format.name());
            assert_eq!(found, bits, "{}", format.name());
        }
    }

    #[test]
    fn values_are_the_same_on_every_instruction_set() {
        for format in BlockFormat::ALL {
            let (bytes, bits) = golden(format);
            let mut values = vec![0.0; bits.len()];
            fill(false, format, &bytes, &mut values);
            assert!(values.iter().map(|v| v.to_bits()).eq(bits), "{}", format.name());
        }
    }

    #[test]
    fn a_part_of_a_row_has_the_values_of_its_place() {
        for format in BlockFormat::ALL {
            let (bytes, bits) = golden(format);
            let mut values = vec![0.0; format.block_len()];
            format.dequantize_into(&bytes[format.block_bytes()..2 * format.block_bytes()], &mut values);
            let expected = &bits[format.block_len()..2 * format.block_len()];
            assert!(values.iter().map(|v| v.to_bits()).eq(expected.iter().copied()), "{}", format.name());
        }
    }

    #[test]
    fn ids_and_names_are_told_apart() {
        for format in BlockFormat::ALL {
            assert_eq!(BlockFormat::from_id(format.id()), Some(format));
            assert_eq!(BlockFormat::named(format.name()), Some(format));
            assert_eq!(BlockFormat::named(&format.name().to_ascii_lowercase()), Some(format));
            assert_eq!(BlockFormat::ALL.iter().filter(|other| other.name() == format.name()).count(), 1);
        }
        assert_eq!((BlockFormat::from_id(9), BlockFormat::named("q9_0")), (None, None));
    }
}
