//! Products with activations in 8 bits: sums of fields times activations are whole numbers and exact, scales come last.
//!
//! With groups, an element is `x_scale * sum over groups of scale * float(sum of codes * x)`: each group's sum is converted
//! once and multiplied and added with one rounding, so that all instruction sets give the same bits.

use std::ops::Range;

use bitllama_core::Scheme;
use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Bits1, Bits2, Bits3, Bits4, Bits8, Fields, Nf4, by_scheme};
use super::outliers::outlier_sum;
use super::{levels, sums};
use crate::activations::{Activations, SUM_COLUMNS, Tile};
use crate::out::Out;
use crate::simd::{Simd, for_isa};
use crate::weight::{Panel, Weight};

/// Products of `panels` of `weight` with all rows of `x`, into `out` (`[n, rows]`).
///
/// # Safety
/// `out` is `[x.len(), weight.rows()]` and nobody else writes the columns of `panels`.
///
/// # Panics
/// If `x` has other columns than `weight`.
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    assert_eq!(weight.columns(), x.columns());
    for_isa!(x.isa(), panels_of_scheme(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out))
}

#[inline(always)]
fn panels_of_scheme<S: Simd>(s: S, weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    by_scheme!(weight.scheme(), panels_of(s, weight, panels, x, out))
}

#[inline(always)]
fn panels_of<S: Simd, F: Fields>(s: S, weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    for index in panels {
        let panel = weight.panel(index);
        for tile in x.tiles() {
            let out = out.at(tile.first, index * PANEL_ROWS);
            match tile.width {
                1 => tile_of::<S, F, 1>(s, &panel, tile, out),
                2 if S::SUMS >= 2 => tile_of::<S, F, 2>(s, &panel, tile, out),
                4 if S::SUMS >= 4 => tile_of::<S, F, 4>(s, &panel, tile, out),
                8 if S::SUMS >= 8 => tile_of::<S, F, 8>(s, &panel, tile, out),
                16 if S::SUMS >= 16 => tile_of::<S, F, 16>(s, &panel, tile, out),
                24 if S::SUMS >= 24 => tile_of::<S, F, 24>(s, &panel, tile, out),
                _ => unreachable!("tiles have no other width"),
            }
        }
    }
}

/// One panel with one tile of `N` tokens. `out` is where the first token's first row goes.
#[inline(always)]
fn tile_of<S: Simd, F: Fields, const N: usize>(s: S, panel: &Panel, tile: &Tile, out: Out) {
    let (x, _) = tile.values.as_chunks::<4>();
    let (x_sums, _) = tile.sums.as_chunks::<N>();
    let (group_bytes, group_quads, group_sums) = match panel.groups {
        1 => (panel.bytes.len(), x.len(), x_sums.len() - 1),
        _ => {
            let quads = panel.group_size / 4;
            (quads / F::QUADS * F::BYTES, quads * N, panel.group_size / SUM_COLUMNS)
        }
    };
    let mut totals = [s.splat(0.0); N];
    let groups = panel.bytes.chunks_exact(group_bytes).zip(x.chunks_exact(group_quads));
    for (group, (bytes, x)) in groups.enumerate() {
        let mut x_sum = x_sums[(group + 1) * group_sums];
        for token in 0..N {
            x_sum[token] -= x_sums[group * group_sums][token];
        }
        let codes = code_sums::<S, F, N>(s, panel, group, bytes, x, &x_sum);
        let scale = panel.scales.at(s, group);
        for token in 0..N {
            totals[token] = s.mul_add_once(codes[token], scale, totals[token]);
        }
    }
    for token in 0..N {
        if token < tile.tokens {
            let mut result = s.mul(totals[token], s.splat(tile.scales[token]));
            let outliers = tile.outliers(token);
            if !outliers.is_empty() {
                result = s.add(result, outlier_sum::<S, F>(s, panel, outliers));
            }
            // SAFETY: the token is one of the output, whose rows of this panel are the caller's.
            unsafe { out.store(s, token, result) };
        }
    }
}

/// The sums of codes times activations of a group, of which `x_sums` are the sums of the activations alone.
#[inline(always)]
fn code_sums<S: Simd, F: Fields, const N: usize>(
    s: S,
    panel: &Panel,
    group: usize,
    bytes: &[u8],
    x: &[[i8; 4]],
    x_sums: &[i32; N],
) -> [S::Floats; N] {
    if F::TABLE {
        return levels::code_sums::<S, N>(s, bytes, x, x_sums);
    }
    let (low, step) = panel.scheme.line();
    // A field of which `bias` was taken is the code of `field + bias`.
    let bias = if F::BITS == 8 { S::BYTE_BIAS } else { 0 };
    let in_start = panel.lows.is_none() && step == 1;
    let first = if in_start { low + bias } else { 0 };
    let mut sums = [s.splat_int(0); N];
    for token in 0..N {
        sums[token] = s.splat_int(first * x_sums[token]);
    }
    sums = sums::fields::<S, F, N>(s, bytes, x, sums);
    match panel.lows {
        None if in_start => {}
        None => {
            for token in 0..N {
                let low = s.splat_int((low + step * bias) * x_sums[token]);
                sums[token] = s.add_ints(s.mul_ints(sums[token], s.splat_int(step)), low);
            }
        }
        Some(lows) => {
            let low = s.add_ints(s.load_i16(&lows[group]), s.splat_int(bias));
            for token in 0..N {
                sums[token] = match panel.group_size <= MAX_PAIRED_GROUP {
                    // The upper half of the sum is taken off, so that one product is left of each pair.
                    true => s.dot_pairs(sums[token], low, s.splat_int(x_sums[token] & 0xffff)),
                    false => s.add_ints(sums[token], s.mul_ints(low, s.splat_int(x_sums[token]))),
                };
            }
        }
    }
    let mut floats = [s.splat(0.0); N];
    for token in 0..N {
        floats[token] = s.to_floats(sums[token]);
    }
    floats
}

/// Columns of the largest group whose sums of activations have 16 bits.
const MAX_PAIRED_GROUP: usize = i16::MAX as usize / 127;
