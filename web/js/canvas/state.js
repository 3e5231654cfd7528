// @ts-check
/**
 * What a canvas is: pictures that were kept, one of which is shown, and what is painted on it. Every change makes a new
 * document and leaves the old one as it was, so that undo is to go back to it.
 */

/** @typedef {{ id: string, width: number, height: number }} Picture  a file on the server, which never changes */
/**
 * A stroke's points are x and y in pixels of the picture, one after the other; `widths` has one number for each point
 * where the pen's pressure changed it. A box fills a rectangle of x, y, width and height.
 * @typedef {{
 *   size: number, points: number[], widths?: number[], erase?: boolean, colour?: string, box?: number[],
 * }} Stroke
 */
/** @typedef {{ history: readonly Picture[], at: number, strokes: readonly Stroke[] }} Document */
/** @typedef {{ prompt: string, seed: number, fixed: boolean, variations: number }} Settings */
/** @typedef {{ past: readonly Document[], present: Document, future: readonly Document[] }} Timeline */

export const VERSION = 1
const MOST_KEPT = 200
const MOST_UNDONE = 100

/** @type {Document} */
export const EMPTY = Object.freeze({ history: [], at: -1, strokes: [] })
/** @type {Settings} */
export const DEFAULTS = Object.freeze({ prompt: '', seed: 0, fixed: false, variations: 4 })

/**
 * The picture that is shown, if there is one.
 * @param {Document} document
 * @returns {Picture | undefined}
 */
export const picture = (document) => document.history[document.at]

/**
 * A canvas that begins anew.
 * @param {Picture} first
 * @returns {Document}
 */
export const opened = (first) => ({ history: [first], at: 0, strokes: [] })

/**
 * @param {Document} document
 * @param {Stroke} stroke
 * @returns {Document}
 */
export const painted = (document, stroke) => ({ ...document, strokes: [...document.strokes, stroke] })

/**
 * Nothing is painted any more.
 * @param {Document} document
 * @returns {Document}
 */
export const cleared = (document) => ({ ...document, strokes: [] })

/**
 * The next picture: what could have been redone is no longer ahead.
 * @param {Document} document
 * @param {Picture} next
 * @param {readonly Stroke[]} [strokes] what is painted on it from the beginning
 * @returns {Document}
 */
export function kept(document, next, strokes = []) {
  const history = [...document.history.slice(0, document.at + 1), next].slice(-MOST_KEPT)
  return { history, at: history.length - 1, strokes }
}

/**
 * @param {Document} present
 * @returns {Timeline}
 */
export const timeline = (present) => ({ past: [], present, future: [] })

/**
 * @param {Timeline} line
 * @param {Document} next
 * @returns {Timeline}
 */
export const commit = (line, next) => ({
  past: [...line.past, line.present].slice(-MOST_UNDONE), present: next, future: [],
})

/**
 * A step back; where none is remembered, as after a reload, the last stroke goes, and then the last kept picture.
 * @param {Timeline} line
 * @returns {Timeline}
 */
export function undo({ past, present, future }) {
  const before = past.length ? past[past.length - 1] : earlier(present)
  if (!before) return { past, present, future }
  return { past: past.slice(0, -1), present: before, future: [present, ...future] }
}

/**
 * @param {Timeline} line
 * @returns {Timeline}
 */
export function redo({ past, present, future }) {
  const after = future.length ? future[0] : later(present)
  if (!after) return { past, present, future }
  return { past: [...past, present], present: after, future: future.slice(1) }
}

/** @type {(document: Document) => Document | undefined} */
function earlier(document) {
  if (document.strokes.length) return { ...document, strokes: document.strokes.slice(0, -1) }
  return document.at > 0 ? { ...document, at: document.at - 1 } : undefined
}

/** @type {(document: Document) => Document | undefined} */
function later(document) {
  return document.at + 1 < document.history.length ? { ...document, at: document.at + 1, strokes: [] } : undefined
}

/**
 * The text that a workflow is saved with.
 * @param {Document} document
 * @param {Settings} settings
 * @param {Record<string, string>} [pictures] files as data URLs, by id, for a workflow that goes to another machine
 */
export const written = (document, settings, pictures) =>
  JSON.stringify({ version: VERSION, ...document, ...settings, ...(pictures && { pictures }) })

/**
 * A saved text, of which anything may be missing or wrong.
 * @param {unknown} text
 * @returns {{ document: Document, settings: Settings, pictures: Record<string, string> }}
 */
export function read(text) {
  /** @type {any} */
  let saved = {}
  try {
    saved = JSON.parse(String(text || '{}')) ?? {}
  } catch {
    // Nothing that was written here: an empty canvas.
  }
  const history = Array.isArray(saved.history) ? saved.history.filter(isPicture) : []
  const at = Number.isInteger(saved.at) ? Math.min(Math.max(saved.at, -1), history.length - 1) : history.length - 1
  const strokes = Array.isArray(saved.strokes) ? saved.strokes.filter(isStroke) : []
  const settings = { ...DEFAULTS }
  if (typeof saved.prompt === 'string') settings.prompt = saved.prompt
  if (Number.isSafeInteger(saved.seed) && saved.seed >= 0) settings.seed = saved.seed
  if (Number.isInteger(saved.variations)) settings.variations = Math.min(Math.max(saved.variations, 1), 16)
  settings.fixed = saved.fixed === true
  return { document: { history, at, strokes }, settings, pictures: saved.pictures ?? {} }
}

/** @type {(each: any) => boolean} */
const isPicture = (each) => /^[0-9a-f]{32}$/.test(each?.id) && each.width > 0 && each.height > 0
/** @type {(each: any) => boolean} */
const isStroke = (each) => each?.size > 0 && Array.isArray(each.points) && each.points.every(Number.isFinite)
