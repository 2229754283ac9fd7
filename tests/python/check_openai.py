#!/usr/bin/env python3
"""Talk to a running `bitllama serve` with OpenAI's own client.

    check_openai.py --url http://127.0.0.1:8080 --chat MODEL [--text MODEL] [--api-key KEY]

MODEL of --chat has a chat template, that of --text need not (default: the same). Completions and chat, whole and in pieces,
probabilities, several answers, stop strings, seeds, JSON schemas, calls of functions, errors. Needs the package `openai` (requirements.txt).
"""

import argparse
import json
import math
import re
import sys
import urllib.error
import urllib.request

import openai

failed = 0


def check(what, holds, found=""):
    global failed
    failed += not holds
    print(f"{'ok' if holds else 'FAILED'}: {what}{'' if holds else f' ({found!r})'}", flush=True)


def completions(client, model):
    whole = client.completions.create(model=model, prompt="It is a truth", max_tokens=12, temperature=0)
    text = whole.choices[0].text
    check("a completion has text", len(text) > 0 and whole.object == "text_completion")
    check("its end is its length", whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 12, whole.usage)
    pieces = list(client.completions.create(model=model, prompt="It is a truth", max_tokens=12, temperature=0, stream=True))
    check("a stream has the same text", "".join(piece.choices[0].text for piece in pieces) == text)
    check("and comes in pieces", len(pieces) > 4, len(pieces))
    several = client.completions.create(model=model, prompt=["It is a truth", "The sea"], max_tokens=5, n=2, temperature=1, seed=3)
    check("two prompts with two answers are four choices", [choice.index for choice in several.choices] == [0, 1, 2, 3])
    check("the answers of a prompt differ", several.choices[0].text != several.choices[1].text)
    again = client.completions.create(model=model, prompt=["It is a truth", "The sea"], max_tokens=5, n=2, temperature=1, seed=3)
    check("a seed gives the same again", [choice.text for choice in again.choices] == [choice.text for choice in several.choices])
    echo = client.completions.create(model=model, prompt="It is a truth", max_tokens=4, temperature=0, echo=True, logprobs=2)
    choice = echo.choices[0]
    check("an echo begins with the prompt", choice.text.startswith("It is a truth"), choice.text)
    logprobs = choice.logprobs
    check("probabilities are given for all tokens but the first", logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:]))
    check("the likeliest tokens are two", all(len(top) == 2 for top in logprobs.top_logprobs[1:]))
    check("greedy tokens are the likeliest", all(math.isclose(value, max(top.values())) for value, top in list(zip(logprobs.token_logprobs, logprobs.top_logprobs))[-4:]))
    word = text.split()[1] if len(text.split()) > 1 else text[1:3]
    stopped = client.completions.create(model=model, prompt="It is a truth", max_tokens=12, temperature=0, stop=[word])
    check("a stop string ends the text", stopped.choices[0].text == text[:text.find(word)] and stopped.choices[0].finish_reason == "stop", stopped.choices[0])
    biased = client.completions.create(model=model, prompt="It is a truth", max_tokens=3, temperature=0, logit_bias={"300": 100})
    check("a bias of 100 decides", len(biased.choices[0].text) > 0 and not text.startswith(biased.choices[0].text), biased.choices[0])


def chat(client, model):
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name two colours."}]
    whole = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=24, temperature=0)
    text = whole.choices[0].message.content
    check("a chat has an answer", len(text) > 0 and whole.choices[0].message.role == "assistant", text)
    stream = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True})
    pieces = list(stream)
    check("a stream has the same answer", "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text)
    usage = pieces[-1].usage
    check("its last piece counts tokens", usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)
    check("the prompt came from the cache", usage and usage.prompt_tokens_details.cached_tokens > usage.prompt_tokens // 2, usage)
    likely = client.chat.completions.create(model=model, messages=messages, max_tokens=3, temperature=0, logprobs=True, top_logprobs=3)
    content = likely.choices[0].logprobs.content
    check("probabilities of three tokens, with three others each", len(content) == 3 and all(len(entry.top_logprobs) == 3 for entry in content), content)
    several = client.chat.completions.create(model=model, messages=messages, max_tokens=6, temperature=1, n=3, seed=1)
    check("three answers", len({choice.message.content for choice in several.choices}) > 1)


SCHEMA = {
    "type": "object", "properties": {"colour": {"enum": ["red", "green", "blue"]}, "number": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "number"], "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"],
    }}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}}},
]


