"""What GPUs can do, draw and cost, by name, each number with where it comes from.

Knows sheets, not models: roofline.py makes times of them. A number for which no source was found is None, and what
needs it says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from twinpool.router.power import PowerForm


class UnknownNumber(ValueError):
    """A sheet lacks a number that was asked for."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Rates are peaks of the sheet; links count one direction."""

    name: str
    flops_per_s: float | None  # dense bf16 with tensor cores, no sparsity
    memory_bytes: int
    memory_bytes_per_s: float
    peer_bytes_per_s: float  # to the other GPUs of its node: NVLink, xGMI, or PCIe where there is neither
    nic_bytes_per_s: float | None  # its share of the node's network
    tdp_w: float | None
    idle_w: float | None  # with a model loaded
    prefill_w: float | None  # in full prefill steps
    decode_w: float | None  # in decode steps
    price_per_hour: float | None  # US dollars

    def known(self, name: str) -> float:
        """A number of the sheet.

        Raises:
            UnknownNumber: it is None.
        """
        value: float | None = getattr(self, name)
        if value is None:
            raise UnknownNumber(f"{self.name}: its {name} is not known")
        return value


# Sources, by letter:
# [S] Splitwise (ISCA'24): tables I and IV for bandwidth, power and the price of a machine; [SS] its simulator's own
#     constants (ConstantPowerModel's idle, prompt and token watts; notebooks' dollars per GPU-hour).
# [G] GenZ (arXiv 2406.01698), Systems/system_configs.py, which copies the vendors' data sheets.
# [N] NVIDIA's data sheet of that GPU (A100 80GB SXM, H100 SXM, H200 SXM, L4, L40S) or, for the B200, of HGX B200 at
#     1000 W; figures with sparsity halved, NVLink's and PCIe's bidirectional figures halved.
# [A] AMD's data sheet of the Instinct MI300X; 7 Infinity Fabric links, 896 GB/s in both directions.
# [U] NVIDIA DGX B200 user guide, "Hardware Overview": 1,440 GB for 8 GPUs, 8 ConnectX-7 of 400 Gb/s.
# [E] Serial Alice "GPU Energy Benchmark", June 2026, measured with vLLM: H200 80.3 W idle, 592.8 W at most, 516.9 W at
#     batch 128.
# [P1] Amazon EC2 Capacity Blocks, list valid until 2025-01-01, US East (Ohio): p5e, 8 H200, $43.26/h, 3200 Gb/s.
# [P2] spheron.network, 2026-03-19: B200 on demand $6.03/h.
# [P3] modal.com, "How much does it cost to run NVIDIA L40S GPUs", August 2025: AWS g6e, one L40S, on demand $1.861/h.
# [P4] factualminds.com, 2026-06-17: AWS g5.xlarge (one A10G), us-east-1, on demand $1.006/h.
# [P5] gpu.blog's page of the MI300X (undated): Vultr, on demand $1.85/h.
# [Z] Microsoft, "ND MI300X v5-series", 2024-05-21: 8 x 400 Gb/s InfiniBand for 8 GPUs.
# [B] baseten.co, "NVIDIA A10 vs A10G": 24 GB at 600 GB/s for both. Sources disagree on the A10G's tensor rate (70 or
#     125 TFLOP/s) and power (150 or 300 W), so these are not known here.
_SHEETS = (
    Gpu(
        "A100-80GB",
        flops_per_s=312e12,  # [N] [G]
        memory_bytes=80 * 10**9,  # [S]
        memory_bytes_per_s=2039e9,  # [S]
        peer_bytes_per_s=300e9,  # [N] 600 GB/s both ways
        nic_bytes_per_s=25e9,  # [S] section VI-A: 200 Gb/s
        tdp_w=400.0,  # [S]
        idle_w=63.0,  # [SS]
        prefill_w=400.0,  # [SS]
        decode_w=250.0,  # [SS]
        price_per_hour=2.21,  # [SS]; [S] $17.6 for a machine of 8
    ),
    Gpu(
        "H100-SXM",
        flops_per_s=989e12,  # [N] [G]
        memory_bytes=80 * 10**9,  # [S]
        memory_bytes_per_s=3352e9,  # [S]
        peer_bytes_per_s=450e9,  # [N] 900 GB/s both ways; [G]
        nic_bytes_per_s=50e9,  # [S] section VI-A: 400 Gb/s
        tdp_w=700.0,  # [S]
        idle_w=75.0,  # [SS]
        prefill_w=700.0,  # [SS]
        decode_w=380.0,  # [SS]
        price_per_hour=4.76,  # [SS]; [S] $38 for a machine of 8
    ),
    Gpu(
        "H200",
        flops_per_s=989e12,  # [N] the H100's arithmetic
        memory_bytes=141 * 10**9,  # [N]
        memory_bytes_per_s=4800e9,  # [N]
        peer_bytes_per_s=450e9,  # [N]
        nic_bytes_per_s=50e9,  # [P1] 3200 Gb/s for 8
        tdp_w=700.0,  # [N]
        idle_w=80.3,  # [E]
        prefill_w=592.8,  # [E]
        decode_w=516.9,  # [E]
        price_per_hour=5.408,  # [P1]
    ),
    Gpu(
        "B200",
        flops_per_s=2250e12,  # [N]
        memory_bytes=180 * 10**9,  # [U]
        memory_bytes_per_s=8000e9,  # [N] [G]
        peer_bytes_per_s=900e9,  # [N] 1.8 TB/s both ways; [G]
        nic_bytes_per_s=50e9,  # [U]
        tdp_w=1000.0,  # [N]
        idle_w=None,
        prefill_w=None,
        decode_w=None,
        price_per_hour=6.03,  # [P2]
    ),
    Gpu(
        "L4",
        flops_per_s=121e12,  # [N] 242 with sparsity
        memory_bytes=24 * 10**9,  # [N]
        memory_bytes_per_s=300e9,  # [N]
        peer_bytes_per_s=32e9,  # [N] PCIe gen 4 x16, 64 GB/s both ways
        nic_bytes_per_s=None,
        tdp_w=72.0,  # [N]
        idle_w=None,
        prefill_w=None,
        decode_w=None,
        price_per_hour=None,
    ),
    Gpu(
        "L40S",
        flops_per_s=362.05e12,  # [N] 733 with sparsity
        memory_bytes=48 * 10**9,  # [N]
        memory_bytes_per_s=864e9,  # [N]
        peer_bytes_per_s=32e9,  # [N] PCIe gen 4 x16, 64 GB/s both ways
        nic_bytes_per_s=None,
        tdp_w=350.0,  # [N]
        idle_w=None,
        prefill_w=None,
        decode_w=None,
        price_per_hour=1.861,  # [P3]
    ),
    Gpu(
        "A10G",
        flops_per_s=None,  # [B]
        memory_bytes=24 * 10**9,  # [B]
        memory_bytes_per_s=600e9,  # [B]
        peer_bytes_per_s=32e9,  # PCIe gen 4 x16, as above
        nic_bytes_per_s=None,
        tdp_w=None,  # [B]
        idle_w=None,
        prefill_w=None,
        decode_w=None,
        price_per_hour=1.006,  # [P4]
    ),
    Gpu(
        "MI300X",
        flops_per_s=1307.4e12,  # [A] [G]
        memory_bytes=192 * 10**9,  # [A]
        memory_bytes_per_s=5300e9,  # [A] [G]
        peer_bytes_per_s=448e9,  # [A]
        nic_bytes_per_s=50e9,  # [Z]
        tdp_w=750.0,  # [A]
        idle_w=None,
        prefill_w=None,
        decode_w=None,
        price_per_hour=1.85,  # [P5]
    ),
)
GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _SHEETS}


def power_form(gpu: Gpu, num_gpus: int, cap_share: float = 1.0) -> PowerForm | None:
    """What a worker of so many GPUs draws, or None where the sheet does not know.

    Power in prefill rises with the step's tokens from that of decoding, up to 2,048 tokens; in decoding it stays
    (Splitwise, section III-E; the A100 rows of its performance data).

    Args:
        cap_share: of the TDP, that no GPU may pass. What a cap costs in speed, `CappedForm` says.
    """
    if gpu.tdp_w is None or gpu.idle_w is None or gpu.prefill_w is None or gpu.decode_w is None:
        return None
    return PowerForm(
        idle_w=num_gpus * gpu.idle_w,
        prefill_w=num_gpus * gpu.prefill_w,
        decode_w=num_gpus * gpu.decode_w,
        prefill_least_w=num_gpus * gpu.decode_w,
        decode_least_w=num_gpus * gpu.decode_w,
        cap_w=num_gpus * gpu.tdp_w * cap_share,
    )
