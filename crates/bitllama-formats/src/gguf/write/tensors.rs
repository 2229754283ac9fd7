//! Weights as tensors of a file: which type holds a matrix without loss, and its bytes.

use bitllama_core::blocks::BlockForm;
use bitllama_core::{PackedMatrix, ScaleFormat};
use half::{bf16, f16};

use super::super::BlockFormat::{self, Bf16, F16, F32};
use super::super::blocks::codes::Constants;
use super::super::blocks::encode;
use super::super::{TensorType, i2_s};
use crate::StoredWeight;
use crate::exports::Loss;

/// The bytes of a tensor and what they lose.
#[derive(Debug)]
pub(super) struct Encoded {
    pub kind: TensorType,
    pub bytes: Vec<u8>,
    /// Root of the mean squared error over the root of the mean square, 0 where every number is kept to the bit.
    pub error: f64,
}

/// How the codes of a packed matrix stand in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    pub format: BlockFormat,
    /// Whether codes and scales have the other sign there: codes -2 to 1 are codes -1 to 2 of the opposite scale.
    negated: bool,
}

/// The type of the fewest bits whose codes, columns and groups hold those of all `matrices`, which share a tensor; `preferred`, if
/// that is one. `None` if none does.
pub(super) fn fit(matrices: &[&PackedMatrix], preferred: Option<BlockFormat>) -> Option<Fit> {
    let candidates =
        preferred.into_iter().chain(encode::with_scales_only().filter(|format| *format != BlockFormat::TQ1_0));
    let mut fits = candidates.filter_map(|format| {
        let form = format.form().filter(|form| form.nested.is_none() && !form.has_minimums)?;
        let negated = |negated| Fit { format, negated };
        [negated(false), negated(true)].into_iter().find(|fit| matrices.iter().all(|matrix| fit.holds(&form, matrix)))
    });
    fits.next()
}

impl Fit {
    fn holds(&self, form: &BlockForm, matrix: &PackedMatrix) -> bool {
        let whole_blocks = matrix.columns().is_multiple_of(self.format.block_len());
        let whole_groups = matrix.group_size().is_multiple_of(form.group_size);
        whole_blocks
            && whole_groups
            && code_range(matrix).is_some_and(|codes| codes.into_iter().all(|code| self.field(form, code).is_some()))
    }

    /// The field of a code.
    fn field(&self, form: &BlockForm, code: i32) -> Option<u8> {
        let code = if self.negated { -code } else { code };
        let levels = levels(self.format, form);
        (0..levels).map(|field| field as u8).find(|field| form.codes.code(*field) == code)
    }
}

/// Fields that a type has: ternary types have three in two bits.
fn levels(format: BlockFormat, form: &BlockForm) -> u32 {
    match format {
        BlockFormat::TQ1_0 | BlockFormat::TQ2_0 => 3,
        _ => u32::from(form.bits.largest()) + 1,
    }
}

/// Every code that a matrix can have; `None` where they are no whole numbers.
fn code_range(matrix: &PackedMatrix) -> Option<Vec<i32>> {
    let scheme = matrix.scheme();
    let fields = 0..scheme.levels();
    match matrix.zero_points() {
        Some(points) => {
            let (low, high) = (points.iter().min()?, points.iter().max()?);
            Some((-high..=scheme.levels() as i32 - 1 - low).collect())
        }
        None => {
            let codes: Vec<f32> = fields.map(|field| scheme.code_of(field as u8)).collect();
            let whole = codes.iter().all(|code| code.fract() == 0.0);
            whole.then(|| codes.into_iter().map(|code| code as i32).collect())
        }
    }
}

/// The rows of `matrix`, in the order of `rows`, as blocks of a type that [`fit`] found. Scales that are no f16 are rounded.
pub(super) fn packed(matrix: &PackedMatrix, fit: Fit, rows: impl Iterator<Item = usize>) -> Encoded {
    let (format, columns, size) = (fit.format, matrix.columns(), matrix.group_size());
    let Some(form) = format.form() else { unreachable!("formats that fit have a form") };
    let field_of = FieldTable::new(&fit, &form);
    let (mut codes, mut fields) = (vec![0.0; columns], vec![0; columns]);
    let (mut bytes, mut found, mut expected) = (Vec::new(), vec![0.0; columns], vec![0.0; columns]);
    let mut loss = Loss::default();
    for row in rows {
        matrix.codes_into(row, &mut codes);
        codes.iter().zip(&mut fields).for_each(|(code, field)| *field = field_of.get(*code as i32));
        let of_row = &matrix.scales()[row * matrix.groups()..][..matrix.groups()];
        let scales: Vec<Constants> = (0..columns / format.block_len())
            .map(|block| {
                let scale = ScaleFormat::F16.round(of_row[block * format.block_len() / size]);
                // A scale of 0, of a group of zeros, stays 0.
                let scale = if of_row[block * format.block_len() / size] == 0.0 { 0.0 } else { scale };
                Constants::scale(f16::from_f32(if fit.negated { -scale } else { scale }).to_bits())
            })
            .collect();
        let first = bytes.len();
        encode::put_row(format, &fields, &scales, &mut bytes);
        format.dequantize_into(&bytes[first..], &mut found);
        matrix.dequantize_row_into(row, &mut expected);
        loss.add(&expected, &found);
    }
    Encoded { kind: format.into(), bytes, error: loss.relative() }
}

