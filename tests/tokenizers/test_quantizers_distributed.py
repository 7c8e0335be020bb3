"""Two processes that share a run have one codebook: that of one process with both their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tokenizers.lively import noise
from tokvid_tokenizers.quantizers import build_quantizer

CONFIGS = {
    "vq": {"kind": "vq", "codebook_size": 16, "dim": 4, "kmeans_iterations": 0, "restart_below": 0.0, "decay": 0.5},
    "lfq": {"kind": "lfq", "codebook_size": 16, "dim": 6},
}
# Each process quantizes its half; gradients are averaged as data-parallel training does.
PROCESS = """
import sys, torch, torch.distributed as dist
from safetensors.torch import save_file
from tests.tokenizers.lively import noise
from tokvid_tokenizers.quantizers import build_quantizer
rank, config, folder = int(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
quantizer = build_quantizer(config).train()
for step in range(3):
    half = noise(4, quantizer.dim, 2, 4, 4, seed=step)[2 * rank : 2 * rank + 2]
    quantizer.zero_grad()
    output = quantizer(half.requires_grad_())
    (output.loss + output.quantized.mean()).backward()
tensors = dict(quantizer.state_dict())
for name, parameter in quantizer.named_parameters():
    dist.all_reduce(parameter.grad)
    tensors["grad." + name] = parameter.grad / 2
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_two_processes_are_one(tmp_path: Path, kind: str) -> None:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(str(root / part) for part in ("", "tokenizers", "lm"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), repr(CONFIGS[kind]), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    torch.manual_seed(0)
    alone = build_quantizer(CONFIGS[kind]).train()
    for step in range(3):
        alone.zero_grad()
        output = alone(noise(4, alone.dim, 2, 4, 4, seed=step).requires_grad_())
        (output.loss + output.quantized.mean()).backward()
    expected = dict(alone.state_dict())
    expected |= {f"grad.{name}": parameter.grad for name, parameter in alone.named_parameters()}
    assert set(expected) == set(first)
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
