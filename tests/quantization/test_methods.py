"""The solvers against the textbook recursions, and the properties that any of them promises."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laq.quantization import METHODS, Recipe, export_onnx, load, quantize, save
from laq.quantization.alphabet import Alphabet, AlphabetSpec, make_alphabet
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.calibration.patches import Patches, rows_as_patches
from laq.quantization.methods import gptq as gptq_module
from laq.quantization.methods import qronos as qronos_module
from laq.quantization.methods.cholesky import cholesky
from laq.quantization.methods.gpfq import gpfq_covariance, gpfq_residual
from laq.quantization.methods.low_rank import low_rank_factor
from laq.quantization.methods.problem import LayerProblem, RoundingRule, Settings, Solution
from laq.quantization.methods.residual import _round_vectorized, gpfq_columns, round_by_residual
from laq.quantization.methods.rtn import streamed_errors
from laq.quantization.methods.sequential import _round_block, _round_block_vectorized
from laq.quantization.methods.solve import solve
from laq.quantization.threads import Pool, worker_pool

KINDS = ("symmetric", "twos_complement", "midrise", "predecessor")
Solver = Callable[[LayerProblem, Inputs], Solution]
FORMS = (gpfq_residual, gpfq_covariance)


def gptq(problem: LayerProblem, inputs: Inputs) -> Solution:
    return gptq_module.solve(problem, inputs, Settings())


def qronos(problem: LayerProblem, inputs: Inputs) -> Solution:
    return qronos_module.solve(problem, inputs, Settings())


@pytest.fixture
def pool() -> Iterator[Pool]:
    with worker_pool() as pool:
        yield pool


def column_loop(W: Tensor, X: Tensor, X_q: Tensor, alphabet: Alphabet) -> Tensor:
    """The textbook: one column after another, the residual in full. W (N, d), X and X_q (m, d)."""
    u = torch.zeros(W.shape[0], X.shape[0], dtype=W.dtype)
    codes = torch.empty(W.shape, dtype=torch.int32)
    for t in range(W.shape[1]):
        u += W[:, t : t + 1] * X[:, t]
        energy = X_q[:, t].square().sum()
        target = (u @ X_q[:, t] / energy if energy > 0 else W[:, t])[:, None]
        codes[:, t : t + 1] = alphabet.encode(target)
        u -= alphabet.decode(codes[:, t : t + 1]) * X_q[:, t]
    return codes


def gptq_loop(W: Tensor, X_q: Tensor, alphabet: Alphabet) -> Tensor:
    """The paper's: after each column, the later weights move by the inverse Hessian's row."""
    H = X_q.T @ X_q
    H += gptq_module.DAMPING * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    W, codes = W.clone(), torch.empty(W.shape, dtype=torch.int32)
    for t in range(W.shape[1]):
        inverse = torch.linalg.inv(H[t:, t:])
        codes[:, t : t + 1] = alphabet.encode(W[:, t : t + 1])
        error = W[:, t : t + 1] - alphabet.decode(codes[:, t : t + 1])
        W[:, t:] -= error * inverse[0] / inverse[0, 0]
    return codes


def qronos_loop(W: Tensor, X: Tensor, X_q: Tensor, alphabet: Alphabet) -> Tensor:
    """The paper's alternation: round the best next weight, then solve for all the later ones."""
    H, G = X_q.T @ X_q, X.T @ X_q
    V, Q, codes = W.clone(), torch.zeros_like(W), torch.empty(W.shape, dtype=torch.int32)
    for t in range(W.shape[1]):
        rest = slice(t + 1, None)
        target = (W @ G[:, t] - Q[:, :t] @ H[:t, t] - V[:, rest] @ H[rest, t]) / H[t, t]
        codes[:, t : t + 1] = alphabet.encode(target[:, None])
        Q[:, t : t + 1] = alphabet.decode(codes[:, t : t + 1])
        if t + 1 < W.shape[1]:
            right = W @ G[:, rest] - Q[:, : t + 1] @ H[: t + 1, rest]
            V[:, rest] = torch.linalg.solve(H[rest, rest], right.T).T
    return codes


