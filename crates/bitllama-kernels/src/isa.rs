//! Which instruction set the kernels use: the best that the processor has, or the one that `BITLLAMA_ISA` names.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code: the reference for all others.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As [`Isa::Avx2`], with products of bytes by VNNI in 256 bits: AVX-VNNI, or AVX-512 VNNI and VL. What is no product with
    /// packed weights is computed as with [`Isa::Avx2`].
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI; popcounts need VPOPCNTDQ beside them, else those of AVX2 are used.
    Avx512,
    /// AArch64 with the dot product extension.
    Neon,
}

impl Isa {
    /// Every instruction set, from the slowest up.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Neon];

    /// The name that `BITLLAMA_ISA` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => has_avx2() && (is_x86_feature_detected!("avxvnni") || has_vnni_of_avx512()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                has_avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The instruction sets of this processor, the best one last.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The best instruction set of this processor.
    pub fn best() -> Isa {
        Self::available().last().unwrap_or(Isa::Scalar)
    }

    /// The instruction set that `BITLLAMA_ISA` names, else the best one.
    ///
    /// # Errors
    /// What is wrong with the name, in one line.
    pub fn from_env() -> Result<Isa, String> {
        let Ok(name) = std::env::var("BITLLAMA_ISA") else { return Ok(Self::best()) };
        let isa: Isa = name.parse().map_err(|e| format!("BITLLAMA_ISA: {e}"))?;
        match isa.is_available() {
            true => Ok(isa),
            false => Err(format!("BITLLAMA_ISA: this processor has no {isa}, only {}", names(Self::available()))),
        }
    }

    /// What the kernels use, chosen at the first call and kept: [`Isa::from_env`], or the best one where that fails.
    /// Programs that want to refuse a bad `BITLLAMA_ISA` call `from_env` themselves first.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Self::from_env().unwrap_or_else(|_| Self::best()))
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether this processor has AVX-512's VNNI in registers of 256 bits.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni_of_avx512() -> bool {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
}

fn names(all: impl Iterator<Item = Isa>) -> String {
    all.map(|isa| format!("`{isa}`")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|isa| isa.name() == name);
        known.ok_or_else(|| {
            format!("unknown instruction set `{name}`, expected one of {}", names(Self::ALL.into_iter()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_the_best_is_available() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        assert!(Isa::best().is_available() && Isa::Scalar.is_available());
        assert!("sse9".parse::<Isa>().unwrap_err().contains("`avx512`"));
    }
}
