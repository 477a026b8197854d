"""The work of bench_engine's decode and train parts in PyTorch, for bench/peers/run.sh: a model folder of this program, its weights
in a model written out by hand (fused query/key/value product, SDPA with grouped heads, a static key/value cache), eager and, for
the rows of COMPILED, with torch.compile too; the better counts. In bf16 decoding has bf16 weights, training has fp32 weights under
autocast, as here. The logits are compared with this program's before anything is timed.

torch_lm.py FOLDER --threads N --precision fp32|bf16 --seconds S --json OUT [--only NAME,NAME]"""
import argparse
import json
import math
import os
import statistics
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

STEPS, PACK, LENGTH = 8, 4096, 512  # as in bench_engine
SLOW = 60  # seconds after which no run is repeated
COMPILED = ("decode.b1.c512", "decode.b32.c512", f"train.p{PACK}.c{LENGTH}")


class Layer(torch.nn.Module):
    def __init__(self, c, w, i):
        super().__init__()
        p = f"model.layers.{i}."
        attn = [p + f"self_attn.{n}_proj" for n in "qkv"]
        self.heads, self.groups, self.d, self.eps = (c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["rms_norm_eps"])
        P = torch.nn.Parameter
        self.norm1, self.norm2 = P(w[p + "input_layernorm.weight"]), P(w[p + "post_attention_layernorm.weight"])
        self.qkv = P(torch.cat([w[a + ".weight"] for a in attn]))
        self.qkv_bias = P(torch.cat([w[a + ".bias"] for a in attn])) if attn[0] + ".bias" in w else None
        self.o = P(w[p + "self_attn.o_proj.weight"])
        self.gate_up = P(torch.cat([w[p + "mlp.gate_proj.weight"], w[p + "mlp.up_proj.weight"]]))
        self.down = P(w[p + "mlp.down_proj.weight"])

    def forward(self, x, cos, sin, cache, mask):
        B, T, D = x.shape
        h, g, d = self.heads, self.groups, self.d
        qkv = F.linear(F.rms_norm(x, (D,), self.norm1, self.eps), self.qkv, self.qkv_bias).view(B, T, h + 2 * g, d).transpose(1, 2)
        qk, v = qkv[:, : h + g], qkv[:, h + g :]
        half = torch.cat((-qk[..., d // 2 :], qk[..., : d // 2]), -1)
        qk = qk * cos + half * sin
        q, k = qk[:, :h], qk[:, h:]
        if cache is not None:
            keys, values, at = cache
            k, v = keys.index_copy_(2, at, k), values.index_copy_(2, at, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=cache is None, enable_gqa=h != g)
        x = x + F.linear(y.transpose(1, 2).reshape(B, T, h * d), self.o)
        gate, up = F.linear(F.rms_norm(x, (D,), self.norm2, self.eps), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Model(torch.nn.Module):
    def __init__(self, c, w):
        super().__init__()
        self.c = c
        self.embed = torch.nn.Parameter(w["model.embed_tokens.weight"])
        self.layers = torch.nn.ModuleList(Layer(c, w, i) for i in range(c["num_hidden_layers"]))
        self.norm = torch.nn.Parameter(w["model.norm.weight"])
        inverse = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        angle = torch.outer(torch.arange(4096).float(), inverse)
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos().to(self.embed.dtype))
        self.register_buffer("sin", angle.sin().to(self.embed.dtype))

    def forward(self, ids, at=None, caches=None):
        """at [1]: position of the one new token of each sequence; None: whole sequences without a cache."""
        x, mask = F.embedding(ids, self.embed), None
        if caches is None:
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        else:
            cos, sin = self.cos.index_select(0, at), self.sin.index_select(0, at)
            mask = (torch.arange(caches[0][0].shape[2]) <= at)[None, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, None if caches is None else (*caches[i], at), mask)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.c["rms_norm_eps"]), self.embed)  # tied head


def median_seconds(run, seconds):
    run()
    times, begun = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        if times and time.perf_counter() - begun > SLOW:
            break
        t = time.perf_counter()
        run()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def decode_seconds(model, forward, batch, context, seconds):
    c, length, dtype = model.c, context + STEPS, model.embed.dtype
    shape = (batch, c["num_key_value_heads"], length, c["head_dim"])
    caches = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(c["num_hidden_layers"])]
    ids = torch.randint(0, c["vocab_size"], (batch, 1))
    positions = [torch.tensor([context + s]) for s in range(STEPS)]

    def run():
        with torch.no_grad():
            for at in positions:
                forward(ids, at, caches)

    return median_seconds(run, seconds) / STEPS


def train_seconds(model, forward, precision, seconds):
    ids = torch.randint(0, model.c["vocab_size"], (PACK // LENGTH, LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(ids)[:, :-1].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return median_seconds(run, seconds)


def check(model, folder, precision):
    want = load_file(os.path.join(folder, "check.safetensors"))
    with torch.inference_mode():
        got = model(want["ids"].long()[None])[0].float()
    gap, largest = (got - want["logits"]).abs().max().item(), want["logits"].abs().max().item()
    limit = (1e-4 if precision == "fp32" else 5e-2) * largest
    if not gap <= limit or not math.isfinite(largest):
        raise SystemExit(f"torch_lm.py: logits differ by {gap:g} of {largest:g}, allowed {limit:g}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--seconds", type=float, default=1)
    p.add_argument("--json", required=True)
    p.add_argument("--only", default="", help="figures, with commas between; none: all")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    with open(os.path.join(a.folder, "config.json")) as f:
        config = json.load(f)
    weights = load_file(os.path.join(a.folder, "model.safetensors"))
    trained = Model(config, weights)
    decoded = Model(config, {k: v.bfloat16() for k, v in weights.items()}) if a.precision == "bf16" else trained
    check(decoded, a.folder, a.precision)
    works = [(f"decode.b{b}.c{c}", decoded, lambda f, b=b, c=c: b / decode_seconds(decoded, f, b, c, a.seconds))
             for c in (512, 2048) for b in (1, 8, 32, 128)]
    works.append((f"train.p{PACK}.c{LENGTH}", trained, lambda f: PACK / train_seconds(trained, f, a.precision, a.seconds)))
    if a.only:
        unknown = set(a.only.split(",")) - {name for name, _, _ in works}
        if unknown:
            raise SystemExit(f"torch_lm.py: --only: no figure {', '.join(sorted(unknown))}")
        works = [work for work in works if work[0] in a.only.split(",")]
    with open(a.json, "w") as out:
        for name, model, work in works:
            best, how = 0.0, ""
            for kind, forward in (("eager", model), ("compiled", torch.compile(model, dynamic=False))):
                if kind == "compiled" and name not in COMPILED:  # each shape takes its minute
                    continue
                try:
                    value = work(forward)
                except Exception as error:  # no compiler, say: the other way still counts, and the row says so
                    how += f" ({kind} failed: {type(error).__name__})"
                    continue
                if value > best:
                    best, how = value, kind
            print(json.dumps({"name": name, "value": best, "unit": "tokens/s", "note": f"torch {torch.__version__}, {how}"}), file=out, flush=True)


main()
