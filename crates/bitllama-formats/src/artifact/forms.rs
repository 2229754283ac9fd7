//! The NPZ keys of each scheme in each layout: the one table that writer and reader share.

use bitllama_core::Scheme;
use bitllama_core::panel::PANEL_ROWS;

use super::Layout;
use crate::npz::Dtype;

/// How a low-bit matrix stands under the keys `NAME` + suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Of the codes.
    pub suffix: &'static str,
    pub scheme: Scheme,
    pub cells: Cells,
    /// Of the scales, f32 `[out]`; beside panels also `[out, groups]`, f16, or i8 with [`STEPS`] and [`MEAN`] beside them.
    pub scales: &'static str,
    /// Of the zero points, i32, as many as scales.
    pub zero_point: Option<&'static str>,
}

/// The elements of the codes' array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cells {
    /// u8 `[panels, blocks, block_bytes]`: the bytes of a `PackedMatrix`, see `bitllama_core::panel`.
    Panels,
    /// u8 `[out, ceil(in / 8)]`: fields of one bit as `numpy.packbits` packs them.
    Bits,
    /// i8 `[out, in]`: codes.
    Codes,
    /// u8 `[out, in]`: fields; the zero points tell which one is 0.
    Fields,
}

/// Behind the suffix of double-quantized scales (`bitllama_core::ScaleFormat::Double`): f32, one for each block of them.
pub(super) const STEPS: &str = "_steps";
/// The same: f32, one number.
pub(super) const MEAN: &str = "_mean";

/// Suffix of a matrix in blocks of ggml: u8 `[out, bytes of a row]`. The manifest says of which type.
pub(super) const GGML: &str = "_ggml";

/// Suffix of a weight in full precision.
pub(super) const FULL: &str = "_fp32";

/// The same in archives of `quantize_real_model.py`, one of the older tools: norms stand under their own names.
pub(super) const BARE: &str = "";

/// The first form of a weight that a reader finds is taken, if nothing says which is meant. Integers come before
/// signs: the older tools' exporter writes the signs of every matrix, whatever it was asked for. Integers of
/// several widths are refused.
///
/// The older tools know integers of 2, 4 and 8 bits: those of 3 bits are values of 4, those of 5 and 6 bits values of 8. Only
/// a manifest tells them apart; without one such a matrix reads as `int4` or `int8` with zero points, which are the same weights.
pub(super) static FORMS: [Form; Scheme::ALL.len() + OLDER.len()] = {
    let mut forms = [ONE_BIT; Scheme::ALL.len() + OLDER.len()];
    let mut at = 0;
    while at < forms.len() {
        forms[at] = match at < Scheme::ALL.len() {
            true => panels(Scheme::ALL[at]),
            false => OLDER[at - Scheme::ALL.len()],
        };
        at += 1;
    }
    forms
};

/// The forms of the older tools.
const OLDER: [Form; 8] = [
    TERNARY,
    fields("_q2", Scheme::Int2, "_q2_scales", "_q2_zero_point"),
    fields("_q4", Scheme::Int4, "_q4_scales", "_q4_zero_point"),
    fields("_q8", Scheme::Int8, "_q8_scales", "_q8_zero_point"),
    fields("_q4", Scheme::Int3, "_q4_scales", "_q4_zero_point"),
    fields("_q8", Scheme::Int5, "_q8_scales", "_q8_zero_point"),
    fields("_q8", Scheme::Int6, "_q8_scales", "_q8_zero_point"),
    ONE_BIT,
];

/// Signs, which the older tools packed from the start.
pub(super) const ONE_BIT: Form = Form {
    suffix: "_1bit",
    scheme: Scheme::Binary,
    cells: Cells::Bits,
    scales: "_scales",
    zero_point: Some("_zero_point"),
};

/// A byte for each of the codes -1, 0, 1.
pub(super) const TERNARY: Form =
    Form { suffix: "_ternary", scheme: Scheme::Ternary, cells: Cells::Codes, scales: "_scales", zero_point: None };

/// The copy beside `_ternary` in [`Layout::V2`]: not all of the older tools read that, but every one of them reads two-bit
/// integers. The codes -1, 0, 1 are the fields 0, 1, 2 with a zero point of 1; the weights are the same.
pub(super) const TERNARY_AS_Q2: Form = fields("_q2", Scheme::Ternary, "_q2_scales", "_q2_zero_point");

/// Keys under which version 0.1.0 wrote packed rows for a while. Nothing reads them any more.
pub(super) const ROW_MAJOR: [&str; 5] = ["_ternary_packed", "_q2_packed", "_q3_packed", "_q4_packed", "_q8_packed"];

