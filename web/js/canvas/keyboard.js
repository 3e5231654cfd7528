// @ts-check
/**
 * Keys, while the canvas has the focus and at no other time: a text field that nobody sees receives them, which the
 * host leaves its keys, as it does every text field.
 */

/** @typedef {Record<string, () => void>} Actions */

/** What keys do, by their names. @type {Record<string, string>} */
const KEYS = {
  Enter: 'generate', Escape: 'escape', Backspace: 'clear', Delete: 'discard', '[': 'smaller', ']': 'larger',
  '+': 'closer', '=': 'closer', '-': 'farther', 0: 'fit', b: 'brush', e: 'eraser', s: 'sketch', f: 'full', o: 'open',
  n: 'blank', p: 'write', k: 'keep', x: 'discard', a: 'everything',
}
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

export class Keyboard {
  /**
   * @param {Actions} actions
   * @param {{
   *   choose(i: number): void, step(dx: number, dy: number, far: boolean): void, compare(on: boolean): void,
   *   space(down: boolean): void, paste(file: File): void,
   * }} more
   */
  constructor(actions, more) {
    this.actions = actions
    this.more = more
    this.field = document.createElement('textarea')
    this.field.className = 'lazy-canvas-keys'
    this.field.setAttribute('aria-label',
      'Canvas. Arrows move the brush, Space paints, A paints everything, Enter generates, 1 to 8 choose, K keeps, '
      + 'X discards')
    this.field.addEventListener('keydown', (event) => this.down(event))
    this.field.addEventListener('keyup', (event) => this.up(event))
    this.field.addEventListener('input', () => (this.field.value = ''))
    this.field.addEventListener('blur', () => this.released())
    this.field.addEventListener('paste', (event) => this.paste(event))
  }

  focus() {
    this.field.focus({ preventScroll: true })
  }

  /** @param {KeyboardEvent} event */
  down(event) {
    if (!this.act(event)) return
    event.preventDefault()
    event.stopPropagation()
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether it was for the canvas
   */
  act({ key, ctrlKey, metaKey, shiftKey, altKey, repeat }) {
    const letter = key.length === 1 ? key.toLowerCase() : key
    if (ctrlKey || metaKey) {
      if (letter !== 'z' && letter !== 'y') return false
      this.actions[letter === 'y' || shiftKey ? 'redo' : 'undo']()
    } else if (altKey) return false
    else if (letter === 'c') repeat || this.more.compare(true)
    else if (letter === ' ') repeat || this.more.space(true)
    else if (/^[1-9]$/.test(letter)) this.more.choose(Number(letter) - 1)
    else if (letter in ARROWS) this.more.step(...ARROWS[letter], shiftKey)
    else if (letter in KEYS) this.actions[KEYS[letter]]()
    else return false
    return true
  }

  /** @param {KeyboardEvent} event */
  up({ key }) {
    if (key === ' ') this.more.space(false)
    if (key.toLowerCase() === 'c') this.more.compare(false)
  }

  released() {
    this.more.compare(false)
  }

  /** @param {ClipboardEvent} event */
  paste(event) {
    event.stopPropagation()
    const file = pictureOf(event.clipboardData)
    if (!file) return
    event.preventDefault()
    this.more.paste(file)
  }
}

/**
 * The picture among what was dropped or pasted.
 * @param {DataTransfer | null} given
 */
export const pictureOf = (given) => [...(given?.files ?? [])].find((file) => file.type.startsWith('image/'))
