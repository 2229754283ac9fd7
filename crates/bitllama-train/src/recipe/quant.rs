//! `[quant]`: what the quantizers start from, and when they act.

use std::path::PathBuf;

use bitllama_core::{Offset, Quantizer, Scheme};
use serde::{Deserialize, Serialize};

use crate::models::ResolvedPlan;
use crate::ptq;

/// `[quant]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quant {
    /// Scales, and for some methods weights, to start from: `rtn` (those that each method has by itself), or those that
    /// `quantize --method` finds: `search`, `importance`, `gptq`, `block`, the last three on training text.
    pub init: ptq::Method,
    /// Tokens of the training text that it looks at.
    pub calibration_tokens: usize,
    /// Folder that keeps what `gptq`, `block` or `importance` found, for other runs that start the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// First steps in full precision.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_steps: usize,
    /// Steps, after the delay, over which rounding fades in: weights are `w + lambda (q(w) - w)`, lambda grows from 0 to 1.
    #[serde(skip_serializing_if = "is_zero")]
    pub warmup_steps: usize,
    /// Last steps in which trained scales stand still.
    #[serde(skip_serializing_if = "is_zero")]
    pub freeze_scales_steps: usize,
    /// Progressive bits: schemes to go through, in order, before that of `[bits]`, each for so many steps. A stage holds for
    /// the weights whose own scheme has fewer levels than its.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// A stage of progressive bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The scheme; method and granularity are those of the weight's own quantizer where the scheme has them.
    pub scheme: Scheme,
    /// How long.
    pub steps: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for Quant {
    fn default() -> Self {
        Self {
            init: ptq::Method::Rtn,
            calibration_tokens: 32768,
            cache: None,
            delay_steps: 0,
            warmup_steps: 0,
            freeze_scales_steps: 0,
            stages: Vec::new(),
        }
    }
}

impl Quant {
    /// Lambda of step `step` (the first is 1).
    pub fn strength(&self, step: usize) -> f32 {
        let past = step.saturating_sub(self.delay_steps);
        if past > self.warmup_steps { 1.0 } else { past as f32 / (self.warmup_steps + 1) as f32 }
    }

    /// Whether lambda is ever less than 1.
    pub fn fades_in(&self) -> bool {
        self.delay_steps + self.warmup_steps > 0
    }

    /// The scheme of the stage that step `step` is in; `None` after the last.
    pub fn stage(&self, step: usize) -> Option<Scheme> {
        let mut end = 0;
        self.stages.iter().find_map(|stage| {
            end += stage.steps;
            (step <= end).then_some(stage.scheme)
        })
    }

    /// Steps in all stages.
    pub fn stage_steps(&self) -> usize {
        self.stages.iter().fold(0, |sum: usize, stage| sum.saturating_add(stage.steps))
    }
}

/// A bit plan in a stage of progressive bits.
pub fn in_stage(plan: &ResolvedPlan, stage: Scheme) -> ResolvedPlan {
    let of = |own: Quantizer| {
        if own.scheme.levels() >= stage.levels() {
            return own;
        }
        let method = if own.method.takes(stage) { own.method } else { Quantizer::from(stage).method };
        let plain = Quantizer { method, granularity: own.granularity, ..Quantizer::from(stage) };
        let wished = Quantizer { scheme: stage, ..own }.with_method(method);
        [wished, Quantizer { offset: Offset::None, ..wished }].into_iter().find(|q| q.check().is_ok()).unwrap_or(plain)
    };
    plan.iter().map(|(spec, quantizer)| (spec.clone(), quantizer.map(of))).collect()
}

#[cfg(test)]
mod tests {
    use bitllama_core::weights::{Kind, WeightSpec};
    use bitllama_core::{Granularity, Method};

    use super::*;

    #[test]
    fn rounding_is_delayed_and_fades_in() {
        let quant = Quant { delay_steps: 2, warmup_steps: 3, ..Quant::default() };
        let lambdas: Vec<f32> = (1..=7).map(|step| quant.strength(step)).collect();
        assert_eq!(lambdas, [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((1..5).all(|step| Quant::default().strength(step) == 1.0));
    }

    #[test]
    fn stages_give_more_bits_first() {
        let stage = |scheme, steps| Stage { scheme, steps };
        let quant = Quant { stages: vec![stage(Scheme::Int8, 2), stage(Scheme::Int4, 1)], ..Quant::default() };
        let found: Vec<_> = (1..=4).map(|step| quant.stage(step)).collect();
        assert_eq!(found, [Some(Scheme::Int8), Some(Scheme::Int8), Some(Scheme::Int4), None]);

        let own = |scheme, method, offset| {
            let granularity = Granularity::Group(32);
            Quantizer { method, granularity, offset, ..Quantizer::from(scheme) }
        };
        let spec = WeightSpec { name: "w".into(), shape: vec![1, 32], kind: Kind::Linear };
        let int4 = |own| in_stage(&vec![(spec.clone(), own)], Scheme::Int4).remove(0).1;
        let learned = own(Scheme::Int2, Method::Lsq, Offset::ZeroPoint);
        assert_eq!(int4(Some(learned)), Some(own(Scheme::Int4, Method::Lsq, Offset::ZeroPoint)));
        assert_eq!(
            int4(Some(own(Scheme::Binary, Method::Elastic, Offset::None))),
            Some(own(Scheme::Int4, Method::Minmax, Offset::None))
        );
        let eight = own(Scheme::Int8, Method::Minmax, Offset::None);
        assert_eq!((int4(Some(eight)), int4(None)), (Some(eight), None));
    }
}
