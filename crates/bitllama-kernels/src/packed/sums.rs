//! Sums of fields times activations over some blocks of a panel, for a tile of tokens.
//!
//! Activations are [`Quads`]: four neighbouring columns of each token after the other.

use super::fields::{Fields, vector};
use crate::simd::Simd;

/// The activations of some tokens of a tile.
#[derive(Clone, Copy)]
pub(super) struct Quads<'a, const WIDTH: usize> {
    /// `[quads, WIDTH]`.
    pub x: &'a [[i8; 4]],
    /// The first token.
    pub first: usize,
}

impl<'a, const WIDTH: usize> Quads<'a, WIDTH> {
    /// Takes off the first `quads` quads, if there are as many.
    #[inline(always)]
    pub fn split_off(&mut self, quads: usize) -> Option<Self> {
        Some(Self { x: self.x.split_off(..quads * WIDTH)?, ..*self })
    }

    /// A quad of each of `N` tokens.
    #[inline(always)]
    pub fn of<const N: usize>(self, quad: usize) -> &'a [[i8; 4]; N] {
        match self.x[quad * WIDTH + self.first..].first_chunk() {
            Some(quads) => quads,
            None => unreachable!("tokens are within the tile"),
        }
    }
}

/// `start` plus the sums of fields times activations of the blocks in `bytes`, less [`Simd::BYTE_BIAS`] times the activations for
/// fields of eight bits.
#[inline(always)]
pub(super) fn fields<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    bytes: &[u8],
    x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    // A single block has nothing to add up at one height.
    let single = F::QUADS > 1 && bytes.len() == F::BYTES;
    if S::STACKED && F::IN_PLACE && !single && F::QUADS * N <= 16 && (F::QUADS > 1 || N <= 4) {
        // A group is short: what several sums for each height would gain, adding them up would cost.
        let short = bytes.len() <= 16 * F::BYTES;
        return match (F::QUADS, N) {
            (8, _) => stacked::<S, F, N, WIDTH, 8, 1>(s, bytes, x, start),
            (4, 1) if !short => stacked::<S, F, N, WIDTH, 4, 2>(s, bytes, x, start),
            (4, _) => stacked::<S, F, N, WIDTH, 4, 1>(s, bytes, x, start),
            (2, 1) if !short => stacked::<S, F, N, WIDTH, 2, 4>(s, bytes, x, start),
            (2, 2 | 4) if !short => stacked::<S, F, N, WIDTH, 2, 2>(s, bytes, x, start),
            (2, _) => stacked::<S, F, N, WIDTH, 2, 1>(s, bytes, x, start),
            (_, 1) if !short => stacked::<S, F, N, WIDTH, 1, 8>(s, bytes, x, start),
            (_, 2) if !short => stacked::<S, F, N, WIDTH, 1, 4>(s, bytes, x, start),
            _ => stacked::<S, F, N, WIDTH, 1, 2>(s, bytes, x, start),
        };
    }
    if !S::STACKED && S::SUMS > 1 && F::BITS <= 2 && N <= 2 {
        return match F::BITS {
            1 => half_stacked::<S, F, N, WIDTH, 4>(s, bytes, x, start),
            _ => half_stacked::<S, F, N, WIDTH, 2>(s, bytes, x, start),
        };
    }
    match F::WIDE || S::depth(F::LARGEST) == usize::MAX {
        true => plain::<S, F, N, WIDTH>(s, bytes, x, start),
        false => in_parts::<S, F, N, WIDTH>(s, bytes, x, start),
    }
}

/// `start` plus the sums of four quads of fields from `first` on times the activations of these quads of a block.
#[inline(always)]
pub(super) fn quads<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    fields: &[S::Bytes; 8],
    x: Quads<WIDTH>,
    first: usize,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let mut sums = start;
    for quad in 0..4 {
        let x = x.of::<N>(first + quad);
        for token in 0..N {
            let x = s.splat_quad(x[token]);
            sums[token] = match F::WIDE {
                true => s.dot_bytes(sums[token], fields[first + quad], x),
                false => s.dot_now(sums[token], fields[first + quad], x),
            };
        }
    }
    sums
}

