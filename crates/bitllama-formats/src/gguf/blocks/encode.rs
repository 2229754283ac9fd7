//! Blocks out of fields and constants: the inverse of the readers of `basic.rs`, `k_quants.rs` and `low_bit.rs`.

use bitllama_core::BlockMatrix;
use bitllama_core::blocks::BlockScales;
use bitllama_core::panel::{self, PANEL_ROWS};

use super::BlockFormat::{self, *};
use super::codes::{Constants, form};

/// The types that [`put_row`] writes, from the fewest bits up.
pub(crate) const WRITTEN: [BlockFormat; 15] =
    [Q1_0, TQ1_0, TQ2_0, Q2_0, Q2_K, Q3_K, Q4_0, IQ4_NL, Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0];

/// Those of them that have a scale per block and nothing else, from the fewest bits up.
pub(crate) fn with_scales_only() -> impl Iterator<Item = BlockFormat> {
    WRITTEN.into_iter().filter(|format| form(*format).is_some_and(|form| form.nested.is_none() && !form.has_minimums))
}

/// The type and the bytes of a matrix of blocks, its rows one after the other. `None` if no type has its form.
pub(crate) fn put_matrix(matrix: &BlockMatrix) -> Option<(BlockFormat, Vec<u8>)> {
    let same = |format: &BlockFormat| *format != TQ1_0 && form(*format).as_ref() == Some(matrix.form());
    let format = WRITTEN.into_iter().find(same)?;
    let columns = matrix.columns();
    let row_bytes = columns / format.block_len() * format.block_bytes();
    let (mut out, mut fields) = (Vec::with_capacity(matrix.rows() * row_bytes), vec![0; columns]);
    for row in 0..matrix.rows() {
        panel::row_fields(matrix.form().bits, matrix.panel(row / PANEL_ROWS), row % PANEL_ROWS, &mut fields);
        let blocks: Vec<Constants> =
            (0..columns / format.block_len()).map(|block| constants(matrix, format, row, block)).collect();
        put_row(format, &fields, &blocks, &mut out);
    }
    Some((format, out))
}

