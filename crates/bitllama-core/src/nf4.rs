//! The table of `nf4`, the 4-bit NormalFloat of QLoRA (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>, appendix
//! E): levels that are equally likely where weights are normally distributed and the largest of a block is 1.

/// The levels, by field: `get_4bit_type("nf4")` of bitsandbytes, in its digits.
#[allow(clippy::excessive_precision)]
pub const LEVELS: [f32; 16] = [
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
];

/// Between neighbouring levels: what is above one of these belongs to the upper level, what is equal to the lower one.
/// The numbers in bitsandbytes' `dQuantizeNF4` (`csrc/kernels.cu`), which are the means of the levels up to their last bit.
#[allow(clippy::excessive_precision)]
pub const BOUNDARIES: [f32; 15] = [
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
];

/// The level next to `x`.
#[inline]
pub fn nearest(x: f32) -> f32 {
    // Without branches, so that loops over many weights run in vector registers.
    let mut level = LEVELS[0];
    for (boundary, above) in BOUNDARIES.iter().zip(&LEVELS[1..]) {
        level = if x > *boundary { *above } else { level };
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_half_way() {
        for (boundary, levels) in BOUNDARIES.iter().zip(LEVELS.windows(2)) {
            let mean = (f64::from(levels[0]) + f64::from(levels[1])) / 2.0;
            assert!((f64::from(*boundary) - mean).abs() < 1e-7, "{boundary} {mean}");
        }
    }

    #[test]
    fn levels_are_nearest_to_themselves_and_ties_go_down() {
        for level in LEVELS {
            assert_eq!(nearest(level), level);
        }
        for (boundary, levels) in BOUNDARIES.iter().zip(LEVELS.windows(2)) {
            assert_eq!(nearest(*boundary), levels[0]);
            assert_eq!(nearest(boundary.next_up()), levels[1]);
        }
        assert_eq!((nearest(f32::NEG_INFINITY), nearest(7.0)), (-1.0, 1.0));
    }
}