def problem(N: int, d: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(N, d, generator=generator, dtype=torch.float64)
    X = torch.randn(m, d, generator=generator, dtype=torch.float64).relu()
    return W, X, (X + 0.1 * torch.randn(m, d, generator=generator, dtype=torch.float64)).relu()


def alphabet_of(W: Tensor, kind: str = "symmetric", bits: int = 3, radius: float = 0.8) -> Alphabet:
    """Steps (N, 1) for weights (N, d)."""
    alphabet = make_alphabet(W[None], AlphabetSpec(kind, bits, radius=radius))  # type: ignore[arg-type]
    return alphabet.with_step(alphabet.step[0])


def posed(W: Tensor, alphabet: Alphabet, rule: RoundingRule | None = None) -> LayerProblem:
    return LayerProblem(W[None], alphabet.with_step(alphabet.step[None]), rule or RoundingRule())


def error(W: Tensor, Q: Tensor, X: Tensor, X_q: Tensor) -> Tensor:
    return (X @ W.T - X_q @ Q.T).square().sum(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "d", "m"), [(1, 9, 50), (7, 130, 64), (40, 300, 40), (5, 1, 8)])
def test_both_forms_equal_the_column_loop(kind: str, N: int, d: int, m: int, pool: Pool) -> None:
    W, X, X_q = problem(N, d, m)
    alphabet = alphabet_of(W, kind)
    expected = column_loop(W, X, X_q, alphabet)
    inputs = Inputs.of_rows(X[None], X_q[None], pool)
    for form in FORMS:
        solution = form(posed(W, alphabet), inputs)
        assert torch.equal(solution.codes[0], expected)
    assert expected.min() >= alphabet.low
    assert expected.max() <= alphabet.high


@pytest.mark.parametrize("gathered", [1, 600, 2000])
def test_columns_may_be_gathered_few_at_a_time(
    gathered: int, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [problem(6, 18, 40, seed) for seed in range(3)]
    W, X, X_q = (torch.stack(group) for group in zip(*parts, strict=True))
    alphabet, inputs = make_alphabet(W, AlphabetSpec(bits=3)), Inputs.of_rows(X, X_q, pool)
    assert len(list(inputs.blocks())) == 1
    expected = gpfq_residual(LayerProblem(W, alphabet), inputs)
    monkeypatch.setattr("laq.quantization.calibration.covariance._GATHERED", gathered)
    assert len(list(inputs.blocks())) == {1: 54, 600: 6, 2000: 2}[gathered]
    found = gpfq_residual(LayerProblem(W, alphabet), inputs)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.errors(), expected.errors())


def test_errors_are_the_measured_ones_up_to_what_no_code_changes(pool: Pool) -> None:
    W, X, X_q = problem(6, 70, 90)
    alphabet, inputs = alphabet_of(W), Inputs.of_rows(X[None], X_q[None], pool)
    residual, covariance = (form(posed(W, alphabet), inputs) for form in FORMS)
    measured = error(W, alphabet.decode(residual.codes[0]), X, X_q)
    torch.testing.assert_close(residual.errors()[0], measured)
    torch.testing.assert_close(covariance.errors()[0] + (X @ W.T).square().sum(0), measured)


