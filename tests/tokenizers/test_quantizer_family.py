"""What every quantizer promises, whatever its kind, and what each is held against in vector-quantize-pytorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tokenizers.lively import enliven, noise
from tokvid.config import to_mapping
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid_tokenizers import CodecConfig, VideoCodec
from tokvid_tokenizers.quantizers import Quantizer, build_quantizer
from tokvid_tokenizers.quantizers.base import to_latents, to_vectors
from tokvid_tokenizers.quantizers.bits import bits_to_codes, codes_to_signs, entropies
from tokvid_tokenizers.quantizers.fsq import FSQConfig, ResidualFSQStage
from tokvid_tokenizers.quantizers.nearest import nearest

KINDS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "codebook_size": 24, "dim": 6},
    "vq, cosine in 4 dimensions": {"kind": "vq", "codebook_size": 24, "dim": 6, "codebook_dim": 4, "cosine": True},
    "vq by gradient": {"kind": "vq", "codebook_size": 24, "dim": 6, "update": "gradient", "kmeans_iterations": 0},
    "simvq": {"kind": "simvq", "codebook_size": 24, "dim": 6},
    "lfq": {"kind": "lfq", "codebook_size": 64},
    "lfq, projected": {"kind": "lfq", "codebook_size": 16, "dim": 6},
    "bsq": {"kind": "bsq", "codebook_size": 64},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "residual vq": {"kind": "residual", "depth": 3, "quantizer": {"kind": "vq", "codebook_size": 12, "dim": 5}},
    "residual simvq": {"kind": "residual", "depth": 2, "quantizer": {"kind": "simvq", "codebook_size": 12, "dim": 5}},
    "residual lfq": {"kind": "residual", "depth": 3, "quantizer": {"kind": "lfq", "codebook_size": 16}},
    "residual bsq": {"kind": "residual", "depth": 3, "quantizer": {"kind": "bsq", "codebook_size": 16}},
    "residual fsq": {"kind": "residual", "depth": 2, "quantizer": {"kind": "fsq", "levels": [5, 4, 3]}},
    "grouped vq": {"kind": "grouped", "groups": 2, "quantizer": {"kind": "vq", "codebook_size": 12, "dim": 3}},
    "grouped fsq": {"kind": "grouped", "groups": 3, "quantizer": {"kind": "fsq", "levels": [5, 3]}},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, seed: int = 0) -> Quantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_quantizer(KINDS[kind])


def in_use(kind: str) -> Quantizer:
    """A quantizer that has seen a batch, so that what starts from data has started."""
    quantizer = build(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        quantizer.train()(noise(4, quantizer.dim, 2, 4, 4, seed=7))
    return quantizer.eval()


@kinds
def test_codes_lie_in_range_and_stand_for_what_was_quantized(kind: str) -> None:
    quantizer = in_use(kind)
    output = quantizer(noise(2, quantizer.dim, 3, 4, 5) * 2)
    assert output.codes.shape == (2, quantizer.num_codebooks, 3, 4, 5) and output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < quantizer.codebook_size
    assert output.quantized.shape == (2, quantizer.dim, 3, 4, 5) and output.quantized.dtype == torch.float32
    # Exactly: what the decoder saw in training is what it sees of a file of codes.
    assert torch.equal(quantizer.dequantize(output.codes), output.quantized)
    assert output.loss.shape == () and output.loss.isfinite()


@kinds
def test_what_is_not_rounded_lies_where_the_codes_are(kind: str) -> None:
    quantizer = in_use(kind)
    latents = noise(2, quantizer.dim, 3, 4, 5) * 2
    unrounded, output = quantizer.unrounded(latents), quantizer(latents)
    assert unrounded.shape == output.quantized.shape
    if quantizer.num_codebooks == 1 and kind not in ("vq, cosine in 4 dimensions", "lfq, projected"):
        # Rounding is taking the nearest row; behind a projection that holds inside of it alone.
        distances = torch.cdist(to_vectors(unrounded), quantizer.codebook_vectors())
        chosen = distances.gather(1, to_vectors(output.codes))[:, 0]
        torch.testing.assert_close(chosen, distances.amin(1), atol=1e-5, rtol=1e-5)
    # What is a code's own latent loses nothing.
    error = (unrounded - output.quantized).square().mean()
    others = unrounded.flatten(2).roll(1, 2).view_as(unrounded)
    assert error < (others - output.quantized).square().mean()


@kinds
def test_the_codebooks_are_what_codes_stand_for(kind: str) -> None:
    quantizer = in_use(kind)
    books = [quantizer.codebook_vectors(book) for book in range(quantizer.num_codebooks)]
    assert all(book.shape == (quantizer.codebook_size, quantizer.dim) for book in books)
    codes = torch.randint(quantizer.codebook_size, (1, quantizer.num_codebooks, 1, 4, 4))
    expected = sum(books[k][codes[:, k]].movedim(-1, 1) for k in range(quantizer.num_codebooks))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(quantizer.dequantize(codes), expected)
    with pytest.raises(ModelError, match="does not exist"):
        quantizer.codebook_vectors(quantizer.num_codebooks)


@kinds
def test_training_reaches_the_latents_and_brings_the_codes_nearer(kind: str) -> None:
    quantizer = build(kind).train()
    latents = noise(4, quantizer.dim, 2, 4, 4).requires_grad_()
    target = noise(4, quantizer.dim, 2, 4, 4, seed=3)
    parameters = [latents, *quantizer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    errors = []
    for _ in range(60):
        output = quantizer(latents)
        error = (output.quantized - target).square().mean()
        (error + output.loss).backward()
        assert latents.grad is not None and latents.grad.isfinite().all() and latents.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(error.detach()))
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])


@kinds
def test_the_same_latents_give_the_same_codes_under_bf16_autocast(kind: str) -> None:
    quantizer = in_use(kind)
    latents = noise(2, quantizer.dim, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents)
    assert torch.equal(cast.codes, quantizer(latents).codes)
    assert cast.quantized.dtype == torch.float32


@kinds
def test_a_codec_with_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    config = CodecConfig(
        patch=4,
        channels=(8,),
        encoder_blocks=(1,),
        decoder_blocks=(1,),
        quantizer=in_use(kind).config,  # type: ignore[arg-type]
    )
    codec = enliven(VideoCodec(config))
    with torch.random.fork_rng(devices=[]):
        codec.train()(noise(2, 3, 5, 16, 16))  # what starts from data starts
    codec.eval().save_pretrained(tmp_path / "codec")
    again = VideoCodec.from_pretrained(tmp_path / "codec")
    frames = noise(1, 3, 5, 16, 16, seed=5)
    codes = codec.encode(frames)
    assert codes.shape[1] == codec.num_codebooks
    assert torch.equal(again.encode(frames), codes) and again.codec_id == codec.codec_id
    assert torch.equal(again.decode(codes), codec.decode(codes))


@kinds
def test_latents_of_another_shape_are_refused(kind: str) -> None:
    quantizer = build(kind)
    for shape in ((1, quantizer.dim + 1, 1, 2, 2), (1, quantizer.dim, 2, 2), (0, quantizer.dim, 1, 2, 2)):
        with pytest.raises(ShapeError, match="expected latents"):
            quantizer(torch.zeros(shape))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "vqq"}, "did you mean 'vq'"),
        ({"kind": "lfq", "codebook_size": 1000}, "power of two"),
        ({"kind": "lfq", "group_bits": 40}, r"\[1, 22\]"),
        ({"kind": "bsq", "entropy": float("nan")}, "entropy"),
        ({"kind": "vq", "codebook_size": 1}, "at least 2"),
        ({"kind": "vq", "decay": 1.0}, "would never move"),
        ({"kind": "vq", "restart_below": 2.0}, r"\[0, 1\]"),
        ({"kind": "residual", "depth": 0}, "at least 1"),
        ({"kind": "residual", "quantizer": {"kind": "residual"}}, "quantizer.quantizer.kind"),
        ({"kind": "residual", "quantizer": {"kind": "vq", "codebook_dim": 4}}, "one space"),
        ({"kind": "grouped", "quantizer": {"kind": "fsq", "level": [3]}}, "did you mean 'levels'"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_quantizer(config)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 20), seed=st.integers(0, 99))
def test_bits_and_codes_are_inverse(bits: int, seed: int) -> None:
    codes = torch.randint(2**bits, (50,), generator=torch.Generator().manual_seed(seed))
    signs = codes_to_signs(codes, bits)
    assert signs.shape == (50, bits) and set(signs.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(bits_to_codes(signs > 0), codes)


@settings(max_examples=25, deadline=None)
@given(t=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 4))
def test_vectors_and_latents_are_inverse(t: int, height: int, width: int) -> None:
    latents = noise(2, 5, t, height, width)
    assert torch.equal(to_latents(to_vectors(latents), latents), latents)


def test_nearest_is_nearest_in_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = noise(70, 8), noise(33, 8, seed=1)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest(vectors, codebook), expected)
    monkeypatch.setattr("tokvid_tokenizers.quantizers.nearest._STRIP_NUMBERS", 100)
    assert torch.equal(nearest(vectors, codebook), expected)


def dense_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both entropies from the whole table ``[N,2^d]``, in double precision."""
    signs = codes_to_signs(torch.arange(2 ** logits.shape[1]), logits.shape[1]).double()
    table = (logits.double() @ signs.T / 2).softmax(1)
    mean = table.mean(0)
    return torch.special.entr(table).sum(1).mean(), torch.special.entr(mean).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_entropies_are_those_of_the_whole_table(bits: int) -> None:
    logits = (noise(200, bits) * 4).requires_grad_()
    one, mean = entropies(logits, group_bits=18)
    expected_one, expected_mean = dense_entropies(logits)
    torch.testing.assert_close(one.double(), expected_one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-6)
    (ours,) = torch.autograd.grad(one - mean, logits)
    (dense,) = torch.autograd.grad(expected_one - expected_mean, logits)
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-7)


