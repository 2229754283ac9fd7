//! Fused operators against the same ones composed out of Burn's: values and gradients of whole models, and of what stands
//! outside of them.

use std::convert::Infallible;

use bitllama_core::rounding::StoredScales;
use bitllama_core::{
    Activation, ActivationPlan, ActivationRule, BitPlan, HiddenAct, LayerKind, Method, ModelConfig, Quantizer, Scheme,
};
use bitllama_kernels::gemm::Precision;
use bitllama_nn::fake_quant::{quantize, quantize_by};
use bitllama_nn::ops::adamw::FusedAdamW;
use bitllama_nn::ops::attention::{self, Heads};
use bitllama_nn::ops::{composed, fused, gated, linear, qk_norm};
use bitllama_nn::rotary::Rotary;
use bitllama_nn::weights::build;
use bitllama_nn::{Llama, Mask, SharedNumber, activations};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::common::{config, floats, values};

const SEQ: usize = 7;

fn flex() -> Device {
    Device::flex().autodiff()
}

/// Logits, and gradients of all parameters in their order, of a sum of logits with uneven weights.
fn step(model: &Llama, mask: &Mask) -> (Vec<f32>, Vec<Vec<f32>>) {
    let device = flex();
    let ids: Vec<i32> = (0..2 * SEQ as i32).map(|i| (i * 7 + 3) % 24).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, SEQ]), &device);
    let logits = model.forward(tokens, mask);
    let weights: Vec<f32> = (0..2 * SEQ * 24).map(|i| (i as f32 * 0.7).sin()).collect();
    let weights = Tensor::<3>::from_data(TensorData::new(weights, [2, SEQ, 24]), &device);
    let grads = GradientsParams::from_grads((logits.clone() * weights).sum().backward(), model);
    let mut found = Gradients { grads: &grads, all: Vec::new() };
    model.visit(&mut found);
    (floats(logits.inner()), found.all)
}

struct Gradients<'a> {
    grads: &'a GradientsParams,
    all: Vec<Vec<f32>>,
}

impl ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.all.extend(self.grads.get::<D>(param.id).map(floats));
    }
}

/// The largest difference, relative to the largest number.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = a.iter().fold(1e-6f32, |size, x| size.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
}

fn assert_same(case: &str, model: &Llama, mask: &Mask, tolerance: f32) {
    assert!(fused(&flex()) && !composed(|| fused(&flex())));
    let (logits, gradients) = step(model, mask);
    let (expected, of_composed) = composed(|| step(model, mask));
    assert!(difference(&expected, &logits) < tolerance, "{case}: logits {}", difference(&expected, &logits));
    assert_eq!(gradients.len(), of_composed.len(), "{case}");
    for (index, (got, expected)) in gradients.iter().zip(&of_composed).enumerate() {
        let difference = difference(expected, got);
        assert!(difference < tolerance, "{case}: gradient {index} {difference}");
    }
}

fn llama(config: &ModelConfig) -> Llama {
    build(config, &flex(), |spec| Ok::<_, Infallible>(values(spec))).unwrap()
}

#[test]
fn whole_models_give_the_same_values_and_gradients() {
    let documents: Vec<u32> = (0..2 * SEQ as u32).map(|i| if i < 7 { 0 } else { i / 10 }).collect();
    for tied in [true, false] {
        for sub_norm in [false, true] {
            let config = ModelConfig { sub_norm, ..config(tied) };
            for mask in [Mask::causal(2, SEQ, &flex()), Mask::within_documents(&documents, SEQ, &flex())] {
                assert_same(&format!("tied {tied} sub-norms {sub_norm}"), &llama(&config), &mask, 1e-4);
            }
        }
    }
}

#[test]
fn models_of_every_family_do_too() {
    let documents: Vec<u32> = (0..2 * SEQ as u32).map(|i| if i < 7 { 0 } else { i / 10 }).collect();
    let masks = [Mask::causal(2, SEQ, &flex()), Mask::within_documents(&documents, SEQ, &flex())];
    for family in bitllama_core::families::ALL {
        let mut config = config(family.absent.tie_word_embeddings);
        config.arch = family.arch();
        config.sub_norm = family.model_type == "bitnet";
        // Choices that a config makes, all at once: what a family leaves as in a Llama is tested too.
        config.arch.layers =
            vec![LayerKind::WINDOW, LayerKind { window: false, rotary: family.model_type != "smollm3" }];
        config.arch.sliding_window = Some(3);
        config.arch.embedding_scale = 1.7;
        config.arch.residual_scale = 0.6;
        config.arch.logits_scale = 0.8;
        config.arch.mlp_bias = family.model_type == "llama";
        config.arch.o_bias = family.model_type == "llama";
        config.arch.attention_cap = config.arch.attention_cap.map(|_| 0.9);
        config.arch.logits_cap = config.arch.logits_cap.map(|_| 1.1);
        config.arch.rotary_dim = family.partial_rotary.then_some(2);
        config.validate().unwrap();
        for mask in &masks {
            assert_same(family.model_type, &llama(&config), mask, 2e-4);
        }
    }
}