@pytest.mark.parametrize("form", FORMS)
def test_float32_agrees_with_the_column_loop_but_for_ties(form: Solver, pool: Pool) -> None:
    W, X, X_q = (t.float() for t in problem(64, 288, 512))
    alphabet = alphabet_of(W, bits=4)
    fast = form(posed(W, alphabet), Inputs.of_rows(X[None], X_q[None], pool)).codes[0]
    slow = column_loop(W, X, X_q, alphabet)
    assert (fast == slow).double().mean() > 0.99
    errors = [error(W, alphabet.decode(codes), X, X_q).sum() for codes in (fast, slow)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_streamed_equals_at_once(form: Solver, pool: Pool) -> None:
    W, X, X_q = problem(9, 45, 200)
    cuts = [slice(0, 30), slice(30, 31), slice(31, 150), slice(150, 200)]
    chunks = [lambda c=c: rows_as_patches(X[None, c], X_q[None, c]) for c in cuts]
    streamed = Inputs(chunks, [c.stop - c.start for c in cuts], 1, 45, 1, pool)
    whole = Inputs.of_rows(X[None], X_q[None], pool)
    assert streamed.m == whole.m == 200
    codes = [form(posed(W, alphabet_of(W)), inputs).codes for inputs in (streamed, whole)]
    assert torch.equal(codes[0], codes[1])
    for parts, all_at_once in zip(streamed.means(), whole.means(), strict=True):
        torch.testing.assert_close(parts, all_at_once)


@pytest.mark.parametrize("solver", [*FORMS, gptq, qronos])
def test_groups_are_quantized_as_if_alone(solver: Solver, pool: Pool) -> None:
    parts = [problem(6, 18, 40, seed) for seed in range(3)]
    W, X, X_q = (torch.stack(group) for group in zip(*parts, strict=True))
    alphabet = make_alphabet(W, AlphabetSpec(bits=3))
    codes = solver(LayerProblem(W, alphabet), Inputs.of_rows(X, X_q, pool)).codes
    for g, (w, x, x_q) in enumerate(parts):
        alone = solver(posed(w, alphabet_of(w, radius=0.9)), Inputs.of_rows(x[None], x_q[None], pool))
        assert torch.equal(codes[g], alone.codes[0])
    assert codes.shape == (3, 6, 18)


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_and_qronos_equal_their_papers_recursions(kind: str, pool: Pool) -> None:
    W, X, X_q = problem(12, 80, 300)
    alphabet, inputs = alphabet_of(W, kind), Inputs.of_rows(X[None], X_q[None], pool)
    assert torch.equal(gptq(posed(W, alphabet), inputs).codes[0], gptq_loop(W, X_q, alphabet))
    ours, theirs = qronos(posed(W, alphabet), inputs).codes[0], qronos_loop(W, X, X_q, alphabet)
    assert (ours == theirs).double().mean() > 0.99  # they differ by the damping


@pytest.mark.parametrize("kind", KINDS)
def test_few_patches_give_the_same_codes_by_a_low_rank_factor(
    kind: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, X, X_q = problem(12, 300, 80)
    X_q[:, [0, 7]] = 0
    alphabet, inputs = alphabet_of(W, kind), Inputs.of_rows(X[None], X_q[None], pool)
    few = [solver(posed(W, alphabet), inputs) for solver in (gptq, qronos)]
    monkeypatch.setattr("laq.quantization.methods.low_rank._LOW", 0)
    for found, solver in zip(few, (gptq, qronos), strict=True):
        expected = solver(posed(W, alphabet), inputs)
        assert torch.equal(found.codes, expected.codes)
        assert found.flops < expected.flops
        inputs_analog = X_q if solver is gptq else X
        torch.testing.assert_close(
            found.errors()[0], error(W, alphabet.decode(found.codes[0]), inputs_analog, X_q)
        )
    assert torch.equal(few[0].codes[0], gptq_loop(W, X_q, alphabet))


def test_factors_are_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laq.quantization.methods.cholesky._PANEL", 32)
    monkeypatch.setattr("laq.quantization.methods.cholesky._TILE", 24)
    X = torch.randn(2, 150, 170, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, roots, found = torch.get_num_threads(), [], []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with worker_pool() as pool:
            roots.append(cholesky(X @ X.mT, pool).triu())
            found.append(low_rank_factor(X[:, :, :50].contiguous(), torch.ones(2, dtype=torch.float64), pool))
    torch.set_num_threads(before)
    assert torch.equal(roots[0], roots[1])
    torch.testing.assert_close(roots[0] @ roots[0].mT, X @ X.mT)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("solver", [gptq, qronos])
def test_the_errors_of_gptq_and_qronos_are_the_measured_ones_up_to_what_no_code_changes(
    solver: Solver, pool: Pool
) -> None:
    W, X, X_q = problem(6, 70, 90)
    X = X_q if solver is gptq else X
    alphabets = [alphabet_of(W, radius=radius) for radius in (0.5, 0.9)]
    inputs = Inputs.of_rows(X[None], X_q[None], pool)
    solutions = [solver(posed(W, alphabet), inputs) for alphabet in alphabets]
    one, other = (
        error(W, alphabet.decode(solution.codes[0]), X, X_q)
        for alphabet, solution in zip(alphabets, solutions, strict=True)
    )
    torch.testing.assert_close(
        solutions[0].errors()[0] - solutions[1].errors()[0], one - other, rtol=1e-3, atol=0
    )
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_better_the_method_the_smaller_the_error(bits: int, pool: Pool) -> None:
    W, X, X_q = problem(32, 144, 500)
    alphabet = alphabet_of(W, bits=bits, radius=1.0)
    inputs = Inputs.of_rows(X[None], X_q[None], pool)
    codes = [alphabet.encode(W)] + [s(posed(W, alphabet), inputs).codes[0] for s in (gpfq_residual, qronos)]
    rounded, greedy, diffused = (error(W, alphabet.decode(c), X, X_q).sum() for c in codes)
    assert 0 < diffused < greedy < rounded


@pytest.mark.parametrize("solver", [*FORMS, gptq, qronos])
def test_a_fine_alphabet_gives_the_weights_back(solver: Solver, pool: Pool) -> None:
    W, X, _ = problem(4, 30, 60)
    alphabet = alphabet_of(W, bits=24, radius=1.01)
    codes = solver(posed(W, alphabet), Inputs.of_rows(X[None], X[None], pool)).codes[0]
    assert (alphabet.decode(codes) - W).abs().max() <= 50 * alphabet.step.max()
    assert (alphabet.decode(alphabet.encode(W)) - W).abs().max() <= alphabet.step.max() / 2


@pytest.mark.parametrize("solver", [*FORMS, gptq, qronos])
def test_dead_input_columns_do_no_harm(solver: Solver, pool: Pool) -> None:
    W, X, X_q = problem(3, 12, 20)
    X_q[:, [0, 5]] = 0
    alphabet = alphabet_of(W, bits=4)
    codes = solver(posed(W, alphabet), Inputs.of_rows(X[None], X_q[None], pool)).codes[0]
    assert codes.min() >= alphabet.low
    assert codes.max() <= alphabet.high
    assert torch.equal(codes[:, [0, 5]], alphabet.encode(W)[:, [0, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 60), (100, 20)], ids=["many patches", "few patches"])
@pytest.mark.parametrize("kind", ["symmetric", "midrise"])
@pytest.mark.parametrize("solver", [*FORMS, gptq, qronos])
def test_a_group_without_any_input_is_rounded_to_nearest_and_the_others_as_if_alone(
    solver: Solver, kind: str, shape: tuple[int, int], dtype: torch.dtype, pool: Pool
) -> None:
    parts = [tuple(t.to(dtype) for t in problem(6, *shape, seed)) for seed in range(3)]
    parts[1][2].zero_()
    W, X, X_q = (torch.stack(group) for group in zip(*parts, strict=True))
    alphabet = make_alphabet(W, AlphabetSpec(kind, bits=3, radius=0.8))  # type: ignore[arg-type]
    found = solver(LayerProblem(W, alphabet), Inputs.of_rows(X, X_q, pool))
    assert torch.equal(found.codes[1], alphabet.encode(W)[1])
    assert torch.isfinite(found.errors()).all()
    for g in (0, 2):
        w, x, x_q = parts[g]
        alone = solver(posed(w, alphabet_of(w, kind)), Inputs.of_rows(x[None], x_q[None], pool))
        assert torch.equal(found.codes[g], alone.codes[0])


@pytest.mark.parametrize("rule", ["auto", "mse", "error", 0.8])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_filter_of_zeros_stays_zero(
    method: str, kind: str, granularity: str, rule: str | float, pool: Pool
) -> None:
    parts = [problem(5, 9, 40, seed) for seed in range(2)]
    W, X, X_q = (torch.stack(group) for group in zip(*parts, strict=True))
    W[0, 3] = 0
    recipe = Recipe(3, method, kind, granularity, rule)  # type: ignore[arg-type]
    solved = solve("layer", W, Inputs.of_rows(X, X_q, pool), recipe)
    Q = solved.alphabet.decode(solved.codes)
    assert torch.isfinite(Q).all()
    assert (Q[0, 3] == 0).all()
    assert (Q[0, 2] != 0).any()
    lowest, highest = solved.codes.min(), solved.codes.max()
    assert solved.alphabet.low <= lowest < highest <= solved.alphabet.high


def test_a_filter_of_zeros_stays_zero_on_other_devices() -> None:
    W, X, X_q = problem(5, 33, 60)
    W[2] = 0
    p = posed(W, alphabet_of(W, "midrise"))
    G, H = (X.T @ X_q)[None], (X_q.T @ X_q)[None]
    codes, _ = _round_block_vectorized(p, slice(0, 33), H, p.W @ G.triu(), torch.zeros_like(p.W))
    assert (p.alphabet.decode(codes)[0, 2] == 0).all()
    assert torch.isfinite(p.alphabet.decode(codes)).all()


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_a_filter_of_zeros_is_still_zero_in_a_packed_file_and_in_onnx(
    granularity: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 4)).eval()
    network.get_submodule("0").get_parameter("weight").data[4] = 0
    images = torch.rand(4, 3, 8, 8)
    recipe = Recipe(3, "qronos", "midrise", granularity)  # type: ignore[arg-type]
    result = quantize(network, images, recipe)
    weights = result.network.get_submodule("0").get_parameter("weight")
    assert (weights[4] == 0).all()
    assert result.layers[0].sparsity == pytest.approx(1 / 6)
    save(tmp_path / "packed.safetensors", result)
    loaded = load(tmp_path / "packed.safetensors", network)
    assert torch.equal(loaded.get_submodule("0").get_parameter("weight"), weights)
    export_onnx(tmp_path / "network.onnx", result, images)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), result.network(images).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_percentile_is_zero_the_largest_weight_gives_the_radius(kind: str) -> None:
    W = torch.zeros(1, 3, 100)
    W[0, 0, 7], W[0, 1] = 0.01, torch.linspace(-1, 1, 100)
    sparse = make_alphabet(W, AlphabetSpec(kind, 4, radius=1.0, percentile=0.5))  # type: ignore[arg-type]
    full = make_alphabet(W[:, :1], AlphabetSpec(kind, 4, radius=1.0))  # type: ignore[arg-type]
    if kind != "predecessor":  # whose radius is the mean of all channels'
        torch.testing.assert_close(sparse.step[:, :1], full.step)
    assert (sparse.decode(sparse.encode(W))[0, 2] == 0).all()


@pytest.mark.parametrize("memory", [0.0, 1e5])
def test_the_error_of_rounding_is_the_same_from_few_images_at_a_time(memory: float, pool: Pool) -> None:
    parts = [problem(6, 18, 40, seed) for seed in range(3)]
    W, X, X_q = (torch.stack(group) for group in zip(*parts, strict=True))
    codes = make_alphabet(W, AlphabetSpec(bits=2)).encode(W)
    layer = LayerProblem(W, make_alphabet(W, AlphabetSpec(bits=2)))
    chunks = [lambda s=s: rows_as_patches(X[:, s], X_q[:, s]) for s in (slice(0, 25), slice(25, 40))]
    inputs = Inputs(chunks, [25, 15], 3, 18, 1, pool)
    found = streamed_errors(layer, codes, inputs, memory)
    for g, (w, x, x_q) in enumerate(parts):
        torch.testing.assert_close(found[g], error(w, layer.alphabet.decode(codes)[g], x, x_q))


def test_rounding_with_the_error_radius_keeps_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=2)).eval()
    images, recipe = torch.rand(5, 3, 12, 12), Recipe(2, "rtn", radius="error", retain_rate=0.5, batch_size=2)
    expected = quantize(network, images, recipe)

    def accumulate(*_: object, **__: object) -> None:
        raise AssertionError("covariances do not fit into the memory")

    monkeypatch.setattr(Inputs, "covariances", accumulate)
    with pytest.raises(AssertionError, match="do not fit"):
        quantize(network, images, recipe)
    found = quantize(network, images, replace(recipe, memory_gib=0))
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.alphabet.step, other.alphabet.step)


