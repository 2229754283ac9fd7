#!/usr/bin/env python3
"""Hold lm-evaluation-harness over `bitllama serve` against `bitllama eval --task`: the same acc and acc_norm.

    check_lm_eval.py --url http://127.0.0.1:8080 --model NAME --path MODEL [--tokenizer DIR]

The server serves MODEL as NAME with `--activations f32 --kv f32`, as `bitllama eval` computes. `lm_eval --model local-completions`
tokenizes the questions of tests/data/tasks (ARC's and PIQA's layouts) by the tokenizer in DIR (default: MODEL) and sends token ids.
Needs the package `lm_eval[api]`. Ends with 1 if a figure differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = {
    "arc": {
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
    },
    "piqa": {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_target": "label", "doc_to_choice": "{{[sol1, sol2]}}"},
}


def harness(args, name, layout, folder):
    import lm_eval
    from lm_eval.tasks import TaskManager

    task = {
        "task": f"local_{name}", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test", **layout,
        "dataset_kwargs": {"data_files": {"test": str(ROOT / f"tests/data/tasks/{name}.jsonl")}},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))
    model = f"base_url={args.url}/v1/completions,model={args.model},tokenizer={args.tokenizer or args.path},tokenized_requests=True,num_concurrent=4,max_length={args.max_length}"
    found = lm_eval.simple_evaluate(
        model="local-completions", model_args=model, tasks=[task["task"]], task_manager=TaskManager(include_path=str(folder), include_defaults=False), batch_size=4,
    )
    scores = found["results"][task["task"]]
    return scores["acc,none"], scores["acc_norm,none"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--max-length", type=int, default=511)
    parser.add_argument("--bitllama", default=ROOT / "target/release/bitllama")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in TASKS.items():
            theirs = harness(args, name, layout, pathlib.Path(folder))
            command = [args.bitllama, "eval", "--artifact", args.path, "--task", ROOT / f"tests/data/tasks/{name}.jsonl", "--json"]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
            task = json.loads(done.stdout)["tasks"][0]
            ours = tuple(task[key]["value"] if isinstance(task[key], dict) else task[key] for key in ("acc", "acc_norm"))
            failed |= theirs != ours
            print(f"{name}: lm_eval acc {theirs[0]}, acc_norm {theirs[1]}; bitllama acc {ours[0]}, acc_norm {ours[1]}: {'the same' if theirs == ours else 'DIFFERENT'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
