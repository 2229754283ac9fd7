"""Uses the server's page as a person would, in a headless Chromium.

    pip install -r tests/python/requirements.txt
    python tests/python/check_page.py --mock --shots shots
    python tests/python/check_page.py --url http://127.0.0.1:8080 --shots shots

`--mock` serves `page.html` from here with a small imitation of the server, which also gives the faults that a real one
gives rarely: a full queue, a lost connection, a wrong key, a failing answer. `--url` takes a running `bitllama serve`,
best with two models; faults are not checked then. Chromium is that of the system, or `--browser PATH`.

At desktop and phone size, light and dark: an answer that comes token by token, one that is stopped, two models compared,
everything by keyboard as well. A console error, a request to another host, a violated content security policy, horizontal
scrolling, a control without a label or a finding of axe fails the check. Exit code 1 if any check fails.
"""

import argparse
import json
import re
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "crates/bitllama-server/src"
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}

OWN_PAGE = False
passed, failed = 0, 0


def check(good, what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"FAILED {what}", flush=True)
    return good


# The imitation of the server.

REPLY = """A **student** learns from its *teacher*:

1. The teacher reads a text.
2. The student reads it as well, with `ternary` weights:
   - minus one
   - zero, plus one

```python
def loss(teacher, student):
    return (teacher.exp() * (teacher - student)).sum()  # a line that is longer than a phone is wide
```

Both then agree on most tokens."""
STUDENT = {9: " copies", 10: " a", 40: " and", -3: " some", -2: " words"}
SAMPLING = "temperature top_p top_k min_p repetition_penalty seed stop stream stream_options max_tokens model logprobs"
KEYS = {
    "/v1/chat/completions": {*SAMPLING.split(), "messages", "top_logprobs", "continue_final_message"},
    "/v1/completions": {*SAMPLING.split(), "prompt"},
}
MODELS = {"teacher": 16.0, "student": 2.91, "base": 4.5}
MARKUP = '<img src="https://elsewhere.example/x.png" onerror="alert(1)"> <script>alert(2)</script>'


def tokens_of(text):
    return re.findall(r"\s?[^\s]+|\s", text)


def answer_to(model, said):
    if said.startswith("long"):
        return [f" word{n}" for n in range(2000)]
    if said.startswith("markup"):
        return tokens_of(MARKUP)
    if said.startswith("same"):
        return tokens_of("Both say this.")
    if said.startswith("short"):
        return tokens_of("Both begin so" if model == "student" else "Both begin so, and one goes on.")
    if said.startswith("pieces"):
        return ["A", " \ufffd", "\ufffd", "\ufffd|🦙" if model == "student" else "\ufffd|🦉", "."]
    tokens = tokens_of(REPLY)
    if model == "student":
        for at, token in STUDENT.items():
            tokens[at] = token
    return tokens


