"""Times the ways of kernels/linear.py to multiply, at the shapes of one model's layers. Decides nothing.

Weights are rotated, so that they come from memory as they do between a model's layers. The ways take turns, and the
fastest of several rounds is printed, as whatever else the machine does only adds time: microseconds per product.
"""

import argparse
import time
from collections.abc import Iterator

import torch

from twinpool.kernels.linear import Arithmetic, Linear, make_linear
from twinpool.model.config import load_model_config

ROTATED_BYTES = 150e6  # beyond the last level of cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dummy:qwen2.5-0.5b", help="a Hugging Face directory or dummy:SHAPE")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 32, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ways = list(Arithmetic)
    print(f"{'product':24} rows", *(f"{way:>14}" for way in ways))
    with torch.inference_mode():
        for name, outputs, inputs in products(args.model):
            weight = torch.randn(outputs, inputs).mul_(inputs**-0.5).to(getattr(torch, args.dtype))
            copies = max(1, round(ROTATED_BYTES / weight.nbytes))
            multiply = [[make_linear(weight.clone(), None, way) for _ in range(copies)] for way in ways]
            for rows in args.rows:
                times = measure(multiply, torch.randn(rows, inputs).to(weight.dtype), args.rounds)
                print(f"{name + f' {outputs}x{inputs}':24} {rows:4}", *(f"{time_us:14.0f}" for time_us in times))


def products(model: str) -> Iterator[tuple[str, int, int]]:
    """Name, outputs and inputs of each product of a layer, and of the head."""
    config = load_model_config(model)
    heads = config.num_heads * config.head_dim
    yield "qkv", heads + 2 * config.num_kv_heads * config.head_dim, config.hidden_size
    yield "output", config.hidden_size, heads
    yield "gate_up", 2 * config.intermediate_size, config.hidden_size
    yield "down", config.hidden_size, config.intermediate_size
    yield "head", config.vocab_size, config.hidden_size


def measure(multiply: list[list[Linear]], x: torch.Tensor, rounds: int) -> list[float]:
    """Least microseconds of one product, for each way; the first round only warms up."""
    times: list[list[float]] = [[] for _ in multiply]
    for _ in range(rounds + 1):
        for linears, taken in zip(multiply, times, strict=True):
            start = time.perf_counter()
            for product in linears:
                product(x)
            taken.append((time.perf_counter() - start) / len(linears) * 1e6)
    return [min(taken[1:]) for taken in times]


if __name__ == "__main__":
    main()
