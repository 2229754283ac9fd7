"""Makes task_scores.json: what models/nano answers to the questions in tests/data/tasks, computed by `transformers` in f32.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_task_scores.py

The rules are those of lm-evaluation-harness 0.4.10 and later, zero-shot, written down here a second time: prompts of its tasks
hellaswag, arc_easy, piqa, winogrande and boolq; context and continuation tokenized together and cut where the context's own
tokens end; left truncation to the model's context; `acc` and `acc_norm` (by characters), with the standard error of a mean.
Each choice is a forward pass of its own here. With

    pip install lm_eval==0.4.12
    python tests/golden/make_task_scores.py --harness

the harness itself scores the same files by its own task definitions, and every log-likelihood must be the same.
"""

import argparse
import json
import math
import re
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/nano"
DATA = ROOT / "tests/data/tasks"
OUT = Path(__file__).with_name("task_scores.json")
# Ours and the harness's; it has two tasks for one layout.
TASKS = {"hellaswag": "hellaswag", "arc": "arc_easy", "piqa": "piqa", "winogrande": "winogrande", "boolq": "boolq"}


def clean(text):
    """HellaSwag's texts without WikiHow's marks."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def question(task, line):
    """[(context, continuation, choice)], and which is right."""
    if task == "hellaswag":
        context = clean(f"{line['activity_label']}: {line['ctx_a']} {line['ctx_b'].capitalize()}")
        choices, answer = [clean(ending) for ending in line["endings"]], int(line["label"])
    elif task == "arc":
        context = f"Question: {line['question']}\nAnswer:"
        choices, answer = line["choices"]["text"], line["choices"]["label"].index(line["answerKey"])
    elif task == "piqa":
        context = f"Question: {line['goal']}\nAnswer:"
        choices, answer = [line["sol1"], line["sol2"]], line["label"]
    elif task == "boolq":
        context = f"{line['passage']}\nQuestion: {line['question']}?\nAnswer:"
        choices, answer = ["no", "yes"], int(line["answer"])
    else:
        before, after = line["sentence"].split("_", 1)
        contexts = [before + line[option] for option in ("option1", "option2")]
        return [(context, " " + after.strip(), context) for context in contexts], int(line["answer"]) - 1
    return [(context, " " + choice, choice) for choice in choices], answer


def log_likelihood(model, tokenizer, context, continuation):
    spaces = context[len(context.rstrip()) :]
    context, continuation = context[: len(context) - len(spaces)], spaces + continuation
    given = tokenizer(context)["input_ids"]
    scored = tokenizer(context + continuation)["input_ids"][len(given) :]
    assert given and scored
    tokens = (given + scored)[-(model.config.max_position_embeddings + 1) :]
    assert len(tokens) > len(scored)
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0, -len(scored) :]
    found = logits.double().log_softmax(-1)[range(len(scored)), scored].sum().item()
    return found, [len(given), len(scored)]


def mean(values):
    """With its standard error."""
    p = sum(values) / len(values)
    return p, math.sqrt(p * (1 - p) / (len(values) - 1))


def score(model, tokenizer, task):
    right, right_by_length, values, tokens = [], [], [], []
    for line in (DATA / f"{task}.jsonl").read_text().splitlines():
        choices, answer = question(task, json.loads(line))
        found = [log_likelihood(model, tokenizer, context, continuation) for context, continuation, _ in choices]
        values.append([value for value, _ in found])
        tokens.append([counts for _, counts in found])
        by_length = [value / len(choice) for value, (_, _, choice) in zip(values[-1], choices)]
        right.append(values[-1].index(max(values[-1])) == answer)
        right_by_length.append(by_length.index(max(by_length)) == answer)
    (acc, acc_error), (acc_norm, acc_norm_error) = mean(right), mean(right_by_length)
    print(f"{task:<10} acc {acc:.4f} ± {acc_error:.4f}, acc_norm {acc_norm:.4f} ± {acc_norm_error:.4f}")
    return {
        "questions": len(values),
        "acc": acc,
        "acc_error": acc_error,
        "acc_norm": acc_norm,
        "acc_norm_error": acc_norm_error,
        # Of each question's choices: tokens of context and continuation before truncation, and nats.
        "tokens": tokens,
        "log_likelihoods": [[float(f"{value:.9g}") for value in of_question] for of_question in values],
    }


def check_with_harness(golden):
    """Has lm-evaluation-harness score the same files by its own definitions of the tasks."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for task, theirs in TASKS.items():
            lines = [json.loads(line) for line in (DATA / f"{task}.jsonl").read_text().splitlines()]
            if task == "boolq":
                # The harness reads SuperGLUE's copy, where the answer is a number.
                lines = [{**line, "label": int(line["answer"])} for line in lines]
            path = Path(folder, f"{task}.jsonl")
            path.write_text("\n".join(map(json.dumps, lines)))
            names[theirs] = path
        manager = TaskManager()
        loaded = datasets.load_dataset

        def local(path, name=None, **_):
            return loaded("json", data_files={split: str(local.path) for split in ("train", "validation", "test")})

        datasets.load_dataset = local
        for task, theirs in TASKS.items():
            local.path = names[theirs]
            arguments = f"pretrained={MODEL},dtype=float32"
            found = lm_eval.simple_evaluate(
                "hf", model_args=arguments, tasks=[theirs], task_manager=manager, device="cpu", batch_size=1, log_samples=True
            )
            ours, results = golden[task], found["results"][theirs]
            samples = sorted(found["samples"][theirs], key=lambda sample: sample["doc_id"])
            values = [[float(value) for (value, _), in sample["resps"]] for sample in samples]
            pairs = [(a, b) for of_ours, of_theirs in zip(ours["log_likelihoods"], values, strict=True) for a, b in zip(of_ours, of_theirs, strict=True)]
            largest = max(abs(a - b) for a, b in pairs)
            print(f"{theirs:<10} {len(pairs)} log-likelihoods, largest difference {largest:.1e}")
            assert largest < 1e-3
            for metric in "acc", "acc_norm":
                if f"{metric},none" in results:
                    assert math.isclose(results[f"{metric},none"], ours[metric]), metric
                    assert math.isclose(results[f"{metric}_stderr,none"], ours[f"{metric}_error"]), metric
                    print(f"{theirs:<10} {metric} {results[f'{metric},none']:.4f} ± {results[f'{metric}_stderr,none']:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", action="store_true", help="compare with lm_eval")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    golden = {task: score(model, tokenizer, task) for task in TASKS}
    about = "tests/data/tasks on models/nano in f32; made by tests/golden/make_task_scores.py"
    OUT.write_text(json.dumps({"about": about, **golden}, separators=(",", ":")) + "\n")
    if args.harness:
        check_with_harness(golden)


if __name__ == "__main__":
    main()