const fn panels(scheme: Scheme) -> Form {
    let zero_point = if scheme.table().is_none() { Some("_zero_point") } else { None };
    Form { suffix: scheme.description().panels_key, scheme, cells: Cells::Panels, scales: "_scales", zero_point }
}

const fn fields(suffix: &'static str, scheme: Scheme, scales: &'static str, zero_point: &'static str) -> Form {
    Form { suffix, scheme, cells: Cells::Fields, scales, zero_point: Some(zero_point) }
}

impl Form {
    /// The form of a scheme in a layout, if it has one: the older tools have none for `seq2` and tables.
    pub fn of(layout: Layout, scheme: Scheme) -> Option<Form> {
        let fits = |form: &&Form| form.scheme == scheme && (layout == Layout::Packed) == (form.cells == Cells::Panels);
        FORMS.iter().find(fits).copied()
    }

    /// The form in which a matrix stands once more, for tools that do not know the first.
    pub fn copy(&self) -> Option<Form> {
        (*self == TERNARY).then_some(TERNARY_AS_Q2)
    }

    /// Element type and shape of the codes of a matrix.
    pub fn array(&self, [rows, columns]: [usize; 2]) -> (Dtype, Vec<usize>) {
        match self.cells {
            Cells::Panels => {
                let blocks = columns.div_ceil(self.scheme.block_columns());
                (Dtype::U8, vec![rows.div_ceil(PANEL_ROWS), blocks, self.scheme.block_bytes()])
            }
            Cells::Bits => (Dtype::U8, vec![rows, columns.div_ceil(8)]),
            Cells::Codes => (Dtype::I8, vec![rows, columns]),
            Cells::Fields => (Dtype::U8, vec![rows, columns]),
        }
    }

    /// `packed_format` of the manifest.
    pub fn packed_format(&self) -> String {
        match self.cells {
            Cells::Panels => {
                let (bits, columns) = (self.scheme.code_bits(), self.scheme.block_columns());
                format!("panels16(rows={PANEL_ROWS},columns={columns},bits={bits})")
            }
            Cells::Bits => "numpy.packbits(msb_first,row-major)".into(),
            Cells::Codes => "int8(row-major)".into(),
            Cells::Fields => "uint8(row-major)".into(),
        }
    }

    /// Bits of a code as the older tools count them.
    pub fn bit_width(&self) -> u32 {
        match self.suffix {
            "_q4" => 4,
            "_q8" => 8,
            _ => self.scheme.code_bits(),
        }
    }

    /// Whether the suffix of the codes is that of wider integers than the scheme's.
    pub fn is_widened(&self) -> bool {
        self.cells == Cells::Fields && self.bit_width() != self.scheme.code_bits()
    }
}

/// The name that artifacts use for the weight `name` of `bitllama_core::weights`.
pub(super) fn artifact_name(name: &str) -> String {
    match name.split_once('.') {
        Some(("embed_tokens", rest)) => format!("embedding.{rest}"),
        Some(("layers", rest)) => format!("transformer.layers.{rest}"),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_has_a_form_in_every_layout_but_those_that_the_older_tools_lack() {
        for scheme in Scheme::ALL {
            for layout in [Layout::Packed, Layout::V2] {
                let Some(form) = Form::of(layout, scheme) else {
                    assert!(layout == Layout::V2 && (scheme == Scheme::Seq2 || scheme.table().is_some()));
                    continue;
                };
                assert_eq!(form.scheme, scheme);
                assert_eq!(form.cells == Cells::Panels, layout == Layout::Packed);
                let (dtype, shape) = form.array([17, 33]);
                let bytes = shape.iter().product::<usize>() * dtype.size();
                if layout == Layout::Packed {
                    assert_eq!(Some(bytes), scheme.packed_bytes([17, 33]));
                }
            }
        }
        assert_eq!(Form::of(Layout::V2, Scheme::Binary), Some(ONE_BIT));
        for (scheme, suffix) in [(Scheme::Int3, "_q4"), (Scheme::Int5, "_q8"), (Scheme::Int6, "_q8")] {
            let form = Form::of(Layout::V2, scheme).unwrap();
            assert!(form.suffix == suffix && form.is_widened(), "{scheme}");
        }
        assert!(FORMS.iter().all(|form| !ROW_MAJOR.contains(&form.suffix)));
    }

    #[test]
    fn names_are_those_of_the_older_tools() {
        assert_eq!(artifact_name("embed_tokens.weight"), "embedding.weight");
        assert_eq!(artifact_name("layers.3.mlp.up_proj.weight"), "transformer.layers.3.mlp.up_proj.weight");
        assert_eq!(artifact_name("norm.weight"), "norm.weight");
        assert_eq!(artifact_name("lm_head.weight"), "lm_head.weight");
    }
}
