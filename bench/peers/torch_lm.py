"""The work of bench_engine's decode and train parts in PyTorch, for bench/peers/run.sh: a model folder of this program, its weights
in a model written out by hand (fused query/key/value product, SDPA with grouped heads, a static key/value cache), eager and, for
the rows of COMPILED, with torch.compile too; the better counts. On cuda decoding is also one captured graph a step, its position and
ids written before each replay, and the generate of transformers, if that is there, has rows of its own. In bf16 decoding has bf16 weights, training has fp32 weights under
autocast, as here. The logits are compared with this program's before anything is timed.

torch_lm.py FOLDER --device cpu|cuda --threads N --precision fp32|bf16 --seconds S --json OUT [--only NAME,NAME]"""
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
            mask = (torch.arange(caches[0][0].shape[2], device=at.device) <= at)[None, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, None if caches is None else (*caches[i], at), mask)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.c["rms_norm_eps"]), self.embed)  # tied head


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(work, seconds, device):
    def run():
        work()
        wait(device)

    run()
    times, begun = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        if times and time.perf_counter() - begun > SLOW:
            break
        t = time.perf_counter()
        run()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def capture(forward, batch, caches):
    """One decoding step as a CUDA graph; the function replays it for other ids and another position."""
    ids, at = torch.zeros((batch, 1), dtype=torch.long, device="cuda"), torch.zeros(1, dtype=torch.long, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            forward(ids, at, caches)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        logits = forward(ids, at, caches)

    def replay(new_ids, new_at, _):
        ids.copy_(new_ids)
        at.copy_(new_at)
        graph.replay()
        return logits

    return replay


def decode_seconds(model, forward, batch, context, seconds, graph=False):
    c, length, dtype, device = model.c, context + STEPS, model.embed.dtype, model.embed.device.type
    shape = (batch, c["num_key_value_heads"], length, c["head_dim"])
    caches = [tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)) for _ in range(c["num_hidden_layers"])]
    ids = torch.randint(0, c["vocab_size"], (batch, 1), device=device)
    positions = [torch.tensor([context + s], device=device) for s in range(STEPS)]
    step = capture(forward, batch, caches) if graph else forward

    def run():
        with torch.no_grad():
            for at in positions:
                step(ids, at, caches)

    return median_seconds(run, seconds, device) / STEPS


def train_seconds(model, forward, precision, seconds):
    device = model.embed.device.type
    ids = torch.randint(0, model.c["vocab_size"], (PACK // LENGTH, LENGTH), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def run():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(ids)[:, :-1].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return median_seconds(run, seconds, device)


def generate_rows(folder, precision, seconds):
    """transformers' generate, greedy, its prefill counted: tokens/s by batch; none without the library."""
    try:
        import transformers
    except ImportError:
        print("skipped: transformers is not here")
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).cuda()
    for batch in (1, 32):
        ids = torch.randint(0, model.config.vocab_size, (batch, 512), device="cuda")
        options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
        work = lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        yield f"generate.b{batch}.c512", batch * 64 / median_seconds(work, seconds, "cuda"), f"transformers {transformers.__version__}"


def check(model, folder, precision):
    want = load_file(os.path.join(folder, "check.safetensors"))
    with torch.inference_mode():
        got = model(want["ids"].long()[None].to(model.embed.device))[0].float().cpu()
    gap, largest = (got - want["logits"]).abs().max().item(), want["logits"].abs().max().item()
    limit = (1e-4 if precision == "fp32" else 5e-2) * largest
    if not gap <= limit or not math.isfinite(largest):
        raise SystemExit(f"torch_lm.py: logits differ by {gap:g} of {largest:g}, allowed {limit:g}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
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
    weights = {k: v.to(a.device) for k, v in load_file(os.path.join(a.folder, "model.safetensors")).items()}
    trained = Model(config, weights).to(a.device)
    decoded = Model(config, {k: v.bfloat16() for k, v in weights.items()}).to(a.device) if a.precision == "bf16" else trained
    check(decoded, a.folder, a.precision)
    works = [(f"decode.b{b}.c{c}", decoded, lambda f, graph, b=b, c=c: b / decode_seconds(decoded, f, b, c, a.seconds, graph))
             for c in (512, 2048) for b in (1, 8, 32, 128)]
    works.append((f"train.p{PACK}.c{LENGTH}", trained, lambda f, _: PACK / train_seconds(trained, f, a.precision, a.seconds)))
    if a.only:
        unknown = set(a.only.split(",")) - {name for name, _, _ in works}
        if unknown:
            raise SystemExit(f"torch_lm.py: --only: no figure {', '.join(sorted(unknown))}")
        works = [work for work in works if work[0] in a.only.split(",")]
    with open(a.json, "w") as out:
        for name, model, work in works:
            best, how = 0.0, ""
            for kind, forward in (("eager", model), ("graph", model), ("compiled", torch.compile(model, dynamic=False))):
                if kind == "graph" and (a.device == "cpu" or not name.startswith("decode")):
                    continue
                if kind == "compiled" and name not in COMPILED:  # each shape takes its minute
                    continue
                try:
                    value = work(forward, kind == "graph")
                except Exception as error:  # no compiler, say: the other way still counts, and the row says so
                    how += f" ({kind} failed: {type(error).__name__})"
                    continue
                if value > best:
                    best, how = value, kind
            print(json.dumps({"name": name, "value": best, "unit": "tokens/s", "note": f"torch {torch.__version__}, {how}"}), file=out, flush=True)
        for name, value, note in generate_rows(a.folder, a.precision, a.seconds) if a.device == "cuda" else ():
            print(json.dumps({"name": name, "value": value, "unit": "tokens/s", "note": note}), file=out, flush=True)


main()
