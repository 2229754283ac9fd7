//! The layouts of a tensor's data: rows of blocks, or a matrix with one scale.

use super::{BlockFormat, i2_s};

/// The layout of a tensor's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// Rows of whole blocks, each with its own scales.
    Blocks(BlockFormat),
    /// Ternary codes with one scale, the type of bitnet.cpp.
    I2S,
}

impl From<BlockFormat> for TensorType {
    fn from(format: BlockFormat) -> Self {
        TensorType::Blocks(format)
    }
}

impl TensorType {
    /// All types that are read.
    pub fn all() -> impl Iterator<Item = TensorType> {
        BlockFormat::ALL.into_iter().map(TensorType::from).chain([TensorType::I2S])
    }

    /// The types that packed matrices are written in, blocks from the fewest bits up.
    pub fn written() -> impl Iterator<Item = TensorType> {
        BlockFormat::written().map(TensorType::from).chain([TensorType::I2S])
    }

    /// The type that llama.cpp or bitnet.cpp calls `name`, in capitals or not, if packed matrices are written in it.
    pub fn named(name: &str) -> Option<Self> {
        Self::written().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The type of a number, if it is read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|kind| kind.id() == id)
    }

    /// Number in a file (`enum ggml_type`).
    pub const fn id(self) -> u32 {
        match self {
            TensorType::Blocks(format) => format.id(),
            // In llama.cpp this number was that of IQ4_NL_4_4, which it never wrote to files of its own accord.
            TensorType::I2S => 36,
        }
    }

    /// Name in llama.cpp or bitnet.cpp.
    pub const fn name(self) -> &'static str {
        match self {
            TensorType::Blocks(format) => format.name(),
            TensorType::I2S => "I2_S",
        }
    }

    /// Values of a row that stand together: rows are whole multiples of it.
    pub const fn block_len(self) -> usize {
        match self {
            TensorType::Blocks(format) => format.block_len(),
            TensorType::I2S => i2_s::BLOCK,
        }
    }

    /// Bytes of a tensor of `shape`, whose rows are whole blocks; `None` where they are too many to count.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        match self {
            TensorType::Blocks(format) => {
                let elements = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
                (elements / format.block_len()).checked_mul(format.block_bytes())
            }
            TensorType::I2S => i2_s::bytes(shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_one_type() {
        for kind in TensorType::all() {
            assert_eq!(TensorType::from_id(kind.id()), Some(kind));
        }
        assert_eq!(TensorType::named("i2_s"), Some(TensorType::I2S));
        assert_eq!(TensorType::named("q8_k"), None);
        assert_eq!(
            (TensorType::I2S.bytes(&[4, 128]), TensorType::from(BlockFormat::Q4_0).bytes(&[4, 128])),
            (Some(160), Some(288))
        );
    }
}
