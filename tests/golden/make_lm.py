"""Goldens of the decoder LM from transformers: tiny random Qwen2 and Llama folders with odd sizes, their logits, loss, gradients
and the losses of ten AdamW updates. Run with the versions of requirements.txt; writes lm_qwen2/ and lm_llama/ beside itself."""
import os
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))


def write(name, model, vocab):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    model = model.float().eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than the default, so that errors show
            p.copy_(torch.randn(p.shape) * 0.15 + (1.0 if p.dim() == 1 else 0.0))
        for n, p in model.named_parameters():
            if n.endswith("bias"):
                p.sub_(1.0)
    model.save_pretrained(folder, safe_serialization=True)
    ids = torch.randint(0, vocab, (37,))
    out = model(ids[None])
    logits = out.logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    loss.backward()
    tensors = {"ids": ids.float(), "logits": logits.detach().contiguous(), "loss": loss.detach()[None]}
    for n, p in model.named_parameters():
        tensors["grad." + n] = p.grad.contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[None]).logits[0][:-1], ids[1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    tensors["losses"] = torch.stack(losses)
    save_file(tensors, os.path.join(folder, "golden.safetensors"))


torch.manual_seed(7)
write("lm_qwen2", Qwen2ForCausalLM(Qwen2Config(
    vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=44,
    max_position_embeddings=128, tie_word_embeddings=True, attn_implementation="eager")), 61)
write("lm_llama", LlamaForCausalLM(LlamaConfig(
    vocab_size=53, hidden_size=30, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, intermediate_size=50,
    head_dim=10, max_position_embeddings=128, tie_word_embeddings=False, rms_norm_eps=1e-5,
    attn_implementation="eager")), 53)