def structured(client, model):
    messages = [{"role": "user", "content": "Give me a colour and a number."}]
    ask = {"model": model, "messages": messages, "max_completion_tokens": 60}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        choice = client.chat.completions.create(**ask, temperature=1, seed=seed, response_format=form).choices[0]
        found = json.loads(choice.message.content)
        check("an answer follows its schema", found["colour"] in ("red", "green", "blue") and 0 <= found["number"] <= 9 and choice.finish_reason == "stop", found)
    choice = client.chat.completions.create(**ask, temperature=0, response_format={"type": "json_object"}).choices[0]
    check("an answer is a JSON object", choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice.message.content)
    choice = client.completions.create(model=model, prompt="Phone:", max_tokens=20, temperature=1, seed=1, extra_body={"guided_regex": "[0-9]{3}-[0-9]{4}"}).choices[0]
    check("a text follows a regular expression", re.fullmatch("[0-9]{3}-[0-9]{4}", choice.text), choice.text)
    messages[0]["content"] = "What is the weather in Paris, in C?"
    for choose, names in (("required", {"get_weather", "get_time"}), ({"type": "function", "function": {"name": "get_time"}}, {"get_time"})):
        choice = client.chat.completions.create(**ask, temperature=0, tools=TOOLS, tool_choice=choose).choices[0]
        calls = choice.message.tool_calls or []
        check("a function is called", choice.finish_reason == "tool_calls" and calls and calls[0].function.name in names, choice)
        arguments = json.loads(calls[0].function.arguments)
        check("its arguments follow its schema", set(arguments) <= {"city", "unit", "zone"} and len(arguments) > 0, arguments)
        pieces = list(client.chat.completions.create(**ask, temperature=0, tools=TOOLS, tool_choice=choose, stream=True))
        deltas = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
        check("a stream names the function first", [delta.function.name for delta in deltas] == [calls[0].function.name] + [None] * (len(deltas) - 1) and len(deltas) > 2, deltas)
        check("a stream calls the same", {delta.index for delta in deltas} == {0} and "".join(delta.function.arguments or "" for delta in deltas) == calls[0].function.arguments and pieces[-1].choices[0].finish_reason == "tool_calls", deltas)
    follow = [*messages, {"role": "assistant", "content": None, "tool_calls": [calls[0].model_dump()]}, {"role": "tool", "tool_call_id": calls[0].id, "content": "noon"}]
    choice = client.chat.completions.create(**{**ask, "messages": follow}, temperature=0, tools=TOOLS).choices[0]
    check("a conversation goes on after a call", choice.message.content or choice.message.tool_calls, choice)
    choice = client.chat.completions.create(**ask, temperature=0, tools=TOOLS, tool_choice="none").choices[0]
    check("no function is called where none may be", not choice.message.tool_calls and choice.message.content, choice)


def faults(client, url, key):
    def fails(what, kind, call):
        try:
            call()
        except kind as error:
            check(what, bool(error.body and error.body.get("message")), error.body)
        else:
            check(what, False, "no error")

    fails("a model that there is not", openai.NotFoundError, lambda: client.completions.create(model="no-such", prompt="a"))
    fails("a temperature below 0", openai.BadRequestError, lambda: client.completions.create(model=None, prompt="a", temperature=-1))
    fails("a parameter that there is not", openai.BadRequestError, lambda: client.completions.create(model=None, prompt="a", extra_body={"tempreture": 1}))
    bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "uniqueItems": 3}}}
    fails("a schema that is not supported", openai.BadRequestError, lambda: client.chat.completions.create(model=None, messages=[{"role": "user", "content": "a"}], response_format=bad))
    fails("no messages", openai.BadRequestError, lambda: client.chat.completions.create(model=None, messages=[]))
    fails("a prompt beyond the context", openai.BadRequestError, lambda: client.completions.create(model=None, prompt=[5] * 300000))
    for body in (b"{", b"[]", b"\xff\xfe", b"{\"prompt\": 3}", b"{\"prompt\": \"a\", \"max_tokens\": -1}"):
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Authorization": f"Bearer {key}"})
        try:
            urllib.request.urlopen(request)
            check(f"the body {body!r}", False, "no error")
        except urllib.error.HTTPError as error:
            check(f"the body {body!r} is answered with 400", error.code == 400, error.code)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--chat", required=True, metavar="MODEL")
    parser.add_argument("--text", metavar="MODEL")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key, max_retries=0)
    names = [model.id for model in client.models.list()]
    check("the models are listed", args.chat in names, names)
    check("a model is described", client.models.retrieve(args.chat).id == args.chat)
    completions(client, args.text or args.chat)
    chat(client, args.chat)
    structured(client, args.chat)
    faults(client, args.url, args.api_key)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
