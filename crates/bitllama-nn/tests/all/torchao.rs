//! Rounding against torchao's fake quantizers, where the definitions are the same (`golden/torchao_values.py`).

use bitllama_core::scales::{DoubleScales, PackedScales};
use bitllama_core::{Granularity, PackedMatrix, Quantizer, ScaleFormat, Scheme};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    shape: [usize; 2],
    weight: Vec<f32>,
    nf4: Nf4,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Nf4 {
    scale_codes: Vec<i8>,
    scale_steps: Vec<f32>,
    scale_mean: f32,
}

#[derive(Deserialize)]
struct Case {
    scheme: Scheme,
    granularity: serde_json::Value,
    zero_point: bool,
    value: Vec<f32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/torchao_values.json")).unwrap()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{what} at {index}: {a}, torchao has {b}");
    }
}

#[test]
fn integers_are_torchaos() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 16);
    for case in golden.cases {
        let granularity = case.granularity.as_u64().map_or(Granularity::Row, |size| Granularity::Group(size as usize));
        let quantizer = Quantizer::from(case.scheme).with_granularity(granularity);
        let quantizer = if case.zero_point { quantizer.with_zero_point() } else { quantizer };
        let packed = PackedMatrix::quantize(&quantizer, golden.shape, golden.weight.clone()).unwrap();
        close(&packed.dequantize().data, &case.value, &quantizer.to_string());
    }
}

#[test]
fn double_quantized_scales_are_torchaos() {
    let Nf4 { scale_codes, scale_steps, scale_mean } = golden().nf4;
    // As in the script.
    let number = |i: i64| ((i * 2_654_435_761) % 2001 - 1000) * (1 + i / 128 % 7);
    let weight = (0..128 * 128).map(|i| number(i) as f32 / 100_000.0).collect();
    let quantizer = Quantizer::from(Scheme::Nf4).with_scales(ScaleFormat::Double);
    let packed = PackedMatrix::quantize(&quantizer, [128, 128], weight).unwrap();
    let PackedScales::Double(DoubleScales { codes, steps, mean }) = packed.packed_scales() else {
        panic!("the scales are double-quantized")
    };
    assert_eq!(*codes, scale_codes);
    close(steps, &scale_steps, "steps");
    close(&[*mean], &[scale_mean], "mean");
}
