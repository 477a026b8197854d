"""Goldens of the decoder LM from transformers: tiny random folders with odd sizes, their logits, loss, gradients and the losses of
ten AdamW updates. Run with the versions of requirements.txt; writes lm_NAME/ beside itself: all, or those named as
arguments (first: qwen2 and llama)."""
import json
import os
import sys
import torch
from safetensors.torch import save_file
from transformers import (AutoConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

HERE = os.path.dirname(os.path.abspath(__file__))


def write_older_config(folder):
    """rope_theta and rope_scaling at the top, as folders had it before rope_parameters."""
    path = os.path.join(folder, "config.json")
    before = AutoConfig.from_pretrained(folder).rope_parameters
    with open(path) as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    with open(path, "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    after = AutoConfig.from_pretrained(folder).rope_parameters
    assert dict(before) == dict(after), (before, after)


def write(name, model, vocab, dtype=torch.float32, shard="1GB", older=False):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    model = model.float().eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than the default, so that errors show
            p.copy_(torch.randn(p.shape) * 0.15 + (1.0 if p.dim() == 1 else 0.0))
        for n, p in model.named_parameters():
            if n.endswith("bias"):
                p.sub_(1.0)
    model.to(dtype).save_pretrained(folder, safe_serialization=True, max_shard_size=shard)
    if dtype != torch.float32:  # the folder's values in fp32; the rotary frequencies were never rounded
        model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):  # of no use here
        os.remove(generation)
    if older:
        write_older_config(folder)
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


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


def qwen2():
    write("lm_qwen2", Qwen2ForCausalLM(Qwen2Config(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=44,
        max_position_embeddings=128, tie_word_embeddings=True, attn_implementation="eager")), 61)


def llama():
    write("lm_llama", LlamaForCausalLM(LlamaConfig(
        vocab_size=53, hidden_size=30, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, intermediate_size=50,
        head_dim=10, max_position_embeddings=128, tie_word_embeddings=False, rms_norm_eps=1e-5,
        attn_implementation="eager")), 53)


def qwen3():  # heads that are not hidden / heads wide
    write("lm_qwen3", Qwen3ForCausalLM(Qwen3Config(
        vocab_size=67, hidden_size=28, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=20,
        intermediate_size=52, max_position_embeddings=128, tie_word_embeddings=True, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})), 67)


def llama31():  # wavelengths of 6, 32 and more: kept, mixed, divided
    write("lm_llama31", LlamaForCausalLM(LlamaConfig(
        vocab_size=59, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=40, max_position_embeddings=512, tie_word_embeddings=False, rms_norm_eps=1e-5,
        rope_parameters=dict(LLAMA3), attn_implementation="eager")), 59)


def mistral():
    write("lm_mistral", MistralForCausalLM(MistralConfig(
        vocab_size=51, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=44,
        max_position_embeddings=128, sliding_window=None, tie_word_embeddings=False, rms_norm_eps=1e-5,
        attn_implementation="eager")), 51)


def sharded():  # Llama 3.2: a tied head, the older config.json
    write("lm_sharded", LlamaForCausalLM(LlamaConfig(
        vocab_size=47, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=12,
        intermediate_size=36, max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters=dict(LLAMA3, factor=32.0), attn_implementation="eager")), 47, shard="20KB", older=True)


def bf16():
    write("lm_bf16", Qwen3ForCausalLM(Qwen3Config(
        vocab_size=43, hidden_size=20, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1, head_dim=18,
        intermediate_size=32, max_position_embeddings=128, tie_word_embeddings=False, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})), 43, dtype=torch.bfloat16, older=True)


FIRST = (qwen2, llama)  # share one stream of random numbers
OTHERS = {"qwen3": (qwen3, 11), "llama31": (llama31, 12), "mistral": (mistral, 13), "sharded": (sharded, 14), "bf16": (bf16, 15)}

wanted = sys.argv[1:] or ["first", *OTHERS]
if "first" in wanted:
    torch.manual_seed(7)
    for make in FIRST:
        make()
for key in OTHERS:
    if key in wanted:
        torch.manual_seed(OTHERS[key][1])
        OTHERS[key][0]()
