"""The work of bench_engine's decode and train parts in PyTorch, for bench/peers/run.sh: a model folder of this program, its weights
in a model written out by hand (fused query/key/value product, SDPA with grouped heads, a static key/value cache), eager and, for
the rows of COMPILED, with torch.compile too; each has its line, and the fastest counts. Eager decoding attends to exactly the positions there are, without a
mask, so that SDPA can take its fastest way; on cuda its steps are also captured as one graph (a gpt-fast-style loop), and the generate
of transformers, if that is there, has rows of its own. In bf16 decoding has bf16 weights, training has fp32 weights under autocast,
as here. The logits, packed and through the cache, are compared with this program's before anything is timed.

torch_lm.py FOLDER --device cpu|cuda --threads N --precision fp32|bf16 --seconds S --json OUT [--only NAME,NAME] [--generate]
            [--shape SHAPE [--layers N]] [--pack N] [--length N]
With --shape what is timed is a model of those sizes with random weights; the folder's, whatever its size, is only compared."""
import argparse
import json
import math
import os
import re

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from torch_peer import SHAPES, Lines, median_seconds

STEPS = 8  # as in bench_engine
COMPILED = ("decode.b1.c512", "decode.b32.c512")  # and training: each shape takes its minute


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
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g)
        else:
            keys, values, at, length = cache
            k, v = keys.index_copy_(2, at, k), values.index_copy_(2, at, v)
            if length is None:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=h != g)
            else:  # the queries of a key head as rows of one product
                y = F.scaled_dot_product_attention(q.reshape(B, g, h // g, d), k[:, :, :length], v[:, :, :length]).view(B, h, 1, d)
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
        self.head = None if c["tie_word_embeddings"] else torch.nn.Parameter(w["lm_head.weight"])
        inverse = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        angle = torch.outer(torch.arange(8192).float(), inverse)
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos().to(self.embed.dtype))
        self.register_buffer("sin", angle.sin().to(self.embed.dtype))

    def forward(self, ids, at=None, caches=None, length=None):
        """at [1]: position of the one new token of each sequence; None: whole sequences without a cache. length: positions that the
        token sees; None: a mask over the whole cache says it."""
        x, mask = F.embedding(ids, self.embed), None
        if caches is None:
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        else:
            cos, sin = self.cos.index_select(0, at), self.sin.index_select(0, at)
            if length is None:
                mask = (torch.arange(caches[0][0].shape[2], device=at.device) <= at)[None, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, None if caches is None else (*caches[i], at, length), mask)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.c["rms_norm_eps"]), self.embed if self.head is None else self.head)


def random_model(shape, layers, dtype, device):
    """Of this program's fresh deviation; the layers of the shape, or so many of them."""
    n, hidden, heads, groups, d, wide, vocab, tied = SHAPES[shape]
    c = {"num_hidden_layers": layers or n, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups,
         "head_dim": d, "vocab_size": vocab, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": tied}
    std, w = 0.02 * (1024 / hidden) ** 0.5, {}

    def normal(name, *size):
        w[name] = torch.randn(*size, dtype=dtype, device=device) * std

    normal("model.embed_tokens.weight", vocab, hidden)
    if not tied:
        normal("lm_head.weight", vocab, hidden)
    w["model.norm.weight"] = torch.ones(hidden, dtype=dtype, device=device)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, rows in (("q", heads * d), ("k", groups * d), ("v", groups * d)):
            normal(f"{p}self_attn.{name}_proj.weight", rows, hidden)
            w[f"{p}self_attn.{name}_proj.bias"] = torch.zeros(rows, dtype=dtype, device=device)
        normal(f"{p}self_attn.o_proj.weight", hidden, heads * d)
        normal(f"{p}mlp.gate_proj.weight", wide, hidden)
        normal(f"{p}mlp.up_proj.weight", wide, hidden)
        normal(f"{p}mlp.down_proj.weight", hidden, wide)
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"{p}{name}.weight"] = torch.ones(hidden, dtype=dtype, device=device)
    return Model(c, w).to(device)


def make_caches(c, batch, length, like):
    shape = (batch, c["num_key_value_heads"], length, c["head_dim"])
    return [tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2)) for _ in range(c["num_hidden_layers"])]


