// @ts-check
/** A text inside a PNG file, under a name; ComfyUI reads a workflow from there. The pixels stay as they are. */

const SIGNATURE = 8
const FIRST_CHUNK = SIGNATURE + 25 // the header, which always has thirteen bytes

/**
 * @param {Uint8Array} png
 * @param {string} name
 * @param {string} text
 * @returns {Uint8Array}
 */
export function withText(png, name, text) {
  const body = latin(`tEXt${name}\0${ascii(text)}`)
  const chunk = new Uint8Array(body.length + 8)
  const view = new DataView(chunk.buffer)
  view.setUint32(0, body.length - 4)
  chunk.set(body, 4)
  view.setUint32(chunk.length - 4, checksum(body))
  const file = new Uint8Array(png.length + chunk.length)
  file.set(png.subarray(0, FIRST_CHUNK))
  file.set(chunk, FIRST_CHUNK)
  file.set(png.subarray(FIRST_CHUNK), FIRST_CHUNK + chunk.length)
  return file
}

/**
 * JSON whose letters all fit into what such a chunk may hold.
 * @param {string} json
 */
export const ascii = (json) =>
  json.replace(/[^\x20-\x7e]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`)

/** @type {(text: string) => Uint8Array} */
const latin = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0))

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1
  return byte
})

/**
 * The CRC-32 that a chunk ends with.
 * @param {Uint8Array} bytes
 */
export function checksum(bytes) {
  let crc = 0xffffffff
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}
