// Every kind of broken safetensors file is refused, with the file, the tensor, what is wrong and the value.

import { writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import { FormatError, IoError } from "../../lib/errors.js";
import { safetensorsBytes } from "./helpers.js";

const dir = t.testdir({});
const data = (bytes: number) => Buffer.alloc(bytes, 1);
const f32 = (shape: number[], begin: number, end: number) => ({ dtype: "F32", shape, data_offsets: [begin, end] });
const entry = (text: string) => safetensorsBytes(`{"w":${text}}`, data(8));
const one = '"dtype":"F32","shape":[2],"data_offsets":[0,8]';

const cases: [name: string, bytes: Uint8Array, message: RegExp][] = [
  ["an empty file", Buffer.alloc(0), /has 0 bytes, fewer than the 8/],
  ["fewer bytes than the length", Buffer.alloc(7), /has 7 bytes, fewer than the 8/],
  [
    "a header over 100 MB",
    safetensorsBytes("{}", data(0), 100_000_001n),
    /would have 100000001 bytes, more than the 100000000/,
  ],
  [
    "a header of 2^64 - 1 bytes",
    safetensorsBytes("{}", data(0), 2n ** 64n - 1n),
    /would have 18446744073709551615 bytes/,
  ],
  [
    "a header beyond the file",
    safetensorsBytes("{}", data(0), 99n),
    /should have 99 bytes, but the file has only 10.*cut off/,
  ],
  [
    "a header of no bytes",
    safetensorsBytes("", data(0)),
    /must begin with '\{', but begins with the end of the header/,
  ],
  ["leading space", safetensorsBytes(` {"w":{${one}}}`, data(8)), /must begin with '\{'.*leading white space/],
  ["leading newline", safetensorsBytes(`\n{"w":{${one}}}`, data(8)), /must begin with '\{'.*leading white space/],
  [
    "a byte order mark",
    safetensorsBytes(`\uFEFF{"w":{${one}}}`, data(8)),
    /must begin with '\{', but begins with byte 0xef at byte 8/,
  ],
  ["an array", safetensorsBytes("[]", data(0)), /must begin with '\{', but begins with '\['/],
  [
    "text after the object",
    safetensorsBytes("{} x", data(0)),
    /after the end of the header's object there is 'x' at byte 11/,
  ],
  ["a second object", safetensorsBytes("{}{}", data(0)), /after the end of the header's object there is '\{'/],
  [
    "zero bytes after the object",
    safetensorsBytes("{}\0\0", data(0)),
    /after the end of the header's object there is byte 0x00/,
  ],
  ["newline padding", safetensorsBytes("{}\n", data(0)), /after the end of the header's object there is byte 0x0a/],
  [
    "an object that is not closed",
    safetensorsBytes(`{"w":{${one}}`, data(8)),
    /expected ',' between tensors, but there is the end/,
  ],
  ["a trailing comma", safetensorsBytes(`{"w":{${one}},}`, data(8)), /expected a tensor name, but there is '\}'/],
  ["a name without quotes", safetensorsBytes(`{w:{${one}}}`, data(8)), /expected a tensor name, but there is 'w'/],
  ["a string that is not closed", safetensorsBytes('{"w', data(0)), /a string is not closed/],
  [
    "invalid UTF-8 in a name",
    safetensorsBytes(Buffer.from(`{"w\xff":{${one}}}`, "latin1"), data(8)),
    /not valid UTF-8: there is byte 0xff/,
  ],
  ["overlong UTF-8", safetensorsBytes(Buffer.from(`{"\xc0\xaf":{${one}}}`, "latin1"), data(8)), /not valid UTF-8/],
  [
    "a surrogate in UTF-8",
    safetensorsBytes(Buffer.from(`{"\xed\xa0\x80":{${one}}}`, "latin1"), data(8)),
    /not valid UTF-8/,
  ],
  [
    "beyond U+10FFFF",
    safetensorsBytes(Buffer.from(`{"\xf4\x90\x80\x80":{${one}}}`, "latin1"), data(8)),
    /not valid UTF-8/,
  ],
  ["a cut UTF-8 sequence", safetensorsBytes(Buffer.from('{"w\xe2\x82', "latin1"), data(0)), /not valid UTF-8/],
  ["half a surrogate pair", safetensorsBytes(`{"\\ud800":{${one}}}`, data(8)), /half a surrogate pair/],
  ["a low surrogate alone", safetensorsBytes(`{"\\udc00":{${one}}}`, data(8)), /half a surrogate pair/],
  ["an unknown escape", safetensorsBytes(`{"\\x41":{${one}}}`, data(8)), /unknown escape/],
  ["a broken \\u escape", safetensorsBytes(`{"\\u00g1":{${one}}}`, data(8)), /\\u escape holds 'g'/],
  ["a control character", safetensorsBytes(`{"a\tb":{${one}}}`, data(8)), /unescaped control character byte 0x09/],
  ["an escaped NUL in a name", safetensorsBytes(`{"a\\u0000b":{${one}}}`, data(8)), /"a\\x00b" holds a NUL character/],
  ["a NUL in a name", safetensorsBytes(`{"a\0b":{${one}}}`, data(8)), /unescaped control character byte 0x00/],
  ["a name twice", safetensorsBytes(`{"w":{${one}},"w":{${one}}}`, data(8)), /tensor "w": the name occurs twice/],
  [
    "a name twice, once escaped",
    safetensorsBytes(`{"w":{${one}},"\\u0077":{${one}}}`, data(8)),
    /tensor "w": the name occurs twice/,
  ],
  [
    "__metadata__ twice",
    safetensorsBytes(`{"__metadata__":{},"__metadata__":{}}`, data(0)),
    /__metadata__ occurs twice/,
  ],
  [
    "a metadata key twice",
    safetensorsBytes(`{"__metadata__":{"a":"1","a":"2"}}`, data(0)),
    /__metadata__ key "a" occurs twice/,
  ],
  ["a NUL in a metadata key", safetensorsBytes(`{"__metadata__":{"a\\u0000":"1"}}`, data(0)), /"a\\x00" holds a NUL/],
  [
    "metadata that is no object",
    safetensorsBytes(`{"__metadata__":[]}`, data(0)),
    /expected '\{' as the value of __metadata__/,
  ],
  [
    "a metadata number",
    safetensorsBytes(`{"__metadata__":{"a":1}}`, data(0)),
    /expected a string as the value of __metadata__ "a", but there is '1'/,
  ],
  [
    "nested metadata",
    safetensorsBytes(`{"__metadata__":{"a":{"b":"c"}}}`, data(0)),
    /expected a string as the value of __metadata__ "a"/,
  ],
  ["an entry that is no object", entry("[]"), /expected '\{' as the value of tensor "w"/],
  ["an entry of null", entry("null"), /expected '\{' as the value of tensor "w", but there is 'n'/],
  ["no dtype", entry('{"shape":[2],"data_offsets":[0,8]}'), /tensor "w": dtype is missing/],
  ["no shape", entry('{"dtype":"F32","data_offsets":[0,8]}'), /tensor "w": shape is missing/],
  ["no data_offsets", entry('{"dtype":"F32","shape":[2]}'), /tensor "w": data_offsets is missing/],
  ["an unknown key", entry(`{${one},"strides":[1]}`), /tensor "w": unknown key "strides"/],
  ["dtype twice", entry(`{"dtype":"F32",${one}}`), /tensor "w": "dtype" occurs twice/],
  ["shape twice", entry(`{"shape":[2],${one}}`), /tensor "w": "shape" occurs twice/],
  ["data_offsets twice", entry(`{${one},"data_offsets":[0,8]}`), /tensor "w": "data_offsets" occurs twice/],
  [
    "an unknown dtype",
    entry('{"dtype":"F33","shape":[2],"data_offsets":[0,8]}'),
    /tensor "w": unknown dtype "F33"; known are BOOL, /,
  ],
  ["a dtype in lower case", entry('{"dtype":"f32","shape":[2],"data_offsets":[0,8]}'), /unknown dtype "f32"/],
  [
    "a dtype that is no string",
    entry('{"dtype":32,"shape":[2],"data_offsets":[0,8]}'),
    /expected a string as the dtype of tensor "w"/,
  ],
  [
    "a negative size",
    entry('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'),
    /shape of tensor "w" must be integers of zero or more, but there is -2/,
  ],
  [
    "a fractional size",
    entry('{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}'),
    /shape of tensor "w".*but there is 2\.0/,
  ],
  ["an exponent", entry('{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}'), /shape of tensor "w".*but there is 2e0/],
  [
    "a leading zero",
    entry('{"dtype":"F32","shape":[02],"data_offsets":[0,8]}'),
    /shape of tensor "w".*but there is 02/,
  ],
  [
    "a size in quotes",
    entry('{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}'),
    /shape of tensor "w".*but there is '"'/,
  ],
  [
    "a size of 2^53",
    entry('{"dtype":"F32","shape":[9007199254740992,0],"data_offsets":[0,8]}'),
    /holds 9007199254740992, which is too large/,
  ],
  [
    "a size beyond 64 bits",
    entry(`{"dtype":"F32","shape":[1${"0".repeat(60)}],"data_offsets":[0,8]}`),
    /shape of tensor "w" holds 10+, which is too large/,
  ],
  [
    "a product beyond 64 bits",
    entry('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}'),
    /tensor "w": shape \[4294967296, 4294967296\] has too many elements/,
  ],
  [
    "a product that wraps to the right size",
    entry('{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,8]}'),
    /too large/,
  ],
  [
    "bits beyond 64 bits",
    entry('{"dtype":"F64","shape":[2147483648,2147483648],"data_offsets":[0,8]}'),
    /too many elements/,
  ],
  [
    "a nested shape",
    entry('{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}'),
    /shape of tensor "w".*but there is '\['/,
  ],
  [
    "a shape nested a million deep",
    entry(`{"dtype":"F32","shape":${"[".repeat(1_000_000)}`),
    /shape of tensor "w".*but there is '\['/,
  ],
  [
    "objects nested a million deep",
    safetensorsBytes('{"a":'.repeat(1_000_000), data(0)),
    /tensor "a": unknown key "a"/,
  ],
  [
    "65 dimensions",
    entry(`{"dtype":"F32","shape":[${Array(65).fill(1)}],"data_offsets":[0,8]}`),
    /shape of tensor "w" has more than 64 numbers/,
  ],
  [
    "one offset",
    entry('{"dtype":"F32","shape":[2],"data_offsets":[0]}'),
    /tensor "w": data_offsets must be two numbers, but there are 1/,
  ],
  [
    "three offsets",
    entry('{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}'),
    /data_offsets of tensor "w" has more than 2/,
  ],
  [
    "offsets in reverse",
    entry('{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'),
    /tensor "w": data_offsets \[8, 0\] end before they begin/,
  ],
  [
    "an offset beyond 64 bits",
    entry('{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551624]}'),
    /data_offsets of tensor "w" holds 18446744073709551624, which is too large/,
  ],
  ["a negative offset", entry('{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}'), /data_offsets of tensor "w".*-8/],
  [
    "truncated data",
    safetensorsBytes({ w: f32([2], 0, 8) }, data(7)),
    /tensor "w": data_offsets \[0, 8\] go beyond the 7 bytes of data.*cut off/,
  ],
  [
    "too few bytes for the shape",
    safetensorsBytes({ w: f32([3], 0, 8) }, data(8)),
    /tensor "w": shape \[3\] of F32 needs 12 bytes, but data_offsets \[0, 8\] hold 8/,
  ],
  [
    "too many bytes for the shape",
    safetensorsBytes({ w: f32([1], 0, 8) }, data(8)),
    /tensor "w": shape \[1\] of F32 needs 4 bytes/,
  ],
  [
    "bytes for a shape with a zero",
    safetensorsBytes({ w: f32([0], 0, 8) }, data(8)),
    /tensor "w": shape \[0\] of F32 needs 0 bytes/,
  ],
  [
    "half a byte",
    safetensorsBytes({ w: { dtype: "F4", shape: [3], data_offsets: [0, 2] } }, data(2)),
    /shape \[3\] of F4 does not fill whole bytes/,
  ],
  [
    "an overlap",
    safetensorsBytes({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, data(12)),
    /tensor "b": data_offsets \[4, 12\] overlap those of tensor "a", which end at 8/,
  ],
  [
    "the same bytes twice",
    safetensorsBytes({ a: f32([2], 0, 8), b: f32([2], 0, 8) }, data(8)),
    /tensor "b": data_offsets \[0, 8\] overlap those of tensor "a"/,
  ],
  [
    "an empty tensor inside another",
    safetensorsBytes({ a: f32([2], 0, 8), b: f32([0], 4, 4) }, data(8)),
    /tensor "b": .*overlap/,
  ],
  [
    "a hole at the start",
    safetensorsBytes({ w: f32([2], 4, 12) }, data(12)),
    /tensor "w": data_offsets \[4, 12\] leave a hole: bytes 0 to 4/,
  ],
  [
    "a hole in the middle",
    safetensorsBytes({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, data(12)),
    /tensor "b": .*leave a hole: bytes 4 to 8/,
  ],
  [
    "trailing bytes",
    safetensorsBytes({ w: f32([2], 0, 8) }, data(9)),
    /the last 1 bytes of the file belong to no tensor/,
  ],
  ["data without tensors", safetensorsBytes({}, data(3)), /the last 3 bytes of the file belong to no tensor/],
  [
    "a Git LFS pointer",
    Buffer.from("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    /Git LFS pointer.*git lfs pull/,
  ],
  [
    "a pickle",
    Buffer.from("80027d7100580600000077656967687471014e732e".repeat(4), "hex"),
    /would have \d+ bytes, more than|must begin/,
  ],
];

for (const [name, bytes, message] of cases) {
  t.test(`refused: ${name}`, async (t) => {
    const file = path.join(dir, `${name.replace(/[^a-z0-9]+/gi, "_")}.safetensors`);
    writeFileSync(file, bytes);
    const error = await SafetensorsFile.open(file).then(
      () => undefined,
      (error: unknown) => error,
    );
    t.ok(error instanceof FormatError, `a FormatError, not ${String(error)}`);
    const text = (error as Error).message;
    t.match(text, message);
    t.ok(text.startsWith(file), "the message begins with the file");
    t.notMatch(text, /\n/, "one line");
  });
}

t.test("accepted: what the format allows and is easily refused by mistake", async (t) => {
  const accepted: [name: string, bytes: Uint8Array, names: string[]][] = [
    ["spaces after the object", safetensorsBytes(`{"w":{${one}}}      `, data(8)), ["w"]],
    [
      "white space inside",
      safetensorsBytes(`{ "w" :\n{ "dtype" : "F32",\t"shape" : [ 2 ] , "data_offsets":[ 0 , 8 ]\r} }`, data(8)),
      ["w"],
    ],
    ["no tensors", safetensorsBytes("{}", data(0)), []],
    ["an odd header length", safetensorsBytes(`{"wx":{${one}}} `, data(8)), ["wx"]],
    [
      "entries in another order than their bytes",
      safetensorsBytes({ b: f32([1], 4, 8), a: f32([1], 0, 4) }, data(8)),
      ["a", "b"],
    ],
    [
      "empty tensors at every border",
      safetensorsBytes({ z: f32([0], 4, 4), a: f32([1], 0, 4), y: f32([0, 5], 0, 0) }, data(4)),
      ["y", "a", "z"],
    ],
    ["escapes", safetensorsBytes(`{"\\u0077\\"\\\\\\/\\n\\ud83d\\ude42":{${one}}}`, data(8)), ['w"\\/\n🙂']],
    [
      "names of Object.prototype",
      safetensorsBytes(`{"__proto__":{${one}},"__metadata__":{"__proto__":"x"}}`, data(8)),
      ["__proto__"],
    ],
  ];
  for (const [name, bytes, names] of accepted) {
    const file = path.join(dir, "accepted.safetensors");
    writeFileSync(file, bytes);
    using opened = await SafetensorsFile.open(file);
    t.same([...opened.entries.keys()], names, name);
  }
});

t.test("a path that cannot be read is an IoError", async (t) => {
  await t.rejects(SafetensorsFile.open(path.join(dir, "missing.safetensors")), {
    constructor: IoError,
    message: /cannot open .*missing\.safetensors: No such file or directory \(ENOENT\)/,
    details: { errno: "ENOENT" },
  });
  await t.rejects(SafetensorsFile.open(dir), {
    constructor: IoError,
    message: /Is a directory/,
    details: { errno: "EISDIR" },
  });
  await t.rejects(SafetensorsFile.open("/dev/zero"), { message: /is not a regular file/ });
  await t.rejects(SafetensorsFile.open("a\0b"), { message: /NUL/ });
});
