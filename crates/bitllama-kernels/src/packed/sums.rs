//! Sums of fields times activations over some blocks of a panel, for a tile of tokens.
//!
//! Activations are quads (four neighbouring columns), those of each token after the other: `[quads, N]`.

use super::PREFETCH;
use super::fields::{Fields, vector};
use crate::simd::Simd;

/// `start` plus the sums of fields times activations of the blocks in `bytes`, less [`Simd::BYTE_BIAS`] times the activations for
/// fields of eight bits.
#[inline(always)]
pub(super) fn fields<S: Simd, F: Fields, const N: usize>(
    s: S,
    bytes: &[u8],
    x: &[[i8; 4]],
    start: [S::Ints; N],
) -> [S::Ints; N] {
    if S::STACKED && F::BITS != 3 && F::QUADS * N <= 16 && (F::QUADS > 1 || N <= 4) {
        // A group is short: what several sums for each height would gain, adding them up would cost.
        let short = bytes.len() <= 16 * F::BYTES;
        return match (F::QUADS, N) {
            (8, _) => stacked::<S, F, N, 8, 1>(s, bytes, x, start),
            (4, 1) if !short => stacked::<S, F, N, 4, 2>(s, bytes, x, start),
            (4, _) => stacked::<S, F, N, 4, 1>(s, bytes, x, start),
            (2, 1) if !short => stacked::<S, F, N, 2, 4>(s, bytes, x, start),
            (2, 2 | 4) if !short => stacked::<S, F, N, 2, 2>(s, bytes, x, start),
            (2, _) => stacked::<S, F, N, 2, 1>(s, bytes, x, start),
            (_, 1) if !short => stacked::<S, F, N, 1, 8>(s, bytes, x, start),
            (_, 2) if !short => stacked::<S, F, N, 1, 4>(s, bytes, x, start),
            _ => stacked::<S, F, N, 1, 2>(s, bytes, x, start),
        };
    }
    if !S::STACKED && S::SUMS > 1 && F::BITS <= 2 && N <= 2 {
        return match F::BITS {
            1 => half_stacked::<S, F, N, 4>(s, bytes, x, start),
            _ => half_stacked::<S, F, N, 2>(s, bytes, x, start),
        };
    }
    match F::BITS == 8 || S::depth(F::LARGEST) == usize::MAX {
        true => plain::<S, F, N>(s, bytes, x, start),
        false => in_parts::<S, F, N>(s, bytes, x, start),
    }
}

/// Sums that are under way at a time with few tokens, so that one does not wait for another.
const fn chains(tokens: usize) -> usize {
    match tokens {
        1 => 4,
        2 => 2,
        _ => 1,
    }
}

/// [`fields`] where every product goes into 32 bits at once.
#[inline(always)]
fn plain<S: Simd, F: Fields, const N: usize>(s: S, bytes: &[u8], x: &[[i8; 4]], start: [S::Ints; N]) -> [S::Ints; N] {
    let chains = chains(N).min(F::QUADS);
    let mut sums = [[s.splat_int(0); N]; 4];
    sums[0] = start;
    for (block, x) in bytes.chunks_exact(F::BYTES).zip(x.chunks_exact(F::QUADS * N)) {
        s.prefetch(block.as_ptr().wrapping_add(PREFETCH));
        let fields = F::unpack(s, block);
        for quad in 0..F::QUADS {
            for token in 0..N {
                let x = s.splat_quad(x[quad * N + token]);
                let sum = &mut sums[quad % chains][token];
                *sum = match F::BITS {
                    8 => s.dot_bytes(*sum, fields[quad], x),
                    _ => s.dot_now(*sum, fields[quad], x),
                };
            }
        }
    }
    for chain in 1..chains {
        for token in 0..N {
            sums[0][token] = s.add_ints(sums[0][token], sums[chain][token]);
        }
    }
    sums[0]
}

/// [`fields`] where products are summed in 16 bits as long as they fit.
#[inline(always)]
fn in_parts<S: Simd, F: Fields, const N: usize>(
    s: S,
    bytes: &[u8],
    x: &[[i8; 4]],
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let chains = chains(N).min(F::QUADS);
    let blocks = (S::depth(F::LARGEST) * chains / F::QUADS).max(1);
    let mut sums = start;
    for (bytes, x) in bytes.chunks(blocks * F::BYTES).zip(x.chunks(blocks * F::QUADS * N)) {
        let mut dots = [[s.no_dots(); N]; 4];
        for (block, x) in bytes.chunks_exact(F::BYTES).zip(x.chunks_exact(F::QUADS * N)) {
            s.prefetch(block.as_ptr().wrapping_add(PREFETCH));
            let fields = F::unpack(s, block);
            for quad in 0..F::QUADS {
                for token in 0..N {
                    let x = s.splat_quad(x[quad * N + token]);
                    dots[quad % chains][token] = s.dot(dots[quad % chains][token], fields[quad], x);
                }
            }
        }
        for dots in dots.iter().take(chains) {
            for token in 0..N {
                sums[token] = s.add_dots(sums[token], dots[token]);
            }
        }
    }
    sums
}

