"""Writes expressions.json: what Python's jinja2, set up as transformers sets it up for chat templates, makes of each.

    python3 test/data/jinja/expressions.py          with transformers 5 installed

Each entry is [template, text], or [template, null] where rendering is an error. The variables stand at the top.
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

VARIABLES = r"""{
  "s": "Hello, World", "e": "", "u": "naïve Ünïcödé 🎉 ßﬁ", "sp": "  \t padded\n ", "multi": "one\ntwo\r\nthree\n\nfive\n",
  "i": 7, "n": -7, "z": 0, "big": 12345678901234567890, "f": 1.0, "g": 2.5, "small": 1e-7, "large": 1e16, "h": -0.0, "third": 0.1,
  "t": true, "no": false, "nil": null,
  "l": [3, 1, 2], "words": ["b", "A", "c"], "mixed": [1, 1.0, "x", null, true, [1, {"a": 2}]], "nested": [[1, 2], [3]],
  "d": {"b": 1, "a": [1, 2.50], "10": "ten", "2": "two", "items": "mine"}, "empty": {}, "none": [],
  "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cy", "age": 30, "tags": []}],
  "deep": {"a": {"b": {"c": [10, 20]}}}, "html": "<b>\"q\" & 'r'</b>", "json": "{\"k\": \"v\"}", "fmt": "%s-%d", "braces": "{} {x}"
}"""

EXPRESSIONS = r"""
'xxaxx'.strip('x') | 'xxaxx'.lstrip('x') | 'xxaxx'.rstrip('x') | sp.strip() | sp.lstrip() | sp.rstrip() | '\n\n a \n'.strip('\n') | u.strip('nß')
none | nil | true | True | t and nil | t or nil | nil or 'x' | no or e | [nil, t, f] | {'a': nil, 'b': t} | (1,) | (1, 'a') | ()
'a' ~ 1 ~ nil ~ t ~ 1.0 | 'a' + 1 | 'a' + nil | 'a' + ['b'] | ['a'] + 'b' | [1] + [2] | (1,) + (2,) | [1] + (2,) | 1 + 1.5 | t + t | i + nil
-7 % 3 | 7 % -3 | -7 // 3 | 7 // -3 | 7 / 2 | 6 / 2 | 7.5 // 2 | -7.5 % 2 | 7.5 % -2 | 2 ** 10 | 2 ** -1 | 2 ** 0.5 | (-8) ** 3 | -2 ** 2 | 2 ** 3 ** 2 | 1 / 0 | 1 % 0 | 1 // 0.0 | big * big | big / 10 | big // 7 % 5 | 0.1 + 0.2 | 1e16 + 1
['a'] == ['a'] | [1] == [1.0] | {'a': 1} == {'a': 1.0} | (1,) == [1] | 1 == 1.0 | 1 == t | 'a' == 1 | nil == no | undefined_a == undefined_b | [1, [2]] == [1, [2]] | 1 != 2 | 'a' < 'b' | 'a' < 'B' | 'a' < 1 | [1, 2] < [1, 3] | 1 < 2 < 3 | 1 < 3 < 2 | nil < 1 | t < 2
1 in l | 'ell' in s | 'a' in d | 'x' in none | 1 in 'a' | 1 in nil | 3 not in l | not 1 in l | '' in 'a' | 1.0 in l | 'b' in words | undefined_a in l | 'a' in undefined_a | nil in mixed
l is iterable | s is iterable | d is iterable | i is iterable | nil is iterable | undefined_a is iterable | l is sequence | d is sequence | l is mapping | d is mapping | s is string | i is string | i is number | t is number | f is number | t is integer | i is integer | f is integer | f is float | t is boolean | nil is none | none is defined | undefined_a is defined | undefined_a is undefined | d.zzz is defined | d.b is defined | d['10'] is defined | i is odd | 4 is even | n is odd | 9 is divisibleby 3 | 9 is divisibleby(2) | 's' is lower | s is upper | 'UP' is upper | s is in ['Hello, World'] | 1 is eq 1.0 | 1 is ne 2 | 2 is gt 1 | 2 is lessthan 1 | s is callable | s.upper is callable | t is true | i is true | no is false | 'abs' is filter | 'zzz' is filter | 'odd' is test | nil is sameas none | i is not none | i is not odd
tojson_probe is defined | l | tojson | d | tojson | mixed | tojson | f | tojson | small | tojson | big | tojson | large | tojson | h | tojson | third | tojson | html | tojson | u | tojson | '\x7f\x01\u2028' | tojson | (1, 2) | tojson | nil | tojson | d | tojson(indent=2) | nested | tojson(indent=4) | empty | tojson(indent=2) | none | tojson(indent=2) | d | tojson(sort_keys=true) | u | tojson(ensure_ascii=true) | d | tojson(separators=(',', ':')) | l | tojson(indent='--') | undefined_a | tojson | l | map('string') | tojson | people | tojson | {1: 2, 1.5: 3, none: 4, true: 5} | tojson | deep | tojson(indent=0) | s | tojson | tojson
d.items() | d.keys() | d.values() | d.items | list | d['items'] | d.get('b') | d.get('q') | d.get('q', 'dflt') | d.b | d['b'] | d.q | d['q'] | d.q.r | d[1] | l[0] | l[-1] | l[5] | l['0'] | l.0 | s[0] | s[-1] | s[100] | u[-4] | nil.x | nil[0] | undefined_a.x | undefined_a[0] | deep.a.b.c[1] | deep['a'].b['c'][0] | people[0].name | people[0]['tags'][0] | people[1].tags | l.append(4) | d.update({}) | d.pop('a') | l.index(2) | l.count(1) | l.index(9) | d.copy() | d.__class__ | s.__len__ | d._x | l.__getitem__
s[1:4] | s[:-1] | s[::-1] | s[::2] | s[5:2] | s[-3:] | u[0:7] | u[::-1] | l[1:] | l[::-1] | l[-2:] | (1, 2, 3)[1:] | l[:0] | s[10:1:-3] | l[::0] | d[1:2] | messages[1:] | s[none:3] | s['a':] | l[0:100]
s.upper() | s.lower() | s.title() | "they're o'neil-x".title() | u.upper() | u.lower() | u.capitalize() | u.title() | s.swapcase() | 'ΑΣ'.lower() | 'ß'.upper() | 'ǆ'.title() | 'ﬁx'.capitalize() | s.casefold() | 'straße'.casefold() | s.startswith('He') | s.startswith(('x', 'H')) | s.startswith('l', 2) | s.endswith('ld') | s.endswith(('a', 'd')) | s.startswith(['H']) | s.find('l') | s.find('z') | s.rfind('l') | s.find('l', 5) | s.index('z') | s.count('l') | s.count('') | u.find('🎉') | u.count('') | s.replace('l', 'L') | s.replace('l', 'L', 1) | s.replace('', '-') | e.replace('', '-') | 'aaa'.replace('aa', 'b') | s.replace('l', 1)
'a,b,,c'.split(',') | ' a  b c '.split() | 'a,b,c'.split(',', 1) | 'a b  c'.split(none, 1) | ' a b  c '.rsplit(none, 1) | 'a,b,c'.rsplit(',', 1) | 'a,b'.split('') | e.split() | e.split(',') | multi.splitlines() | multi.splitlines(true) | 'a\x0bb\x1cc\u2028d'.splitlines() | 'k=v=w'.partition('=') | 'k=v=w'.rpartition('=') | 'kv'.partition('=') | 'abc'.split('b')[-1] | 'a<b>c'.split('<b>')[0].rstrip('\n').split('x')[-1].lstrip('\n')
'ab'.center(7, '*') | 'abc'.center(6) | 'ab'.ljust(4) ~ '|' | 'ab'.rjust(4) | '-5'.zfill(4) | '+'.zfill(3) | 'abc'.zfill(2) | ', '.join(words) | ''.join(l) | '-'.join('abc') | '-'.join(d) | 'a\tb'.expandtabs() | 'a\tb'.expandtabs(4) | 'prefix-x'.removeprefix('prefix-') | 'x.txt'.removesuffix('.txt') | 'x'.removesuffix('')
'12'.isdigit() | '²'.isdigit() | '²'.isdecimal() | '½'.isnumeric() | '一'.isnumeric() | 'abc1'.isalnum() | 'é'.isalpha() | ' \t\x1c'.isspace() | e.isspace() | 'ab'.islower() | 'aB'.islower() | 'AB1'.isupper() | 'Ab Cd'.istitle() | 'a_b'.isidentifier() | 'é'.isascii() | 'a\n'.isprintable() | 's'.encode()
'%s and %s' % ('a', 1) | '%d' % 3.9 | '%05.1f' % 2.25 | '%x' % 255 | '%-5s|' % 'a' | '%+d' % 3 | '%s' % l | '%r' % 'a' | '%%' % () | '%s' % (1, 2) | '%s %s' % 'a' | '%(b)s' % d | '%e' % 12345.678 | '%g' % 0.00001234 | '%g' % 1e20 | '%.3s' % s | '%d' % 'a' | fmt % ('x', 4) | '%c' % 65 | '%o' % 8 | '%#x' % 255 | '%5%' % ()
'{} {}'.format(1, 'a') | '{0} {1} {0}'.format('x', 'y') | '{a}'.format(a=1) | '{:>5}|{:<5}|{:^5}'.format(1, 2, 3) | '{:.2f}'.format(2.345) | '{:05d}'.format(42) | '{:,}'.format(1234567) | '{:x}'.format(255) | '{:%}'.format(0.25) | '{!r}'.format('a') | '{0[b]}'.format(d) | '{0.b}'.format(d) | '{}'.format() | '{:e}'.format(1234.5) | '{:*^9}'.format('mid') | '{{}}'.format() | '{:+}'.format(3) | '{:g}'.format(1e10) | '{:.3}'.format('abcdef') | '{:.3}'.format(2.0) | '{} {0}'.format(1) | '{:d}'.format('a') | '{:_}'.format(1234567) | braces.format('q', x='r') | '{:>{w}}'.format('a', w=4)
s | length | l | length | d | count | u | length | nil | length | i | length | undefined_a | length | e | length | range(5) | length | d.items() | length | people | map(attribute='name') | length
l | join | l | join(',') | words | join(', ') | people | join(', ', attribute='name') | d | join('/') | 'abc' | join('-') | mixed | join('|') | undefined_a | join | nil | join | l | join(1)
l | first | l | last | none | first | none | last | s | first | d | first | d | last | undefined_a | first | range(3) | last | people | map(attribute='age') | first | people | map(attribute='age') | last
l | sort | l | sort(reverse=true) | words | sort | words | sort(case_sensitive=true) | people | sort(attribute='age') | map(attribute='name') | join(',') | people | sort(attribute='age,name', reverse=true) | map(attribute='name') | join(',') | mixed | sort | l | sort | tojson | d | dictsort | d | dictsort(by='value') | {'B': 1, 'a': 2} | dictsort | {'B': 1, 'a': 2} | dictsort(true) | {'x': 3, 'y': 1} | dictsort(false, 'value') | {'x': 3, 'y': 1} | dictsort(reverse=true)
l | max | l | min | words | max | words | min | none | max | people | max(attribute='age') | tojson | [1, 'a'] | max | l | sum | people | sum(attribute='age') | nested | sum(start=[]) | words | sum | [0.1, 0.2] | sum | none | sum | [1.5, 2] | sum
l | reverse | list | s | reverse | u | reverse | (1, 2) | reverse | list | d | reverse | list | i | reverse | l | unique | list | ['a', 'A', 'b'] | unique | list | ['a', 'A'] | unique(case_sensitive=true) | list | l | batch(2) | list | l | batch(2, 'x') | list | l | slice(2) | list | [1,2,3,4,5] | slice(3, 'f') | list
people | map(attribute='name') | list | people | map(attribute='tags', default='none') | list | words | map('upper') | list | words | map('replace', 'A', 'Z') | list | l | select('odd') | list | l | reject('odd') | list | mixed | select | list | people | selectattr('tags') | map(attribute='name') | list | people | selectattr('age', 'eq', 30) | map(attribute='name') | list | people | selectattr('age', '>', 26) | list | length | people | rejectattr('age', 'equalto', 30) | map(attribute='name') | list | people | selectattr('tags', 'defined') | list | length | l | select('greaterthan', 1) | list | l | map('zzz') | list | l | select('zzz') | list | people | map(attribute='zzz') | list | none | map('zzz') | list | deep | items | list | deep | items | first
'3.7' | int | '3' | int | 'x' | int | 'x' | int(5) | '0x1A' | int(0, 16) | '0x1A' | int(base=0) | '1_000' | int | 3.99 | int | -3.99 | int | nil | int | l | int | ' 42 ' | int | '٣' | int | '1e3' | int | t | int | '3.5' | float | 'x' | float | i | float | 'inf' | float | nil | float(1.5) | '1_0.5' | float | 'nan' | float
2.5 | round | 3.5 | round | 2.675 | round(2) | 42.55 | round(1, 'floor') | 42.55 | round(1, 'ceil') | i | round | 1234.5 | round(-2) | -2.5 | round | 0.5 | round | 1e300 | round(2) | 2.5 | round | int | 7 | round(1, 'ceil') | 15 | round(-1) | 25 | round(-1) | n | abs | -2.5 | abs | s | abs | h | abs
s | default('x') | undefined_a | default('x') | undefined_a | default | e | default('x') | e | default('x', true) | nil | default('x') | nil | d('x', true) | d.zzz | default(1) | no | default('x', boolean=true)
s | upper | s | lower | s | capitalize | 'foo BAR-baz (qux' | title | u | title | sp | trim | 'xxax' | trim('x') | s | center(20) | s | replace('l', 'L') | s | replace('l', 'L', 1) | 5 | replace(5, 6) | i | upper | nil | lower | undefined_a | upper | l | string | f | string | nil | string | s | list | d | list | range(3) | list | 'a b c' | wordcount | 'it''s' | wordcount
multi | indent | multi | indent(2) | multi | indent(2, true) | multi | indent(2, true, true) | multi | indent('> ') | multi | indent(width=1, first=true) | e | indent | 5 | indent | s | truncate(5) | s | truncate(8, true) | s | truncate(8, false, '', 0) | 'short' | truncate | s | truncate(11) | s | truncate(7, true, '…', 0) | s | truncate(2)
html | e | html | escape | html | safe | html | forceescape | s | urlencode | 'a b/c?d=é' | urlencode | {'a b': 1, 'c': '/'} | urlencode | '%s-%s' | format(1, 2) | '%(a)s' | format(a=1) | 1000000 | filesizeformat | 1 | filesizeformat | 2048 | filesizeformat(true) | 999 | filesizeformat | people | groupby('age') | map('first') | list | people | groupby('age') | map(attribute='list') | map('length') | list | d | attr('items') is callable | d | attr('b')
range(3) | range(1, 4) | range(5, 0, -2) | list | range(0) | list | range(100001) | length | range(3)[1] | range(3)[-1] | range(1, 2) == range(1, 2) | range(2, 10, 3) | list | dict(a=1, b='x') | dict({'a': 1}, b=2) | dict([('a', 1)]) | namespace(a=1).a | namespace(a=1).b | lipsum | loop | self | cycler | range('a') | range(1.5)
1 if t else 2 | 1 if no | (1 if no) is defined | 'a' if e else 'b' if i else 'c' | not t | not not i | t and no or i | 1 and 2 and 3 | 0 or '' or none | (1, 2)[0] | [1, 2, 3,] | {'a': 1,} | 'a' 'b' | "a\tb\\n" | '\u00e9\x41\101' | '\q' | 1_000 | 0x1f | 0b11 | 0o17 | 1.5e3 | 1e3 | .5 | 5. | 1.e3 | -i | +n | - - i | -s | ~i | i is odd and t | l | length > 2 | l | length is odd | 'a' in 'abc' and not no | -1 | abs | 2 * 'ab' | 'ab' * 0 | [1] * 2 | 'a' * 1.5 | i.zzz | f.is_integer() | 3.5.is_integer() | foo.bar | foo() | s() | (s ~ i) | upper | i | string ~ 'x' | [] | {} | () | none | [[]] | [()]
1e5 | 100000.0 * 10 | 1e15 | 1e17 | 123456789012345678.0 | 1e-4 | 1e-5 | 1.5e-7 | 1/3 | 2/3 | 1e100 | 1e308 * 10 | -1e308 * 10 | (1e308 * 10) - (1e308 * 10) | 5e-324 | 0.1 * 3 | 1.0 | 100.0 | 1e22 | -0.0 | f // 1 | f * i | 3.0 % 2
'it\'s' | [s, "it's", 'a"b', "'\""] | ['\n\t\\', '\x00', 'é', '\u200b', '🎉', '\xad'] | {'k': [1, {'x': 'y'}]} | [1, 2.0, nil, t, (1,)] | [d.items()] | [undefined_a]
"""

STATEMENTS = [
    "{% for x in l %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }} {% endfor %}",
    "{% for x in none %}a{% else %}none{% endfor %}",
    "{% for x in undefined_a %}a{% else %}none{% endfor %}",
    "{% for x in nil %}a{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }};{% endfor %}",
    "{% for a, b in nested %}{{ a }}{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}",
    "{% for x in l if loop %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}never{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem.y is defined if loop.nextitem is defined else 'n' }} {% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in nested recursive %}[{{ loop(x) if x is iterable else x }}]{% endfor %}",
    "{% for x in nested %}{{ loop(x) }}{% endfor %}",
    "{% for x in 'aé🎉' %}{{ x }}.{% endfor %}",
    "{% for x in range(2) %}{% for y in range(2) %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in l %}{% set y = x %}{% endfor %}{{ y }}",
    "{% set y = 1 %}{% for x in l %}{{ y }}{% set y = x %}{{ y }} {% endfor %}{{ y }}",
    "{% set ns = namespace(c=0) %}{% for x in l %}{% set ns.c = ns.c + x %}{% endfor %}{{ ns.c }}",
    "{% set ns = namespace() %}{{ ns.q }}{% set ns.q = 1 %}{{ ns.q }}",
    "{% set i.x = 1 %}",
    "{% if t %}{% set q = 5 %}{% endif %}{{ q }}",
    "{% if no %}a{% elif nil %}b{% elif i %}c{% else %}d{% endif %}",
    "{% if undefined_a %}a{% else %}b{% endif %}",
    "{% if undefined_a.x %}a{% endif %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}",
    "{% set x %}in {{ i }}{% endset %}[{{ x }}]",
    "{% set x | upper %}in {{ i }}{% endset %}[{{ x }}]",
    "{% set x | replace('a', 'b') | upper | trim %} aa {% endset %}[{{ x }}]",
    "{% set x %}{% set y = 3 %}{% endset %}{{ y }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{% endwith %}{{ q }}",
    "{% filter upper %}ab{{ s }}{% endfilter %}",
    "{% filter replace('l', 'L') | title %}{{ s }}{% endfilter %}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(b=4, a=0) }} {{ m() }}",
    "{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(5) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in {{ i }}{% endcall %}",
    "{% macro m() %}[{{ caller('x') }}]{% endmacro %}{% call(a) m() %}in {{ a }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ m() }}",
    "{% macro m() %}{% set inner = 1 %}{% endmacro %}{{ m() }}{{ inner }}",
    "{% macro m(x) %}{{ x | upper }}{% endmacro %}{{ m('a') ~ m('b') }} {{ m('a') | length }} {{ m('a') is string }}",
    "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{{ m is defined }}{% macro m() %}{% endmacro %}{{ m is defined }}{{ m.name }}",
    "{% block b %}{{ i }}{% endblock %}",
    "{% print i, s %}",
    "{% raw %}{{ x }}{% y %}{# z #}{% endraw %}",
    "{%- raw -%}  a  {%- endraw -%}  b",
    "a{# comment #}b{#- x -#} c",
    "a {#- c #} b",
    "{# {% if %} #}x",
    "  {% if t %}\n  x\n  {% endif %}\n",
    "  {%- if t %}\n  x\n  {%- endif %}\n  y",
    "  {% if t -%}\n  x\n  {% endif -%}\n  y\n\n",
    "  {%+ if t %}\n x {%+ endif %}\ny",
    "a\n{% if t +%}\nb\n{% endif %}\nc",
    "x  {{- i -}}  y",
    "x\n  {{ i }}\n  {{- i }}\n\n",
    "{{ i }}\n\n{{ i }}\n",
    "{{ i }}\r\nx\ry\n",
    "\t{% set a = 1 %}\n\t{{ a }}",
    "a {% set a = 1 %} b",
    "a  {% if t %}\nb{% endif %}\n c",
    "{% for x in l %}\n  - {{ x }}\n{% endfor %}\nend",
    "{% for x in l -%}\n  - {{ x }}\n{%- endfor %}\nend",
    "{% generation %}gen {{ i }}{% endgeneration %} x",
    "\n  {% generation %}\ngen\n  {% endgeneration %}\nx",
    "{%- generation -%} gen {%- endgeneration -%} x",
    "{{ raise_exception('boom') }}",
    "{% if t %}{{ raise_exception('boom') }}{% endif %}",
    "{{ undefined_a }}|{{ d.q }}|{{ l[9] }}",
    "{{ undefined_a + 1 }}",
    "{{ undefined_a() }}",
    "{{ 1 | zzz }}",
    "{% if no %}{{ 1 | zzz }}{% endif %}ok",
    "{{ 1 is zzz }}",
    "{% if no %}{{ 1 is zzz }}{% endif %}ok",
    "{% if no %}{% for x in l %}{{ 1 | zzz }}{% endfor %}{% endif %}ok",
    "{% zzz %}",
    "{% endif %}",
    "{% if t %}",
    "{% for x in l %}",
    "{{ 1",
    "{{ }}",
    "{{ (1 }}",
    "{{ 'a }}",
    "{{ 1 2 }}",
    "{{ a b }}",
    "{# x",
    "{% raw %}x",
    "{% set true = 1 %}",
    "{% set 1 = 1 %}",
    "{% for x l %}{% endfor %}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{{ 1 is odd is even }}",
    "{{ s.upper }}x" ,
    "}} %} #} {",
    "{{ '{{' }}{{ \"}}\" }}{{ '%}' }}",
    "{{ {'a': {'b': 1}}.a.b }}",
    "{{ d|tojson }}{{d.b}}",
    "{% set x = d %}{{ x.b }}",
    "{{ [1, 2, 3] | map('string') | join }}",
    "{% set x = l | map('string') %}{{ x | list }}{{ x | list }}",
    "{% if l | map('string') %}y{% endif %}",
    "{% set messages = people %}{% for m in messages[1:] %}{{ m.name }}{{ loop.index0 }}{% endfor %}",
    "{% set x = people | selectattr('age', 'equalto', 30) | list %}{{ x | length }}{{ (x | first).name }}",
    "{{ (people | last).name }} {{ people[-1]['name'] }}",
    "{% for m in people | reverse %}{{ m.name }}{% endfor %}",
    "{% for m in people[::-1] %}{{ m.name }}{% endfor %}",
    "{%- for m in people %}{%- if m.tags is defined and m.tags %}{{- m.name -}}{%- endif %}{%- endfor %}",
    "{% set s2 = 'a' %}{% set s2 = s2 ~ 'b' %}{{ s2 }}",
    "{{ 'x' if people | length == 3 and people[0].age >= 30 else 'y' }}",
    "{{ namespace }}x" if False else "{{ namespace is callable }}",
    "{{ caller }}{{ varargs }}",
    "{%set x=1%}{{x}}{%if x%}{%endif%}",
    "{%  set  x  =  [ 1 , 2 ]  %}{{  x [ 0 ]  }}",
    "{{ s\n.upper\n(\n) }}",
    "{% set x = {\n 'a': 1,\n 'b': [\n 2 ] } %}{{ x }}",
    "{% if (i == 7) and\n not (z) %}ok{% endif %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}{{ i }}",
    "{% for x in l %}{% for x in words %}{{ x }}{% endfor %}{{ x }}{% endfor %}",
    "{% set loop = 5 %}{{ loop }}",
    "{{ l.sort() }}",
    "{% set _ = l.append(1) %}",
    "{{ l.append }}|{{ d.__class__ }}",
    "{{ d.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ 5 .zzz }}",
]


def templates():
    for line in EXPRESSIONS.strip().split("\n"):
        # " | " between two expressions; filters are written with the same bar, so pieces that are no whole expression join
        # the one before: a filter's name, with or without arguments, is told by the list of names.
        pieces = line.split(" | ")
        whole = []
        for piece in pieces:
            name = piece.split("(")[0].split(" ")[0].split(".")[0]
            if whole and name in FILTERS and not starts_anew(piece):
                whole[-1] += " | " + piece
            else:
                whole.append(piece)
        for one in whole:
            yield "{{ " + one + " }}"
    yield from STATEMENTS


FILTERS = set(_compile_jinja_template("x").environment.filters) | {"zzz"}


def starts_anew(piece):
    """Variables whose names are filters' too."""
    name = piece.split("(")[0].split(" ")[0].split(".")[0].split("[")[0]
    return name in ("d", "e") and not piece.startswith(("d('", "d(\"")) and piece not in ("e",)


def rendered(template, variables):
    try:
        return _compile_jinja_template(template).render(**variables)
    except RecursionError:
        return None
    except Exception:
        return None


def main():
    rows = []
    for template in dict.fromkeys(templates()):
        text = rendered(template, json.loads(VARIABLES))
        if text is not None and " at 0x" in text:
            continue
        rows.append([template, text])
    path = Path(__file__).with_name("expressions.json")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text('{"variables": ' + json.dumps(VARIABLES) + ',\n"rows": [\n' + lines + "\n]}\n", encoding="utf-8")
    print(len(rows), "rows,", sum(text is None for _, text in rows), "errors")


if __name__ == "__main__":
    main()
