"""Opens model folders written by this program in transformers and compares logits. Usage: check_roundtrip.py TEST_LM, the built
test program test_lm: it writes one folder a family with its own logits beside it. Ends with 1 when anything differs."""
import os
import subprocess
import sys
import tempfile
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def check(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model = model.float().eval()
    ours = load_file(os.path.join(folder, "check.safetensors"))
    with torch.no_grad():
        logits = model(ours["ids"].long()[None]).logits[0]
    largest = logits.abs().max().item()
    error = (logits - ours["logits"]).abs().max().item()
    bad = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") if info.get(key)]
    ids = (model.generation_config.eos_token_id, model.generation_config.pad_token_id)
    fine = not bad and error <= 1e-4 * largest and ids == (5, 6) and type(model).__name__ == os.path.basename(folder)
    print(f"{type(model).__name__}: max|d| {error:.2e} of {largest:.2f}, eos and pad {ids}, {'fine' if fine else f'WRONG {bad}'}")
    return fine


with tempfile.TemporaryDirectory() as root:
    subprocess.run([sys.argv[1]], env=dict(os.environ, DR_ROUNDTRIP_DIR=root), check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    results = [check(os.path.join(root, name)) for name in sorted(os.listdir(root))]
sys.exit(0 if len(results) == 4 and all(results) else 1)