class Mock(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def plain(self, status, kind, body, **headers):
        body = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message, **headers):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self.plain(status, "application/json", json.dumps({"error": error}), **headers)

    def unlocked(self):
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self.refuse(401, "the API key is missing or wrong")
        return False

    def do_GET(self):
        if self.path == "/":
            policy = re.search(r'POLICY: &str = "(.*?)";', (SOURCE / "api/others.rs").read_text(), re.S)[1]
            policy = re.sub(r"\\\s+", "", policy)
            page = (SOURCE / "page.html").read_text()
            self.plain(200, "text/html; charset=utf-8", page, Content_Security_Policy=policy)
        elif self.path == "/v1/models" and self.unlocked():
            told = [
                {"id": id, "object": "model", "owned_by": "mock", "max_model_len": 2048, "parameters": 1404560,
                 "bits_per_weight": bits, "chat": id != "base"}
                for id, bits in MODELS.items() if id in self.server.models
            ]
            self.plain(200, "application/json", json.dumps({"object": "list", "data": told}))
        elif self.path != "/v1/models":
            self.refuse(404, "there is nothing at this path")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.unlocked():
            return
        unknown = body.keys() - KEYS[self.path]
        if unknown:
            return self.refuse(400, f"unknown parameter `{min(unknown)}`")
        chat = "chat" in self.path
        if chat and body["model"] == "base":
            return self.refuse(400, "the model `base` has no chat template; use /v1/completions")
        self.server.bodies.append(body)
        said = body["messages"][-1]["content"] if chat else body["prompt"]
        if said.startswith("busy") and self.server.busy > 0:
            self.server.busy -= 1
            return self.refuse(429, "256 requests are waiting already; try again later", Retry_After="1")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.stream(body, chat, said)
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone += 1
        self.close_connection = True

    def send(self, piece):
        self.wfile.write(f"data: {piece if isinstance(piece, str) else json.dumps(piece)}\n\n".encode())
        self.wfile.flush()

    def stream(self, body, chat, said):
        limit = body.get("max_tokens", 10**6)
        tokens = answer_to(body["model"], said)
        for at, token in enumerate(tokens[:limit]):
            time.sleep(0.012)
            if at == 5 and said.startswith("lost"):
                return
            if at == 5 and said.startswith("fault"):
                self.send({"error": {"message": "the generation was ended by the server", "type": "server_error"}})
                return self.send("[DONE]")
            token, _, whole = token.partition("|")
            text = whole or ("" if "\ufffd" in token else token)
            choice = {"index": 0, "finish_reason": None, "logprobs": None}
            choice.update({"delta": {"content": text}} if chat else {"text": text})
            if body.get("logprobs"):
                top = [(token, -0.4), (" other", -1.6)]
                entries = [{"token": token, "logprob": value, "bytes": []} for token, value in top]
                choice["logprobs"] = (
                    {"content": [{**entries[0], "top_logprobs": entries}], "refusal": None} if chat
                    else {"tokens": [token], "token_logprobs": [-0.4], "top_logprobs": [dict(top)], "text_offset": [0]}
                )
            self.send({"choices": [choice]})
        reason = "length" if limit < len(tokens) else "stop"
        self.send({"choices": [{"index": 0, "finish_reason": reason, **({"delta": {}} if chat else {"text": ""})}]})
        count = min(limit, len(tokens))
        self.send({"choices": [], "usage": {"prompt_tokens": 57, "completion_tokens": count, "total_tokens": 57 + count,
                                            "prompt_tokens_details": {"cached_tokens": 32}}})
        self.send("[DONE]")


@contextmanager
def mock(key=None, models=tuple(MODELS)):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mock)
    server.daemon_threads = True
    server.key, server.models, server.busy, server.gone, server.bodies = key, models, 2, 0, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


# The person in front of the page.