def capture(run):
    """All of it as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def decode_seconds(model, kind, batch, context, seconds):
    c, device = model.c, model.embed.device
    with torch.no_grad():
        caches = make_caches(c, batch, context + STEPS, model.embed)
        ids = torch.randint(0, c["vocab_size"], (batch, 1), device=device)
        positions = [torch.tensor([context + s], device=device) for s in range(STEPS)]
        forward = torch.compile(model, dynamic=False) if kind == "compiled" else model

        def run():
            for s, at in enumerate(positions):
                forward(ids, at, caches, None if kind == "compiled" else context + s + 1)

        return median_seconds(capture(run) if kind == "graph" else run, seconds, device.type) / STEPS


def train_seconds(model, kind, precision, pack, length, seconds):
    device = model.embed.device.type
    ids = torch.randint(0, model.c["vocab_size"], (pack // length, length), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    forward = torch.compile(model, dynamic=False) if kind == "compiled" else model

    def run():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(ids)[:, :-1].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return median_seconds(run, seconds, device)


def generate_rows(folder, precision, seconds):
    """transformers' generate, greedy, its prefill counted: name, seconds, tokens, note; none without the library."""
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
        yield f"generate.b{batch}.c512", median_seconds(work, seconds, "cuda"), batch * 64, f"transformers {transformers.__version__}"


def check(model, folder, precision):
    want = load_file(os.path.join(folder, "check.safetensors"))
    ids = want["ids"].long().to(model.embed.device)
    with torch.inference_mode():
        packed = model(ids[None])[0].float().cpu()
        caches = make_caches(model.c, 1, len(ids), model.embed)
        steps = [model(ids[None, i : i + 1], torch.tensor([i], device=ids.device), caches, i + 1)[0, 0] for i in range(len(ids))]
        cached = torch.stack(steps).float().cpu()
    largest = want["logits"].abs().max().item()
    limit = (1e-4 if precision == "fp32" else 5e-2) * largest
    for way, got in (("packed", packed), ("cached", cached)):
        gap = (got - want["logits"]).abs().max().item()
        if not gap <= limit or not math.isfinite(largest):
            raise SystemExit(f"torch_lm.py: {way} logits differ by {gap:g} of {largest:g}, allowed {limit:g}")


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--seconds", type=float, default=1)
    p.add_argument("--json", required=True)
    p.add_argument("--only", default="", help="figures, with commas between; none: all")
    p.add_argument("--shape", choices=tuple(SHAPES), help="random weights of these sizes; none: the folder's model")
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--pack", type=int, default=4096)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--label", help="the model's name in the lines")
    p.add_argument("--generate", action="store_true", help="transformers' generate, too (cuda)")
    return p.parse_args()


def models(a):
    """(trained, decoded), after their check."""
    with open(os.path.join(a.folder, "config.json")) as f:
        config = json.load(f)
    weights = {k: v.to(a.device) for k, v in load_file(os.path.join(a.folder, "model.safetensors")).items()}
    decoded = {k: v.bfloat16() for k, v in weights.items()} if a.precision == "bf16" else weights
    decoded = Model(config, decoded).to(a.device)
    check(decoded, a.folder, a.precision)
    if a.shape is None:
        return Model(config, weights).to(a.device), decoded
    trains = [name.startswith("train") for name in a.only.split(",")] if a.only else [True, False]
    dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
    return (random_model(a.shape, a.layers, torch.float32, a.device) if any(trains) else None,
            random_model(a.shape, a.layers, dtype, a.device) if not all(trains) else None)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    trained, decoded = models(a)
    train = f"train.p{a.pack}.c{a.length}"
    names = [f"decode.b{b}.c{c}" for c in (512, 2048) for b in (1, 8, 32, 128)] + [train]
    if a.only:
        names = a.only.split(",")
    decodes = {name: tuple(map(int, m.groups())) for name in names if (m := re.fullmatch(r"decode\.b(\d+)\.c(\d+)", name))}
    unknown = set(names) - set(decodes) - {train}
    if unknown:
        raise SystemExit(f"torch_lm.py: --only: no figure {', '.join(sorted(unknown))}")
    lines = Lines(a.json, a.label)
    for name in names:
        kinds = ["eager"] + (["graph"] if a.device == "cuda" and name != train else []) + (["compiled"] if name in (*COMPILED, train) else [])
        if name == train:
            work, tokens = lambda kind: train_seconds(trained, kind, a.precision, a.pack, a.length, a.seconds), a.pack
        else:
            tokens, context = decodes[name]
            work = lambda kind: decode_seconds(decoded, kind, tokens, context, a.seconds)
        lines.measure(name, [(kind, lambda kind=kind: work(kind)) for kind in kinds], tokens, "tokens/s")
        if a.device == "cuda":
            torch.cuda.empty_cache()
    for name, seconds, tokens, note in generate_rows(a.folder, a.precision, a.seconds) if a.generate else ():
        lines.add(name, seconds, note, tokens, "tokens/s", [f"decode.{name.split('.', 1)[1]}"])


main()
