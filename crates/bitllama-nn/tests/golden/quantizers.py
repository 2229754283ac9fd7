"""Writes quantizers.json: values and gradients of every quantizer by PyTorch, straight from the papers.

    pip install torch bitsandbytes
    python crates/bitllama-nn/tests/golden/quantizers.py

Each case has a weight [out, in], a loss sum(value * c) with fixed c, and what comes out: the quantized value, the
gradient of the weight and, where the scale is trained, the scale that it starts from (slightly moved, so that weights are
clipped on both sides) and its gradient. Sources of the formulas:

- absmean: XNOR-Net (arXiv 1603.05279) for binary, BitNet b1.58 (arXiv 2402.17764) for ternary
- twn: ternary weight networks (arXiv 1605.04711), threshold 0.5 * mean |w|
- minmax: torchao's choose_qparams_affine, SYMMETRIC (all 2^b codes) and ASYMMETRIC; of nf4, bitsandbytes' quantize_4bit
  (QLoRA, arXiv 2305.14314), whose codes are compared with those of the formula here
- learned: sign(w) * alpha with a plain straight-through estimator
- elastic, lsq, seq: the autograd functions of ParetoQ (arXiv 2502.02631, utils_quant.py), with n = the weights that share
  a scale in the gradient scale, as in LSQ (arXiv 1902.08153)
"""

import json
from math import sqrt
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit

OUT, IN = 3, 64


def straight_through(w, rounded):
    return w + (rounded - w).detach()


def absmean_binary(w):
    return straight_through(w, torch.where(w >= 0, 1.0, -1.0) * w.abs().mean(-1, keepdim=True))


def absmean_ternary(w):
    scale = w.abs().mean(-1, keepdim=True)
    return straight_through(w, (w / scale).round().clamp(-1, 1) * scale)


def twn(w):
    threshold = 0.5 * w.abs().mean(-1, keepdim=True)
    kept = (w.abs() >= threshold).float()
    alpha = (w.abs() * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return straight_through(w, w.sign() * kept * alpha)


def minmax(bits):
    def value(w):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = w.abs().amax(-1, keepdim=True) / ((high - low) / 2)
        return straight_through(w, (w / scale).round().clamp(low, high) * scale)

    return value


def minmax_asymmetric(bits):
    def value(w):
        high = 2**bits - 1
        smallest = w.amin(-1, keepdim=True).clamp(max=0)
        largest = w.amax(-1, keepdim=True).clamp(min=0)
        scale = (largest - smallest) / high
        zero = (-(smallest / scale).round()).clamp(0, high)
        return straight_through(w, ((w / scale).round() + zero).clamp(0, high).sub(zero) * scale)

    return value


def minmax_seq2(w):
    alpha = w.abs().amax(-1, keepdim=True) * 4 / 3
    return straight_through(w, ((w / alpha).clamp(-0.99, 0.99).mul(2).sub(0.5).round().add(0.5) / 2) * alpha)


NF4 = get_4bit_type("nf4", device="cpu")


def nearest_nf4(v):
    """The boundaries are those of bitsandbytes' dQuantizeNF4 up to their last bit; no weight here lies on one."""
    return NF4[((v.unsqueeze(-1) > (NF4[1:] + NF4[:-1]) / 2).sum(-1))]


def minmax_nf4(w):
    scale = w.abs().amax(-1, keepdim=True)
    value = nearest_nf4(w / scale) * scale
    for row, expected in zip(w.detach(), value.detach()):
        # It takes blocks of 64 and such at least: the row, and as much of zeros.
        padded = torch.cat([row, torch.zeros(-len(row) % 256)])
        packed, state = quantize_4bit(padded, blocksize=256, quant_type="nf4")
        assert torch.equal(dequantize_4bit(packed, state).flatten()[: len(row)], expected)
    return straight_through(w, value)


# `kvalues_iq4nl` of ggml's ggml-common.h.
IQ4 = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]).float()


def nearest_iq4(v):
    return IQ4[((v.unsqueeze(-1) > (IQ4[1:] + IQ4[:-1]) / 2).sum(-1))]


def minmax_iq4(w):
    scale = iq4_start(w)
    return straight_through(w, nearest_iq4(w / scale) * scale)


