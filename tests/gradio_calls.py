"""Client of a Gradio page without a browser: triggers events by the id of the element."""

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx

ConsoleServer = Callable[..., AbstractContextManager[httpx.Client]]


class GradioPage:
    """A session on a page.

    Args:
        client: Client of the server; it keeps the cookies.
        path: Path of the page.
        login: Name and key of the user.
    """

    def __init__(self, client: httpx.Client, path: str = "/console", login: tuple[str, str] | None = None) -> None:
        self.client, self.path, self.session = client, path, uuid.uuid4().hex[:12]
        if login is not None:
            done = client.post(f"{path}/login", data={"username": login[0], "password": login[1]})
            done.raise_for_status()
        config = client.get(f"{path}/config")
        config.raise_for_status()
        self.config = config.json()
        self._names = {one["id"]: one["props"].get("elem_id") for one in self.config["components"]}

    def upload(self, data: bytes, name: str = "meme.png") -> dict[str, Any]:
        """Send a file; returns it as a value of the component."""
        sent = self.client.post(f"{self.path}/gradio_api/upload", files={"files": (name, data)})
        sent.raise_for_status()
        return {"path": sent.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def press(self, name: str, event: str = "click", **values: Any) -> dict[str, Any]:
        """Trigger an event of the element `name`; `values` are those of its inputs by id, with `_` for `-`.

        Returns:
            Id of each output that has one → its value, or its update.

        Raises:
            RuntimeError: the page reports an error.
        """
        wired = self._wired(name, event)
        (told,) = self._told({self._join(wired, values)})
        if not told["success"]:
            raise RuntimeError(told["output"].get("error"))
        return {
            self._names[place]: value
            for place, value in zip(wired["outputs"], told["output"]["data"], strict=True)
            if self._names[place]
        }

    def press_at_once(self, name: str, times: int) -> int:
        """Click so many times without waiting for an answer; returns how often it was done."""
        wired = self._wired(name, "click")
        return sum(one["success"] for one in self._told({self._join(wired, {}) for _ in range(times)}))

    def _wired(self, name: str, event: str) -> dict[str, Any]:
        return next(
            one
            for one in self.config["dependencies"]
            if any(self._names.get(place) == name and kind == event for place, kind in one["targets"])
        )

    def _join(self, wired: dict[str, Any], values: dict[str, Any]) -> str:
        data = [values.get((self._names[place] or "").replace("-", "_")) for place in wired["inputs"]]
        body = {"data": data, "fn_index": wired["id"], "session_hash": self.session, "event_data": None}
        joined = self.client.post(f"{self.path}/gradio_api/queue/join", json=body)
        return str(joined.raise_for_status().json()["event_id"])

    def _told(self, events: set[str]) -> list[dict[str, Any]]:
        """What came of events, when all have ended."""
        address, told = f"{self.path}/gradio_api/queue/data", []
        with self.client.stream("GET", address, params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                if message["msg"] == "process_completed" and message["event_id"] in events:
                    told.append(message)
                    if len(told) == len(events):
                        return told
        raise RuntimeError("no answer came")
