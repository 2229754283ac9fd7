//! Every quantizer: against PyTorch's values and gradients (`golden/quantizers.py`), packed against fake-quantized, in both
//! layouts of Burn's parameters.

use bitllama_core::rounding::{Offsets, Scales, StoredScales};
use bitllama_core::scales::{DoubleScales, PackedScales};
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_core::{
    DenseMatrix, Granularity, Method, Offset, PackedMatrix, Quantizer, RoundedMatrix, RowMatrix, ScaleFormat, Scheme,
    targets,
};
use bitllama_nn::fake_quant::matrix::TensorMatrix;
use bitllama_nn::fake_quant::{FakeQuant, quantize};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::common::device;

#[derive(Module, Debug)]
struct One {
    weight: Param<Tensor<2>>,
}

#[derive(Deserialize)]
struct Golden {
    weight: Vec<f32>,
    c: Vec<f32>,
    shape: [usize; 2],
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    scheme: Scheme,
    method: Method,
    granularity: serde_json::Value,
    zero_point: bool,
    start: Option<Vec<f32>>,
    scale: Option<Vec<f32>>,
    zero_points: Option<Vec<f32>>,
    value: Vec<f32>,
    weight_gradient: Vec<f32>,
    scale_gradient: Option<Vec<f32>>,
}

impl Case {
    fn quantizer(&self) -> Quantizer {
        let granularity = match self.granularity.as_u64() {
            Some(size) => Granularity::Group(size as usize),
            None if self.granularity == "row" => Granularity::Row,
            None => Granularity::Tensor,
        };
        let Case { scheme, method, zero_point, .. } = *self;
        let offset = if zero_point { Offset::ZeroPoint } else { Offset::None };
        Quantizer { scheme, method, granularity, offset, scales: ScaleFormat::F32 }
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/quantizers.json")).unwrap()
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().unwrap()
}

/// A row-major `[rows, columns]` as a parameter of `kind`: linear layers have it transposed.
fn tensor(data: &[f32], [rows, columns]: [usize; 2], kind: Kind, device: &Device) -> Tensor<2> {
    let tensor = Tensor::from_data(TensorData::new(data.to_vec(), [rows, columns]), device);
    if kind == Kind::Linear { tensor.transpose() } else { tensor }
}

fn row_major(tensor: Tensor<2>, kind: Kind) -> Vec<f32> {
    floats(if kind == Kind::Linear { tensor.transpose() } else { tensor })
}

/// The weight of the golden file with a quantizer on it.
fn module(golden: &Golden, quantizer: Quantizer, kind: Kind, stored: &StoredScales, device: &Device) -> One {
    let weight = tensor(&golden.weight, golden.shape, kind, device);
    let weight = if device.is_autodiff() { weight.require_grad() } else { weight };
    let spec = WeightSpec { name: "weight".into(), shape: golden.shape.to_vec(), kind };
    quantize(One { weight: Param::from_tensor(weight) }, &[(spec, Some(quantizer))], stored)
}

fn fake_quant(module: &One) -> &FakeQuant {
    module.weight.reparameterization().unwrap()
}

fn numbers(data: &[f32]) -> DenseMatrix {
    DenseMatrix { data: data.to_vec(), columns: 1 }
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-6 * largest, "{what} at {index}: {a}, PyTorch has {b}");
    }
}

#[test]
fn values_and_gradients_are_pytorchs() {
    let golden = golden();
    let device = device().autodiff();
    for case in &golden.cases {
        let quantizer = case.quantizer();
        quantizer.check().unwrap();
        for kind in [Kind::Linear, Kind::Embedding] {
            let what = format!("{quantizer}, {kind:?}");
            if let Some(start) = &case.start {
                let fresh = module(&golden, quantizer, kind, &StoredScales::new(), &device);
                let scales = fake_quant(&fresh).stored_scales(fresh.weight.base().dims()).unwrap();
                close(&scales.scales.data, start, &format!("{what}: start"));
                assert_eq!(scales.offsets.map(|points| points.into_numbers().data), case.zero_points, "{what}");
            }
            let mut stored = StoredScales::new();
            if let Some(scale) = &case.scale {
                let offsets = case.zero_points.as_deref().map(numbers).map(Offsets::ZeroPoints);
                stored.insert("weight".into(), Scales { scales: numbers(scale), offsets });
            }
            let module = module(&golden, quantizer, kind, &stored, &device);
            let value = module.weight.val();
            close(&row_major(value.clone(), kind), &case.value, &format!("{what}: value"));

            let c = tensor(&golden.c, golden.shape, kind, &device);
            let grads = GradientsParams::from_grads((value * c).sum().backward(), &module);
            let gradient = grads.get::<2>(module.weight.id).unwrap();
            close(&row_major(gradient, kind), &case.weight_gradient, &format!("{what}: gradient of the weight"));
            assert_eq!(grads.len(), 1 + case.scale_gradient.iter().len(), "{what}");
            if let Some(expected) = &case.scale_gradient {
                let gradient = grads.get::<3>(fake_quant(&module).scales_id().unwrap()).unwrap();
                // Of a linear layer as `[groups, 1, rows]`.
                let [outer, _, inner] = gradient.dims();
                let gradient = floats(gradient.reshape::<2, _>([outer, inner]).transpose());
                close(&gradient, expected, &format!("{what}: gradient of the scale"));
            }
        }
    }
}

