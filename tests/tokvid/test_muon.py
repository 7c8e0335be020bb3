"""Muon against torch's own optimizers, and its bookkeeping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokvid.errors import ConfigError
from tokvid.muon import Muon, muon_groups, orthogonalise
from tokvid.optimizer import AdamWConfig, MuonConfig, build_optimizer, set_learning_rate, warmup_then_linear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), size=st.sampled_from([1e-4, 1.0, 1e4]))
def test_singular_values_come_close_to_one(rows: int, columns: int, size: float) -> None:
    matrix = normal(rows, columns, seed=rows * 41 + columns) * size
    result = orthogonalise(matrix[None])[0]
    assert result.shape == matrix.shape and result.dtype == matrix.dtype
    before, values = torch.linalg.svdvals(matrix), torch.linalg.svdvals(result)
    assert values.max() < 1.25
    # Five iterations raise what began above about a hundredth of the norm.
    assert (values[before > 0.02 * before.norm()] > 0.6).all()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 24)])
def test_the_directions_stay(shape: tuple[int, int]) -> None:
    u, _, v = torch.linalg.svd(normal(*shape), full_matrices=False)
    nearest = u @ v
    matrix = u @ torch.diag(torch.linspace(0.5, 1.0, min(shape))) @ v
    cosine = torch.cosine_similarity(orthogonalise(matrix[None]).flatten(), nearest.flatten(), dim=0)
    assert cosine > 0.97


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (64, 300), (500, 40)])
def test_wide_matrices_go_through_their_gram_matrix_alone(rows: int, columns: int) -> None:
    """Of float64, which takes the plain way, the result is the same; also where singular values are tiny."""
    matrices = normal(3, rows, columns) * torch.logspace(0, -6, rows)[:, None]
    exact = orthogonalise(matrices.double(), torch.float64)
    found = orthogonalise(matrices, torch.float32)
    torch.testing.assert_close(found.double(), exact, atol=2e-3 * float(exact.abs().max()), rtol=0)
    assert torch.equal(orthogonalise(torch.zeros(1, rows, columns), torch.float32), torch.zeros(1, rows, columns))


def test_a_zero_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


@pytest.mark.parametrize("numbers", [1, 1 << 22])
def test_matrices_of_one_shape_are_updated_as_if_each_were_alone(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokvid.muon._BATCH_NUMBERS", numbers)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 2, 3, 3), (6, 4), (5, 2, 3, 3)]
    together = [nn.Parameter(normal(*shape, seed=n)) for n, shape in enumerate(shapes)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizers = [
        Muon([{"params": together}], lr=0.1),
        *(Muon([{"params": [parameter]}], lr=0.1) for parameter in alone),
    ]
    for step in range(3):
        for n, (one, other) in enumerate(zip(together, alone, strict=True)):
            one.grad = normal(*one.shape, seed=10 * step + n)
            other.grad = one.grad.clone()
        together[4].grad = alone[4].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        # In fp32 a product of a batch may add in another order than one alone.
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def run(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int = 12) -> list[Tensor]:
    """Feed seeded gradients of changing size; the parameter after every step."""
    path = []
    for step in range(steps):
        parameter.grad = normal(*parameter.shape, seed=step + 1) * (1 + step % 3)
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize("shape", [(7,), (5, 9)])
def test_the_adam_rule_is_adamw(shape: tuple[int, ...]) -> None:
    settings = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    ours, theirs = nn.Parameter(normal(*shape)), nn.Parameter(normal(*shape))
    paths = zip(
        run(ours, Muon([{"params": [ours], "rule": "adam"}], **settings)),  # type: ignore[arg-type]
        run(theirs, torch.optim.AdamW([theirs], **settings)),  # type: ignore[arg-type]
        strict=True,
    )
    for our, their in paths:
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_the_muon_rule_is_torch_muon(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokvid.muon.has_bf16", lambda device: True)  # torch's is always in bf16
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    ours, theirs = nn.Parameter(normal(*shape)), nn.Parameter(normal(*shape))
    reference = torch.optim.Muon([theirs], nesterov=True, adjust_lr_fn="original", **settings)
    paths = list(zip(run(ours, Muon([{"params": [ours]}], **settings)), run(theirs, reference), strict=True))
    # The same formula, bit by bit in torch 2.15; another version may round its bf16 at other places.
    for our, their in paths:
        moved = (their - normal(*shape)).norm()
        assert (our - their).norm() < 0.01 * moved


def test_a_convolution_counts_as_a_matrix() -> None:
    start = normal(6, 4, 3, 3)
    flat = nn.Parameter(start.flatten(1).clone())
    convolution = nn.Parameter(start.clone(memory_format=torch.channels_last))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    by_flat, by_convolution = (Muon([{"params": [p]}], **settings) for p in (flat, convolution))  # type: ignore[arg-type]
    for step in range(3):
        gradient = normal(6, 4, 3, 3, seed=step + 1)
        flat.grad, convolution.grad = gradient.flatten(1), gradient.clone(memory_format=torch.channels_last)
        by_flat.step()
        by_convolution.step()
    torch.testing.assert_close(convolution.detach().flatten(1), flat.detach(), atol=1e-5, rtol=0)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(6, 8))
    model.add_module("convolution", nn.Conv2d(8, 8, 3))
    model.add_module("norm", nn.LayerNorm(8))
    model.add_module("middle", nn.Linear(8, 8))
    model.add_module("head", nn.Linear(8, 3))
    return model


def test_groups_by_name_and_shape() -> None:
    model = small_model()
    model.get_parameter("middle.bias").requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adam = muon_groups(model, lr=0.02, adam_lr=0.003, adam_names=("stem", "head"))
    assert (muon["rule"], muon["lr"], muon["base_lr"]) == ("muon", 0.02, 0.02)
    assert (adam["rule"], adam["lr"], adam["base_lr"]) == ("adam", 0.003, 0.003)
    assert {names[p] for p in muon["params"]} == {"convolution.weight", "middle.weight"}
    assert {names[p] for p in adam["params"]} == {
        *("stem.weight", "stem.bias", "convolution.bias", "norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    only_adam = muon_groups(model, lr=0.02, adam_lr=0.003, adam_names=("",))
    assert [group["rule"] for group in only_adam] == ["adam"]


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig()])
def test_a_restored_state_goes_on_exactly(config: MuonConfig | AdamWConfig) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            set_learning_rate(optimizer, warmup_then_linear(step, warmup_steps=2, steps=10))
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = normal(*parameter.shape, seed=100 * step + index)
            optimizer.step()

    straight, begun, resumed = small_model(), small_model(), small_model()
    steps(straight, build_optimizer(config, straight, adam_names=("stem", "head")), 0, 6)
    optimizer = build_optimizer(config, begun, adam_names=("stem", "head"))
    steps(begun, optimizer, 0, 3)
    saved = optimizer.state_dict()
    restored = build_optimizer(config, resumed, adam_names=("stem", "head"))
    restored.load_state_dict(saved)
    resumed.load_state_dict(begun.state_dict())
    again = restored.state_dict()
    assert again["param_groups"] == saved["param_groups"]
    for index, state in saved["state"].items():
        assert state.keys() == again["state"][index].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(again["state"][index][k])) for k, v in state.items())
    steps(resumed, restored, 3, 6)
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_a_parameter_without_a_gradient_stays() -> None:
    model = small_model()
    optimizer = build_optimizer(MuonConfig(), model)
    before = model.get_parameter("middle.weight").detach().clone()
    model.get_parameter("stem.weight").grad = normal(8, 6)
    optimizer.step()
    assert torch.equal(model.get_parameter("middle.weight"), before)


def test_a_closure_gives_the_loss() -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([{"params": [parameter]}], lr=0.1)

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 12.0
    assert optimizer.step(None) is None
    assert parameter.square().sum() < 12


def test_what_no_rule_is_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'muon'"):
        Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "rule": "muonn"}], lr=0.1)
    with pytest.raises(ConfigError, match="rule 'adam'"):
        Muon([{"params": [nn.Parameter(torch.ones(2))]}], lr=0.1)


def test_the_schedule_rises_and_falls_linearly() -> None:
    shares = [warmup_then_linear(step, warmup_steps=3, steps=10) for step in range(10)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[3:] == pytest.approx([(10 - step) / 7 for step in range(3, 10)])
    assert warmup_then_linear(0, warmup_steps=0, steps=5) == 1.0


@pytest.mark.parametrize("native", [True, False])
def test_a_processor_without_bf16_arithmetic_computes_in_fp32(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def spy(matrices: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append(dtype)
        return orthogonalise(matrices, dtype)

    monkeypatch.setattr("tokvid.muon.has_bf16", lambda device: native)
    monkeypatch.setattr("tokvid.muon.orthogonalise", spy)
    layer = nn.Linear(6, 4, bias=False)
    optimizer = Muon([{"params": [layer.weight]}], lr=0.1)
    layer(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert seen == [torch.bfloat16 if native else torch.float32]


def test_fp32_and_bf16_find_the_same_matrix() -> None:
    matrix = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    exact, rough = orthogonalise(matrix, torch.float32), orthogonalise(matrix, torch.bfloat16)
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999
