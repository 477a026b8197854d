"""Goldens of the sentence encoder from transformers: a tiny random BertModel with a byte-level BPE tokenizer, and the embeddings of a
few texts, pooled by [CLS] and by the mean. Run with the versions of requirements.txt; writes sentence_bert/ beside itself."""
import json
import os
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "sentence_bert")
MOST = 20  # tokens of a text
TEXTS = ["a film", "The Silent Harbour, Drama, Mystery", "x", "", "slow-burning science fiction about memory and time, 1982",
         "Amélie – comédie romantique", "war films with old heroes", "123 456 7890", "two\nlines\tand a tab",
         "a text that is much longer than what the encoder takes, so that its end is left out and only the first part of it counts"]

torch.manual_seed(11)
os.makedirs(FOLDER, exist_ok=True)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
    vocab_size=290, special_tokens=["[PAD]", "[CLS]", "[SEP]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False))
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
tokenizer.save(os.path.join(FOLDER, "tokenizer.json"))

model = BertModel(BertConfig(vocab_size=292, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                             max_position_embeddings=96, attn_implementation="eager")).eval()
with torch.no_grad():
    for name, p in model.named_parameters():  # larger than the default, so that errors show
        p.copy_(torch.randn(p.shape) * 0.2 + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
model.save_pretrained(FOLDER)

tokenizer.enable_truncation(MOST)
ids = [tokenizer.encode(text).ids for text in TEXTS]
first, mean = [], []
with torch.no_grad():
    for row in ids:  # each by itself: no padding
        hidden = model.double()(torch.tensor([row])).last_hidden_state[0]
        first.append(torch.nn.functional.normalize(hidden[0], dim=0))
        mean.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
save_file({"first": torch.stack(first).float(), "mean": torch.stack(mean).float()}, os.path.join(FOLDER, "golden.safetensors"))
with open(os.path.join(FOLDER, "texts.json"), "w") as file:
    json.dump({"max_tokens": MOST, "texts": TEXTS}, file, ensure_ascii=False, indent=1)
    file.write("\n")
