//! Blocks out of fields and scales: the inverse of the readers of `basic.rs` and `low_bit.rs`, for the types that have a scale per
//! block and nothing else.

use half::f16;

use super::BlockFormat::{self, *};

/// The types that [`put_row`] writes, from the fewest bits up.
pub(crate) const WRITTEN: [BlockFormat; 8] = [Q1_0, TQ1_0, TQ2_0, Q2_0, Q4_0, IQ4_NL, Q5_0, Q8_0];

/// Appends the blocks of a row: the field of each column, and the scale of each block.
///
/// # Panics
/// If the format is none of [`WRITTEN`], or the fields are no whole blocks.
pub(crate) fn put_row(format: BlockFormat, fields: &[u8], scales: &[f16], out: &mut Vec<u8>) {
    assert!(WRITTEN.contains(&format), "{} is not written", format.name());
    assert_eq!(fields.len(), scales.len() * format.block_len(), "{} fields are no whole blocks", fields.len());
    for (fields, scale) in fields.chunks_exact(format.block_len()).zip(scales) {
        let scale = scale.to_le_bytes();
        // Ternary blocks have their scale at the end.
        if matches!(format, TQ1_0 | TQ2_0) {
            put_fields(format, fields, out);
            out.extend(scale);
        } else {
            out.extend(scale);
            put_fields(format, fields, out);
        }
    }
}

fn put_fields(format: BlockFormat, fields: &[u8], out: &mut Vec<u8>) {
    match format {
        Q1_0 => out.extend(fields.chunks_exact(8).map(|fields| stacked(fields, 1))),
        Q2_0 => out.extend(fields.chunks_exact(4).map(|fields| stacked(fields, 2))),
        Q4_0 | IQ4_NL => nibbles(fields, out),
        Q5_0 => {
            out.extend(fields.chunks_exact(8).map(|fields| {
                let fifth: Vec<u8> = fields.iter().map(|field| field >> 4).collect();
                stacked(&fifth, 1)
            }));
            nibbles(fields, out);
        }
        // A distance from -128 becomes two's complement.
        Q8_0 => out.extend(fields.iter().map(|field| field ^ 0x80)),
        TQ2_0 => {
            for fields in fields.chunks_exact(128) {
                out.extend((0..32).map(|at| stacked(&[0, 32, 64, 96].map(|place| fields[place + at]), 2)));
            }
        }
        TQ1_0 => {
            let (first, rest) = fields.split_at(160);
            let (second, third) = rest.split_at(80);
            for (run, fields) in [(32, first), (16, second), (4, third)] {
                out.extend((0..run).map(|at| digits(fields, at, run)));
            }
        }
        _ => unreachable!("checked by the caller"),
    }
}

/// Fields of `bits` bits in one byte, the first one lowest.
fn stacked(fields: &[u8], bits: usize) -> u8 {
    (0..).zip(fields).fold(0, |byte, (place, field)| byte | field << (bits * place))
}

/// The lower four bits of 32 fields: those of the first sixteen below those of the others.
fn nibbles(fields: &[u8], out: &mut Vec<u8>) {
    let (low, high) = fields.split_at(fields.len() / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

/// Five digits in base 3, every `run`th field from `at` on, as the byte whose product with 243 / 256 they are; digits beyond the
/// last field are 0.
fn digits(fields: &[u8], at: usize, run: usize) -> u8 {
    let digit = |place: usize| fields.get(place * run + at).copied().map_or(0, u32::from);
    let number = (0..5).fold(0, |number, place| number * 3 + digit(place));
    // Rounded up, so that the reader's multiplication finds all digits.
    ((number * 256).div_ceil(243)) as u8
}

#[cfg(test)]
mod tests {
    use bitllama_core::blocks::Codes;

    use super::*;

    #[test]
    fn written_blocks_read_back_to_the_bit() {
        for format in WRITTEN {
            let form = format.form().unwrap();
            let levels = match form.codes {
                Codes::Line { low: -1, step: 1 } if format != Q2_0 => 3,
                _ => u32::from(form.bits.largest()) + 1,
            };
            let columns = 3 * format.block_len();
            let fields: Vec<u8> =
                (0..columns as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) % levels).map(|f| f as u8).collect();
            let scales = [0.5, -0.0123, 6.1e-5].map(f16::from_f32);
            let mut bytes = Vec::new();
            put_row(format, &fields, &scales, &mut bytes);
            assert_eq!(bytes.len(), 3 * format.block_bytes());
            let expected = fields
                .iter()
                .enumerate()
                .map(|(column, field)| scales[column / format.block_len()].to_f32() * form.codes.code(*field) as f32);
            assert!(format.dequantize(&bytes).into_iter().eq(expected), "{}", format.name());
        }
        assert!(WRITTEN.is_sorted_by_key(|format| format.block_bytes() * 256 / format.block_len()));
    }
}
