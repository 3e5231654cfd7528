// @ts-check
/** Canvases that leave this machine: a PNG or a workflow that has the pictures inside. */
import { app } from '../../../../scripts/app.js'
import { withText } from './png.js'
import { address, open } from './server.js'

/** @typedef {import('./state.js').Picture} Picture */
/**
 * A canvas that is somewhere in the workflow.
 * @typedef {{ shown(): Picture | undefined, enclosed: Record<string, string> | undefined }} Travelling
 */

/** Every canvas there is, each of which goes along. @type {Set<Travelling>} */
export const canvases = new Set()

/**
 * The workflow, with the pictures that its canvases show.
 * @returns {Promise<object>}
 */
async function enclosing() {
  const all = [...canvases]
  await Promise.all(all.map(async (canvas) => {
    const picture = canvas.shown()
    canvas.enclosed = picture && { [picture.id]: await asURL(await file(picture)) }
  }))
  try {
    return (await app.graphToPrompt()).workflow
  } finally {
    for (const canvas of all) canvas.enclosed = undefined
  }
}

/** @type {(picture: Picture) => Promise<Blob>} */
async function file(picture) {
  const answer = await fetch(address(picture.id, true))
  if (!answer.ok) throw new Error('the picture of this canvas is not on this server')
  return answer.blob()
}

/** @type {(blob: Blob) => Promise<string>} */
const asURL = (blob) => new Promise((done, failed) => {
  const reader = new FileReader()
  reader.onload = () => done(String(reader.result))
  reader.onerror = () => failed(new Error('the picture could not be read'))
  reader.readAsDataURL(blob)
})

/**
 * The picture as it lies on the server, with the workflow inside.
 * @param {Picture} picture
 */
export async function savePNG(picture) {
  const bytes = new Uint8Array(await (await file(picture)).arrayBuffer())
  download(withText(bytes, 'workflow', JSON.stringify(await enclosing())), 'image/png', 'canvas.png')
}

export async function saveWorkflow() {
  download(JSON.stringify(await enclosing()), 'application/json', 'canvas.json')
}

/**
 * @param {BlobPart} data
 * @param {string} type
 * @param {string} name
 */
function download(data, type, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([data], { type }))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

/**
 * Pictures that came with a workflow go to this server, which gives them the names that they had.
 * @param {Record<string, string>} pictures
 */
export async function takeIn(pictures) {
  for (const url of Object.values(pictures)) {
    if (/^data:image\/png;base64,/.test(url)) await open(await (await fetch(url)).blob())
  }
}