#[test]
fn the_golden_file_has_every_quantizer() {
    let there: Vec<Quantizer> = golden().cases.iter().map(Case::quantizer).collect();
    for scheme in Scheme::ALL {
        for method in Method::ALL {
            for granularity in [Granularity::Row, Granularity::Tensor, Granularity::Group(32)] {
                for offset in [Offset::None, Offset::ZeroPoint] {
                    let quantizer = Quantizer { scheme, method, granularity, offset, scales: ScaleFormat::F32 };
                    assert_eq!(there.contains(&quantizer), quantizer.check().is_ok(), "{quantizer}");
                }
            }
        }
    }
}

#[test]
fn packed_is_fake_quantized_to_the_bit() {
    let golden = golden();
    let formats = [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Double];
    let all = golden.cases.iter().flat_map(|case| formats.map(|scales| case.quantizer().with_scales(scales)));
    for quantizer in all.filter(|quantizer| quantizer.check().is_ok()) {
        for (device, kind) in
            [(device(), Kind::Linear), (device().autodiff(), Kind::Linear), (device(), Kind::Embedding)]
        {
            let module = module(&golden, quantizer, kind, &StoredScales::new(), &device);
            let (view, rounded) = fake_quant(&module).codes_and_scales(module.weight.base());
            let packed = PackedMatrix::pack(&quantizer, golden.shape, view.quantized(rounded)).unwrap();
            assert_eq!(packed.dequantize().data, row_major(module.weight.val(), kind), "{quantizer}");
            // Plain Rust takes the mean of a row in another order, so that scales may differ in their last bits.
            let plain = PackedMatrix::quantize(&quantizer, golden.shape, golden.weight.clone()).unwrap();
            close(&plain.dequantize().data, &packed.dequantize().data, &format!("{quantizer}: plain"));
        }
    }
}

#[test]
fn tensors_round_to_f16_as_plain_numbers_do() {
    // Every f16 between, half way to the next one, and a little to either side; subnormal numbers among them.
    let mut numbers = Vec::new();
    for bits in (1..0x7bff).step_by(3) {
        let (low, high) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
        let middle = (low + high) / 2.0;
        numbers.extend([low, middle.next_down(), middle, middle.next_up(), -middle]);
    }
    let plain = DenseMatrix { data: numbers.clone(), columns: 1 }.round_f16().data;
    let tensor = Tensor::<3>::from_data(TensorData::new(numbers, [plain.len(), 1, 1]), &device());
    assert_eq!(floats(TensorMatrix(tensor).round_f16().0), plain);
}

#[test]
fn many_scales_are_double_quantized_alike_in_tensors_and_files() {
    // 640 scales: two whole blocks and a part of one, of rows that differ in size, one of them zero.
    let shape = [40, 512];
    let number = |i: usize| ((i * 2_654_435_761) % 2001) as f32 / 1000.0 - 1.0;
    let weight = (0..shape[0] * shape[1]).map(|i| number(i) * (i / shape[1]) as f32 * 0.01).collect();
    let golden = Golden { weight, c: Vec::new(), shape, cases: Vec::new() };
    for scheme in [Scheme::Nf4, Scheme::Ternary] {
        let quantizer = Quantizer::from(scheme).with_granularity(Granularity::Group(32));
        let quantizer = quantizer.with_scales(ScaleFormat::Double);
        for kind in [Kind::Linear, Kind::Embedding] {
            let module = module(&golden, quantizer, kind, &StoredScales::new(), &device());
            let (view, rounded) = fake_quant(&module).codes_and_scales(module.weight.base());
            let packed = PackedMatrix::pack(&quantizer, shape, view.quantized(rounded)).unwrap();
            let PackedScales::Double(DoubleScales { codes, steps, .. }) = packed.packed_scales() else { panic!() };
            assert_eq!((codes.len(), steps.len()), (640, 3));
            assert_eq!(packed.dequantize().data, row_major(module.weight.val(), kind), "{quantizer}");
            let plain = PackedMatrix::quantize(&quantizer, shape, golden.weight.clone()).unwrap();
            close(plain.scales(), packed.scales(), &format!("{quantizer}: plain"));
        }
    }
}

/// Every grid of blocks, with all methods that it supports.
fn of_blocks() -> Vec<Quantizer> {
    let grids = targets::ALL.iter().filter(|target| target.mix.is_none()).map(|target| target.quantizers[0]);
    let with_methods = |grid: Quantizer| Method::ALL.map(|method| grid.with_method(method));
    grids.filter(Quantizer::is_of_blocks).flat_map(with_methods).filter(|grid| grid.check().is_ok()).collect()
}

