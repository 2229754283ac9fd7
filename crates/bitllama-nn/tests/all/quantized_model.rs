//! A quantized model against plain arithmetic: values, gradients, masks.

use std::convert::Infallible;

use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::specs;
use bitllama_core::{BitPlan, Method, ModelConfig, Quantizer, RoundedMatrix, Scheme};
use bitllama_nn::fake_quant::quantize;
use bitllama_nn::ops::composed;
use bitllama_nn::weights::{Storage, Weights, build, build_as};
use bitllama_nn::{Llama, Mask};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::common::{config, device, floats, model, tokens, values};

#[test]
fn every_weight_comes_back_as_it_was_given() {
    for sub_norm in [false, true] {
        let config = ModelConfig { sub_norm, ..config(true) };
        let model = build(&config, &device(), |spec| Ok::<_, Infallible>(values(spec))).unwrap();
        let weights = Weights::of(&model);
        for spec in specs(&config) {
            assert_eq!(weights.read(&spec), values(&spec), "{}", spec.name);
        }
    }
}

#[test]
fn sixteen_bits_hold_what_came_from_sixteen_bits() {
    let (device, kept) = (device(), |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000));
    for tied in [true, false] {
        let build = |storage: Storage, of: fn(f32) -> f32| {
            let read = |spec: &_| Ok::<_, Infallible>(values(spec).into_iter().map(of).collect());
            build_as(storage, &config(tied), &device, read).unwrap()
        };
        let (exact, narrow) = (build(Storage::F32, kept), build(Storage::Exact16, kept));
        if device.supports_dtype(DType::BF16) {
            assert_eq!(narrow.embed_tokens.weight.val().dtype(), DType::BF16);
            assert_eq!(narrow.layers[1].mlp.up_proj.weight.val().dtype(), DType::BF16);
        }
        let model = build(Storage::Exact16, |x| x);
        assert_eq!(model.embed_tokens.weight.val().dtype(), DType::F32, "it would lose something");
        let mask = Mask::causal(2, 6, &device);
        let logits = |model: &Llama| floats(model.forward(tokens(&device), &mask));
        assert_eq!(logits(&exact), logits(&narrow));
        assert_eq!(composed(|| logits(&exact)), composed(|| logits(&narrow)));
    }
}

#[test]
fn what_was_quantized_is_rounded_to_sixteen_bits() {
    let device = device();
    let read = |spec: &_| Ok::<_, Infallible>(values(spec));
    let [exact, rounded] =
        [Storage::F32, Storage::Rounded16].map(|storage| build_as(storage, &config(false), &device, read).unwrap());
    if !device.supports_dtype(DType::F16) {
        return;
    }
    for spec in specs(&config(false)) {
        let read = |model: &Llama| Weights::of(model).read(&spec);
        let close = |(exact, half): (f32, f32)| (exact - half).abs() <= exact.abs() / 2048.0 + 2f32.powi(-25);
        assert!(read(&exact).into_iter().zip(read(&rounded)).all(close), "{}", spec.name);
    }
    assert_eq!(rounded.layers[1].mlp.up_proj.weight.val().dtype(), DType::F16);
    assert_eq!(rounded.norm.weight.val().dtype(), DType::F32);
    // Numbers beyond f16 stay as they are.
    let large = |spec: &_| Ok::<_, Infallible>(values(spec).iter().map(|x| x * 1e6).collect());
    let large = build_as(Storage::Rounded16, &config(false), &device, large).unwrap();
    assert_eq!(large.layers[1].mlp.up_proj.weight.val().dtype(), DType::F32);
}