/// The constants of a block of a row.
fn constants(matrix: &BlockMatrix, format: BlockFormat, row: usize, block: usize) -> Constants {
    let (panel, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
    let (blocks, groups) = (matrix.columns() / format.block_len(), format.block_len() / matrix.form().group_size);
    let of = |numbers: &BlockScales| {
        let (halves, all) = match numbers {
            BlockScales::F16(halves) => (halves, None),
            BlockScales::Nested { factors, steps, .. } => (factors, Some(steps)),
        };
        let mut of_block = [0; 16];
        if let Some(all) = all {
            let first = panel * blocks * groups + block * groups;
            of_block[..groups].iter_mut().zip(first..).for_each(|(step, at)| *step = all[at * PANEL_ROWS + lane]);
        }
        (halves[(panel * blocks + block) * PANEL_ROWS + lane], of_block)
    };
    let (scale, steps) = of(matrix.scales());
    let (minimum, minimum_steps) = matrix.minimums().map_or((0, [0; 16]), of);
    Constants { scale, minimum, steps, minimum_steps }
}

/// Appends the blocks of a row: the field of each column, and the constants of each block.
///
/// # Panics
/// If the format is none of [`WRITTEN`], or the fields are no whole blocks.
pub(crate) fn put_row(format: BlockFormat, fields: &[u8], constants: &[Constants], out: &mut Vec<u8>) {
    assert!(WRITTEN.contains(&format), "{} is not written", format.name());
    assert_eq!(fields.len(), constants.len() * format.block_len(), "{} fields are no whole blocks", fields.len());
    for (fields, constants) in fields.chunks_exact(format.block_len()).zip(constants) {
        let scale = constants.scale.to_le_bytes();
        match format {
            TQ1_0 | TQ2_0 => {
                put_fields(format, fields, out);
                out.extend(scale);
            }
            Q4_1 | Q5_1 => {
                // The number that is added.
                out.extend(scale);
                out.extend((constants.minimum ^ if constants.minimum == 0 { 0 } else { 0x8000 }).to_le_bytes());
                put_fields(format, fields, out);
            }
            Q2_K => {
                let steps = constants.steps.iter().zip(&constants.minimum_steps);
                out.extend(steps.map(|(scale, minimum)| *scale as u8 | (*minimum as u8) << 4));
                put_fields(format, fields, out);
                out.extend(scale);
                out.extend(constants.minimum.to_le_bytes());
            }
            Q3_K => {
                put_fields(format, fields, out);
                out.extend(sixteen_scales(&constants.steps));
                out.extend(scale);
            }
            Q4_K | Q5_K => {
                out.extend(scale);
                out.extend(constants.minimum.to_le_bytes());
                out.extend(scales_and_minima(&constants.steps, &constants.minimum_steps));
                put_fields(format, fields, out);
            }
            Q6_K => {
                put_fields(format, fields, out);
                out.extend(constants.steps.map(|step| step as u8));
                out.extend(scale);
            }
            _ => {
                out.extend(scale);
                put_fields(format, fields, out);
            }
        }
    }
}

fn put_fields(format: BlockFormat, fields: &[u8], out: &mut Vec<u8>) {
    match format {
        Q1_0 => out.extend(fields.chunks_exact(8).map(|fields| stacked(fields, 1))),
        Q2_0 => out.extend(fields.chunks_exact(4).map(|fields| stacked(fields, 2))),
        Q4_0 | Q4_1 | IQ4_NL => nibbles(fields, out),
        Q5_0 | Q5_1 => {
            out.extend(fields.chunks_exact(8).map(|fields| {
                let fifth: Vec<u8> = fields.iter().map(|field| field >> 4).collect();
                stacked(&fifth, 1)
            }));
            nibbles(fields, out);
        }
        // A distance from -128 becomes two's complement.
        Q8_0 => out.extend(fields.iter().map(|field| field ^ 0x80)),
        TQ2_0 | Q2_K => four_places(fields, 0, out),
        Q3_K => {
            eight_places(fields, 2, out);
            four_places(fields, 0, out);
        }
        Q4_K => fields.chunks_exact(64).for_each(|fields| nibbles(fields, out)),
        Q5_K => {
            eight_places(fields, 4, out);
            fields.chunks_exact(64).for_each(|fields| nibbles(fields, out));
        }
        Q6_K => {
            fields.chunks_exact(128).for_each(|fields| nibbles(fields, out));
            four_places(fields, 4, out);
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

/// The two bits from `shift` up of 128 fields at a time in 32 bytes: those of fields `i`, `32 + i`, `64 + i` and `96 + i` in byte `i`.
fn four_places(fields: &[u8], shift: usize, out: &mut Vec<u8>) {
    for fields in fields.chunks_exact(128) {
        out.extend((0..32).map(|at| stacked(&[0, 32, 64, 96].map(|place| fields[place + at] >> shift & 3), 2)));
    }
}

/// The bit `shift` of 256 fields in 32 bytes: that of field `32 n + i` is bit `n` of byte `i`.
fn eight_places(fields: &[u8], shift: usize, out: &mut Vec<u8>) {
    out.extend((0..32).map(|at| {
        let bits: [u8; 8] = std::array::from_fn(|place| fields[32 * place + at] >> shift & 1);
        stacked(&bits, 1)
    }));
}

/// Sixteen scales of 6 bits, as distances from -32, in twelve bytes: the lower four bits first, then the upper two.
fn sixteen_scales(steps: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for (part, step) in steps.iter().enumerate() {
        let scale = (step + 32) as u8;
        out[part % 8] |= (scale & 15) << (part / 8 * 4);
        out[8 + part % 4] |= (scale >> 4) << (part / 4 * 2);
    }
    out
}

/// Eight scales and eight minima of 6 bits in twelve bytes: the upper two bits of the last four of each lie above the first four's.
fn scales_and_minima(scales: &[i8; 16], minima: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for i in 0..4 {
        let [scale, minimum, later_scale, later_minimum] =
            [scales[i], minima[i], scales[4 + i], minima[4 + i]].map(|step| step as u8);
        out[i] = scale | later_scale >> 4 << 6;
        out[4 + i] = minimum | later_minimum >> 4 << 6;
        out[8 + i] = later_scale & 15 | (later_minimum & 15) << 4;
    }
    out
}

/// Fields of `bits` bits in one byte, the first one lowest.
fn stacked(fields: &[u8], bits: usize) -> u8 {
    (0..).zip(fields).fold(0, |byte, (place, field)| byte | field << (bits * place))
}

/// The lower four bits of fields: those of the first half below those of the others.
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
    use half::f16;

    use super::super::tests::golden;
    use super::*;
    use crate::gguf::panels;

    #[test]
    fn written_blocks_read_back_to_the_bit() {
        for format in with_scales_only() {
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
            put_row(format, &fields, &scales.map(|scale| Constants::scale(scale.to_bits())), &mut bytes);
            assert_eq!(bytes.len(), 3 * format.block_bytes());
            let expected = fields
                .iter()
                .enumerate()
                .map(|(column, field)| scales[column / format.block_len()].to_f32() * form.codes.code(*field) as f32);
            assert!(format.dequantize(&bytes).into_iter().eq(expected), "{}", format.name());
        }
        assert!(WRITTEN.is_sorted_by_key(|format| format.block_bytes() * 256 / format.block_len()));
    }

    /// Random blocks of the `gguf` package, taken apart and put together again.
    #[test]
    fn blocks_that_were_read_are_written_as_they_were() {
        // Bytes of TQ1_0 have several forms of the same digits, and its matrices are those of TQ2_0.
        for format in WRITTEN.into_iter().filter(|format| *format != TQ1_0) {
            let (bytes, _) = golden(format);
            let row_bytes = bytes.len() / 2 / format.block_bytes() * format.block_bytes();
            let shape = [2, row_bytes / format.block_bytes() * format.block_len()];
            let matrix = panels(format, shape, |row| &bytes[row * row_bytes..][..row_bytes]).unwrap();
            let (found, written) = put_matrix(&matrix).unwrap();
            assert_eq!(found, format);
            assert!(written == bytes[..2 * row_bytes], "{}", format.name());
        }
    }
}
