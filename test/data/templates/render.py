"""Renders every chat template of a folder with the forty conversations, as transformers does.

    python3 test/data/templates/render.py                    lines.json: of each text in lines/ its length and hash
    python3 test/data/templates/render.py FOLDER OUT.json    the texts of each FOLDER/NAME/**/tokenizer_config.json or FOLDER/NAME.jinja

The date that strftime_now shows is the one that the data loader fixes. Null columns count as absent.
"""

import datetime
import hashlib
import json
import sys
from pathlib import Path

import transformers.utils.chat_template_utils as chat
from conversations import ROWS


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat.datetime = Fixed


def templates(folder):
    for file in sorted(folder.glob("*.jinja")):
        yield file.stem, file.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"}
    for file in sorted(folder.glob("*/**/tokenizer_config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        tokens = {key: value["content"] if isinstance(value, dict) else value for key, value in config.items() if key.endswith("_token")}
        tokens = {key: value for key, value in tokens.items() if isinstance(value, str)}
        template = config.get("chat_template")
        for one in template if isinstance(template, list) else [{"name": "default", "template": template}]:
            if one["template"]:
                yield f"{file.relative_to(folder).parts[0]} {one['name']}", one["template"], tokens


def rendered(template, tokens, text, prompt):
    row = json.loads(text)
    extra = row.get("chat_template_kwargs") or {}
    try:
        return chat._compile_jinja_template(template).render(
            messages=row["messages"], tools=row.get("tools"), documents=row.get("documents"), add_generation_prompt=prompt, **{**tokens, **extra}
        )
    except Exception:
        return None


def short(text):
    if text is None:
        return None
    data = text.encode("utf-8", "surrogatepass")
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:12]}"


def golden():
    here = Path(__file__).parent
    found = {}
    for name, template, tokens in templates(here / "lines"):
        found[name] = [[short(rendered(template, tokens, row, prompt)) for prompt in (False, True)] for row in ROWS]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(texts)}" for name, texts in found.items())
    rows = ",\n".join(json.dumps(row) for row in ROWS)
    (here / "lines.json").write_text('{"rows": [\n' + rows + '\n],\n"texts": {\n' + lines + "\n}}\n", encoding="utf-8")


def main():
    if len(sys.argv) < 3:
        return golden()
    found = {}
    for name, template, tokens in templates(Path(sys.argv[1])):
        texts = [[rendered(template, tokens, row, prompt) for prompt in (False, True)] for row in ROWS]
        found[name] = {"template": template, "tokens": tokens, "texts": texts}
        print(name, sum(text is None for pair in texts for text in pair), "errors")
    Path(sys.argv[2]).write_text(json.dumps({"rows": ROWS, "templates": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
