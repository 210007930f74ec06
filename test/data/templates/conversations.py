"""Forty conversations that chat templates of all kinds are tried with: one JSON text a row, as a row of a data file has it."""

TOOLS = r"""[{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city\nnow, \"exactly\"", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Näme"}, "days": {"type": "integer", "default": 1}, "scale": {"type": "number", "default": 1.0, "enum": [1.0, 0.5, 1e-7]}}, "required": ["city"]}}}, {"type": "function", "function": {"name": "stop", "description": "Ends it", "parameters": {"type": "object", "properties": {}}}}]"""

CALL = r"""{"type": "function", "id": "call_123", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "10": 1.0, "2": 12345678901234567890, "x": null, "f": 1e-7, "t": true}}}"""
TEXT_CALL = r"""{"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": "{\"city\": \"Zürich\", \"days\": 1.0}"}}"""


def message(role, content, more=""):
    return '{"role": "%s", "content": %s%s}' % (role, content, more)


def row(*messages, more=""):
    return '{"messages": [%s]%s}' % (", ".join(messages), more)


USER, ANSWER, SYSTEM = message("user", '"Hi"'), message("assistant", '"Hello!"'), message("system", '"Be brief."')
AGAIN, MORE = message("user", '"And then?"'), message("assistant", '"Then nothing."')
WITH_TOOLS = ', "tools": ' + TOOLS


def thinking(content, reason):
    return message("assistant", content, ', "reasoning_content": ' + reason)


def calling(call, content='""'):
    return message("assistant", content, f', "tool_calls": [{call}]')


RESULT = message("tool", r'"{\"temp\": 21.5}"', ', "name": "get_weather", "tool_call_id": "call_123"')
RESULT_9 = message("tool", r'"{\"temp\": 21.5}"', ', "name": "get_weather", "tool_call_id": "abcdefghi"')
PARTS = '[{"type": "text", "text": "Part one. "}, {"type": "text", "text": "Part two."}]'

ROWS = [
    row(USER),
    row(USER, ANSWER),
    row(SYSTEM, USER, ANSWER),
    row(USER, ANSWER, AGAIN, MORE),
    row(SYSTEM, USER, ANSWER, AGAIN, MORE),
    row(SYSTEM, USER, ANSWER, AGAIN),
    row(ANSWER, USER, MORE),
    row(SYSTEM, ANSWER, USER, MORE),
    row(SYSTEM),
    row(USER, AGAIN, ANSWER),
    row(USER, ANSWER, MORE),
    row(message("user", r'"  leading and trailing \n\n"'), message("assistant", r'"\n  code:\n    x = 1\n\n"')),
    row(message("user", r'"tabs\tand\u00a0spaces\u2003here"'), message("assistant", r'"\ttabbed\n"')),
    row(message("user", r'"naïve 🎉 日本語 \u0928\u093f \u200d"'), message("assistant", r'"Ünïcödé ✓ ß ﬁ 👩‍👩‍👧"')),
    row(message("user", r'"<|im_end|> {{ 7 * 7 }} {% raw %} </s> [INST]"'), message("assistant", r'"<|eot_id|>&amp;\"quoted\" \\ back"')),
    row(message("user", '""'), message("assistant", '""')),
    row(message("system", r'"  system with space  "'), message("user", '"x"'), message("assistant", '"y"')),
    row(message("system", r'"Line one.\nLine two.\n"'), message("user", r'"Q\n"'), message("assistant", r'"A\n"')),
    row(message("developer", '"Be kind."'), USER, ANSWER),
    row(message("user", PARTS), ANSWER),
    row(message("system", PARTS), message("user", PARTS), message("assistant", PARTS)),
    row(message("user", '[{"type": "image"}, {"type": "text", "text": "What is it?"}]'), ANSWER),
    row(USER, thinking('"42"', r'"Let me see.\n6 x 7"')),
    row(USER, thinking('"42"', '"First"'), AGAIN, thinking('"43"', '"Second"')),
    row(USER, message("assistant", r'"<think>\nLet me see.\n</think>\n\n42"')),
    row(USER, message("assistant", r'"<think>\na\n</think>\n\n42"'), AGAIN, message("assistant", r'"<think>\nb\n</think>\n\n43"')),
    row(USER, message("assistant", r'"<think></think>42 </think> twice"'), AGAIN, MORE),
    row(USER, thinking('null', '"only thought"'), AGAIN, MORE),
    row(USER, ANSWER, more=WITH_TOOLS),
    row(SYSTEM, USER, ANSWER, more=WITH_TOOLS),
    row(USER, calling(CALL), RESULT, message("assistant", '"It is warm."'), more=WITH_TOOLS),
    row(SYSTEM, USER, calling(TEXT_CALL), RESULT_9, message("assistant", '"It is warm."'), more=WITH_TOOLS),
    row(USER, calling(CALL, '"Let me look."'), RESULT, MORE, AGAIN, MORE, more=WITH_TOOLS),
    row(USER, calling(CALL + ", " + CALL), RESULT, RESULT, message("assistant", '"Both are warm."'), more=WITH_TOOLS),
    row(USER, calling(CALL, "null"), RESULT, message("assistant", '"Warm."')),
    row(USER, message("assistant", '""', f', "reasoning_content": "I must look.", "tool_calls": [{CALL}]'), RESULT, thinking('"Warm."', '"So it is"'), more=WITH_TOOLS),
    row(USER, calling(CALL), RESULT, ANSWER, AGAIN, calling(CALL), RESULT, MORE, more=WITH_TOOLS),
    row(USER, ANSWER, more=', "chat_template_kwargs": {"enable_thinking": false}'),
    row(USER, ANSWER, AGAIN, MORE, more=', "chat_template_kwargs": {"enable_thinking": true, "thinking": true}'),
    row(USER, ANSWER, more=', "documents": [{"title": "T", "text": "Body"}], "tools": null'),
]
assert len(ROWS) == 40
