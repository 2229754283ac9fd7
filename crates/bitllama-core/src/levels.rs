//! Number formats whose codes are levels of a table, sixteen of them.

use crate::blocks;

/// Sixteen levels in ascending order, and where rounding goes from one to the next.
#[derive(Debug, PartialEq)]
pub struct Levels {
    /// The levels, by field.
    pub levels: [f32; 16],
    /// Bounds between neighbouring levels: what is above one belongs to the upper level, what is equal to the lower one.
    pub bounds: [f32; 15],
}

impl Levels {
    /// The level nearest to `x`.
    #[inline]
    pub fn nearest(&self, x: f32) -> f32 {
        // Without branches, so that loops over many weights run in vector registers.
        let mut level = self.levels[0];
        for (bound, above) in self.bounds.iter().zip(&self.levels[1..]) {
            level = if x > *bound { *above } else { level };
        }
        level
    }
}

/// The table of `nf4`, the 4-bit NormalFloat of QLoRA (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>, appendix
/// E): levels that are equally likely where weights are normally distributed and the largest of a block is 1.
///
/// Levels are those of `get_4bit_type("nf4")` of bitsandbytes, in its digits, and bounds those of its `dQuantizeNF4`
/// (`csrc/kernels.cu`), which are the means of the levels up to their last bit.
#[allow(clippy::excessive_precision)]
pub static NF4: Levels = Levels {
    levels: [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    bounds: [
        -0.8480964004993439,
        -0.6106329262256622,
        -0.4599952697753906,
        -0.33967943489551544,
        -0.23460740596055984,
        -0.13791173323988914,
        -0.045525018125772476,
        0.03979014977812767,
        0.1202552504837513,
        0.2035212516784668,
        0.2920137718319893,
        0.3893125355243683,
        0.5016634166240692,
        0.6427869200706482,
        0.8614784181118011,
    ],
};

/// The table of `iq4`, whole numbers from -127 to 113: [`blocks::IQ4`], the codes of ggml's `IQ4_NL`.
pub static IQ4: Levels = {
    let (mut levels, mut bounds) = ([0.0; 16], [0.0; 15]);
    let mut field = 0;
    while field < 16 {
        levels[field] = blocks::IQ4[field] as f32;
        if field > 0 {
            bounds[field - 1] = (levels[field - 1] + levels[field]) / 2.0;
        }
        field += 1;
    }
    Levels { levels, bounds }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_half_way() {
        for table in [&NF4, &IQ4] {
            for (bound, levels) in table.bounds.iter().zip(table.levels.windows(2)) {
                let mean = (f64::from(levels[0]) + f64::from(levels[1])) / 2.0;
                assert!((f64::from(*bound) - mean).abs() < 1e-7, "{bound} {mean}");
            }
        }
    }

    #[test]
    fn levels_are_nearest_to_themselves_and_ties_go_down() {
        for table in [&NF4, &IQ4] {
            assert!(table.levels.into_iter().all(|level| table.nearest(level) == level));
            for (bound, levels) in table.bounds.iter().zip(table.levels.windows(2)) {
                assert_eq!(table.nearest(*bound), levels[0]);
                assert_eq!(table.nearest(bound.next_up()), levels[1]);
            }
            let ends = (table.nearest(f32::NEG_INFINITY), table.nearest(f32::INFINITY));
            assert_eq!(ends, (table.levels[0], table.levels[15]));
        }
    }
}
