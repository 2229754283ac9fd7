//! Fake quantization: weights that are rounded in the forward pass and train through the rounding.
//!
//! | module | subject |
//! |---|---|
//! | this one | quantizers on the parameters of a model |
//! | [`matrix`] | parameters as the rows that `bitllama_core::quantize` rounds |
//! | [`gradient`] | the gradient of each method |
//! | `blocks` | rounding a few rows at a time |

use std::collections::HashMap;

use bitllama_core::rounding::{Offsets, Quantized, Scales, StoredScales, quantize as round, start_scales};
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_core::{DenseMatrix, Quantizer};
use burn::module::{Module, Param, ParamId, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;

use crate::SharedNumber;
use matrix::{TensorMatrix, View};

mod blocks;
pub mod gradient;
pub mod matrix;

/// Rounds a parameter by a quantizer whenever its value is taken.
#[derive(Module, Debug)]
pub struct FakeQuant {
    /// Where the method trains them, `[outer, 1, inner]` of [`TensorMatrix`].
    scales: Option<Param<Tensor<3>>>,
    /// Zero points or minimums beside trained scales; not trained.
    offsets: Option<Param<Tensor<3>>>,
    /// How much of the rounding is in force, lambda of `w + lambda (q(w) - w)`, 0 to 1.
    #[module(skip)]
    strength: SharedNumber,
    #[module(skip)]
    quantizer: Quantizer,
    /// What the weight is for, which tells its layout.
    #[module(skip)]
    kind: Kind,
}

impl FakeQuant {
    /// The scales as they are trained, without a gradient.
    fn trained(&self) -> Option<Scales<TensorMatrix>> {
        let plain = |param: &Param<Tensor<3>>| TensorMatrix(param.val().inner());
        let offsets = self.offsets.as_ref().map(|offsets| Offsets::of(self.quantizer.offset, plain(offsets)));
        self.scales.as_ref().map(|scales| Scales { scales: plain(scales), offsets })
    }

    fn view(&self, shape: [usize; 2]) -> View {
        View::new(self.quantizer, self.kind, shape)
    }

    /// Codes and scales of the parameter `base`, and how they lie in it; no gradient.
    pub fn codes_and_scales(&self, base: Tensor<2>) -> (View, Quantized<TensorMatrix>) {
        let view = self.view(base.dims());
        let (weight, trained) = (TensorMatrix(view.rows_of(base.inner())), self.trained());
        // The parts of nested scales are whole tensors.
        let nested = self.quantizer.nested_groups() > 1;
        let quantized = match blocks::covers(&self.quantizer, &weight.0.device()) && !nested {
            true => blocks::quantized(&self.quantizer, weight, trained),
            false => round(&self.quantizer, weight, trained),
        };
        (view, quantized)
    }

    /// The scales as they are trained, if they are, of a parameter of the given shape.
    pub fn stored_scales(&self, shape: [usize; 2]) -> Option<Scales<DenseMatrix>> {
        Some(self.view(shape).scales(self.trained()?))
    }

    /// The id of the scales as a parameter, where they are trained.
    pub fn scales_id(&self) -> Option<ParamId> {
        self.scales.as_ref().map(|scales| scales.id)
    }

    /// What rounds.
    pub fn quantizer(&self) -> Quantizer {
        self.quantizer
    }
}

impl Reparameterization for FakeQuant {
    const NAME: &'static str = "fake_quant";

    /// The rounded weight, exactly, at full strength; gradients are those of [`gradient`].
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let lambda = self.strength.get();
        if lambda == 0.0 {
            return base;
        }
        let shape = base.shape();
        let view = self.view([shape[0], shape.num_elements() / shape[0]]);
        if blocks::covers(&self.quantizer, &base.device()) {
            let scales = self.scales.as_ref().map(Param::val);
            let offsets = self.offsets.as_ref().map(Param::val);
            return blocks::rounded(&view, base, scales, offsets, lambda);
        }
        let weight = TensorMatrix(view.rows_of(base.clone().inner()));
        let trained = self.trained();
        let rounded = round(&self.quantizer, weight.clone(), trained.clone());
        let mut value = rounded.clone().dequantize().0;
        if lambda != 1.0 {
            value = value * lambda + weight.0.clone() * (1.0 - lambda);
        }
        if !base.is_autodiff() {
            return value.reshape(shape);
        }
        let [_, n, _] = weight.0.dims();
        let factors = gradient::factors(&self.quantizer, n, weight, trained, rounded);
        // `x - x` is 0 in every element and carries the gradient, so that the sum is the rounded weight to the bit;
        // `base + (rounded - base)` is not.
        let zero = |x: Tensor<3>| x.clone() - Tensor::from_inner(x.inner());
        let residual = base.clone() - Tensor::from_inner(base.inner());
        let faded = |factor: Tensor<3>| if lambda == 1.0 { factor } else { factor * lambda + (1.0 - lambda) };
        let residual = match factors.weight {
            Some(factor) => residual * Tensor::from_inner(faded(factor.0).reshape(shape.clone())),
            None => residual,
        };
        let value = Tensor::from_inner(value.reshape(shape.clone())) + residual;
        match (factors.scale, &self.scales) {
            (Some(factor), Some(scales)) => {
                let factor = if lambda == 1.0 { factor.0 } else { factor.0 * lambda };
                value + (zero(scales.val()) * Tensor::from_inner(factor)).reshape(shape)
            }
            _ => value,
        }
    }
}