def test_the_entropy_in_groups_is_never_less() -> None:
    logits = noise(500, 10) * 30
    logits[:, 5:] = logits[:, :5]  # bits that agree: the groups do not see it
    exact, grouped = (entropies(logits, group_bits=bits)[1] for bits in (10, 5))
    assert grouped > exact + 0.5
    independent = torch.stack(torch.meshgrid(*[torch.tensor([-50.0, 50.0])] * 6, indexing="ij"), -1).view(-1, 6)
    for bits in (6, 3, 4):
        assert entropies(independent, group_bits=bits)[1] == pytest.approx(6 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_signs_agree_with_vector_quantize_pytorch(kind: str) -> None:
    settings_ = {"entropy": 0.1, "diversity": 0.7, "commitment": 0.25, "inverse_temperature": 3.0}
    ours = build_quantizer({"kind": kind, "codebook_size": 1024, **settings_}).train()
    theirs = reference.LFQ(
        codebook_size=1024,
        entropy_loss_weight=0.1,
        diversity_gamma=0.7,
        commitment_loss_weight=0.25,
        spherical=kind == "bsq",
    ).train()
    latents = noise(2, 10, 2, 8, 8)
    output = ours(latents)
    # They multiply twice the product, we squared distances: the same.
    quantized, codes, loss = theirs(latents, inv_temperature=3.0)
    assert torch.equal(output.codes[:, 0], codes.long())
    torch.testing.assert_close(output.quantized, quantized)
    # They clip probabilities at 1e-5 inside the logarithm.
    torch.testing.assert_close(output.loss, loss, rtol=0.02, atol=0.002)


def test_averaged_rows_of_a_cosine_codebook_are_on_the_sphere_again() -> None:
    config = {"kind": "vq", "codebook_size": 16, "dim": 4, "cosine": True, "kmeans_iterations": 0}
    quantizer = build_quantizer(config).eval()
    latents = noise(2, 4, 2, 3, 3)
    before = quantizer(latents)
    shorter = torch.linspace(0.3, 1.0, 16)[:, None]  # as means of rows of several steps are
    quantizer.load_state_dict({**quantizer.state_dict(), "codebook": quantizer.state_dict()["codebook"] * shorter})
    after = quantizer(latents)
    assert torch.equal(after.codes, before.codes)
    torch.testing.assert_close(after.quantized, before.quantized)
    torch.testing.assert_close(quantizer.dequantize(after.codes), before.quantized)


@pytest.mark.parametrize("cosine", [False, True])
def test_vq_learns_as_vector_quantize_pytorch_does(cosine: bool) -> None:
    ours = build_quantizer(
        {
            "kind": "vq",
            "codebook_size": 16,
            "dim": 4,
            "cosine": cosine,
            "decay": 0.8,
            "commitment": 0.25,
            "kmeans_iterations": 0,
            "restart_below": 0.0,
        }
    ).train()
    theirs = reference.VectorQuantize(
        dim=4, codebook_size=16, decay=0.8, commitment_weight=0.25, use_cosine_sim=cosine, rotation_trick=False
    ).train()
    book = theirs._codebook
    with torch.no_grad():
        ours.codebook.copy_(book.embed[0])
        ours.sums.copy_(book.embed_avg[0])
    for seed in range(5):
        latents = noise(2, 4, 2, 4, 4, seed=seed).requires_grad_()
        copy = latents.detach().clone().requires_grad_()
        output = ours(latents)
        quantized, codes, loss = theirs(copy.movedim(1, -1).flatten(1, 3))
        assert torch.equal(output.codes.flatten(1), codes)
        torch.testing.assert_close(output.loss, loss.squeeze())
        torch.testing.assert_close(output.quantized, to_latents(quantized.flatten(0, 1), latents))
        torch.testing.assert_close(ours.codebook, book.embed[0])
        weights = noise(*output.quantized.shape, seed=9)
        ((output.quantized * weights).sum() + output.loss).backward()
        ((to_latents(quantized.flatten(0, 1), latents) * weights).sum() + loss.sum()).backward()
        torch.testing.assert_close(latents.grad, copy.grad)


def test_simvq_agrees_with_vector_quantize_pytorch() -> None:
    ours = build_quantizer({"kind": "simvq", "codebook_size": 20, "dim": 4}).train()
    theirs = reference.SimVQ(dim=4, codebook_size=20, rotation_trick=False).train()
    with torch.no_grad():
        ours.frozen.copy_(theirs.frozen_codebook)
        ours.transform.weight.copy_(theirs.code_transform.weight)
    latents = noise(2, 4, 2, 4, 4)
    output = ours(latents)
    quantized, codes, loss = theirs(to_vectors(latents)[None])
    assert torch.equal(to_vectors(output.codes)[:, 0], codes[0])
    torch.testing.assert_close(to_vectors(output.quantized), quantized[0])
    torch.testing.assert_close(output.loss, loss)


def test_residual_fsq_agrees_with_vector_quantize_pytorch() -> None:
    ours = build_quantizer({"kind": "residual", "depth": 3, "quantizer": {"kind": "fsq", "levels": [8, 5, 3]}}).eval()
    theirs = reference.ResidualFSQ(levels=[8, 5, 3], num_quantizers=3).eval()
    latents = noise(2, 3, 2, 8, 8) * 2
    output = ours(latents)
    quantized, codes = theirs(latents.movedim(1, -1).flatten(1, 3))
    torch.testing.assert_close(output.quantized, to_latents(quantized.flatten(0, 1), latents), atol=1e-5, rtol=1e-5)
    assert (output.codes.flatten(2).mT == codes).float().mean() > 0.999  # a rounding boundary may be hit


@pytest.mark.parametrize("kind", ["vq", "lfq", "bsq", "fsq"])
def test_every_stage_of_a_residual_quantizer_leaves_less(kind: str) -> None:
    inner: dict[str, Any] = {
        "vq": {"kind": "vq", "codebook_size": 32, "dim": 4},
        "lfq": {"kind": "lfq", "codebook_size": 16},
        "bsq": {"kind": "bsq", "codebook_size": 16},
        "fsq": {"kind": "fsq", "levels": [5, 5, 5, 5]},
    }[kind]
    latents = noise(4, 4, 2, 8, 8)
    if kind == "bsq":
        latents = torch.nn.functional.normalize(latents, dim=1)
    errors = []
    for depth in (1, 2, 4):
        torch.manual_seed(0)
        quantizer = build_quantizer({"kind": "residual", "depth": depth, "quantizer": inner})
        for _ in range(5):
            quantizer.train()(latents)
        goal = quantizer.eval()(latents).quantized
        errors.append(float((goal - (latents.tanh() if kind == "fsq" else latents)).square().mean()))
    # FSQ bounds latents by its own tanh, which is near, not equal, to the plain one.
    assert errors[1] < 0.75 * errors[0] and (kind == "fsq" or errors[2] < 0.75 * errors[1])


@pytest.mark.parametrize("stage", [0, 1])
def test_a_later_stage_of_levels_rounds_what_is_not_rounded_too(stage: int) -> None:
    quantizer = ResidualFSQStage(FSQConfig(levels=(5, 4, 3)), stage)
    latents = noise(2, 3, 2, 4, 4) * 0.7
    distances = torch.cdist(to_vectors(quantizer.unrounded(latents)), quantizer.codebook_vectors())
    chosen = distances.gather(1, to_vectors(quantizer(latents).codes))[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), atol=1e-5, rtol=1e-5)


