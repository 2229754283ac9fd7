//! Loops over a vector's lanes, the last of which may not be full.
//!
//! They are macros: a closure is compiled apart from the function around it, without that function's instruction set.

use crate::simd::{LANES, Simd};

/// Runs a block for each run of `LANES` numbers of `$len`, the last of which may be shorter, with its range in `$place`.
macro_rules! for_lanes {
    ($len:expr, $place:ident => $body:block) => {{
        const LANES: usize = $crate::simd::LANES;
        let len: usize = $len;
        let whole = len - len % LANES;
        let mut at = 0;
        while at < whole {
            let $place = at..at + LANES;
            $body
            at += LANES;
        }
        if whole < len {
            let $place = whole..len;
            $body
        }
    }};
}
pub(super) use for_lanes;

/// Up to [`LANES`] numbers, then zeros.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, x: &[f32]) -> S::Floats {
    match x.first_chunk::<LANES>() {
        Some(x) => s.load(x),
        None => s.load_some(x),
    }
}

/// The first lanes, as many as `out` takes.
#[inline(always)]
pub(super) fn store<S: Simd>(s: S, v: S::Floats, out: &mut [f32]) {
    match out.first_chunk_mut::<LANES>() {
        Some(out) => s.store(v, out),
        None => s.store_some(v, out),
    }
}

/// The first `len` lanes, then zeros.
#[inline(always)]
pub(super) fn first<S: Simd>(s: S, v: S::Floats, len: usize) -> S::Floats {
    if len == LANES {
        return v;
    }
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    s.load_some(&lanes[..len])
}
