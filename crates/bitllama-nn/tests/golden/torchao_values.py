"""Writes torchao_values.json: values of torchao's own fake quantizers, for the definitions that ours share with them.

    pip install torch torchao
    python crates/bitllama-nn/tests/golden/torchao_values.py

- integers of 2, 3, 4 and 8 bits, a scale a row or for each 32 columns, symmetric: `IntxFakeQuantizer`, which torchao's
  quantization-aware training puts on weights
- the same asymmetric: `choose_qparams_affine` with `MappingType.ASYMMETRIC`, `quantize_affine` and `dequantize_affine`.
  (`IntxFakeQuantizer` has zero points as numbers with a fraction there, which kernels of tinygemm want: another definition)
- double quantization of the scales of nf4, blocks of 64 and of 256 scales: `NF4Tensor`

In torchao a weight is multiplied by the reciprocal of its scale and here divided by it. That matters on ties only, of which
symmetric quantization has one in each group: its largest weight is 2^(b-1) - 1/2 scales. So these are positive here, where
both ways end at the largest code. NF4Tensor chooses codes by scales before their rounding, we after it; so scales are
compared, not weights.
"""

import json
from pathlib import Path

import torch
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

OUT, IN, GROUP = 4, 64, 32
DTYPES = {"int2": torch.int2, "int3": torch.int3, "int4": torch.int4, "int8": torch.int8}


def numbers(tensor):
    """Nine digits tell every f32 apart."""
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def symmetric(weight, dtype, group):
    config = IntxFakeQuantizeConfig(dtype, group_size=group, is_symmetric=True)
    return IntxFakeQuantizer(config)(weight)


def asymmetric(weight, bits, group):
    block, limits = (1, group), {"quant_min": 0, "quant_max": 2**bits - 1}
    scale, zero_point = choose_qparams_affine(weight, MappingType.ASYMMETRIC, block, torch.uint8, **limits)
    fields = quantize_affine(weight, block, scale, zero_point, torch.uint8, **limits)
    return dequantize_affine(fields, block, scale, zero_point, torch.uint8, **limits)


def nf4_weight(size):
    """What the test in Rust computes as well: whole numbers divided once, rows of different sizes."""
    i = torch.arange(size * size, dtype=torch.int64)
    whole = ((i * 2654435761) % 2001 - 1000) * (1 + i // size % 7)
    return (whole.to(torch.float32) / 100000.0).reshape(size, size)


def main():
    torch.manual_seed(1)
    weight = torch.randn(OUT, IN) * torch.rand(OUT, IN) * torch.tensor([[0.3], [1.0], [0.02], [2.0]])
    groups = weight.reshape(-1, GROUP)
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    weight = (groups * largest.sign()).reshape(OUT, IN)
    cases = []
    for scheme, dtype in DTYPES.items():
        for zero_point in (False, True):
            for granularity in ("row", GROUP):
                group = IN if granularity == "row" else GROUP
                value = asymmetric(weight, int(scheme[3:]), group) if zero_point else symmetric(weight, dtype, group)
                case = {"scheme": scheme, "granularity": granularity, "zero_point": zero_point}
                cases.append(case | {"value": numbers(value)})
    nf4 = NF4Tensor.from_tensor(nf4_weight(128), 64, 256)
    golden = {
        "shape": [OUT, IN],
        "weight": numbers(weight),
        "nf4": {
            "scale_codes": nf4.quantized_scalers.flatten().tolist(),
            "scale_steps": numbers(1 / nf4.quantization_factor),
            "scale_mean": float(nf4.scaler_mean),
        },
    }
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{path.name}: {len(cases)} cases")


main()
