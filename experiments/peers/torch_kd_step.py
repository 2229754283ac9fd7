#!/usr/bin/env python3
"""Time one KD + QAT training step of a Llama model in PyTorch on the CPU.

    python3 -m venv .venv && .venv/bin/pip install torch transformers
    .venv/bin/python torch_kd_step.py --mode eager|compile|bf16 [--model smollm2|tiny] [--batch 4] [--seq 256] [--steps 5]

`training_step.py` runs it in turns with `bitllama-train bench-step`.

Weights are random: only time and memory are measured. The step is teacher forward (no gradient), student forward with
per-row absmean ternary weights under a straight-through estimator, full-vocabulary KL + cross-entropy, backward, AdamW.
Prints one line: mode, median seconds a step, tokens a second, peak memory; with --json one JSON object.
"""
import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "smollm2": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3, rope_theta=1e5),
    "tiny": dict(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
                 num_attention_heads=4, num_key_value_heads=4, rope_theta=1e4),
}


class TernaryLinear(nn.Linear):
    def forward(self, x):
        w = self.weight
        scale = w.abs().mean(1, keepdim=True) + 1e-6
        q = (w / scale).round().clamp(-1, 1) * scale
        return F.linear(x, w + (q - w).detach(), self.bias)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--mode", choices=["eager", "compile", "bf16"], default="eager")
    p.add_argument("--model", choices=SHAPES, default="smollm2")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[a.model], tie_word_embeddings=True, max_position_embeddings=8192)
    config._attn_implementation = "sdpa"
    teacher, student = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config)
    for name, m in student.named_modules():
        if isinstance(m, nn.Linear) and "lm_head" not in name:
            m.__class__ = TernaryLinear
    opt = torch.optim.AdamW(student.parameters(), 1e-4)
    vocab = config.vocab_size

    def loss_of(x):
        with torch.no_grad():
            t = teacher(x).logits
        s = student(x).logits
        kd = F.kl_div(F.log_softmax(s.float(), -1).view(-1, vocab), F.log_softmax(t.float(), -1).view(-1, vocab),
                      log_target=True, reduction="batchmean")
        return kd + F.cross_entropy(s[:, :-1].float().reshape(-1, vocab), x[:, 1:].reshape(-1))

    fn = torch.compile(loss_of) if a.mode == "compile" else loss_of
    times = []
    for _ in range(a.steps + 1):
        x = torch.randint(0, vocab, (a.batch, a.seq))
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.mode == "bf16"):
            loss = fn(x)
        opt.zero_grad()
        loss.backward()
        opt.step()
        times.append(time.perf_counter() - start)
    median = sorted(times[1:])[a.steps // 2]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # It counts kibibytes.
    if a.json:
        print(json.dumps({"mode": a.mode, "torch": torch.__version__, "threads": torch.get_num_threads(),
                          "median_seconds": median, "tokens_per_second": a.batch * a.seq / median,
                          "peak_memory_bytes": peak * 1e9}))
        return
    print(f"torch {torch.__version__} {a.mode} {a.model} batch {a.batch} seq {a.seq} threads {torch.get_num_threads()}: "
          f"{median:.3f} s/step, {a.batch * a.seq / median:.1f} tok/s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
