"""Talks with `bitllama chat` at a terminal, as a person would.

    python tests/python/check_chat.py --artifact DIR [--bitllama target/release/bitllama]

A pseudo-terminal types messages, lines that continue, quoted blocks, the commands, keys for editing and history, and Ctrl-C amid an
answer. The model needs a chat template. Needs Python alone, on Unix. Exit code 1 if any check fails.
"""

import argparse
import json
import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
failed = 0


def check(what, fine, shown=""):
    global failed
    failed += not fine
    print("ok    " if fine else "FAILED", what, "" if fine else repr(shown)[-400:], flush=True)


class Terminal:
    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.seen = b""

    def until(self, pattern, seconds=120):
        """What is shown up to `pattern`; all of it if that does not come."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, ESCAPES.sub(b"", self.seen))):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            try:
                more = os.read(self.fd, 65536) if ready else b""
            except OSError:
                more = b""
            if not more:
                shown, self.seen = ESCAPES.sub(b"", self.seen), b""
                return None, shown.decode(errors="replace")
            self.seen += more
        shown = ESCAPES.sub(b"", self.seen)
        self.seen = shown[found.end():]
        return found.group(0).decode(), shown[:found.end()].decode(errors="replace")

    def type(self, text):
        os.write(self.fd, text.encode())

    def answer(self, seconds=120):
        """An answer with the line about its speed, up to the next prompt."""
        _, shown = self.until(rb"tokens/s; decode: [^\n]*\n(draft: [^\n]*\n)?", seconds)
        prompt, _ = self.until(rb"> $", 10)
        return shown, prompt

    def ends(self, seconds=10):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--bitllama", default="target/release/bitllama")
    args = parser.parse_args()
    command = [str(Path(args.bitllama).resolve()), "chat", "--artifact", args.artifact, "-n", "24"]
    with tempfile.TemporaryDirectory() as folder:
        talk(command, Path(folder))
    sys.exit(failed > 0)


def talk(command, folder):
    terminal = Terminal(command)
    prompt, shown = terminal.until(rb"> $")
    check("a prompt is shown", prompt, shown)

    terminal.type("Name a colour.\r")
    shown, prompt = terminal.answer()
    check("a message is answered, and the next prompt comes", prompt and "decode: " in shown, shown)

    terminal.type("Say\\\r")
    prompt, shown = terminal.until(rb"\.\.\. $")
    check("a backslash continues a line", prompt, shown)
    terminal.type("hello.\r")
    check("and the whole is answered", terminal.answer()[1])

    terminal.type('"""one\r')
    terminal.until(rb"\.\.\. $")
    terminal.type("\r")
    terminal.until(rb"\.\.\. $")
    terminal.type('two"""\r')
    check("a quoted block is answered", terminal.answer()[1])

    saved = folder / "saved.json"
    terminal.type(f"/save {saved}\r")
    _, shown = terminal.until(rb"messages\n> $")
    messages = json.loads(saved.read_text())
    texts = [message["content"] for message in messages if message["role"] == "user"]
    check("the conversation is saved as it was", texts == ["Name a colour.", "Say\nhello.", "one\n\ntwo"], texts)
    terminal.type(f"/save {saved}\r")
    check("a file is not replaced", terminal.until(rb"a file stands here")[0])

    terminal.type("/sisters\r")
    check("an unknown command is named", terminal.until(rb"there is no command /sisters")[0])
    terminal.type("/help\r")
    check("help lists the commands", terminal.until(rb"/reset +a new conversation")[0])
    terminal.until(rb"> $")

    # Up recalls the last line; Ctrl-U clears it; Backspace takes a letter back.
    terminal.type("\x1b[A")
    check("Up recalls the last line", terminal.until(rb"/help")[0])
    terminal.type("\x15/resett\x7f\r")
    terminal.until(rb"> $")
    terminal.type("/system Answer in one word.\r")
    terminal.until(rb"> $")
    fresh = folder / "fresh.json"
    terminal.type(f"/save {fresh}\r")
    terminal.until(rb"messages\n> $")
    roles = [message["role"] for message in json.loads(fresh.read_text())]
    check("a reset and another system message begin anew", roles == ["system"], roles)
    terminal.type(f"/load {saved}\r")
    terminal.until(rb"> $")
    terminal.type("And another?\r")
    shown, prompt = terminal.answer()
    check("a loaded conversation goes on", prompt, shown)

    terminal.type("/exit\r")
    code = terminal.ends()
    check("/exit ends with code 0", code == 0, code)

    terminal = Terminal([*command[:-1], "2000"])
    terminal.until(rb"> $")
    terminal.type("Count from one to a thousand, in words.\r")
    terminal.until(rb"\n.{20}")
    start = time.monotonic()
    terminal.type("\x03")
    _, prompt = terminal.answer(20)
    check("Ctrl-C ends an answer within two seconds, and the conversation goes on", prompt and time.monotonic() - start < 2)
    terminal.type("\x04")
    code = terminal.ends()
    check("Ctrl-D ends with code 0", code == 0, code)


if __name__ == "__main__":
    main()