def test_stochastic_rounding_takes_a_neighbour_with_the_right_chance(pool: Pool) -> None:
    W = torch.full((400, 1), 0.3, dtype=torch.float64)
    alphabet = Alphabet(torch.ones_like(W), -3, 3)
    noise = torch.rand(1, 400, 1, generator=torch.Generator().manual_seed(0))
    X = torch.ones(1, 1, 1, dtype=torch.float64)
    inputs = Inputs.of_rows(X, X, pool)
    for form in FORMS:
        codes = form(posed(W, alphabet, RoundingRule("stochastic", noise=noise)), inputs).codes
        assert set(codes.flatten().tolist()) == {0, 1}
        assert codes.double().mean() == pytest.approx(0.3, abs=0.1)


def test_thresholds_make_zeros_and_shrink(pool: Pool) -> None:
    W, X, X_q = problem(8, 40, 100)
    alphabet, inputs = alphabet_of(W, bits=5), Inputs.of_rows(X[None], X_q[None], pool)
    zeros, sizes = {}, {}
    for kind in ("nearest", "hard", "soft"):
        codes = gpfq_residual(posed(W, alphabet, RoundingRule(kind, 2.0)), inputs).codes  # type: ignore[arg-type]
        zeros[kind], sizes[kind] = int((codes == 0).sum()), int(codes.abs().sum())
        small = codes[(codes != 0)].abs().min()
        assert small >= (2 if kind == "hard" else 1)
    assert zeros["nearest"] < min(zeros["hard"], zeros["soft"])
    assert sizes["soft"] < sizes["nearest"]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "hard", "soft"])
