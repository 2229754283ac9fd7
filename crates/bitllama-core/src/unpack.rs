//! Packed rows to `f32` codes, by table: a byte is looked up and gives all of its codes at once. The same numbers as
//! [`crate::packed::field`] gives one by one, many times as fast; every table fits into L1.

use crate::Scheme;

static BINARY: [[f32; 8]; 256] = table(Scheme::Binary);
static TERNARY: [[f32; 4]; 256] = table(Scheme::Ternary);
static INT2: [[f32; 4]; 256] = table(Scheme::Int2);
/// By six bits: a whole group of three bytes would take 2^24 entries.
static INT3: [[f32; 2]; 64] = table(Scheme::Int3);
static INT4: [[f32; 2]; 256] = table(Scheme::Int4);

/// The codes of a packed row into `out` (`[columns]`).
pub(crate) fn codes(scheme: Scheme, packed: &[u8], out: &mut [f32]) {
    match scheme {
        Scheme::Binary => by_byte(&BINARY, packed, out),
        Scheme::Ternary => by_byte(&TERNARY, packed, out),
        Scheme::Int2 => by_byte(&INT2, packed, out),
        Scheme::Int3 => by_three_bytes(packed, out),
        Scheme::Int4 => by_byte(&INT4, packed, out),
        Scheme::Int8 => out.iter_mut().zip(packed).for_each(|(code, byte)| *code = (*byte as i32 - 128) as f32),
    }
}

fn by_byte<const CODES: usize>(table: &[[f32; CODES]; 256], packed: &[u8], out: &mut [f32]) {
    let (groups, rest) = out.as_chunks_mut::<CODES>();
    let whole = groups.len();
    for (codes, byte) in groups.iter_mut().zip(packed) {
        *codes = table[*byte as usize];
    }
    for (codes, byte) in rest.chunks_mut(CODES).zip(&packed[whole..]) {
        codes.copy_from_slice(&table[*byte as usize][..codes.len()]);
    }
}

fn by_three_bytes(packed: &[u8], out: &mut [f32]) {
    let group_of = |bytes: [u8; 3]| {
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        let mut codes = [0.0; 8];
        for (pair, codes) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *codes = INT3[(word >> (6 * pair) & 63) as usize];
        }
        codes
    };
    let (groups, rest) = out.as_chunks_mut::<8>();
    let (bytes, _) = packed.as_chunks::<3>();
    let tail = &packed[(groups.len() * 3).min(packed.len())..];
    for (codes, bytes) in groups.iter_mut().zip(bytes) {
        *codes = group_of(*bytes);
    }
    if !rest.is_empty() {
        let mut bytes = [0; 3];
        bytes[..tail.len()].copy_from_slice(tail);
        rest.copy_from_slice(&group_of(bytes)[..rest.len()]);
    }
}

/// The `CODES` codes that stand in each value of a byte (or of some bits), in their order.
const fn table<const CODES: usize, const VALUES: usize>(scheme: Scheme) -> [[f32; CODES]; VALUES] {
    let bits = scheme.code_bits() as usize;
    let mut table = [[0.0; CODES]; VALUES];
    let mut value = 0;
    while value < VALUES {
        let mut i = 0;
        while i < CODES {
            let shift = match scheme {
                Scheme::Binary => CODES - 1 - i,
                _ => i * bits,
            };
            table[value][i] = scheme.code_of((value >> shift & ((1 << bits) - 1)) as u8) as f32;
            i += 1;
        }
        value += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{field, row_bytes};

    #[test]
    fn the_same_codes_as_field_by_field_for_any_bytes_and_length() {
        for scheme in Scheme::ALL {
            for columns in 1..70 {
                for start in [0, 131] {
                    let bytes: Vec<u8> = (0..row_bytes(scheme, columns)).map(|i| (i * 89 + start) as u8).collect();
                    let mut out = vec![f32::NAN; columns];
                    codes(scheme, &bytes, &mut out);
                    let expected = (0..columns).map(|column| scheme.code_of(field(scheme, &bytes, column)) as f32);
                    assert_eq!(out, expected.collect::<Vec<_>>(), "{scheme}, {columns} columns");
                }
            }
        }
    }
}
