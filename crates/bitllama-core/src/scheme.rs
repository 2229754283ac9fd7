//! The low-bit number formats. A weight is `code * scale` with the codes of its scheme, or `(field - zero_point) * scale`.
//!
//! A **field** is an element of packed bytes, `0 ..` the number of levels; a **code** is the number that a field stands
//! for, in units of the scale: a whole number, or a level of the scheme's table.
//!
//! Every property of a scheme is in its row of the table, [`Scheme::description`]. A new scheme is a variant, a row and, where
//! its codes are not on a line, a table in [`levels`](crate::levels) that kernels can look up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::levels::{self, Levels};
use crate::panel::FieldBits;
use crate::quantizer::Method;

/// A low-bit number format: its set of codes. Where scales come from is the matter of a
/// [`Quantizer`](crate::Quantizer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Scheme {
    /// Codes -1, +1.
    Binary,
    /// Codes -1, 0, +1.
    Ternary,
    /// Codes -3, -1, 1, 3: two bits without a zero, as in ParetoQ's SEQ (<https://arxiv.org/abs/2502.02631>).
    Seq2,
    /// Codes -2 ..= 1.
    Int2,
    /// Codes -4 ..= 3.
    Int3,
    /// Codes -8 ..= 7.
    Int4,
    /// The sixteen [levels](levels::NF4) of QLoRA's 4-bit NormalFloat, from -1 to 1 (<https://arxiv.org/abs/2305.14314>).
    Nf4,
    /// The sixteen [levels](levels::IQ4) of ggml's `IQ4_NL`, from -127 to 113.
    Iq4,
    /// Codes -16 ..= 15.
    Int5,
    /// Codes -32 ..= 31.
    Int6,
    /// Codes -128 ..= 127.
    Int8,
}

/// A row of the table of schemes.
#[derive(Debug)]
pub struct Description {
    /// The scheme.
    pub scheme: Scheme,
    /// Name in recipes, in manifests and on command lines.
    pub name: &'static str,
    /// Value of `quantize --bits` that means this scheme, if there is one.
    pub bits_flag: Option<&'static str>,
    /// Bits of a field in packed bytes.
    pub field_bits: FieldBits,
    /// Number of distinct codes.
    pub levels: u32,
    /// Code of each field.
    pub codes: Codes,
    /// Whether a zero point can move the codes, which are then whole numbers around zero.
    pub has_zero_points: bool,
    /// Methods that the scheme supports. The first one is the default.
    pub methods: &'static [Method],
    /// The method that trains scales in block-wise reconstruction.
    pub trained_method: Method,
    /// Columns that share a scale by default; `None` for one scale per row.
    pub group_size: Option<usize>,
    /// Suffix of the key of packed panels in an artifact's NPZ.
    pub panels_key: &'static str,
}

/// Codes of the fields of a scheme.
#[derive(Debug, Clone, Copy)]
pub enum Codes {
    /// `low + step * field`.
    Line {
        /// The code of field 0.
        low: i32,
        /// Distance of neighbouring codes.
        step: i32,
    },
    /// The level of the field.
    Table(&'static Levels),
}

/// The row of integers in two's complement, which other rows change.
const fn integers(scheme: Scheme, name: &'static str, field_bits: FieldBits, panels_key: &'static str) -> Description {
    let levels = 1 << field_bits.count();
    Description {
        scheme,
        name,
        bits_flag: None,
        field_bits,
        levels,
        codes: Codes::Line { low: -(levels as i32 / 2), step: 1 },
        has_zero_points: true,
        methods: &[Method::Minmax, Method::Lsq],
        trained_method: Method::Lsq,
        group_size: None,
        panels_key,
    }
}

/// The table, in the order of the variants: from the fewest bits up.
static TABLE: [Description; 11] = [
    Description {
        bits_flag: Some("1"),
        codes: Codes::Line { low: -1, step: 2 },
        has_zero_points: false,
        methods: &[Method::Absmean, Method::Learned, Method::Elastic],
        trained_method: Method::Elastic,
        ..integers(Scheme::Binary, "binary", FieldBits::One, "_1bit_panels")
    },
    Description {
        bits_flag: Some("1.58"),
        levels: 3,
        codes: Codes::Line { low: -1, step: 1 },
        has_zero_points: false,
        methods: &[Method::Absmean, Method::Twn, Method::Lsq, Method::Seq],
        ..integers(Scheme::Ternary, "ternary", FieldBits::Two, "_ternary_panels")
    },
    Description {
        codes: Codes::Line { low: -3, step: 2 },
        has_zero_points: false,
        methods: &[Method::Minmax, Method::Seq],
        trained_method: Method::Seq,
        ..integers(Scheme::Seq2, "seq2", FieldBits::Two, "_seq2_panels")
    },
    Description { bits_flag: Some("2"), ..integers(Scheme::Int2, "int2", FieldBits::Two, "_q2_panels") },
    Description { bits_flag: Some("3"), ..integers(Scheme::Int3, "int3", FieldBits::Three, "_q3_panels") },
    Description { bits_flag: Some("4"), ..integers(Scheme::Int4, "int4", FieldBits::Four, "_q4_panels") },
    Description {
        codes: Codes::Table(&levels::NF4),
        has_zero_points: false,
        // As in QLoRA.
        group_size: Some(64),
        ..integers(Scheme::Nf4, "nf4", FieldBits::Four, "_nf4_panels")
    },
    Description {
        codes: Codes::Table(&levels::IQ4),
        has_zero_points: false,
        // As in `IQ4_NL`.
        group_size: Some(32),
        ..integers(Scheme::Iq4, "iq4", FieldBits::Four, "_iq4_panels")
    },
    Description { bits_flag: Some("5"), ..integers(Scheme::Int5, "int5", FieldBits::Five, "_q5_panels") },
    Description { bits_flag: Some("6"), ..integers(Scheme::Int6, "int6", FieldBits::Six, "_q6_panels") },
    Description { bits_flag: Some("8"), ..integers(Scheme::Int8, "int8", FieldBits::Eight, "_q8_panels") },
];

impl Scheme {
    /// Every scheme, from the fewest bits up.
    pub const ALL: [Scheme; 11] = [
        Scheme::Binary,
        Scheme::Ternary,
        Scheme::Seq2,
        Scheme::Int2,
        Scheme::Int3,
        Scheme::Int4,
        Scheme::Nf4,
        Scheme::Iq4,
        Scheme::Int5,
        Scheme::Int6,
        Scheme::Int8,
    ];

