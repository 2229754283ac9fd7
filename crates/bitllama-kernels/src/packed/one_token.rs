//! One token with a panel whose groups have 32, 64 or 128 columns, which is what decoding does.
//!
//! Memory should be what decoding waits for. A processor asks for bytes only a few hundred instructions ahead of the ones it
//! executes, so each instruction of a group beside its products costs bandwidth: here the number of a group's columns is a constant,
//! the kind of offset is decided outside the loop, and scales are widened for several groups at a time.

use super::fields::Fields;
use super::offset::Offset;
use super::sums::Quads;
use super::{levels, sums};
use crate::simd::{LANES, Simd};
use crate::weight::{Panel, PanelScales};

/// Groups whose scales are widened at a time.
const CHUNK: usize = 16;

/// The sums of weights times activations of all columns, equal to the bit to those of several tokens. `None` for groups of another
/// size, or with offsets that no scheme of such fields has.
#[inline(always)]
pub(super) fn weighted_sums<S: Simd, F: Fields>(
    s: S,
    offset: Offset,
    panel: &Panel,
    x: &[[i8; 4]],
    addends: &[i32],
) -> Option<S::Floats> {
    match (panel.groups, panel.group_size) {
        // Where sums do not stay in registers, there is nothing to gain.
        _ if S::SUMS == 1 => None,
        (1, _) => None,
        (_, 32) => by_offset::<S, F, 8>(s, offset, panel, x, addends),
        (_, 64) => by_offset::<S, F, 16>(s, offset, panel, x, addends),
        (_, 128) => by_offset::<S, F, 32>(s, offset, panel, x, addends),
        _ => None,
    }
}

/// Compiles [`all_groups`] for each kind of offset that groups of these fields have.
#[inline(always)]
fn by_offset<S: Simd, F: Fields, const QUADS: usize>(
    s: S,
    offset: Offset,
    panel: &Panel,
    x: &[[i8; 4]],
    addends: &[i32],
) -> Option<S::Floats> {
    // Factors are in the addends.
    let total = match offset {
        Offset::Rows { short: true, bias } => {
            all_groups::<S, F, QUADS>(s, Offset::Rows { short: true, bias }, panel, x, addends)
        }
        Offset::Double { .. } if F::DOUBLED => {
            all_groups::<S, F, QUADS>(s, Offset::Double { factor: 0 }, panel, x, addends)
        }
        Offset::Minimums { nested: false } if F::MINIMUMS => {
            all_groups::<S, F, QUADS>(s, Offset::Minimums { nested: false }, panel, x, addends)
        }
        Offset::Start { .. } | Offset::Levels => {
            all_groups::<S, F, QUADS>(s, Offset::Start { factor: 0 }, panel, x, addends)
        }
        _ => return None,
    };
    Some(total)
}

#[inline(always)]
fn all_groups<S: Simd, F: Fields, const QUADS: usize>(
    s: S,
    offset: Offset,
    panel: &Panel,
    x: &[[i8; 4]],
    addends: &[i32],
) -> S::Floats {
    let group_bytes = QUADS / F::QUADS * F::BYTES;
    let (mut bytes, mut x, mut first) = (panel.bytes, x, 0);
    let (mut of_scales, mut of_minimums) = ([[0.0; LANES]; CHUNK], [[0.0; LANES]; CHUNK]);
    let mut total = s.splat(0.0);
    while first < panel.groups {
        let groups = CHUNK.min(panel.groups - first);
        let scales = widened(s, panel.scales, first, groups, &mut of_scales);
        let minimums = match (offset, panel.minimums) {
            (Offset::Minimums { .. }, Some(minimums)) => widened(s, minimums, first, groups, &mut of_minimums),
            _ => scales,
        };
        let addends = &addends[first..first + groups];
        let lows = match (offset, panel.lows) {
            (Offset::Rows { .. }, Some(lows)) => &lows[first..first + groups],
            _ => &[],
        };
        for group in 0..groups {
            let (Some(bytes), Some(x)) = (bytes.split_off(..group_bytes), x.split_off(..QUADS)) else {
                unreachable!("every group has fields and activations")
            };
            let (addends, x) = (&[addends[group]], Quads::<1> { x, first: 0 });
            let codes = match F::LEVELS {
                true => levels::code_sums::<S, 1, 1>(s, bytes, x, addends),
                false => {
                    let sums = sums::fields::<S, F, 1, 1>(s, bytes, x, offset.start::<S, 1>(s, addends));
                    let lows = if let Offset::Rows { .. } = offset { Some(&lows[group]) } else { None };
                    offset.code_sums::<S, 1>(s, lows, sums, addends)
                }
            };
            total = s.mul_add_once(codes[0], s.load(&scales[group]), total);
            if let Offset::Minimums { .. } = offset {
                let minimum = s.sub(s.splat(0.0), s.load(&minimums[group]));
                total = s.mul_add_once(minimum, s.splat(f32::from_bits(addends[0] as u32)), total);
            }
        }
        first += groups;
    }
    total
}

/// Scales or minimums of `groups` groups from `first` on as f32, in `out` if they are not f32 as they are.
#[inline(always)]
fn widened<'a, S: Simd>(
    s: S,
    scales: PanelScales<'a>,
    first: usize,
    groups: usize,
    out: &'a mut [[f32; LANES]; CHUNK],
) -> &'a [[f32; LANES]] {
    match scales {
        PanelScales::F32(scales) => return &scales[first..first + groups],
        PanelScales::F16(scales) => {
            let scales = &scales[first..first + groups];
            for group in 0..groups {
                s.store(s.load_f16(&scales[group]), &mut out[group]);
            }
        }
        PanelScales::Nested { .. } => unreachable!("nested scales have a kernel of their own"),
    }
    &out[..groups]
}
