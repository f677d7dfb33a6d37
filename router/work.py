"""What a request costs the cluster, in the one unit in which tenants share it.

Knows no tenant and no worker.
"""

KV_TOKEN_S_PER_TOKEN = 32.0
"""Seconds that one token's KV stays on a decode worker, as dear as computing one token of a prompt on a prefill worker.

A worker that holds K tokens of KV and computes R tokens of prompts per second can give away either in a second, so the
rate is K / R: for Llama-3-8B about 450k tokens by 25k per second on an H100, 18; for a 70B over four of them, 56."""


def work_tokens(num_prefill_tokens: int, num_output_tokens: float, tpot_s: float) -> float:
    """Tokens to prefill, and the KV that is then held while so many tokens are decoded at the pace of the goal.

    The context grows by one token with each step, so o steps after p tokens hold ``o * p + o * (o - 1) / 2``
    KV-token-steps of ``tpot_s`` each. Whoever asks for a slower pace is taken to hold its KV for longer.
    """
    steps = max(0.0, num_output_tokens - 1)
    kv_token_s = tpot_s * (steps * num_prefill_tokens + steps * max(0.0, steps - 1) / 2)
    return num_prefill_tokens + kv_token_s / KV_TOKEN_S_PER_TOKEN
