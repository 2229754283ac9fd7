//! Products of binary weights with signs: bits that differ are counted.

use std::ops::Range;

use bitllama_core::panel::PANEL_ROWS;

use super::fields::vector;
use crate::isa::Isa;
use crate::out::Out;
use crate::signs::Signs;
use crate::simd::{BYTES, Simd, for_isa};
use crate::weight::Weight;

/// Products of `panels` of a binary `weight` with signs, into `out` (`[n, rows]`).
///
/// # Safety
/// As for [`integer_panels`](super::integer::integer_panels).
///
/// # Panics
/// If the weight is not binary or has other columns.
pub(crate) unsafe fn sign_panels(isa: Isa, weight: &Weight, panels: Range<usize>, x: &Signs, out: Out) {
    assert!(weight.is_binary() && weight.columns() == x.columns());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && isa.is_available() && is_x86_feature_detected!("avx512vpopcntdq") {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq,avx2,fma,f16c")]
        fn with_popcount(weight: &Weight, panels: Range<usize>, x: &Signs, out: Out) {
            // SAFETY: the caller has made sure of the instructions of this function.
            panels_of(unsafe { crate::simd::Avx512::<true>::new() }, weight, panels, x, out);
        }
        // SAFETY: the processor has the instructions, as was asked.
        return unsafe { with_popcount(weight, panels, x, out) };
    }
    for_isa!(isa, panels_of(weight: &Weight, panels: Range<usize>, x: &Signs, out: Out))
}

#[inline(always)]
fn panels_of<S: Simd>(s: S, weight: &Weight, panels: Range<usize>, x: &Signs, out: Out) {
    let units = x.bits().len() / x.len();
    for index in panels {
        let panel = weight.panel(index);
        let out = out.at(0, index * PANEL_ROWS);
        for (token, (signs, scale)) in x.bits().chunks_exact(units).zip(x.scales()).enumerate() {
            let mut result = s.splat(0.0);
            let group_units = units / panel.groups;
            let groups = panel.bytes.chunks_exact(group_units * BYTES).zip(signs.chunks_exact(group_units));
            for (group, (bytes, signs)) in groups.enumerate() {
                let mut sums = [s.splat_int(0); 4];
                let (fours, rest) = signs.as_chunks::<4>();
                let (blocks, rest_bytes) = bytes.split_at(fours.len() * 4 * BYTES);
                for (blocks, signs) in blocks.chunks_exact(4 * BYTES).zip(fours) {
                    for at in 0..4 {
                        sums[at] = s.add_differences(sums[at], vector(s, blocks, at), signs[at]);
                    }
                }
                for (block, sign) in rest_bytes.chunks_exact(BYTES).zip(rest) {
                    sums[0] = s.add_differences(sums[0], vector(s, block, 0), *sign);
                }
                let different = s.add_ints(s.add_ints(sums[0], sums[1]), s.add_ints(sums[2], sums[3]));
                // Equal signs give +1 and different ones -1.
                let codes = s.sub_ints(s.splat_int(panel.group_size as i32), s.shift_ints_left(different, 1));
                result = s.mul_add_once(s.to_floats(codes), panel.scales.at(s, group), result);
            }
            // SAFETY: the token is one of the output, whose rows of this panel are the caller's.
            unsafe { out.store(s, token, s.mul(result, s.splat(*scale))) };
        }
    }
}
