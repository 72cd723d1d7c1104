"""A TensorBoard that serves runs, and what its microscope answers, read as a browser would."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_neurocorr.inspector.encoding import Part, unpack

PATHS = {"data server": (), "slow": ("--load_fast", "false")}


@dataclass(frozen=True)
class Answer:
    """What came back: its status, headers and body as it was sent."""

    code: int
    headers: Message
    body: bytes

    @property
    def unpacked(self) -> bytes:
        """The body as `fetch` hands it over."""
        packed = self.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(self.body) if packed else self.body

    @property
    def json(self) -> Any:
        return json.loads(self.unpacked)


@dataclass(frozen=True)
class Served:
    """A TensorBoard with our plugin."""

    address: str

    def get(self, route: str, **query: Any) -> Answer:
        """Ask for a route of the plugin, as it is written."""
        asked = f"?{urllib.parse.urlencode(query, doseq=True)}" if query else ""
        url = f"{self.address}data/plugin/neurocorr/{route}{asked}"
        request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
        try:
            with urllib.request.urlopen(request) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def runs(self, count: int = 1, steps: int = 0) -> list[dict[str, Any]]:
        """The series, once there are so many of so many steps."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.get("runs")
            found = answer.json["runs"] if answer.code == 200 else []
            if len(found) >= count and all(one["last_step"] >= steps for one in found):
                return found
            time.sleep(0.1)
        raise AssertionError(f"no {count} runs after a minute")

    def items(self, run: str, tag: str, step: int) -> list[bytes]:
        """The blobs of a tag at one step, fetched in one request."""
        index = self.get("index", run=run, tag=tag).json
        (found,) = (one for one in index["steps"] if one["step"] == step)
        return self.parts(run, tag, found["keys"])

    def parts(self, run: str, tag: str, keys: list[str]) -> list[bytes]:
        """Blobs in few requests."""
        found: list[bytes] = []
        for start in range(0, len(keys), 64):
            some = ",".join(keys[start : start + 64])
            body = self.get("parts", run=run, tag=tag, keys=some).body
            (count,) = struct.unpack_from("<I", body)
            lengths = struct.unpack_from(f"<{count}I", body, 4)
            at = 4 + 4 * count
            for length in lengths:
                found.append(body[at : at + length])
                at += length
            assert at == len(body)
        return found


def table_of(items: list[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index of a full table and its arrays and lists by name, from blobs as stored."""
    index = json.loads(gzip.decompress(items[0]))
    found: dict[str, Any] = {}
    for name, blob in zip(index["order"], items[1:], strict=True):
        about = index["parts"][name]
        if about["type"] == "json":
            found[name] = json.loads(gzip.decompress(blob))
        elif about["type"] == "image":
            found[name] = np.asarray(Image.open(io.BytesIO(blob)))
        else:
            found[name] = unpack(Part(about["type"], tuple(about["shape"]), blob))
    return index, found


def history(raw: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The head of a history and its values ``(2, V, k)``."""
    (length,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[4 : 4 + length])
    values = np.frombuffer(raw, "<f2", offset=4 + length)
    return head, values.reshape(2, len(head["steps"]), -1).astype(np.float64)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """TensorBoard over a folder, as a user starts it."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", "0", "--host", "127.0.0.1", "--reload_interval", "1", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr or ():
                lines.append(line)
                if found := re.search(r"http://\S+:\d+/", line):
                    break
            else:
                raise AssertionError(f"TensorBoard did not start: {''.join(lines)}")
            yield Served(found[0])
        finally:
            server.terminate()
