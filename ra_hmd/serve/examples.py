"""Examples in the OpenAPI document: what is sent to each operation, and what comes back. Tests send and check them."""

import json
from typing import Any

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAJklEQVR42mP8//8/AzbAxIADsECok7aacCHzw9fx6SBdgpFkVwEAe5AJCwlfxMIA"
    "AAAASUVORK5CYII="
)
"""A PNG of 8 × 8 pixels in base64: a red square on white."""
_MEME = {"id": "cat", "image": PICTURE, "text": "my cat on a monday"}
_VERSION = {
    "run": "stage2",
    "head_sha256": "0f2d7f4f6a1c0f5b8f6b7c0d6a1e9b2c3d4e5f60718293a4b5c6d7e8f9012345",
    "bank": {"place": "bank", "sha256": None, "version": 12},
}
_NEIGHBOUR = {
    "id": "dog-on-a-monday",
    "label": 0,
    "similarity": 0.91,
    "vote": -1.0,
    "share": 0.05,
    "source": "api",
    "note": "",
    "time": "2026-11-29T12:00:00+00:00",
}
_JUDGED = {
    "id": "cat",
    "text": "my cat on a monday",
    "text_source": "given",
    "scores": {"lrc": 0.12, "rkc": -3.2},
    "probabilities": {"lrc": 0.12, "rkc": 0.04},
    "verdicts": {"lrc": 0, "rkc": 0},
    "head": "rkc",
    "verdict": 0,
    "threshold": 0.0,
    "neighbours": [_NEIGHBOUR],
    "identical": None,
    "version": _VERSION,
}
_CHANGED = {
    "version": 13,
    "action": "add",
    "author": "ana",
    "reason": "it is only a cat",
    "time": "2026-11-29T12:00:00+00:00",
    "counts": {"added": 1},
    "restores": None,
}
_EFFECT = {
    "version": 12,
    "queries": 1000,
    "flips": [{"id": "cat-2", "before": 1, "after": 0}],
    "flip_counts": {"1 -> 0": 1},
}
_INFO = {
    "name": "ra-hmd",
    "version": "0.1.0",
    "build": None,
    "run": "stage2",
    "model": "Qwen2-VL-7B-Instruct",
    "head": "rkc",
    "heads": ["lmh", "lrc", "rkc", "krr"],
    "task": {"kind": "binary", "classes": ["not hateful", "hateful"], "flagged": ["hateful"]},
    "bank": {"place": "bank", "sha256": None, "version": 12, "rows": 8500, "changeable": True},
    "rationales": True,
    "cases": True,
    "formats": ["PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG 2000", "PPM"],
    "limits": {
        "max_bytes": 33554432,
        "max_images": 32,
        "max_pixels": 16777216,
        "max_text": 4096,
        "max_queue": 256,
        "time_limit": 30.0,
        "rate_limit": None,
    },
}
_MODERATION = {
    "id": "modr-5b0a4d7c2f",
    "model": "ra-hmd:stage2",
    "results": [
        {
            "flagged": False,
            "categories": {"hate": False},
            "category_scores": {"hate": 0.04},
            "category_applied_input_types": {"hate": ["image", "text"]},
            "needs_review": False,
            "version": _VERSION,
        }
    ],
}
_JOB = {
    "id": "5b0a4d7c2f",
    "status": "running",
    "owner": "ana",
    "cases": False,
    "sent": "2026-11-29T12:00:00+00:00",
    "started": "2026-11-29T12:00:01+00:00",
    "finished": None,
    "memes": 10000,
    "judged": 2500,
    "rejected": 3,
    "memes_per_second": 70.5,
    "seconds_left": 106.3,
    "bank_versions": [12],
    "head_sha256": _VERSION["head_sha256"],
    "error": "",
    "expires": "2026-11-30T12:00:00+00:00",
}
_ROW = {
    **{name: _NEIGHBOUR[name] for name in ("id", "label", "source", "note", "time")},
    "image_hash": "c3c3c3c3c3c3c3c3",
}
_REASON = "it is only a cat"

_CASE_ID = "18b7f2a9d1c4e6005b0a4d7c"
_CASE = {
    "case": _CASE_ID,
    "id": "cat",
    "queue": "main",
    "source": "forum",
    "state": "decided",
    "round": 1,
    "why": "requested",
    "audited": False,
    "priority": 0,
    "opinions_needed": 1,
    "caption": "my cat on a monday",
    "context": "Posted in a group about cats.",
    "verdict": 1,
    "similarity": 0.91,
    "label": 0,
    "created": "2026-11-29T12:00:00Z",
    "changed": "2026-11-29T12:01:00Z",
}
_OPINION = {
    "number": 7,
    "round": 1,
    "person": "ana",
    "action": "label",
    "label": 0,
    "reason": _REASON,
    "time": "2026-11-29T12:01:00Z",
    "state": "standing",
    "rows": {_CASE_ID: None},
    "bank_version": 13,
    "undone_by": "",
    "undone_why": "",
}
_EVENT = {
    "number": 12,
    "time": "2026-11-29T12:01:00Z",
    "person": "ana",
    "kind": "decided",
    "row": None,
    "details": {"opinion": 7, "action": "label", "label": 0, "reason": _REASON},
}
_DETAILS = {**_CASE, "result": {**_JUDGED, "verdict": 1}, "opinions": [_OPINION], "notes": [], "events": [_EVENT]}