#[test]
fn a_model_rounds_its_weights_and_keeps_what_it_was_given() {
    let rule = |name: &str| name.parse().unwrap();
    let plan =
        BitPlan::new([("*", rule("int4")), ("embed_tokens", rule("int8")), ("*down_proj", rule("ternary"))]).unwrap();
    let plan = plan.resolve(&config(true)).unwrap();
    let quantized = quantize(model(&device(), true), &plan, &StoredScales::new());
    let weights = Weights::of(&quantized);
    for (spec, quantizer) in &plan {
        assert_eq!(weights.read(spec), values(spec), "the stored weight stays as it is");
        let packed = weights.pack(spec).unwrap();
        let scheme = packed.as_ref().map(|packed| match packed {
            RoundedMatrix::Packed(matrix) => matrix.scheme(),
            RoundedMatrix::Blocks(matrix) => panic!("{matrix:?} is no matrix of panels"),
        });
        assert_eq!(scheme, quantizer.map(|quantizer| quantizer.scheme));
        let value = match spec.name.as_str() {
            "embed_tokens.weight" => quantized.embed_tokens.weight.val(),
            "layers.1.mlp.down_proj.weight" => quantized.layers[1].mlp.down_proj.weight.val().transpose(),
            _ => continue,
        };
        assert_eq!(packed.unwrap().dequantize().data, floats(value), "{}", spec.name);
    }
}

#[test]
fn trained_scales_come_back_under_the_names_of_their_weights() {
    let lsq = Quantizer::from(Scheme::Int4).with_method(Method::Lsq);
    let plan = BitPlan::uniform(lsq).resolve(&config(true)).unwrap();
    let device = device().autodiff();
    let mut scales = Weights::of(&quantize(model(&device, true), &plan, &StoredScales::new())).scales();
    assert_eq!(scales.len(), 2 * 7);
    scales.values_mut().flat_map(|scales| &mut scales.scales.data).for_each(|scale| *scale *= 1.5);
    let quantized = quantize(model(&device, true), &plan, &scales);
    assert_eq!(Weights::of(&quantized).scales(), scales);
    let logits = quantized.forward(tokens(&device), &Mask::causal(2, 6, &device));
    let grads = GradientsParams::from_grads(logits.square().sum().backward(), &quantized);
    assert_eq!(grads.len(), specs(&config(true)).len() + 2 * 7);
}

#[test]
fn every_parameter_of_a_quantized_model_gets_a_gradient() {
    let device = device().autodiff();
    let plan = BitPlan::uniform(Scheme::Int4).resolve(&config(true)).unwrap();
    let quantized = quantize(model(&device, true), &plan, &StoredScales::new());
    let logits = quantized.forward(tokens(&device), &Mask::causal(2, 6, &device));
    let grads = GradientsParams::from_grads(logits.square().sum().backward(), &quantized);
    assert_eq!(grads.len(), specs(&config(true)).len());
}

#[test]
fn two_runs_give_the_same_gradients_to_the_bit() {
    let device = device().autodiff();
    let gradients = || {
        let plan = BitPlan::uniform(Scheme::Ternary).resolve(&config(true)).unwrap();
        let model = quantize(model(&device, true), &plan, &StoredScales::new());
        let loss = model.forward(tokens(&device), &Mask::causal(2, 6, &device)).square().mean();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        floats(grads.get::<2>(model.embed_tokens.weight.id).unwrap())
    };
    let first = gradients();
    assert!((0..5).all(|_| gradients() == first));
}

#[test]
fn no_token_sees_the_future_or_another_document() {
    let device = device();
    let model = model(&device, true);
    let logits = |ids: [i32; 6], documents: [u32; 6]| {
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, 6]), &device);
        floats(model.forward(tokens, &Mask::within_documents(&documents, 6, &device)))
    };
    let (base, vocab) = (logits([1, 2, 3, 4, 5, 6], [0; 6]), 24);
    let future = logits([1, 2, 3, 9, 9, 9], [0; 6]);
    assert_eq!(base[..3 * vocab], future[..3 * vocab]);
    assert_ne!(base[3 * vocab..], future[3 * vocab..]);

    let split = logits([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1]);
    let other = logits([7, 8, 9, 4, 5, 6], [0, 0, 0, 1, 1, 1]);
    assert_eq!(split[3 * vocab..], other[3 * vocab..]);
    // Rotary positions are relative: a document reads the same wherever it stands in the row.
    let alone = logits([4, 5, 6, 0, 0, 0], [0; 6]);
    let largest = split[3 * vocab..].iter().zip(&alone[..3 * vocab]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{largest}");
}