#[test]
fn quantized_models_do_too() {
    let mask = Mask::causal(2, SEQ, &flex());
    for scheme in [Scheme::Binary, Scheme::Ternary, Scheme::Int2, Scheme::Int4] {
        for method in Method::ALL {
            let quantizer = Quantizer::from(scheme).with_method(method);
            let Ok(plan) = BitPlan::uniform(quantizer).resolve(&config(true)) else { continue };
            for lambda in [1.0, 0.4] {
                let strength = SharedNumber::new(lambda);
                let model = quantize_by(llama(&config(true)), &plan, &StoredScales::new(), &strength);
                assert_same(&format!("{scheme} {method:?} {lambda}"), &model, &mask, 2e-4);
            }
        }
    }
}

#[test]
fn rounded_activations_and_caches_do_too() {
    let mask = Mask::causal(2, SEQ, &flex());
    let inputs =
        [("layers.0.self_attn.q_proj.weight", Activation::Int8), ("layers.1.mlp.down_proj.weight", Activation::Sign)];
    let inputs = inputs.map(|(name, kind)| (name.to_string(), kind)).into();
    // Roundings may fall to the other side where values differ in their last bits, so the cache is left out with others.
    for plan in [
        ActivationPlan { inputs, kv_cache: None },
        ActivationPlan { inputs: [].into(), kv_cache: Some(Activation::Int8) },
    ] {
        let model = activations::quantize(llama(&config(true)), &plan);
        assert_same(&format!("{plan:?}"), &model, &mask, 2e-2);
    }
}

#[test]
fn factors_in_bf16_are_rounded_alike() {
    let mask = Mask::causal(2, SEQ, &flex());
    let exact = step(&llama(&config(true)), &mask);
    let mut model = llama(&config(true));
    bitllama_nn::linear::set_precision(&mut model, Precision::Bf16, false);
    let rounded = step(&model, &mask);
    let logits = difference(&exact.0, &rounded.0);
    assert!(logits > 1e-5 && logits < 3e-2, "{logits}");
    assert_same("bf16", &model, &mask, 3e-2);
}

#[test]
fn products_in_whole_numbers_are_those_of_floats() {
    let mask = Mask::causal(2, SEQ, &flex());
    for scheme in [Scheme::Binary, Scheme::Ternary, Scheme::Int4] {
        let plan = BitPlan::uniform(scheme).resolve(&config(true)).unwrap();
        let model = quantize_by(llama(&config(true)), &plan, &StoredScales::new(), &SharedNumber::new(1.0));
        let rules = [("layers.*", ActivationRule(Some(Activation::Int8)))];
        let mut model = activations::quantize(model, &ActivationPlan::resolve(rules, None, &plan).unwrap());
        let (logits, gradients) = step(&model, &mask);
        bitllama_nn::linear::set_precision(&mut model, Precision::F32, true);
        let (whole, of_whole) = step(&model, &mask);
        // Where weights have more codes nothing changes.
        assert_eq!(logits != whole, scheme != Scheme::Int4, "{scheme}");
        assert!(difference(&logits, &whole) < 2e-2, "{scheme}: {}", difference(&logits, &whole));
        for (a, b) in gradients.iter().zip(&of_whole) {
            assert!(difference(a, b) < 2e-2, "{scheme}: {}", difference(a, b));
        }
    }
}

