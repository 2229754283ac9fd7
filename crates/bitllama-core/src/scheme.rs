//! The low-bit number formats. A weight is `code * scale` with the codes of its scheme, or `(field - zero_point) * scale`.
//!
//! A **field** is what stands in packed bytes, `0 ..` the number of levels; a **code** is the number that a field stands
//! for, in units of the scale: a whole number, or of `nf4` a level of its table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, nf4};

/// A low-bit number format: which codes there are. Where scales come from is the matter of a
/// [`Quantizer`](crate::Quantizer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Codes -1, +1.
    Binary,
    /// Codes -1, 0, +1.
    Ternary,
    /// Codes -3, -1, 1, 3: two bits without a zero, as ParetoQ's SEQ has them (<https://arxiv.org/abs/2502.02631>).
    Seq2,
    /// Codes -2 ..= 1.
    Int2,
    /// Codes -4 ..= 3.
    Int3,
    /// Codes -8 ..= 7.
    Int4,
    /// The sixteen [levels](nf4::LEVELS) of QLoRA's 4-bit NormalFloat, from -1 to 1 (<https://arxiv.org/abs/2305.14314>).
    Nf4,
    /// Codes -128 ..= 127.
    Int8,
}

impl Scheme {
    /// Every scheme, from the fewest bits up.
    pub const ALL: [Scheme; 8] = [
        Scheme::Binary,
        Scheme::Ternary,
        Scheme::Seq2,
        Scheme::Int2,
        Scheme::Int3,
        Scheme::Int4,
        Scheme::Nf4,
        Scheme::Int8,
    ];

    /// The name that recipes, manifests and `--scheme` use.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Binary => "binary",
            Scheme::Ternary => "ternary",
            Scheme::Seq2 => "seq2",
            Scheme::Int2 => "int2",
            Scheme::Int3 => "int3",
            Scheme::Int4 => "int4",
            Scheme::Nf4 => "nf4",
            Scheme::Int8 => "int8",
        }
    }

    /// Bits that one packed code takes in a file.
    pub const fn code_bits(self) -> u32 {
        match self {
            Scheme::Binary => 1,
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => 2,
            Scheme::Int3 => 3,
            Scheme::Int4 | Scheme::Nf4 => 4,
            Scheme::Int8 => 8,
        }
    }

    /// Smallest and largest code.
    pub const fn code_range(self) -> (f32, f32) {
        let last = (self.levels() - 1) as u8;
        (self.code_of(0), self.code_of(last))
    }

    /// Number of distinct codes: `log2` of it is the information in one weight, in bits.
    pub const fn levels(self) -> u32 {
        match self {
            Scheme::Binary => 2,
            Scheme::Ternary => 3,
            other => 1 << other.code_bits(),
        }
    }

    /// The codes by field where they are no evenly spaced whole numbers.
    pub const fn table(self) -> Option<&'static [f32; 16]> {
        match self {
            Scheme::Nf4 => Some(&nf4::LEVELS),
            _ => None,
        }
    }

    /// Smallest code and distance between neighbouring ones: `code = low + step * field`. With a [table](Self::table)
    /// these are the fields themselves, `(0, 1)`.
    pub const fn line(self) -> (i32, i32) {
        match self {
            Scheme::Binary => (-1, 2),
            Scheme::Ternary => (-1, 1),
            Scheme::Seq2 => (-3, 2),
            Scheme::Int2 => (-2, 1),
            Scheme::Int3 => (-4, 1),
            Scheme::Int4 => (-8, 1),
            Scheme::Nf4 => (0, 1),
            Scheme::Int8 => (-128, 1),
        }
    }

    /// Whether each code has its negative.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Scheme::Binary | Scheme::Ternary | Scheme::Seq2)
    }

    /// Whether the codes are whole numbers around zero that a zero point can move.
    pub const fn has_zero_points(self) -> bool {
        matches!(self, Scheme::Int2 | Scheme::Int3 | Scheme::Int4 | Scheme::Int8)
    }

    /// The field that stands for `code` in packed bytes; `None` if the scheme has no such code.
    pub fn field_of(self, code: f32) -> Option<u8> {
        if let Some(table) = self.table() {
            return (0..).zip(table).find(|(_, level)| **level == code).map(|(field, _)| field);
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
        match self.table() {
            Some(table) => table[field as usize],
            None => {
                let (low, step) = self.line();
                (field as i32 * step + low) as f32
            }
        }
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

/// The names of all schemes, for error messages.
pub(crate) fn names() -> String {
    Scheme::ALL.map(|scheme| format!("`{scheme}`")).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.name().parse::<Scheme>().unwrap(), scheme);
        }
        let message = "int5".parse::<Scheme>().unwrap_err().to_string();
        assert!(message.contains("`int5`") && message.contains("`ternary`"), "{message}");
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