def iq4_start(w):
    return w.abs().amax(-1, keepdim=True) / 120


class LsqTable(torch.autograd.Function):
    """Lsq of a table of levels."""

    @staticmethod
    def forward(ctx, w, alpha, nearest, low, high):
        q = nearest(w / alpha)
        ctx.save_for_backward(w, alpha, q)
        ctx.ends = low, high
        return q * alpha

    @staticmethod
    def backward(ctx, grad):
        w, alpha, q = ctx.saved_tensors
        low, high = ctx.ends
        v = w / alpha
        middle = ((v >= low) & (v <= high)).float()
        factor = (q - v * middle) / sqrt(w.shape[-1] * high)
        return middle * grad, (factor * grad).sum(-1, keepdim=True), None, None, None


class Lsq(torch.autograd.Function):
    """ParetoQ's LsqBinaryTernaryExtension; 1 bit is elastic binarization."""

    @staticmethod
    def forward(ctx, w, alpha, bits):
        if bits == 1:
            low, high = -1, 1
            q = torch.where(w >= 0, 1.0, -1.0)
        elif bits == 1.58:
            low, high = -1, 1
            q = (w / alpha).round().clamp(low, high)
        else:
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            q = (w / alpha).round().clamp(low, high)
        ctx.save_for_backward(w, alpha)
        ctx.other = (bits, low, high)
        return q * alpha

    @staticmethod
    def backward(ctx, grad):
        w, alpha = ctx.saved_tensors
        bits, low, high = ctx.other
        scale = 1 / sqrt(w.shape[-1] * high)
        v = w / alpha
        small, big = (v < low).float(), (v > high).float()
        middle = 1 - small - big
        if bits == 1:
            grad_alpha = (torch.where(w >= 0, 1.0, -1.0) * grad * scale).sum(-1, keepdim=True)
        else:
            grad_alpha = ((small * low + big * high + middle * (v.round() - v)) * grad * scale).sum(-1, keepdim=True)
        return middle * grad, grad_alpha, None


class LsqWithZeroPoint(torch.autograd.Function):
    """LSQ with a constant zero point (as LSQ+, arXiv 2004.09576, whose offset is not trained here)."""

    @staticmethod
    def forward(ctx, w, alpha, zero, bits):
        high = 2**bits - 1
        ctx.save_for_backward(w, alpha, zero)
        ctx.high = high
        return ((w / alpha).round() + zero).clamp(0, high).sub(zero) * alpha

    @staticmethod
    def backward(ctx, grad):
        w, alpha, zero = ctx.saved_tensors
        v, high = w / alpha, ctx.high
        small, big = (v + zero < 0).float(), (v + zero > high).float()
        middle = 1 - small - big
        scale = 1 / sqrt(w.shape[-1] * high)
        factor = small * -zero + big * (high - zero) + middle * (v.round() - v)
        return middle * grad, (factor * grad * scale).sum(-1, keepdim=True), None, None


class Seq(torch.autograd.Function):
    """ParetoQ's StretchedElasticQuant."""

    @staticmethod
    def forward(ctx, w, alpha, bits):
        levels, shift = (1.5, 0.0) if bits == 1.58 else (2.0, 0.5)
        ctx.save_for_backward(w, alpha)
        ctx.other = (levels, shift)
        return ((w / alpha).clamp(-0.99, 0.99).mul(levels).sub(shift).round() + shift) / levels * alpha

    @staticmethod
    def backward(ctx, grad):
        w, alpha = ctx.saved_tensors
        levels, shift = ctx.other
        high = (levels - shift) / levels
        v = w / alpha
        small, big = (v < -0.99).float(), (v > 0.99).float()
        middle = 1 - small - big
        rounded = (v.clamp(-0.99, 0.99).mul(levels).sub(shift).round() + shift) / levels
        scale = 1 / sqrt(w.shape[-1])
        factor = small * -high + big * high + middle * (rounded - v)
        return middle * grad, (factor * grad * scale).sum(-1, keepdim=True), None


class Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, alpha):
        signs = torch.where(w >= 0, 1.0, -1.0)
        ctx.save_for_backward(signs)
        return signs * alpha

    @staticmethod
    def backward(ctx, grad):
        (signs,) = ctx.saved_tensors
        return grad, (signs * grad).sum(-1, keepdim=True)