#[test]
fn attached_quantizers_round_the_same_in_blocks() {
    // Larger than a block in both directions.
    let config = ModelConfig { hidden_size: 288, intermediate_size: 700, head_dim: 72, ..config(true) };
    for name in ["ternary", "int4", "int4-g32", "int2-g16", "binary"] {
        let Ok(rule) = name.parse() else { continue };
        let Ok(plan) = BitPlan::new([("layers.*", rule)]).and_then(|plan| plan.resolve(&config)) else { continue };
        let model = quantize(llama(&config), &plan, &StoredScales::new());
        let of = || floats(model.layers[1].mlp.gate_proj.weight.val().inner());
        let (blocks, whole) = (of(), composed(of));
        let different = blocks.iter().zip(&whole).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
        assert!(different < blocks.len() / 1000, "{name}: {different} of {}", blocks.len());
    }
}

/// Numbers in -1 .. 1 that look random.
fn numbers(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| ((i as f32 + seed) * 12.9898).sin() * 43758.547 % 1.0).collect()
}

/// A leaf of these numbers.
fn leaf<const D: usize>(numbers: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers, shape), &flex()).require_grad()
}

/// Values of an operator's output and, one by one, gradients of its leaves, of a sum of the output with uneven weights.
fn followed<const D: usize>(
    out: Tensor<3>,
    gradients: impl FnOnce(&burn::tensor::Gradients) -> [Vec<f32>; D],
) -> Vec<Vec<f32>> {
    let shape = out.dims();
    let weights = Tensor::from_data(TensorData::new(numbers(shape.iter().product(), 0.5), shape), &flex());
    let grads = (out.clone() * weights).sum().backward();
    std::iter::once(floats(out.inner())).chain(gradients(&grads)).collect()
}

fn gradient_of<const D: usize>(leaf: &Tensor<D>, grads: &burn::tensor::Gradients) -> Vec<f32> {
    floats(leaf.grad(grads).unwrap())
}

#[track_caller]
fn assert_alike(case: &str, got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{case}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = difference(expected, got);
        assert!(difference < tolerance, "{case}: {index} differs by {difference}");
    }
}

#[test]
fn gated_activations_are_the_composed_ones() {
    for act in HiddenAct::ALL {
        let of = |operator: fn(Tensor<3>, HiddenAct) -> Tensor<3>| {
            let gate_up = leaf(numbers(2 * 5 * 2 * 19, 1.0).iter().map(|x| 4.0 * x).collect(), [2, 5, 2 * 19]);
            followed(operator(gate_up.clone(), act), |grads| [gradient_of(&gate_up, grads)])
        };
        assert_alike(&format!("{act:?}"), &of(gated::forward), &of(gated::composed), 1e-5);
    }
}

#[test]
fn biases_are_added_to_the_layers_that_have_them() {
    let (widths, d_in) = ([21, 7, 12], 19);
    for (has, precision) in [
        ([true, true, true], Precision::F32),
        ([false, true, false], Precision::F32),
        ([true, false, true], Precision::Bf16),
        ([false, false, false], Precision::F32),
    ] {
        let of = |fused: bool| {
            let x = leaf(numbers(2 * 5 * d_in, 1.0), [2, 5, d_in]);
            let weights = widths.map(|width| leaf(numbers(d_in * width, width as f32), [d_in, width]));
            let all = widths.map(|width| leaf(numbers(width, 3.0 + width as f32), [width]));
            let biases: [Option<Tensor<1>>; 3] = std::array::from_fn(|i| has[i].then(|| all[i].clone()));
            let out = if fused {
                linear::forward(x.clone(), weights.clone(), biases, precision, false)
            } else {
                let layers = weights.iter().zip(biases).map(|(weight, bias)| {
                    let out = linear::forward(x.clone(), [weight.clone()], [None], precision, false);
                    linear::composed_bias(out, bias)
                });
                Tensor::cat(layers.collect(), 2)
            };
            followed(out, |grads| {
                let of_biases =
                    all.iter().zip(has).filter(|(_, has)| *has).flat_map(|(bias, _)| gradient_of(bias, grads));
                let of_weights = weights.iter().flat_map(|weight| gradient_of(weight, grads)).collect();
                [gradient_of(&x, grads), of_weights, of_biases.collect()]
            })
        };
        assert_alike(&format!("{has:?} {precision:?}"), &of(true), &of(false), 1e-5);
    }
}

