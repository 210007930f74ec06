// GPT-2's printable stand-ins for the 256 bytes, and text written in them.

import { type AlignedText, TextBuilder } from "./aligned_text.js";

/** Index is the byte, value the character. */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  const characters: string[] = new Array(256);
  let extra = 0;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    characters[byte] = String.fromCharCode(printable ? byte : 256 + extra++);
  }
  return characters;
})();

const bytesOf = (text: string) => Array.from(Buffer.from(text, "utf8"), (byte) => BYTE_CHARACTERS[byte]).join("");

/** A text's UTF-8 bytes as stand-ins. */
export function byteLevel(source: AlignedText): AlignedText {
  const { text } = source;
  // ASCII stays as long as it is, and mostly what it is.
  if (/^[!-~]*$/.test(text)) return source;
  if (/^[\0-\x7f]*$/.test(text)) {
    return source.withText(text.replace(/[\0- \x7f]/g, (c) => BYTE_CHARACTERS[c.charCodeAt(0)] as string));
  }
  const builder = new TextBuilder(source);
  let at = 0;
  for (const character of text) {
    builder.put(bytesOf(character), at, at + character.length);
    at += character.length;
  }
  return builder.done();
}