def mean_start(w):
    return w.abs().mean(-1, keepdim=True)


def max_start(w):
    return w.abs().amax(-1, keepdim=True)


def lsq_start(high):
    return lambda w: 2 * w.abs().mean(-1, keepdim=True) / sqrt(high)


BITS = {"int2": 2, "int3": 3, "int4": 4, "int5": 5, "int6": 6, "int8": 8}


def cases():
    """Scheme, method, zero point, function of (w,) or (w, alpha) or (w, alpha, zero), start of alpha."""
    yield "binary", "absmean", False, absmean_binary, None
    yield "ternary", "absmean", False, absmean_ternary, None
    yield "ternary", "twn", False, twn, None
    yield "seq2", "minmax", False, minmax_seq2, None
    yield "nf4", "minmax", False, minmax_nf4, None
    yield "nf4", "lsq", False, lambda w, a: LsqTable.apply(w, a, nearest_nf4, -1, 1), max_start
    yield "iq4", "minmax", False, minmax_iq4, None
    yield "iq4", "lsq", False, lambda w, a: LsqTable.apply(w, a, nearest_iq4, -127, 113), iq4_start
    for scheme, bits in BITS.items():
        high = 2 ** (bits - 1) - 1
        yield scheme, "minmax", False, minmax(bits), None
        yield scheme, "minmax", True, minmax_asymmetric(bits), None
        yield scheme, "lsq", False, lambda w, a, bits=bits: Lsq.apply(w, a, bits), lsq_start(high)
        yield scheme, "lsq", True, lambda w, a, z, bits=bits: LsqWithZeroPoint.apply(w, a, z, bits), bits
    yield "ternary", "lsq", False, lambda w, a: Lsq.apply(w, a, 1.58), lsq_start(1)
    yield "binary", "learned", False, Learned.apply, mean_start
    yield "binary", "elastic", False, lambda w, a: Lsq.apply(w, a, 1), mean_start
    yield "ternary", "seq", False, lambda w, a: Seq.apply(w, a, 1.58), max_start
    yield "seq2", "seq", False, lambda w, a: Seq.apply(w, a, 2), max_start


def grouped(w, granularity):
    if granularity == "tensor":
        return w.reshape(1, -1)
    return w if granularity == "row" else w.reshape(-1, granularity)


def numbers(tensor):
    """Nine digits tell every f32 apart."""
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def main():
    torch.manual_seed(0)
    # Heavy tails, and rows of different sizes.
    weight = torch.randn(OUT, IN) * torch.rand(OUT, IN) * torch.tensor([[0.3], [1.0], [0.02]])
    c = torch.randn(OUT, IN)
    found = []
    for granularity in ("row", "tensor", 32):
        for scheme, method, zero_point, function, start in cases():
            w = weight.clone().requires_grad_()
            rows = grouped(w, granularity)
            entry = {"scheme": scheme, "method": method, "granularity": granularity, "zero_point": zero_point}
            if start is None:
                value = function(rows)
            else:
                plain = rows.detach()
                zero = ()
                if zero_point:
                    high = 2**start - 1
                    smallest, largest = plain.amin(-1, keepdim=True).clamp(max=0), plain.amax(-1, keepdim=True).clamp(min=0)
                    alpha = (largest - smallest) / high
                    zero = ((-(smallest / alpha).round()).clamp(0, high),)
                    entry["zero_points"] = numbers(zero[0])
                else:
                    alpha = start(plain)
                entry["start"] = numbers(alpha)
                alpha = (alpha * 0.8).requires_grad_()
                value = function(rows, alpha, *zero)
            value = value.reshape(OUT, IN)
            (value * c).sum().backward()
            entry["value"] = numbers(value)
            entry["weight_gradient"] = numbers(w.grad)
            if start is not None:
                entry["scale"] = numbers(alpha)
                entry["scale_gradient"] = numbers(alpha.grad)
            found.append(entry)
    golden = {"weight": numbers(weight), "c": numbers(c), "shape": [OUT, IN], "cases": found}
    path = Path(__file__).with_suffix(".json")
    lines = ",\n".join(json.dumps(case) for case in golden.pop("cases"))
    path.write_text(json.dumps(golden)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{path.name}: {len(found)} cases")


main()