/// Attaches `plan` (weight and its quantizer, `None` for full precision) to a model.
///
/// Trained scales are those in `stored`; without an entry there, those that the weights give.
pub fn quantize<M: Module>(model: M, plan: &[(WeightSpec, Option<Quantizer>)], stored: &StoredScales) -> M {
    quantize_by(model, plan, stored, &SharedNumber::new(1.0))
}

/// As [`quantize`], where `strength` (0 to 1) can fade the rounding in: lambda of `w + lambda (q(w) - w)`.
pub fn quantize_by<M: Module>(
    model: M,
    plan: &[(WeightSpec, Option<Quantizer>)],
    stored: &StoredScales,
    strength: &SharedNumber,
) -> M {
    let rules = plan
        .iter()
        .filter_map(|(weight, quantizer)| quantizer.map(|quantizer| (weight.name.as_str(), (weight.kind, quantizer))))
        .collect();
    model.apply_reparameterization(Attach { rules, stored, strength })
}

struct Attach<'a> {
    rules: HashMap<&'a str, (Kind, Quantizer)>,
    stored: &'a StoredScales,
    strength: &'a SharedNumber,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = FakeQuant;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<FakeQuant>) {
        let Some((kind, quantizer)) = self.rules.get(path).copied() else { return (param, None) };
        let mut fake = FakeQuant { scales: None, offsets: None, strength: self.strength.clone(), quantizer, kind };
        if quantizer.method.trains_scales() {
            let base = param.base();
            let (device, shape) = (base.device(), base.shape());
            let view = fake.view([shape[0], shape.num_elements() / shape[0]]);
            let scales = match self.stored.get(path) {
                Some(stored) => stored.clone(),
                None => view.scales(start_scales(&quantizer, TensorMatrix(view.rows_of(base.inner())))),
            };
            let tensor = |numbers: &DenseMatrix| view.from_numbers(numbers, &device);
            let trained = tensor(&scales.scales);
            let trained = if device.is_autodiff() { trained.require_grad() } else { trained };
            // Ids beside those of the weights, so that the optimizer's state finds its parameters again.
            let id = |offset: u64| ParamId::from(param.id.val() + offset);
            fake.scales = Some(Param::initialized(id(SCALES), trained));
            fake.offsets = scales
                .offsets
                .as_ref()
                .map(|offsets| Param::initialized(id(OFFSETS), tensor(offsets.numbers())).set_require_grad(false));
        }
        (param, Some(fake))
    }
}

/// What is added to the id of a weight for that of its scales. No model has so many weights.
const SCALES: u64 = 1 << 32;
const OFFSETS: u64 = 2 << 32;