#[test]
fn biases_are_added_to_products_in_whole_numbers_too() {
    let x = leaf(numbers(15, 1.0), [1, 3, 5]);
    let weight = leaf((0..20).map(|i| 0.5 * (i % 3) as f32 - 0.5).collect(), [5, 4]);
    let of = |bias: Option<Tensor<1>>| {
        floats(linear::forward(x.clone(), [weight.clone()], [bias], Precision::F32, true).inner())
    };
    let (with, without) = (of(Some(leaf(vec![1.0, 2.0, 3.0, 4.0], [4]))), of(None));
    for (i, (with, without)) in with.iter().zip(&without).enumerate() {
        assert_eq!(*with, without + (i % 4 + 1) as f32);
    }
}

#[test]
fn norms_of_queries_and_keys_are_the_composed_ones() {
    let [heads, kv_heads, head_dim] = [6, 2, 10];
    let width = (heads + 2 * kv_heads) * head_dim;
    for lens in [[head_dim; 2], [heads * head_dim, kv_heads * head_dim]] {
        let of = |operator: fn(Tensor<3>, [Tensor<1>; 2], [usize; 3], f64) -> Tensor<3>| {
            let qkv = leaf(numbers(2 * 5 * width, 1.0), [2, 5, width]);
            let weights = lens.map(|len| leaf(numbers(len, 2.0 + len as f32), [len]));
            let out = operator(qkv.clone(), weights.clone(), [heads, kv_heads, head_dim], 1e-5);
            followed(out, |grads| {
                let [q, k] = weights.each_ref().map(|weight| gradient_of(weight, grads));
                [gradient_of(&qkv, grads), q, k]
            })
        };
        assert_alike(&format!("{lens:?}"), &of(qk_norm::forward), &of(qk_norm::composed), 1e-5);
    }
}

#[test]
fn attention_with_scales_caps_windows_and_partial_rotations_is_the_composed_one() {
    let seq = 23;
    let documents: Vec<u32> = (0..2 * seq as u32).map(|i| i / 19).collect();
    let masks = [Mask::causal(2, seq, &flex()), Mask::within_documents(&documents, seq, &flex())];
    for (rotary_dim, scale, cap) in [(12, 0.3, Some(0.5)), (8, 0.2, None), (0, 0.25, Some(1.0)), (4, 0.1, None)] {
        for mask in masks.iter().flat_map(|mask| [mask.clone(), mask.within_window(5)]) {
            let heads = Heads { rotary_dim, scale, cap, ..Heads::new(6, 2, 12) };
            let frequencies = config(true).rope().frequencies(rotary_dim, seq);
            let rotary = (rotary_dim > 0).then(|| Rotary::new(&frequencies, seq, &flex()));
            let of = |fused: bool| {
                let qkv = leaf(numbers(2 * seq * 120, 1.0).iter().map(|x| 3.0 * x).collect(), [2, seq, 120]);
                let out = match fused {
                    true => attention::forward(qkv.clone(), rotary.as_ref(), &mask, &heads),
                    false => attention::composed(qkv.clone(), rotary.as_ref(), &mask, &heads, None),
                };
                followed(out, |grads| [gradient_of(&qkv, grads)])
            };
            assert_alike(&format!("{heads:?}"), &of(true), &of(false), 1e-5);
        }
    }
}

#[test]
fn windows_end_where_documents_begin() {
    let mask = Mask::within_documents(&[0, 0, 0, 0, 1, 1, 1, 1], 8, &flex());
    assert_eq!(**mask.within_window(3).first(), [0, 0, 0, 1, 4, 4, 4, 5]);
    assert_eq!(mask.within_window(8).first(), mask.first());
}

#[derive(Module, Debug)]
struct One {
    weight: Param<Tensor<2>>,
}

#[test]
fn steps_of_adamw_are_burns_to_the_bit() {
    let device = flex();
    let data: Vec<f32> = (0..70_000).map(|i| (i as f32 * 0.37).sin()).collect();
    let one = || One { weight: Param::from_data(TensorData::new(data.clone(), [700, 100]), &device) };
    let run = |mut optimizer: ModuleOptimizer| {
        let mut one = one();
        for step in 1..=4 {
            let grads = (one.weight.val().sin() * (step as f32)).sum().backward();
            let grads = GradientsParams::from_grads(grads, &one);
            one = optimizer.step(1e-2 / step as f64, one, grads);
        }
        floats(one.weight.val().inner())
    };
    for decay in [0.0, 0.1] {
        let burns = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(decay);
        let own = FusedAdamW::new([0.9, 0.95], 1e-8, decay as f64, SharedNumber::new(1.0));
        assert!(run(own.into()) == run(burns.build().into()), "decay {decay}");
    }
}
