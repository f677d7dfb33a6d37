"""A small profile, as a file holds it."""

from typing import Any

LINEAR = {
    "form": "linear",
    "prefill_a_s": 0.01,
    "prefill_b_s": 0.001,
    "prefill_c_s": 0.0,
    "decode_alpha_s": 0.02,
    "decode_beta_s": 0.0,
    "decode_gamma_s": 0.003,
}
TABLE = {
    "form": "table",
    "prefill_s": {"x": [100.0, 200.0], "y": [1.0, 2.0]},
    "decode_s": {"x": [1.0, 2.0], "y": [0.1, 0.2]},
    "base_context_tokens": 100.0,
    "context_s_per_token": 0.0,
}


def kind(role: str = "prefill", **more: Any) -> dict[str, Any]:
    """One kind of workers."""
    link = {"latency_s": 0.002, "bytes_per_s": 1e9}
    return {"role": role, "kv_token_bytes": 64, "steps": LINEAR, "link": link} | more


def profile(**kinds: Any) -> dict[str, Any]:
    """A whole file; kinds by name with underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in kinds.items()} or {"prefill-tp1-pp1": kind()}
    return {"version": 1, "model": "m", "machine": "here", "dtype": "float32", "message_s": 1e-4, "kinds": named}
