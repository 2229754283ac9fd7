//! Rounded activations against PyTorch: `golden/activations.py` made the figures.

use bitllama_core::{Activation, ActivationPlan, BitPlan, Scheme};
use bitllama_kernels::gemm::Precision;
use bitllama_nn::activations::{plan_of, quantize, rounded};
use bitllama_nn::linear::Linear;
use bitllama_nn::{Llama, Mask, fake_quant};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::common::{device, floats, model, tokens};

#[derive(Deserialize)]
struct Golden {
    shape: [usize; 4],
    x: Vec<f32>,
    w: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    value: Vec<f32>,
    out: Vec<f32>,
    x_gradient: Vec<f32>,
    w_gradient: Vec<f32>,
    heads: Vec<f32>,
    heads_gradient: Vec<f32>,
}

fn assert_close(got: Vec<f32>, expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{what}: {got} instead of {expected}");
    }
}

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/activations.json")).unwrap();
    let [tokens, width, out, heads] = golden.shape;
    let device = device().autodiff();
    let tensor = |data: &[f32], shape: &[usize]| TensorData::new(data.to_vec(), shape.to_vec());
    for case in golden.cases {
        let kind: Activation = case.kind.parse().unwrap();
        let x = || Tensor::<3>::from_data(tensor(&golden.x, &[1, tokens, width]), &device).require_grad();
        let plain = Tensor::<3>::from_data(tensor(&golden.x, &[1, tokens, width]), &device.clone().inner());
        let value = floats(rounded(plain, Some(kind)));
        assert_close(value.clone(), &case.value, &case.kind);
        assert_eq!(floats(rounded(x(), Some(kind))), value, "{kind}: a gradient changes the value");

        let w = Tensor::<2>::from_data(tensor(&golden.w, &[out, width]), &device).transpose().detach();
        let layer = Linear {
            bias: None,
            weight: Param::from_tensor(w.require_grad()),
            input: Some(kind),
            precision: Precision::F32,
            int8_forward: false,
        };
        let input = x();
        let output = layer.forward(input.clone());
        assert_close(floats(output.clone()), &case.out, &case.kind);
        let grads = (output * Tensor::from_data(tensor(&golden.c, &[1, tokens, out]), &device)).sum().backward();
        assert_close(floats(input.grad(&grads).unwrap()), &case.x_gradient, &case.kind);
        let of_weight = layer.weight.val().grad(&grads).unwrap();
        assert_close(floats(of_weight.transpose()), &case.w_gradient, &case.kind);

        let input = x();
        let split = input.clone().reshape([1, tokens, heads, width / heads]).swap_dims(1, 2);
        let value = rounded(split, Some(kind)).swap_dims(1, 2).reshape([1, tokens, width]);
        assert_close(floats(value.clone()), &case.heads, &case.kind);
        let grads = (value * Tensor::from_data(tensor(&golden.d, &[1, tokens, width]), &device)).sum().backward();
        assert_close(floats(input.grad(&grads).unwrap()), &case.heads_gradient, &case.kind);
    }
}

fn logits(model: &Llama, device: &Device) -> Tensor<3> {
    model.forward(tokens(device), &Mask::causal(2, 6, device))
}

/// Globs and the kinds behind them.
type Rules<'a> = &'a [(&'a str, &'a str)];

fn plan(
    rules: Rules,
    kv_cache: Option<Activation>,
    model: &Llama,
) -> (ActivationPlan, bitllama_core::bit_plan::ResolvedPlan) {
    let head = if model.lm_head.is_some() { "lm_head" } else { "embed_tokens" };
    let bits = [("layers.*", Scheme::Ternary), (head, Scheme::Int8)];
    let bits = BitPlan::new(bits.map(|(glob, scheme)| (glob, scheme.name().parse().unwrap()))).unwrap();
    let bits = bits.resolve(&model.config).unwrap();
    let rules = rules.iter().map(|(glob, rule)| (*glob, rule.parse().unwrap()));
    (ActivationPlan::resolve(rules, kv_cache, &bits).unwrap(), bits)
}

#[test]
fn each_rule_changes_the_model_and_is_read_off_it_again() {
    for tied in [true, false] {
        let device = device();
        let plain = model(&device, tied);
        let head = if tied { "embed_tokens" } else { "lm_head" };
        let mut seen = vec![floats(logits(&plain, &device))];
        let all: [(Rules, Option<Activation>); 6] = [
            (&[("layers.*", "int8")], None),
            (&[("*.down_proj", "sign")], None),
            (&[("*.q_proj", "int4"), ("*.v_proj", "int8")], None),
            (&[(head, "int4")], None),
            (&[], Some(Activation::Int8)),
            (&[("layers.*", "int8"), ("layers.1.mlp.*", "f32")], Some(Activation::Int4)),
        ];
        for (rules, kv_cache) in all {
            let (activations, _) = plan(rules, kv_cache, &plain);
            let quantized = quantize(model(&device, tied), &activations);
            assert_eq!(plan_of(&quantized), activations);
            let found = floats(logits(&quantized, &device));
            let largest = seen[0].iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                found.iter().all(|x| x.is_finite()) && !seen.contains(&found) && largest < 3.0,
                "{rules:?}: {largest}"
            );
            seen.push(found);
        }
    }
}

#[test]
fn a_model_keeps_its_rounding_through_training_and_beyond() {
    let device = device().autodiff();
    let plain = model(&device, true);
    let (activations, bits) = plan(&[("*", "int8"), ("embed_tokens", "int8")], Some(Activation::Int4), &plain);
    let quantized = quantize(fake_quant::quantize(plain, &bits, &Default::default()), &activations);
    let found = logits(&quantized, &device);
    let grads = GradientsParams::from_grads(found.clone().square().sum().backward(), &quantized);
    assert_eq!(grads.len(), bits.len(), "every parameter has a gradient");
    let plain = quantized.valid().materialize();
    assert_eq!(plan_of(&plain), activations);
    let (evaluated, trained) = (floats(logits(&plain, &device.clone().inner())), floats(found));
    let largest = evaluated.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-3, "{largest}");
}