class Person:
    """A page in a context of its own, and what went wrong in it."""

    def __init__(self, browser, url, screen, scheme, shots, expected=None):
        self.name, self.shots = f"{screen}-{scheme}", shots
        width, height = SCREENS[screen]
        phone = screen == "phone"
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True,
            has_touch=phone, device_scale_factor=2 if phone else 1,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60000)
        self.faults, host = [], urlsplit(url).netloc

        def console(message):
            if message.type == "error" and not (expected and re.search(expected, message.text)):
                self.faults.append(f"console: {message.text}")

        def request(asked):
            parts = urlsplit(asked.url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host:
                self.faults.append(f"request to {asked.url}")

        self.page.on("console", console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.context.on("request", request)
        if OWN_PAGE:
            page = (SOURCE / "page.html").read_text()
            self.context.route(url + "/", lambda route: route.fulfill(response=route.fetch(), body=page))
        self.page.goto(url + "/")
        self.until("document.querySelectorAll('#model option').length || !document.querySelector('#key-form').hidden")

    def until(self, condition):
        """Waits until an expression of the page, or a function here, is true.

        Playwright's own way to wait for an expression needs what the page's policy forbids.
        """
        for _ in range(3000):
            if condition() if callable(condition) else self.page.evaluate(condition):
                return
            time.sleep(0.02)
        raise TimeoutError(f"{self.name}: {condition}")

    def check(self, good, what):
        return check(good, f"{self.name}: {what}")

    def look(self, what, whole=False):
        """Takes a picture, and checks what can be seen without one."""
        overflow = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.check(overflow <= 0, f"{what}: {overflow} px of horizontal scrolling")
        if self.shots:
            self.shots.mkdir(parents=True, exist_ok=True)
            if whole:
                self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=self.shots / f"{self.name}-{what}.png", full_page=whole)

    def axe(self, what):
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run()")
        for violation in found["violations"]:
            targets = ", ".join(str(node["target"][0]) for node in violation["nodes"][:4])
            self.check(False, f"{what}: axe: {violation['id']}: {violation['help']} ({targets})")
        self.check(found["passes"], f"{what}: axe checked nothing")

    def labels(self):
        nameless = self.page.evaluate(
            """[...document.querySelectorAll("input, select, textarea")]
                .filter((each) => ![...each.labels].some((label) => label.textContent.trim()))
                .map((each) => each.id)"""
        )
        self.check(not nameless, f"controls without a label: {nameless}")
        silent = self.page.evaluate(
            "[...document.querySelectorAll('button')].filter((each) => !each.textContent.trim()).map((each) => each.id)"
        )
        self.check(not silent, f"buttons without words: {silent}")

    def answer(self):
        return self.page.locator("#messages > .assistant .text").last

    def note(self):
        return self.page.locator("#messages > .assistant .stats").last.text_content()

    def running(self):
        return self.page.locator("#stop").is_visible()

    def ended(self):
        self.page.locator("#send").wait_for(state="visible")

    def say(self, text):
        self.page.fill("#box", text)
        self.page.press("#box", "Enter")

    def begun(self):
        self.until(
            "(document.querySelector('#messages > .assistant:last-child .text')?.textContent.length ?? 0) > 0"
        )

    def tab_to(self, target, back=False):
        for _ in range(60):
            if self.page.evaluate("(target) => document.activeElement.matches(target)", target):
                return True
            self.page.keyboard.press("Shift+Tab" if back else "Tab")
        return self.check(False, f"the keyboard does not reach {target}")

    def alert(self, place="#chat-error"):
        return self.page.locator(place).text_content() if self.page.locator(place).is_visible() else ""

    def settings(self, opened):
        if self.page.locator("#settings").is_visible() != opened:
            self.page.click("#settings-button" if opened else "#settings-close")

    def set(self, field, value):
        self.settings(True)
        self.page.fill(f"#{field}", str(value))
        if self.name.startswith("phone"):
            self.settings(False)

    def close(self):
        for fault in self.faults:
            self.check(False, fault)
        self.check(True, "no faults of the page")
        self.context.close()


def lengths_while_running(person):
    lengths = set()
    while person.running():
        lengths.add(len(person.answer().text_content()))
        time.sleep(0.03)
    return sorted(lengths)


def converse(person, long):
    """An answer that grows, one that is stopped, and one in its place."""
    page = person.page
    person.look("empty")
    person.axe("empty")
    person.labels()
    page.fill("#box", "What does a student learn?")
    page.click("#send")
    person.begun()
    lengths = lengths_while_running(person)
    person.check(len(lengths) >= 3, f"the text does not grow token by token: {lengths}")
    person.ended()
    person.check(re.search(r"^\d+ tokens? ", person.note()), f"no count of tokens: {person.note()}")
    for part in (r"tokens/s", r"first token after \d+\.\d\d s", r"prompt of \d+ tokens"):
        person.check(re.search(part, person.note()), f"{part} is not in {person.note()!r}")
    person.until("document.querySelector('#live').textContent.startsWith('Answer: ')")
    person.look("answer", whole=True)
    person.axe("answer")
    page.click("text=Copy")
    page.wait_for_selector("text=Copied")
    person.say(long)
    person.begun()
    person.look("running")
    page.click("#stop")
    person.ended()
    person.check("stopped" in person.note(), f"the answer was not stopped: {person.note()}")
    person.check(page.evaluate("document.activeElement.id") == "box", "the focus is lost when an answer is stopped")
    before = page.locator("#messages > li").count()
    person.set("common-max_tokens", 5)
    page.click("text=Retry")
    person.begun()
    person.ended()
    person.check(page.locator("#messages > li").count() == before, "an answer that is asked anew is not in the old one's place")
    person.check("cut at the length limit" in person.note(), f"the limit is not said: {person.note()}")
    person.set("common-max_tokens", 512)
    page.press("#box", "ArrowUp")
    person.check(page.input_value("#box") == long, "the last message is not recalled")
    page.fill("#box", "")
    with page.expect_download() as download:
        page.click("#export")
    saved = json.loads(Path(download.value.path()).read_text())
    person.check([each["role"] for each in saved["messages"]] == ["user", "assistant"] * 2, "the export has other messages")
    page.click("#reset")
    person.check(page.locator("#messages > li").count() == 0, "a new conversation is not empty")
    page.click("text=Undo")
    person.check(page.locator("#messages > li").count() == 4, "the old conversation does not come back")
    page.click("#reset")
    page.set_input_files("#import", {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()})
    page.wait_for_selector("#messages > li >> nth=3")
    page.reload()
    person.check(page.locator("#messages > li").count() == 4, "the conversation does not outlive a reload")
    page.wait_for_selector("#model option", state="attached")


def compare(person, pair):
    """Two models side by side, with their differences marked."""
    page = person.page
    page.click("#tab-compare")
    if pair:
        page.select_option("#side0-model", pair[0])
        page.select_option("#side1-model", pair[1])
    person.look("compare-empty")
    page.fill("#prompt", "What does a student learn?")
    page.click("#compare-send")
    page.locator("#compare-send").wait_for(state="visible")
    person.check(not person.alert("#compare-error"), f"an error: {person.alert('#compare-error')}")
    summary = page.locator("#summary").text_content()
    person.check(re.search(r"(Same first \d+ tokens?|Different from the first token on)[;:] \d+ of \d+ tokens? differs?\.", summary)
                 or re.search(r"(Same first|Different).* differ", summary), f"no summary: {summary}")
    person.check(page.locator(".side:nth-child(2) mark").count() > 0, "no token is marked")
    person.check(page.locator("mark.first").count() in (1, 2), "the first difference is not marked once a side")
    page.click("#next")
    person.check(page.locator("#token").text_content().startswith("Token "), "the chosen token is not shown")
    person.check(page.locator("#token code").count() >= 2, "the chosen token has no text")
    person.look("compare")
    person.look("compare-whole", whole=True)
    person.axe("compare")
    person.labels()
    page.click("#tab-chat")


def keyboard(person, long):
    """Everything without a mouse."""
    page = person.page
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    person.check(page.evaluate("document.activeElement.id") == "box", "the skip link does not lead to the box")
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    person.check(page.input_value("#box") == "one line\n", "Shift+Enter does not break the line")
    page.fill("#box", "")
    page.keyboard.type(long)
    page.keyboard.press("Enter")
    person.begun()
    person.check(person.running(), "Enter does not send")
    page.keyboard.press("Escape")
    person.ended()
    person.check("stopped" in person.note(), f"Escape does not stop: {person.note()}")
    person.tab_to("#tab-chat", back=True)
    page.keyboard.press("ArrowRight")
    person.check(page.locator("#compare").is_visible(), "the keyboard does not switch to Compare")
    person.tab_to("#prompt")
    page.keyboard.type("What does a student learn?")
    page.keyboard.press("Enter")
    page.locator("#compare-send").wait_for(state="visible")
    person.check(page.locator("mark").count() > 0, "no token is marked by keyboard")
    person.tab_to(".tokens")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    text = page.locator("#token").text_content()
    person.check(text.startswith("Token 2 "), f"arrow keys do not walk the tokens: {text}")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    person.check(outline not in ("none", ""), "the focus cannot be seen")
    person.tab_to("#settings-button", back=True)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    person.tab_to("#tab-compare", back=True)
    page.keyboard.press("ArrowLeft")


def options_of(person):
    """Settings: shown, used, kept and reset."""
    page = person.page
    person.settings(True)
    person.look("settings")
    person.axe("settings")
    page.fill("#sampling-temperature", "0.25")
    page.reload()
    person.settings(True)
    person.check(page.input_value("#sampling-temperature") == "0.25", "settings are not kept")
    page.click("#defaults")
    person.check(page.input_value("#sampling-temperature") == "0.7", "settings are not reset")
    if person.name.startswith("phone"):
        page.keyboard.press("Escape")
        person.check(not page.locator("#settings").is_visible(), "Escape does not close the settings")
    page.wait_for_selector("#model option", state="attached")


def narrow(person):
    """The narrowest phones."""
    person.page.set_viewport_size({"width": 360, "height": 640})
    person.look("360")
    person.page.click("#tab-compare")
    person.look("360-compare", whole=True)
    person.page.click("#tab-chat")


def faults(browser, shots):
    """What a real server does rarely."""
    statuses = r"status of (401|429|400)|ERR_CONNECTION|ERR_INCOMPLETE"
    with mock() as (server, url):
        person = Person(browser, url, "desktop", "light", None, statuses)
        person.name = "faults"
        person.shots = shots
        page = person.page
        person.say("busy, is it?")
        person.until("document.querySelector('#chat-error').textContent.includes('trying again')")
        person.look("busy")
        person.begun()
        person.ended()
        person.check(not person.alert(), "the wait is still shown after the answer")
        server.busy = 9
        page.click("text=New")
        person.say("busy all day")
        person.until("document.querySelector('#chat-error').textContent.includes('refused')")
        person.check(page.input_value("#box") == "busy all day", "the message is lost when the server stays busy")
        person.say("lost on the way")
        person.until("document.querySelector('#chat-error').textContent.includes('lost')")
        person.check("incomplete" in person.note() and person.answer().text_content(), "the part of an answer that came is lost")
        person.look("lost")
        person.say("fault within")
        person.until("document.querySelector('#chat-error').textContent.includes('ended by the server')")
        person.say("markup, please")
        person.until("document.querySelector('#chat-error').hidden")
        person.begun()
        person.ended()
        person.check(person.answer().text_content() == MARKUP, "markup of an answer is not shown as it is")
        person.check(page.locator("#messages img, #messages script").count() == 0, "markup of an answer became elements")
        page.fill("#sampling-top_p", "7")
        person.say("a wrong setting")
        person.check("Top p" in person.alert(), f"a wrong setting is not named: {person.alert()}")
        person.check(page.input_value("#box") == "a wrong setting", "the message is lost with a wrong setting")
        page.fill("#sampling-top_p", "0.5")
        page.fill("#common-system", "Be short.")
        page.fill("#common-stop", "END\n\\n\\n")
        page.fill("#sampling-seed", "7")
        page.press("#box", "Enter")
        person.begun()
        person.ended()
        sent = server.bodies[-1]
        person.check(sent["messages"][0] == {"role": "system", "content": "Be short."}, "the system message is not sent")
        person.check((sent["top_p"], sent["seed"], sent["stop"]) == (0.5, 7, ["END", "\n\n"]), f"settings are not sent: {sent}")
        person.check("top_k" not in sent, "an empty setting is sent")
        person.check(page.locator("text=Continue").count() == 0, "a whole answer can be continued")
        page.fill("#common-max_tokens", "4")
        page.click("text=Retry")
        page.wait_for_selector("text=Continue")
        count = len(server.bodies)
        page.click("text=Continue")
        person.until(lambda: len(server.bodies) > count)
        person.ended()
        page.fill("#common-max_tokens", "512")
        person.check(server.bodies[-1].get("continue_final_message") is True, "an answer is not continued")
        page.set_input_files("#import", {"name": "b.json", "mimeType": "application/json", "buffer": b'{"messages": [{"role": 1}]}'})
        person.until("document.querySelector('#chat-error').textContent.includes('not a conversation')")

        # A model without a chat template continues a text.
        page.click("#reset")
        page.select_option("#model", "base")
        person.check("continues your text" in page.locator("#about").text_content(), "a model without a template is not named as such")
        person.say("Once upon a time")
        person.begun()
        person.ended()
        person.check(server.bodies[-1]["prompt"] == "Once upon a time", "a text is not continued")
        person.check("system" not in json.dumps(server.bodies[-1]), "a system message is sent with a text")
        text = person.answer().text_content()
        count = len(server.bodies)
        page.press("#box", "Enter")
        person.until(lambda: len(server.bodies) > count)
        person.ended()
        person.check(server.bodies[-1]["prompt"] == "Once upon a time" + text, "a text is not continued with what came before")
        person.look("continued", whole=True)

        # Texts that are the same, of another length, and whose tokens are pieces of characters.
        page.click("#tab-compare")
        for prompt, expected in (
            ("same", "Both answers are the same: 3 tokens."),
            ("short", "Same first 2 tokens; 1 of 3 tokens differs."),
            ("pieces", "Same first 3 tokens; 1 of 5 tokens differs."),
        ):
            page.fill("#prompt", prompt)
            page.press("#prompt", "Enter")
            page.locator("#compare-send").wait_for(state="visible")
            person.check(page.locator("#summary").text_content() == expected, f"{prompt}: {page.locator('#summary').text_content()}")
        page.select_option("#side0-model", "base")
        page.press("#prompt", "Enter")
        page.locator("#compare-send").wait_for(state="visible")
        person.check(all("prompt" in body for body in server.bodies[-2:]), "a chat is compared with a continued text")
        person.check(page.locator("#summary").is_visible(), "there is no summary of continued texts")
        page.fill("#prompt", "long")
        page.press("#prompt", "Enter")
        person.until("document.querySelectorAll('.tokens > *').length > 20")
        page.keyboard.press("Escape")
        page.locator("#compare-send").wait_for(state="visible")
        person.check("stopped" in page.locator(".side .stats").first.text_content(), "a comparison is not stopped")
        person.close()
    with mock(key="secret") as (server, url):
        person = Person(browser, url, "phone", "dark", None, statuses)
        person.name = "key"
        person.shots = shots
        page = person.page
        page.wait_for_selector("#key-form")
        person.look("asked")
        person.axe("asked")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        person.until("document.querySelector('#load-error').textContent.includes('does not accept')")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("#model option", state="attached")
        person.check(not page.locator("#key-form").is_visible(), "the field for the key stays")
        person.check("secret" not in page.evaluate("JSON.stringify(localStorage)"), "the key is kept for ever")
        person.say("Hello")
        person.begun()
        person.ended()
        server.key = "another"
        person.say("a message that must stay")
        page.wait_for_selector("#key-form")
        person.check(page.input_value("#box") == "a message that must stay", "the message is lost with a wrong key")
        person.close()
    with mock(models=("student",)) as (server, url):
        person = Person(browser, url, "desktop", "dark", None)
        person.name = "one-model"
        person.shots = shots
        page = person.page
        page.click("#tab-compare")
        person.check("Only one model" in page.locator("#compare-note").text_content(), "one model is not said to be one")
        page.fill("#prompt", "short")
        page.press("#prompt", "Enter")
        page.locator("#compare-send").wait_for(state="visible")
        temperatures = sorted(body["temperature"] for body in server.bodies[-2:])
        person.check(temperatures == [0, 0.8], f"one model is not compared with itself: {temperatures}")
        person.look("compare", whole=True)
        person.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server")
    where.add_argument("--mock", action="store_true", help="an imitation of the server")
    parser.add_argument("--own-page", action="store_true", help="page.html from here in place of the server's")
    parser.add_argument("--shots", type=Path, help="folder for pictures")
    parser.add_argument("--browser", help="path of a Chromium or Chrome")
    parser.add_argument("--chat", help="model for the chat (default: the first one)")
    parser.add_argument("--pair", nargs=2, metavar="ID", help="models to compare (default: those that the page chooses)")
    parser.add_argument("--long", default="long: count from one to one thousand", help="message with a long answer")
    args = parser.parse_args()
    global OWN_PAGE
    OWN_PAGE = args.own_page
    binary = args.browser or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright, mock() as (_, imitation):
        browser = playwright.chromium.launch(executable_path=binary, args=flags)
        url = imitation if args.mock else args.url.rstrip("/")
        for screen in SCREENS:
            for scheme in ("light", "dark"):
                person = Person(browser, url, screen, scheme, args.shots)
                if args.chat:
                    person.page.select_option("#model", args.chat)
                converse(person, args.long)
                compare(person, args.pair)
                keyboard(person, args.long)
                options_of(person)
                if screen == "phone":
                    narrow(person)
                person.close()
        if args.mock:
            faults(browser, args.shots)
        browser.close()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