/// Asks for the lines that are to be read some time after a block. A processor asks by itself for what the next few hundred
/// instructions read, and for lines of the same page: with the instructions of one token that is a third less than memory gives to
/// one core of an Intel Xeon, and with many tokens it comes too late. With few tokens the lines go to the second cache, so that
/// they do not push the activations out of the first.
#[inline(always)]
pub(super) fn ask_ahead<S: Simd, const N: usize>(s: S, block: &[u8]) {
    for line in block.chunks(LINE) {
        match N {
            ..4 => s.prefetch_far(line.as_ptr().wrapping_add(4096)),
            _ => s.prefetch(line.as_ptr().wrapping_add(2048)),
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

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
pub(super) fn plain<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    mut bytes: &[u8],
    mut x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let chains = chains(N).min(F::QUADS);
    let mut sums = [[s.splat_int(0); N]; 4];
    sums[0] = start;
    while let (Some(block), Some(x)) = (bytes.split_off(..F::BYTES), x.split_off(F::QUADS)) {
        ask_ahead::<S, N>(s, block);
        let fields = F::unpack(s, block);
        for quad in 0..F::QUADS {
            let x = x.of::<N>(quad);
            for token in 0..N {
                let x = s.splat_quad(x[token]);
                let sum = &mut sums[quad % chains][token];
                *sum = match F::WIDE {
                    true => s.dot_bytes(*sum, fields[quad], x),
                    false => s.dot_now(*sum, fields[quad], x),
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
fn in_parts<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    mut bytes: &[u8],
    mut x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let chains = chains(N).min(F::QUADS);
    // Quads whose products all chains together can take: of large fields fewer than a block has.
    let quads = S::depth(F::LARGEST) * chains;
    let blocks = (quads / F::QUADS).max(1);
    let mut sums = start;
    while !bytes.is_empty() {
        let blocks = blocks.min(bytes.len() / F::BYTES);
        let (Some(mut bytes), Some(mut x)) = (bytes.split_off(..blocks * F::BYTES), x.split_off(blocks * F::QUADS))
        else {
            unreachable!("there are as many activations as fields")
        };
        let mut dots = [[s.no_dots(); N]; 4];
        while let (Some(block), Some(x)) = (bytes.split_off(..F::BYTES), x.split_off(F::QUADS)) {
            ask_ahead::<S, N>(s, block);
            let fields = F::unpack(s, block);
            for quad in 0..F::QUADS {
                let x = x.of::<N>(quad);
                for token in 0..N {
                    let x = s.splat_quad(x[token]);
                    dots[quad % chains][token] = s.dot(dots[quad % chains][token], fields[quad], x);
                }
                if quads < F::QUADS && (quad + 1) % quads == 0 {
                    for chain in 0..chains {
                        for token in 0..N {
                            sums[token] = s.add_dots(sums[token], dots[chain][token]);
                            dots[chain][token] = s.no_dots();
                        }
                    }
                }
            }
        }
        for chain in 0..chains {
            for token in 0..N {
                sums[token] = s.add_dots(sums[token], dots[chain][token]);
            }
        }
    }
    sums
}

/// [`fields`] without shifts: a field is masked where it stands in its byte, and each height of fields has sums of
/// its own, which are multiples of what the height is worth and are divided by that at the end. `UNROLL` blocks have
/// sums of their own as well, so that enough of them are under way at a time.
#[inline(always)]
fn stacked<S: Simd, F: Fields, const N: usize, const WIDTH: usize, const QUADS: usize, const UNROLL: usize>(
    s: S,
    mut bytes: &[u8],
    mut x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let mut sums = [[[s.splat_int(0); N]; QUADS]; UNROLL];
    sums[0][0] = start;
    while let Some(blocks) = bytes.split_off(..UNROLL * F::BYTES) {
        for at in 0..UNROLL {
            let Some(x) = x.split_off(QUADS) else { unreachable!("there are as many activations as fields") };
            let block = &blocks[at * F::BYTES..(at + 1) * F::BYTES];
            stacked_block::<S, F, N, WIDTH, QUADS>(s, block, x, &mut sums[at]);
        }
    }
    while let (Some(block), Some(x)) = (bytes.split_off(..F::BYTES), x.split_off(QUADS)) {
        stacked_block::<S, F, N, WIDTH, QUADS>(s, block, x, &mut sums[0]);
    }
    let mut totals = [s.splat_int(0); N];
    for quad in 0..QUADS {
        for token in 0..N {
            let mut sum = sums[0][quad][token];
            for unrolled in 1..UNROLL {
                sum = s.add_ints(sum, sums[unrolled][quad][token]);
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
fn stacked_block<S: Simd, F: Fields, const N: usize, const WIDTH: usize, const QUADS: usize>(
    s: S,
    block: &[u8],
    x: Quads<WIDTH>,
    sums: &mut [[S::Ints; N]; QUADS],
) {
    let v = vector(s, block, 0);
    ask_ahead::<S, N>(s, block);
    for quad in 0..QUADS {
        let mask = (F::LARGEST << (quad as u32 * F::BITS)) as u8;
        let fields = if F::BITS == 8 { v } else { s.and(v, mask) };
        let x = x.of::<N>(quad);
        for token in 0..N {
            sums[quad][token] = s.dot_bytes(sums[quad][token], fields, s.splat_quad(x[token]));
        }
    }
}

/// [`fields`] where sums of fields that stand as high as in [`stacked`] would be too large: a byte is taken in two
/// halves of `HEIGHTS` fields, so that one shift is left.
#[inline(always)]
fn half_stacked<S: Simd, F: Fields, const N: usize, const WIDTH: usize, const HEIGHTS: usize>(
    s: S,
    mut bytes: &[u8],
    mut x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [S::Ints; N] {
    let mut sums = [[s.splat_int(0); N]; HEIGHTS];
    sums[0] = start;
    // Both halves of a byte are added to the same sums.
    let blocks = S::depth(F::LARGEST << ((HEIGHTS as u32 - 1) * F::BITS)) / 2;
    while !bytes.is_empty() {
        let blocks = blocks.min(bytes.len() / F::BYTES);
        let (Some(mut bytes), Some(mut x)) = (bytes.split_off(..blocks * F::BYTES), x.split_off(blocks * F::QUADS))
        else {
            unreachable!("there are as many activations as fields")
        };
        let mut dots = [[s.no_dots(); N]; HEIGHTS];
        while let (Some(block), Some(x)) = (bytes.split_off(..F::BYTES), x.split_off(F::QUADS)) {
            ask_ahead::<S, N>(s, block);
            let v = vector(s, block, 0);
            let halves = [v, s.shift_right::<4>(v)];
            for half in 0..2 {
                for height in 0..HEIGHTS {
                    let fields = s.and(halves[half], (F::LARGEST << (height as u32 * F::BITS)) as u8);
                    let x = x.of::<N>(half * HEIGHTS + height);
                    for token in 0..N {
                        let x = s.splat_quad(x[token]);
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
    for height in 1..HEIGHTS {
        for token in 0..N {
            let sum = s.shift_ints_right(sums[height][token], height as u32 * F::BITS);
            totals[token] = s.add_ints(totals[token], sum);
        }
    }
    totals
}
