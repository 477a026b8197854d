"""Golden texts of chat templates. The templates are short ones of our own that render system, user and assistant turns as
Qwen2's, Qwen2.5's, Qwen3's, Llama 3's and Llama 3.1's do; transformers renders the cases. Writes chat/FORM/
tokenizer_config.json (or chat_template.jinja) and cases.json."""
import json
import os
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
HEADER = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
LLAMA_ASK = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
FORMS = {
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
             "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}" + TURN + "{% endfor %}" + ASK,
    "qwen25": "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
              "{%- else %}\n    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}\n"
              "{%- endif %}\n{%- for message in messages %}\n    {%- if not (loop.first and message.role == 'system') %}\n"
              "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
              "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "qwen3": "{%- set ns = namespace(last_query_index=messages|length - 1, found=false) %}\n"
             "{%- for message in messages[::-1] %}\n    {%- set text = message.content %}\n"
             "    {%- if not ns.found and message.role == 'user' and not (text.startswith('<tool_response>') and "
             "text.endswith('</tool_response>')) %}\n        {%- set ns.found = true %}\n"
             "        {%- set ns.last_query_index = messages|length - 1 - loop.index0 %}\n    {%- endif %}\n{%- endfor %}\n"
             "{%- for message in messages %}\n    {%- set text = message.content %}\n    {%- set reasoning_content = '' %}\n"
             "    {%- if message.role == 'assistant' and '</think>' in text %}\n"
             "        {%- set reasoning_content = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}\n"
             "        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n"
             "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
             "    {%- if message.role == 'assistant' and loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}\n"
             "        {{- '<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + text.lstrip('\\n') }}\n"
             "    {%- else %}\n        {{- text }}\n    {%- endif %}\n    {{- '<|im_end|>\\n' }}\n"
             "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "thinking": "{%- for message in messages %}" + TURN.replace("{{", "{{-") + "{%- endfor %}{%- if add_generation_prompt %}"
                "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
    "llama3": "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}" + HEADER + "{% endfor %}" + LLAMA_ASK,
    "llama31": "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = \"26 Jul 2024\" %}\n{%- endif %}\n"
               "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
               "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = \"\" %}{%- endif %}\n"
               "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
               "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{- system_message }}{{- \"<|eot_id|>\" }}"
               "{%- for message in messages %}" + HEADER.replace("{{", "{{-") + "{%- endfor %}" + LLAMA_ASK.replace("{%", "{%-").replace("{{", "{{-"),
}
S, U, A = "system", "user", "assistant"
CASES = [[(U, "Hello")], [(S, "Be brief."), (U, "Hi\nthere")], [(S, ""), (U, "x")], [(U, "a"), (A, "b"), (U, "  c \n")],
         [(S, " s\u00a0"), (U, "\u3000naïve 你好 \x1c"), (A, "\n\nok\n"), (U, "")], [(U, "<|im_end|> 'quoted' \"twice\" {{ x }} \\n")],
         [(S, "one"), (S, "two"), (U, "q")], [(A, "first"), (U, "then")],
         [(U, "q"), (A, "<think>\n\nhm\n</think>\n\nold"), (U, "r"), (A, "\n<think>a<think>b\n</think>c</think>\n\nnew\n")],
         [(U, "q"), (A, "plain"), (U, "<tool_response>5</tool_response>"), (A, "<think>\nwhy\n</think>\n\nso"), (A, "\n\nend")],
         [(S, "s"), (A, "alone")], [(U, "q"), (A, "half </think> open"), (A, "<think>no end")]]


def main():
    for name, template in FORMS.items():
        folder = os.path.join(HERE, "chat", name)
        os.makedirs(folder, exist_ok=True)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<|begin_of_text|>")
        tokenizer.chat_template = template
        cases = []
        for turns in CASES:
            messages = [{"role": r, "content": c} for r, c in turns]
            for ask in (False, True):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
                cases.append({"turns": turns, "ask": ask, "text": text})
        config = {"bos_token": "<|begin_of_text|>"}
        if name == "qwen3":
            with open(os.path.join(folder, "chat_template.jinja"), "w") as f:
                f.write(template)
        else:
            config["chat_template"] = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": template}] \
                if name == "llama31" else template
        for file, value in (("tokenizer_config.json", config), ("cases.json", cases)):
            with open(os.path.join(folder, file), "w") as f:
                json.dump(value, f, indent=1)
                f.write("\n")


main()
