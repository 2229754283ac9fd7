//! The description of a low-bit model, without files, tensor libraries or `unsafe`.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | sizes and constants of a decoder |
//! | [`architecture`] | choices in which decoders differ: norms, biases, attention of each layer, scales |
//! | [`families`] | such choices by family, and the names that files have for them |
//! | [`hidden_act`] | activation functions of feed-forward layers |
//! | [`rope`] | rotary frequencies of a config |
//! | [`weights`] | the name and shape of every weight of a config |
//! | [`names`] | names of weights in Hugging Face and GGUF files |
//! | [`scheme`] | the low-bit number formats and their codes |
//! | [`levels`] | tables of formats whose codes are not evenly spaced |
//! | [`quantizer`] | a scheme with the source and the sharing of its scales |
//! | [`targets`] | formats of other programs as schemes |
//! | [`mixes`] | mixes of them, by the place of a matrix in the model |
//! | [`rule`] | a rule of a bit plan, as recipes have it |
//! | [`rounding`] | the one rounding function of each quantizer |
//! | [`dense`] | a matrix in memory, for it to work on |
//! | [`activation`] | low-bit activations, keys and values: codes, rounding, which matrix reads them how |
//! | [`activation_rules`] | the rules that say so, as recipes have them |
//! | [`search`] | scales that make the squared error small |
//! | [`scales`] | which numbers scales can be, and how they are stored |
//! | [`packed`] | codes packed into bits |
//! | [`stored`] | matrices that stay as their file has them |
//! | [`blocks`] | the same in panels: small groups of columns with scales and minimums of their own |
//! | [`rounded`] | a matrix after rounding, in panels or in blocks |
//! | [`panel`] | where each bit of a packed matrix lies |
//! | [`bit_plan`] | which weight is stored in which scheme |
//! | [`size`] | true bits per weight |
//! | [`excerpt`] | foreign text in messages |

#![forbid(unsafe_code)]

pub mod activation;
pub mod activation_rules;
pub mod architecture;
pub mod bit_plan;
pub mod blocks;
pub mod config;
pub mod dense;
pub mod excerpt;
pub mod families;
pub mod hidden_act;
pub mod levels;
pub mod mixes;
pub mod names;
pub mod packed;
pub mod panel;
pub mod quantizer;
pub mod rope;
pub mod rounded;
pub mod rounding;
pub mod rule;
pub mod scales;
pub mod scheme;
pub mod search;
pub mod size;
pub mod stored;
pub mod targets;
pub mod weights;

pub use activation::{Activation, ActivationPlan, ActivationRule};
pub use activation_rules::ActivationRules;
pub use architecture::{Architecture, LayerKind, NormPlaces, QkNorm};
pub use bit_plan::BitPlan;
pub use blocks::BlockMatrix;
pub use config::ModelConfig;
pub use dense::DenseMatrix;
pub use excerpt::excerpt;
pub use families::Family;
pub use hidden_act::HiddenAct;
pub use packed::PackedMatrix;
pub use quantizer::{Granularity, Method, Offset, Quantizer};
pub use rope::{Rope, RopeScaling};
pub use rounded::RoundedMatrix;
pub use rounding::{Quantized, RowMatrix, quantize};
pub use rule::Rule;
pub use scales::ScaleFormat;
pub use scheme::Scheme;
pub use stored::StoredRows;
pub use targets::Target;

/// A fault of a config, a plan or packed bytes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A field of a model config has a value that no model can have.
    #[error("model config: {0}")]
    Config(String),
    /// A scheme name that is not known.
    #[error("unknown scheme `{}`, expected one of {}", excerpt(name), scheme::names())]
    UnknownScheme {
        /// The name as given.
        name: String,
    },
    /// A name of a format of another program that is not known.
    #[error("unknown target `{}`, expected one of {}", excerpt(name), targets::names())]
    UnknownTarget {
        /// The name as given.
        name: String,
    },
    /// A quantizer whose parts do not go together, or that does not fit a matrix.
    #[error("quantizer: {0}")]
    Quantizer(String),
    /// A bit plan that cannot be applied.
    #[error("bit plan: {0}")]
    BitPlan(String),
    /// A rule for activations that cannot be applied.
    #[error("activations: {0}")]
    Activation(String),
    /// Packed bytes, scales or codes that do not fit the stated shape.
    #[error("packed matrix: {0}")]
    Packed(String),
}