def test_rows_that_nothing_chooses_are_restarted_on_latents() -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(
        {"kind": "vq", "codebook_size": 64, "dim": 4, "kmeans_iterations": 0, "decay": 0.5, "restart_below": 0.1}
    ).train()
    with torch.no_grad():
        quantizer.codebook.add_(100.0)  # all but one lie where no latent ever is nearest
    latents = noise(4, 4, 2, 8, 8)
    used = []
    for _ in range(12):
        output = quantizer(latents)
        used.append(len(output.codes.unique()))
    assert used[0] < 8 and used[-1] > 40
    assert output.stats["restarted"] < 10


def test_a_codebook_starts_on_the_latents() -> None:
    torch.manual_seed(0)
    latents = noise(4, 4, 2, 8, 8) * 0.01 + 5  # far from any random codebook
    quantizer = build_quantizer({"kind": "vq", "codebook_size": 64, "dim": 4}).train()
    output = quantizer(latents)
    assert len(output.codes.unique()) > 55
    assert (output.quantized - latents).abs().max() < 0.02
    assert quantizer.started and to_mapping(quantizer.config)["kind"] == "vq"


def test_what_is_learned_by_averages_does_not_move_in_evaluation() -> None:
    quantizer = in_use("vq")
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer(noise(2, 6, 2, 4, 4, seed=11))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
