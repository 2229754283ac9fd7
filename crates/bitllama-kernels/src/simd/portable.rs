//! Arrays, which the compiler makes into whatever vectors its target has.

use half::f16;

use super::{BYTES, LANES, Nibbles, Simd};

/// The proof that any processor gives. `FUSED` where the target multiplies and adds in one instruction; elsewhere that is a
/// call of a library.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FUSED: bool>;

/// [`Simd::scale`] of one number: adds `n` to the exponent of `v`.
#[inline(always)]
fn scale_bits(v: f32, n: f32) -> f32 {
    // Near 1.5 * 2^23 the low bits of a float are a whole number.
    f32::from_bits(v.to_bits().wrapping_add((n + 12_582_912.0).to_bits() << 23))
}

/// The number that an `f16` of these bits is; infinities become 2^16 and more.
#[inline(always)]
fn from_f16_bits(bits: u16) -> f32 {
    // The exponents' biases differ by 112.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// An array of the results for each lane, in which the vectors are numbers.
macro_rules! lanewise {
    (|$($v:ident),*; $lane:ident| $result:expr) => {{
        let mut out = [Default::default(); LANES];
        for $lane in 0..LANES {
            $(let $v = $v[$lane];)*
            out[$lane] = $result;
        }
        out
    }};
}

impl<const FUSED: bool> Simd for Portable<FUSED> {
    type Floats = [f32; LANES];
    type Ints = [i32; LANES];
    type Bytes = [[u8; 4]; LANES];
    type Dots = [i32; LANES];
    const BLOCK: usize = if FUSED { 6 } else { 2 };
    const ROWS: usize = if FUSED { 6 } else { 2 };
    const STACKED: bool = false;
    const SUMS: usize = 1;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::Floats {
        *x
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::Floats {
        lanewise!(|x; i| from_f16_bits(x.to_bits()))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::Floats {
        lanewise!(|x; i| f32::from(x))
    }
    #[inline(always)]
    fn load_i4(self, x: &Nibbles) -> Self::Floats {
        let mut out = [0.0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = x.code(lane);
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::Floats, out: &mut [f32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        lanewise!(|a, b, c; i| if FUSED { a.mul_add(b, c) } else { a * b + c })
    }
    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanewise!(|a, b; i| if a > b { a } else { b })
    }
    #[inline(always)]
    fn scale(self, v: Self::Floats, n: Self::Floats) -> Self::Floats {
        lanewise!(|v, n; i| scale_bits(v, n))
    }
    #[inline(always)]
    fn zero_below(self, v: Self::Floats, x: Self::Floats, bound: f32) -> Self::Floats {
        lanewise!(|v, x; i| if x < bound { 0.0 } else { v })
    }
    #[inline(always)]
    fn sum(self, v: Self::Floats) -> f32 {
        let mut v = v;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn largest(self, v: Self::Floats) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn mul_add_once(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        lanewise!(|a, b, c; i| a.mul_add(b, c))
    }
    #[inline(always)]
    fn lookup_floats(self, table: &[f32; 16], indices: Self::Ints) -> Self::Floats {
        lanewise!(|indices; i| table[indices as usize & 15])
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::Ints {
        [x; LANES]
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> Self::Ints {
        *x
    }
    #[inline(always)]
    fn load_i16(self, x: &[i16; LANES]) -> Self::Ints {
        lanewise!(|x; i| i32::from(x))
    }
    #[inline(always)]
    fn load_i8_ints(self, x: &[i8; LANES]) -> Self::Ints {
        lanewise!(|x; i| i32::from(x))
    }
    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        lanewise!(|a, b; i| i32::wrapping_add(a, b))
    }
    #[inline(always)]
    fn sub_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        lanewise!(|a, b; i| i32::wrapping_sub(a, b))
    }
    #[inline(always)]
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        lanewise!(|a, b; i| i32::wrapping_mul(a, b))
    }
    #[inline(always)]
    fn shift_ints_right(self, a: Self::Ints, by: u32) -> Self::Ints {
        lanewise!(|a; i| a >> by)
    }
    #[inline(always)]
    fn shift_ints_left(self, a: Self::Ints, by: u32) -> Self::Ints {
        lanewise!(|a; i| a << by)
    }
    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        lanewise!(|a; i| a as f32)
    }
    #[inline(always)]
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        lanewise!(|sum, a, b; i| {
            let low = i32::from(a as i16) * i32::from(b as i16);
            i32::wrapping_add(sum, low).wrapping_add((a >> 16) * (b >> 16))
        })
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> Self::Bytes {
        let mut out = [[0; 4]; LANES];
        for (out, lane) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = *lane;
        }
        out
    }
    #[inline(always)]
    fn splat_quad(self, x: [i8; 4]) -> Self::Bytes {
        [bytemuck::cast(x); LANES]
    }
    #[inline(always)]
    fn bytes_of(self, x: Self::Ints) -> Self::Bytes {
        lanewise!(|x; i| x.to_le_bytes())
    }
    #[inline(always)]
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        lanewise!(|bytes; i| bytes.map(|byte| byte & mask))
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        lanewise!(|a, b; i| (u32::from_ne_bytes(a) | u32::from_ne_bytes(b)).to_ne_bytes())
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        lanewise!(|bytes; i| bytes.map(|byte| byte >> BITS))
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        lanewise!(|bytes; i| bytes.map(|byte| byte << BITS))
    }
    #[inline(always)]
    fn lane_field(self, bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints {
        lanewise!(|bytes; i| (u32::from_le_bytes(bytes) >> shift) as i32 & mask)
    }
    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> Self::Bytes {
        let mut out = [[0; 4]; LANES];
        out.as_flattened_mut()[..16].copy_from_slice(bytes);
        out
    }
    #[inline(always)]
    fn lookup(self, table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes {
        lanewise!(|fields; i| fields.map(|field| table.as_flattened()[field as usize & 15]))
    }
    #[inline(always)]
    fn no_dots(self) -> Self::Dots {
        [0; LANES]
    }
    #[inline(always)]
    fn dot(self, sum: Self::Dots, fields: Self::Bytes, x: Self::Bytes) -> Self::Dots {
        lanewise!(|sum, fields, x; i| {
            let products = |k: usize| i32::from(fields[k]) * i32::from(x[k] as i8);
            sum + products(0) + products(1) + products(2) + products(3)
        })
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    fn add_dots(self, sum: Self::Ints, dots: Self::Dots) -> Self::Ints {
        self.add_ints(sum, dots)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        self.dot(sum, fields, x)
    }
    #[inline(always)]
    fn add_differences(self, sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints {
        lanewise!(|sum, bytes; i| sum + (u32::from_le_bytes(bytes) ^ x).count_ones() as i32)
    }
}
