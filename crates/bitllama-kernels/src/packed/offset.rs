//! Offsets of codes: how the sums of fields times activations of a group become sums of codes times activations.
//!
//! An offset costs one small product per group, of a number per row with the sum of the group's activations, which is computed once
//! per token.

use crate::activations::Tile;
use crate::simd::{LANES, Simd};
use crate::weight::Weight;

use super::fields::Fields;

/// The way in which sums of fields become sums of codes, with a number per token and group: its *addend*, a multiple of the sum
/// of the group's activations.
#[derive(Clone, Copy)]
pub(super) enum Offset {
    /// Sums start from the addend.
    Start { factor: i32 },
    /// Twice the sum, and the addend.
    Double { factor: i32 },
    /// The addend times the number of each row, in 16 bits or in 32. `bias` belongs to that number.
    Rows { short: bool, bias: i32 },
    /// The minimum of each row is taken off as often as the addend says: the bits of an f32, or where minimums are nested a whole
    /// number of 16 bits.
    Minimums { nested: bool },
    /// Codes are levels of a table, which want the sum itself.
    Levels,
}

/// Columns of the largest group whose sums of activations have 16 bits.
const MAX_SHORT_GROUP: usize = i16::MAX as usize / 127;

impl Offset {
    #[inline(always)]
    pub fn of<S: Simd, F: Fields>(weight: &Weight) -> Self {
        // A field of which `bias` was taken is the code of `field + bias`.
        let bias = if F::WIDE { S::BYTE_BIAS } else { 0 };
        let (low, step) = weight.line();
        match (weight.has_zero_points(), step) {
            _ if F::LEVELS => Self::Levels,
            _ if weight.has_minimums() => Self::Minimums { nested: weight.is_nested() },
            (true, _) => Self::Rows { short: weight.group_size() <= MAX_SHORT_GROUP, bias },
            (false, 1) => Self::Start { factor: low + bias },
            (false, _) => Self::Double { factor: low + step * bias },
        }
    }

    /// Writes the addends of a tile for groups of as many columns, `[groups, width]`.
    #[inline(always)]
    pub fn addends(self, tile: &Tile, groups: usize, out: &mut Vec<i32>) {
        let units = tile.sums.len() / tile.width - 1;
        let unit = |group: usize| if groups == 1 { group * units } else { group * (units / groups) } * tile.width;
        out.clear();
        for group in 0..groups {
            let (before, after) =
                (&tile.sums[unit(group)..][..tile.width], &tile.sums[unit(group + 1)..][..tile.width]);
            out.extend(after.iter().zip(before).map(|(after, before)| match self {
                Self::Start { factor } | Self::Double { factor } => factor * (after - before),
                // The upper half is taken off, so that one product is left of each pair.
                Self::Rows { short: true, .. } | Self::Minimums { nested: true } => (after - before) & 0xffff,
                Self::Minimums { nested: false } => ((after - before) as f32).to_bits() as i32,
                Self::Rows { .. } | Self::Levels => after - before,
            }));
        }
    }

    /// The numbers that the sums of a group's fields start from.
    #[inline(always)]
    pub fn start<S: Simd, const N: usize>(self, s: S, addends: &[i32; N]) -> [S::Ints; N] {
        let mut sums = [s.splat_int(0); N];
        if let Self::Start { .. } = self {
            for token in 0..N {
                sums[token] = s.splat_int(addends[token]);
            }
        }
        sums
    }

    /// The sums of codes times activations of a group, from those of its fields. `lows` is its `-zero_point` per row.
    #[inline(always)]
    pub fn code_sums<S: Simd, const N: usize>(
        self,
        s: S,
        lows: Option<&[i16; LANES]>,
        sums: [S::Ints; N],
        addends: &[i32; N],
    ) -> [S::Floats; N] {
        let mut sums = sums;
        match (self, lows) {
            (Self::Rows { short, bias }, Some(lows)) => {
                let low = s.add_ints(s.load_i16(lows), s.splat_int(bias));
                for token in 0..N {
                    let addend = s.splat_int(addends[token]);
                    sums[token] = match short {
                        true => s.dot_pairs(sums[token], low, addend),
                        false => s.add_ints(sums[token], s.mul_ints(low, addend)),
                    };
                }
            }
            (Self::Double { .. }, _) => {
                for token in 0..N {
                    sums[token] = s.add_ints(s.add_ints(sums[token], sums[token]), s.splat_int(addends[token]));
                }
            }
            _ => {}
        }
        let mut floats = [s.splat(0.0); N];
        for token in 0..N {
            floats[token] = s.to_floats(sums[token]);
        }
        floats
    }
}

/// The addends of `N` tokens from `at` on.
#[inline(always)]
pub(super) fn addends_of<const N: usize>(addends: &[i32], at: usize) -> &[i32; N] {
    match addends[at..].first_chunk() {
        Some(addends) => addends,
        None => unreachable!("every group has addends of all tokens"),
    }
}
