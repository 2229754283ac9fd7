//! The low-bit number formats. A weight is `code * scale` with the codes of its scheme, or `(field - zero_point) * scale`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

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
    /// Codes -128 ..= 127.
    Int8,
}

impl Scheme {
    /// Every scheme, from the fewest bits up.
    pub const ALL: [Scheme; 7] =
        [Scheme::Binary, Scheme::Ternary, Scheme::Seq2, Scheme::Int2, Scheme::Int3, Scheme::Int4, Scheme::Int8];

    /// The name that recipes, manifests and `--scheme` use.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Binary => "binary",
            Scheme::Ternary => "ternary",
            Scheme::Seq2 => "seq2",
            Scheme::Int2 => "int2",
            Scheme::Int3 => "int3",
            Scheme::Int4 => "int4",
            Scheme::Int8 => "int8",
        }
    }

    /// Bits that one packed code takes in a file.
    pub const fn code_bits(self) -> u32 {
        match self {
            Scheme::Binary => 1,
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => 2,
            Scheme::Int3 => 3,
            Scheme::Int4 => 4,
            Scheme::Int8 => 8,
        }
    }

    /// Smallest and largest code.
    pub const fn code_range(self) -> (i32, i32) {
        match self {
            Scheme::Binary | Scheme::Ternary => (-1, 1),
            Scheme::Seq2 => (-3, 3),
            Scheme::Int2 => (-2, 1),
            Scheme::Int3 => (-4, 3),
            Scheme::Int4 => (-8, 7),
            Scheme::Int8 => (-128, 127),
        }
    }

    /// Number of distinct codes: `log2` of it is the information in one weight, in bits.
    pub const fn levels(self) -> u32 {
        match self {
            Scheme::Binary => 2,
            Scheme::Ternary => 3,
            other => 1 << other.code_bits(),
        }
    }

    /// Distance between neighbouring codes.
    pub const fn code_step(self) -> i32 {
        match self {
            Scheme::Binary | Scheme::Seq2 => 2,
            _ => 1,
        }
    }

    /// Whether the codes are whole numbers around zero that a zero point can move.
    pub const fn has_zero_points(self) -> bool {
        matches!(self, Scheme::Int2 | Scheme::Int3 | Scheme::Int4 | Scheme::Int8)
    }

    /// The unsigned field that stands for `code` in packed bytes, counted from the smallest code.
    pub const fn field_of(self, code: i32) -> u8 {
        ((code - self.code_range().0) / self.code_step()) as u8
    }

    /// The code that the packed field `field` stands for.
    pub const fn code_of(self, field: u8) -> i32 {
        field as i32 * self.code_step() + self.code_range().0
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
                assert_eq!(scheme.field_of(code) as u32, field);
                assert!(field < 1 << scheme.code_bits());
            }
            let (low, high) = scheme.code_range();
            assert_eq!(scheme.code_of(0), low);
            assert_eq!(scheme.code_of((scheme.levels() - 1) as u8), high);
        }
    }
}