/// Two blocks of 256 columns in 40 rows that differ in size, one of them zero.
fn blocks_of_weights() -> Golden {
    let number = |i: usize| ((i * 2_654_435_761) % 2001) as f32 / 1000.0 - 1.0;
    let weight = (0..40 * 512).map(|i| number(i) * (i / 512) as f32 * 0.01).collect();
    let c = (0..40 * 512).map(|i| number(i + 77)).collect();
    Golden { weight, c, shape: [40, 512], cases: Vec::new() }
}

#[test]
fn blocks_are_fake_quantized_to_the_bit() {
    let golden = blocks_of_weights();
    assert_eq!(of_blocks().len(), 14);
    for quantizer in of_blocks() {
        for (device, kind) in
            [(device(), Kind::Linear), (device().autodiff(), Kind::Linear), (device(), Kind::Embedding)]
        {
            let module = module(&golden, quantizer, kind, &StoredScales::new(), &device);
            let (view, rounded) = fake_quant(&module).codes_and_scales(module.weight.base());
            let packed = RoundedMatrix::pack(&quantizer, golden.shape, view.quantized(rounded)).unwrap();
            assert!(packed.dequantize().data == row_major(module.weight.val(), kind), "{quantizer} {kind:?}");
            let stored = fake_quant(&module).stored_scales(module.weight.base().dims());
            let plain = RoundedMatrix::quantize(&quantizer, golden.shape, golden.weight.clone(), stored).unwrap();
            assert!(plain == packed, "{quantizer} {kind:?}");
        }
    }
}

/// LSQ on a grid with minimums: equation 3 of the paper with `(w + minimum) / scale` in the place of `w / scale`.
#[test]
fn gradients_with_minimums_are_those_of_lsq() {
    let golden = blocks_of_weights();
    for quantizer in of_blocks().into_iter().filter(|q| q.method == Method::Lsq && q.offset == Offset::Minimum) {
        let module = module(&golden, quantizer, Kind::Embedding, &StoredScales::new(), &device().autodiff());
        let mut stored = fake_quant(&module).stored_scales(module.weight.base().dims()).unwrap();
        // Ranges that leave some weights out, above and below.
        stored.scales.data.iter_mut().for_each(|scale| *scale *= 0.7);
        stored.offsets = stored.offsets.map(|offsets| offsets.map(|numbers| numbers.scale(0.8)));
        let Granularity::Group(size) = quantizer.granularity else { panic!("{quantizer} has groups") };
        let top = (quantizer.scheme.levels() - 1) as f32;
        let packed =
            RoundedMatrix::quantize(&quantizer, golden.shape, golden.weight.clone(), Some(stored.clone())).unwrap();
        let minimums = packed.scales().offsets.unwrap().into_numbers().data;
        let (mut of_weights, mut of_scales) = (Vec::new(), Vec::new());
        let rounded = packed.dequantize().data;
        let groups = golden.weight.chunks(size).zip(golden.c.chunks(size)).zip(rounded.chunks(size));
        for (group, ((weights, c), rounded)) in groups.enumerate() {
            let (trained, used, minimum) =
                (stored.scales.data[group].max(1e-5), packed.scales().scales.data[group], minimums[group]);
            let mut sum = 0.0f64;
            for ((w, c), rounded) in weights.iter().zip(c).zip(rounded) {
                let v = (w + minimum) / trained.max(f32::MIN_POSITIVE);
                let level = if used == 0.0 { f32::NAN } else { ((rounded + minimum) / used).round() };
                let inside = (0.0..=top).contains(&v);
                of_weights.push(if inside { *c } else { 0.0 });
                sum += f64::from(c * (level - if inside { v } else { 0.0 }));
            }
            of_scales.push(sum as f32 / (size as f32 * top).sqrt());
        }
        let module = self::module(
            &golden,
            quantizer,
            Kind::Embedding,
            &StoredScales::from([("weight".into(), stored)]),
            &device().autodiff(),
        );
        let value = module.weight.val();
        let c = tensor(&golden.c, golden.shape, Kind::Embedding, &device().autodiff());
        let grads = GradientsParams::from_grads((value * c).sum().backward(), &module);
        let found = floats(grads.get::<2>(module.weight.id).unwrap());
        assert!(found == of_weights, "{quantizer}: gradients of weights");
        let found = floats(grads.get::<3>(fake_quant(&module).scales_id().unwrap()).unwrap());
        for (group, (found, expected)) in found.iter().zip(&of_scales).enumerate() {
            // Rows of zeros, and groups whose scale is rounded to 0, have codes that no weight tells.
            let known = expected.is_finite();
            assert!(
                !known || (found - expected).abs() < 1e-3 * expected.abs().max(1.0),
                "{quantizer} {group}: {found} {expected}"
            );
        }
        assert!(of_scales.iter().filter(|x| x.is_finite()).count() > of_scales.len() * 9 / 10);
        assert!(of_weights.contains(&0.0));
    }
}
