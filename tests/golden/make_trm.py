"""Goldens of the preference-aware retrieval model: the equations of arXiv 2505.16810 (section 3.2) written down in PyTorch with
small random weights; scores with and without preference text, loss and gradients. Writes trm/model.safetensors, golden.safetensors."""
import os
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(3)
N, D, X, L, LAYERS, HEADS, I, E, TAU = 31, 16, 24, 20, 2, 2, 40, 4, 0.07


def rnd(*shape, scale=0.3):
    return (torch.randn(*shape) * scale).requires_grad_(True)


w = {"item_embedding.weight": rnd(N, D), "position_embedding.weight": rnd(L, D), "complex_weight": rnd(1, L // 2 + 1, D, 2),
     "item_gating.weight": rnd(1, D), "item_gating.bias": rnd(1), "fusion_gating.weight": rnd(1, D), "fusion_gating.bias": rnd(1),
     "moe_adaptor.w_gate": rnd(X, E), "moe_adaptor.w_noise": rnd(X, E)}
for e in range(E):
    w[f"moe_adaptor.experts.{e}.lin.weight"] = rnd(D, X)
for n in ("LayerNorm", "OutLayerNorm"):
    w[n + ".weight"] = (1 + 0.2 * torch.randn(D)).requires_grad_(True)
    w[n + ".bias"] = rnd(D)
for i in range(LAYERS):
    a, f = f"trm_encoder.layer.{i}.multi_head_attention.", f"trm_encoder.layer.{i}.feed_forward."
    for n in ("query", "key", "value", "out_linear"):
        w[a + n + ".weight"], w[a + n + ".bias"] = rnd(D, D), rnd(D)
    w[f + "linear_1.weight"], w[f + "linear_1.bias"] = rnd(I, D), rnd(I)
    w[f + "linear_2.weight"], w[f + "linear_2.bias"] = rnd(D, I), rnd(D)
    for p in (a, f):
        w[p + "LayerNorm.weight"] = (1 + 0.2 * torch.randn(D)).requires_grad_(True)
        w[p + "LayerNorm.bias"] = rnd(D)
text = F.normalize(torch.randn(N, X), dim=1)
text[0] = 0
with torch.no_grad():
    w["item_embedding.weight"][0] = 0


def norm(x, name):
    return F.layer_norm(x, (D,), w[name + ".weight"], w[name + ".bias"], 1e-12)


def adaptor(x):
    gate = torch.softmax(x @ w["moe_adaptor.w_gate"], -1)
    experts = torch.stack([x @ w[f"moe_adaptor.experts.{e}.lin.weight"].T for e in range(E)], -2)
    return (gate[..., None] * experts).sum(-2)


def user(history, query):  # history (B, L) right-padded, query (B, X), has (B)
    query, has = query
    x = w["item_embedding.weight"][history]
    f_id, f_tx = torch.fft.rfft(x, dim=1, norm="ortho"), torch.fft.rfft(adaptor(text[history]), dim=1, norm="ortho")
    a = torch.fft.irfft(f_id * torch.view_as_complex(w["complex_weight"]), n=L, dim=1, norm="ortho")
    b = torch.fft.irfft(f_tx * f_id, n=L, dim=1, norm="ortho")
    ga = torch.sigmoid(a @ w["item_gating.weight"].T + w["item_gating.bias"])
    gb = torch.sigmoid(b @ w["fusion_gating.weight"].T + w["fusion_gating.bias"])
    h = norm(2 * (a * ga + b * gb) + w["position_embedding.weight"], "LayerNorm")
    mask = torch.where(history > 0, 0.0, -10000.0)[:, None, None, :]
    for i in range(LAYERS):
        p, f = f"trm_encoder.layer.{i}.multi_head_attention.", f"trm_encoder.layer.{i}.feed_forward."
        q, k, v = (F.linear(h, w[p + n + ".weight"], w[p + n + ".bias"]).view(-1, L, HEADS, D // HEADS).transpose(1, 2)
                   for n in ("query", "key", "value"))
        s = torch.softmax(q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5 + mask, -1)
        o = F.linear((s @ v).transpose(1, 2).reshape(-1, L, D), w[p + "out_linear.weight"], w[p + "out_linear.bias"])
        h = norm(o + h, p + "LayerNorm")
        u = F.linear(F.gelu(F.linear(h, w[f + "linear_1.weight"], w[f + "linear_1.bias"])), w[f + "linear_2.weight"],
                     w[f + "linear_2.bias"])
        h = norm(u + h, f + "LayerNorm")
    o = h[torch.arange(len(history)), (history > 0).sum(1) - 1]
    return norm(o + adaptor(query) * has[:, None], "OutLayerNorm")


lengths = [20, 3, 1, 11, 20, 7]
history = torch.zeros(6, L, dtype=torch.long)
for r, n in enumerate(lengths):
    history[r, :n] = torch.randint(1, N, (n,))
query = F.normalize(torch.randn(6, X), dim=1)
has = torch.tensor([1.0, 0, 1, 1, 0, 0])
scores = F.normalize(user(history, (query, has)), dim=1) @ F.normalize(w["item_embedding.weight"], dim=1).T
targets = torch.randint(1, N, (6,))
logits = (scores / TAU)[:, 1:]
loss = F.cross_entropy(logits, targets - 1)
loss.backward()
folder = os.path.join(HERE, "trm")
os.makedirs(folder, exist_ok=True)
save_file({**{n: t.detach().contiguous() for n, t in w.items()}, "item_plm_embedding.weight": text},
          os.path.join(folder, "model.safetensors"))
golden = {"history": history.float(), "lengths": torch.tensor(lengths).float(), "query": query, "has": has,
          "targets": targets.float(), "scores": scores.detach().contiguous(), "loss": loss.detach()[None]}
golden.update({"grad." + n: t.grad.contiguous() for n, t in w.items() if t.grad is not None})
save_file(golden, os.path.join(folder, "golden.safetensors"))