@pytest.mark.parametrize("kind", ["symmetric", "midrise"])
def test_sequential_rounding_on_other_devices_equals_the_compiled_one(rounding: str, kind: str) -> None:
    W, X, X_q = problem(5, 33, 60)
    G, H = (X.T @ X_q)[None], (X_q.T @ X_q)[None]
    H[:, 3], H[:, :, 3], G[:, :, 3] = 0, 0, 0
    noise = (
        torch.rand(1, 5, 33, generator=torch.Generator().manual_seed(1)) if rounding == "stochastic" else None
    )
    p = posed(W, alphabet_of(W, kind), RoundingRule(rounding, 0.7, noise))  # type: ignore[arg-type]
    for left, V in ((p.W @ G.triu(), torch.zeros_like(p.W)), (torch.zeros_like(p.W), p.W)):
        codes, errors = _round_block(p, slice(0, 33), H, left, V)
        found, found_errors = _round_block_vectorized(p, slice(0, 33), H, left, V)
        assert torch.equal(found, codes)
        assert torch.equal(found_errors, errors)
        assert len(codes.unique()) > 3


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "hard", "soft"])
@pytest.mark.parametrize("kind", ["symmetric", "midrise"])
def test_rounding_by_the_residual_on_other_devices_equals_the_compiled_one(
    rounding: str, kind: str, pool: Pool
) -> None:
    W, X, X_q = problem(7, 33, 2100)
    X_q[:, 3] = 0
    noise = (
        torch.rand(1, 7, 33, generator=torch.Generator().manual_seed(1)) if rounding == "stochastic" else None
    )
    p = posed(W, alphabet_of(W, kind), RoundingRule(rounding, 0.7, noise))  # type: ignore[arg-type]
    U, U_vectorized = torch.zeros(2, 1, 7, 2100, dtype=torch.float64)
    columns = gpfq_columns(X.T[None].contiguous(), X_q.T[None].contiguous(), pool)
    compiled = round_by_residual(p, U, columns, pool)
    assert torch.equal(_round_vectorized(p, U_vectorized, columns), compiled)
    torch.testing.assert_close(U_vectorized, U)
    assert len(compiled.unique()) > 3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_level_counts_and_reach(bits: int) -> None:
    W = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1))
    of_kind = {kind: make_alphabet(W, AlphabetSpec(kind, bits, radius=1.0)) for kind in KINDS}
    levels = {kind: alphabet.levels for kind, alphabet in of_kind.items()}
    assert levels == {
        "symmetric": 2**bits - 1,
        "twos_complement": 2**bits,
        "midrise": 2**bits,
        "predecessor": 2**bits + 1,
    }
    for kind in ("symmetric", "twos_complement", "midrise"):
        reached = of_kind[kind].decode(of_kind[kind].encode(W)).abs().amax(-1)
        torch.testing.assert_close(reached, W.abs().amax(-1))
    reach = of_kind["predecessor"].step * of_kind["predecessor"].high
    torch.testing.assert_close(reach, W.abs().amax(-1).mean().expand(2, 5, 1))
    assert not (of_kind["midrise"].decode(of_kind["midrise"].encode(W)) == 0).any()