/// [`fields`] without shifts: a field is masked where it stands in its byte, and each height of fields has sums of
/// its own, which are multiples of what the height is worth and are divided by that at the end. `UNROLL` blocks have
/// sums of their own as well, so that enough of them are under way at a time.
#[inline(always)]
fn stacked<S: Simd, F: Fields, const N: usize, const QUADS: usize, const UNROLL: usize>(
    s: S,
    bytes: &[u8],
    x: &[[i8; 4]],
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let mut sums = [[[s.splat_int(0); N]; QUADS]; UNROLL];
    sums[0][0] = start;
    let (block_bytes, block_quads) = (F::BYTES, QUADS * N);
    let unrolled = bytes.len() / (UNROLL * block_bytes) * UNROLL;
    let (bytes, rest) = bytes.split_at(unrolled * block_bytes);
    let (x, rest_x) = x.split_at(unrolled * block_quads);
    for (blocks, x) in bytes.chunks_exact(UNROLL * block_bytes).zip(x.chunks_exact(UNROLL * block_quads)) {
        for at in 0..UNROLL {
            let x = &x[at * block_quads..(at + 1) * block_quads];
            stacked_block::<S, F, N, QUADS>(s, &blocks[at * block_bytes..(at + 1) * block_bytes], x, &mut sums[at]);
        }
    }
    for (block, x) in rest.chunks_exact(block_bytes).zip(rest_x.chunks_exact(block_quads)) {
        stacked_block::<S, F, N, QUADS>(s, block, x, &mut sums[0]);
    }
    let mut totals = [s.splat_int(0); N];
    for quad in 0..QUADS {
        for token in 0..N {
            let mut sum = sums[0][quad][token];
            for unrolled in sums.iter().skip(1) {
                sum = s.add_ints(sum, unrolled[quad][token]);
            }
            totals[token] = match quad {
                0 => sum,
                _ => s.add_ints(totals[token], s.shift_ints_right(sum, quad as u32 * F::BITS)),
            };
        }
    }
    totals
}

#[inline(always)]
fn stacked_block<S: Simd, F: Fields, const N: usize, const QUADS: usize>(
    s: S,
    block: &[u8],
    x: &[[i8; 4]],
    sums: &mut [[S::Ints; N]; QUADS],
) {
    let v = vector(s, block, 0);
    s.prefetch(block.as_ptr().wrapping_add(PREFETCH));
    for quad in 0..QUADS {
        let mask = (F::LARGEST << (quad as u32 * F::BITS)) as u8;
        let fields = if F::BITS == 8 { v } else { s.and(v, mask) };
        for token in 0..N {
            sums[quad][token] = s.dot_bytes(sums[quad][token], fields, s.splat_quad(x[quad * N + token]));
        }
    }
}

/// [`fields`] where sums of fields that stand as high as in [`stacked`] would be too large: a byte is taken in two
/// halves of `HEIGHTS` fields, so that one shift is left.
#[inline(always)]
fn half_stacked<S: Simd, F: Fields, const N: usize, const HEIGHTS: usize>(
    s: S,
    bytes: &[u8],
    x: &[[i8; 4]],
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let mut sums = [[s.splat_int(0); N]; HEIGHTS];
    sums[0] = start;
    // Both halves of a byte are added to the same sums.
    let depth = (S::depth(F::LARGEST << ((HEIGHTS as u32 - 1) * F::BITS)) / 2).min(bytes.len());
    for (bytes, x) in bytes.chunks(depth * F::BYTES).zip(x.chunks(depth * F::QUADS * N)) {
        let mut dots = [[s.no_dots(); N]; HEIGHTS];
        for (block, x) in bytes.chunks_exact(F::BYTES).zip(x.chunks_exact(F::QUADS * N)) {
            let v = vector(s, block, 0);
            s.prefetch(block.as_ptr().wrapping_add(PREFETCH));
            for (half, v) in [v, s.shift_right::<4>(v)].into_iter().enumerate() {
                for height in 0..HEIGHTS {
                    let fields = s.and(v, (F::LARGEST << (height as u32 * F::BITS)) as u8);
                    for token in 0..N {
                        let x = s.splat_quad(x[(half * HEIGHTS + height) * N + token]);
                        dots[height][token] = s.dot(dots[height][token], fields, x);
                    }
                }
            }
        }
        for height in 0..HEIGHTS {
            for token in 0..N {
                sums[height][token] = s.add_dots(sums[height][token], dots[height][token]);
            }
        }
    }
    let mut totals = sums[0];
    for (height, sums) in sums.into_iter().enumerate().skip(1) {
        for token in 0..N {
            totals[token] = s.add_ints(totals[token], s.shift_ints_right(sums[token], height as u32 * F::BITS));
        }
    }
    totals
}
