"""One case per family of ops: the graph equals PyTorch on it, dtypes and shapes included."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops import Attention, Compare, Linear, Matmul

G = torch.Generator().manual_seed(0)
X = torch.randn(1, 4, 4, 4, generator=G)
V = torch.randn(2, 6, generator=G)
POSITIVE = V.abs() + 0.1
J = torch.arange(12).reshape(2, 6) - 5
I = torch.tensor([0, 2, 1, -1])  # noqa: E741
K = I % 4
M = torch.randn(4, 4, 4, 4, generator=G)

UNARY = """exp exp2 expm1 sin cos tan sinh cosh erf tanh sigmoid sign floor ceil trunc round abs
    neg square isnan isinf isfinite relu sgn positive frac"""
POSITIVE_ONLY = "sqrt rsqrt log log2 log10 log1p reciprocal"
ACTIVATIONS = """silu gelu hardswish hardsigmoid softplus logsigmoid mish elu selu celu leaky_relu
    relu6 hardtanh softsign tanhshrink softshrink hardshrink normalize rrelu"""


@pytest.mark.parametrize(
    ("names", "owner", "x"),
    [(UNARY, torch, X * 3), (POSITIVE_ONLY, torch, POSITIVE), (ACTIVATIONS, F, X * 2)],
    ids=["unary", "positive", "activations"],
)
def test_functions_of_one_tensor(agrees, names, owner, x):
    functions = [getattr(owner, name) for name in names.split()]
    agrees(lambda x: [f(x) for f in functions], x, name=names)


def inplace(x):
    y = x.clone()
    y[:, 0] = 1
    y[0] += 2
    y[1:3, 1:] = x[0:2, 1:]
    return y


CASES = {
    "activation options": (
        lambda x: (
            F.gelu(x, approximate="tanh"), F.threshold(x, 0.1, 0.2), F.glu(x, 1), F.elu(x, 0.5),
            F.softplus(x, beta=2), F.celu(x, 0.7), F.leaky_relu(x, 0.3), F.hardtanh(x, -0.5, 0.2),
        ),
        (X,),
    ),
    "prelu": (nn.Sequential(nn.PReLU(4, init=0.3), nn.PReLU()), (X,)),
    "arithmetic with numbers": (
        lambda x, j: (
            x + 1, x - 2, 2 - x, x * 3, x / 4, 1 / x, x**2, x**3, x**-2, 2**x, x**0, x + True,
            j + 1, j - 2, j * 3, j / 4, j**2, j + 1.5, j.float() ** 2,
            torch.sub(x, x * 2, alpha=2), torch.add(x, 2, alpha=3), torch.rsub(x, 3, alpha=2),
        ),
        (V, J),
    ),
    "powers": (lambda x: (x**0.5, x**-0.5, x**0.75, x**x, x.pow(torch.tensor(3.0))), (POSITIVE,)),
    "promotion": (
        lambda x, j: (x + j, j + x.double(), x * (j > 0), j * True, x + j[0, 0], j.int() + j,
                      (j > 0) + (j > 1), (j > 0) * (j > 1), j.int() / 2),
        (V, J),
    ),
    "whole division": (
        lambda x, j: (j // 2, -j // 3, j % 3, x // 0.7, x % 1.5, torch.fmod(x, 1.5), j % -2,
                      torch.div(x, 0.7, rounding_mode="trunc"),
                      torch.div(j, 2, rounding_mode="floor")),
        (V, J),
    ),
    "limits": (
        lambda x, j: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), j.clamp(1, 3), j.clamp(max=2),
                      F.relu(j),
                      torch.maximum(x, -x), torch.minimum(j, -j), x.clamp(max=torch.tensor(0.3))),
        (V, J),
    ),
    "comparison and logic": (
        lambda x, j: (x > 0, x <= -x, j == 2, j > x, x != x, j >= 1.5, (x > 0) & (x < 1),
                      (x > 0) | (j > 3), ~(x > 0), torch.logical_xor(x > 0, j > 0),
                      torch.logical_and(x, j), torch.logical_not(j), (x > 0) ^ (j > 0)),
        (V, J),
    ),
    "selection": (
        lambda x, j: (torch.where(x > 0, x, 0.0), torch.where(x > 0, 1.0, 2.0),
                      torch.where(j > 0, x, j),
                      x.masked_fill(x > 0, -1e9), x.masked_fill(j > 0, torch.tensor(-math.inf))),
        (V, J),
    ),
    "casts": (
        lambda x, j: (x.double() * 2, x.long(), x.int(), x.bool(), j.float(), j.to(torch.int32),
                      j.bool().float(), x.type_as(j), j.to(x), x.to("cpu")),
        (V, J),
    ),
    "combined": (
        lambda x: (torch.addcmul(x, x, x, value=2), torch.addcdiv(x, x, x.exp()),
                   x.lerp(x * 2, 0.3)),
        (V,),
    ),
    "sums and means": (
        lambda x: (x.sum(), x.sum(1), x.sum((0, 2), keepdim=True), x.mean(), x.mean(-1), x.mean(1),
                   x.mean((1, 3), keepdim=True), x.sum(1, dtype=torch.float64)),
        (X,),
    ),
    "extremes": (
        lambda x: (x.amax((1, 2)), x.amin(-1), x.max(), x.min(), *x.max(1),
                   *x.min(-1, keepdim=True),
                   x.argmax(1), x.argmin(), x.argmax(-1, keepdim=True)),
        (X,),
    ),
    "ties": (lambda x: (x.argmax(1), x.argmin(1), x.max(0).indices),
                        (torch.tensor([[1, 2, 2.0, 1]]),)),
    "deviations and norms": (
        lambda x: (x.std(), x.var(1), x.var(1, unbiased=False), x.std((2, 3), keepdim=True),
                   *torch.var_mean(x, 1), x.logsumexp(1), x.norm(dim=1), x.norm(),
                   x.norm(p=1, dim=2),
                   x.norm(p=math.inf, dim=(1, 2)), F.normalize(x, dim=1)),
        (X,),
    ),
    "integer reductions": (
        lambda j: (j.sum(), j.sum(1), (j > 0).sum(), j.amax(1), j.min(), (j > 0).any(),
                   (j > 0).all(1),
                   (j > 0).float().mean(), torch.count_nonzero(j, 1), j.cumsum(1),
                   (j > 0).cumsum(0)),
        (J,),
    ),
    "softmax": (
        lambda x: (x.softmax(1), x.softmax(-1), x.log_softmax(1), F.softmin(x, 2),
                   x[0, 0, 0, 0].softmax(0)),
        (X,),
    ),
    "order": (
        lambda x: (x.flip(1), x.flip((1, -1)), x.roll(1, 2), x.roll(-3), x.roll((1, 2), (1, 3)),
                   x.movedim(1, -1), x.mT, x.swapaxes(1, 2), x.permute(0, -1, 1, 2),
                   x.transpose(1, -1)),
        (X,),
    ),
    "repetition": (
        lambda x: (x.repeat(2, 1, 2, 1), x.tile(2), x.repeat_interleave(2, 1),
                   x.repeat_interleave(3),
                   x.expand(3, -1, -1, -1), x.broadcast_to(2, 4, 4, 4),
                   *torch.broadcast_tensors(x, x[:, :1])),
        (X,),
    ),
    "pieces": (
        lambda x: (x[None], x[..., -1], x[:, 1:3, ::2], x[:, :, -2:], x[:, 5:], *x.chunk(3, 1),
                   *x.split([1, 3], 1), *x.split(3, 2), *x.unbind(1), *torch.tensor_split(x, 3, 1),
                   x.narrow(1, 1, 2), x.select(2, -2), x.squeeze(), x.unflatten(1, (2, 2)),
                   x.flatten(2),
                   x.unfold(2, 3, 1)),
        (X,),
    ),
    "joins": (
        lambda x, j: (torch.cat([x, x], -1), torch.stack([x, x * 2], 1), torch.hstack([x, x]),
                      torch.vstack([x, x]), torch.cat([x, j]), torch.cat([torch.zeros(0), x])),
        (V, J),
    ),
    "differences": (
        lambda x, j: (x.diff(), x.diff(n=2, dim=1), (j > 0).diff(), j.diff(prepend=j[:, :1])),
        (V, J),
    ),
    "triangles": (lambda x: (x.tril(), x.triu(1), x.tril(-1), x[..., :3].triu(-1)), (X,)),
    "borders": (
        lambda x: (F.pad(x, (1, 2, 0, 3)), F.pad(x, (1, -1)), F.pad(x, (-1, 0, 2, -2), value=3.0),
                   F.pad(x, (1, 2, 3, 0), mode="reflect"), F.pad(x, (5, 2, 0, 1), mode="replicate"),
                   F.pad(x, (1, 2, 4, 0), mode="circular")),
        (X,),
    ),
    "assignment": (inplace, (torch.randn(4, 4, generator=G),)),
    "creation": (
        lambda x: (x + torch.zeros_like(x), x * torch.ones(2, 6), x + x.new_full((6,), 4.0),
                   x + torch.full_like(x, 2), x + torch.linspace(0, 1, 6), torch.eye(2) @ x,
                   torch.arange(0, 12, 2) * x, torch.arange(6.0) + x,
                   x + torch.empty_like(x).fill_(3)),
        (V,),
    ),
    "grids": (lambda a, b: torch.meshgrid(a, b, indexing="ij"), (torch.arange(3.0),
    torch.arange(4.0))),
    "index by one tensor": (
        lambda x, i, k: (x[i], x[:, i], x[:, :, i], x[:, [0, -1]], x.index_select(1, k), x[k[None]],
                         F.embedding(k, x[0, 0]), F.embedding(k.int(), x[0, 0], padding_idx=1)),
        (M, I, K),
    ),
    "index by several tensors": (
        lambda x, i: (x[i, i], x[:, i, i], x[i, :, i], x[:, :, i, i], x[0, i, :, i], x[[0, 1],
                      [1, 2]],
                      x[torch.arange(4), i], x[torch.arange(4)[:, None], torch.arange(4)],
                      x[torch.arange(4), :, torch.arange(4)[:, None]], x[:, i[:, None], i]),
        (M, I),
    ),
    "gather": (
        lambda x, k: (x.gather(1, k[None].expand(4, 4)), torch.take_along_dim(x, k[:, None], 1),
                      F.one_hot(k, 5)),
        (M[0, 0], K),
    ),
    "products": (
        lambda a, b: (a @ b, a[None] @ b, a[0] @ b, a @ b[:, 0], a[0] @ b[:, 0],
                      a.expand(2, 3, 4) @ b,
                      torch.addmm(b[:3], a, b, beta=2, alpha=0.5), torch.bmm(a[None], b[None]),
                      torch.baddbmm(b[None, :3], a[None], b[None]), torch.addmv(b[:3, 0],
                      a, b[:, 0]),
                      torch.outer(a[0], b[0]), torch.inner(a, a), torch.tensordot(a, b, 1),
                      torch.einsum("ik,kj->ji", a, b), torch.einsum("ij->j", a), torch.kron(a, b)),
        (M[0, 0, :3], M[0, 1]),
    ),
    "contractions": (
        lambda x: (torch.einsum("bchw,bdhw->bcd", x, x), torch.einsum("bhqd,bhkd->bhqk", x, x)),
        (M,),
    ),
    "norms": (
        lambda x: (F.instance_norm(x), F.group_norm(x, 2), F.layer_norm(x, (4, 4)),
                   F.rms_norm(x, (4,)),
                   F.group_norm(x, 2, torch.arange(4.0), torch.ones(4)), F.rms_norm(x, (4, 4),
                   eps=1e-3),
                   F.layer_norm(x, (4,), torch.arange(4.0)), F.layer_norm(x, (4,),
                   bias=torch.ones(4))),
        (X,),
    ),
    "norm layers": (
        nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4, affine=True),
                      nn.InstanceNorm2d(4, track_running_stats=True), nn.GroupNorm(2, 4)),
        (X,),
    ),
    "similarity": (lambda x: (F.cosine_similarity(x, x + 1), F.pairwise_distance(x, x + 1)), (X,)),
    "losses": (lambda x: (F.mse_loss(x, x * 2), F.l1_loss(x, x * 2), F.smooth_l1_loss(x, x * 2)),
                          (X,)),
    "attention": (
        lambda q, k: (F.scaled_dot_product_attention(q, k, k, is_causal=True),
                      F.scaled_dot_product_attention(q, k[:, :2], k[:, 2:], enable_gqa=True),
                      F.scaled_dot_product_attention(q, k, k, torch.ones(4, 4).tril().bool(),
                      scale=0.3),
                      F.scaled_dot_product_attention(q, k, k, torch.arange(16.0).reshape(4, 4)),
                      F.scaled_dot_product_attention(q[0], k[0], k[0])),
        (M, M.flip(0)),
    ),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.Identity()),
    (X,)),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), (V,)),
    "nothing": (lambda x: x.clone().detach().contiguous(), (X,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case(agrees, name):
    source, inputs = CASES[name]
    agrees(source, *inputs, name=name)


def test_whole_transformer_layers(agrees):
    x = torch.randn(2, 5, 8, generator=G)
    agrees(nn.MultiheadAttention(8, 2, batch_first=True), x, x + 1, x - 1)
    agrees(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), x, x[:, :3])


def test_a_product_with_a_weight_is_a_linear(agrees):
    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3, generator=G))
            self.b = nn.Parameter(torch.randn(3, generator=G))

        def forward(self, x):
            return x @ self.w, torch.addmm(self.b, x, self.w), (x @ self.w).T @ x

    graph = agrees(Project(), V)
    counts = [sum(isinstance(n.op, op) for n in graph.nodes()) for op in (Linear, Matmul)]
    assert counts == [3, 1]


def test_a_mask_that_hides_nothing_is_dropped(agrees):
    def attend(q, mask):
        y = F.scaled_dot_product_attention(q, q, q, torch.ones(4, 4, dtype=torch.bool))
        return F.scaled_dot_product_attention(y, y, y, mask.bool())

    graph = agrees(attend, M, torch.ones(4, 4).tril())
    assert [len(n.inputs) for n in graph.nodes() if isinstance(n.op, Attention)] == [3, 4]


def test_a_counted_index_is_a_view(agrees):
    def batched(mask):
        rows, columns = torch.arange(2)[:, None, None, None], torch.arange(6)[None, None, None]
        return mask[rows, columns]

    graph = agrees(batched, J)
    assert [n.op.kind for n in graph.nodes() if n.inputs] == ["reshape"]


def test_negative_run_time_indices_count_from_the_end(agrees):
    graph = agrees(lambda x, i: x[i], M, I, others=[(M, -1 - K)])
    assert any(isinstance(n.op, Compare) for n in graph.nodes())
    plain = agrees(lambda x, i: F.embedding(i, x), M[0, 0], K)
    assert not any(isinstance(n.op, Compare) for n in plain.nodes())


def test_pictures_of_bytes(agrees):
    picture = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8, generator=G)
    agrees(lambda x: (x.float() - 127) / 128, picture)


def test_double_precision(agrees):
    agrees(lambda x: (x.double().mean(1) * 3 + 1).sqrt(), POSITIVE, limit=1e-7)


def test_float64_scalars_keep_float32(agrees):
    graph = agrees(lambda x: x * torch.tensor(0.1, dtype=torch.float64) + 1e-3, V)
    assert {n.tensor.dtype.value for n in graph.nodes() if n.inputs} == {"float32"}
