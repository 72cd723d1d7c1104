"""The tab in TensorBoard: routes that hand out what runs have stored, and the files of the page.

TensorBoard imports this when it starts, and does not start where that fails: only tensorboard,
werkzeug, numpy and the standard library are imported, never torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_neurocorr.inspector import export
from lightning_neurocorr.inspector.encoding import dumped
from lightning_neurocorr.inspector.payload import SCHEMA
from lightning_neurocorr.inspector.reading import Series, Stamped, Store
from lightning_neurocorr.inspector.static_files import TYPES, static_files
from lightning_neurocorr.inspector.writer import PLUGIN, PLUGIN_PARTS

_GZIP = b"\x1f\x8b"
_KEPT_STEPS = 2000  # summaries per tag; of the parts all are kept, as we write few
_DAY = 86_400
_MOST_KEYS = 64
_AT_ONCE = 32


class _Wrong(Exception):  # noqa: N818 -- not an error of ours: what was asked for
    """A request that cannot be answered, and the code to say so with."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class NeurocorrPlugin(base_plugin.TBPlugin):
    """The neuron microscope.

    Args:
        context: What TensorBoard hands to its plugins.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._provider = context.data_provider
        self._files = static_files()
        self._known: dict[tuple[str, str], set[str]] = {}

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Routes by path."""
        routes = {
            "runs": self._runs,
            "meta": self._meta,
            "history": self._history,
            "index": self._index,
            "part": self._part,
            "parts": self._parts,
            "export": self._export,
        }
        apps = {f"/{name}": _served(answer) for name, answer in routes.items()}
        return {**apps, "/static/*": _served(self._static)}

    def is_active(self) -> bool:
        """TensorBoard looks by itself whether a run has data under our names."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """Names that data is stored under."""
        return (PLUGIN, PLUGIN_PARTS)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Where the page begins."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Neurons", disable_reload=False
        )

    # --- routes ----------------------------------------------------------------------------------

    def _static(self, request: wrappers.Request) -> wrappers.Response:
        name = request.path.partition(f"/plugin/{PLUGIN}/static/")[2]
        content = self._files.get(name)  # never joined to a path
        if content is None:
            raise _Wrong(404, "There is no such file.")
        kind = TYPES[name.rpartition(".")[2]]
        return http_util.Respond(request, content, kind)

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        found = [series.described for series in self._store(request).series()]
        return _json(request, {"schema": SCHEMA, "runs": found})

    def _meta(self, request: wrappers.Request) -> wrappers.Response:
        series, _ = self._named(request, "meta")
        since = request.args.get("since")
        if since is not None and not since.lstrip("-").isdigit():
            raise _Wrong(400, "Expected `since` to be a step.")
        step = None if since is None else int(since)
        return _json(request, self._store(request).metas(series.run, series.meta, step))

    def _history(self, request: wrappers.Request) -> wrappers.Response:
        series, tag = self._named(request, "history")
        return _bytes(request, self._store(request).history(series.run, tag))

    def _index(self, request: wrappers.Request) -> wrappers.Response:
        series, tag = self._named(request, "blobs")
        found = self._blobs(request, series.run, tag)
        steps = [stamped._asdict() for stamped in found]
        return _json(request, {"schema": SCHEMA, "tag": tag, "steps": steps})

    def _part(self, request: wrappers.Request) -> wrappers.Response:
        (key,) = self._keys(request, [_argument(request, "key")])
        return _bytes(request, self._store(request).blob(key), expires=_lifetime(request))

    def _parts(self, request: wrappers.Request) -> wrappers.Response:
        asked = _argument(request, "keys").split(",")
        if len(asked) > _MOST_KEYS:
            raise _Wrong(400, f"Expected at most {_MOST_KEYS} `keys`, but got {len(asked)}.")
        store = self._store(request)
        keys = self._keys(request, asked)
        # The data server takes about 40 ms for each, whatever their size: it can do many at once.
        with ThreadPoolExecutor(min(len(keys), _AT_ONCE)) as pool:
            found = list(pool.map(store.blob, keys))
        head = struct.pack(f"<{len(found) + 1}I", len(found), *map(len, found))
        return _bytes(request, head + b"".join(found), expires=_lifetime(request))

    def _export(self, request: wrappers.Request) -> wrappers.Response:
        store = self._store(request)
        runs, tags = request.args.getlist("run"), request.args.getlist("tag")
        if len(runs) != len(tags):
            raise _Wrong(400, "Expected as many `run` as `tag`.")
        found = store.series()
        if runs:
            known = {(series.run, series.meta): series for series in found}
            pairs = list(zip(runs, tags, strict=True))
            if any(pair not in known for pair in pairs):
                raise _Wrong(404, "There is no such run.")
            found = [known[pair] for pair in pairs]
        page = export.page([export.stored(store, series) for series in found])
        answer = http_util.Respond(request, page, "text/html")
        answer.headers["Content-Disposition"] = 'attachment; filename="neurons.html"'
        return answer

    # --- what they share -------------------------------------------------------------------------

    def _store(self, request: wrappers.Request) -> Store:
        environ = request.environ
        experiment = plugin_util.experiment_id(environ)
        return Store(self._provider, plugin_util.context(environ), experiment)

    def _named(self, request: wrappers.Request, kind: str) -> tuple[Series, str]:
        """The series that has a tag of this kind in a run."""
        run, tag = _argument(request, "run"), _argument(request, "tag")
        for series in self._store(request).series():
            tags = {
                "meta": [series.meta],
                "history": list(series.history.values()),
                "blobs": list(series.blobs.values()),
            }[kind]
            if series.run == run and tag in tags:
                return series, tag
        raise _Wrong(404, "There is no such run, or it has no such tag.")

    def _blobs(self, request: wrappers.Request, run: str, tag: str) -> list[Stamped]:
        found = self._store(request).blobs(run, tag)
        self._known[run, tag] = {key for stamped in found for key in stamped.keys}
        return found

    def _keys(self, request: wrappers.Request, asked: Iterable[str]) -> list[str]:
        """Keys that the run's tag has: others would be an error of the server on one data path."""
        run, tag = _argument(request, "run"), _argument(request, "tag")
        wanted = list(asked)
        if not self._known.get((run, tag), set()).issuperset(wanted):
            self._named(request, "blobs")
            self._blobs(request, run, tag)
        if not self._known[run, tag].issuperset(wanted):
            raise _Wrong(400, "There is no such part.")
        return wanted


