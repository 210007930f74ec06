"""Writes random templates and what Python's jinja2 makes of them, in the form of expressions.json, to a file.

    python3 test/data/jinja/fuzz.py COUNT SEED FILE
"""

import json
import random
import sys

from expressions import VARIABLES, rendered

SCALARS = ["s", "e", "u", "sp", "multi", "i", "n", "z", "big", "f", "g", "small", "h", "t", "no", "nil", "html", "undefined_a"]
LISTS = ["l", "words", "mixed", "nested", "people", "none", "(1, 'b')", "range(4)", "[s, i, nil]", "d.keys()", "people[0].tags"]
DICTS = ["d", "empty", "people[0]", "deep", "deep.a.b", "{'k': f, 'a': l}"]
LITERALS = ["1", "2", "-3", "0", "1.5", "'a'", "'l'", "' '", "'\\n'", "','", "none", "true", "10", "'é'", "1e3"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or"]
FILTERS = (
    "abs,capitalize,count,default('x'),default('x', true),dictsort,first,float,int,items,join,join(', '),last,length,list,lower,"
    "max,min,reject,replace('a', 'b'),reverse,round,round(1),select,sort,sort(reverse=true),string,sum,title,tojson,tojson(indent=2),"
    "trim,truncate(5),unique,upper,wordcount,indent,indent(2, true),map('upper'),map(attribute='name'),selectattr('age'),"
    "select('string'),batch(2),slice(2),center(9),map('string'),select('odd'),map('length'),groupby('age'),format(1),urlencode"
).replace("', ", "'; ").replace("2, t", "2; t").split(",")
FILTERS = [one.replace("; ", ", ") for one in FILTERS]
METHODS = [
    "strip()", "strip('l')", "lstrip()", "rstrip('\\n')", "upper()", "lower()", "title()", "split()", "split('l')", "split(' ', 1)", "rsplit('o', 1)",
    "startswith('H')", "endswith('d')", "find('o')", "replace('l', 'L')", "splitlines()", "partition('l')", "count('l')", "isdigit()", "isupper()",
    "get('b')", "get('zz', 1)", "items()", "keys()", "values()", "index(1)", "join(words)", "capitalize()", "swapcase()", "zfill(4)", "center(8)",
    "ljust(6)", "removeprefix('H')", "copy()", "format(1)", "isalpha()", "isspace()", "name", "a", "b", "age",
]
TESTS = [
    "defined", "undefined", "none", "string", "number", "mapping", "iterable", "sequence", "boolean", "integer", "float", "odd", "even", "true",
    "lower", "upper", "divisibleby 2", "eq 1", "in l", "not none", "not string", "not defined", "gt 1", "callable",
]
SLICES = ["0", "-1", "1", "'b'", "1:", ":-1", "::-1", "::2", "1:3", "i", "s", ":2", "-2:", "nil", "true"]


def expression(r, depth):
    if depth == 0:
        return r.choice(r.choice([SCALARS, LISTS, DICTS, LITERALS]))
    kind = r.random()
    inner = expression(r, depth - 1)
    if kind < 0.25:
        return f"{inner} | {r.choice(FILTERS)}" if " " not in inner else f"({inner}) | {r.choice(FILTERS)}"
    if kind < 0.42:
        return f"({inner}).{r.choice(METHODS)}"
    if kind < 0.62:
        return f"({inner}) {r.choice(OPERATORS)} ({expression(r, r.randrange(depth))})"
    if kind < 0.68:
        return f"{inner} {r.choice(OPERATORS)} {expression(r, 0)}"
    if kind < 0.78:
        return f"({inner})[{r.choice(SLICES)}]"
    if kind < 0.86:
        return f"({inner}) is {r.choice(TESTS)}"
    if kind < 0.9:
        return f"({inner}) if ({expression(r, 0)}) else ({expression(r, 0)})"
    if kind < 0.93:
        return f"not ({inner})"
    if kind < 0.96:
        return f"[{inner}, {expression(r, 0)}]"
    return f"'{r.choice(['%s', '%d', '%5s|', '%.2f', '%r', '%s %s', '%x'])}' % ({inner})"


def space(r):
    return "".join(r.choice([" ", "\n", "", "\t", "x", "\n\n", "  ", "\r\n", "\x0c", "\xa0"]) for _ in range(r.randrange(4)))


def block(r, depth):
    def tag(text):
        left, right = r.choice(["", "", "-", "+"]), r.choice(["", "", "-", "+"])
        return f"{space(r)}{{%{left} {text} {right}%}}{space(r)}"

    kind = r.random()
    if depth == 0 or kind < 0.3:
        minus = r.choice(["", "", "-"])
        end = r.choice(["", "", "-"])
        return f"{space(r)}{{{{{minus} {expression(r, r.randrange(2))} {end}}}}}{space(r)}"
    inner = "".join(block(r, depth - 1) for _ in range(r.randrange(1, 3)))
    if kind < 0.45:
        return tag(f"for x in {r.choice(LISTS)}") + inner + "{{ loop.index }}{{ x }}" + tag("endfor")
    if kind < 0.6:
        return tag(f"if {expression(r, 1)}") + inner + tag("else") + block(r, 0) + tag("endif")
    if kind < 0.7:
        return tag(f"set q = {expression(r, 1)}") + "{{ q }}" + inner
    if kind < 0.76:
        return tag("set q") + inner + tag("endset") + "{{ q | length }}"
    if kind < 0.82:
        return tag("macro m(a, b=1)") + inner + "{{ a }}" + tag("endmacro") + "{{ m(i) }}"
    if kind < 0.88:
        sign = r.choice(["", "-"])
        return f"{space(r)}{{#{sign} c {r.choice(['', '-', '+'])}#}}{space(r)}" + inner
    if kind < 0.92:
        return tag("filter upper") + inner + tag("endfilter")
    if kind < 0.96:
        return f"{space(r)}{{%{r.choice(['', '-'])} raw {r.choice(['', '-'])}%}}{space(r)}{{{{ x }}{space(r)}{{%{r.choice(['', '-', '+'])} endraw {r.choice(['', '-', '+'])}%}}" + inner
    return tag("generation") + inner + tag("endgeneration")


def main():
    count, seed, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    r = random.Random(seed)
    rows = []
    while len(rows) < count:
        template = "{{ " + expression(r, r.randrange(1, 4)) + " }}" if r.random() < 0.7 else "".join(block(r, 2) for _ in range(2))
        # Anew each time: indent appends to a list that it is given.
        text = rendered(template, json.loads(VARIABLES))
        if text is None or (" at 0x" not in text and len(text) < 20000):
            rows.append([template, text])
    json.dump({"variables": VARIABLES, "rows": rows}, open(path, "w"))


if __name__ == "__main__":
    main()
