"""Compares `deeprec logits` with transformers over long sequences. Usage: check_logits.py DEEPREC [N_IDS [FOLDER ...]]; without
folders: random models of every family, wider than the goldens. Prints the largest difference of each, ends with 1 when one is
over 1e-4 of the largest logit. Versions of requirements.txt."""
import os
import subprocess
import sys
import tempfile
import h5py
import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

SIZES = dict(vocab_size=4099, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
             intermediate_size=704, max_position_embeddings=32768)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
ROPE = {"rope_type": "default", "rope_theta": 1000000.0}


def random_folders(root):
    torch.manual_seed(3)
    for name, model in (
            ("qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=dict(ROPE)))),
            ("qwen3", Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=64, tie_word_embeddings=True, rope_parameters=dict(ROPE)))),
            ("llama31", LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dict(LLAMA3)))),
            ("mistral", MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, rope_parameters=dict(ROPE))))):
        with torch.no_grad():
            for n, p in model.named_parameters():  # larger than the default, so that attention is not flat
                p.copy_(torch.randn(p.shape) * 0.06 + (1.0 if n.endswith("norm.weight") else 0.0))
        folder = os.path.join(root, name)
        model.save_pretrained(folder, max_shard_size="5MB")
        yield folder


def check(program, folder, n, root):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (n,), generator=torch.Generator().manual_seed(5))
    ids_path, out = os.path.join(root, "ids.txt"), os.path.join(root, "out.h5")
    with open(ids_path, "w") as file:
        file.write("\n".join(str(i) for i in ids.tolist()))
    subprocess.run([program, "logits", "--model", folder, "--ids-file", ids_path, "--dtype", "fp32", "--out", out], check=True)
    with h5py.File(out) as file:
        ours = torch.from_numpy(file["logits"][:])
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    largest, error = theirs.abs().max().item(), (ours - theirs).abs().max(dim=1).values
    fine = error.max().item() <= 1e-4 * largest
    quarter = max(n // 4, 1)
    print(f"{os.path.basename(folder)}: {n} ids, max|d| {error.max().item():.2e} of {largest:.2f} = "
          f"{error.max().item() / largest:.1e} (first quarter {error[:quarter].max().item():.1e}, last "
          f"{error[-quarter:].max().item():.1e}), same choice {(ours.argmax(1) == theirs.argmax(1)).float().mean().item():.4f}, "
          f"{'fine' if fine else 'WRONG'}")
    return fine


with tempfile.TemporaryDirectory() as scratch:
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    results = [check(sys.argv[1], folder, count, scratch) for folder in sys.argv[3:] or random_folders(scratch)]
sys.exit(0 if all(results) else 1)
