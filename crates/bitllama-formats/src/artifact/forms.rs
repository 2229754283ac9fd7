//! The NPZ keys of each scheme in each layout: the one table that writer and reader share.

use bitllama_core::Scheme;

use super::Layout;

/// How a low-bit matrix stands under the keys `NAME` + suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Of the codes.
    pub suffix: &'static str,
    pub scheme: Scheme,
    pub cells: Cells,
    /// Of the scales, f32 `[out]`.
    pub scales: &'static str,
    /// Of the zero points, i32 `[out]`.
    pub zero_point: Option<&'static str>,
}

/// The elements of the codes' array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cells {
    /// u8 `[out, row_bytes]`: the rows of a `PackedMatrix`.
    Packed,
    /// i8 `[out, in]`: codes.
    Codes,
    /// u8 `[out, in]`: fields; the zero points tell which one is 0.
    Fields,
}

/// Suffix of a weight in full precision.
pub(super) const FULL: &str = "_fp32";

/// Where a reader finds several, the first is taken.
pub(super) const FORMS: [Form; 11] = [
    packed("_1bit", Scheme::Binary),
    packed("_ternary_packed", Scheme::Ternary),
    packed("_q2_packed", Scheme::Int2),
    packed("_q3_packed", Scheme::Int3),
    packed("_q4_packed", Scheme::Int4),
    packed("_q8_packed", Scheme::Int8),
    Form { suffix: "_ternary", scheme: Scheme::Ternary, cells: Cells::Codes, scales: "_scales", zero_point: None },
    fields("_q2", Scheme::Int2, "_q2_scales", "_q2_zero_point"),
    fields("_q4", Scheme::Int4, "_q4_scales", "_q4_zero_point"),
    fields("_q8", Scheme::Int8, "_q8_scales", "_q8_zero_point"),
    INT3_AS_Q4,
];

/// The older tools know no three bits, but 0 ..= 7 are four-bit values as well. Only a manifest tells the two apart;
/// without one such a matrix reads as `int4` with a zero point of 4, which are the same weights.
pub(super) const INT3_AS_Q4: Form = fields("_q4", Scheme::Int3, "_q4_scales", "_q4_zero_point");

const fn packed(suffix: &'static str, scheme: Scheme) -> Form {
    Form { suffix, scheme, cells: Cells::Packed, scales: "_scales", zero_point: Some("_zero_point") }
}

const fn fields(suffix: &'static str, scheme: Scheme, scales: &'static str, zero_point: &'static str) -> Form {
    Form { suffix, scheme, cells: Cells::Fields, scales, zero_point: Some(zero_point) }
}

impl Form {
    /// The form of a scheme in a layout.
    pub fn of(layout: Layout, scheme: Scheme) -> Form {
        let fits = |form: &&Form| form.scheme == scheme && (layout == Layout::Packed) == (form.cells == Cells::Packed);
        match (layout, scheme) {
            // One bit a code was packed from the start.
            (_, Scheme::Binary) => FORMS[0],
            _ => *FORMS.iter().find(fits).unwrap_or(&FORMS[0]),
        }
    }

    /// `packed_format` of the manifest.
    pub fn packed_format(&self) -> String {
        match (self.cells, self.scheme) {
            (Cells::Packed, Scheme::Binary) => "numpy.packbits(msb_first,row-major)".into(),
            (Cells::Packed, scheme) => format!("bits{}(lsb_first,row-major)", scheme.code_bits()),
            (Cells::Codes, _) => "int8(row-major)".into(),
            (Cells::Fields, _) => "uint8(row-major)".into(),
        }
    }

    /// Bits of a code as the older tools count them.
    pub fn bit_width(&self) -> u32 {
        match self.suffix {
            "_q4" => 4,
            _ => self.scheme.code_bits(),
        }
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
    fn every_scheme_has_a_form_in_every_layout() {
        for scheme in Scheme::ALL {
            for layout in [Layout::Packed, Layout::V2] {
                let form = Form::of(layout, scheme);
                assert_eq!(form.scheme, scheme);
                assert_eq!(form.cells == Cells::Packed, layout == Layout::Packed || scheme == Scheme::Binary);
            }
        }
        assert_eq!(Form::of(Layout::V2, Scheme::Int3), INT3_AS_Q4);
    }

    #[test]
    fn names_are_those_of_the_older_tools() {
        assert_eq!(artifact_name("embed_tokens.weight"), "embedding.weight");
        assert_eq!(artifact_name("layers.3.mlp.up_proj.weight"), "transformer.layers.3.mlp.up_proj.weight");
        assert_eq!(artifact_name("norm.weight"), "norm.weight");
        assert_eq!(artifact_name("lm_head.weight"), "lm_head.weight");
    }
}