def test_percentile_and_granularity_move_the_radius_and_zero_neurons_stay_zero() -> None:
    W = torch.randn(1, 4, 1000, generator=torch.Generator().manual_seed(2))
    W[:, 2] = 0
    full = make_alphabet(W, AlphabetSpec(bits=4))
    cut = make_alphabet(W, AlphabetSpec(bits=4, percentile=0.9))
    alive = [0, 1, 3]
    quantiles = W[:, alive].abs().quantile(0.9, -1, keepdim=True)
    torch.testing.assert_close(cut.step[:, alive] * cut.high, quantiles)
    assert (cut.step[:, alive] < full.step[:, alive]).all()
    assert (full.encode(W)[:, 2] == 0).all()
    one = make_alphabet(W, AlphabetSpec(bits=4, granularity="layer"))
    assert one.step.unique().item() * one.high == pytest.approx(W.abs().max().item())


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_radius_of_least_weight_error_beats_any_fixed_one(kind: str) -> None:
    W = torch.randn(1, 6, 500, generator=torch.Generator().manual_seed(3))

    def weight_error(radius: float | str) -> Tensor:
        alphabet = make_alphabet(W, AlphabetSpec(kind, 3, radius=radius))  # type: ignore[arg-type]
        return (alphabet.decode(alphabet.encode(W)) - W).square().sum(-1)

    best = weight_error("mse")
    for radius in (0.3, 0.5, 0.7, 1.0):
        assert (best <= weight_error(radius) + 1e-6).all()
    assert (best < weight_error(1.0)).any()


def test_patches_are_cut_by_images_in_order(pool: Pool) -> None:
    X = torch.arange(24.0).view(1, 6, 4)
    whole = rows_as_patches(X, X)
    parts = [whole.of_images(0, 2), whole.of_images(2, 6)]
    written = []
    for part in parts:
        written.append(torch.empty(1, 4, part.m))
        part.write(part.X, slice(None), slice(0, 4), written[-1])
    assert torch.equal(torch.cat(written, 2), X.mT)
    picked = Patches(
        X.mT[:, :, None, None, :, None, None],
        X.mT[:, :, None, None, :, None, None],
        (torch.tensor([1, 4]), torch.zeros(2, dtype=int), torch.zeros(2, dtype=int)),
    )
    out = torch.empty(1, 4, 2)
    picked.write(picked.X, slice(None), slice(0, 4), out)
    assert torch.equal(out, X[:, [1, 4]].mT)
    assert picked.of_images(0, 3).m == 1