REQUESTS: dict[str, Any] = {
    "memes_classify": {"memes": [_MEME]},
    "memes_explain": {"meme": _MEME},
    "jobs_send": {"memes": [_MEME]},
    "memes_moderate": {
        "input": [
            {"type": "text", "text": "my cat on a monday"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        ]
    },
    "bank_search": {"meme": _MEME, "k": 5},
    "bank_effect": {"add": [{**_MEME, "label": 0}]},
    "bank_add": {"memes": [{**_MEME, "label": 0, "note": "seen by two people"}], "reason": _REASON},
    "bank_remove": {"ids": ["cat"], "reason": _REASON},
    "bank_relabel": {"labels": {"cat": 0}, "reason": _REASON},
    "bank_rollback": {"version": 11, "reason": _REASON},
    "cases_add": {
        "cases": [
            {**_MEME, "key": "post-4711", "queue": "main", "source": "forum",
             "context": "Posted in a group about cats."},
        ],
    },
    "cases_appeal": {"reason": "it is only a cat"},
    "cases_decide": {"label": 0, "reason": _REASON},
    "cases_undo": {"reason": "wrong key"},
}  # fmt: skip
"""Operation id to the body of a request in JSON."""
ANSWERS: dict[str, Any] = {
    "memes_classify": {"results": [_JUDGED]},
    "memes_explain": {
        "result": _JUDGED,
        "explanation": {
            "id": "cat",
            "rationale": "The picture shows a cat, and the caption is about a Monday.",
            "prompt": "<image> …",
            "neighbours": [],
            "engine": "transformers",
            "policy_sha256": None,
            "generated": True,
        },
    },
    "memes_moderate": _MODERATION,
    "jobs_send": {**_JOB, "status": "waiting", "started": None, "judged": 0, "rejected": 0},
    "jobs_list": {"jobs": [_JOB]},
    "jobs_get": _JOB,
    "jobs_result": json.dumps(_JUDGED) + "\n",
    "bank_info": {"bank": "bank", "version": 12, "rows": 8500, "rows_per_class": [5450, 3050]},
    "bank_log": {"version": 13, "entries": [_CHANGED]},
    "bank_search": {
        "version": 12,
        "neighbours": [
            {**{name: _NEIGHBOUR[name] for name in ("id", "similarity", "label", "source", "note", "time")},
             "image_hash": "c3c3c3c3"},
        ],
    },
    "bank_rows": {"version": 12, "count": 8500, "rows": [_ROW]},
    "bank_row": {
        "id": _ROW["id"],
        "row": _ROW,
        "changes": [{**{name: _CHANGED[name] for name in ("version", "action", "author", "reason", "time")},
                     "operation": "added", "label_before": None, "label_after": 0}],
    },
    "bank_diff": {
        "first": 11,
        "last": 12,
        "count": 1,
        "kinds": {"added": 0, "removed": 0, "relabelled": 1},
        "rows": [{"kind": "relabelled", "label_before": 1, "label_after": 0,
                  **{name: value for name, value in _ROW.items() if name != "label"}}],
    },
    "bank_effect": _EFFECT,
    "bank_add": _CHANGED,
    "bank_remove": {**_CHANGED, "action": "remove", "counts": {"removed": 1}},
    "bank_relabel": {**_CHANGED, "action": "relabel", "counts": {"relabelled": 1}},
    "bank_rollback": {**_CHANGED, "action": "rollback", "restores": 11},
    "cases_add": {
        "results": [
            {"case": _CASE_ID, "new": True, "id": "cat", "queue": "main", "state": "waiting", "result": _JUDGED},
        ],
    },
    "cases_list": {"count": 1, "cases": [_CASE]},
    "cases_get": _DETAILS,
    "cases_appeal": {**_DETAILS, "state": "waiting", "round": 2, "why": "appeal", "label": None},
    "cases_decide": _DETAILS,
    "cases_undo": {**_DETAILS, "state": "waiting", "label": None, "opinions": [{**_OPINION, "state": "undone"}]},
    "service_info": _INFO,
    "service_health": {"status": "alive"},
    "service_ready": {"status": "ready", "waiting": 0},
    "service_metrics": "ra_hmd_ready 1.0\nra_hmd_queue_memes 0.0\n",
}  # fmt: skip
"""Operation id to the body of an answer of status 200."""