/// Matrices that share a tensor and are ternary with one scale, as I2_S: each with the order of its rows.
pub(super) fn ternary(parts: impl Iterator<Item = (PackedMatrix, impl Iterator<Item = usize>)>) -> Encoded {
    let (mut bytes, mut scale) = (Vec::new(), 0.0);
    for (matrix, rows) in parts {
        i2_s::put_rows(&matrix, rows, &mut bytes);
        scale = matrix.scales().first().copied().unwrap_or(scale);
    }
    i2_s::put_scale(scale, &mut bytes);
    Encoded { kind: TensorType::I2S, bytes, error: 0.0 }
}

/// The type of weights that are blocks of ggml, all of one type.
pub(super) fn blocks<'a>(mut weights: impl Iterator<Item = &'a StoredWeight>) -> Option<BlockFormat> {
    let of = |weight: &StoredWeight| match weight {
        StoredWeight::Rows(rows) => rows.stored_row(0).and_then(|(name, _)| BlockFormat::named(name)),
        _ => None,
    };
    let format = of(weights.next()?).filter(|format| format.block_len() > 1)?;
    weights.all(|weight| of(weight) == Some(format)).then_some(format)
}

/// Rows of blocks as they are, in the order of `rows`.
pub(super) fn copied(weight: &StoredWeight, format: BlockFormat, rows: impl Iterator<Item = usize>) -> Encoded {
    let StoredWeight::Rows(matrix) = weight else { unreachable!("weights of blocks are rows") };
    let bytes = rows.flat_map(|row| matrix.stored_row(row).map_or(&[][..], |(_, bytes)| bytes)).copied().collect();
    Encoded { kind: format.into(), bytes, error: 0.0 }
}

/// Parts of a tensor one behind the other.
pub(super) fn joined(parts: impl Iterator<Item = Encoded>) -> Option<Encoded> {
    parts.reduce(|first, second| Encoded {
        kind: first.kind,
        bytes: [first.bytes, second.bytes].concat(),
        error: first.error.max(second.error),
    })
}

/// Fields by code, for codes of at most nine bits.
struct FieldTable([u8; 512]);

impl FieldTable {
    fn new(fit: &Fit, form: &BlockForm) -> Self {
        let mut table = [0; 512];
        for field in 0..levels(fit.format, form) {
            let code = form.codes.code(field as u8);
            table[(if fit.negated { -code } else { code } + 256) as usize] = field as u8;
        }
        Self(table)
    }

    fn get(&self, code: i32) -> u8 {
        self.0[(code + 256) as usize]
    }
}

/// The smallest of bf16, f16 and f32 that holds every number of `values` to the bit, or `forced`.
pub(super) fn float_format(values: &[f32], forced: Option<BlockFormat>) -> BlockFormat {
    let holds = |round: fn(f32) -> f32| values.iter().all(|value| round(*value).to_bits() == value.to_bits());
    let exact = || {
        if holds(|value| bf16::from_f32(value).to_f32()) {
            Bf16
        } else if holds(|value| f16::from_f32(value).to_f32()) {
            F16
        } else {
            F32
        }
    };
    forced.unwrap_or_else(exact)
}

/// Numbers in a floating-point type. `None` if one is too large for it.
pub(super) fn floats(values: &[f32], format: BlockFormat) -> Option<Encoded> {
    let mut bytes = Vec::with_capacity(values.len() * format.block_bytes());
    for value in values {
        match format {
            Bf16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
            F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
            _ => bytes.extend(value.to_le_bytes()),
        }
    }
    let mut loss = Loss::default();
    const RUN: usize = 1 << 14;
    let mut found = [0.0; RUN];
    for (values, bytes) in values.chunks(RUN).zip(bytes.chunks(RUN * format.block_bytes())) {
        let found = &mut found[..values.len()];
        format.dequantize_into(bytes, found);
        if found.iter().any(|value| !value.is_finite()) {
            return None;
        }
        loss.add(values, found);
    }
    Some(Encoded { kind: format.into(), bytes, error: loss.relative() })
}

/// The reason why no type holds the codes of a matrix.
pub(super) fn no_fit(matrix: &PackedMatrix) -> String {
    let (scheme, columns, size) = (matrix.scheme(), matrix.columns(), matrix.group_size());
    if code_range(matrix).is_none() {
        return format!("no type has the levels of {scheme}");
    }
    let blocks = encode::with_scales_only().any(|format| columns.is_multiple_of(format.block_len()));
    match blocks {
        false => format!("rows of {columns} columns are no whole blocks of 32"),
        true => format!("no type has the codes of {scheme} in groups of {size} columns"),
    }
}