    /// All properties of the scheme.
    pub const fn description(self) -> &'static Description {
        &TABLE[self as usize]
    }

    /// Name in recipes, in manifests and on command lines.
    pub const fn name(self) -> &'static str {
        self.description().name
    }

    /// Bits of a field in a panel.
    pub const fn field_bits(self) -> FieldBits {
        self.description().field_bits
    }

    /// Bits of a field in a file, as a number.
    pub const fn code_bits(self) -> u32 {
        self.field_bits().count() as u32
    }

    /// Smallest and largest code.
    pub const fn code_range(self) -> (f32, f32) {
        let last = (self.levels() - 1) as u8;
        (self.code_of(0), self.code_of(last))
    }

    /// Number of distinct codes: `log2` of it is the information in one weight, in bits.
    pub const fn levels(self) -> u32 {
        self.description().levels
    }

    /// The codes where they are not evenly spaced.
    pub const fn table(self) -> Option<&'static Levels> {
        match self.description().codes {
            Codes::Table(levels) => Some(levels),
            Codes::Line { .. } => None,
        }
    }

    /// Smallest code and distance between neighbouring ones: `code = low + step * field`. With a [table](Self::table)
    /// these are the fields themselves, `(0, 1)`.
    pub const fn line(self) -> (i32, i32) {
        match self.description().codes {
            Codes::Line { low, step } => (low, step),
            Codes::Table(_) => (0, 1),
        }
    }

    /// Whether each code has its negative.
    pub fn is_symmetric(self) -> bool {
        (0..self.levels()).all(|field| self.field_of(-self.code_of(field as u8)).is_some())
    }

    /// Whether the codes are whole numbers around zero that a zero point can move.
    pub const fn has_zero_points(self) -> bool {
        self.description().has_zero_points
    }

    /// The scheme that a number of bits means on a command line (`quantize --bits`).
    pub fn of_bits_flag(bits: &str) -> Option<Scheme> {
        TABLE.iter().find(|row| row.bits_flag == Some(bits)).map(|row| row.scheme)
    }

    /// The field that stands for `code` in packed bytes; `None` if the scheme has no such code.
    pub fn field_of(self, code: f32) -> Option<u8> {
        if let Some(table) = self.table() {
            return (0..).zip(table.levels).find(|(_, level)| *level == code).map(|(field, _)| field);
        }
        let (low, step) = self.line();
        self.whole_field((code - low as f32) / step as f32)
    }

    /// `number` as a field; `None` if it is none.
    pub fn whole_field(self, number: f32) -> Option<u8> {
        (number.fract() == 0.0 && number >= 0.0 && number < self.levels() as f32).then_some(number as u8)
    }

    /// The code that the field `field` stands for.
    pub const fn code_of(self, field: u8) -> f32 {
        match self.description().codes {
            Codes::Table(table) => table.levels[field as usize],
            Codes::Line { low, step } => (field as i32 * step + low) as f32,
        }
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> Self {
        scheme.name().into()
    }
}

impl TryFrom<String> for Scheme {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Scheme::ALL
            .into_iter()
            .find(|scheme| scheme.name() == name)
            .ok_or_else(|| Error::UnknownScheme { name: name.to_string() })
    }
}

/// The names of all schemes, for help and error messages: `binary, ternary, ...`.
pub fn names() -> String {
    Scheme::ALL.map(Scheme::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.name().parse::<Scheme>().unwrap(), scheme);
        }
        let message = "int7".parse::<Scheme>().unwrap_err().to_string();
        assert!(message.contains("`int7`") && message.contains("ternary, "), "{message}");
    }

    #[test]
    fn rows_of_the_table_are_those_of_their_schemes() {
        for scheme in Scheme::ALL {
            let row = scheme.description();
            assert_eq!(row.scheme, scheme);
            assert!(row.methods.contains(&row.trained_method) && row.trained_method.trains_scales(), "{scheme}");
            assert!(row.bits_flag.is_none_or(|bits| Scheme::of_bits_flag(bits) == Some(scheme)));
        }
        assert!(TABLE.is_sorted_by_key(|row| row.levels));
    }

    #[test]
    fn fields_fit_their_bits_and_read_back() {
        for scheme in Scheme::ALL {
            for field in 0..scheme.levels() {
                let code = scheme.code_of(field as u8);
                assert_eq!(scheme.field_of(code), Some(field as u8));
                assert_eq!(scheme.field_of(code + 0.01), None);
                assert!(field < 1 << scheme.code_bits());
            }
            let (low, high) = scheme.code_range();
            assert!((scheme.field_of(low - 1.0), scheme.field_of(high + 1.0)) == (None, None));
            assert_eq!(scheme.field_of(f32::NAN), None);
            let codes = (0..scheme.levels()).map(|field| scheme.code_of(field as u8));
            assert_eq!(scheme.is_symmetric(), codes.clone().all(|code| scheme.field_of(-code).is_some()), "{scheme}");
            assert!(codes.is_sorted());
        }
    }
}
