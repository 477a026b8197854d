"""The work of bench_ops in PyTorch, for bench/peers/run.sh: attention forward and backward by SDPA, decode attention by SDPA over
a static cache, the loss head in chunks of rows, RMSNorm with a residual, fused AdamW, at the sizes of bench_ops' shapes. Each way
is first held against float64 on a slice; then each op is timed in all its ways (SDPA's backends, eager and torch.compile), and the
fastest counts. In bf16 operands of attention and the head are bf16, as bench_ops rounds them; norms and AdamW are fp32, as there,
and norms in bf16 have rows of their own, which move half the bytes.

torch_ops.py --device cpu|cuda --threads N --precision fp32|bf16 --shape small|0.5b|1.5b|7b [--rows N] [--head-rows N] [--batch N]
             [--context N] --seconds S --json OUT [--only PART,PART: attention, decode, head, norm, adamw]"""
import argparse
import math
import os

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from torch_peer import SHAPES, Lines, median_seconds

CHUNKS = (1024, 4096)  # rows of the head whose logits stand in memory at a time; the better counts
EPS = 1e-6


def gap(got, want):
    """Length of the difference beside the length of all values."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


def hold(name, pairs, limit):
    for got, want in pairs:
        d = gap(got, want)
        if not d <= limit:
            raise SystemExit(f"torch_ops.py: {name} differs from float64 by {d:g}, allowed {limit:g}")


def leaf(*shape, dtype, device, scale=1.0):
    return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()


# ---- attention of one packed sequence ----

def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def repeated(q, k, v):  # for backends without grouped heads
    n = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), is_causal=True)


def with_backend(backend, work):
    def run(*arguments):
        with sdpa_kernel(backend):
            return work(*arguments)

    return run


def attention_ways(device):
    if device == "cpu":
        return [("sdpa", causal)]
    ways = [("sdpa", causal)]
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        for kind, work in (("grouped", causal), ("repeated", repeated)):
            ways.append((f"{backend.name.lower()}, {kind}", with_backend(backend, work)))
    return ways


def check_attention(a, heads, groups, d, limit):
    q, k, v = (leaf(1, h, 67, d, dtype=a.dtype, device=a.device) for h in (heads, groups, groups))
    dout = torch.randn(1, heads, 67, d, device=a.device).to(a.dtype)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    n = heads // groups
    score = wide[0] @ wide[1].repeat_interleave(n, 1).transpose(-1, -2) / math.sqrt(d)
    score = score.masked_fill(torch.ones(67, 67, dtype=torch.bool, device=a.device).triu(1), -math.inf)
    want = score.softmax(-1) @ wide[2].repeat_interleave(n, 1)
    want_gradients = torch.autograd.grad(want, wide, dout.double())
    good = []
    for kind, work in attention_ways(a.device):
        try:
            got = work(q, k, v)
            gradients = torch.autograd.grad(got, (q, k, v), dout)
        except RuntimeError as error:  # this build or device has not that backend
            print(f"attention, {kind}: {str(error).splitlines()[0][:100]}")
            continue
        hold(f"attention, {kind}", [(got, want), *zip(gradients, want_gradients)], limit)
        good.append((kind, work))
    return good


def attention(a, lines):
    heads, groups, d = SHAPES[a.shape][2:5]
    ways, T = check_attention(a, heads, groups, d, a.limit), a.rows
    q, k, v = (leaf(1, h, T, d, dtype=a.dtype, device=a.device) for h in (heads, groups, groups))
    dout = torch.randn(1, heads, T, d, device=a.device).to(a.dtype)
    flops = 2 * 2 * heads * d * T * ((T + 1) // 2)  # as bench_ops counts: half of the square

    def forward(work):
        with torch.no_grad():
            return median_seconds(lambda: work(q, k, v), a.seconds, a.device, a.calls)

    def backward(work):
        out = work(q, k, v)
        run = lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        return median_seconds(run, a.seconds, a.device, a.calls)

    for name, measure, products in (("attention_forward", forward, 1), ("attention_backward", backward, 2.5)):
        lines.measure(f"{name}.{a.shape}.t{T}", [(kind, lambda work=work: measure(work)) for kind, work in ways],
                      products * flops * 1e-12, "TFLOP/s")


# ---- decode attention: one query of each sequence over a static cache ----

def decode_grouped(q, k, v):  # [B, H, 1, d]
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def decode_folded(q, k, v):  # the queries of a key head as rows of one product
    B, H, _, d = q.shape
    return F.scaled_dot_product_attention(q.view(B, k.shape[1], H // k.shape[1], d), k, v).reshape(B, H, 1, d)


def decode_matmul(q, k, v):
    B, H, _, d = q.shape
    score = q.view(B, k.shape[1], H // k.shape[1], d) @ k.transpose(-1, -2) / math.sqrt(d)
    return (score.float().softmax(-1).to(q.dtype) @ v).reshape(B, H, 1, d)


def decode_ways(a):
    ways = [("sdpa, grouped", decode_grouped), ("sdpa, folded", decode_folded), ("matmul", decode_matmul)]
    if a.device == "cuda":
        ways.insert(0, ("flash, folded", with_backend(SDPBackend.FLASH_ATTENTION, decode_folded)))
        ways.insert(0, ("flash, grouped", with_backend(SDPBackend.FLASH_ATTENTION, decode_grouped)))
        ways.append(("matmul, compiled", torch.compile(decode_matmul, dynamic=False)))
    return ways


def decode(a, lines):
    heads, groups, d = SHAPES[a.shape][2:5]
    B, C = a.batch, a.context

    def arrays(batch, context):
        return [torch.randn(batch, h, n, d, device=a.device, dtype=a.dtype) for h, n in ((heads, 1), (groups, context), (groups, context))]

    q, k, v = arrays(3, 77)
    n = heads // groups
    wide_k, wide_v = (t.double().repeat_interleave(n, 1) for t in (k, v))
    want = (q.double() @ wide_k.transpose(-1, -2) / math.sqrt(d)).softmax(-1) @ wide_v
    good = []
    for kind, work in decode_ways(a):
        try:
            hold(f"decode attention, {kind}", [(work(q, k, v), want)], a.limit)
            good.append((kind, work))
        except RuntimeError as error:
            print(f"decode attention, {kind}: {str(error).splitlines()[0][:100]}")
    q, k, v = arrays(B, C)
    with torch.no_grad():
        lines.measure(f"attention_cached.c{C}.{a.shape}.t{B}",
                      [(kind, lambda work=work: median_seconds(lambda: work(q, k, v), a.seconds, a.device, a.calls)) for kind, work in good],
                      2e-9 * k.numel() * k.element_size(), "GB/s")


# ---- loss head ----

def head_chunk(h, w, ids):
    logits = F.linear(h, w).float()
    return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)


def head_logprob(h, w, ids, n, work):
    parts = [checkpoint(work, h[i : i + n], w, ids[i : i + n], use_reentrant=False) for i in range(0, h.shape[0], n)]
    return torch.cat(parts)


def head(a, lines):
    D, V, T = SHAPES[a.shape][1], SHAPES[a.shape][6], a.head_rows
    works = [("eager", head_chunk), ("compiled", torch.compile(head_chunk, dynamic=False))]
    ways = [(f"{kind}, chunks of {n} rows", n, work) for n in CHUNKS if n <= max(T, CHUNKS[0]) for kind, work in works]

    def arrays(rows, vocab):
        h, w = leaf(rows, D, dtype=a.dtype, device=a.device), leaf(vocab, D, dtype=a.dtype, device=a.device, scale=D**-0.5)
        return h, w, torch.randint(0, vocab, (rows,), device=a.device)

    h, w, ids = arrays(37, 1003)
    slope = torch.randn(37, device=a.device)
    wide_h, wide_w = (t.detach().double().requires_grad_() for t in (h, w))
    want = F.log_softmax(F.linear(wide_h, wide_w), 1).gather(1, ids[:, None])[:, 0]
    wants = (want, *torch.autograd.grad(want, (wide_h, wide_w), slope.double()))
    got = head_logprob(h, w, ids, 16, head_chunk)
    hold("loss head", zip((got, *torch.autograd.grad(got, (h, w), slope)), wants), a.limit)
    h, w, ids = arrays(T, V)
    slope = torch.randn(T, device=a.device)

    def forward(n, work):
        with torch.no_grad():
            return median_seconds(lambda: head_logprob(h, w, ids, n, work), a.seconds, a.device)

    def both(n, work):
        return median_seconds(lambda: torch.autograd.grad(head_logprob(h, w, ids, n, work), (h, w), slope), a.seconds, a.device)

    flops, names = 2e-12 * T * V * D, [f"head_forward.{a.shape}.t{T}", f"head_backward.{a.shape}.t{T}"]
    lines.measure(names[0], [(kind, lambda n=n, work=work: forward(n, work)) for kind, n, work in ways], flops, "TFLOP/s")
    lines.measure(f"loss_head.{a.shape}.t{T}", [(kind, lambda n=n, work=work: both(n, work)) for kind, n, work in ways], 4 * flops,
                  "TFLOP/s", names, ", forward and backward")


# ---- RMSNorm with a residual ----

def norm_forward(x, residual, w):
    x = x + residual
    return x, F.rms_norm(x, (x.shape[-1],), w, EPS)


def norm_plain(x, residual, w):  # for the compiler: what it fuses best
    x = x + residual
    wide = x.float()
    return x, (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype) * w


def norm(a, lines, dtype, suffix):
    D, T = SHAPES[a.shape][1], a.rows
    limit = 1e-4 if dtype == torch.float32 else 0.02
    ways = [("eager", norm_forward), ("compiled", torch.compile(norm_plain, dynamic=False))]

    def arrays(rows):
        x, residual = (torch.randn(rows, D, device=a.device).to(dtype).requires_grad_() for _ in range(2))
        return x, residual, leaf(D, dtype=dtype, device=a.device), *(torch.randn(rows, D, device=a.device).to(dtype) for _ in range(2))

    x, residual, w, dx, dy = arrays(37)
    wide = [t.detach().double().requires_grad_() for t in (x, residual, w)]
    want = norm_plain_wide(*wide)
    wants = [*want, *torch.autograd.grad(want, wide, (dx.double(), dy.double()))]
    for kind, work in (("eager", norm_forward), ("by hand", norm_plain)):
        got = work(x, residual, w)
        hold(f"norm, {kind}", zip([*got, *torch.autograd.grad(got, (x, residual, w), (dx, dy))], wants), limit)
    x, residual, w, dx, dy = arrays(T)

    def forward(work):
        with torch.no_grad():
            return median_seconds(lambda: work(x, residual, w), a.seconds, a.device, a.calls)

    def backward(work):
        out = work(x, residual, w)
        run = lambda: torch.autograd.grad(out, (x, residual, w), (dx, dy), retain_graph=True)
        return median_seconds(run, a.seconds, a.device, a.calls)

    gigabytes = 4e-9 * T * D * x.element_size()  # four arrays each
    for name, measure in (("rmsnorm_residual_forward", forward), ("rmsnorm_backward", backward)):
        lines.measure(f"{name}.{a.shape}.t{T}{suffix}", [(kind, lambda work=work: measure(work)) for kind, work in ways], gigabytes, "GB/s",
                      [f"{name}.{a.shape}.t{T}"])


def norm_plain_wide(x, residual, w):
    x = x + residual
    return x, x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


# ---- AdamW ----

def adamw(a, lines):
    D, wide = SHAPES[a.shape][1], SHAPES[a.shape][5]
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}

    def make(n, dtype, **how):
        w = torch.nn.Parameter(torch.randn(n, device=a.device, dtype=dtype))
        w.grad = torch.randn(n, device=a.device, dtype=dtype)
        return w, torch.optim.AdamW([w], **settings, **how)

    w, optimizer = make(1003, torch.float32, fused=True)
    start, g = w.detach().double().clone(), w.grad.double()
    for _ in range(2):
        optimizer.step()
    m, v, want = torch.zeros_like(g), torch.zeros_like(g), start
    for t in (1, 2):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        want = want * (1 - 1e-3 * 0.01) - 1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
    hold("AdamW", [(w, want)], 1e-4)
    n = 2 * wide * D

    def fused():
        w, optimizer = make(n, torch.float32, fused=True)
        return median_seconds(optimizer.step, a.seconds, a.device, a.calls)

    lines.measure(f"adamw.{a.shape}.t{a.rows}", [("fused", fused)], 28e-9 * n, "GB/s")


PARTS = {"attention": attention, "decode": decode, "head": head, "norm": None, "adamw": adamw}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--shape", choices=tuple(SHAPES), default="small")
    p.add_argument("--rows", type=int, default=0, help="of a pack; 0: 4096 on cuda, 512 on cpu")
    p.add_argument("--head-rows", type=int, default=0, help="of the loss head; 0: those of a pack")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--seconds", type=float, default=0.2)
    p.add_argument("--json", required=True)
    p.add_argument("--only", default="", help="parts, with commas between; none: all")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    a.dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
    a.limit = 0.02 if a.precision == "bf16" else 1e-4
    a.rows = a.rows or (4096 if a.device == "cuda" else 512)
    a.head_rows = a.head_rows or a.rows
    a.calls = 20 if a.device == "cuda" else 1  # between two waits, as bench_ops does
    torch._functorch.config.donated_buffer = False  # a compiled backward pass is run again and again
    if a.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    unknown = set(filter(None, a.only.split(","))) - set(PARTS)
    if unknown:
        raise SystemExit(f"torch_ops.py: --only: no part {', '.join(sorted(unknown))}")
    lines = Lines(a.json)
    for name, part in PARTS.items():
        if a.only and name not in a.only.split(","):
            continue
        if name == "norm":
            norm(a, lines, torch.float32, "")
            if a.precision == "bf16":
                norm(a, lines, torch.bfloat16, ".bf16")
        else:
            part(a, lines)
        if a.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