class NeurocorrLoader(base_plugin.TBLoader):
    """Makes the plugin, and has TensorBoard keep every validation."""

    def fix_flags(self, flags: Any) -> None:
        """Keep all steps of what we store, unless the user has said otherwise."""
        flags.samples_per_plugin.setdefault(PLUGIN, _KEPT_STEPS)
        flags.samples_per_plugin.setdefault(PLUGIN_PARTS, 0)

    def load(self, context: base_plugin.TBContext) -> NeurocorrPlugin:
        """The plugin."""
        return NeurocorrPlugin(context)


def _served(
    answer: Callable[[wrappers.Request], wrappers.Response],
) -> Callable[..., Any]:
    """A route; what cannot be answered is said with its code."""

    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        try:
            return answer(request)
        except _Wrong as wrong:
            code, text = wrong.code, str(wrong)
        except errors.PublicError as error:
            code, text = error.http_code, _unread(request)
        except (ValueError, KeyError):
            code, text = 400, "This cannot be read; maybe a newer version of the package wrote it."
        return http_util.Respond(request, text, "text/plain", code=code)

    return app


def _unread(request: wrappers.Request) -> str:
    """Why TensorBoard has refused: its data server (0.7.2) cannot read an escape in a key."""
    asked = [*request.args.getlist("run"), *request.args.getlist("tag")]
    if any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in asked):
        return (
            "TensorBoard's data server cannot read full tables of a run whose name has a quotation "
            "mark or a backslash. Start TensorBoard with --load_fast=false, or rename the folder."
        )
    return "TensorBoard has no such data."


def _argument(request: wrappers.Request, name: str) -> str:
    found = request.args.get(name)
    if found is None:
        raise _Wrong(400, f"Expected the parameter `{name}`.")
    return found


def _lifetime(request: wrappers.Request) -> int:
    """How long a browser may keep blobs: a run that is written again has the same keys."""
    return _DAY if request.args.get("stamp") else 0


def _json(request: wrappers.Request, value: Any) -> wrappers.Response:
    return http_util.Respond(request, dumped(value), "application/json")


def _bytes(request: wrappers.Request, data: bytes, expires: int = 0) -> wrappers.Response:
    """Bytes as they are; gzip is said to be so, and the browser unpacks it."""
    encoding = "gzip" if data.startswith(_GZIP) else None
    return http_util.Respond(request, data, _kind(data), content_encoding=encoding, expires=expires)


def _kind(data: bytes) -> str:
    """The type of an image by how it begins, never by what data says of itself."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"
