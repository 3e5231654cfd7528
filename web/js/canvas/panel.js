// @ts-check
/** What there is around the picture: buttons, the prompt, the line that says what goes on. */
import { icon } from './icons.js'

/** @typedef {Record<string, () => void>} Actions  by the name of what they do */
/**
 * An element with attributes and children; what is a function is listened to.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} kind
 * @param {Record<string, any>} [given]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(kind, given = {}, ...children) {
  const made = document.createElement(kind)
  for (const [name, value] of Object.entries(given)) {
    if (typeof value === 'function') made.addEventListener(name, value)
    else if (value !== undefined) made.setAttribute(name, value)
  }
  made.append(...children)
  return made
}

/** What each button is called, and its key. @type {[string, string][][]} */
const GROUPS = [
  [['brush', 'Paint what is to change (B)'], ['eraser', 'Erase what was painted (E)'],
    ['sketch', 'Paint colours that the new part begins with (S)']],
  [['undo', 'Undo: strokes, and what was kept (Ctrl+Z)'], ['redo', 'Redo (Ctrl+Shift+Z)'],
    ['clear', 'Remove all that is painted (Backspace)']],
  [['compare', 'Hold to see the canvas before (hold C)'], ['fit', 'Show the whole picture (0)'],
    ['full', 'Full window, and back (F)']],
  [['open', 'Open a picture (O); or drop or paste one'], ['blank', 'Start a blank canvas (N)'],
    ['save', 'Export: a PNG that opens as this workflow, picture and all; with Shift the workflow as JSON']],
]
const TOOLS = ['brush', 'eraser', 'sketch']
const CURVE = 3 // the slider goes by the root of the brush's size
const COUNTS = ['1', '2', '4', '8']

/** @type {(size: number) => number} */
export const onSlider = (size) => Math.round(Math.sqrt(size) * CURVE)
/** @type {(value: number) => number} */
export const fromSlider = (value) => (value / CURVE) ** 2

export class Panel {
  /** @param {Actions} actions */
  constructor(actions) {
    /** @type {Record<string, HTMLButtonElement>} */
    this.buttons = {}
    const groups = GROUPS.map((group) => group.map(([name, title]) => this.button(name, title, actions[name])))
    const gap = () => element('span', { class: 'lazy-canvas-gap' })
    this.size = element('input', {
      type: 'range', min: 1, max: 100, title: 'Size of the brush ([ and ])', 'aria-label': 'Size of the brush',
      input: actions.sized,
    })
    this.colour = element('input', { type: 'color', value: '#e04030', title: 'Colour of the sketch',
      'aria-label': 'Colour of the sketch', input: actions.coloured })
    this.tools = element('div', { class: 'lazy-canvas-row', role: 'toolbar', 'aria-label': 'Canvas' },
      ...groups[0], this.size, this.colour, gap(), ...groups[1], gap(), ...groups[2], gap(), ...groups[3])
    this.prompt = element('input', {
      type: 'text', placeholder: 'What should be there?', title: 'What to put where it is painted (P); Enter generates',
      'aria-label': 'Prompt', input: actions.prompted,
    })
    this.count = element('select', { title: 'Variations to choose from', 'aria-label': 'Variations',
      change: actions.counted }, ...COUNTS.map((each) => element('option', { value: each }, `×${each}`)))
    this.seed = element('input', { type: 'number', min: 0, step: 1, title: 'Seed of the first variation',
      'aria-label': 'Seed', change: actions.seeded })
    this.fixed = this.button('lock', 'Keep this seed; otherwise each Enter has a new one', actions.fixed)
    this.generate = element('button', { class: 'main', type: 'button', title: 'Generate (Enter)',
      click: actions.generate }, 'Generate')
    this.stop = element('button', { type: 'button', title: 'Stop (Esc): the canvas stays as it is',
      click: actions.stop }, icon('stop'), 'Stop')
    this.asking = element('div', { class: 'lazy-canvas-row' },
      this.prompt, this.count, this.seed, this.fixed, this.generate, this.stop)
    this.bar = element('progress', { max: 1, value: 0 })
    this.word = element('span')
    this.status = element('div', { class: 'lazy-canvas-status', role: 'status', 'aria-live': 'polite' },
      this.bar, this.word)
  }

  /**
   * @param {string} name
   * @param {string} title
   * @param {() => void} [act]
   */
  button(name, title, act) {
    this.buttons[name] = element('button', { type: 'button', title, 'aria-label': title, click: act }, icon(name))
    return this.buttons[name]
  }

  /** @param {string} chosen */
  showTool(chosen) {
    for (const name of TOOLS) this.buttons[name].setAttribute('aria-pressed', String(name === chosen))
    this.colour.hidden = chosen !== 'sketch'
  }

  /**
   * @param {string} word
   * @param {{ bad?: boolean, share?: number }} [how]
   */
  say(word, { bad = false, share } = {}) {
    this.word.textContent = word
    this.status.classList.toggle('bad', bad)
    this.bar.hidden = share === undefined
    this.bar.value = share ?? 0
  }
}

/**
 * What an empty canvas says, and the two ways on beside dropping something.
 * @param {Actions} actions
 */
export function emptyNote(actions) {
  return element('div', { class: 'lazy-canvas-empty' },
    element('strong', {}, 'Drop or paste a picture'),
    element('div', { class: 'lazy-canvas-row' },
      element('button', { type: 'button', click: actions.open }, icon('open'), 'Open a picture'),
      element('button', { type: 'button', click: actions.blank }, icon('blank'), 'Blank canvas')),
    element('span', {}, 'A picture that is connected to this node comes here with Run.'))
}

/**
 * Asks for the size of a blank canvas.
 * @param {number} side
 * @returns {Promise<[number, number] | undefined>}
 */
export function askSize(side) {
  const number = (/** @type {string} */ label) => element('input', { type: 'number', min: 16, max: 16384, step: 8,
    value: side, required: '', 'aria-label': label, title: label })
  const [width, height] = [number('Width in pixels'), number('Height in pixels')]
  const form = element('form', { method: 'dialog', class: 'lazy-canvas lazy-canvas-row' }, width, '×', height,
    element('button', { class: 'main', value: 'ok' }, 'Start'))
  const dialog = element('dialog', { style: 'padding: 0; border: 0; background: none' }, form)
  document.body.append(dialog)
  dialog.showModal()
  return new Promise((done) => dialog.addEventListener('close', () => {
    dialog.remove()
    done(dialog.returnValue === 'ok' ? [Number(width.value), Number(height.value)] : undefined)
  }))
}
