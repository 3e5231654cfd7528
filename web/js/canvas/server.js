// @ts-check
/** What the page asks the server that it came from; whatever goes wrong has a word for the person. */
import { api } from '../../../../scripts/api.js'

/** @typedef {import('./state.js').Picture} Picture */
/** @typedef {import('./geometry.js').Margins} Margins */

const PATH = '/lazydiffusion/canvas'
export const SILENT = 'the server does not answer: is it running?'
const FOLDER = 'lazydiffusion'
const NAME = 'lazydiffusion.tab'

/** The name that this tab gives itself: it survives a reload, and no other tab has it. */
export const tab = sessionStorage.getItem(NAME) ?? random()
sessionStorage.setItem(NAME, tab)

export function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, '0')).join('')
}

/**
 * @param {string} path
 * @param {BodyInit} body
 * @returns {Promise<any>}
 */
async function post(path, body) {
  /** @type {Response} */
  let answer
  try {
    answer = await api.fetchApi(`${PATH}/${path}`, { method: 'POST', body })
  } catch {
    throw new Error(SILENT)
  }
  const told = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(told.error ?? `the server answers ${answer.status}`)
  return told
}

/** @type {(file: Blob) => Promise<Picture>} */
export const open = (file) => post('picture', file)

/** @type {(width: number, height: number) => Promise<Picture>} */
export const blank = (width, height) => post('blank', JSON.stringify({ width, height }))

/** @type {(id: string, added: Margins) => Promise<Picture>} */
export const extend = (id, added) => post('extend', JSON.stringify({ id, ...added }))

/** @type {(id: string) => Promise<void>} */
export const keep = (id) => post('keep', JSON.stringify({ id, tab }))

/** The side of a blank canvas that suits the model of the pack. */
export async function newSize() {
  const answer = await api.fetchApi(PATH)
  return answer.ok ? (await answer.json()).size : 512
}

/**
 * Where a picture's file is.
 * @param {string} id
 * @param {boolean} kept
 */
export const address = (id, kept) =>
  api.apiURL(`/view?filename=${id}.png&subfolder=${FOLDER}&type=${kept ? 'input' : 'temp'}`)
